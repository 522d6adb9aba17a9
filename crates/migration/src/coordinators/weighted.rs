//! A weighted share of the link: what one doesn't use the other has.

use super::{MEMORY_SHARE, shares};
use crate::coordinator::{Coordinator, CoordinatorView, Maker, Turn, Turns};
use whimbrel_model::Entry;

pub(super) const ENTRY: Entry<Maker> = Entry {
    name: "weighted",
    summary: "each keeps to its part of the link's rate while both send; alone, either has all of it",
    parameters: &[MEMORY_SHARE],
    source: "Whimbrel: the usual way to share a link by weight",
    build: Maker {
        build: |parameters| shares(parameters).map(|(memory, disk)| Box::new(Weighted { memory, disk }) as Box<_>),
        shares: true,
    },
};

struct Weighted {
    memory: Turn,
    disk: Turn,
}

impl Coordinator for Weighted {
    fn turns(&mut self, view: &CoordinatorView) -> Turns {
        if view.memory.sending && view.disk.sending {
            return Turns { memory: self.memory, disk: self.disk };
        }
        Turns { memory: Turn::FREE, disk: Turn::FREE }
    }
}
