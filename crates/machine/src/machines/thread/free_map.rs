//! Which pages the vCPUs have freed, for who asks while they run. Each vCPU's own mask is its thread's alone.
//!
//! | operation | order |
//! |---|---|
//! | Free | the last access, then the bit is set |
//! | Allocate | the bit is cleared, then the page is written |
//!
//! So a bit that is seen set says that the page's next write has not happened yet: a dirty log that was last taken before
//! the look will show it ([`crate::Hints`]).

use std::sync::atomic::{AtomicU64, Ordering};
use whimbrel_model::{Page, UnitSet};

/// One bit a page.
pub(super) struct FreeMap {
    words: Box<[AtomicU64]>,
}

impl FreeMap {
    /// None of so many pages is free.
    pub(super) fn new(pages: u64) -> Self {
        FreeMap { words: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The page was freed.
    pub(super) fn insert(&self, page: u64) {
        self.words[(page / 64) as usize].fetch_or(1 << (page % 64), Ordering::SeqCst);
    }

    /// The page is about to be written.
    pub(super) fn remove(&self, page: u64) {
        self.words[(page / 64) as usize].fetch_and(!(1 << (page % 64)), Ordering::SeqCst);
    }

    /// Exactly these pages are free. Nobody may execute meanwhile.
    pub(super) fn set(&self, free: &UnitSet<Page>) {
        for (index, word) in (0..).zip(&self.words) {
            word.store(free.word(index), Ordering::SeqCst);
        }
    }

    /// The free pages, as pages of a RAM of `pages`.
    pub(super) fn within(&self, pages: u64) -> UnitSet<Page> {
        let mut free = UnitSet::empty(pages);
        for (index, word) in (0..).zip(&self.words) {
            free.insert_word(index, word.load(Ordering::SeqCst));
        }
        free
    }
}
