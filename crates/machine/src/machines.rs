//! The table of machine kinds, a file each.

mod faulty;
mod null;
pub mod qemu;
pub mod thread;

use crate::error::MachineError;
use crate::machine::{Machine, MachineSetup};
use std::sync::Arc;
use whimbrel_model::registry::Registry;

/// A kind of machine.
pub struct Kind {
    /// Makes one: paused, its RAM and disk as they are.
    pub build: fn(MachineSetup) -> Result<Arc<dyn Machine>, MachineError>,
    /// How many pages of a guest with so many pages of RAM its workload may use; `Err`: the least that RAM must have.
    pub workload_pages: fn(u64) -> Result<u64, u64>,
    /// Whether its vCPUs can be slowed ([`Machine::throttle`]).
    pub throttles: bool,
    /// Whether the host fills RAM before operation 0; else the machine fills the workload's pages itself.
    pub filled_by_host: bool,
}

/// Every kind, by the name that an experiment file's `guest.machine` takes.
pub static MACHINES: Registry<Kind> =
    Registry { family: "machine", entries: &[thread::ENTRY, qemu::ENTRY, null::ENTRY, faulty::ENTRY] };
