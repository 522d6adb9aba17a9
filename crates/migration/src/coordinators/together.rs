//! Memory and disk at the same time, as the link carries them.

use crate::coordinator::{Coordinator, CoordinatorView, Maker, Turn, Turns};
use whimbrel_model::Entry;

pub(super) const ENTRY: Entry<Maker> = Entry {
    name: "together",
    summary: "memory and disk push at the same time; the link serves their bursts in turn",
    parameters: &[],
    source: "Whimbrel, the floor: nothing is ordered",
    build: Maker { build: |_| Ok(Box::new(Together)), shares: false },
};

struct Together;

impl Coordinator for Together {
    fn turns(&mut self, _: &CoordinatorView) -> Turns {
        Turns { memory: Turn::FREE, disk: Turn::FREE }
    }
}
