//! Sets of pages and of blocks, runs of them, and runs in an order.
//!
//! A [`UnitSet`] is the exchanged and shown form. Where many writers mark at once there is a bitmap of atomic words
//! (rooms `memory` and `disk`) whose `take` yields one of these; on the wire it travels as runs.

use crate::units::Unit;
use bitvec::prelude::{BitVec, Lsb0};
use serde::{Deserialize, Serialize};
use std::marker::PhantomData;

/// A run of consecutive units: `start .. start + count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Extent {
    /// The first unit's index.
    pub start: u64,
    /// How many units; never zero in an extent that a set or an order yields.
    pub count: u64,
}

impl Extent {
    /// The index just past the last unit.
    pub fn end(self) -> u64 {
        self.start + self.count
    }

    /// The indices of the extent's units.
    pub fn indices(self) -> std::ops::Range<u64> {
        self.start..self.end()
    }
}

/// A set over the fixed universe `0..len` of one kind of unit.
#[derive(Clone, PartialEq, Eq)]
pub struct UnitSet<U> {
    bits: BitVec<u64, Lsb0>,
    unit: PhantomData<U>,
}

impl<U: Unit> std::fmt::Debug for UnitSet<U> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} {}s", self.count(), self.len(), U::NAME)
    }
}

impl<U: Unit> UnitSet<U> {
    /// The empty set over `0..len`.
    pub fn empty(len: u64) -> Self {
        UnitSet { bits: BitVec::repeat(false, len as usize), unit: PhantomData }
    }

    /// Every unit of `0..len`.
    pub fn full(len: u64) -> Self {
        UnitSet { bits: BitVec::repeat(true, len as usize), unit: PhantomData }
    }

    /// The set of the given extents; what lies beyond `len` is left out.
    pub fn from_extents(len: u64, extents: impl IntoIterator<Item = Extent>) -> Self {
        let mut set = Self::empty(len);
        for extent in extents {
            set.insert_extent(extent);
        }
        set
    }

    /// The set whose little-endian bit words are `words`, over `0..len`; missing words are empty.
    pub fn from_words(len: u64, mut words: Vec<u64>) -> Self {
        words.resize((len as usize).div_ceil(64), 0);
        let mut bits = BitVec::from_vec(words);
        bits.truncate(len as usize);
        UnitSet { bits, unit: PhantomData }
    }

    /// The size of the universe, not of the set.
    pub fn len(&self) -> u64 {
        self.bits.len() as u64
    }

    /// Whether no unit is in the set.
    pub fn is_empty(&self) -> bool {
        self.bits.not_any()
    }

    /// How many units are in the set.
    pub fn count(&self) -> u64 {
        (0..self.words()).map(|w| u64::from(self.word(w).count_ones())).sum()
    }

    /// Whether `index` is in the set; false beyond the universe.
    pub fn contains(&self, index: u64) -> bool {
        self.bits.get(index as usize).is_some_and(|bit| *bit)
    }

    /// Adds one unit; returns whether it was absent. An index beyond the universe is ignored.
    pub fn insert(&mut self, index: u64) -> bool {
        if index >= self.len() {
            return false;
        }
        !self.bits.replace(index as usize, true)
    }

    /// Takes one unit out; returns whether it was present.
    pub fn remove(&mut self, index: u64) -> bool {
        if index >= self.len() {
            return false;
        }
        self.bits.replace(index as usize, false)
    }

    /// Adds a run; the part beyond the universe is ignored.
    pub fn insert_extent(&mut self, extent: Extent) {
        self.fill(extent, true);
    }

    /// Takes a run out.
    pub fn remove_extent(&mut self, extent: Extent) {
        self.fill(extent, false);
    }

    fn fill(&mut self, extent: Extent, value: bool) {
        let start = extent.start.min(self.len()) as usize;
        let end = extent.start.saturating_add(extent.count).min(self.len()) as usize;
        self.bits[start..end].fill(value);
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        self.bits.fill(false);
    }

