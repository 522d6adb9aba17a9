//! Three-phase migration of a disk with a block bitmap (Luo et al., CLUSTER 2008).
//!
//! 1. Pre-copy: rounds of push while the guest runs, until what was written is small, there were enough of them, or the
//!    guest writes new blocks as fast as the link takes them.
//! 2. Freeze-and-copy (the paper's sense of it): while the guest is paused the *bitmap* crosses, not the blocks. So the
//!    downtime does not depend on how much was written.
//! 3. Post-copy: the source pushes what the bitmap still marks, ascending; the destination fetches what the guest needs
//!    first. Demand fetches are the engine's.

use crate::rounds::{Next, Rounds, STOP_BLOCKS, all_of};
use crate::strategy::{BuildContext, Constructor, RATE_LIMIT};
use whimbrel_model::registry::Kind;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{Block, Entry, Parameter, Parameters, Rest, Schedule, Step, View};

pub(super) const NAME: &str = "three-phase";
pub(super) const SOURCE: &str = "Luo, Zhang, Wang, Wang, Sun, Chen: live and incremental whole-system migration of \
                                 virtual machines using block-bitmap, CLUSTER 2008";

const MAX_ROUNDS: Parameter = Parameter {
    name: "max_rounds",
    summary: "the most rounds of push; 0 leaves the whole disk to the pull phase",
    kind: Kind::Count,
    default: Some("4"),
};

pub(super) const ENTRY: Entry<Constructor> = Entry {
    name: NAME,
    summary: "rounds of push, then the bitmap crosses in the pause, then the marked blocks follow",
    parameters: &[STOP_BLOCKS, MAX_ROUNDS, RATE_LIMIT],
    source: SOURCE,
    build,
};

fn build(parameters: &Parameters, _: &BuildContext) -> Box<dyn Schedule<Block>> {
    let (stop_blocks, max_rounds) = (parameters.count(STOP_BLOCKS.name), parameters.count(MAX_ROUNDS.name));
    Box::new(ThreePhase { rounds: Rounds::new(stop_blocks, max_rounds, true) })
}

/// Once the rounds are over, the bitmap just goes on recording while memory is moved.
struct ThreePhase {
    rounds: Rounds,
}

impl Schedule<Block> for ThreePhase {
    fn source(&mut self, view: &View<'_, Block>) -> Vec<Step<Block>> {
        match view.stage {
            Stage::Push => match self.rounds.next(view) {
                Next::Steps(steps) => steps,
                Next::Ended(ended_by) => vec![Step::Ready { rest: Rest::LeaveBehind, firm: false, ended_by }],
            },
            // The bitmap crosses, and that is the engine's to do.
            Stage::Paused => Vec::new(),
            Stage::Pull => all_of(view.unsent),
        }
    }
}
