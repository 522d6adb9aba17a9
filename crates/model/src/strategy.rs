//! What a schedule sees and answers. A strategy answers; the engine acts.
//!
//! A schedule does no I/O, reads no clock and knows no sockets. The engine owns the loop, the clock, the link and the
//! books, and asks the schedule
//!
//! - when the migration's push phase begins,
//! - when everything that the last answer pushed is sent,
//! - when an [`Observe`] that it asked for is done,
//! - when a [`Step::Wait`] ends, and, while it waits for the other family after a [`Step::Ready`], every 20 ms,
//! - when the guest runs at the destination and units were left behind.
//!
//! An empty answer means: nothing to do until the next news.
//!
//! Its twin at the destination, built from the same parameters, is asked what to fetch: when the guest runs there and
//! units are missing, and whenever what it asked for is there. What the two have to tell each other is the note.

use crate::counts::WriteCounts;
use crate::event::{EndedBy, Round};
use crate::set::{Ordered, UnitSet};
use crate::units::{ByteRate, Nanos, Unit};
use serde::{Deserialize, Serialize};

/// Orders the transfer of one family's units, pages or blocks. One object a guest, family, trip and host.
pub trait Schedule<U: Unit>: Send {
    /// What the source does next.
    fn source(&mut self, view: &View<'_, U>) -> Vec<Step<U>>;

    /// What the engine has to have ready for it.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// What the destination's twin must know: it crosses in the pause, with the device state, and so costs downtime.
    fn note(&mut self, _view: &View<'_, U>) -> Vec<u8> {
        Vec::new()
    }

    /// What the destination fetches next, beside what the guest waits for. An empty answer: nothing more.
    ///
    /// The note comes from another host and may hold anything.
    fn destination(&mut self, _view: &PullView<'_, U>, _note: &[u8]) -> Vec<Pull<U>> {
        Vec::new()
    }
}

/// What a schedule needs of the engine beyond sending and observing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// Write counts, each over so many units; `None`: none are kept.
    pub counts: Option<u64>,
    /// A lane by which the destination fetches what it was not asked for.
    pub prefetch: bool,
    /// A lane by which the guest's writes are mirrored.
    pub mirror: bool,
    /// A lane by which digests are offered, and at the destination an index of what it holds by content.
    pub offer: bool,
    /// What the source pushes once the guest runs at the destination goes on behind the page that the guest asked for last.
    pub follows: bool,
    /// The disk stays where it is ([`Rest::Remain`]): a lane by which the guest reaches it from the destination.
    pub remains: bool,
}

/// Where the guest is, as the source knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The guest runs at the source.
    Push,
    /// The guest is paused: what the engine sends now costs downtime.
    Paused,
    /// The guest runs at the destination.
    Pull,
}

/// What the stop rule says of the last observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Another round helps.
    Continue,
    /// The rest is small enough, or a bound is reached.
    Stop(EndedBy),
}

/// What a schedule may know when it is asked at the source.
#[derive(Debug)]
pub struct View<'a, U: Unit> {
    /// The time since the migration was requested.
    pub now: Nanos,
    /// Where the guest is.
    pub stage: Stage,
    /// Bytes in a unit.
    pub unit_bytes: u64,
    /// What the destination lacks or holds stale, as of the last `Take`, and is not on its way. All that the trip's
    /// missing set holds, at the start.
    pub unsent: &'a UnitSet<U>,
    /// What was written since the last `Take`, as of the last `Observe`; `None` before the first.
    pub peeked: Option<&'a UnitSet<U>>,
    /// The guest's writes since the migration was requested, as of the last `Observe`; `None` before the first, and where
    /// the schedule does not need them.
    pub counts: Option<&'a WriteCounts<U>>,
    /// The rounds that have ended, each by a `Take`.
    pub rounds: &'a [Round],
    /// The stop rule's word on `unsent` and `peeked` together.
    pub verdict: Verdict,
    /// The bandwidth achieved lately; `None` until something was sent.
    pub bandwidth: Option<ByteRate>,
    /// Whether the other family has said `Ready` (or has nothing to move).
    pub other_ready: bool,
}

/// What a schedule may know when it is asked at the destination.
#[derive(Debug)]
pub struct PullView<'a, U: Unit> {
    /// The time since the guest was resumed.
    pub now: Nanos,
    /// Bytes in a unit.
    pub unit_bytes: u64,
    /// What was missing at the switch and has not been handed to the lane. Some of it may be here by now, because the
    /// guest asked for it or wrote all of it: that is not fetched again.
    pub unfetched: &'a UnitSet<U>,
}

/// How the engine is to look at the log of writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Observe {
    /// Take the log: what was written joins `unsent`, the log starts empty, a round ends.
    Take,
    /// Look without clearing.
    Peek,
}

/// Which of the guest's writes reach both hosts before they are acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mirroring {
    /// All of them.
    All,
    /// Those to units that the destination has; the others are left to the push that is to come.
    Copied,
}

/// What becomes of the units that are still unsent when the guest is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rest {
    /// They are sent while the guest is paused.
    CarryOver,
    /// The guest resumes without them; they follow.
    LeaveBehind,
    /// They never move: the guest reaches them from where it is. Blocks only.
    Remain,
}

/// One thing that the engine is to do at the source.
#[derive(Clone, Debug, PartialEq)]
pub enum Step<U> {
    /// Send these units, in this order, at most at this rate. Units that the selection lets wait stay unsent.
    Push {
        /// What to send.
        units: Ordered<U>,
        /// The most that this push may take of the link; `None`: all that there is.
        limit: Option<ByteRate>,
    },
    /// As [`Step::Push`], but each unit's digest goes first, and its content only if the destination holds that nowhere.
    /// Blocks only.
    Offer {
        /// What to offer.
        units: Ordered<U>,
        /// The most that this may take of the link; `None`: all that there is.
        limit: Option<ByteRate>,
    },
    /// Look at the log of writes once everything pushed before is sent.
    Observe(Observe),
    /// From now on the guest's writes are mirrored, and so never dirty: the log holds what was written before, and what
    /// could not be mirrored. Blocks only.
    Mirror(Mirroring),
    /// Ask again at this instant, given as time since the migration was requested.
    Wait(Nanos),
    /// The guest may be paused. Asked again while the other family isn't ready. Any other step withdraws it, but for the
    /// steps that follow it in the same answer: an answer that opens with it stays ready while it is worked off.
    Ready {
        /// What becomes of the rest.
        rest: Rest,
        /// Don't wait for the other family.
        firm: bool,
        /// Why pushing ended.
        ended_by: EndedBy,
    },
    /// Give up: the guest stays at the source.
    Abort(String),
}

/// One thing that the engine is to do at the destination.
#[derive(Clone, Debug, PartialEq)]
pub enum Pull<U> {
    /// Fetch these units, in this order, at most at this rate. The guest's own requests pass them.
    Fetch {
        /// What to fetch.
        units: Ordered<U>,
        /// The most that this may take of the link; `None`: all that there is.
        limit: Option<ByteRate>,
    },
    /// Ask again at this instant, given as time since the guest was resumed.
    Wait(Nanos),
}