    /// Adds every unit of `other` (over the same universe).
    pub fn union(&mut self, other: &UnitSet<U>) {
        self.combine(other, |a, b| a | b);
    }

    /// Takes out every unit of `other`.
    pub fn subtract(&mut self, other: &UnitSet<U>) {
        self.combine(other, |a, b| a & !b);
    }

    /// Keeps only what is also in `other`.
    pub fn intersect(&mut self, other: &UnitSet<U>) {
        self.combine(other, |a, b| a & b);
    }

    fn combine(&mut self, other: &UnitSet<U>, op: impl Fn(u64, u64) -> u64) {
        debug_assert_eq!(self.len(), other.len(), "sets over different universes");
        for (a, b) in self.bits.as_raw_mut_slice().iter_mut().zip(other.bits.as_raw_slice()) {
            *a = op(*a, *b);
        }
    }

    /// How many units are in both sets.
    pub fn count_common(&self, other: &UnitSet<U>) -> u64 {
        (0..self.words().min(other.words())).map(|w| u64::from((self.word(w) & other.word(w)).count_ones())).sum()
    }

    /// How many units of the extent are in the set.
    pub fn count_in(&self, extent: Extent) -> u64 {
        let start = extent.start.min(self.len()) as usize;
        let end = extent.end().min(self.len()) as usize;
        self.bits[start..end].count_ones() as u64
    }

    /// The first unit at or after `from` that is in the set.
    pub fn next(&self, from: u64) -> Option<u64> {
        self.search(from, |word| word).filter(|at| *at < self.len())
    }

    fn next_absent(&self, from: u64) -> u64 {
        self.search(from, |word| !word).map_or(self.len(), |at| at.min(self.len()))
    }

    fn search(&self, from: u64, view: impl Fn(u64) -> u64) -> Option<u64> {
        if from >= self.len() {
            return None;
        }
        let first = (from / 64) as usize;
        for index in first..self.words() {
            let mut word = view(self.word(index));
            if index == first {
                word &= u64::MAX << (from % 64);
            }
            if word != 0 {
                return Some(index as u64 * 64 + u64::from(word.trailing_zeros()));
            }
        }
        None
    }

    fn words(&self) -> usize {
        self.bits.as_raw_slice().len()
    }

    /// Word `index` of the little-endian bit words, bits beyond the universe cleared.
    fn word(&self, index: usize) -> u64 {
        let word = self.bits.as_raw_slice()[index];
        match self.len() as usize - index * 64 {
            tail @ 0..64 => word & ((1 << tail) - 1),
            _ => word,
        }
    }

    /// The units of the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.extents().flat_map(Extent::indices)
    }

    /// The runs of the set, ascending, each as long as it can be.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at)?;
            at = self.next_absent(start);
            Some(Extent { start, count: at - start })
        })
    }
}

/// The serialised form of a [`UnitSet`]: its universe and its runs.
#[derive(Serialize, Deserialize)]
struct Runs {
    len: u64,
    runs: Vec<Extent>,
}

/// The largest universe that a set from outside may claim: 2^32 units, 16 TiB in 4 KiB units, 512 MiB of bits.
const LARGEST_UNIVERSE: u64 = 1 << 32;

impl<U: Unit> Serialize for UnitSet<U> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Runs { len: self.len(), runs: self.extents().collect() }.serialize(serializer)
    }
}

impl<'de, U: Unit> Deserialize<'de> for UnitSet<U> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Runs { len, runs } = Runs::deserialize(deserializer)?;
        if len > LARGEST_UNIVERSE {
            return Err(serde::de::Error::custom(format!("a set over {len} {}s is larger than accepted", U::NAME)));
        }
        Ok(Self::from_extents(len, runs))
    }
}

/// Units in the order in which they are to go: a list of extents, each unit at most once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ordered<U> {
    extents: Vec<Extent>,
    #[serde(skip)]
    unit: PhantomData<U>,
}

impl<U: Unit> Ordered<U> {
    /// The units of `set`, ascending.
    pub fn ascending(set: &UnitSet<U>) -> Self {
        Self::of(set.extents().collect())
    }

