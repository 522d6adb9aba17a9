//! Deltas by content: of what was written since the destination had the disk, only what it holds nowhere crosses
//! (Sapuntzakis et al., OSDI 2002).
//!
//! A capsule's disk is a chain of copy-on-write deltas over an image that the other host has. Here a delta is a set of
//! blocks: the first is what was written since the base image or the guest's last visit, each round closes one and opens
//! the next, and the last, which is open when the guest is paused, follows after the switch and is fetched on demand. Of
//! each delta the digests go first; the destination looks them up in the image that it has of an earlier visit, in its
//! base image and in what came before, and only content that it lacks is sent. Digests and content go by pieces of 256 KiB,
//! many at a time, so that no piece waits for another's round trip.
//!
//! Unlike the paper's, the deltas are kept as sets over one raw image and not as files: a disk can't be taken back to an
//! older state. Content is looked for in this disk's image alone, not in other capsules'. Memory is neither ballooned nor
//! hashed; the guest need not be suspended.

use crate::rounds::{Next, Rounds, STOP_BLOCKS, all_of};
use crate::strategy::{BuildContext, Constructor, RATE_LIMIT};
use whimbrel_model::registry::Kind;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{Block, Entry, Needs, Parameter, Parameters, Rest, Schedule, Step, View};

pub(super) const NAME: &str = "by-content";
pub(super) const SOURCE: &str = "Sapuntzakis, Chandra, Pfaff, Chow, Lam, Rosenblum: optimizing the migration of virtual \
                                 computers, OSDI 2002";

pub(super) const MAX_DELTAS: Parameter = Parameter {
    name: "max_deltas",
    summary: "the most deltas that cross while the guest runs at the source; 0 leaves all to the pull phase",
    kind: Kind::Count,
    default: Some("4"),
};

pub(super) const ENTRY: Entry<Constructor> = Entry {
    name: NAME,
    summary: "deltas, of which only content that the destination holds nowhere is sent: digests go first",
    parameters: &[STOP_BLOCKS, MAX_DELTAS, RATE_LIMIT],
    source: SOURCE,
    build,
};

fn build(parameters: &Parameters, _: &BuildContext) -> Box<dyn Schedule<Block>> {
    let (stop_blocks, deltas) = (parameters.count(STOP_BLOCKS.name), parameters.count(MAX_DELTAS.name));
    Box::new(ByContent { rounds: Rounds::new(stop_blocks, deltas, true) })
}

struct ByContent {
    rounds: Rounds,
}

impl Schedule<Block> for ByContent {
    fn needs(&self) -> Needs {
        Needs { offer: true, ..Needs::default() }
    }

    fn source(&mut self, view: &View<'_, Block>) -> Vec<Step<Block>> {
        let steps = match view.stage {
            Stage::Push => match self.rounds.next(view) {
                Next::Steps(steps) => steps,
                Next::Ended(ended_by) => vec![Step::Ready { rest: Rest::LeaveBehind, firm: false, ended_by }],
            },
            // The set of the last delta crosses, and that is the engine's to do.
            Stage::Paused => Vec::new(),
            Stage::Pull => all_of(view.unsent),
        };
        steps.into_iter().map(offered).collect()
    }
}

fn offered(step: Step<Block>) -> Step<Block> {
    match step {
        Step::Push { units, limit } => Step::Offer { units, limit },
        other => other,
    }
}
