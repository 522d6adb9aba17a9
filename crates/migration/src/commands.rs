//! What a coordinator asks of the agent of a host, and what the agent answers.
//!
//! One connection a guest and host. Every [`Command`] gets one [`Answer`]; [`Command::Migrate`] is answered by any number
//! of [`Answer::Progress`] and then one [`Answer::Ended`]. Closing the connection discards the guest.
//!
//! An agent that is stopped, or dies, leaves the copies of disks that are recorded or were kept: see [`crate::copies`].

use crate::coordinator::CoordinatorChoice;
use crate::core::{Ending, Progress};
use crate::report::{ClockOffset, ControlRun};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use whimbrel_disk::DiskChoice;
use whimbrel_energy::{Conditions, EnergySpec, HostMeter};
use whimbrel_machine::{Brought, OwnMove, Verification};
use whimbrel_memory::MemoryChoice;
use whimbrel_model::{Family, Recorded};
use whimbrel_wire::nic::FlowReading;
use whimbrel_workloads::WorkloadChoice;

/// A guest: everything that makes it what it is, on any host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GuestSpec {
    /// Tells it from every other guest of the run.
    pub name: String,
    /// The kind of machine, by its registry's name.
    pub machine: String,
    /// The seed of its content and its operations.
    pub seed: u64,
    /// RAM in bytes, a multiple of the page size.
    pub ram_bytes: u64,
    /// vCPUs, 1 to 8.
    pub vcpus: u32,
    /// The disk, if it has one.
    pub disk: Option<DiskSpec>,
    /// What runs in it.
    pub software: Software,
}

/// What runs in a guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Software {
    /// A workload, of which a twin can judge.
    Workload(WorkloadChoice),
    /// What its user brought.
    Brought(Box<Brought>),
}

impl Software {
    /// As a row names it.
    pub fn name(&self) -> &'static str {
        match self {
            Software::Workload(workload) => workload.name(),
            Software::Brought(_) => "brought",
        }
    }

    /// The workload, if it is one.
    pub fn workload(&self) -> Option<&WorkloadChoice> {
        match self {
            Software::Workload(workload) => Some(workload),
            Software::Brought(_) => None,
        }
    }
}

/// A guest's disk.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Its size in bytes.
    pub bytes: u64,
    /// Bytes from its start that hold content before operation 0.
    pub filled_bytes: u64,
    /// The granule of tracking in bytes.
    pub block_bytes: u64,
    /// Every host has what it holds before operation 0, as a base image: only blocks that were modified since move.
    pub base_shared: bool,
}

/// A host's side of the link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkSpec {
    /// The most that this host sends, in bytes a second; `None`: unlimited.
    pub egress_bytes_per_s: Option<f64>,
    /// The most that this host receives, where that differs.
    pub ingress_bytes_per_s: Option<f64>,
    /// How long every byte that this host sends is held, in nanoseconds.
    pub delay_ns: u64,
    /// What the path to the other host carries in bytes a second, whoever sees to it (namespaces, say); `None`: unknown.
    pub path_bytes_per_s: Option<f64>,
}

/// A move of a guest, as both hosts must know it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MoveSpec {
    /// Tells this attempt from every other.
    pub session: u64,
    /// This host's side of the link.
    pub link: LinkSpec,
    /// How memory moves.
    pub memory: MemoryChoice,
    /// The hypervisor's own migration that moves the guest instead.
    pub own: Option<OwnMove>,
    /// How the disk moves.
    pub disk: DiskChoice,
    /// How memory and disk share the time and the link.
    pub coordinator: CoordinatorChoice,
    /// Moves of this guest before this one, by their numbers, in order: what they left of its disk at the destination needn't
    /// move again, as far as both hosts know it to be right.
    pub earlier: Vec<u64>,
    /// Another attempt may follow: the destination records durably what of the disk has arrived.
    pub recorded: bool,
    /// All RAM is to be compared afterwards, source to destination, where the twin knows a part of it only.
    pub witness: bool,
}

