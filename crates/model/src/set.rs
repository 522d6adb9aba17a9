//! Sets of pages and of blocks, runs of them, and runs in an order.
//!
//! A [`UnitSet`] is the exchanged and shown form. Where many writers mark at once there is a bitmap of atomic words
//! (rooms `memory` and `disk`) whose `take` yields one of these; on the wire it travels as runs.

use crate::units::Unit;
use bitvec::{order::Lsb0, view::BitView};
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

/// Words of a leaf: a cache line.
const LEAF_WORDS: usize = 8;
/// Units of a leaf.
const LEAF_UNITS: u64 = LEAF_WORDS as u64 * 64;
/// The place of the leaf that has no unit.
const NONE: u32 = 0;
/// The place of the leaf that has all units.
const ALL: u32 = 1;

type Leaf = [u64; LEAF_WORDS];

/// A set over the fixed universe `0..len` of one kind of unit.
///
/// | part     | what                                                  | for 2^28 units, 0.01 % of them in, scattered |
/// |----------|-------------------------------------------------------|----------------------------------------------|
/// | `places` | for each 512 units, where in `leaves` their bits are  | 2 MiB                                        |
/// | `leaves` | none, all (both shared, never written), and own ones  | 1.7 MiB; as flat bits 32 MiB, each page touched |
///
/// So what a set costs follows what is in it, and stretches without units, or with all, are passed 512 at a time.
#[derive(Clone)]
pub struct UnitSet<U> {
    len: u64,
    places: Vec<u32>,
    leaves: Vec<Leaf>,
    /// Own leaves that are free.
    spare: Vec<u32>,
    unit: PhantomData<U>,
}

impl<U: Unit> std::fmt::Debug for UnitSet<U> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} {}s", self.count(), self.len(), U::NAME)
    }
}

impl<U> PartialEq for UnitSet<U> {
    fn eq(&self, other: &Self) -> bool {
        let pairs = || self.places.iter().zip(&other.places);
        self.len == other.len && pairs().all(|(a, b)| self.leaves[*a as usize] == other.leaves[*b as usize])
    }
}

impl<U> Eq for UnitSet<U> {}

impl<U: Unit> UnitSet<U> {
    /// The empty set over `0..len`.
    pub fn empty(len: u64) -> Self {
        let places = vec![NONE; len.div_ceil(LEAF_UNITS) as usize];
        let leaves = vec![[0; LEAF_WORDS], [u64::MAX; LEAF_WORDS]];
        UnitSet { len, places, leaves, spare: Vec::new(), unit: PhantomData }
    }

    /// Every unit of `0..len`.
    pub fn full(len: u64) -> Self {
        Self::from_extents(len, [Extent { start: 0, count: len }])
    }

    /// The set of the given extents; what lies beyond `len` is left out.
    pub fn from_extents(len: u64, extents: impl IntoIterator<Item = Extent>) -> Self {
        let mut set = Self::empty(len);
        for extent in extents {
            set.insert_extent(extent);
        }
        set
    }

    /// The size of the universe, not of the set.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether no unit is in the set.
    pub fn is_empty(&self) -> bool {
        self.next(0).is_none()
    }

    /// How many units are in the set.
    pub fn count(&self) -> u64 {
        self.words().map(|(_, word)| u64::from(word.count_ones())).sum()
    }

    /// Whether `index` is in the set; false beyond the universe.
    pub fn contains(&self, index: u64) -> bool {
        index < self.len && self.word(index / 64) & (1 << (index % 64)) != 0
    }

    /// Adds one unit; returns whether it was absent. An index beyond the universe is ignored.
    pub fn insert(&mut self, index: u64) -> bool {
        let absent = index < self.len && !self.contains(index);
        if absent {
            *self.word_mut(index / 64) |= 1 << (index % 64);
        }
        absent
    }

    /// Takes one unit out; returns whether it was present.
    pub fn remove(&mut self, index: u64) -> bool {
        let present = self.contains(index);
        if present {
            *self.word_mut(index / 64) &= !(1 << (index % 64));
        }
        present
    }

