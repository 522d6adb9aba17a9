//! The core of each host: a synchronous state machine. Inputs come in, effects go out; page bytes never enter it.
//!
//! It has two drivers: threads and sockets ([`crate::driver`]), and a seeded event queue with a synthetic machine and a
//! simulated link (the tests' `simulation`). One whole migration, source on the left:
//!
//! ```text
//!   Setup       connect, negotiate, reserve; arm the logs of writes
//!   Push        Ask (which pages are free), where the selection goes by it
//!               Send, Observe, Send, ...            ──pages, blocks──►  fill RAM and disk
//!   Switchover  Pause, Drain, last Observe, SaveState; what is free still is left out for good
//!               Send what is carried over           ──pages, blocks──►
//!               Barrier                             ──in the lane────►  BarrierArrived
//!               Say State{device, missing sets}     ─────────────────►  BeginPull, LoadState
//!                                                   ◄───────── Loaded
//!               Say HandOver: the point of no return ────────────────►  Resume
//!                                                   ◄──────── Resumed
//!   Pull        Send what was left behind           ──pages, blocks──►  wake who waits
//!                                                   ◄──── Prefetch ───  blocks, in the order of the schedule
//!               demanded first                      ◄─────── Fetch ───  a vCPU touches a missing page
//!                                                   ◄────────── Whole
//!   Complete    Say Released
//! ```
//!
//! The guarantee: before `HandOver` is said an error leaves the guest running at the source; after it, the guest runs
//! at the destination or, where state was left behind, may be lost; never at both.

mod backed;
mod bandwidth;
mod destination;
mod fetching;
mod flow;
mod flow_words;
mod jobs;
mod last_word;
mod queue;
mod runs;
mod source;
mod source_words;

pub use destination::{DestinationCore, DestinationEffect, DestinationInput};
pub use source::SourceCore;
pub use source_words::{DiskPlan, Limits, Progress, SourceEffect, SourceInput, SourcePlan};

use serde::{Deserialize, Serialize};
use whimbrel_model::{Backed, Block, Extent, PAGE_BYTES, Page, UnitSet, WriteCounts};

/// How an attempt to migrate ended on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ending", rename_all = "snake_case")]
pub enum Ending {
    /// The guest is whole at the destination.
    Completed,
    /// The guest runs at the source.
    Aborted {
        /// Why.
        reason: String,
    },
    /// State was left behind that can't come any more.
    Lost {
        /// Why.
        reason: String,
    },
    /// The link broke during the hand-over: both frozen images are kept until the hosts meet again.
    Undecided {
        /// Why.
        reason: String,
    },
}

/// A run of units that goes out together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The units.
    pub extent: Extent,
    /// Whether they were sent before in this migration.
    pub again: bool,
    /// Pages that may go by name: the byte of the disk at which the first of them lies, and the others behind it. That they hold
    /// what is there, the guest says, and the driver has to see.
    pub place: Option<u64>,
}

impl Run {
    /// Whether a page continues the run.
    pub(crate) fn goes_on(&self, page: u64, again: bool, place: Option<u64>) -> bool {
        let next = self.place.map(|first| first + self.extent.count * PAGE_BYTES);
        self.extent.end() == page && self.again == again && next == place
    }
}

/// What a guest knows of its pages.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// Those that were free at an instant after the question, each at its own.
    pub free: UnitSet<Page>,
    /// Those that are copies of what the disk holds, as far as it knows.
    pub backed: Vec<Backed>,
}

/// What an observation of a log of writes found.
#[derive(Clone, Debug, PartialEq)]
pub enum Written {
    /// Pages of memory.
    Pages(UnitSet<Page>),
    /// Blocks of the disk, and the write counts where they are kept.
    Blocks(UnitSet<Block>, Option<WriteCounts<Block>>),
}
