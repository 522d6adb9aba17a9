//! The stop-and-copy strategy: pause first, then send everything.

use crate::schedule::Maker;
use whimbrel_model::event::EndedBy;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{Entry, Page, Rest, Schedule, Step, View};

pub(super) const ENTRY: Entry<Maker> = Entry {
    name: "stop-and-copy",
    summary: "pauses at once and sends all of memory while the guest stands still: the longest downtime, each page once",
    parameters: &[],
    source: "the baseline of Clark et al., NSDI 2005",
    build: Maker { pushes: false, judged: false, build: |_, _| Ok(Box::new(StopAndCopy)) },
};

struct StopAndCopy;

impl Schedule<Page> for StopAndCopy {
    fn source(&mut self, view: &View<'_, Page>) -> Vec<Step<Page>> {
        match view.stage {
            Stage::Push => {
                vec![Step::Ready { rest: Rest::CarryOver, firm: false, ended_by: EndedBy::Immediate }]
            }
            Stage::Paused | Stage::Pull => Vec::new(),
        }
    }
}
