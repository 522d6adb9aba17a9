//! A strategy that gives up after some rounds: for the tests of the unwinding.

use crate::strategy::{BuildContext, Constructor, RATE_LIMIT};
use whimbrel_model::registry::Kind;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{Block, Entry, Observe, Ordered, Parameter, Parameters, Schedule, Step, View};

const ROUNDS: Parameter =
    Parameter { name: "rounds", summary: "aborts after so many rounds of push", kind: Kind::Count, default: Some("1") };

pub(super) const ENTRY: Entry<Constructor> = Entry {
    name: "faulty",
    summary: "aborts after some rounds of push: the guest must go on at the source, unharmed",
    parameters: &[ROUNDS, RATE_LIMIT],
    source: "whimbrel, for its tests",
    build,
};

fn build(parameters: &Parameters, _: &BuildContext) -> Box<dyn Schedule<Block>> {
    Box::new(Faulty { rounds: parameters.count(ROUNDS.name), begun: 0 })
}

struct Faulty {
    rounds: u64,
    begun: u64,
}

impl Schedule<Block> for Faulty {
    fn source(&mut self, view: &View<'_, Block>) -> Vec<Step<Block>> {
        let done = view.rounds.len() as u64;
        if view.stage != Stage::Push || done >= self.rounds {
            return vec![Step::Abort(format!("the faulty disk strategy gives up after {done} rounds, as it was told"))];
        }
        if done < self.begun {
            return Vec::new();
        }
        self.begun = done + 1;
        vec![Step::Push { units: Ordered::ascending(view.unsent), limit: None }, Step::Observe(Observe::Take)]
    }
}
