//! The block bitmap: one bit a disk block, marked by many writers at once and taken by one reader, without a lock
//! between them.
//!
//! The same structure serves as three bitmaps of a volume; what a bit means depends on which:
//!
//! | bitmap  | 0                                | 1                                         | set by            | cleared by                        |
//! |---------|----------------------------------|-------------------------------------------|-------------------|-----------------------------------|
//! | `dirty` | not written since the last take  | written since                             | a guest's write   | `take`, which hands the bits over |
//! | `fresh` | not written since the guest came | written: the host it came from lacks it   | a guest's write   | the next arrival of a guest       |
//! | `todo`  | here                             | missing or stale: fetch it before reading | the switchover    | its arrival, or a whole overwrite |
//!
//! Three levels, after the layered bitmap that Luo et al. 2008 propose; each bit of an upper level says that something
//! below *may* be set:
//!
//! | level     | one bit stands for    | for 1 TiB in 4 KiB blocks | memory                                  |
//! |-----------|-----------------------|---------------------------|-----------------------------------------|
//! | `live`    | a leaf: 32 768 blocks | 1 KiB                     | always there                            |
//! | `summary` | a word: 64 blocks     | 512 KiB                   | part of the leaf                        |
//! | `words`   | a block               | 32 MiB                    | 4 KiB a leaf, allocated at its first mark |
//!
//! Why no mark is lost: a mark goes from the bottom up (word, summary, live), a take from the top down (live, summary,
//! word), and every step is sequentially consistent. A marker leaves an upper bit alone only if it sees it set *after*
//! it has set the word. Such an upper bit is cleared only by a taker, and a taker that clears it looks below it
//! afterwards, so it finds the word. A mark that has returned when a take begins is therefore in that take (or in one
//! before it), and a mark that races with a take is in that one or in the next. Takers queue behind each other: else a
//! second one could find the upper bits cleared by a first that hasn't come to the words yet. `clear` leaves the upper
//! bits, which costs a later take a look and nothing else.
//!
//! The word itself is always written, even where its bit is set already: the write is what orders the guest's data
//! before the mark.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Mutex, OnceLock, PoisonError};
use whimbrel_model::{Block, Extent, UnitSet};

const BITS: u64 = 64;
const LEAF_WORDS: usize = 512;
const LEAF_BITS: u64 = LEAF_WORDS as u64 * BITS;
const SUMMARY_WORDS: usize = LEAF_WORDS / 64;

/// A set of blocks over a fixed universe that many threads mark at once.
pub struct BlockBitmap {
    len: u64,
    live: Box<[AtomicU64]>,
    leaves: Box<[OnceLock<Box<Leaf>>]>,
    taking: Mutex<()>,
}

struct Leaf {
    summary: [AtomicU64; SUMMARY_WORDS],
    words: [AtomicU64; LEAF_WORDS],
}

impl Leaf {
    fn empty() -> Box<Self> {
        Box::new(Leaf {
            summary: [const { AtomicU64::new(0) }; SUMMARY_WORDS],
            words: [const { AtomicU64::new(0) }; LEAF_WORDS],
        })
    }
}

/// The bits of one leaf: its index and the range of bits within it.
#[derive(Clone, Copy)]
struct Part {
    leaf: usize,
    first: u64,
    end: u64,
}

