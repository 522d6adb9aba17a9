//! The table of workloads, a file each.

pub mod disk_write;
pub mod idle;
pub mod idle_desktop;
pub mod memory_intensive;
pub mod mix;

use crate::workload::Workload;
use whimbrel_model::registry::Registry;

/// Every workload, by the name that an experiment file's `workload.use` takes.
pub static WORKLOADS: Registry<Workload> = Registry {
    family: "workload",
    entries: &[memory_intensive::ENTRY, disk_write::ENTRY, idle_desktop::ENTRY, mix::ENTRY, idle::ENTRY],
};
