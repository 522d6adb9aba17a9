//! Counts the guest's writes, for strategies that tell hot blocks from cold ones.

use super::Volume;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{PoisonError, RwLock};
use whimbrel_model::{Block, Extent, WriteCounts};

/// Counters that can be on or off. While they are off a write looks at one flag.
#[derive(Debug, Default)]
pub(super) struct Counters {
    on: AtomicBool,
    counters: RwLock<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    /// Blocks that share a counter.
    stretch: u64,
    counts: Box<[AtomicU32]>,
}

impl Counters {
    /// Counts one write. It may be seen a moment after the write's mark: a count only orders what is sent.
    pub(super) fn count(&self, extent: Extent) {
        if !self.on.load(SeqCst) {
            return;
        }
        let counted = self.counters.read().unwrap_or_else(PoisonError::into_inner);
        for number in WriteCounts::<Block>::stretches(counted.stretch, extent) {
            if let Some(count) = counted.counts.get(number as usize) {
                // It stays at its largest: 4 billion writes are as hot as it gets.
                let _ = count.fetch_update(Relaxed, Relaxed, |n| n.checked_add(1));
            }
        }
    }
}

impl Volume {
    /// Counts the guest's writes from now on, from 0, a counter for each `stretch` of blocks. A write counts once in each
    /// stretch that it touches.
    pub fn begin_counts(&self, stretch: u64) {
        let stretch = stretch.max(1);
        let counts = (0..self.blocks().div_ceil(stretch)).map(|_| AtomicU32::new(0)).collect();
        let mut counters = self.counters.counters.write().unwrap_or_else(PoisonError::into_inner);
        *counters = Counted { stretch, counts };
        self.counters.on.store(true, SeqCst);
    }

    /// The counts; `None` while there are none.
    pub fn write_counts(&self) -> Option<WriteCounts<Block>> {
        let on = self.counters.on.load(SeqCst);
        on.then(|| {
            let counted = self.counters.counters.read().unwrap_or_else(PoisonError::into_inner);
            WriteCounts::new(counted.stretch, counted.counts.iter().map(|n| n.load(Relaxed)).collect())
        })
    }

    /// Counts no more, and frees the counters.
    pub(super) fn end_counts(&self) {
        self.counters.on.store(false, SeqCst);
        *self.counters.counters.write().unwrap_or_else(PoisonError::into_inner) =
            Counted { stretch: 1, ..Counted::default() };
    }
}