impl BlockBitmap {
    /// The empty set over `0..len` blocks. No leaf is allocated yet.
    pub fn new(len: u64) -> Self {
        let leaves = len.div_ceil(LEAF_BITS);
        BlockBitmap {
            len,
            live: (0..leaves.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect(),
            leaves: (0..leaves).map(|_| OnceLock::new()).collect(),
            taking: Mutex::new(()),
        }
    }

    /// The size of the universe in blocks.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether no block is in the set.
    pub fn is_empty(&self) -> bool {
        self.next_in(Extent { start: 0, count: self.len }).is_none()
    }

    /// Adds the blocks of `extent`; the part beyond the universe is ignored. Takes no lock (the first mark in a leaf
    /// waits if another thread is allocating that leaf).
    pub fn mark(&self, extent: Extent) {
        if extent.count == 1 && extent.start < self.len {
            // What a guest's write mostly is; the loops below would cost several times the mark itself.
            let (leaf_index, word) = (extent.start / LEAF_BITS, (extent.start % LEAF_BITS / BITS) as usize);
            let leaf = self.leaves[leaf_index as usize].get_or_init(Leaf::empty);
            leaf.words[word].fetch_or(1 << (extent.start % BITS), SeqCst);
            raise(&leaf.summary[word / 64], 1 << (word % 64));
            raise(&self.live[leaf_index as usize / 64], 1 << (leaf_index % 64));
            return;
        }
        for part in self.parts(extent) {
            let leaf = self.leaves[part.leaf].get_or_init(Leaf::empty);
            for (word, mask) in masks(part.first, part.end) {
                leaf.words[word].fetch_or(mask, SeqCst);
            }
            for (word, mask) in masks(part.first / BITS, part.end.div_ceil(BITS)) {
                raise(&leaf.summary[word], mask);
            }
            raise(&self.live[part.leaf / 64], 1 << (part.leaf % 64));
        }
    }

    /// Adds the blocks of a set over the same universe.
    pub fn merge(&self, set: &UnitSet<Block>) {
        for extent in set.extents() {
            self.mark(extent);
        }
    }

    /// Hands over the set and leaves it empty, each word in one step: every mark is in exactly one take.
    pub fn take(&self) -> UnitSet<Block> {
        let mut set = UnitSet::empty(self.len);
        self.take_into(&mut set);
        set
    }

    /// As [`BlockBitmap::take`], but adds to `set`, over the same universe. Returns how many blocks were taken.
    pub fn take_into(&self, set: &mut UnitSet<Block>) -> u64 {
        let _one_at_a_time = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = 0;
        self.walk(take_word, |index, bits| {
            taken += u64::from(bits.count_ones());
            set.insert_word(index as u64, bits);
        });
        taken
    }

    /// Empties the set.
    pub fn clear_all(&self) {
        let _one_at_a_time = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        self.walk(take_word, |_, _| ());
    }

    /// Looks without clearing. No snapshot: a mark made meanwhile may be in it or not.
    pub fn peek(&self) -> UnitSet<Block> {
        let mut set = UnitSet::empty(self.len);
        self.walk(|word| word.load(SeqCst), |index, bits| set.insert_word(index as u64, bits));
        set
    }

    /// How many blocks are in the set.
    pub fn count(&self) -> u64 {
        let mut count = 0;
        self.walk(|word| word.load(SeqCst), |_, bits| count += u64::from(bits.count_ones()));
        count
    }

    /// Whether `block` is in the set; false beyond the universe.
    pub fn is_set(&self, block: u64) -> bool {
        self.word(block / BITS) & (1 << (block % BITS)) != 0
    }

    /// Takes the blocks of `extent` out; returns how many of them were in. Of two that clear the same block, one counts
    /// it.
    pub fn clear(&self, extent: Extent) -> u64 {
        let mut cleared = 0;
        for part in self.parts(extent) {
            let Some(leaf) = self.leaves[part.leaf].get() else { continue };
            for (word, mask) in masks(part.first, part.end) {
                cleared += u64::from((leaf.words[word].fetch_and(!mask, SeqCst) & mask).count_ones());
            }
        }
        cleared
    }

    /// The first block of `extent` that is in the set.
    pub fn next_in(&self, extent: Extent) -> Option<u64> {
        for part in self.parts(extent) {
            let Some(leaf) = self.leaves[part.leaf].get() else { continue };
            for (word, mask) in masks(part.first, part.end) {
                let bits = leaf.words[word].load(SeqCst) & mask;
                if bits != 0 {
                    return Some(part.leaf as u64 * LEAF_BITS + word as u64 * BITS + u64::from(bits.trailing_zeros()));
                }
            }
        }
        None
    }

    /// The first run of blocks in the set within `extent`, as far as it lies there.
    pub fn run_in(&self, extent: Extent) -> Option<Extent> {
        let start = self.next_in(extent)?;
        let end = extent.end().min(self.len);
        let mut at = start;
        while at < end {
            let ahead = u64::from((self.word(at / BITS) >> (at % BITS)).trailing_ones());
            at += ahead;
            if at % BITS != 0 || ahead == 0 {
                break;
            }
        }
        Some(Extent { start, count: at.clamp(start + 1, end) - start })
    }

    /// What the bitmap occupies now, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let leaves = self.leaves.iter().filter(|leaf| leaf.get().is_some()).count();
        let fixed = size_of::<Self>() + size_of_val(&*self.live) + size_of_val(&*self.leaves);
        (fixed + leaves * size_of::<Leaf>()) as u64
    }

    fn word(&self, index: u64) -> u64 {
        let leaf = self.leaves.get((index / LEAF_WORDS as u64) as usize).and_then(OnceLock::get);
        leaf.map_or(0, |leaf| leaf.words[index as usize % LEAF_WORDS].load(SeqCst))
    }

