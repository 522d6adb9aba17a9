//! The null throttle: the guest runs free.

use crate::throttle::{MakeThrottle, Throttle, ThrottleView};
use whimbrel_model::Entry;

pub(super) const ENTRY: Entry<MakeThrottle> = Entry {
    name: "none",
    summary: "the guest is never slowed",
    parameters: &[],
    source: "the null member",
    build: |_| Ok(Box::new(None)),
};

struct None;

impl Throttle for None {
    fn share(&mut self, _: &ThrottleView<'_>) -> f64 {
        0.0
    }
}
