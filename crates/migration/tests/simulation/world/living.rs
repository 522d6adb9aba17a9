//! What the guest does, wherever it runs: it writes, waits for what is missing, frees pages, and says which are free.

use super::{BLOCK_BYTES, BLOCKS, PAGES, World};
use crate::faults::Fault;
use crate::happening::{Happening, Lane};
use whimbrel_migration::core::{DestinationInput, SourceInput, Told};
use whimbrel_model::{Family, Mirroring, Page, UnitSet};

impl World {
    /// One write of the guest, wherever it runs; at the destination it may have to wait for what is missing.
    pub(super) fn guest(&mut self) {
        if self.source_ending.is_some() && self.destination_ending.is_some() {
            return;
        }
        let pause = self.write_every.0.max(1000);
        let next = pause / 2 + self.rng.below(pause);
        self.after(next, Happening::Guest);
        if self.waits_for_page.is_some() || self.waits_for_block.is_some() || self.now < self.mirrored {
            return;
        }
        if (self.runs_at_source || self.runs_at_destination) && self.rng.chance(0.3) {
            return self.free_or_take();
        }
        let on_disk = self.blocks.is_some() && self.rng.chance(0.3);
        let unit = if on_disk { self.rng.below(BLOCKS) } else { self.rng.below(PAGES) };
        if self.runs_at_source {
            match (&mut self.blocks, on_disk) {
                (Some(blocks), true) => {
                    blocks.write_at_source(unit);
                    if let (Some((_, copied)), false) = (&mut self.mirror, self.lanes_up) {
                        copied.remove(unit);
                    }
                    if let Some((mirroring, copied)) = self.mirror.as_mut().filter(|_| self.lanes_up) {
                        // Its lane is the pushes' lane: what is read later arrives later.
                        blocks.written.remove(unit);
                        if *mirroring == Mirroring::All || copied.contains(unit) {
                            copied.insert(unit);
                            let units = vec![(unit, blocks.source[unit as usize])];
                            let at = self.through(Lane::Disk, BLOCK_BYTES, None).plus(self.delay);
                            self.schedule(at, Happening::Arrives { family: Family::Disk, units, acknowledge: None });
                            self.mirrored = at.plus(self.delay);
                        }
                    }
                    if let Some((stretch, counts)) = &mut self.counts {
                        counts[(unit / *stretch) as usize] += 1;
                    }
                }
                _ => self.pages.write_at_source(unit),
            }
        } else if self.runs_at_destination {
            self.access_at_destination(unit, on_disk);
        }
    }

    fn access_at_destination(&mut self, unit: u64, on_disk: bool) {
        if on_disk {
            let Some(blocks) = &mut self.blocks else { return };
            if self.remains {
                // Every request crosses; while the link is down none is answered.
                if self.link_up {
                    blocks.write_at_source(unit);
                }
            } else if blocks.missing.contains(unit) {
                self.waits_for_block = Some(unit);
                let ns = self.delay.0;
                self.after(ns, Happening::Pulls { block: unit });
            } else {
                blocks.write_at_destination(unit);
            }
        } else if self.pages.missing.contains(unit) {
            self.waits_for_page = Some(unit);
            self.tell_destination(DestinationInput::Fault(vec![unit]));
        } else {
            self.pages.write_at_destination(unit);
        }
    }

    pub(super) fn wake(&mut self) {
        if let Some(page) = self.waits_for_page.filter(|p| !self.pages.missing.contains(*p)) {
            self.waits_for_page = None;
            self.pages.write_at_destination(page);
        }
        if let (Some(block), Some(blocks)) = (self.waits_for_block, &mut self.blocks)
            && !blocks.missing.contains(block)
        {
            self.waits_for_block = None;
            blocks.write_at_destination(block);
        }
    }

    /// The guest frees a page, or takes a free one, which it will write later. Either may be one that has not come yet.
    fn free_or_take(&mut self) {
        let page = self.rng.below(PAGES);
        match self.pages.free.next(page) {
            Some(free) if self.rng.chance(0.3) => self.pages.take_into_use(free),
            _ => self.pages.free(page),
        }
    }

    /// The guest looks which of its pages are free, one half after the other; meanwhile it runs on, or is paused and does not
    /// answer.
    pub(super) fn look(&mut self, question: u64, seen: Option<UnitSet<Page>>) {
        if !self.runs_at_source {
            return;
        }
        let (first, count) = if seen.is_none() { (0, PAGES / 2) } else { (PAGES / 2, PAGES - PAGES / 2) };
        let all = self.fault == Fault::CallsAllFree;
        let mut free = seen.clone().unwrap_or_else(|| UnitSet::empty(PAGES));
        (first..first + count).filter(|page| all || self.pages.free.contains(*page)).for_each(|page| {
            free.insert(page);
        });
        // As fast as a thread machine, or slower than a round.
        let ns = self.rng.below(100_000) << self.rng.below(10);
        let then = match seen {
            None => Happening::Looks { question, seen: Some(free) },
            Some(_) => {
                let knows = self.fault != Fault::KnowsNothing;
                let told = Told { free, backed: self.copies.clone() };
                let told = if knows { Ok(told) } else { Err("it was told to poison what is free".to_owned()) };
                Happening::Source(SourceInput::Hinted { question, told })
            }
        };
        self.after(ns, then);
    }
}