    /// Adds a run; the part beyond the universe is ignored.
    pub fn insert_extent(&mut self, extent: Extent) {
        self.fill(extent, true);
    }

    /// Takes a run out.
    pub fn remove_extent(&mut self, extent: Extent) {
        self.fill(extent, false);
    }

    /// Adds the units `64 * index ..` whose bits, lowest first, are set in `bits`; what lies beyond the universe is left
    /// out.
    pub fn insert_word(&mut self, index: u64, bits: u64) {
        let bits = match self.len.saturating_sub(index.saturating_mul(64)) {
            within @ 0..64 => bits & ((1 << within) - 1),
            _ => bits,
        };
        if bits != 0 {
            *self.word_mut(index) |= bits;
        }
    }

    fn fill(&mut self, extent: Extent, value: bool) {
        let filled = if value { ALL } else { NONE };
        for (number, part) in self.parts(extent) {
            if part.end - part.start == LEAF_UNITS as usize {
                self.share(number, filled);
            } else if self.places[number] != filled {
                self.own(number).view_bits_mut::<Lsb0>()[part].fill(value);
            }
        }
    }

    /// The leaves that an extent touches, as far as it lies in the universe, each with the units within it.
    fn parts(&self, extent: Extent) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> + use<U> {
        let end = extent.start.saturating_add(extent.count).min(self.len);
        let start = extent.start.min(end);
        (start / LEAF_UNITS..end.div_ceil(LEAF_UNITS)).filter(move |_| start < end).map(move |number| {
            let base = number * LEAF_UNITS;
            (number as usize, start.saturating_sub(base) as usize..(end - base).min(LEAF_UNITS) as usize)
        })
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        *self = Self::empty(self.len);
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

    /// Leaves the units that are in exactly one of both.
    pub fn differ(&mut self, other: &UnitSet<U>) {
        self.combine(other, |a, b| a ^ b);
    }

    /// `op` is one on each bit, of which two absent ones make an absent one.
    fn combine(&mut self, other: &UnitSet<U>, op: impl Fn(u64, u64) -> u64) {
        debug_assert_eq!(self.len(), other.len(), "sets over different universes");
        for number in 0..self.places.len().min(other.places.len()) {
            let (mine, theirs) = (self.places[number], other.places[number]);
            if (mine, theirs) == (NONE, NONE) {
                continue;
            }
            let leaf = self.leaves[mine as usize];
            let other = &other.leaves[theirs as usize];
            let result: Leaf = std::array::from_fn(|at| op(leaf[at], other[at]));
            if result == self.leaves[NONE as usize] {
                self.share(number, NONE);
            } else if result == self.leaves[ALL as usize] {
                self.share(number, ALL);
            } else if result != leaf {
                *self.own(number) = result;
            }
        }
    }

    /// How many units are in both sets.
    pub fn count_common(&self, other: &UnitSet<U>) -> u64 {
        self.words().map(|(index, word)| u64::from((word & other.word(index)).count_ones())).sum()
    }

    /// How many units of the extent are in the set.
    pub fn count_in(&self, extent: Extent) -> u64 {
        let counts = self.parts(extent).map(|(leaf, part)| self.leaf(leaf).view_bits::<Lsb0>()[part].count_ones());
        counts.sum::<usize>() as u64
    }

    /// The runs of the extent's units that are not in the set, ascending.
    pub fn absent_in(&self, extent: Extent) -> impl Iterator<Item = Extent> + '_ {
        let mut at = extent.start;
        std::iter::from_fn(move || {
            while at < extent.end() {
                let start = at;
                let end = self.next(start).map_or(extent.end(), |present| present.min(extent.end()));
                at = end + 1;
                if end > start {
                    return Some(Extent { start, count: end - start });
                }
            }
            None
        })
    }

