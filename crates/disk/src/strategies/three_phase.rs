//! Three-phase migration of a disk with a block bitmap (Luo et al., CLUSTER 2008).
//!
//! 1. Pre-copy: rounds of push while the guest runs. Round 0 sends all that the destination lacks, each further round
//!    what was written during the last one.
//! 2. Freeze-and-copy (the paper's sense of it): while the guest is paused the *bitmap* crosses, not the blocks. So the
//!    downtime does not depend on how much was written.
//! 3. Post-copy: the source pushes what the bitmap still marks, ascending; the destination fetches what the guest needs
//!    first. Demand fetches are the engine's.
//!
//! Rounds end when what was written is small, when there were enough of them, or when the guest writes new blocks as
//! fast as the link takes them. The last is judged by the round itself: it sent `s` blocks while `d` distinct ones were
//! written, in the same time, so `d >= s` says that the next round would be no smaller.

use crate::strategy::{BuildContext, Constructor};
use whimbrel_model::event::{EndedBy, Round};
use whimbrel_model::registry::Kind;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{Block, Entry, Observe, Ordered, Parameter, Parameters, Rest, Schedule, Step, UnitSet, View};

pub(super) const NAME: &str = "three-phase";
pub(super) const SOURCE: &str = "Luo, Zhang, Wang, Wang, Sun, Chen: live and incremental whole-system migration of \
                                 virtual machines using block-bitmap, CLUSTER 2008";

/// The default is 64 blocks: 256 KiB of the default block size, 5 ms at 400 Mbit/s. What is left behind costs no downtime
/// but a short pull phase, and a smaller round would be made of its take and its round trips rather than of blocks.
pub(super) const STOP_BLOCKS: Parameter = Parameter {
    name: "stop_blocks",
    summary: "rounds end when at most so many blocks were written during one",
    kind: Kind::Count,
    default: Some("64"),
};

const MAX_ROUNDS: Parameter = Parameter {
    name: "max_rounds",
    summary: "the most rounds of push; 0 leaves the whole disk to the pull phase",
    kind: Kind::Count,
    default: Some("4"),
};

pub(super) const ENTRY: Entry<Constructor> = Entry {
    name: NAME,
    summary: "rounds of push, then the bitmap crosses in the pause, then the marked blocks follow",
    parameters: &[STOP_BLOCKS, MAX_ROUNDS],
    source: SOURCE,
    build,
};

fn build(parameters: &Parameters, _: &BuildContext) -> Box<dyn Schedule<Block>> {
    Box::new(ThreePhase {
        stop_blocks: parameters.count(STOP_BLOCKS.name),
        max_rounds: parameters.count(MAX_ROUNDS.name),
        begun: 0,
        ended_by: None,
    })
}

struct ThreePhase {
    stop_blocks: u64,
    max_rounds: u64,
    /// Rounds that were begun; each ends by the take that was asked for with it.
    begun: u64,
    /// Set when the rounds are over: from then on the bitmap just goes on recording while memory is moved.
    ended_by: Option<EndedBy>,
}

impl Schedule<Block> for ThreePhase {
    fn source(&mut self, view: &View<'_, Block>) -> Vec<Step<Block>> {
        match view.stage {
            Stage::Push => self.push(view),
            // The bitmap crosses, and that is the engine's to do.
            Stage::Paused => Vec::new(),
            Stage::Pull => rest(view.unsent),
        }
    }
}

impl ThreePhase {
    fn push(&mut self, view: &View<'_, Block>) -> Vec<Step<Block>> {
        if self.ended_by.is_none() {
            if (view.rounds.len() as u64) < self.begun {
                // Sent, but the take that ends the round is still to be done.
                return Vec::new();
            }
            self.ended_by = self.judge(view.unsent, view.rounds.last());
        }
        match self.ended_by {
            Some(ended_by) => vec![Step::Ready { rest: Rest::LeaveBehind, firm: false, ended_by }],
            None => {
                self.begun = view.rounds.len() as u64 + 1;
                let mut steps = rest(view.unsent);
                steps.push(Step::Observe(Observe::Take));
                steps
            }
        }
    }

    /// Why no other round is to be made; `None`: make one.
    fn judge(&self, unsent: &UnitSet<Block>, last: Option<&Round>) -> Option<EndedBy> {
        // Round 0 is made however little it sends: what is known to be missing had better not cost a fetch.
        let small = if self.begun == 0 { 0 } else { self.stop_blocks };
        if unsent.count() <= small {
            Some(EndedBy::Converged)
        } else if self.begun >= self.max_rounds {
            Some(EndedBy::RoundBound)
        } else {
            last.filter(|round| self.begun > 0 && round.dirty_units >= round.sent_units).map(|_| EndedBy::RateBound)
        }
    }
}

fn rest(unsent: &UnitSet<Block>) -> Vec<Step<Block>> {
    if unsent.is_empty() { Vec::new() } else { vec![Step::Push { units: Ordered::ascending(unsent), limit: None }] }
}
