//! Iterative pre-copy of a disk: as memory moves in Clark et al. 2005. What is dirty at the pause crosses in the pause.
//!
//! Rounds of push until what was written is small or there were enough of them. Where it became small, the strategy goes
//! on copying what is written while it waits for memory, so that the pause begins with little; where it never did, what
//! the guest goes on writing is downtime.

use crate::rounds::{Next, Rounds, STOP_BLOCKS, all_of};
use crate::strategy::{BuildContext, Constructor, RATE_LIMIT};
use whimbrel_model::event::EndedBy;
use whimbrel_model::registry::Kind;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{Block, Entry, Nanos, Observe, Parameter, Parameters, Rest, Schedule, Step, UnitSet, View};

pub(super) const NAME: &str = "iterative";

pub(super) const MAX_ROUNDS: Parameter =
    Parameter { name: "max_rounds", summary: "the most rounds of push", kind: Kind::Count, default: Some("30") };

/// How often the log is looked at while memory is waited for.
const LOOK_EVERY: Nanos = Nanos(20_000_000);

pub(super) const ENTRY: Entry<Constructor> = Entry {
    name: NAME,
    summary: "rounds of push; blocks that are dirty at the pause are carried over in it",
    parameters: &[STOP_BLOCKS, MAX_ROUNDS, RATE_LIMIT],
    source: "the pre-copy that Luo et al. (CLUSTER 2008) and Nicolae and Cappello (HPDC 2012) compare with",
    build,
};

fn build(parameters: &Parameters, _: &BuildContext) -> Box<dyn Schedule<Block>> {
    let (stop_blocks, max_rounds) = (parameters.count(STOP_BLOCKS.name), parameters.count(MAX_ROUNDS.name));
    Box::new(Iterative { rounds: Rounds::new(stop_blocks, max_rounds, false) })
}

struct Iterative {
    rounds: Rounds,
}

impl Schedule<Block> for Iterative {
    fn source(&mut self, view: &View<'_, Block>) -> Vec<Step<Block>> {
        match view.stage {
            Stage::Push => match self.rounds.next(view) {
                Next::Steps(steps) => steps,
                Next::Ended(ended_by) => self.wait(view, ended_by),
            },
            Stage::Paused | Stage::Pull => all_of(view.unsent),
        }
    }
}

impl Iterative {
    /// Ready, and meanwhile as close behind the guest as there is need to be.
    fn wait(&self, view: &View<'_, Block>, ended_by: EndedBy) -> Vec<Step<Block>> {
        let mut steps = vec![Step::Ready { rest: Rest::CarryOver, firm: false, ended_by }];
        let many = |set: &UnitSet<Block>| set.count() > self.rounds.stop_blocks;
        if ended_by == EndedBy::Converged && many(view.unsent) {
            steps.extend(all_of(view.unsent));
            steps.push(Step::Observe(Observe::Take));
        } else if ended_by == EndedBy::Converged && view.peeked.is_some_and(many) {
            steps.push(Step::Observe(Observe::Take));
        } else {
            steps.push(Step::Wait(view.now.plus(LOOK_EVERY)));
            steps.push(Step::Observe(Observe::Peek));
        }
        steps
    }
}
