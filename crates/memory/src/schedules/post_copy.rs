//! Post-copy: switch first; memory follows by fault and by a push of the rest in the background.

use crate::schedule::{Maker, ORDER, Order, PREPAGING, follows};
use whimbrel_model::event::EndedBy;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{Entry, Needs, Page, Rest, Schedule, Step, View};

pub(super) const ENTRY: Entry<Maker> = Entry {
    name: "post-copy",
    summary: "switches at once and leaves all of memory behind; it follows by fault and by a push in the background",
    parameters: &[ORDER, PREPAGING],
    source: "Hines and Gopalan, VEE 2009: demand paging with active push",
    build: Maker {
        pushes: false,
        judged: false,
        build: |parameters, context| {
            Ok(Box::new(PostCopy { order: Order::read(parameters, context), follows: follows(parameters) }))
        },
    },
};

struct PostCopy {
    order: Order,
    follows: bool,
}

impl Schedule<Page> for PostCopy {
    fn source(&mut self, view: &View<'_, Page>) -> Vec<Step<Page>> {
        match view.stage {
            Stage::Push => {
                vec![Step::Ready { rest: Rest::LeaveBehind, firm: false, ended_by: EndedBy::Immediate }]
            }
            Stage::Pull if !view.unsent.is_empty() => {
                vec![Step::Push { units: self.order.of(view.unsent, 0), limit: None }]
            }
            Stage::Paused | Stage::Pull => Vec::new(),
        }
    }

    fn needs(&self) -> Needs {
        Needs { follows: self.follows, ..Needs::default() }
    }
}
