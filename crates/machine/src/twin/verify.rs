//! The comparison of a guest with its twin, and what it says.

use super::Twin;
use super::follow::TwinVcpu;
use super::image::{PageBuffer, UnitBuffer};
use crate::error::MachineError;
use crate::fill::{page_content, unit_content};
use crate::saved::{SavedState, SavedVcpu};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io;
use whimbrel_memory::GuestRam;
use whimbrel_model::content::UNIT_BYTES;
use whimbrel_model::op::SECTOR_BYTES;
use whimbrel_model::units::PAGE_BYTES;
use whimbrel_model::{Page, UnitSet};

/// Units of the disk that are read at a time.
const CHUNK_UNITS: u64 = 256;

/// What a comparison found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It was not compared; the scope says why.
    Skipped,
    /// Everything that was compared is equal.
    Equal,
    /// Something differs; the first difference says what.
    Different,
}

/// A row's `verify`: what was compared, and what was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Pages, and with them the vCPUs: digests, counters, generators and masks.
    pub memory: Verdict,
    /// Blocks of 4 KiB.
    pub disk: Verdict,
    /// What was compared, in words.
    pub scope: String,
    /// How many pages and blocks were compared.
    pub compared: u64,
    /// How many pages were not, because the twin has them freed.
    pub excluded: u64,
    /// The operations after which it was compared, one count a vCPU.
    pub operations: Vec<u64>,
    /// The first difference: where, and what was expected and found.
    pub first_difference: Option<String>,
}

impl Verification {
    /// Nothing was compared, and why.
    pub fn skipped(why: impl Into<String>) -> Self {
        Verification {
            memory: Verdict::Skipped,
            disk: Verdict::Skipped,
            scope: why.into(),
            compared: 0,
            excluded: 0,
            operations: Vec::new(),
            first_difference: None,
        }
    }

    /// Whether nothing differs.
    pub fn is_good(&self) -> bool {
        self.memory != Verdict::Different && self.disk != Verdict::Different
    }

    /// This check and a later one as one: the worse verdicts, the first difference, both scopes, the later operations.
    #[must_use]
    pub fn and(self, later: Verification) -> Verification {
        Verification {
            memory: self.memory.max(later.memory),
            disk: self.disk.max(later.disk),
            scope: format!("{}; {}", self.scope, later.scope),
            compared: self.compared + later.compared,
            excluded: self.excluded + later.excluded,
            operations: if later.operations.is_empty() { self.operations } else { later.operations },
            first_difference: self.first_difference.or(later.first_difference),
        }
    }
}

/// The workload's pages as they lie in a guest's RAM.
#[derive(Clone, Copy, Debug)]
pub struct GuestPages<'a> {
    /// The RAM, read by the host's mapping.
    pub ram: &'a GuestRam,
    /// The page of RAM in which each page of the workload lies; `None`: the first in the first, and so on.
    pub frames: Option<&'a [u64]>,
}

impl<'a> From<&'a GuestRam> for GuestPages<'a> {
    fn from(ram: &'a GuestRam) -> Self {
        GuestPages { ram, frames: None }
    }
}

impl GuestPages<'_> {
    /// Whether so many pages have a place in RAM each.
    fn check(&self, pages: u64) -> Result<(), MachineError> {
        let frames = self.frames.unwrap_or_default();
        let fits = match self.frames {
            None => pages <= self.ram.pages(),
            Some(_) => frames.len() as u64 == pages && frames.iter().all(|frame| *frame < self.ram.pages()),
        };
        if fits { Ok(()) } else { Err(MachineError::State("a page of the workload lies outside RAM".to_owned())) }
    }

    fn read(&self, page: u64, into: &mut PageBuffer) {
        self.ram.read_page(self.frames.map_or(page, |frames| frames[page as usize]), into);
    }
}

/// Reads a disk's bytes from an offset on.
pub type ReadDisk<'a> = &'a dyn Fn(u64, &mut [u8]) -> io::Result<()>;

