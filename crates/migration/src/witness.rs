//! All of a guest's RAM, source against destination, at the switchover: for guests of whose RAM the twin knows a part only.
//!
//! The destination's writes are logged from before the first page comes, so that no downtime is spent on it. Where all
//! pages were carried over, a page that was not written since must be what the frozen source holds. The hashes are made
//! after the measured windows. A page that was written since is left out, and counted: of the workload's the twin knows
//! what they must hold.

use crate::driver::DriverError;
use sha2::{Digest, Sha256};
use whimbrel_machine::{Verdict, Verification};
use whimbrel_memory::dirty_logs::DIRTY_LOGS;
use whimbrel_memory::{DirtyLog, GuestRam};
use whimbrel_model::{Extent, PAGE_BYTES, Page, UnitSet};

/// Pages whose hashes one answer holds: 256 MiB of RAM in less than 2 MiB of JSON.
pub(crate) const PAGES_AT_ONCE: u64 = 1 << 16;

/// Sees what is written at the destination.
pub struct Witness {
    log: Box<dyn DirtyLog>,
    written: Option<UnitSet<Page>>,
}

impl Witness {
    /// From now on every write is seen.
    ///
    /// # Errors
    /// The kernel lacks what that needs.
    pub(crate) fn begin(ram: &std::sync::Arc<GuestRam>) -> Result<Self, DriverError> {
        let mut log = (DIRTY_LOGS.entries[0].build)(ram)?;
        log.arm()?;
        Ok(Witness { log, written: None })
    }

    /// What was written up to the first call, with which the log ends. The guest must be paused.
    pub(crate) fn written(&mut self) -> Result<&UnitSet<Page>, DriverError> {
        if self.written.is_none() {
            self.written = Some(self.log.take()?);
            self.log.disarm()?;
        }
        Ok(self.written.as_ref().expect("it was set above"))
    }

    /// Sees nothing any more.
    pub(crate) fn end(mut self) -> Result<(), DriverError> {
        Ok(self.log.disarm()?)
    }
}

/// The hashes of these pages as the host sees them.
pub(crate) fn hashes(ram: &GuestRam, pages: Extent) -> Vec<u64> {
    let mut content = [0; PAGE_BYTES as usize];
    let hash = |page| {
        ram.read_page(page, &mut content);
        let digest = Sha256::digest(content);
        u64::from_le_bytes(digest[..8].try_into().expect("eight bytes of thirty-two"))
    };
    (pages.start..pages.end().min(ram.pages())).map(hash).collect()
}

/// What is found of all RAM, piece by piece.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    equal: u64,
    left_out: u64,
    different: u64,
    first: Option<u64>,
}

impl Comparison {
    /// Adds the pages from `start` on; of those in `left_out` nothing is said.
    pub(crate) fn add(&mut self, start: u64, source: &[u64], destination: &[u64], left_out: &[(u64, u64)]) {
        let out = |page: u64| left_out.iter().any(|(first, count)| (*first..first + count).contains(&page));
        for offset in 0..source.len().max(destination.len()) {
            let page = start + offset as u64;
            // A page that one side lacks differs.
            let same = source.get(offset).is_some() && source.get(offset) == destination.get(offset);
            match (same, same || !out(page)) {
                (_, false) => self.left_out += 1,
                (true, true) => self.equal += 1,
                (false, true) => {
                    self.different += 1;
                    self.first.get_or_insert(page);
                }
            }
        }
    }

    /// The word on it.
    pub(crate) fn word(&self, operations: Vec<u64>) -> Verification {
        let (equal, out, different) = (self.equal, self.left_out, self.different);
        let found = |page| format!("page {page} of RAM is not what the frozen source holds, {different} pages in all");
        let left = format!("{out} that were written at the destination since are left out");
        Verification {
            memory: if different > 0 { Verdict::Different } else { Verdict::Equal },
            disk: Verdict::Skipped,
            scope: format!("all RAM, source to destination at the switchover: {} pages, {left}", equal + different),
            compared: equal + different,
            excluded: out,
            operations,
            first_difference: self.first.map(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_differs_and_was_not_written_since_is_found() {
        let mut all = Comparison::default();
        all.add(0, &[1, 2, 3], &[1, 9, 3], &[(1, 1)]);
        all.add(3, &[4, 5], &[4, 5], &[(3, 2)]);
        let word = all.word(vec![7]);
        assert_eq!((word.memory, word.compared, word.excluded), (Verdict::Equal, 4, 1), "{}", word.scope);
        all.add(5, &[6, 7, 8], &[6, 0, 0], &[(7, 1)]);
        let word = all.word(vec![7]);
        assert_eq!((word.memory, word.compared, word.excluded), (Verdict::Different, 6, 2));
        assert!(
            word.first_difference.unwrap().starts_with("page 6 of RAM is not what the frozen source holds, 1 pages")
        );
        all.add(8, &[1, 2], &[1], &[]);
        assert_eq!(all.different, 2, "a page that one side lacks differs");
    }

    #[test]
    fn a_witness_sees_what_is_written_by_the_guest_and_not_what_arrives() {
        let ram = GuestRam::create(16 * PAGE_BYTES).unwrap();
        ram.populate().unwrap();
        let mut witness = match Witness::begin(&ram) {
            Ok(witness) => witness,
            Err(error) => return eprintln!("SKIPPED: a_witness_sees: {error}"),
        };
        ram.write_page(3, &[7; PAGE_BYTES as usize]);
        ram.guest_page(5)[0].store(1, std::sync::atomic::Ordering::Relaxed);
        let written: Vec<u64> = witness.written().unwrap().iter().collect();
        assert_eq!(written, [5]);
        let hashes = hashes(&ram, Extent { start: 2, count: 4 });
        assert!(hashes[0] == hashes[2] && hashes[1] != hashes[0] && hashes[3] != hashes[0]);
    }
}
