//! All of a guest's RAM, source against destination, at the switchover: for guests of whose RAM the twin knows a part only,
//! or nothing, because their user brought them. Of those the disk too.
//!
//! The destination's writes are logged from before the first page comes, so that no downtime is spent on it. A page that
//! was not written since, carried over or left behind, must be what the frozen source holds. The hashes are made after the
//! measured windows; within them the log costs the guest a fault for the first write to each page. A page that was written since is left out, and counted: of the workload's the twin knows
//! what they must hold. Blocks are compared likewise: a volume knows what was written since the guest came.

use crate::driver::DriverError;
use sha2::{Digest, Sha256};
use std::io;
use whimbrel_disk::Volume;
use whimbrel_machine::{Verdict, Verification};
use whimbrel_memory::dirty_logs::DIRTY_LOGS;
use whimbrel_memory::{DirtyLog, GuestRam};
use whimbrel_model::{Extent, Family, PAGE_BYTES, Page, UnitSet};

/// Pages or blocks whose hashes one answer holds: 256 MiB of RAM in less than 2 MiB of JSON.
pub(crate) const HASHES_AT_ONCE: u64 = 1 << 16;

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
        digest(&content)
    };
    (pages.start..pages.end().min(ram.pages())).map(hash).collect()
}

/// The hashes of these blocks of the image.
///
/// # Errors
/// The host's I/O failed.
pub(crate) fn block_hashes(volume: &Volume, blocks: Extent) -> io::Result<Vec<u64>> {
    let blocks = Extent { start: blocks.start, count: blocks.end().min(volume.blocks()).saturating_sub(blocks.start) };
    let mut content = vec![0; volume.block_bytes() as usize];
    let mut hashes = vec![digest(&content); blocks.count as usize];
    for run in volume.data_extents(blocks)? {
        for block in run.indices() {
            volume.read_blocks(Extent { start: block, count: 1 }, &mut content)?;
            hashes[(block - blocks.start) as usize] = digest(&content);
        }
    }
    Ok(hashes)
}

fn digest(content: &[u8]) -> u64 {
    let digest = Sha256::digest(content);
    u64::from_le_bytes(digest[..8].try_into().expect("eight bytes of thirty-two"))
}

/// Units of which nothing can be said, as ascending runs: the first and how many.
pub(crate) struct LeftOut<'a> {
    /// They were written at the destination since.
    pub(crate) written: &'a [(u64, u64)],
    /// The source has not sent them.
    pub(crate) not_sent: &'a [(u64, u64)],
}

/// What is found of all RAM, or of all blocks, piece by piece.
#[derive(Debug)]
pub(crate) struct Comparison {
    family: Family,
    equal: u64,
    /// Units that differ and were written at the destination since.
    written: u64,
    /// Units that were never sent, whatever they hold.
    not_sent: u64,
    different: u64,
    first: Option<u64>,
}

impl Comparison {
    /// Of pages or of blocks.
    pub(crate) fn of(family: Family) -> Self {
        Comparison { family, equal: 0, written: 0, not_sent: 0, different: 0, first: None }
    }

    /// Adds the units from `start` on. Nothing is said of those that were never sent, for they were nobody's, and of those that
    /// differ and were written at the destination since.
    pub(crate) fn add(&mut self, start: u64, source: &[u64], destination: &[u64], left_out: &LeftOut<'_>) {
        // Runs ascend.
        let out = |page: u64, runs: &[(u64, u64)]| {
            let next = runs.partition_point(|(first, count)| first.saturating_add(*count) <= page);
            runs.get(next).is_some_and(|(first, _)| *first <= page)
        };
        for offset in 0..source.len().max(destination.len()) {
            let page = start + offset as u64;
            // What one side lacks differs.
            let same = source.get(offset).is_some() && source.get(offset) == destination.get(offset);
            if out(page, left_out.not_sent) {
                self.not_sent += 1;
            } else if same {
                self.equal += 1;
            } else if out(page, left_out.written) {
                self.written += 1;
            } else {
                self.different += 1;
                self.first.get_or_insert(page);
            }
        }
    }

