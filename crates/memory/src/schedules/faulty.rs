//! A schedule that gives up: it proves that an attempt unwinds and leaves the guest running at the source.

use crate::schedule::Maker;
use whimbrel_model::registry::Kind;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{Entry, Observe, Ordered, Page, Parameter, Schedule, Step, View};

pub(super) const ENTRY: Entry<Maker> = Entry {
    name: "faulty",
    summary: "for tests: pushes for some rounds, then gives up, so that the guest stays at the source",
    parameters: &[Parameter {
        name: "faulty_rounds",
        summary: "rounds of push before it gives up",
        kind: Kind::Count,
        default: Some("1"),
    }],
    source: "Whimbrel",
    build: Maker {
        pushes: true,
        judged: false,
        build: |parameters, _| Ok(Box::new(Faulty { rounds: parameters.count("faulty_rounds"), begun: 0 })),
    },
};

struct Faulty {
    rounds: u64,
    begun: u64,
}

impl Schedule<Page> for Faulty {
    fn source(&mut self, view: &View<'_, Page>) -> Vec<Step<Page>> {
        if view.stage != Stage::Push || (view.rounds.len() as u64) < self.begun {
            return Vec::new();
        }
        if self.begun >= self.rounds {
            return vec![Step::Abort(format!(
                "the schedule faulty gives up after {} rounds, as it was told",
                self.rounds
            ))];
        }
        self.begun += 1;
        vec![Step::Push { units: Ordered::ascending(view.unsent), limit: None }, Step::Observe(Observe::Take)]
    }
}
