//! The null rule: it never says stop.

use crate::stop::{MakeStopRule, StopRule, StopView};
use whimbrel_model::Entry;
use whimbrel_model::strategy::Verdict;

pub(super) const ENTRY: Entry<MakeStopRule> = Entry {
    name: "never",
    summary: "pushes for ever: what push itself costs the guest, until something else ends the attempt",
    parameters: &[],
    source: "the null member",
    build: |_| Ok(Box::new(Never)),
};

struct Never;

impl StopRule for Never {
    fn judge(&mut self, _: &StopView<'_>) -> Verdict {
        Verdict::Continue
    }
}
