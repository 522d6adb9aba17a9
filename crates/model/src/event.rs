//! What is recorded while a guest migrates. Every metric is a pure function of these events.

use crate::phase::Phase;
use crate::strategy::Stage;
use crate::units::Nanos;
use serde::{Deserialize, Serialize};

/// Memory or disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Pages of memory.
    Memory,
    /// Blocks of the disk.
    Disk,
}

/// Which host recorded an event, and so by whose clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// The source's monotonic clock.
    Source,
    /// The destination's monotonic clock.
    Destination,
}

/// What became of a client's requests: one at a time, each begun when the one before it has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// Those that were answered as they should be.
    pub answered: u64,
    /// Those that were not, in the time that a client waits.
    pub lost: u64,
    /// Those that had not ended yet: 0 or 1.
    pub open: u64,
}

/// A trial's fixed points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// The source accepted the command to migrate.
    Requested,
    /// Both ends are ready: connected, negotiated, memory reserved, tracking armed.
    SetupDone,
    /// The engine asked the machine to pause.
    PauseRequested,
    /// The last vCPU has left guest code at the source.
    Paused,
    /// No guest I/O is in flight at the source.
    Drained,
    /// The device state has been read.
    StateSaved,
    /// The destination has every page that was carried over.
    MemoryCarried,
    /// The destination has every block that was carried over.
    DiskCarried,
    /// The destination has taken up the device state.
    StateLoaded,
    /// The source has given up the right to resume: the point of no return.
    HandedOver,
    /// First instant a vCPU may execute at the destination.
    Resumed,
    /// The destination lacks no page.
    MemoryWhole,
    /// The destination lacks no block.
    DiskWhole,
    /// The later of the two.
    Whole,
    /// The source holds no guest state that anyone may still ask for.
    Released,
}

/// Why pushing ended; the values that the stop rules' registry knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// The rest is as small as was asked for.
    Converged,
    /// The most rounds were made.
    RoundBound,
    /// The most bytes were sent.
    ByteBound,
    /// The most time was spent.
    TimeBound,
    /// The rate that would be needed exceeds the largest allowed.
    RateBound,
    /// The strategy stops at once by design.
    Immediate,
}

/// One round of push: from its first unit to the `Take` that ends it. The last one ends at the pause.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Memory or disk.
    pub kind: Family,
    /// When it began, in nanoseconds since the migration was requested.
    pub start_ns: u64,
    /// How long it took, in nanoseconds.
    pub ns: u64,
    /// Units sent in it.
    pub sent_units: u64,
    /// Distinct units that were written while it went on.
    pub dirty_units: u64,
    /// Units sent in it that had been sent before.
    pub again_units: u64,
    /// Payload bytes.
    pub bytes: u64,
    /// The rate limit that the strategy set, in bytes a second.
    pub limit: Option<f64>,
    /// The downtime predicted at its end, in nanoseconds.
    pub predicted_ns: Option<u64>,
    /// The share of time taken from the guest's vCPUs, 0 to 1.
    pub throttle: f64,
}

/// What a stretch of sending put on the link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Units sent for the first time.
    pub first_units: u64,
    /// Units sent before.
    pub again_units: u64,
    /// Payload bytes of the first kind.
    pub first_bytes: u64,
    /// Payload bytes of the second kind.
    pub again_bytes: u64,
    /// Units sent as they are.
    pub raw_units: u64,
    /// Units told to be zero.
    pub zero_units: u64,
    /// Units sent as a difference from an earlier version.
    pub delta_units: u64,
    /// Units sent compressed.
    pub compressed_units: u64,
    /// Units sent as the name of content that the destination holds.
    pub reference_units: u64,
    /// Payload bytes of the names that stood for content.
    pub reference_bytes: u64,
    /// Payload bytes of the names that were offered in vain: their content followed.
    pub offer_bytes: u64,
}

impl Sent {
    /// Adds another stretch.
    pub fn add(&mut self, other: &Sent) {
        self.first_units += other.first_units;
        self.again_units += other.again_units;
        self.first_bytes += other.first_bytes;
        self.again_bytes += other.again_bytes;
        self.raw_units += other.raw_units;
        self.zero_units += other.zero_units;
        self.delta_units += other.delta_units;
        self.compressed_units += other.compressed_units;
        self.reference_units += other.reference_units;
        self.reference_bytes += other.reference_bytes;
        self.offer_bytes += other.offer_bytes;
    }

