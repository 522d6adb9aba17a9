//! The table of machine kinds, a file each.

pub mod thread;

use crate::error::MachineError;
use crate::machine::{Machine, MachineSetup};
use std::sync::Arc;
use whimbrel_model::registry::Registry;

/// How a machine is made: paused, before operation 0, its RAM and disk as they are.
pub type Build = fn(MachineSetup) -> Result<Arc<dyn Machine>, MachineError>;

/// Every kind, by the name that an experiment file's `guest.machine` takes.
pub static MACHINES: Registry<Build> = Registry { family: "machine", entries: &[thread::ENTRY] };
