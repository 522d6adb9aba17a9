//! The table of machine kinds, a file each.

mod faulty;
mod null;
pub mod qemu;
pub mod thread;

use crate::error::MachineError;
use crate::machine::{Machine, MachineSetup};
use serde_json::Value;
use std::sync::Arc;
use whimbrel_model::registry::{ParameterError, Parameters, Registry};

/// A stream that a hypervisor opens for pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnStream {
    /// Pages as they come.
    Bulk,
    /// Pages that a vCPU waits for; it may be opened late, or never.
    Urgent,
}

/// A migration of a hypervisor's own.
#[derive(Debug)]
pub struct Own {
    /// The capabilities that are on, at both ends, and the hypervisor's version that each came with.
    pub capabilities: &'static [(&'static str, &'static str)],
    /// The streams that the hypervisor opens, in order; the first one is its main stream.
    pub streams: fn(&Parameters) -> Vec<OwnStream>,
    /// Whether the guest is to tell the hypervisor which of its pages are free, which then don't cross.
    pub hinted: fn(&Parameters) -> bool,
    /// Whether the guest switches while pages are missing, and these follow.
    pub postcopy: bool,
    /// What else is set at both ends, in the hypervisor's words; `Err`: a value that it doesn't take.
    pub settings: fn(&Parameters) -> Result<Value, ParameterError>,
}

/// A way of a hypervisor's own to move a disk, with a migration of its own.
#[derive(Debug)]
pub struct OwnDisk {
    /// Whether the copy follows the guest's writes or these wait for it, as the hypervisor says it.
    pub copy_mode: &'static str,
}

/// A kind of machine.
pub struct Kind {
    /// Makes one: paused, its RAM and disk as they are.
    pub build: fn(MachineSetup) -> Result<Arc<dyn Machine>, MachineError>,
    /// Whether the program that such guests run in is on this host, where there is one; `Err`: why it can't be used.
    pub here: fn() -> Result<(), String>,
    /// RAM of a guest of which an experiment doesn't say how much it has.
    pub default_ram_bytes: u64,
    /// How many pages of a guest with so many pages of RAM its workload may use; `Err`: how much RAM it must have, such as `at least
    /// "128 MiB"`.
    pub workload_pages: fn(u64) -> Result<u64, String>,
    /// The migrations of the hypervisor's own, besides which the engine's can be set.
    pub own: &'static Registry<Own>,
    /// The hypervisor's own ways to move a disk, with those.
    pub own_disk: &'static Registry<OwnDisk>,
    /// Whether its vCPUs can be slowed ([`Machine::throttle`]).
    pub throttles: bool,
    /// Whether they can be slowed on this host, where that depends on it; `Err`: why not.
    pub throttles_here: fn() -> Result<(), String>,
    /// Whether the host fills RAM before operation 0; else the machine fills the workload's pages itself.
    pub filled_by_host: bool,
    /// Whether a guest may have software of its own ([`crate::machine::Software::Brought`]).
    pub takes_brought: bool,
}

/// RAM of a guest whose machine needs none for itself.
const DEFAULT_RAM_BYTES: u64 = 128 << 20;

/// For kinds that have no migration of their own.
const NO_OWN: &Registry<Own> = &Registry { family: "own migration", entries: &[] };
const NO_OWN_DISK: &Registry<OwnDisk> = &Registry { family: "own way to move a disk", entries: &[] };

/// Every kind, by the name that an experiment file's `guest.machine` takes.
pub static MACHINES: Registry<Kind> =
    Registry { family: "machine", entries: &[thread::ENTRY, qemu::ENTRY, null::ENTRY, faulty::ENTRY] };
