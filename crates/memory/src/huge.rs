//! Huge pages that a dirty log takes apart, put together again when it ends.
//!
//! Protection is by entries of 4 KiB. Protecting memory that is mapped by an entry of 2 MiB takes that entry out of the page
//! table, and the guest's next accesses put small ones there. The memory object keeps its huge pages, only the mapping is
//! small, and stays so: every page costs a fault once, and more misses of the TLB from then on. So which huge pages were
//! mapped is seen before the log begins, and they are mapped again where it ends (`MADV_COLLAPSE`, Linux 6.1). That takes
//! CAP_SYS_NICE; without it they stay small until the kernel's own thread comes by, if it is set to.
//!
//! Only a guest in another process has any: the mappings of this one are advised against them. Nor has one that is about to
//! arrive, unless its hypervisor has touched all of its memory before: its pages come through a mapping of this process, so
//! what the memory object has of them is small.

use crate::error::Result;
use crate::pagemap::Pagemap;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The most of a range that one call is given: the kernel cuts what is over 2 GiB.
const PIECE_BYTES: usize = 1 << 30;

/// The huge pages that were mapped in another process's range.
#[derive(Debug)]
pub(crate) struct HugePages {
    process: OwnedFd,
    /// Addresses, each a first and an end.
    runs: Vec<(u64, u64)>,
}

impl HugePages {
    /// Those that are mapped in `start..end` of process `pid`; `None` if there are none.
    ///
    /// # Errors
    /// The kernel can't be asked.
    pub(crate) fn mapped(pagemap: &mut Pagemap, pid: u32, start: u64, end: u64) -> Result<Option<Self>> {
        let mut runs = Vec::new();
        pagemap.huge(start, end, |start, end| runs.push((start, end)))?;
        // A process that has ended has lost its huge pages too.
        let process = Pid::from_raw(pid.cast_signed()).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
        Ok(match process {
            Some(Ok(process)) if !runs.is_empty() => Some(HugePages { process, runs }),
            _ => None,
        })
    }

    /// Maps them again, as far as the kernel does so: what it leaves small is slower and nothing worse.
    pub(crate) fn map_again(self) {
        let pieces = self.runs.iter().flat_map(|&(start, end)| {
            (start..end).step_by(PIECE_BYTES).map(move |at| (at, PIECE_BYTES.min((end - at) as usize)))
        });
        for (start, bytes) in pieces {
            let range = libc::iovec { iov_base: start as *mut libc::c_void, iov_len: bytes };
            // SAFETY: the kernel reads one `iovec`. The addresses are another process's, and the advice changes how its
            // memory is mapped, not what it holds.
            let _ = unsafe {
                libc::syscall(
                    libc::SYS_process_madvise,
                    self.process.as_raw_fd(),
                    &raw const range,
                    1usize,
                    linux_raw_sys::general::MADV_COLLAPSE,
                    0,
                )
            };
        }
    }
}
