//! Pages that the host wrote into guest RAM itself, so that the dirty log can report them.
//!
//! A dirty log sees only writes through the guest's own mapping. Whatever the host writes behind it (disk reads, rings)
//! is marked here. One bit a page in atomic words, many writers at once:
//!
//! | word | `insert` | `take_into` |
//! |---|---|---|
//! | zero | becomes nonzero by an atomic OR | is passed over with a plain load |
//! | nonzero | gains a bit | is swapped for zero; each bit goes to exactly one taker |

use std::sync::atomic::{AtomicU64, Ordering};
use whimbrel_model::{Extent, Page, UnitSet};

/// A lock-free bitmap of the pages that the host wrote.
#[derive(Debug)]
pub struct HostMarks {
    words: Box<[AtomicU64]>,
    pages: u64,
}

impl HostMarks {
    /// No page of `0..pages` is marked.
    pub fn new(pages: u64) -> Self {
        HostMarks { words: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(), pages }
    }

    /// Marks a page, *after* it was written: a mark that comes first could be taken before the write and so be lost.
    /// A page beyond the RAM is ignored.
    pub fn insert(&self, page: u64) {
        if page < self.pages {
            self.words[(page / 64) as usize].fetch_or(1 << (page % 64), Ordering::AcqRel);
        }
    }

    /// Marks a run of pages, after they were written. What lies beyond the RAM is ignored.
    pub fn insert_extent(&self, extent: Extent) {
        let end = extent.start.saturating_add(extent.count).min(self.pages);
        for_words(extent.start, end, |word, bits| {
            self.words[word].fetch_or(bits, Ordering::AcqRel);
        });
    }

    /// Moves all marks into `set`.
    pub(crate) fn take_into(&self, set: &mut UnitSet<Page>) {
        for (index, word) in (0..).zip(&self.words) {
            if word.load(Ordering::Relaxed) != 0 {
                set.insert_word(index, word.swap(0, Ordering::AcqRel));
            }
        }
    }

    /// Copies all marks into `set`.
    pub(crate) fn peek_into(&self, set: &mut UnitSet<Page>) {
        for (index, word) in (0..).zip(&self.words) {
            set.insert_word(index, word.load(Ordering::Acquire));
        }
    }

    /// Forgets all marks.
    pub(crate) fn clear(&self) {
        for word in &self.words {
            word.store(0, Ordering::Release);
        }
    }
}

/// Calls `each` with every word that the pages `start..end` touch, and the bits of it.
fn for_words(start: u64, end: u64, mut each: impl FnMut(usize, u64)) {
    let mut at = start;
    while at < end {
        let next = (at / 64 + 1) * 64;
        let stop = next.min(end);
        let bits = (u64::MAX >> (64 - (stop - at))) << (at % 64);
        each((at / 64) as usize, bits);
        at = stop;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn taken(marks: &HostMarks, pages: u64) -> BTreeSet<u64> {
        let mut set = UnitSet::empty(pages);
        marks.take_into(&mut set);
        set.iter().collect()
    }

    proptest! {
        #[test]
        fn what_is_marked_is_taken_once(pages in 1u64..400, runs in prop::collection::vec((0u64..400, 0u64..200), 0..8)) {
            let marks = HostMarks::new(pages);
            let mut expected = BTreeSet::new();
            for (start, count) in runs {
                marks.insert_extent(Extent { start, count });
                marks.insert(start);
                expected.extend((start..start + count.max(1)).filter(|p| *p < pages));
            }
            prop_assert_eq!(taken(&marks, pages), expected);
            prop_assert!(taken(&marks, pages).is_empty());
        }
    }

    #[test]
    fn no_mark_is_lost_between_markers_and_a_taker() {
        let (pages, marks) = (1000, HostMarks::new(1000));
        let mut seen = vec![0u32; 1000];
        std::thread::scope(|scope| {
            let markers: Vec<_> = (0..3)
                .map(|part| {
                    scope.spawn({
                        let marks = &marks;
                        move || (part..pages).step_by(3).for_each(|p| marks.insert(p))
                    })
                })
                .collect();
            while !markers.iter().all(|m| m.is_finished()) {
                taken(&marks, pages).iter().for_each(|p| seen[*p as usize] += 1);
            }
        });
        taken(&marks, pages).iter().for_each(|p| seen[*p as usize] += 1);
        assert!(seen.iter().all(|count| *count == 1), "each mark goes to exactly one taker");
    }
}