    /// The first unit at or after `from` that is in the set.
    pub fn next(&self, from: u64) -> Option<u64> {
        self.search(from, NONE, 0)
    }

    fn next_absent(&self, from: u64) -> u64 {
        self.search(from, ALL, u64::MAX).map_or(self.len, |at| at.min(self.len))
    }

    /// The first unit from `from` on whose bit, turned by `turn`, is set; the leaf at `without` has none.
    fn search(&self, from: u64, without: u32, turn: u64) -> Option<u64> {
        let (first, mut word) = ((from / LEAF_UNITS) as usize, (from % LEAF_UNITS / 64) as usize);
        let mut mask = u64::MAX << (from % 64);
        for (number, place) in self.places.iter().enumerate().skip(first) {
            if *place != without {
                let leaf = &self.leaves[*place as usize];
                for (at, bits) in leaf.iter().enumerate().skip(word) {
                    let bits = (bits ^ turn) & mask;
                    if bits != 0 {
                        return Some((number * LEAF_WORDS + at) as u64 * 64 + u64::from(bits.trailing_zeros()));
                    }
                    mask = u64::MAX;
                }
            }
            (word, mask) = (0, u64::MAX);
        }
        None
    }

    fn leaf(&self, number: usize) -> &Leaf {
        &self.leaves[self.places.get(number).copied().unwrap_or(NONE) as usize]
    }

    /// Leaf `number`, to be written.
    fn own(&mut self, number: usize) -> &mut Leaf {
        let mut place = self.places[number];
        if place == NONE || place == ALL {
            let leaf = self.leaves[place as usize];
            place = self.spare.pop().unwrap_or(self.leaves.len() as u32);
            match self.leaves.get_mut(place as usize) {
                Some(spare) => *spare = leaf,
                None => self.leaves.push(leaf),
            }
            self.places[number] = place;
        }
        &mut self.leaves[place as usize]
    }

    /// Makes leaf `number` one of the shared ones.
    fn share(&mut self, number: usize, place: u32) {
        let before = std::mem::replace(&mut self.places[number], place);
        if before != NONE && before != ALL {
            self.spare.push(before);
        }
    }

    /// The units `64 * index ..` as bits, lowest first; none beyond the universe.
    pub fn word(&self, index: u64) -> u64 {
        self.leaf(index as usize / LEAF_WORDS)[index as usize % LEAF_WORDS]
    }

    fn word_mut(&mut self, index: u64) -> &mut u64 {
        &mut self.own(index as usize / LEAF_WORDS)[index as usize % LEAF_WORDS]
    }

