//! Gives up after a time.

use crate::stop::{MakeStopRule, StopRule, StopView, zero_bound};
use whimbrel_model::event::EndedBy;
use whimbrel_model::registry::Kind;
use whimbrel_model::strategy::Verdict;
use whimbrel_model::{Entry, Nanos, Parameter};

pub(super) const ENTRY: Entry<MakeStopRule> = Entry {
    name: "time-bound",
    summary: "time_bound this long after the migration was requested; looked at when a round ends",
    parameters: &[Parameter {
        name: "max_time",
        summary: "the longest time to push",
        kind: Kind::Duration,
        default: Some("60 s"),
    }],
    source: "Whimbrel",
    build: |parameters| match parameters.duration("max_time") {
        Nanos(0) => Err(zero_bound("max_time")),
        most => Ok(Box::new(TimeBound { most })),
    },
};

struct TimeBound {
    most: Nanos,
}

impl StopRule for TimeBound {
    fn judge(&mut self, view: &StopView<'_>) -> Verdict {
        if view.now >= self.most { Verdict::Stop(EndedBy::TimeBound) } else { Verdict::Continue }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::view_of;

    #[test]
    fn it_counts_time_since_the_request() {
        let mut rule = TimeBound { most: Nanos(60) };
        assert_eq!(rule.judge(&StopView { now: Nanos(59), ..view_of(1, &[]) }), Verdict::Continue);
        assert_eq!(rule.judge(&StopView { now: Nanos(60), ..view_of(1, &[]) }), Verdict::Stop(EndedBy::TimeBound));
    }
}
