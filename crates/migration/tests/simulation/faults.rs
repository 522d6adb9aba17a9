//! What breaks, and how a whole migration ends.

use whimbrel_model::Rng;

/// What breaks, and when, counted in events.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    /// The link breaks for good at this event: the lanes end, and so many nanoseconds later the control connection.
    Cut(u64, u64),
    /// The lanes end for good at this event, and control stays: a host must not wait for ever for the other's word why.
    CutLanes(u64),
    /// The link stalls at this event for so many nanoseconds.
    Stall(u64, u64),
    /// Whoever wanted the move gives it up at this event.
    Cancel(u64),
    /// The destination can't go on at this event.
    DestinationFails(u64),
    /// The guest can't tell which of its pages are free.
    KnowsNothing,
    /// The guest calls pages free that are in use: the check has to see it.
    CallsAllFree,
    /// The engine loses one unit: not a fault of the world, but of ours; the check has to see it.
    DropOneUnit,
}

impl Fault {
    pub fn from_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0xfa17);
        let at = rng.below(400);
        match rng.below(6) {
            0 => Fault::None,
            1 => Fault::Cut(at, rng.below(1_000_000)),
            5 => Fault::CutLanes(at),
            2 => Fault::Stall(at, rng.below(3_000_000_000)),
            3 => Fault::Cancel(at),
            _ => Fault::DestinationFails(at),
        }
    }
}

/// How the whole ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Completed,
    Aborted,
    Lost,
    Undecided,
}