impl Twin {
    /// Advances to where the guest is and compares: its device state, its pages by the host's mapping, and its disk if it is
    /// given. `state` may come from anywhere.
    ///
    /// # Errors
    /// `state` is no device state, or lies behind the twin; a page has no place in RAM; the disk can't be read.
    pub fn check(
        &mut self,
        state: &[u8],
        pages: GuestPages<'_>,
        disk: Option<ReadDisk<'_>>,
    ) -> Result<Verification, MachineError> {
        let saved = SavedState::from_bytes(state, &self.shape)?;
        self.advance(&saved.operations())?;
        self.compare(&saved, pages, disk)
    }

    /// Compares with a guest that is where the twin is.
    ///
    /// # Errors
    /// A page has no place in RAM; the disk can't be read.
    pub fn compare(
        &self,
        state: &SavedState,
        pages: GuestPages<'_>,
        disk: Option<ReadDisk<'_>>,
    ) -> Result<Verification, MachineError> {
        pages.check(self.shape.pages)?;
        let (pages, excluded, page_difference) = self.compare_memory(pages);
        let (blocks, block_difference) = match disk {
            Some(read) => self.compare_disk(read)?,
            None => (0, None),
        };
        let vcpu_difference = self.compare_vcpus(state);
        let verdict = |differs: bool| if differs { Verdict::Different } else { Verdict::Equal };
        let disk_scope = if disk.is_some() { format!("{blocks} blocks of 4 KiB") } else { "no disk".to_owned() };
        Ok(Verification {
            memory: verdict(page_difference.is_some() || vcpu_difference.is_some()),
            disk: if disk.is_some() { verdict(block_difference.is_some()) } else { Verdict::Skipped },
            scope: format!("{pages} pages, {} vCPUs, {disk_scope}", self.vcpus.len()),
            compared: pages + blocks,
            excluded,
            operations: state.operations(),
            first_difference: page_difference.or(block_difference).or(vcpu_difference),
        })
    }

    /// The pages that the twin has freed: what they hold is nobody's.
    pub fn freed(&self) -> UnitSet<Page> {
        let mut freed = UnitSet::empty(self.shape.pages);
        self.vcpus.iter().for_each(|vcpu| freed.union(&vcpu.registers.free));
        freed
    }

    /// How many pages were compared and excluded, and the first difference.
    fn compare_memory(&self, pages: GuestPages<'_>) -> (u64, u64, Option<String>) {
        let freed = self.freed();
        let (mut differing, mut first) = (0u64, None);
        let (mut expected, mut found): (PageBuffer, PageBuffer) = ([0; PAGE_BYTES as usize], [0; PAGE_BYTES as usize]);
        for page in (0..self.shape.pages).filter(|page| !freed.contains(*page)) {
            self.page(page, &mut expected);
            pages.read(page, &mut found);
            if expected != found {
                differing += 1;
                first.get_or_insert_with(|| describe("page", page, &expected, &found));
            }
        }
        let first = first.map(|first| format!("{first}; {differing} pages differ"));
        (self.shape.pages - freed.count(), freed.count(), first)
    }

    /// Copies a page out: the one of the vCPU that touched it, or what was filled.
    fn page(&self, page: u64, into: &mut PageBuffer) {
        match self.vcpus.iter().find_map(|vcpu| vcpu.memory.page(page)) {
            None => page_content(&self.content, self.seed, page, into),
            Some(words) => {
                for (bytes, word) in into.as_chunks_mut().0.iter_mut().zip(words) {
                    *bytes = word.to_ne_bytes();
                }
            }
        }
    }

