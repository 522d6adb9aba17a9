//! The seam of the stop rules: when the rest of memory is small enough, or enough was tried.

use whimbrel_model::event::Round;
use whimbrel_model::strategy::Verdict;
use whimbrel_model::{ByteRate, Nanos, ParameterError, Parameters};

/// What a stop rule sees, as of the last look at the log of writes.
#[derive(Clone, Copy, Debug)]
pub struct StopView<'a> {
    /// Pages that the destination would lack if the guest were paused now: unsent and written since.
    pub remaining_units: u64,
    /// The same in bytes.
    pub remaining_bytes: u64,
    /// Bytes that the other family, the disk, would carry over.
    pub other_remaining_bytes: u64,
    /// Pages of RAM.
    pub total_units: u64,
    /// Bytes in a page.
    pub unit_bytes: u64,
    /// Memory's rounds that have ended.
    pub rounds: &'a [Round],
    /// Payload bytes of memory sent in this migration.
    pub sent_bytes: u64,
    /// The bandwidth achieved lately; `None` until something was sent.
    pub bandwidth: Option<ByteRate>,
    /// The part of a downtime that doesn't depend on bytes: pause, device state, hand-over.
    pub fixed_cost: Nanos,
    /// The time since the migration was requested.
    pub now: Nanos,
}

/// The downtime if the guest were paused now: both families' rest over the bandwidth, plus the fixed cost.
///
/// `None` while the bandwidth isn't known and there is something to carry over.
pub fn predicted_downtime(view: &StopView<'_>) -> Option<Nanos> {
    match view.remaining_bytes.saturating_add(view.other_remaining_bytes) {
        0 => Some(view.fixed_cost),
        bytes => Some(view.bandwidth?.time_for(bytes).plus(view.fixed_cost)),
    }
}

/// Judges whether pushing goes on.
pub trait StopRule: Send {
    /// The rule's word on this view. Asked after every look at the log of writes.
    fn judge(&mut self, view: &StopView<'_>) -> Verdict;

    /// Told when the list's word is that memory has converged. The guest is then paused unless the disk isn't ready; a
    /// bound on effort counts anew from there, so that waiting for the disk doesn't use it up.
    fn converged(&mut self, view: &StopView<'_>) {
        let _ = view;
    }
}

/// Rules in their order: the first that says stop wins.
#[derive(Default)]
pub struct StopRules {
    rules: Vec<Box<dyn StopRule>>,
}

impl StopRules {
    /// A list; an empty one never says stop.
    pub fn new(rules: Vec<Box<dyn StopRule>>) -> Self {
        StopRules { rules }
    }

    /// The first rule's word that says stop.
    pub fn judge(&mut self, view: &StopView<'_>) -> Verdict {
        use whimbrel_model::event::EndedBy::Converged;
        let stop = self.rules.iter_mut().map(|rule| rule.judge(view)).find(|verdict| *verdict != Verdict::Continue);
        if stop == Some(Verdict::Stop(Converged)) {
            self.rules.iter_mut().for_each(|rule| rule.converged(view));
        }
        stop.unwrap_or(Verdict::Continue)
    }
}

impl std::fmt::Debug for StopRules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} stop rules", self.rules.len())
    }
}

/// The constructor of a stop rule.
pub type MakeStopRule = fn(&Parameters) -> Result<Box<dyn StopRule>, ParameterError>;

/// The error of a bound of zero, which would end a move before it begins.
pub fn zero_bound(key: &str) -> ParameterError {
    let accepted = "more than 0: a bound of 0 would end the push before it begins".to_owned();
    ParameterError::Value { key: key.to_owned(), found: "0".to_owned(), accepted }
}

/// A view for tests: nothing sent, `pages` of RAM remaining, 25 MiB/s.
#[cfg(test)]
pub(crate) fn view_of(pages: u64, rounds: &[Round]) -> StopView<'_> {
    StopView {
        remaining_units: pages,
        remaining_bytes: pages * 4096,
        other_remaining_bytes: 0,
        total_units: 65536,
        unit_bytes: 4096,
        rounds,
        sent_bytes: 0,
        bandwidth: Some(ByteRate(25.0 * 1048576.0)),
        fixed_cost: Nanos(0),
        now: Nanos(0),
    }
}

/// `count` rounds for tests.
#[cfg(test)]
pub(crate) fn rounds_of(count: usize) -> Vec<Round> {
    let round = Round {
        kind: whimbrel_model::Family::Memory,
        start_ns: 0,
        ns: 1_000_000_000,
        sent_units: 1,
        dirty_units: 1,
        again_units: 0,
        bytes: 4096,
        limit: None,
        predicted_ns: None,
        throttle: 0.0,
    };
    vec![round; count]
}

#[cfg(test)]
mod tests {
    use super::*;
    use whimbrel_model::event::EndedBy;

    #[test]
    fn the_prediction_counts_both_families_and_the_fixed_cost() {
        let rounds = rounds_of(1);
        let mut view = view_of(6400, &rounds);
        assert_eq!(predicted_downtime(&view), Some(Nanos(1_000_000_000)));
        view.other_remaining_bytes = 25 << 20;
        view.fixed_cost = Nanos(7);
        assert_eq!(predicted_downtime(&view), Some(Nanos(2_000_000_007)));
        view.bandwidth = None;
        assert_eq!(predicted_downtime(&view), None);
        (view.remaining_bytes, view.other_remaining_bytes) = (0, 0);
        assert_eq!(predicted_downtime(&view), Some(Nanos(7)), "nothing to carry over needs no bandwidth");
        view.bandwidth = Some(ByteRate(0.0));
        view.remaining_bytes = 1;
        assert_eq!(predicted_downtime(&view), Some(Nanos(u64::MAX)), "a dead link takes for ever");
    }

    #[test]
    fn the_first_rule_that_says_stop_wins() {
        struct Says(Verdict);
        impl StopRule for Says {
            fn judge(&mut self, _: &StopView<'_>) -> Verdict {
                self.0
            }
        }
        let judge = |verdicts: &[Verdict]| {
            let rules = verdicts.iter().map(|v| Box::new(Says(*v)) as Box<dyn StopRule>).collect();
            StopRules::new(rules).judge(&view_of(1, &[]))
        };
        let (round, byte) = (Verdict::Stop(EndedBy::RoundBound), Verdict::Stop(EndedBy::ByteBound));
        assert_eq!(judge(&[Verdict::Continue, round, byte]), round);
        assert_eq!(judge(&[byte, round]), byte);
        assert_eq!(judge(&[Verdict::Continue]), Verdict::Continue);
        assert_eq!(judge(&[]), Verdict::Continue);
    }
}
