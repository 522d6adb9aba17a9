//! What the guest's kernel knows of its pages, by `/proc/kpageflags`: an entry of 64 bits for each frame.
//!
//! A frame is called free where its entry says that the buddy allocator has it, and nothing else. The kernel takes that mark off
//! before it gives the page to anyone, who then writes it before reading: so the page's next write comes after the look, and the
//! host's log shows it ([`whimbrel_machine::Hints`]). Three things could spoil this:
//!
//! - A kernel that relies on what a free page holds: it zeroes pages when they are freed instead of when they are taken, or
//!   fills them with a pattern and looks for that later. Such a kernel is told by its log and its command line, and then nothing
//!   is said.
//! - The entry is made without a lock, from the head of a free block and then its size. Between those two reads the block may be
//!   taken, and what is read as its size be anything; a page of a larger allocation near by, itself without a count, would then
//!   look free. So every entry is read twice, and must be the same.
//! - A page of the workload that the operations have freed is in use to the kernel: those the agent adds by itself.

use crate::GuestError;
use crate::boot::host;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use whimbrel_model::{Page, PageTypes, UnitSet};

/// Entries that are read at once: a page full. What the agent writes to answer is dirty and moves.
const AT_ONCE: usize = 512;

const ENTRY_BYTES: u64 = 8;

/// Bits of an entry, as Linux's `include/uapi/linux/kernel-page-flags.h` has them.
const DIRTY: u64 = 1 << 4;
const LRU: u64 = 1 << 5;
const SLAB: u64 = 1 << 7;
const WRITEBACK: u64 = 1 << 8;
const BUDDY: u64 = 1 << 10;
const ANONYMOUS: u64 = 1 << 12;
const SWAP_BACKED: u64 = 1 << 14;
const UNEVICTABLE: u64 = 1 << 18;
const PAGE_TABLE: u64 = 1 << 26;

/// What the kernel says of its pages.
pub(crate) struct PageFlags {
    /// Frames that are free.
    pub(crate) free: UnitSet<Page>,
    /// What all are.
    pub(crate) types: PageTypes,
}

impl PageFlags {
    /// Asks the kernel, of so many frames.
    ///
    /// # Errors
    /// It has no such table.
    pub(crate) fn read(frames: u64) -> Result<Self, GuestError> {
        let table = File::open("/proc/kpageflags").map_err(host("/proc/kpageflags"))?;
        let mut flags = PageFlags { free: UnitSet::empty(frames), types: PageTypes::default() };
        let (mut entries, mut again) = ([0; AT_ONCE * 8], [0; AT_ONCE * 8]);
        let mut first = 0;
        while first < frames {
            let wanted = AT_ONCE.min((frames - first) as usize) * 8;
            let bytes = read_at(&table, &mut entries[..wanted], first)?;
            let bytes = read_at(&table, &mut again[..bytes], first)?;
            if bytes == 0 {
                break;
            }
            let pairs = entries[..bytes].as_chunks().0.iter().zip(again.as_chunks().0);
            for (frame, (entry, again)) in (first..).zip(pairs) {
                flags.note(frame, u64::from_ne_bytes(*entry), u64::from_ne_bytes(*again));
            }
            first += bytes as u64 / ENTRY_BYTES;
        }
        Ok(flags)
    }

    fn note(&mut self, frame: u64, entry: u64, again: u64) {
        let is = |bits: u64| entry & bits != 0;
        let types = &mut self.types;
        let count = if entry == BUDDY && again == BUDDY {
            self.free.insert(frame);
            &mut types.free_pages
        } else if is(SLAB) {
            &mut types.slab_pages
        } else if is(PAGE_TABLE) {
            &mut types.page_table_pages
        } else if is(ANONYMOUS) {
            &mut types.anonymous_pages
        } else if !is(LRU | UNEVICTABLE) {
            &mut types.other_pages
        } else if is(DIRTY | WRITEBACK | SWAP_BACKED) {
            &mut types.dirty_cache_pages
        } else {
            &mut types.clean_cache_pages
        };
        *count += 1;
    }
}

