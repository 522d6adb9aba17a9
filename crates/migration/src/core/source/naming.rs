//! Which pages go by the names of disk blocks: what the guest says of them, and what the log of writes to the disk does.

use super::SourceCore;
use crate::core::backed::BackedPages;
use crate::core::{Run, Told};
use whimbrel_model::strategy::Stage;
use whimbrel_model::{Block, Rest, UnitSet};

impl SourceCore {
    pub(super) fn hinted(&mut self, question: u64, Told { free, backed }: Told) {
        let Some(disk) = &self.disk else {
            self.memory.hinted(question, free);
            return;
        };
        // What is mirrored shows in no log.
        let may_name = self.memory.refers() && !self.disk_remains && !disk.needs().mirror;
        if self.memory.hinted(question, free) && may_name {
            let pages = self.memory.total_units();
            self.backed = Some(BackedPages::new(backed, pages, disk.total_units(), disk.unit_bytes()));
        }
    }

    /// A log has shown writes to the disk: pages that went as copies of these blocks go again.
    pub(super) fn unname(&mut self, written: &UnitSet<Block>) {
        let Some(backed) = &mut self.backed else { return };
        let stale = backed.blocks_written(written);
        if stale.is_empty() {
            return;
        }
        self.memory.send_again(&stale);
        if self.switchover.memory_taken && self.memory_rest == Rest::CarryOver {
            self.memory.carry_over();
        }
    }

    /// Says of a job's pages which may go by name.
    pub(super) fn name(&mut self, job: u64, runs: Vec<Run>) -> Vec<Run> {
        let (Some(backed), Some(disk)) = (self.backed.as_mut().filter(|_| self.stage != Stage::Pull), &self.disk)
        else {
            return runs;
        };
        let runs = backed.name(runs, |blocks| disk.has_arrived(blocks));
        if runs.iter().any(|run| run.place.is_some()) {
            let by_content = runs.iter().filter(|run| run.place.is_none());
            self.memory.go_by_name(job, by_content.map(|run| run.extent.count).sum());
        }
        runs
    }
}