    /// The word on it.
    pub(crate) fn word(&self) -> Verification {
        let Comparison { equal, written, not_sent, different, .. } = *self;
        let (unit, whole) = match self.family {
            Family::Memory => ("page", "RAM"),
            Family::Disk => ("block", "the disk"),
        };
        let found = |first| {
            format!("{unit} {first} of {whole} is not what the frozen source holds, {different} {unit}s in all")
        };
        let nobodys = match not_sent {
            0 => String::new(),
            _ => format!(", and {not_sent} that were free at the pause and not sent"),
        };
        let left = format!("{written} that were written at the destination since{nobodys} are left out");
        let compared = equal + different;
        let mut word = Verification::skipped(format!(
            "all {}, source to destination at the switchover: {compared} {unit}s, {left}",
            whole.trim_start_matches("the ")
        ));
        let verdict = match (compared, different) {
            (0, _) => Verdict::Skipped,
            (_, 0) => Verdict::Equal,
            _ => Verdict::Different,
        };
        match self.family {
            Family::Memory => word.memory = verdict,
            Family::Disk => word.disk = verdict,
        }
        Verification { compared, excluded: written + not_sent, first_difference: self.first.map(found), ..word }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn out<'a>(written: &'a [(u64, u64)], not_sent: &'a [(u64, u64)]) -> LeftOut<'a> {
        LeftOut { written, not_sent }
    }

    #[test]
    fn a_page_that_differs_and_was_not_written_since_is_found() {
        let mut all = Comparison::of(Family::Memory);
        all.add(0, &[1, 2, 3], &[1, 9, 3], &out(&[(1, 1)], &[]));
        all.add(3, &[4, 5], &[4, 5], &out(&[(3, 2)], &[]));
        let word = all.word();
        assert_eq!((word.memory, word.compared, word.excluded), (Verdict::Equal, 4, 1), "{}", word.scope);
        all.add(5, &[6, 7, 8], &[6, 0, 0], &out(&[(7, 1)], &[]));
        let word = all.word();
        assert_eq!((word.memory, word.compared, word.excluded), (Verdict::Different, 6, 2));
        assert!(
            word.first_difference.unwrap().starts_with("page 6 of RAM is not what the frozen source holds, 1 pages")
        );
        all.add(8, &[1, 2], &[1], &out(&[], &[]));
        assert_eq!(all.different, 2, "a page that one side lacks differs");
        all.add(10, &[1, 2, 3], &[0, 0, 3], &out(&[], &[(10, 3)]));
        let word = all.word();
        assert_eq!(
            (all.different, word.excluded),
            (2, 5),
            "what was not sent is not compared, also where it is the same"
        );
        let scope = "2 that were written at the destination since, and 3 that were free at the pause and not sent";
        assert!(word.scope.contains(scope), "{}", word.scope);
    }

    #[test]
    fn where_all_is_left_out_nothing_is_called_equal() {
        for family in [Family::Memory, Family::Disk] {
            let nothing = Comparison::of(family).word();
            assert_eq!((nothing.memory, nothing.disk), (Verdict::Skipped, Verdict::Skipped));
            let mut all = Comparison::of(family);
            all.add(0, &[1, 2, 3], &[4, 5, 6], &out(&[(0, 3)], &[]));
            let word = all.word();
            assert_eq!((word.memory, word.disk), (Verdict::Skipped, Verdict::Skipped), "{}", word.scope);
            assert_eq!((word.compared, word.excluded), (0, 3));
        }
    }

    #[test]
    fn blocks_of_an_image_are_hashed_and_holes_are_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let volumes = ["a", "b"].map(|name| Volume::create(folder.path().join(name), 1 << 20, 4096).unwrap());
        for volume in &volumes {
            volume.receive(3 * 4096, &[7; 4096]).unwrap();
        }
        // Zeros are zeros, written or not.
        volumes[1].receive(9 * 4096, &[0; 4096]).unwrap();
        volumes[1].receive(200 * 4096, &[1; 4096]).unwrap();
        let hashes = volumes.map(|volume| block_hashes(&volume, Extent { start: 2, count: 65_536 }).unwrap());
        assert_eq!((hashes[0].len(), hashes[1].len()), (254, 254));
        let mut all = Comparison::of(Family::Disk);
        all.add(2, &hashes[0], &hashes[1], &out(&[], &[]));
        let word = all.word();
        assert_eq!((word.memory, word.disk, word.compared), (Verdict::Skipped, Verdict::Different, 254));
        assert!(word.first_difference.unwrap().starts_with("block 200 of the disk is not what"));
    }

    #[test]
    fn a_witness_sees_what_is_written_by_the_guest_and_not_what_arrives() {
        let ram = GuestRam::create(16 * PAGE_BYTES).unwrap();
        ram.populate().unwrap();
        let mut witness = match Witness::begin(&ram) {
            Ok(witness) => witness,
            Err(error) => return drop(writeln!(std::io::stderr(), "SKIPPED: a_witness_sees: {error}")),
        };
        ram.write_page(3, &[7; PAGE_BYTES as usize]);
        ram.guest_page(5)[0].store(1, std::sync::atomic::Ordering::Relaxed);
        let written: Vec<u64> = witness.written().unwrap().iter().collect();
        assert_eq!(written, [5]);
        let hashes = hashes(&ram, Extent { start: 2, count: 4 });
        assert!(hashes[0] == hashes[2] && hashes[1] != hashes[0] && hashes[3] != hashes[0]);
    }
}
