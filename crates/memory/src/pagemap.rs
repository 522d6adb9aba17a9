//! The PAGEMAP_SCAN ioctl (Linux 6.7): which pages of a process's range were written, and protecting them again.

use crate::error::{MemoryError, Result};
use linux_raw_sys::general as raw;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `PAGEMAP_SCAN`: `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u32 = 0xc000_0000 | (size_of::<raw::pm_scan_arg>() as u32) << 16 | (b'f' as u32) << 8 | 16;

/// Regions that one call may answer: 192 KiB of them stay in the second-level cache between kernel and reader.
const REGIONS: usize = 8192;

/// A process's page map, with a buffer that every scan uses again.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    regions: Vec<raw::page_region>,
}

impl Pagemap {
    /// Opens the page map of process `pid`, or of this one.
    ///
    /// # Errors
    /// There is no such process, or this one may not trace it.
    pub fn open(pid: Option<u32>) -> Result<Self> {
        let path = pid.map_or("/proc/self/pagemap".to_owned(), |pid| format!("/proc/{pid}/pagemap"));
        let file = File::open(path).map_err(|source| MemoryError::Unavailable {
            what: "the page map of the guest's process",
            remedy: "it takes a mounted /proc and the permission to trace that process (same user, or CAP_SYS_PTRACE)"
                .to_owned(),
            source: Some(source),
        })?;
        Ok(Pagemap { file, regions: vec![raw::page_region { start: 0, end: 0, categories: 0 }; REGIONS] })
    }

    /// Calls `each` with every run of addresses in `start..end` that was written since it was protected. With `protect`
    /// each is protected again in the same step: a later write is seen by the next scan.
    ///
    /// The range must be registered for asynchronous write-protection as a whole.
    pub fn written(&mut self, start: u64, end: u64, protect: bool, mut each: impl FnMut(u64, u64)) -> io::Result<()> {
        let mut at = start;
        while at < end {
            let (found, walk_end) = self.scan(at, end, protect)?;
            // The walk ends when a call finds nothing: `walk_end` of a complete walk may lie short of the end.
            let Some(last) = self.regions[..found].last() else { return Ok(()) };
            at = walk_end.max(last.end);
            for region in &self.regions[..found] {
                each(region.start, region.end);
            }
        }
        Ok(())
    }

    fn scan(&mut self, start: u64, end: u64, protect: bool) -> io::Result<(usize, u64)> {
        let flags = raw::PM_SCAN_CHECK_WPASYNC | if protect { raw::PM_SCAN_WP_MATCHING } else { 0 };
        let mut argument = raw::pm_scan_arg {
            size: size_of::<raw::pm_scan_arg>() as u64,
            flags: u64::from(flags),
            start,
            end,
            walk_end: 0,
            vec: self.regions.as_mut_ptr() as u64,
            vec_len: self.regions.len() as u64,
            max_pages: 0,
            category_inverted: 0,
            category_mask: u64::from(raw::PAGE_IS_WRITTEN),
            category_anyof_mask: 0,
            return_mask: u64::from(raw::PAGE_IS_WRITTEN),
        };
        // SAFETY: the kernel reads and writes one `pm_scan_arg`, and at most `vec_len` regions at `vec`; both are borrowed
        // exclusively for the call.
        let found = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN as libc::Ioctl, &raw mut argument) };
        // No retry: an interrupted call may have protected pages that it didn't report. The kernel interrupts it only
        // for a process that is being killed.
        usize::try_from(found).map(|found| (found, argument.walk_end)).map_err(|_| io::Error::last_os_error())
    }
}
