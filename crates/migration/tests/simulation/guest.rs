//! A synthetic guest: pages and blocks are counters, and a write adds one to what it finds.

use whimbrel_model::{Rng, Unit, UnitSet};

/// One family's units on both hosts, and what they ought to hold.
pub struct Units<U> {
    /// What a guest that never migrated would hold.
    pub truth: Vec<u32>,
    /// The source's copy.
    pub source: Vec<u32>,
    /// The destination's copy; a stale or absent unit differs from the truth.
    pub destination: Vec<u32>,
    /// The source's log of writes.
    pub written: UnitSet<U>,
    /// What the destination lacks once the guest runs there.
    pub missing: UnitSet<U>,
}

impl<U: Unit> Units<U> {
    pub fn new(count: u64, rng: &mut Rng) -> Self {
        let content: Vec<u32> = (0..count).map(|_| rng.below(1000) as u32 + 1).collect();
        Units {
            truth: content.clone(),
            source: content,
            destination: vec![0; count as usize],
            written: UnitSet::empty(count),
            missing: UnitSet::empty(count),
        }
    }

    pub fn write_at_source(&mut self, unit: u64) {
        self.truth[unit as usize] += 1;
        self.source[unit as usize] += 1;
        self.written.insert(unit);
    }

    /// The caller sees to it that the unit isn't missing.
    pub fn write_at_destination(&mut self, unit: u64) {
        self.truth[unit as usize] += 1;
        self.destination[unit as usize] += 1;
    }

    pub fn take(&mut self) -> UnitSet<U> {
        let len = self.written.len();
        std::mem::replace(&mut self.written, UnitSet::empty(len))
    }

    pub fn first_difference(&self, at_destination: bool) -> Option<String> {
        let held = if at_destination { &self.destination } else { &self.source };
        let at = self.truth.iter().zip(held).position(|(a, b)| a != b)?;
        Some(format!("{} {at} holds version {}, {} expected", U::NAME, held[at], self.truth[at]))
    }
}
