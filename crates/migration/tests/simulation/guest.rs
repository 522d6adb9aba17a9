//! A synthetic guest: pages and blocks are counters, and a write adds one to what it finds.
//!
//! ```text
//!            free                take                    write: a new number, whatever was there
//!   in use ───────► free ────────────────► taken ────────────────────────────────────────────────► in use
//!                     └──────────────────────── write ────────────────────────────────────────────►
//! ```

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
    /// What the guest would tell to be free.
    pub free: UnitSet<U>,
    /// What is free, or taken and not written since: its content is nobody's.
    nobodys: UnitSet<U>,
    /// New numbers given so far.
    given: u32,
}

/// New numbers lie so far apart, and so far from those of the beginning, that no counter reaches another's.
const FIRST_NEW: u32 = 1_000_000;
const NEW_APART: u32 = 1000;

impl<U: Unit> Units<U> {
    pub fn new(count: u64, rng: &mut Rng) -> Self {
        let content: Vec<u32> = (0..count).map(|_| rng.below(1000) as u32 + 1).collect();
        Units {
            truth: content.clone(),
            source: content,
            destination: vec![0; count as usize],
            written: UnitSet::empty(count),
            missing: UnitSet::empty(count),
            free: UnitSet::empty(count),
            nobodys: UnitSet::empty(count),
            given: 0,
        }
    }

    /// The unit is nobody's from now on.
    pub fn free(&mut self, unit: u64) {
        self.free.insert(unit);
        self.nobodys.insert(unit);
    }

    /// The unit is somebody's, who has not written it yet.
    pub fn take_into_use(&mut self, unit: u64) {
        self.free.remove(unit);
    }

    pub fn write_at_source(&mut self, unit: u64) {
        self.write(unit, false);
        self.written.insert(unit);
    }

    /// The caller sees to it that the unit isn't missing.
    pub fn write_at_destination(&mut self, unit: u64) {
        self.write(unit, true);
    }

    fn write(&mut self, unit: u64, at_destination: bool) {
        self.free.remove(unit);
        let new = self.nobodys.remove(unit).then(|| {
            self.given += 1;
            FIRST_NEW + NEW_APART * self.given
        });
        let held = if at_destination { &mut self.destination } else { &mut self.source };
        for copy in [&mut self.truth, held] {
            let copy = &mut copy[unit as usize];
            *copy = new.unwrap_or(*copy + 1);
        }
    }

    pub fn take(&mut self) -> UnitSet<U> {
        let len = self.written.len();
        std::mem::replace(&mut self.written, UnitSet::empty(len))
    }

    pub fn first_difference(&self, at_destination: bool) -> Option<String> {
        let held = if at_destination { &self.destination } else { &self.source };
        let is_wrong = |at: &usize| self.truth[*at] != held[*at] && !self.nobodys.contains(*at as u64);
        let at = (0..held.len()).find(is_wrong)?;
        Some(format!("{} {at} holds version {}, {} expected", U::NAME, held[at], self.truth[at]))
    }
}
