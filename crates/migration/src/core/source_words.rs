//! What the source's core is given, what it is told, what it wants done, and what it shows.

use super::{Ending, Run, Told, Written};
use crate::coordinator::Coordinator;
use whimbrel_disk::DiskStrategy;
use whimbrel_memory::MemoryStrategy;
use whimbrel_model::event::Sent;
use whimbrel_model::{Block, ByteRate, Event, Extent, Family, Mirroring, Nanos, Observe, Page, Phase, UnitSet};
use whimbrel_wire::Message;

/// What is to be moved, and how.
pub struct SourcePlan {
    /// When the command to migrate was accepted, by this host's clock.
    pub requested: Nanos,
    /// What the destination lacks of the memory.
    pub missing_pages: UnitSet<Page>,
    /// How memory moves.
    pub memory: MemoryStrategy,
    /// The disk, if the guest has one.
    pub disk: Option<DiskPlan>,
    /// How the two share the time and the link.
    pub coordinator: Box<dyn Coordinator>,
    /// What the core goes by.
    pub limits: Limits,
}

/// What is to be moved of a disk, and how.
pub struct DiskPlan {
    /// What the destination lacks.
    pub missing: UnitSet<Block>,
    /// Blocks without content when the trip began: they cost next to nothing of the link.
    pub holes: UnitSet<Block>,
    /// Bytes in a block.
    pub block_bytes: u64,
    /// How it moves.
    pub strategy: DiskStrategy,
}

/// Numbers that the engine goes by.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The part of a downtime that doesn't depend on bytes: pause, state and hand-over.
    pub fixed_cost: Nanos,
    /// What this host may send; `None`: not known. A pause has all of it, also where the pushing before was held back.
    pub link: Option<ByteRate>,
}

/// What happens to the source's core.
#[derive(Clone, Debug)]
pub enum SourceInput {
    /// Both ends are ready.
    Start,
    /// A job's units are on the link (memory) or acknowledged (disk).
    Sent {
        /// Whose units.
        family: Family,
        /// The job's number.
        job: u64,
        /// What was sent.
        sent: Sent,
    },
    /// A log of writes was read.
    Observed {
        /// Taken or peeked at.
        observe: Observe,
        /// What it held.
        written: Written,
    },
    /// The guest has said what it knows of its pages, or why it can't.
    Hinted {
        /// The question's number.
        question: u64,
        /// What it has said.
        told: Result<Told, String>,
    },
    /// No vCPU executes guest code.
    Paused {
        /// When the last one had left it.
        at: Nanos,
    },
    /// No guest I/O is in flight.
    Drained,
    /// The device state was read.
    StateSaved(Vec<u8>),
    /// The destination says something.
    Said(Message),
    /// The destination asks for pages that a vCPU waits for.
    Fetch(Vec<u64>),
    /// The destination has read blocks from the source's export, or was told by it that they are zeroes.
    Pulled {
        /// Which.
        extent: Extent,
        /// Its guest waits for them.
        demanded: bool,
        /// It was told.
        zero: bool,
    },
    /// A guest's write has reached the destination too.
    Mirrored(Sent),
    /// The instant of a [`SourceEffect::TimerAt`] has come.
    Timer,
    /// A lane has ended, for this reason. Why it did, the destination may be about to say.
    LaneEnded(String),
    /// The control connection has ended: the destination says nothing more.
    ControlEnded(String),
    /// The link is gone, or the destination; or this host can't go on.
    Lost(String),
    /// Nobody wants the move any more.
    Cancelled(String),
}

/// What the source's core wants done.
#[derive(Clone, Debug)]
pub enum SourceEffect {
    /// Send runs of units; [`SourceInput::Sent`] answers.
    Send {
        /// Whose units.
        family: Family,
        /// The job's number.
        job: u64,
        /// What to send.
        runs: Vec<Run>,
        /// The most of the link that the job may take.
        limit: Option<ByteRate>,
        /// Digests go first, and only content that the destination holds nowhere follows. Blocks only.
        offered: bool,
        /// Ahead of everything else: a vCPU waits.
        demanded: bool,
    },
    /// Put a mark behind everything sent on the memory lane.
    Barrier,
    /// Read a log of writes; [`SourceInput::Observed`] answers.
    Observe {
        /// Whose.
        family: Family,
        /// Take it or peek at it.
        observe: Observe,
    },
    /// Ask the guest what it knows of its pages; [`SourceInput::Hinted`] answers. The logs of its writes are armed.
    Ask {
        /// The question's number.
        question: u64,
    },
    /// Mirror the guest's writes to the disk from now on.
    Mirror {
        /// Which of them.
        mirroring: Mirroring,
        /// What the destination lacks; the rest it has, as it was when the log was taken last.
        missing: UnitSet<Block>,
    },
    /// Pause the guest; [`SourceInput::Paused`] answers.
    Pause,
    /// Wait for the guest's I/O; [`SourceInput::Drained`] answers.
    Drain,
    /// Read the device state; [`SourceInput::StateSaved`] answers.
    SaveState,
    /// Let the guest run on.
    Resume,
    /// Take this share of the vCPUs' time.
    Throttle(f64),
    /// Say something to the destination.
    Say(Message),
    /// Call again at this instant.
    TimerAt(Nanos),
    /// Record an event.
    Record(Event),
    /// This was the end.
    Finish(Ending),
}

/// How far a migration is, for a display.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    /// The phase.
    pub phase: Phase,
    /// Payload bytes of memory sent.
    pub memory_bytes: u64,
    /// Payload bytes of the disk sent.
    pub disk_bytes: u64,
    /// Bytes that the destination still lacks, as far as is known.
    pub remaining_bytes: u64,
    /// Rounds of memory that have ended.
    pub round: u64,
    /// The dirty page rate of the last round, in bytes a second.
    pub dirty_bytes_per_s: Option<f64>,
    /// The bandwidth achieved lately.
    pub bandwidth_bytes_per_s: Option<f64>,
    /// The downtime predicted at the last round's end.
    pub predicted_downtime_ns: Option<u64>,
}