/// What a coordinator asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Make a guest: reserve and fill its RAM and disk. It doesn't run yet.
    Create {
        /// The guest.
        spec: GuestSpec,
    },
    /// Let the guest run.
    Run {},
    /// Run the guest from operation 0 for a time, without any migration, and then discard it.
    Control {
        /// How long, in nanoseconds.
        for_ns: u64,
    },
    /// Read this host's energy from now on, for as long as the coordinator stays.
    Meter {
        /// How.
        spec: EnergySpec,
    },
    /// Let this host be for a time, and tell its power meanwhile.
    Idle {
        /// How long, in nanoseconds.
        for_ns: u64,
    },
    /// Tell the host's energies since the last move began here, and stop recording them.
    Energies {},
    /// Keep the disk that the guest has left here, so that it outlives this host's agent: for the guest's return.
    Keep {},
    /// Expect a guest from another host; what is here of its disk is made use of where the move says so.
    Receive {
        /// The guest.
        spec: GuestSpec,
        /// The move.
        movement: MoveSpec,
    },
    /// Tell what executes the guest that is here or expected.
    Accelerator {},
    /// Move the guest that runs here.
    Migrate {
        /// Where to: the address of the other host's agent.
        to: SocketAddr,
        /// The move.
        movement: MoveSpec,
    },
    /// Wait until the move that this host receives has ended.
    Collect {},
    /// Decide an undecided hand-over: whether this host runs the guest.
    Resolve {
        /// True: it runs here. False: it never will.
        run: bool,
    },
    /// Pause the guest for good; what it did since the move ended is answered.
    Stop {},
    /// Compare the stopped or frozen guest with its twin.
    Verify {},
    /// After [`Command::Stop`]: hash these pages or blocks, at most 65,536, for a comparison of source and destination.
    Hash {
        /// Pages of RAM, or blocks of the disk.
        family: Family,
        /// The first.
        first: u64,
        /// How many.
        count: u64,
    },
    /// Forget the guest.
    Discard {},
}

impl Command {
    /// Whether it is about a guest that is this host's. One that is on its way here is not, until the move has been
    /// collected: it may run at the source.
    pub fn needs_the_guest(&self) -> bool {
        match self {
            Command::Run {}
            | Command::Migrate { .. }
            | Command::Resolve { .. }
            | Command::Stop {}
            | Command::Verify {}
            | Command::Hash { .. } => true,
            Command::Create { .. }
            | Command::Control { .. }
            | Command::Meter { .. }
            | Command::Idle { .. }
            | Command::Energies {}
            | Command::Keep {}
            | Command::Receive { .. }
            | Command::Accelerator {}
            | Command::Collect {}
            | Command::Discard {} => false,
        }
    }
}

/// What an agent answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// Done.
    Done {},
    /// How far the move is.
    Progress {
        /// How far.
        progress: Progress,
    },
    /// The move has ended on this host.
    Ended {
        /// How it went here.
        account: Box<Account>,
    },
    /// What a control run did.
    Baseline {
        /// The control run.
        control: Box<ControlRun>,
        /// Distinct pages that it dirtied in an interval of so many nanoseconds.
        dirtied: Option<(u64, u64)>,
        /// The host's power during it, in watts, or why that isn't known.
        power_w: Result<f64, String>,
    },
    /// What reads this host's energy, or why nothing does.
    Metered {
        /// The meter.
        meter: Result<Box<HostMeter>, String>,
    },
    /// The host's power while it was let be, in watts, or why that isn't known.
    Idled {
        /// The power.
        power_w: Result<f64, String>,
    },
    /// What the host used.
    Energies {
        /// Readings, by this host's clock.
        events: Vec<Recorded>,
        /// The frequency and temperature of its processors meanwhile.
        conditions: Conditions,
    },
    /// The guest is stopped; what it did since the move ended here.
    Stopped {
        /// Readings of its progress and its silences, by this host's clock.
        events: Vec<Recorded>,
    },
    /// What executes the guest.
    Accelerator {
        /// As a row names it.
        accelerator: String,
    },
    /// The twin check's word.
    Verified {
        /// The word.
        verification: Verification,
    },
    /// They can't be compared, because.
    NoHashes {
        /// Why.
        why: String,
    },
    /// Pages or blocks.
    Hashes {
        /// A hash of each, in order.
        hashes: Vec<u64>,
        /// Runs of those of which nothing can be said, the first and how many: at the destination they were written since; the
        /// source has not sent them, for they were nobody's.
        left_out: Vec<(u64, u64)>,
    },
    /// The command can't be carried out.
    Refused {
        /// Why.
        reason: String,
    },
}

/// What one host knows of a move that has ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Account {
    /// How it ended here.
    pub ending: Ending,
    /// Whether this host was told that it runs the guest (destination only).
    pub handed_over: bool,
    /// What happened, by this host's clock.
    pub events: Vec<Recorded>,
    /// The other host's clock less this one's, in nanoseconds, and how far off that may be (source only).
    pub clock: Option<ClockOffset>,
    /// What this host put on the link, framing included.
    pub sent: FlowReading,
    /// What the hypervisor says of a migration of its own, as it says it (source only).
    pub own: Option<serde_json::Value>,
    /// What executes the guest here: `none`, `tcg` or `kvm`; `None` where there is no guest.
    pub accelerator: Option<String>,
    /// CPU time of this host's process and its guest from the request to the end, in nanoseconds.
    pub cpu_ns: u64,
    /// Blocks that this move had to carry at least: what the destination lacked when it was requested (source only).
    pub missing_blocks: Option<u64>,
}
