//! The memory first: the disk waits until the memory is ready for the pause.

use crate::coordinator::{Coordinator, CoordinatorView, Maker, Turn, Turns};
use whimbrel_model::Entry;

pub(super) const ENTRY: Entry<Maker> = Entry {
    name: "memory-first",
    summary: "the disk waits until memory is ready for the first time; memory then keeps up while the disk goes",
    parameters: &[],
    source: "Whimbrel, the other order than Luo et al., CLUSTER 2008",
    build: Maker { build: |_| Ok(Box::new(MemoryFirst { memory_was_done: false })), shares: false },
};

struct MemoryFirst {
    memory_was_done: bool,
}

impl Coordinator for MemoryFirst {
    fn turns(&mut self, view: &CoordinatorView) -> Turns {
        self.memory_was_done |= view.memory.done;
        Turns { memory: Turn::FREE, disk: if self.memory_was_done { Turn::FREE } else { Turn::WAITS } }
    }
}
