//! What can happen in a simulated world, and when.

use whimbrel_migration::core::{DestinationInput, Run, SourceInput};
use whimbrel_model::event::Sent;
use whimbrel_model::{ByteRate, Family, Nanos, Page, UnitSet};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    Push,
    Demand,
    Disk,
    Prefetch,
    ToDestination,
    ToSource,
}

/// Something that is to happen.
pub enum Happening {
    Source(SourceInput),
    Destination(DestinationInput),
    /// A job leaves the source: its units are read now.
    Departs {
        family: Family,
        job: u64,
        runs: Vec<Run>,
        lane: Lane,
        limit: Option<ByteRate>,
    },
    /// Units reach the destination.
    Arrives {
        family: Family,
        units: Vec<(u64, u32)>,
        acknowledge: Option<(u64, Sent)>,
    },
    /// Pages reach the destination by the names of blocks.
    Named {
        names: Vec<(u64, u64)>,
    },
    /// The destination reads blocks from the source.
    Pulls {
        block: u64,
    },
    PullAnswered {
        block: u64,
        version: u32,
    },
    /// The destination's prefetch of these blocks reaches the source.
    Prefetches {
        job: u64,
        blocks: Vec<u64>,
        limit: Option<ByteRate>,
    },
    PrefetchAnswered {
        job: u64,
        units: Vec<(u64, u32)>,
    },
    /// The guest does something.
    Guest,
    /// The guest looks which of its pages are free: the first half of them, then, with what it has seen, the rest.
    Looks {
        question: u64,
        seen: Option<UnitSet<Page>>,
    },
    /// The lanes end, and with `control` so does the link.
    Break {
        control: bool,
    },
}

/// When it is to happen; at one instant in the order in which it was planned.
pub struct Scheduled {
    pub at: Nanos,
    pub order: u64,
    pub what: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}
