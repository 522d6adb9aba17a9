//! Gives up after a number of bytes.

use crate::stop::{MakeStopRule, StopRule, StopView, zero_bound};
use whimbrel_model::event::EndedBy;
use whimbrel_model::registry::Kind;
use whimbrel_model::strategy::Verdict;
use whimbrel_model::{Entry, Parameter};

pub(super) const ENTRY: Entry<MakeStopRule> = Entry {
    name: "byte-bound",
    summary: "byte_bound once this many times the RAM was sent without converging; looked at when a round ends",
    parameters: &[Parameter {
        name: "max_bytes_ratio",
        summary: "the most bytes of memory to send, as a multiple of the RAM",
        kind: Kind::Number,
        default: Some("3.0"),
    }],
    source: "Xen, xc_domain_save",
    build: |parameters| match parameters.number("max_bytes_ratio") {
        0.0 => Err(zero_bound("max_bytes_ratio")),
        most => Ok(Box::new(ByteBound { most, before: 0 })),
    },
};

struct ByteBound {
    most: f64,
    /// Bytes sent when memory had last converged.
    before: u64,
}

impl StopRule for ByteBound {
    fn judge(&mut self, view: &StopView<'_>) -> Verdict {
        let ram_bytes = (view.total_units * view.unit_bytes) as f64;
        let sent_bytes = view.sent_bytes.saturating_sub(self.before) as f64;
        if !view.rounds.is_empty() && sent_bytes >= self.most * ram_bytes {
            Verdict::Stop(EndedBy::ByteBound)
        } else {
            Verdict::Continue
        }
    }

    fn converged(&mut self, view: &StopView<'_>) {
        self.before = view.sent_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::{rounds_of, view_of};

    #[test]
    fn it_counts_bytes_and_anew_once_converged() {
        let (mut rule, rounds) = (ByteBound { most: 3.0, before: 0 }, rounds_of(1));
        let mut judge = |sent_bytes, converged| {
            let view = StopView { sent_bytes, ..view_of(1, &rounds) };
            if converged {
                rule.converged(&view);
            }
            rule.judge(&view)
        };
        let bound = Verdict::Stop(EndedBy::ByteBound);
        assert_eq!(judge((768 << 20) - 1, false), Verdict::Continue);
        assert_eq!(judge(768 << 20, false), bound);
        assert_eq!(judge(768 << 20, true), Verdict::Continue);
        assert_eq!(judge(1536 << 20, false), bound);
    }
}