    /// Visits, top down, every word that may hold a bit: `look` is applied to each level's word, `found` gets the index
    /// and the bits of each bottom word that had any.
    ///
    /// It goes by 64 leaves, level by level, and reads a level's words once before it looks at them: reads of scattered
    /// words overlap, while a look that writes waits for each in turn.
    fn walk(&self, look: impl Fn(&AtomicU64) -> u64, mut found: impl FnMut(usize, u64)) {
        let mut words = Vec::new();
        for (at, live) in self.live.iter().enumerate() {
            let leaves: Vec<(usize, &Leaf)> = ones(look(live))
                .map(|bit| at * 64 + bit)
                .map(|index| {
                    (index, &**self.leaves[index].get().expect("a leaf is allocated before it is called live"))
                })
                .collect();
            touch(leaves.iter().map(|(_, leaf)| &leaf.summary[0]));
            words.clear();
            for (index, leaf) in leaves {
                for (at, summary) in leaf.summary.iter().enumerate() {
                    let marked = ones(look(summary)).map(|bit| at * 64 + bit);
                    words.extend(marked.map(|word| (index * LEAF_WORDS + word, &leaf.words[word])));
                }
            }
            touch(words.iter().map(|(_, word)| *word));
            for (index, word) in &words {
                let bits = look(word);
                if bits != 0 {
                    found(*index, bits);
                }
            }
        }
    }

    fn parts(&self, extent: Extent) -> impl Iterator<Item = Part> + use<> {
        let end = extent.start.saturating_add(extent.count).min(self.len);
        let mut at = extent.start.min(end);
        std::iter::from_fn(move || {
            let leaf = at / LEAF_BITS;
            let stop = ((leaf + 1) * LEAF_BITS).min(end);
            let part = Part { leaf: leaf as usize, first: at % LEAF_BITS, end: stop - leaf * LEAF_BITS };
            (at < end).then(|| {
                at = stop;
                part
            })
        })
    }
}

impl std::fmt::Debug for BlockBitmap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} blocks", self.count(), self.len)
    }
}

/// Sets bits that mostly are set already: looking is cheaper than writing a shared cache line.
fn raise(word: &AtomicU64, mask: u64) {
    if word.load(SeqCst) & mask != mask {
        word.fetch_or(mask, SeqCst);
    }
}

/// Empties a word and returns what it held; an empty one is only read.
fn take_word(word: &AtomicU64) -> u64 {
    if word.load(SeqCst) == 0 { 0 } else { word.swap(0, SeqCst) }
}

/// Reads words for the sake of the cache.
fn touch<'a>(words: impl Iterator<Item = &'a AtomicU64>) {
    std::hint::black_box(words.fold(0, |all, word| all | word.load(Relaxed)));
}

/// The words that hold the bits `first..end`, each with the mask of those bits.
fn masks(first: u64, end: u64) -> impl Iterator<Item = (usize, u64)> {
    (first / BITS..end.div_ceil(BITS)).map(move |word| {
        let from = first.saturating_sub(word * BITS);
        let to = (end - word * BITS).min(BITS);
        ((word as usize), (u64::MAX << from) & (u64::MAX >> (BITS - to)))
    })
}