    /// Units of both kinds.
    pub fn units(&self) -> u64 {
        self.first_units + self.again_units
    }

    /// Payload bytes of both kinds.
    pub fn bytes(&self) -> u64 {
        self.first_bytes + self.again_bytes
    }
}

/// What the pages of a guest's RAM are to its own kernel, in numbers. Each page counts once, under the first that fits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageTypes {
    /// Free: their content is nobody's.
    pub free_pages: u64,
    /// Of processes, not of files.
    pub anonymous_pages: u64,
    /// Of files, as the disk has them.
    pub clean_cache_pages: u64,
    /// Of files, and the disk lacks them; of files that have no disk behind them, all.
    pub dirty_cache_pages: u64,
    /// The kernel's small objects.
    pub slab_pages: u64,
    /// Page tables.
    pub page_table_pages: u64,
    /// Everything else, and what is no RAM.
    pub other_pages: u64,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Event {
    /// A fixed point was reached.
    Moment {
        /// Which.
        moment: Moment,
    },
    /// A phase began.
    Phase {
        /// Which.
        phase: Phase,
    },
    /// Units were sent.
    Sent {
        /// Memory or disk.
        family: Family,
        /// While the guest was where.
        stage: Stage,
        /// Whether the destination had asked for them.
        demanded: bool,
        /// What was sent.
        sent: Sent,
    },
    /// A round ended.
    Round {
        /// The round.
        round: Round,
    },
    /// The selection let pages wait that a push had offered.
    Deferred {
        /// How many.
        pages: u64,
    },
    /// The guest has said what it knows of its pages.
    Hinted {
        /// How many are free; `None`: it was not asked.
        free_pages: Option<u64>,
        /// How many are copies of what the disk holds; `None`: it was not asked.
        backed_pages: Option<u64>,
        /// What all of them are; `None`: it doesn't tell.
        types: Option<PageTypes>,
    },
    /// Pages that the destination lacks stay behind for good: their content is nobody's.
    LeftOut {
        /// How many.
        pages: u64,
    },
    /// A family's schedule is ready for the pause, or no longer.
    Ready {
        /// Memory or disk.
        family: Family,
        /// Why pushing ended; `None`: readiness is withdrawn.
        ended_by: Option<EndedBy>,
    },
    /// The guest's vCPUs are slowed.
    Throttled {
        /// The share of their time that is taken, 0 to 1.
        share: f64,
    },
    /// The downtime predicted when the pause was decided.
    Predicted {
        /// Nanoseconds.
        ns: u64,
    },
    /// A vCPU waited for a missing unit for which a request was sent.
    Fault {
        /// Memory or disk.
        family: Family,
        /// How long it waited.
        ns: u64,
        /// Whether the unit was already on its way when the request reached the source.
        in_flight: bool,
    },
    /// A reading of the guest's progress.
    Work {
        /// Units of work done since operation 0.
        units: u64,
        /// Operations done, one count a vCPU.
        operations: Vec<u64>,
    },
    /// A reading of the host's energy.
    Energy {
        /// Microjoules since the meter was started, a figure a domain of the host's meter; `None`: it can't be told.
        uj: Vec<Option<u64>>,
    },
    /// The guest's longest silences on this host.
    Silence {
        /// The longest time between two heartbeats of one vCPU.
        longest_ns: u64,
        /// The last heartbeat of each vCPU before the guest left this host, or the first after it arrived.
        edge: Vec<Nanos>,
    },
    /// The clock of a guest that has one of its own, at the heartbeat by which it left this host or came to it.
    GuestClock {
        /// When the heartbeat was heard, by this host's clock.
        heard: Nanos,
        /// What the guest's clock said.
        said: Nanos,
    },
    /// What became of a client's requests to a service in the guest, on this host.
    Served {
        /// The requests.
        requests: Requests,
    },
    /// The end of the attempt on this host, and why.
    Failed {
        /// In words.
        reason: String,
    },
}

/// An event with its instant and the host whose clock gave it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// The host's monotonic clock.
    pub at_ns: Nanos,
    /// The host.
    pub host: Mark,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}