    /// The bits that are set, 64 units a word and lowest first, as (index, word) of each word that has any, ascending.
    pub fn words(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let leaves = self.places.iter().enumerate().filter(|(_, place)| **place != NONE);
        let words = leaves.flat_map(|(number, place)| {
            let words = self.leaves[*place as usize].iter().enumerate();
            words.map(move |(at, word)| ((number * LEAF_WORDS + at) as u64, *word))
        });
        words.filter(|(_, word)| *word != 0)
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

    /// Single units and runs, in universes of a part of a leaf to several leaves.
    fn members(len: u64) -> impl Strategy<Value = BTreeSet<u64>> {
        let run = (0..len, prop_oneof![4 => 1u64..4, 1 => 60u64..1600]);
        prop::collection::vec(run, 0..40)
            .prop_map(move |runs| runs.into_iter().flat_map(|(start, count)| start..(start + count).min(len)).collect())
    }

    fn two_sets() -> impl Strategy<Value = (u64, BTreeSet<u64>, BTreeSet<u64>)> {
        prop_oneof![1u64..300, Just(LEAF_UNITS), Just(3 * LEAF_UNITS), 1000u64..3000]
            .prop_flat_map(|len| (Just(len), members(len), members(len)))
    }

    proptest! {
        #[test]
        fn a_set_behaves_as_a_set((len, a, b) in two_sets(), (start, count) in (0u64..3000, 0u64..2000)) {
            let (sa, sb) = (set_of(len, &a), set_of(len, &b));
            prop_assert_eq!(sa.iter().collect::<BTreeSet<_>>(), a.clone());
            prop_assert_eq!(sa.count(), a.len() as u64);
            prop_assert_eq!(sa.is_empty(), a.is_empty());
            prop_assert_eq!(sa == sb, a == b);
            let mut union = sa.clone();
            union.union(&sb);
            prop_assert_eq!(union.iter().collect::<BTreeSet<_>>(), a.union(&b).copied().collect::<BTreeSet<_>>());
            let mut less = sa.clone();
            less.subtract(&sb);
            prop_assert_eq!(less.iter().collect::<BTreeSet<_>>(), a.difference(&b).copied().collect::<BTreeSet<_>>());
            let mut one = sa.clone();
            one.differ(&sb);
            prop_assert!(one.iter().eq(a.symmetric_difference(&b).copied()));
            let mut both = sa.clone();
            both.intersect(&sb);
            prop_assert_eq!(both.count(), sa.count_common(&sb));
            let extent = Extent { start, count };
            let within = a.range(start..start + count).count() as u64;
            prop_assert_eq!(sa.count_in(extent), within);
            let absent: Vec<Extent> = sa.absent_in(extent).collect();
            prop_assert!(absent.windows(2).all(|pair| pair[0].end() < pair[1].start), "runs ascend and don't touch");
            let absent: Vec<u64> = absent.into_iter().flat_map(Extent::indices).collect();
            prop_assert_eq!(absent, extent.indices().filter(|unit| !a.contains(unit)).collect::<Vec<_>>());
            let (mut more, mut fewer) = (sa.clone(), sa.clone());
            more.insert_extent(extent);
            fewer.remove_extent(extent);
            prop_assert_eq!(more.count(), a.len() as u64 - within + len.min(start + count).saturating_sub(start));
            prop_assert_eq!(fewer.count(), a.len() as u64 - within);
            more.subtract(&fewer);
            prop_assert_eq!(more, UnitSet::from_extents(len, [extent]));
            let rebuilt = UnitSet::<Page>::from_extents(len, sa.extents());
            prop_assert_eq!(&rebuilt, &sa);
            let mut by_words = UnitSet::<Page>::empty(len);
            sa.words().for_each(|(index, bits)| by_words.insert_word(index, bits));
            prop_assert_eq!(&by_words, &sa);
            let mut emptied = sa.clone();
            prop_assert!(a.iter().all(|unit| emptied.remove(*unit) && !emptied.remove(*unit)));
            prop_assert!(emptied.is_empty() && emptied == UnitSet::empty(len));
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
    fn words_and_units_beyond_the_universe_are_left_out() {
        let mut set = UnitSet::<Page>::empty(70);
        set.insert_word(1, u64::MAX);
        set.insert_word(2, u64::MAX);
        set.insert_word(u64::MAX, 1);
        assert!(!set.insert(70) && !set.insert(u64::MAX) && !set.remove(511));
        assert_eq!(set.extents().collect::<Vec<_>>(), [Extent { start: 64, count: 6 }]);
    }

    #[test]
    fn what_is_so_already_takes_no_memory() {
        let part = Extent { start: 3, count: LEAF_UNITS };
        let (mut empty, mut full) = (UnitSet::<Page>::empty(3 * LEAF_UNITS), UnitSet::<Page>::full(3 * LEAF_UNITS));
        let before = [empty.leaves.len(), full.leaves.len()];
        empty.remove_extent(part);
        full.insert_extent(part);
        assert_eq!([empty.leaves.len(), full.leaves.len()], before);
        assert_eq!((empty.count(), full.count()), (0, 3 * LEAF_UNITS));
    }

    #[test]
    fn a_claimed_universe_is_bounded() {
        assert!(serde_json::from_str::<UnitSet<Page>>(r#"{"len":99999999999999,"runs":[]}"#).is_err());
    }
}
