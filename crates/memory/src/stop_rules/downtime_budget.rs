//! Stops when the downtime that is predicted from the measured bandwidth fits into a budget.

use crate::stop::{MakeStopRule, StopRule, StopView, predicted_downtime};
use whimbrel_model::event::EndedBy;
use whimbrel_model::registry::Kind;
use whimbrel_model::strategy::Verdict;
use whimbrel_model::{Entry, Nanos, Parameter};

pub(super) const ENTRY: Entry<MakeStopRule> = Entry {
    name: "downtime-budget",
    summary: "converged when the rest of memory and disk over the measured bandwidth, plus the fixed cost, fits the budget",
    parameters: &[Parameter {
        name: "downtime_budget",
        summary: "the largest downtime asked for",
        kind: Kind::Duration,
        default: Some("300 ms"),
    }],
    source: "QEMU, downtime-limit",
    build: |parameters| Ok(Box::new(DowntimeBudget { budget: parameters.duration("downtime_budget") })),
};

struct DowntimeBudget {
    budget: Nanos,
}

impl StopRule for DowntimeBudget {
    fn judge(&mut self, view: &StopView<'_>) -> Verdict {
        let fits = |view: &StopView<'_>| predicted_downtime(view).is_some_and(|predicted| predicted <= self.budget);
        // Where the disk alone is over the budget, more rounds of memory can't help: memory is judged by itself, and the
        // disk's schedule, which isn't ready then, holds back the pause.
        let disk_alone = StopView { remaining_bytes: 0, ..*view };
        let memory_alone = StopView { other_remaining_bytes: 0, ..*view };
        let converged = fits(view) || (!fits(&disk_alone) && fits(&memory_alone));
        // Before round 0 has ended, what remains is what was never sent, and it isn't known what the guest writes.
        if converged && !view.rounds.is_empty() { Verdict::Stop(EndedBy::Converged) } else { Verdict::Continue }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::{rounds_of, view_of};

    #[test]
    fn the_budget_is_for_both_families_together() {
        let mut rule = DowntimeBudget { budget: Nanos(300_000_000) };
        let rounds = rounds_of(1);
        // 1920 pages are 7.5 MiB: 300 ms at 25 MiB/s.
        let stop = Verdict::Stop(EndedBy::Converged);
        assert_eq!(rule.judge(&view_of(1920, &rounds)), stop);
        assert_eq!(rule.judge(&view_of(1921, &rounds)), Verdict::Continue);
        assert_eq!(rule.judge(&view_of(0, &[])), Verdict::Continue, "round 0 comes first");
        let mut view = view_of(1920, &rounds);
        view.other_remaining_bytes = 4096;
        assert_eq!(rule.judge(&view), Verdict::Continue, "memory leaves no room for the disk's block");
        view.other_remaining_bytes = 1 << 40;
        assert_eq!(rule.judge(&view), stop, "more rounds of memory don't help a disk that is far from ready");
        (view.remaining_units, view.remaining_bytes) = (1921, 1921 * 4096);
        assert_eq!(rule.judge(&view), Verdict::Continue);
        (view.bandwidth, view.other_remaining_bytes) = (None, 0);
        assert_eq!(rule.judge(&view), Verdict::Continue, "without a bandwidth there is no prediction");
    }
}
