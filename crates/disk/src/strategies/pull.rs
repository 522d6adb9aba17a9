//! Post-copy of everything: the guest switches at once, and its blocks follow, those that it asks for before the others.

use crate::rounds::all_of;
use crate::strategy::{BuildContext, Constructor, RATE_LIMIT};
use whimbrel_model::event::EndedBy;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{Block, Entry, Parameters, Rest, Schedule, Step, View};

pub(super) const ENTRY: Entry<Constructor> = Entry {
    name: "pull",
    summary: "pushes nothing before the switch; all blocks follow, those that the guest needs first",
    parameters: &[RATE_LIMIT],
    source: "the post-copy that Nicolae and Cappello (HPDC 2012) compare with",
    build,
};

fn build(_: &Parameters, _: &BuildContext) -> Box<dyn Schedule<Block>> {
    Box::new(Pull)
}

struct Pull;

impl Schedule<Block> for Pull {
    fn source(&mut self, view: &View<'_, Block>) -> Vec<Step<Block>> {
        match view.stage {
            Stage::Push => vec![Step::Ready { rest: Rest::LeaveBehind, firm: false, ended_by: EndedBy::Immediate }],
            Stage::Paused => Vec::new(),
            Stage::Pull => all_of(view.unsent),
        }
    }
}
