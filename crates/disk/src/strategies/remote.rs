//! Shared storage: the disk stays, and the guest reaches it from wherever it is. The control of every comparison.
//!
//! The host where the guest began keeps the image and is its storage server: from the hand-over on each read, write and
//! flush of the guest crosses the link to it by NBD, past what migrates. Nothing of the disk is missing at any time, so it
//! costs the migration nothing; what it costs is paid by the guest, for as long as it is away from its disk. When it
//! returns the image is its own again.

use crate::strategy::{BuildContext, Constructor};
use whimbrel_model::event::EndedBy;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{Block, Entry, Needs, Parameters, Rest, Schedule, Step, View};

pub(super) const NAME: &str = "remote";
pub(super) const SOURCE: &str = "migration over shared storage, as Clark et al. (NSDI 2005) presume it and Luo et al. (CLUSTER 2008) compare with it";

pub(super) const ENTRY: Entry<Constructor> = Entry {
    name: NAME,
    summary: "the disk stays at the host where the guest began, which serves it to the other: nothing of it moves",
    parameters: &[],
    source: SOURCE,
    build,
};

fn build(_: &Parameters, _: &BuildContext) -> Box<dyn Schedule<Block>> {
    Box::new(Remote)
}

struct Remote;

impl Schedule<Block> for Remote {
    fn needs(&self) -> Needs {
        Needs { remains: true, ..Needs::default() }
    }

    fn source(&mut self, view: &View<'_, Block>) -> Vec<Step<Block>> {
        match view.stage {
            Stage::Push => vec![Step::Ready { rest: Rest::Remain, firm: false, ended_by: EndedBy::Immediate }],
            Stage::Paused | Stage::Pull => Vec::new(),
        }
    }
}
