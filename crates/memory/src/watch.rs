//! The watch over a guest's mapping: one userfaultfd and one page map, shared by the dirty log and the missing pages.
//!
//! A mapping can be registered with one userfaultfd only, and the kernel adds modes to a registration but takes none
//! away. So who uses the watch is kept here:
//!
//! | log armed | faults served | registered for |
//! |---|---|---|
//! | no | no | nothing |
//! | yes | no | write-protection |
//! | any | yes | missing, minor and write-protection |
//!
//! In another process the log may be armed first: nothing is mapped there, and what is protected are the places of pages.
//! Within this one faults are served first.
//!
//! When the last page has come while the log is armed, the registration stays until the log is disarmed, and with it the
//! thread that answers faults: to unregister would lift the write-protection.

use crate::error::{MemoryError, Result};
use crate::pagemap::Pagemap;
use crate::ram::GuestRam;
use crate::uffd::{FAULT_FEATURES, FOR_ALL_FAULTS, LOG_FEATURES, Modes, Uffd, Way};
use linux_raw_sys::general::UFFD_FEATURE_WP_ASYNC;
use rustix::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use whimbrel_model::{Extent, PAGE_BYTES};

/// What answers faults, and must go on doing so for as long as the mapping is registered for them. Dropping it ends it.
pub(crate) trait Server: Send {}

/// A userfaultfd and a page map over a guest's mapping, in this process or in another.
pub struct Watch {
    uffd: Uffd,
    pagemap: Mutex<Option<Pagemap>>,
    process: Option<u32>,
    address: u64,
    pages: u64,
    uses: Mutex<Uses>,
    /// Whether pages are to be mapped write-protected. Held for reading while pages are mapped, so that none is mapped
    /// unprotected behind the back of an arm.
    protecting: RwLock<bool>,
    /// Whether the mapping is registered for faults. Cleared *before* that ends, so that who maps pages meanwhile can
    /// tell the end from a failure.
    blocking: AtomicBool,
}

#[derive(Default)]
struct Uses {
    log: bool,
    faults: bool,
    lingering: Option<Box<dyn Server>>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("process", &self.process).field("pages", &self.pages).finish_non_exhaustive()
    }
}

impl Watch {
    pub(crate) fn inside(address: u64, pages: u64) -> Result<Self> {
        Ok(Self::over(Uffd::open(wanted())?, None, address, pages))
    }

    /// A watch over `pages` pages from `address` on in process `process`, by a userfaultfd that was opened there, by that way, and has
    /// not shaken hands yet. Whoever runs that process sees to it that nothing of the range is mapped when missing pages
    /// are to be served.
    ///
    /// # Errors
    /// The descriptor is no fresh userfaultfd.
    pub fn outside(process: u32, address: u64, pages: u64, uffd: (OwnedFd, Way)) -> Result<Self> {
        Ok(Self::over(Uffd::adopt(uffd, wanted())?, Some(process), address, pages))
    }

    fn over(uffd: Uffd, process: Option<u32>, address: u64, pages: u64) -> Self {
        Watch {
            uffd,
            pagemap: Mutex::new(None),
            process,
            address,
            pages,
            uses: Mutex::default(),
            protecting: RwLock::new(false),
            blocking: AtomicBool::new(false),
        }
    }

    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    pub(crate) fn uffd(&self) -> &Uffd {
        &self.uffd
    }

    /// Whether an access to a page that is not mapped blocks until it is.
    pub(crate) fn blocks(&self) -> bool {
        self.blocking.load(Ordering::SeqCst)
    }

    /// Whether the guest runs in another process.
    pub(crate) fn is_outside(&self) -> bool {
        self.process.is_some()
    }

    /// The page in which `address` lies.
    pub(crate) fn page_at(&self, address: u64) -> Option<u64> {
        let page = address.checked_sub(self.address)? / PAGE_BYTES;
        (page < self.pages).then_some(page)
    }

