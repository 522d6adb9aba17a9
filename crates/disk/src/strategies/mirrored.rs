//! Mirroring: a guest's write is acknowledged once both hosts have it, while one pass copies what was there before.
//!
//! With `writes = "all"` every write goes to both hosts (QEMU's write-blocking copy mode; the mirror that Nicolae and
//! Cappello compare with). With `writes = "copied"` only those that the pass has come by do, which is I/O mirroring with a
//! single pass (Mashtizadeh et al., USENIX ATC 2011): what lies ahead of the cursor is copied by the pass anyway, and what
//! is being copied waits. Either way nothing is dirty once the pass is through: the pause carries no blocks, and the guest
//! pays by slower writes.

use crate::rounds::all_of;
use crate::strategy::{BuildContext, Constructor, RATE_LIMIT};
use whimbrel_model::event::EndedBy;
use whimbrel_model::registry::Kind;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{
    Block, Entry, Mirroring, Nanos, Needs, Observe, Parameter, Parameters, Rest, Schedule, Step, View,
};

pub(super) const NAME: &str = "mirrored";

pub(super) const WRITES: Parameter = Parameter {
    name: "writes",
    summary: "which of the guest's writes go to both hosts: all, or those to blocks that are copied already",
    kind: Kind::Choice(&["all", "copied"]),
    default: Some("all"),
};

pub(super) const ENTRY: Entry<Constructor> = Entry {
    name: NAME,
    summary: "one pass, and the guest's writes are acknowledged once both hosts have them",
    parameters: &[WRITES, RATE_LIMIT],
    source: "QEMU's block mirror (copy-mode write-blocking); Mashtizadeh et al., USENIX ATC 2011",
    build,
};

/// How often the log is looked at for writes whose mirror failed or that came before it.
const LOOK_EVERY: Nanos = Nanos(20_000_000);

fn build(parameters: &Parameters, _: &BuildContext) -> Box<dyn Schedule<Block>> {
    let mirroring = if parameters.word(WRITES.name) == "all" { Mirroring::All } else { Mirroring::Copied };
    Box::new(Mirrored { mirroring, begun: false })
}

struct Mirrored {
    mirroring: Mirroring,
    begun: bool,
}

impl Schedule<Block> for Mirrored {
    fn needs(&self) -> Needs {
        Needs { mirror: true, ..Needs::default() }
    }

    fn source(&mut self, view: &View<'_, Block>) -> Vec<Step<Block>> {
        match view.stage {
            Stage::Push if !self.begun => {
                self.begun = true;
                vec![Step::Mirror(self.mirroring)]
            }
            Stage::Push if !view.unsent.is_empty() => all_of(view.unsent),
            Stage::Push => {
                let ready = Step::Ready { rest: Rest::CarryOver, firm: false, ended_by: EndedBy::Converged };
                // What was written just before the mirror began; nothing else is ever marked, unless the mirror fails.
                let marked = view.peeked.is_some_and(|peeked| !peeked.is_empty());
                let look = if marked { Observe::Take } else { Observe::Peek };
                vec![ready, Step::Wait(view.now.plus(LOOK_EVERY)), Step::Observe(look)]
            }
            Stage::Paused | Stage::Pull => all_of(view.unsent),
        }
    }
}
