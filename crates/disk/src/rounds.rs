//! Rounds of push, as several strategies make them: round 0 sends all that the destination lacks, each further round
//! what was written during the last one.

use whimbrel_model::event::{EndedBy, Round};
use whimbrel_model::registry::Kind;
use whimbrel_model::{Block, Observe, Ordered, Parameter, Step, UnitSet, View};

/// The default is 64 blocks: 256 KiB of the default block size, 5 ms at 400 Mbit/s. A smaller round would be made of its
/// take and its round trips rather than of blocks.
pub const STOP_BLOCKS: Parameter = Parameter {
    name: "stop_blocks",
    summary: "rounds end when at most so many blocks were written during one",
    kind: Kind::Count,
    default: Some("64"),
};

/// What the rounds ask for next.
#[derive(Debug)]
pub enum Next {
    /// These steps.
    Steps(Vec<Step<Block>>),
    /// The rounds are over, for this reason.
    Ended(EndedBy),
}

/// The rounds of one trip.
#[derive(Debug)]
pub struct Rounds {
    /// They end when at most so many blocks were written during one.
    pub stop_blocks: u64,
    /// The most rounds.
    pub max_rounds: u64,
    /// They also end when the guest writes new blocks as fast as the link takes them. That is judged by the round itself:
    /// it sent `s` blocks while `d` distinct ones were written, in the same time, so `d >= s` says that the next round
    /// would be no smaller.
    pub rate_bound: bool,
    /// Rounds that were begun; each ends by the take that was asked for with it.
    begun: u64,
    ended_by: Option<EndedBy>,
}

impl Rounds {
    /// Rounds of which none has begun.
    pub fn new(stop_blocks: u64, max_rounds: u64, rate_bound: bool) -> Self {
        Rounds { stop_blocks, max_rounds, rate_bound, begun: 0, ended_by: None }
    }

    /// What comes next while the guest runs at the source.
    pub fn next(&mut self, view: &View<'_, Block>) -> Next {
        if self.ended_by.is_none() {
            if (view.rounds.len() as u64) < self.begun {
                // Sent, but the take that ends the round is still to be done.
                return Next::Steps(Vec::new());
            }
            self.ended_by = self.judge(view.unsent, view.rounds.last());
        }
        match self.ended_by {
            Some(ended_by) => Next::Ended(ended_by),
            None => {
                self.begun = view.rounds.len() as u64 + 1;
                let mut steps = all_of(view.unsent);
                steps.push(Step::Observe(Observe::Take));
                Next::Steps(steps)
            }
        }
    }

    /// Why no other round is to be made; `None`: make one.
    fn judge(&self, unsent: &UnitSet<Block>, last: Option<&Round>) -> Option<EndedBy> {
        // Round 0 is made however little it sends: what is known to be missing had better not cost a fetch.
        let small = if self.begun == 0 { 0 } else { self.stop_blocks };
        let outrun = |round: &&Round| self.rate_bound && round.dirty_units >= round.sent_units;
        if unsent.count() <= small {
            Some(EndedBy::Converged)
        } else if self.begun >= self.max_rounds {
            Some(EndedBy::RoundBound)
        } else {
            last.filter(|_| self.begun > 0).filter(outrun).map(|_| EndedBy::RateBound)
        }
    }
}

/// A push of all of a set, ascending; nothing for an empty one.
pub fn all_of(unsent: &UnitSet<Block>) -> Vec<Step<Block>> {
    if unsent.is_empty() { Vec::new() } else { vec![Step::Push { units: Ordered::ascending(unsent), limit: None }] }
}