/// The positions of the bits that are set.
fn ones(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros() as usize;
        (word != 0).then(|| {
            word &= word - 1;
            bit
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Clone, Debug)]
    enum Act {
        Mark(Extent),
        Clear(Extent),
        Take,
        TakeInto,
        ClearAll,
        Merge(Vec<Extent>),
    }

    fn extent(len: u64) -> impl Strategy<Value = Extent> {
        // Short runs, runs about a word long, and runs across a leaf's edge.
        (0..len + 10, prop_oneof![1u64..4, 60u64..200, 1u64..40_000]).prop_map(|(start, count)| Extent { start, count })
    }

    fn acts() -> impl Strategy<Value = (u64, Vec<Act>)> {
        prop_oneof![1u64..200, Just(LEAF_BITS), Just(LEAF_BITS + 1), Just(3 * LEAF_BITS - 63)].prop_flat_map(|len| {
            let act = prop_oneof![
                4 => extent(len).prop_map(Act::Mark),
                2 => extent(len).prop_map(Act::Clear),
                1 => Just(Act::Take),
                1 => Just(Act::TakeInto),
                1 => Just(Act::ClearAll),
                1 => prop::collection::vec(extent(len), 0..4).prop_map(Act::Merge),
            ];
            (Just(len), prop::collection::vec(act, 0..24))
        })
    }

    fn within(extent: Extent, len: u64) -> std::ops::Range<u64> {
        extent.start.min(len)..extent.end().min(len)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn a_bitmap_behaves_as_a_set((len, acts) in acts(), probe in 0u64..100_000, gap in extent(3 * LEAF_BITS)) {
            let bitmap = BlockBitmap::new(len);
            let mut model = BTreeSet::new();
            for act in acts {
                match act {
                    Act::Mark(extent) => {
                        bitmap.mark(extent);
                        model.extend(within(extent, len));
                    }
                    Act::Clear(extent) => {
                        let before = model.len();
                        model.retain(|block| !within(extent, len).contains(block));
                        prop_assert_eq!(bitmap.clear(extent), (before - model.len()) as u64);
                    }
                    Act::Take => {
                        let taken = bitmap.take();
                        prop_assert_eq!(taken.len(), len);
                        prop_assert!(taken.iter().eq(std::mem::take(&mut model)));
                    }
                    Act::TakeInto => {
                        let mut all = UnitSet::from_extents(len, [Extent { start: 0, count: 3 }]);
                        prop_assert_eq!(bitmap.take_into(&mut all), model.len() as u64);
                        model.extend(within(Extent { start: 0, count: 3 }, len));
                        prop_assert!(all.iter().eq(std::mem::take(&mut model)));
                    }
                    Act::ClearAll => {
                        bitmap.clear_all();
                        model.clear();
                    }
                    Act::Merge(extents) => {
                        bitmap.merge(&UnitSet::from_extents(len, extents.iter().copied()));
                        model.extend(extents.iter().flat_map(|extent| within(*extent, len)));
                    }
                }
                prop_assert_eq!(bitmap.count(), model.len() as u64);
                prop_assert_eq!(bitmap.is_empty(), model.is_empty());
                prop_assert!(bitmap.peek().iter().eq(model.iter().copied()));
                prop_assert_eq!(bitmap.is_set(probe), model.contains(&probe));
                prop_assert_eq!(bitmap.next_in(gap), model.range(gap.start..gap.end()).next().copied());
                let run = model.range(gap.start..gap.end()).next().map(|first| {
                    let count = (*first..gap.end().min(len)).take_while(|block| model.contains(block)).count() as u64;
                    Extent { start: *first, count }
                });
                prop_assert_eq!(bitmap.run_in(gap), run);
            }
        }
    }

    /// Every block is marked once by one thread while others take: it must be in exactly one take.
    #[test]
    fn every_mark_is_in_exactly_one_take() {
        const BLOCKS: u64 = 2 * LEAF_BITS + 77;
        const MARKERS: u64 = 3;
        let bitmap = BlockBitmap::new(BLOCKS);
        let marking = AtomicU64::new(MARKERS);
        let takes = std::thread::scope(|scope| {
            for marker in 0..MARKERS {
                let (bitmap, marking) = (&bitmap, &marking);
                scope.spawn(move || {
                    // Neighbors in a word belong to different markers, so that they meet in every word.
                    for block in (marker..BLOCKS).step_by(MARKERS as usize) {
                        bitmap.mark(Extent { start: block, count: 1 });
                    }
                    marking.fetch_sub(1, SeqCst);
                });
            }
            let takers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        let mut takes = Vec::new();
                        while marking.load(SeqCst) > 0 {
                            takes.extend(bitmap.take().iter());
                        }
                        takes
                    })
                })
                .collect();
            takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect::<Vec<_>>()
        });
        let mut seen: Vec<u64> = takes.into_iter().chain(bitmap.take().iter()).collect();
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..BLOCKS), "a mark was lost or taken twice");
    }

    /// A mark that has returned is in the take that begins next, whatever other markers of the same words are at.
    #[test]
    fn a_finished_mark_is_in_the_next_take() {
        const BLOCKS: u64 = 64;
        let bitmap = BlockBitmap::new(BLOCKS);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    bitmap.mark(Extent { start: 1, count: 1 });
                }
            });
            for _ in 0..20_000 {
                bitmap.mark(Extent { start: 0, count: 1 });
                assert!(bitmap.take().contains(0));
            }
            done.store(true, SeqCst);
        });
    }

    /// Two that clear the same blocks count each block once between them.
    #[test]
    fn clearing_at_once_counts_once() {
        let all = Extent { start: 0, count: LEAF_BITS + 5 };
        let bitmap = BlockBitmap::new(all.count);
        bitmap.mark(all);
        let cleared: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| all.indices().map(|b| bitmap.clear(Extent { start: b, count: 1 })).sum::<u64>())
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(cleared, all.count);
        assert!(bitmap.is_empty());
    }

    #[test]
    fn memory_follows_the_marks() {
        let bitmap = BlockBitmap::new(1 << 28);
        let empty = bitmap.memory_bytes();
        assert!(empty < 256 << 10, "an empty bitmap of 1 TiB occupies {empty} bytes");
        bitmap.mark(Extent { start: 0, count: 1 });
        bitmap.mark(Extent { start: 1 << 27, count: 1 });
        assert_eq!(bitmap.memory_bytes() - empty, 2 * size_of::<Leaf>() as u64);
    }
}
