//! Which pages go to the destination by name, as copies of disk blocks that it has: Jo et al., VEE 2013.
//!
//! The hazard of it: a block may be written after its name has gone and before the destination reads it. So
//!
//! | what happens | what follows |
//! |---|---|
//! | the guest calls a page a copy of blocks | it may go by name once the destination has these, none on its way; the driver compares |
//! | a log shows a write to the page | it is no copy any more |
//! | a log shows a write to one of the blocks | it is none either; and if it went by name, it goes again, by content |
//!
//! Both logs are taken for the last time with the guest paused, before anything is carried over, and a name goes at no later
//! stage: the destination's guest writes to its disk. Writes that are mirrored are in no log, so a disk that is mirrored has no
//! names.

use super::Run;
use whimbrel_model::{Backed, Block, Extent, PAGE_BYTES, Page, UnitSet};

/// The pages that the guest calls copies.
pub(super) struct BackedPages {
    /// In ascending order, none in two.
    runs: Vec<Backed>,
    block_bytes: u64,
    /// Those that are copies still, as far as the logs have shown.
    copies: UnitSet<Page>,
    /// Those of them that have gone by name.
    named: UnitSet<Page>,
}

impl BackedPages {
    /// What a guest of so many pages has said; it may be anything. The blocks are those of a disk of so many.
    pub(super) fn new(mut runs: Vec<Backed>, pages: u64, blocks: u64, block_bytes: u64) -> Self {
        let fits = |run: &Backed| {
            let lies_in_ram = run.pages.start.checked_add(run.pages.count).is_some_and(|end| end <= pages);
            let lies_on_disk = run.end_bytes().is_some_and(|end| end <= blocks * block_bytes);
            run.pages.count > 0 && lies_in_ram && lies_on_disk && run.offset_bytes.is_multiple_of(PAGE_BYTES)
        };
        runs.retain(fits);
        runs.sort_by_key(|run| run.pages.start);
        let mut end = 0;
        runs.retain(|run| {
            let apart = run.pages.start >= end;
            end = end.max(run.pages.end());
            apart
        });
        let copies = UnitSet::from_extents(pages, runs.iter().map(|run| run.pages));
        BackedPages { runs, block_bytes, copies, named: UnitSet::empty(pages) }
    }

    /// Splits what is to be sent: of pages that may go by name the place on the disk is said. `has`: the destination has these
    /// blocks, as they are but for what a log will show.
    pub(super) fn name(&mut self, runs: Vec<Run>, has: impl Fn(Extent) -> bool) -> Vec<Run> {
        let mut split: Vec<Run> = Vec::new();
        for run in runs {
            for page in run.extent.indices() {
                let place = self.place(page).filter(|place| has(self.blocks(*place)));
                if place.is_some() {
                    self.named.insert(page);
                }
                match split.last_mut() {
                    Some(last) if last.goes_on(page, run.again, place) => last.extent.count += 1,
                    _ => split.push(Run { extent: Extent { start: page, count: 1 }, again: run.again, place }),
                }
            }
        }
        split
    }

    /// A log has shown writes to these pages.
    pub(super) fn pages_written(&mut self, written: &UnitSet<Page>) {
        self.copies.subtract(written);
        self.named.subtract(written);
    }

    /// A log has shown writes to these blocks: returns the pages that went by their names.
    pub(super) fn blocks_written(&mut self, written: &UnitSet<Block>) -> UnitSet<Page> {
        let mut stale = UnitSet::empty(self.copies.len());
        if written.is_empty() {
            return stale;
        }
        for run in &self.runs {
            let (first, last) = (run.offset_bytes, run.offset_bytes + (run.pages.count - 1) * PAGE_BYTES);
            let (start, end) = (self.blocks(first).start, self.blocks(last).end());
            if written.count_in(Extent { start, count: end - start }) == 0 {
                continue;
            }
            for page in run.pages.indices().filter(|page| self.copies.contains(*page)) {
                let place = run.offset_bytes + (page - run.pages.start) * PAGE_BYTES;
                if written.count_in(self.blocks(place)) > 0 {
                    stale.insert(page);
                }
            }
        }
        self.copies.subtract(&stale);
        let mut named = stale.clone();
        named.intersect(&self.named);
        self.named.subtract(&stale);
        named
    }

    /// Where on the disk a page lies, if it is a copy.
    fn place(&self, page: u64) -> Option<u64> {
        let run = self.runs.get(self.runs.partition_point(|run| run.pages.start <= page).checked_sub(1)?)?;
        let at = page - run.pages.start;
        (at < run.pages.count && self.copies.contains(page)).then(|| run.offset_bytes + at * PAGE_BYTES)
    }

    /// The blocks in which the page at that byte lies.
    fn blocks(&self, place: u64) -> Extent {
        let (first, last) = (place / self.block_bytes, (place + PAGE_BYTES - 1) / self.block_bytes);
        Extent { start: first, count: last - first + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backed(start: u64, count: u64, offset_bytes: u64) -> Backed {
        Backed { pages: Extent { start, count }, offset_bytes }
    }

    fn places(pages: &mut BackedPages, has: impl Fn(Extent) -> bool) -> Vec<(u64, u64, Option<u64>)> {
        let all = vec![Run { extent: Extent { start: 0, count: 20 }, again: false, place: None }];
        pages.name(all, has).into_iter().map(|run| (run.extent.start, run.extent.count, run.place)).collect()
    }

    #[test]
    fn a_page_goes_by_name_where_its_blocks_are_and_again_where_they_are_written() {
        // Two pages a block.
        let mut pages = BackedPages::new(vec![backed(8, 4, 4096), backed(2, 1, 40960)], 20, 10, 8192);
        let without_five = |blocks: Extent| !blocks.indices().any(|block| block == 5);
        assert_eq!(places(&mut pages, without_five), [(0, 8, None), (8, 4, Some(4096)), (12, 8, None)]);
        pages.pages_written(&UnitSet::from_extents(20, [Extent { start: 9, count: 1 }]));
        // Of block 1, pages 9 and 10 are copies; the one that was written goes again as what is written does.
        let stale = pages
            .blocks_written(&UnitSet::from_extents(10, [Extent { start: 1, count: 1 }, Extent { start: 5, count: 1 }]));
        assert_eq!(stale.iter().collect::<Vec<_>>(), [10]);
        let left = [(0, 8, None), (8, 1, Some(4096)), (9, 2, None), (11, 1, Some(16384)), (12, 8, None)];
        assert_eq!(places(&mut pages, |_| true), left);
    }

    #[test]
    fn what_a_guest_says_that_can_not_be_is_left_out() {
        let said = vec![
            backed(18, 3, 0),
            backed(u64::MAX, 2, 0),
            backed(0, 1, 512),
            backed(0, 1, 10 * 4096),
            backed(4, u64::MAX / 8192, 4096),
            backed(5, 3, 0),
            backed(6, 4, 0),
        ];
        let mut pages = BackedPages::new(said, 20, 10, 4096);
        assert_eq!(places(&mut pages, |_| true), [(0, 5, None), (5, 3, Some(0)), (8, 12, None)]);
    }
}
