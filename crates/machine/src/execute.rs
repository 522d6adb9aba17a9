//! What an operation does. Machines and the twin run this very code, on different memory and disks.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use whimbrel_disk::GuestDisk;
use whimbrel_memory::GuestRam;
use whimbrel_model::op::{
    MOST_SECTORS, Op, SECTOR_BYTES, VcpuState, WORDS_PER_PAGE, compute_unit, disk_content, fold, fold_bytes, new_word,
};
use whimbrel_model::stream::{Paced, Shape};
use whimbrel_model::{Page, UnitSet};

/// The longest Compute, in units of about a microsecond: an operation is atomic at a pause, so it is short.
pub const MOST_COMPUTE_UNITS: u32 = 100;

/// Memory as operations see it.
pub trait Memory {
    /// Replaces each of the page's `words` by what `change` makes of its index in the page and its old value.
    fn change(&mut self, page: u64, words: Range<usize>, change: impl FnMut(usize, u64) -> u64);

    /// Shows each of the page's `words`, in order.
    fn see(&mut self, page: u64, words: Range<usize>, see: impl FnMut(u64));
}

/// A disk as operations see it: bytes at offsets.
pub trait Disk {
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// The host's I/O failed, or there is no disk.
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// As [`Disk::read`].
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes what was written durable.
    ///
    /// # Errors
    /// As [`Disk::read`].
    fn flush(&mut self) -> io::Result<()>;
}

impl Memory for &GuestRam {
    #[inline]
    fn change(&mut self, page: u64, words: Range<usize>, mut change: impl FnMut(usize, u64) -> u64) {
        for (index, word) in words.clone().zip(&self.guest_page(page)[words]) {
            word.store(change(index, word.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
    }

    #[inline]
    fn see(&mut self, page: u64, words: Range<usize>, mut see: impl FnMut(u64)) {
        for word in &self.guest_page(page)[words] {
            see(word.load(Ordering::Relaxed));
        }
    }
}

impl Disk for Option<&dyn GuestDisk> {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        attached(self)?.read(offset, buffer)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        attached(self)?.write(offset, data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.map_or(Ok(()), GuestDisk::flush)
    }
}

fn attached<'a>(disk: &Option<&'a dyn GuestDisk>) -> io::Result<&'a dyn GuestDisk> {
    disk.ok_or_else(|| io::Error::other("the guest has no disk"))
}

/// Whether an operation stays inside the guest and is short enough to be atomic.
#[inline]
pub fn fits(op: &Op, shape: &Shape) -> bool {
    let page_fits = |page: u64| page < shape.pages;
    match *op {
        Op::Write { page, first, words } | Op::Read { page, first, words } => {
            page_fits(page) && u64::from(first) + u64::from(words) <= WORDS_PER_PAGE
        }
        Op::Allocate { page } | Op::Free { page } => page_fits(page),
        Op::DiskRead { sector, sectors } | Op::DiskWrite { sector, sectors } => {
            sectors <= MOST_SECTORS && sector.checked_add(sectors.into()).is_some_and(|end| end <= shape.sectors)
        }
        Op::Compute { units } => units <= MOST_COMPUTE_UNITS,
        Op::Flush | Op::Idle { .. } => true,
    }
}

/// What a vCPU has besides memory and disk while it executes.
#[derive(Debug)]
pub struct Registers {
    /// Operations, digest, work.
    pub state: VcpuState,
    /// The mask of freed pages: their content is nobody's any more.
    pub free: UnitSet<Page>,
    /// Space for a disk request.
    buffer: Vec<u8>,
}

impl Registers {
    /// A vCPU's registers before operation 0, in a guest of `pages` pages.
    pub fn new(pages: u64) -> Self {
        Registers { state: VcpuState::default(), free: UnitSet::empty(pages), buffer: Vec::new() }
    }

    /// Executes an operation that [`fits`], and counts it. `key` is its [`whimbrel_model::op::operation_key`]. An Idle is
    /// counted like any other; letting the time pass is the caller's affair.
    ///
    /// # Errors
    /// The disk failed. Nothing is counted then; a write may have been done in part.
    #[inline(always)]
    pub fn execute(
        &mut self,
        paced: &Paced,
        key: u64,
        memory: &mut impl Memory,
        disk: &mut impl Disk,
    ) -> io::Result<()> {
        match paced.op {
            Op::Write { page, first, words } => {
                let base = page * WORDS_PER_PAGE;
                memory.change(page, span(first, words), |index, old| new_word(key, base + index as u64, old));
            }
            Op::Read { page, first, words } => {
                let digest = &mut self.state.digest;
                memory.see(page, span(first, words), |seen| *digest = fold(*digest, seen));
            }
            Op::Compute { units } => {
                self.state.digest = (0..units).fold(self.state.digest, |digest, _| compute_unit(digest));
            }
            Op::DiskRead { sector, sectors } => {
                let buffer = sized(&mut self.buffer, sectors);
                disk.read(sector * SECTOR_BYTES, buffer)?;
                self.state.digest = fold_bytes(self.state.digest, buffer);
            }
            Op::DiskWrite { sector, sectors } => {
                let buffer = sized(&mut self.buffer, sectors);
                disk_content(key, self.state.digest, sector, buffer);
                disk.write(sector * SECTOR_BYTES, buffer)?;
            }
            Op::Flush => disk.flush()?,
            Op::Allocate { page } => {
                // As a kernel does for a process. It also makes the page's content the guest's own again.
                memory.change(page, 0..WORDS_PER_PAGE as usize, |_, _| 0);
                self.free.remove(page);
            }
            Op::Free { page } => {
                self.free.insert(page);
            }
            Op::Idle { .. } => {}
        }
        self.state.operations += 1;
        self.state.units += u64::from(paced.units);
        Ok(())
    }
}

fn span(first: u16, words: u16) -> Range<usize> {
    usize::from(first)..usize::from(first) + usize::from(words)
}

fn sized(buffer: &mut Vec<u8>, sectors: u32) -> &mut [u8] {
    let bytes = sectors as usize * SECTOR_BYTES as usize;
    if buffer.len() < bytes {
        buffer.resize(bytes, 0);
    }
    &mut buffer[..bytes]
}
