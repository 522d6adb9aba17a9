//! Hybrid: a bounded pre-copy, then post-copy for the rest.

use crate::schedule::{Maker, ORDER, Order, PREPAGING, follows};
use whimbrel_model::event::EndedBy;
use whimbrel_model::registry::Kind;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{Entry, Needs, Observe, Page, Parameter, Rest, Schedule, Step, View};

pub(super) const ENTRY: Entry<Maker> = Entry {
    name: "hybrid",
    summary: "pushes for a fixed number of rounds, then switches and leaves the rest behind",
    parameters: &[
        ORDER,
        PREPAGING,
        Parameter {
            name: "rounds",
            summary: "rounds of push before the switch; fewer if nothing is left",
            kind: Kind::Count,
            default: Some("1"),
        },
    ],
    source: "Hines and Gopalan, VEE 2009; Svard et al., OSR 2015",
    build: Maker {
        pushes: true,
        judged: false,
        build: |parameters, context| {
            let (order, most) = (Order::read(parameters, context), parameters.count("rounds"));
            Ok(Box::new(Hybrid { order, follows: follows(parameters), most, begun: 0 }))
        },
    },
};

struct Hybrid {
    order: Order,
    follows: bool,
    most: u64,
    begun: u64,
}

impl Schedule<Page> for Hybrid {
    fn source(&mut self, view: &View<'_, Page>) -> Vec<Step<Page>> {
        match view.stage {
            Stage::Push => self.push(view),
            Stage::Pull if !view.unsent.is_empty() => {
                vec![Step::Push { units: self.order.of(view.unsent, self.begun), limit: None }]
            }
            Stage::Paused | Stage::Pull => Vec::new(),
        }
    }

    fn needs(&self) -> Needs {
        Needs { follows: self.follows, ..Needs::default() }
    }
}

impl Hybrid {
    fn push(&mut self, view: &View<'_, Page>) -> Vec<Step<Page>> {
        if (view.rounds.len() as u64) < self.begun {
            return Vec::new();
        }
        let ready = |ended_by| vec![Step::Ready { rest: Rest::LeaveBehind, firm: false, ended_by }];
        if self.begun >= self.most {
            return ready(if self.most == 0 { EndedBy::Immediate } else { EndedBy::RoundBound });
        }
        if view.unsent.is_empty() {
            return ready(EndedBy::Converged);
        }
        let units = self.order.of(view.unsent, self.begun);
        self.begun += 1;
        vec![Step::Push { units, limit: None }, Step::Observe(Observe::Take)]
    }
}