/// Reads whole entries from one on; fewer at the table's end.
fn read_at(table: &File, into: &mut [u8], first: u64) -> Result<usize, GuestError> {
    let mut bytes = 0;
    while bytes < into.len() {
        match table.read_at(&mut into[bytes..], first * ENTRY_BYTES + bytes as u64) {
            Ok(0) => break,
            Ok(more) => bytes += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(host("/proc/kpageflags")(error)),
        }
    }
    Ok(bytes - bytes % ENTRY_BYTES as usize)
}

/// Whether what a free page holds is nobody's in this kernel.
///
/// # Errors
/// Why it isn't, or why that can't be told.
pub(crate) fn free_is_nobodys() -> Result<(), String> {
    let line = fs::read_to_string("/proc/cmdline").map_err(|error| format!("/proc/cmdline: {error}"))?;
    let log = kernel_log().map_err(|error| format!("the kernel's log: {error}"))?;
    judge(&line, &log)
}

/// By the kernel's command line, and its log since it booted.
fn judge(line: &str, log: &str) -> Result<(), String> {
    if let Some(word) = line.split_whitespace().find(|word| word.starts_with("page_poison=")) {
        return Err(format!("the guest's kernel was told to look at what free pages hold: {word}"));
    }
    match log.lines().find(|line| line.contains("mem auto-init:") && line.contains("heap free:")) {
        Some(line) if line.contains("heap free:off") => Ok(()),
        Some(_) => Err("the guest's kernel zeroes pages when they are freed, and relies on it".to_owned()),
        None => Err("the guest's kernel doesn't say whether it relies on what free pages hold".to_owned()),
    }
}

/// What the kernel has logged, as far as it keeps it.
fn kernel_log() -> io::Result<String> {
    let not_waiting = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mut log = File::options().read(true).custom_flags(not_waiting).open("/dev/kmsg")?;
    let (mut text, mut record) = (Vec::new(), vec![0; 8192]);
    loop {
        match log.read(&mut record) {
            Ok(bytes) => text.extend_from_slice(&record[..bytes]),
            // The oldest records went while it was read.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PIPE.raw_os_error()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Ok(String::from_utf8_lossy(&text).into_owned());
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_allocator_has_and_nobody_else_is_free() {
        let mut flags = PageFlags { free: UnitSet::empty(100), types: PageTypes::default() };
        // What Debian's kernel 6.1 said of a guest, and two races: the mark was there in one of both looks.
        let entries = [
            (0x400, 0x400),
            (0x400, 0x10000),
            (0x800, 0x400),
            (0x400 | 0x80, 0x400 | 0x80),
            (0x80, 0x80),
            (0x1_0080, 0x1_0080),
            (0x400_0000, 0x400_0000),
            (0x4_0000_5868, 0x4_0000_5868),
            (0x483c, 0x483c),
            (0x82c, 0x82c),
            (0x83c, 0x83c),
            (0x1_0000_0000, 0x1_0000_0000),
            (0, 0),
        ];
        for (frame, (entry, again)) in (10..).zip(entries) {
            flags.note(frame, entry, again);
        }
        assert_eq!(flags.free.iter().collect::<Vec<_>>(), [10]);
        let expected = PageTypes {
            free_pages: 1,
            anonymous_pages: 1,
            clean_cache_pages: 1,
            dirty_cache_pages: 2,
            slab_pages: 3,
            page_table_pages: 1,
            other_pages: 4,
        };
        assert_eq!(flags.types, expected);
    }

    #[test]
    fn a_kernel_that_relies_on_free_pages_is_told_by_what_it_says() {
        let log = |free: &str| {
            format!("6,76,0,-;first\n6,77,74025,-;mem auto-init: stack:all(zero), heap alloc:on, heap free:{free}\n")
        };
        assert_eq!(judge("console=ttyS0 quiet", &log("off")), Ok(()));
        assert!(judge("console=ttyS0 quiet", &log("on")).unwrap_err().contains("zeroes"));
        assert!(judge("console=ttyS0 page_poison=1", &log("off")).unwrap_err().contains("page_poison=1"));
        assert!(judge("quiet", "6,76,0,-;first\n").unwrap_err().contains("doesn't say"));
    }
}
