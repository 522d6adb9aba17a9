//! A meter whose domains have a counter each, so that those nobody wants need not be read.

use crate::meter::{Domain, Meter, Reading, Unmeasured};
use whimbrel_model::Nanos;

/// The counter of one domain.
pub(crate) trait Count: Send {
    /// Reads it; `now` is this instant.
    fn read(&mut self, now: Nanos) -> Result<Reading, Unmeasured>;
}

/// Domains, and the counter of each at the same place.
pub(crate) struct Bank<C> {
    domains: Vec<Domain>,
    counters: Vec<C>,
}

impl<C: Count> Bank<C> {
    pub(crate) fn new() -> Self {
        Bank { domains: Vec::new(), counters: Vec::new() }
    }

    pub(crate) fn add(&mut self, domain: Domain, counter: C) {
        self.domains.push(domain);
        self.counters.push(counter);
    }

    /// The counter of the first domain that is wanted.
    pub(crate) fn first(&mut self, wanted: &[bool]) -> Option<&mut C> {
        self.counters.iter_mut().zip(wanted).find(|(_, wanted)| **wanted).map(|(counter, _)| counter)
    }
}

impl<C: Count> Meter for Bank<C> {
    fn domains(&self) -> &[Domain] {
        &self.domains
    }

    fn read(&mut self, now: Nanos) -> Vec<Result<Reading, Unmeasured>> {
        self.counters.iter_mut().map(|counter| counter.read(now)).collect()
    }

    fn keep(&mut self, wanted: &[bool]) {
        let kept = |n: usize| wanted.get(n).copied().unwrap_or(false);
        let mut at = 0..;
        self.domains.retain(|_| at.next().is_some_and(kept));
        let mut at = 0..;
        self.counters.retain(|_| at.next().is_some_and(kept));
    }
}
