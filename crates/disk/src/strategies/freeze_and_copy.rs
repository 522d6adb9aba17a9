//! Freeze-and-copy: the guest is paused at once, and its whole disk crosses while it is.

use crate::strategy::{BuildContext, Constructor};
use whimbrel_model::event::EndedBy;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{Block, Entry, Ordered, Parameters, Rest, Schedule, Step, View};

pub(super) const ENTRY: Entry<Constructor> = Entry {
    name: "freeze-and-copy",
    summary: "pauses the guest, then copies its whole disk: the most downtime, each block once",
    parameters: &[],
    source: "the baseline of Luo et al., CLUSTER 2008",
    build,
};

fn build(_: &Parameters, _: &BuildContext) -> Box<dyn Schedule<Block>> {
    Box::new(FreezeAndCopy)
}

struct FreezeAndCopy;

impl Schedule<Block> for FreezeAndCopy {
    fn source(&mut self, view: &View<'_, Block>) -> Vec<Step<Block>> {
        match view.stage {
            Stage::Push => {
                vec![Step::Ready { rest: Rest::CarryOver, firm: false, ended_by: EndedBy::Immediate }]
            }
            Stage::Paused | Stage::Pull if view.unsent.is_empty() => Vec::new(),
            Stage::Paused | Stage::Pull => vec![Step::Push { units: Ordered::ascending(view.unsent), limit: None }],
        }
    }
}
