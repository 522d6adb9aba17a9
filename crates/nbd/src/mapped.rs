//! An image as it lies in the page cache: what of it is there, and writes that only copy into what is there.
//!
//! ext4 keeps a buffer head for each block of a folio, and a `pwrite` walks all those of the folio that it touches: 6 us for
//! 4 KiB in an image that was written in small pieces, 16 us and more where the kernel made large folios. A copy into the
//! mapped page takes 1 to 3 us. It is made by `process_vm_writev` onto this very process: the kernel copies, so where a page
//! can't be had (the file was cut off, the disk is full) the call comes back short instead of raising SIGBUS, and many
//! writes go in one call.
//!
//! Only pages that are in the page cache are written so: elsewhere the fault would read them first, and wait.

use std::fs::File;

use rustix::mm::{MapFlags, ProtFlags};

const PAGE_BYTES: u64 = 4096;
/// The largest image that is mapped: the tables of so much, all of it touched, are 128 MiB.
const MAPPED_BYTES_MAX: u64 = 64 << 30;
/// The most writes in one call.
const WRITES_MAX: usize = 64;
/// The most pages that a write may touch.
const PAGES: usize = 16;

/// A mapping of a whole file.
#[derive(Debug)]
pub(crate) struct Mapped {
    base: *mut libc::c_void,
    length: u64,
}

// SAFETY: the mapping belongs to this value until it is dropped, and only the kernel reads and writes through it.
unsafe impl Send for Mapped {}
// SAFETY: as above; the kernel orders concurrent copies no worse than concurrent writes to the file.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps a file that may be written; `None` where that can't be done or isn't worth it.
    pub(crate) fn new(file: &File, length: u64) -> Option<Self> {
        if length == 0 || length > MAPPED_BYTES_MAX {
            return None;
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nobody's memory.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), length as usize, protection, flags, file, 0) };
        Some(Self { base: base.ok()?, length })
    }

    /// Whether a range lies in the file and in the page cache, all of it.
    fn is_cached(&self, offset: u64, length: u64) -> bool {
        let Some(end) = offset.checked_add(length).filter(|end| *end <= self.length) else { return false };
        let first = offset - offset % PAGE_BYTES;
        let count = (end - first).div_ceil(PAGE_BYTES) as usize;
        let mut states = [0_u8; PAGES];
        if count > PAGES {
            return false;
        }
        let start = self.base.wrapping_byte_add(first as usize);
        // SAFETY: the pages lie in the mapping, and `states` has a byte for each.
        let looked = unsafe { libc::mincore(start, (end - first) as usize, states.as_mut_ptr()) };
        looked == 0 && states[..count].iter().all(|state| state & 1 != 0)
    }

    /// Makes as many of these writes, from the first on, as touch only what is in the page cache; how many.
    pub(crate) fn write_many(&self, writes: &[(u64, &[u8])]) -> usize {
        let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let (mut from, mut to) = ([none; WRITES_MAX], [none; WRITES_MAX]);
        let mut count = 0;
        for (offset, data) in writes.iter().take(WRITES_MAX) {
            if !self.is_cached(*offset, data.len() as u64) {
                break;
            }
            from[count] = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
            let place = self.base.wrapping_byte_add(*offset as usize);
            to[count] = libc::iovec { iov_base: place, iov_len: data.len() };
            count += 1;
        }
        if count == 0 {
            return 0;
        }
        // SAFETY: the kernel reads only the slices, which live, and writes only within the mapping, which nothing in this
        // process refers to otherwise; each place was checked to lie there.
        let written = unsafe {
            let this = std::process::id() as libc::pid_t;
            libc::process_vm_writev(this, from.as_ptr(), count as u64, to.as_ptr(), count as u64, 0)
        };
        let mut left = usize::try_from(written).unwrap_or(0);
        let whole = |(_, data): &&(u64, &[u8])| {
            let fits = data.len() <= left;
            left = left.saturating_sub(data.len());
            fits
        };
        writes[..count].iter().take_while(whole).count()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody uses it any more.
        let unmapped = unsafe { rustix::mm::munmap(self.base, self.length as usize) };
        debug_assert!(unmapped.is_ok(), "the mapping is whole: {unmapped:?}");
    }
}
