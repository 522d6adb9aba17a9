//! What a report is made of besides the events: plain data that the session gathers, and the verdicts that go into the
//! row as they are.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use whimbrel_energy::{Conditions, HostMeter};

/// What the session knows of one guest's trip besides its events. Every field may be left at its default: what is
/// computed from it is then `None`, with its reason.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// The guest's memory, in bytes.
    pub ram_bytes: u64,
    /// The guest's disk, in bytes; 0 without one.
    pub disk_bytes: u64,
    /// The granule of memory tracking, in bytes.
    pub page_size_bytes: u64,
    /// The granule of disk tracking, in bytes.
    pub block_size_bytes: u64,
    /// The offset between the hosts' clocks as measured.
    pub clock: Option<ClockOffset>,
    /// Bytes of messages, requests, bitmaps, device state and framing, both directions; `None`: not counted.
    pub control_bytes: Option<u64>,
    /// Payload that the guest never used, in bytes.
    pub unused_bytes: Option<u64>,
    /// The counters of each direction of each link.
    pub links: Vec<LinkCounters>,
    /// Processor time of both hosts.
    pub cpu: Cpu,
    /// What read the hosts' energies, and their powers without a migration.
    pub energy: EnergyFacts,
    /// The twin check's verdict.
    pub verify: Verify,
    /// The same guest without a migration.
    pub control: Option<ControlRun>,
    /// What the workload asks for and does.
    pub offered: OfferedFacts,
    /// Where the guest executes operations after all is over; `None`: nobody looked.
    pub alive: Option<Alive>,
    /// An outcome that the events can't tell, such as a trial that was interrupted.
    pub outcome: Option<Outcome>,
    /// Why a field is `None`, by its path, where the session knows better.
    pub unmeasured: BTreeMap<String, String>,
}

/// How a trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The guest runs whole at the destination.
    Completed,
    /// The guest runs at the source.
    Aborted,
    /// The guest runs nowhere, or lacks state that nobody has.
    Lost,
    /// Both hosts keep a frozen image.
    Undecided,
    /// The guest runs, and state stays away by design.
    Partial,
    /// The trial could not be made.
    Failed,
}

/// The offset between two hosts' monotonic clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockOffset {
    /// The destination's clock less the source's, in nanoseconds.
    pub offset_ns: i64,
    /// How far it may be off, in nanoseconds.
    pub error_ns: u64,
}

/// What was counted in one direction of a link.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkCounters {
    /// The host that sends.
    pub from: String,
    /// The host that receives.
    pub to: String,
    /// The rate set; `None`: unlimited.
    pub limit_bytes_per_s: Option<f64>,
    /// Bytes that Whimbrel gave to it.
    pub payload_bytes: u64,
    /// Bytes as the network counts them, with headers.
    pub wire_bytes: Option<u64>,
    /// The time from the first byte to the last, in nanoseconds; `None`: the trial's whole time is taken.
    pub in_use_ns: Option<u64>,
}

/// Processor time from the request to the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// The source's host process and its guest, in nanoseconds.
    pub source_ns: Option<u64>,
    /// The destination's, in nanoseconds.
    pub destination_ns: Option<u64>,
}

/// What read the hosts' energies in one trip, and what the hosts use without a migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EnergyFacts {
    /// The source's meter, or why there is none.
    pub source: Result<Box<HostMeter>, String>,
    /// The destination's.
    pub destination: Result<Box<HostMeter>, String>,
    /// Powers of both hosts while nothing ran on them.
    pub idle: HostPowers,
    /// Powers while the guest ran at the trip's source without a migration.
    pub workload: HostPowers,
    /// The source's processors during the trip.
    pub source_conditions: Conditions,
    /// The destination's.
    pub destination_conditions: Conditions,
}

impl Default for EnergyFacts {
    fn default() -> Self {
        let none = || Err("no meter was read".to_owned());
        EnergyFacts {
            source: none(),
            destination: none(),
            idle: HostPowers::none("it was not measured"),
            workload: HostPowers::none("there was no control run"),
            source_conditions: Conditions::default(),
            destination_conditions: Conditions::default(),
        }
    }
}

/// The powers of two hosts over the same time, in watts, or why they aren't known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostPowers {
    /// The source's.
    pub source_w: Result<f64, String>,
    /// The destination's.
    pub destination_w: Result<f64, String>,
}

impl HostPowers {
    /// Neither is known.
    pub fn none(why: &str) -> Self {
        HostPowers { source_w: Err(why.to_owned()), destination_w: Err(why.to_owned()) }
    }
}

/// The word of the twin check on one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The guest and its never-migrated twin hold the same.
    Equal,
    /// They don't.
    Different,
    /// They were not compared.
    #[default]
    Skipped,
}

/// The twin check's verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Verify {
    /// Pages, digests, counters and generators.
    pub memory: Verdict,
    /// Blocks; skipped without a disk.
    pub disk: Verdict,
    /// Which images were compared, at which instants; or why none was.
    pub scope: String,
    /// Pages and blocks compared.
    pub compared: u64,
    /// Pages and blocks that the twin says are free.
    pub excluded: u64,
    /// How far each vCPU had come at the last comparison.
    pub operations: Vec<u64>,
    /// The first thing that differs, in words.
    pub first_difference: Option<String>,
}

/// A reading of a guest's progress.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkSample {
    /// When, on any clock that runs evenly, in nanoseconds.
    pub at_ns: u64,
    /// Units of work done since operation 0.
    pub units: u64,
    /// Operations done, one count a vCPU.
    pub operations: Vec<u64>,
}

/// The same guest with the same seed, never migrated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlRun {
    /// Its progress, in order of time, at least two readings.
    pub work: Vec<WorkSample>,
    /// The longest time between two heartbeats of one vCPU, in nanoseconds.
    pub longest_silence_ns: Option<u64>,
}

/// What a workload asks for and what it was seen to do without a migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OfferedFacts {
    /// The rate of page writes asked for, in bytes a second; `None`: as fast as it can.
    pub write_bytes_per_s: Option<f64>,
    /// The rate of page writes seen in the control run, in bytes a second.
    pub achieved_bytes_per_s: Option<f64>,
    /// Distinct pages dirtied in an interval, in bytes a second.
    pub unique_dirty_bytes_per_s: Option<f64>,
    /// That interval, in nanoseconds.
    pub interval_ns: Option<u64>,
    /// What is written again and again, in bytes.
    pub working_set_bytes: Option<u64>,
}

/// Where a guest executes operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alive {
    /// At the source.
    pub source: bool,
    /// At the destination.
    pub destination: bool,
}