    /// The given extents in the given order. The caller sees to it that no unit comes twice.
    pub fn of(extents: Vec<Extent>) -> Self {
        Ordered { extents, unit: PhantomData }
    }

    /// The units of `set` in pseudo-random order, in stretches of at most `stretch` units that stay together.
    ///
    /// Clark et al. 2005 scan memory in pseudo-random order because dirtying is clustered.
    pub fn scattered(set: &UnitSet<U>, stretch: u64, seed: u64) -> Self {
        let stretch = stretch.max(1);
        let mut parts: Vec<Extent> = Vec::new();
        for extent in set.extents() {
            let mut start = extent.start;
            while start < extent.end() {
                let end = (start / stretch + 1).saturating_mul(stretch).min(extent.end());
                parts.push(Extent { start, count: end - start });
                start = end;
            }
        }
        crate::rng::Rng::new(seed).shuffle(&mut parts);
        Self::of(parts)
    }

    /// The extents, first to go first.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// How many units there are.
    pub fn count(&self) -> u64 {
        self.extents.iter().map(|e| e.count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Page;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn set_of(len: u64, members: &BTreeSet<u64>) -> UnitSet<Page> {
        let mut set = UnitSet::empty(len);
        for m in members {
            set.insert(*m);
        }
        set
    }

    proptest! {
        #[test]
        fn a_set_behaves_as_a_set(len in 1u64..300, a in prop::collection::btree_set(0u64..300, 0..80),
                                  b in prop::collection::btree_set(0u64..300, 0..80)) {
            let within = |s: &BTreeSet<u64>| s.iter().copied().filter(|i| *i < len).collect::<BTreeSet<_>>();
            let (a, b) = (within(&a), within(&b));
            let (sa, sb) = (set_of(len, &a), set_of(len, &b));
            prop_assert_eq!(sa.iter().collect::<BTreeSet<_>>(), a.clone());
            prop_assert_eq!(sa.count(), a.len() as u64);
            prop_assert_eq!(sa.is_empty(), a.is_empty());
            let mut union = sa.clone();
            union.union(&sb);
            prop_assert_eq!(union.iter().collect::<BTreeSet<_>>(), a.union(&b).copied().collect::<BTreeSet<_>>());
            let mut less = sa.clone();
            less.subtract(&sb);
            prop_assert_eq!(less.iter().collect::<BTreeSet<_>>(), a.difference(&b).copied().collect::<BTreeSet<_>>());
            let mut both = sa.clone();
            both.intersect(&sb);
            prop_assert_eq!(both.count(), sa.count_common(&sb));
            let rebuilt = UnitSet::<Page>::from_extents(len, sa.extents());
            prop_assert_eq!(&rebuilt, &sa);
            let text = serde_json::to_string(&sa).unwrap();
            prop_assert_eq!(serde_json::from_str::<UnitSet<Page>>(&text).unwrap(), sa);
        }

        #[test]
        fn every_order_holds_the_set(len in 1u64..300, members in prop::collection::btree_set(0u64..300, 0..80),
                                     stretch in 1u64..9, seed in any::<u64>()) {
            let set = set_of(len, &members);
            for order in [Ordered::ascending(&set), Ordered::scattered(&set, stretch, seed)] {
                prop_assert_eq!(order.count(), set.count());
                prop_assert_eq!(UnitSet::<Page>::from_extents(len, order.extents().iter().copied()), set.clone());
            }
        }
    }

    #[test]
    fn a_full_set_has_no_units_beyond_its_universe() {
        let full = UnitSet::<Page>::full(70);
        assert_eq!(full.count(), 70);
        assert_eq!(full.extents().collect::<Vec<_>>(), [Extent { start: 0, count: 70 }]);
        assert_eq!(full.next(70), None);
    }

    #[test]
    fn a_claimed_universe_is_bounded() {
        assert!(serde_json::from_str::<UnitSet<Page>>(r#"{"len":99999999999999,"runs":[]}"#).is_err());
    }
}
