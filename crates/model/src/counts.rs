//! How often a guest wrote where: counters over stretches of units.

use crate::set::Extent;
use crate::units::Unit;
use std::marker::PhantomData;

/// Write counts since the migration was requested, one for each stretch of so many units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteCounts<U> {
    stretch: u64,
    counts: Vec<u32>,
    unit: PhantomData<U>,
}

impl<U: Unit> WriteCounts<U> {
    /// These counts, the first of the units from 0 on. A stretch of no units counts as one unit.
    pub fn new(stretch: u64, counts: Vec<u32>) -> Self {
        WriteCounts { stretch: stretch.max(1), counts, unit: PhantomData }
    }

    /// Units that share a counter.
    pub fn stretch(&self) -> u64 {
        self.stretch
    }

    /// The writes to the stretch of that number; 0 beyond the end.
    pub fn of_stretch(&self, number: u64) -> u32 {
        usize::try_from(number).ok().and_then(|at| self.counts.get(at)).copied().unwrap_or(0)
    }

    /// The numbers of the stretches that an extent touches.
    pub fn stretches(stretch: u64, extent: Extent) -> std::ops::Range<u64> {
        extent.start / stretch..extent.end().div_ceil(stretch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Block;

    #[test]
    fn units_share_the_counter_of_their_stretch() {
        let counts = WriteCounts::<Block>::new(4, vec![1, 0, 7]);
        assert_eq!((0..5).map(|n| counts.of_stretch(n)).collect::<Vec<_>>(), [1, 0, 7, 0, 0]);
        assert_eq!(counts.of_stretch(u64::MAX), 0);
        assert_eq!(WriteCounts::<Block>::stretches(4, Extent { start: 3, count: 2 }), 0..2);
        assert_eq!(WriteCounts::<Block>::stretches(4, Extent { start: 8, count: 4 }), 2..3);
        assert_eq!(WriteCounts::<Block>::new(0, vec![5]).stretch(), 1);
    }
}
