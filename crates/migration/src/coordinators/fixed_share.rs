//! A fixed part of the link for each, used or not.

use super::{MEMORY_SHARE, shares};
use crate::coordinator::{Coordinator, CoordinatorView, Maker, Turn, Turns};
use whimbrel_model::Entry;

pub(super) const ENTRY: Entry<Maker> = Entry {
    name: "fixed-share",
    summary: "each keeps to its part of the link's rate while the guest runs, also when the other sends nothing",
    parameters: &[MEMORY_SHARE],
    source: "Whimbrel: what one family costs the other, at a stated share",
    build: Maker {
        build: |parameters| shares(parameters).map(|(memory, disk)| Box::new(FixedShare { memory, disk }) as Box<_>),
        shares: true,
    },
};

struct FixedShare {
    memory: Turn,
    disk: Turn,
}

impl Coordinator for FixedShare {
    fn turns(&mut self, _: &CoordinatorView) -> Turns {
        Turns { memory: self.memory, disk: self.disk }
    }
}