    fn uses(&self) -> MutexGuard<'_, Uses> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, modes: Modes) -> Result<()> {
        self.uffd.register(self.address, self.pages * PAGE_BYTES, modes).map_err(MemoryError::kernel("UFFDIO_REGISTER"))
    }

    fn unregister(&self) -> Result<()> {
        self.blocking.store(false, Ordering::SeqCst);
        self.uffd.unregister(self.address, self.pages * PAGE_BYTES).map_err(MemoryError::kernel("UFFDIO_UNREGISTER"))
    }

    /// Protects every page against writes, for the dirty log; `again` if this log is armed already.
    pub(crate) fn protect_all(&self, again: bool) -> Result<()> {
        self.uffd.require("the dirty log", LOG_FEATURES)?;
        let mut uses = self.uses();
        if uses.log && !again {
            return Err(MemoryError::OutOfTurn("another dirty log over the same RAM is armed"));
        }
        if !uses.log && !uses.faults {
            self.register(Modes { write_protect: true, ..Modes::default() })?;
        }
        uses.log = true;
        *self.protecting.write().unwrap_or_else(PoisonError::into_inner) = true;
        self.uffd
            .write_protect(self.address, self.pages * PAGE_BYTES)
            .map_err(MemoryError::kernel("UFFDIO_WRITEPROTECT"))
    }

    /// Ends the dirty log's use of the watch.
    pub(crate) fn release_log(&self) -> Result<()> {
        let mut uses = self.uses();
        if !std::mem::take(&mut uses.log) {
            return Ok(());
        }
        *self.protecting.write().unwrap_or_else(PoisonError::into_inner) = false;
        if uses.faults {
            return Ok(());
        }
        let lingering = uses.lingering.take();
        let answer = self.unregister();
        drop(uses);
        drop(lingering);
        answer
    }

    /// Calls `each` with every run of pages that was written since it was protected, as first page and end.
    pub(crate) fn written(&self, protect: bool, mut each: impl FnMut(u64, u64)) -> Result<()> {
        let mut pagemap = self.pagemap.lock().unwrap_or_else(PoisonError::into_inner);
        let pagemap = match &mut *pagemap {
            Some(open) => open,
            none => none.insert(Pagemap::open(self.process)?),
        };
        let (base, end) = (self.address, self.address + self.pages * PAGE_BYTES);
        pagemap
            .written(base, end, protect, |start, end| each((start - base) / PAGE_BYTES, (end - base) / PAGE_BYTES))
            .map_err(|source| match source.raw_os_error() {
                Some(libc::ENOTTY | libc::EINVAL) => MemoryError::Unavailable {
                    what: "the dirty log",
                    remedy: "the PAGEMAP_SCAN ioctl needs Linux 6.7 or newer".to_owned(),
                    source: Some(source),
                },
                _ => MemoryError::Kernel { call: "PAGEMAP_SCAN", source },
            })
    }

    /// Registers the mapping for missing and minor faults, and drops its entries.
    ///
    /// # Errors
    /// In another process the kernel may reach for pages too, as where that reads from a socket into them: refused where the
    /// userfaultfd doesn't serve it.
    pub(crate) fn serve_faults(&self, ram: &GuestRam) -> Result<()> {
        if self.is_outside() && self.uffd.way() == Way::UserModeOnly {
            return Err(MemoryError::Unavailable {
                what: "serving the missing pages of another process",
                remedy: format!("its userfaultfd is for faults of user code only; it takes {FOR_ALL_FAULTS}"),
                source: None,
            });
        }
        self.uffd.require("serving missing pages", FAULT_FEATURES)?;
        let mut uses = self.uses();
        // Inside, the entries that are dropped below would take the log's protection with them; outside there are none.
        if uses.faults || uses.log && !self.is_outside() {
            return Err(MemoryError::OutOfTurn(
                "missing pages are served once at a time, and inside before the dirty log is armed",
            ));
        }
        // Asynchronous protection or none: without WP_ASYNC a protected write would wait for an answer.
        let write_protect = self.uffd.has(UFFD_FEATURE_WP_ASYNC);
        self.register(Modes { missing: true, minor: true, write_protect })?;
        if !self.is_outside()
            && let Err(error) = ram.unmap_guest()
        {
            self.unregister()?;
            return Err(error);
        }
        uses.faults = true;
        self.blocking.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Ends the missing pages' use of the watch: no access blocks any more. `server` is dropped, now or with the log.
    pub(crate) fn release_faults(&self, server: Option<Box<dyn Server>>) -> Result<()> {
        let mut uses = self.uses();
        if !std::mem::take(&mut uses.faults) {
            return Ok(());
        }
        let answer = if uses.log {
            uses.lingering = server;
            Ok(())
        } else {
            let answer = self.unregister();
            drop(uses);
            drop(server);
            answer
        };
        // Waiters that the kernel has not woken try again: they find the page, or the server.
        self.wake(Extent { start: 0, count: self.pages })?;
        answer
    }

    /// Maps the pages of `extent`, which must hold what they are to hold, and wakes who waits for them. Pages that are
    /// mapped already are fine; a page that the memory object lacks becomes a page of zeros.
    pub(crate) fn map(&self, ram: &GuestRam, extent: Extent) -> Result<()> {
        let protect = self.protecting.read().unwrap_or_else(PoisonError::into_inner);
        let mut at = extent.start;
        let mut populated = false;
        while at < extent.end() {
            let (address, bytes) = (self.address + at * PAGE_BYTES, (extent.end() - at) * PAGE_BYTES);
            match self.uffd.continue_range(address, bytes, *protect) {
                Ok(mapped) => at += mapped / PAGE_BYTES,
                Err(error) => match error.raw_os_error() {
                    // Somebody mapped it first. The kernel wakes nobody in that case.
                    Some(libc::EEXIST) => {
                        self.wake(Extent { start: at, count: 1 })?;
                        at += 1;
                    }
                    Some(libc::EAGAIN | libc::EINTR) => {}
                    // A hole in the memfd: there is nothing to map yet.
                    Some(libc::EFAULT) if !populated => {
                        ram.populate_host(Extent { start: at, count: extent.end() - at })?;
                        populated = true;
                    }
                    // Nothing blocks any more: there is no need to map pages ahead of the access.
                    _ if !self.blocks() => return Ok(()),
                    _ => return Err(MemoryError::Kernel { call: "UFFDIO_CONTINUE", source: error }),
                },
            }
        }
        Ok(())
    }

    fn wake(&self, extent: Extent) -> Result<()> {
        self.uffd
            .wake(self.address + extent.start * PAGE_BYTES, extent.count * PAGE_BYTES)
            .map_err(MemoryError::kernel("UFFDIO_WAKE"))
    }
}

fn wanted() -> u64 {
    LOG_FEATURES.iter().chain(FAULT_FEATURES).fold(0, |all, f| all | f.bit)
}
