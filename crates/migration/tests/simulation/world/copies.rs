//! Pages that are copies of blocks: the same content has the same number, of pages and of blocks.

use super::{BLOCK_BYTES, BLOCKS, PAGES, World};
use crate::guest::Units;
use whimbrel_migration::core::Run;
use whimbrel_model::{Backed, Block, Page, Rng};

/// Makes some pages copies of blocks. Returns what the guest will say of its pages: those, and some that are none.
pub(super) fn some_copies(pages: &mut Units<Page>, blocks: &Units<Block>, rng: &mut Rng) -> Vec<Backed> {
    let mut pairs = Vec::new();
    for page in 0..PAGES {
        let block = page % BLOCKS;
        if rng.chance(0.5) {
            let content = blocks.source[block as usize];
            (pages.truth[page as usize], pages.source[page as usize]) = (content, content);
        } else if rng.chance(0.8) {
            continue;
        }
        pairs.push((page, block * BLOCK_BYTES));
    }
    Backed::runs(pairs)
}

impl World {
    /// Takes out of the units of a job, which are read now, those that are copies of a block; with the block, then.
    pub(super) fn by_name(&self, runs: &[Run], units: &mut Vec<(u64, u32)>) -> Vec<(u64, u64)> {
        let Some(blocks) = &self.blocks else { return Vec::new() };
        let mut names = Vec::new();
        for run in runs {
            let Some(place) = run.place else { continue };
            for (at, page) in (0..).zip(run.extent.indices()) {
                let block = place / BLOCK_BYTES + at;
                if self.pages.source[page as usize] == blocks.source[block as usize] {
                    units.retain(|(unit, _)| *unit != page);
                    names.push((page, block));
                }
            }
        }
        names
    }

    /// Pages that come by name are what the destination's disk holds now.
    pub(super) fn named(&mut self, names: &[(u64, u64)]) {
        let Some(blocks) = self.blocks.as_ref().filter(|_| self.lanes_up) else { return };
        assert!(!self.guarded, "a name comes when the destination's guest may have written to its disk");
        for &(page, block) in names {
            self.pages.destination[page as usize] = blocks.destination[block as usize];
        }
        self.names += names.len() as u64;
    }

    /// Pages that have come by name.
    pub fn names(&self) -> u64 {
        self.names
    }
}
