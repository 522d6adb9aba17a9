//! What of a disk the destination has acknowledged, as the source's driver sees it pass: after an attempt that fails the rest
//! is what another has to send.
//!
//! It keeps to the driver's own acts, because the core hears nothing more once it has ended: what was taken from the bitmap
//! for it, or was on its way, would be nowhere.

use crate::core::Run;
use whimbrel_model::{Block, UnitSet};

/// What the destination has not acknowledged.
#[derive(Debug)]
pub(super) struct Acknowledged {
    /// What it lacks, and is not on its way.
    lacking: UnitSet<Block>,
    /// Jobs that are on their way.
    jobs: Vec<(u64, Vec<Run>)>,
}

impl Acknowledged {
    /// Nothing of what it lacks.
    pub(super) fn nothing_of(lacking: UnitSet<Block>) -> Self {
        Acknowledged { lacking, jobs: Vec::new() }
    }

    /// A job is sent: it reads its blocks from now on, so what is written to them meanwhile is in a later take.
    pub(super) fn send(&mut self, job: u64, runs: &[Run]) {
        runs.iter().for_each(|run| self.lacking.remove_extent(run.extent));
        self.jobs.push((job, runs.to_vec()));
    }

    /// All of a job is acknowledged.
    pub(super) fn sent(&mut self, job: u64) {
        self.jobs.retain(|(number, _)| *number != job);
    }

    /// These were written, and taken from the bitmap.
    pub(super) fn take(&mut self, written: &UnitSet<Block>) {
        self.lacking.union(written);
    }

    /// What it has not acknowledged, as it was when the bitmap was taken last.
    pub(super) fn rest(self) -> UnitSet<Block> {
        let mut rest = self.lacking;
        self.jobs.iter().flat_map(|(_, runs)| runs).for_each(|run| rest.insert_extent(run.extent));
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whimbrel_model::Extent;

    fn run(start: u64, count: u64) -> Run {
        Run { extent: Extent { start, count }, again: false, place: None }
    }

    #[test]
    fn what_is_written_while_it_is_on_its_way_is_not_acknowledged() {
        let mut seen = Acknowledged::nothing_of(UnitSet::full(100));
        seen.send(1, &[run(0, 10), run(20, 10)]);
        seen.send(2, &[run(10, 10)]);
        seen.take(&UnitSet::from_extents(100, [Extent { start: 5, count: 1 }]));
        seen.sent(1);
        let expected =
            [Extent { start: 5, count: 1 }, Extent { start: 10, count: 10 }, Extent { start: 30, count: 70 }];
        assert_eq!(seen.rest().extents().collect::<Vec<_>>(), expected);
    }
}
