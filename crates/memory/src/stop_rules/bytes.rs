//! Stops when few bytes remain: Clark et al. stop below 256 KB.

use crate::stop::{MakeStopRule, StopRule, StopView};
use whimbrel_model::event::EndedBy;
use whimbrel_model::registry::Kind;
use whimbrel_model::strategy::Verdict;
use whimbrel_model::{Entry, Parameter};

pub(super) const ENTRY: Entry<MakeStopRule> = Entry {
    name: "bytes",
    summary: "converged when at most this much of memory remains",
    parameters: &[Parameter {
        name: "stop_bytes",
        summary: "the most that may remain",
        kind: Kind::Size,
        default: Some("256 KiB"),
    }],
    source: "Clark et al., NSDI 2005",
    build: |parameters| Ok(Box::new(Bytes { most: parameters.size("stop_bytes").0 })),
};

struct Bytes {
    most: u64,
}

impl StopRule for Bytes {
    fn judge(&mut self, view: &StopView<'_>) -> Verdict {
        if !view.rounds.is_empty() && view.remaining_bytes <= self.most {
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
    fn it_counts_bytes_after_round_0() {
        let (mut rule, rounds) = (Bytes { most: 256 << 10 }, rounds_of(1));
        assert_eq!(rule.judge(&view_of(64, &rounds)), Verdict::Stop(EndedBy::Converged));
        assert_eq!(rule.judge(&view_of(65, &rounds)), Verdict::Continue);
        assert_eq!(rule.judge(&view_of(64, &[])), Verdict::Continue);
    }
}
