//! Stops when few pages remain: the rule of the classic Xen loop.

use crate::stop::{MakeStopRule, StopRule, StopView};
use whimbrel_model::event::EndedBy;
use whimbrel_model::registry::Kind;
use whimbrel_model::strategy::Verdict;
use whimbrel_model::{Entry, Parameter};

pub(super) const ENTRY: Entry<MakeStopRule> = Entry {
    name: "pages",
    summary: "converged when at most this many pages of memory remain",
    parameters: &[Parameter {
        name: "stop_pages",
        summary: "the most pages that may remain",
        kind: Kind::Count,
        default: Some("50"),
    }],
    source: "Xen, xc_domain_save",
    build: |parameters| Ok(Box::new(Pages { most: parameters.count("stop_pages") })),
};

struct Pages {
    most: u64,
}

impl StopRule for Pages {
    fn judge(&mut self, view: &StopView<'_>) -> Verdict {
        if !view.rounds.is_empty() && view.remaining_units <= self.most {
            Verdict::Stop(EndedBy::Converged)
        } else {
            Verdict::Continue
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::{rounds_of, view_of};

    #[test]
    fn it_counts_pages_after_round_0() {
        let (mut rule, rounds) = (Pages { most: 50 }, rounds_of(1));
        assert_eq!(rule.judge(&view_of(50, &rounds)), Verdict::Stop(EndedBy::Converged));
        assert_eq!(rule.judge(&view_of(51, &rounds)), Verdict::Continue);
        assert_eq!(rule.judge(&view_of(50, &[])), Verdict::Continue);
    }
}
