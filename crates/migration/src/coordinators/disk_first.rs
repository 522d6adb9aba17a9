//! The disk first: memory waits until the disk is ready for the pause.

use crate::coordinator::{Coordinator, CoordinatorView, Maker, Turn, Turns};
use whimbrel_model::Entry;

pub(super) const ENTRY: Entry<Maker> = Entry {
    name: "disk-first",
    summary: "memory waits until the disk is ready for the first time, since a disk takes longer and memory dirties faster",
    parameters: &[],
    source: "Luo et al., CLUSTER 2008: phase 1",
    build: Maker { build: |_| Ok(Box::new(DiskFirst { disk_was_done: false })), shares: false },
};

struct DiskFirst {
    disk_was_done: bool,
}

impl Coordinator for DiskFirst {
    fn turns(&mut self, view: &CoordinatorView) -> Turns {
        self.disk_was_done |= view.disk.done;
        Turns { memory: if self.disk_was_done { Turn::FREE } else { Turn::WAITS }, disk: Turn::FREE }
    }
}