    /// How many blocks were compared, and the first difference.
    fn compare_disk(&self, read: ReadDisk<'_>) -> Result<(u64, Option<String>), MachineError> {
        const ZERO: UnitBuffer = [0; UNIT_BYTES as usize];
        let (mut differing, mut first) = (0u64, None);
        let mut filled = ZERO;
        let filled_bytes = self.shape.filled_sectors.min(self.shape.sectors) * SECTOR_BYTES;
        let mut chunk = vec![0; (CHUNK_UNITS * UNIT_BYTES) as usize];
        let bytes = self.shape.sectors * SECTOR_BYTES;
        let units = bytes.div_ceil(UNIT_BYTES);
        for start in (0..units).step_by(CHUNK_UNITS as usize) {
            let offset = start * UNIT_BYTES;
            let length = (CHUNK_UNITS * UNIT_BYTES).min(bytes - offset) as usize;
            read(offset, &mut chunk[..length])?;
            for (unit, found) in (start..).zip(chunk[..length].chunks(UNIT_BYTES as usize)) {
                let expected = match self.vcpus.iter().find_map(|vcpu| vcpu.disk.unit(unit)) {
                    Some(written) => written,
                    None if unit * UNIT_BYTES >= filled_bytes => &ZERO,
                    None => {
                        unit_content(&self.content, self.seed, filled_bytes, unit, &mut filled);
                        &filled
                    }
                };
                if expected[..found.len()] != *found {
                    differing += 1;
                    first.get_or_insert_with(|| describe("block", unit, &expected[..found.len()], found));
                }
            }
        }
        Ok((units, first.map(|first| format!("{first}; {differing} blocks of 4 KiB differ"))))
    }

    fn compare_vcpus(&self, state: &SavedState) -> Option<String> {
        if state.vcpus.len() != self.vcpus.len() {
            return Some(format!("{} vCPUs, expected {}", state.vcpus.len(), self.vcpus.len()));
        }
        let each = self.vcpus.iter().zip(&state.vcpus).enumerate();
        each.filter_map(|(index, (twin, found))| {
            twin.difference(found, self.shape.pages).map(|why| format!("vCPU {index}: {why}"))
        })
        .next()
    }
}

impl TwinVcpu {
    /// What differs, if anything does. What is left of an Idle, and how late a vCPU is, are time and not state.
    fn difference(&self, found: &SavedVcpu, pages: u64) -> Option<String> {
        let (expected, state) = (&self.registers.state, &found.state);
        let counts = [
            ("operation", expected.operations, state.operations),
            ("digest", expected.digest, state.digest),
            ("work", expected.units, state.units),
        ];
        for (name, expected, found) in counts {
            if expected != found {
                return Some(format!("{name} {found:#x}, expected {expected:#x}"));
            }
        }
        if found.failed.is_some() {
            return Some("an operation failed and is not done".to_owned());
        }
        let stream = self.stream.save();
        if stream != found.stream {
            let (stream, found) = (digest(&stream), digest(&found.stream));
            return Some(format!("the generator's state has SHA-256 {found}, expected {stream}"));
        }
        let (free, found) = (&self.registers.free, found.free_set(pages));
        if *free != found {
            let differs = |page: &u64| free.contains(*page) != found.contains(*page);
            let page = (0..pages).find(differs).expect("sets that are not equal differ somewhere");
            let word = |set: &UnitSet<Page>| if set.contains(page) { "free" } else { "in use" };
            return Some(format!("page {page} is {}, expected {}", word(&found), word(free)));
        }
        None
    }
}

/// Names the first word in which two units differ, and both units by their digests.
fn describe(name: &str, index: u64, expected: &[u8], found: &[u8]) -> String {
    let word = |bytes: &[u8], at: usize| {
        let mut word = [0; 8];
        let part = &bytes[at * 8..bytes.len().min(at * 8 + 8)];
        word[..part.len()].copy_from_slice(part);
        u64::from_le_bytes(word)
    };
    let at = expected.chunks(8).zip(found.chunks(8)).position(|(a, b)| a != b).unwrap_or(0);
    format!(
        "{name} {index}, offset {}: found {:#018x}, expected {:#018x} (SHA-256 {}, expected {})",
        at * 8,
        word(found, at),
        word(expected, at),
        digest(found),
        digest(expected)
    )
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
