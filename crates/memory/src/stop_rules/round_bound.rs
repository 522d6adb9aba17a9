//! Gives up after a number of rounds.

use crate::stop::{MakeStopRule, StopRule, StopView, zero_bound};
use whimbrel_model::event::EndedBy;
use whimbrel_model::registry::Kind;
use whimbrel_model::strategy::Verdict;
use whimbrel_model::{Entry, Parameter};

pub(super) const ENTRY: Entry<MakeStopRule> = Entry {
    name: "round-bound",
    summary: "round_bound after this many rounds, round 0 counted, without converging",
    parameters: &[Parameter {
        name: "max_rounds",
        summary: "the most rounds of push",
        kind: Kind::Count,
        default: Some("30"),
    }],
    source: "Xen, xc_domain_save",
    build: |parameters| match parameters.count("max_rounds") {
        0 => Err(zero_bound("max_rounds")),
        most => Ok(Box::new(RoundBound { most, before: 0 })),
    },
};

struct RoundBound {
    most: u64,
    /// Rounds made when memory had last converged.
    before: u64,
}

impl StopRule for RoundBound {
    fn judge(&mut self, view: &StopView<'_>) -> Verdict {
        if view.rounds.len() as u64 >= self.before + self.most {
            Verdict::Stop(EndedBy::RoundBound)
        } else {
            Verdict::Continue
        }
    }

    fn converged(&mut self, view: &StopView<'_>) {
        self.before = view.rounds.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::{rounds_of, view_of};

    #[test]
    fn it_counts_rounds_and_anew_once_converged() {
        let mut rule = RoundBound { most: 3, before: 0 };
        let rounds = rounds_of(9);
        let bound = Verdict::Stop(EndedBy::RoundBound);
        assert_eq!(rule.judge(&view_of(1, &rounds[..2])), Verdict::Continue);
        assert_eq!(rule.judge(&view_of(1, &rounds[..3])), bound);
        rule.converged(&view_of(1, &rounds[..5]));
        assert_eq!(rule.judge(&view_of(1, &rounds[..7])), Verdict::Continue);
        assert_eq!(rule.judge(&view_of(1, &rounds[..8])), bound);
    }
}
