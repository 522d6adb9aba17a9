//! Missing pages at the destination: the guest runs, and a page that has not come yet blocks who touches it.
//!
//! ```text
//!            fault, page missing: told once             receiver filled it, `complete`
//!   missing ─────────────────────────────► waited for ─────────────────────────────────► complete
//!      │                                                                                  ▲  │
//!      └──────────────────────────── `complete` ──────────────────────────────────────────┘  └─► fault: mapped at once
//! ```
//!
//! The guest's mapping is registered for *minor* faults besides missing ones, and a page is mapped only when it is
//! complete. (With missing faults alone, a page that is half received through the host's mapping exists in the memfd,
//! gives no fault, and the guest reads it torn.) Whether the memfd holds the page or has a hole there makes no
//! difference: what counts is the set kept here.

use crate::error::{MemoryError, Result};
use crate::ram::GuestRam;
use crate::watch::{Server, Watch};
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::fd::{AsFd, OwnedFd};
use std::collections::HashMap;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use whimbrel_model::{Extent, Page, UnitSet};

/// Told when somebody first waits for a missing page, and when that was noticed. It runs on the thread that answers
/// faults: while it runs, no other fault is answered.
pub type FaultHandler = Box<dyn Fn(u64, Instant) + Send + Sync>;

/// A wait for a missing page that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waited {
    /// The page.
    pub page: u64,
    /// From the instant the first fault was noticed until the page was mapped.
    pub time: Duration,
}

/// The pages that a running guest lacks.
pub struct MissingPages {
    shared: Arc<Shared>,
    /// `None` once the service has ended; inside, `None` while it has not started.
    server: Mutex<Option<Option<Box<dyn Server>>>>,
}

struct Shared {
    ram: Arc<GuestRam>,
    watch: Arc<Watch>,
    on_fault: FaultHandler,
    state: Mutex<State>,
}

struct State {
    missing: UnitSet<Page>,
    count: u64,
    waiting: HashMap<u64, Instant>,
    failed: Option<String>,
}

impl std::fmt::Debug for MissingPages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MissingPages").field("missing", &self.missing_count()).finish_non_exhaustive()
    }
}

impl MissingPages {
    /// From now on, an access of the guest to a page of `missing` blocks until [`MissingPages::complete`] names it; all
    /// other pages are mapped before this returns. To be called while no vCPU runs, and, for a guest within this process, before
    /// the dirty log is armed.
    ///
    /// # Errors
    /// `missing` is over another number of pages; the kernel lacks what is needed; the dirty log of a guest within this process is armed.
    pub fn begin(ram: Arc<GuestRam>, missing: UnitSet<Page>, on_fault: FaultHandler) -> Result<Arc<Self>> {
        if missing.len() != ram.pages() {
            let bytes = ram.pages() * whimbrel_model::PAGE_BYTES;
            return Err(MemoryError::Size { bytes, why: format!("the missing set is over {} pages", missing.len()) });
        }
        let watch = ram.watch()?;
        watch.serve_faults(&ram)?;
        let mut present = UnitSet::full(missing.len());
        present.subtract(&missing);
        let state = State { count: missing.count(), missing, waiting: HashMap::new(), failed: None };
        let shared = Arc::new(Shared { ram, watch, on_fault, state: Mutex::new(state) });
        // From here on an error leaves by dropping `pages`, which ends the service.
        let pages = Arc::new(MissingPages { shared: Arc::clone(&shared), server: Mutex::new(Some(None)) });
        for extent in present.extents() {
            shared.watch.map(&shared.ram, extent)?;
        }
        let server = FaultServer::start(shared)?;
        *pages.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(Some(Box::new(server)));
        Ok(pages)
    }

    /// The pages of `extent` hold what they are to hold, by the host's mapping or, all zero, as holes of the memfd. They
    /// are mapped and who waits for them goes on. Answers the waits that ended. Pages that are complete already are
    /// passed over; they must not have been written again, since the guest may have.
    ///
    /// # Errors
    /// The kernel can't map the pages, or faults are no longer answered: the guest must be stopped and
    /// [`MissingPages::abandon`]ed.
    pub fn complete(&self, extent: Extent) -> Result<Vec<Waited>> {
        let mut waits = Vec::new();
        let runs = {
            let mut state = self.shared.state();
            state.check()?;
            let runs = runs_within(&state.missing, extent);
            for run in &runs {
                state.missing.remove_extent(*run);
                state.count -= run.count;
            }
            if !runs.is_empty() {
                waits.extend(state.waiting.extract_if(|page, _| extent.indices().contains(page)));
            }
            runs
        };
        for run in runs {
            self.shared.watch.map(&self.shared.ram, run)?;
        }
        Ok(waits.into_iter().map(|(page, since)| Waited { page, time: since.elapsed() }).collect())
    }

    /// Why faults are no longer answered; `None` while all is well.
    pub fn failure(&self) -> Option<String> {
        self.shared.state().failed.clone()
    }

    /// Whether the page has not come yet.
    pub fn is_missing(&self, page: u64) -> bool {
        self.shared.state().missing.contains(page)
    }

    /// The pages that have not come yet.
    pub fn missing(&self) -> UnitSet<Page> {
        self.shared.state().missing.clone()
    }

    /// How many pages have not come yet.
    pub fn missing_count(&self) -> u64 {
        self.shared.state().count
    }

    /// How many pages somebody waits for.
    pub fn waiting_count(&self) -> u64 {
        self.shared.state().waiting.len() as u64
    }

    /// Ends the service once nothing is missing. A dirty log that was armed meanwhile stays armed.
    ///
    /// # Errors
    /// Pages are missing still; or the service itself had failed, and then what the guest has seen is in doubt.
    pub fn finish(&self) -> Result<()> {
        {
            let state = self.shared.state();
            if state.count > 0 {
                return Err(MemoryError::OutOfTurn("pages are missing still"));
            }
            state.check()?;
        }
        self.release()
    }

    /// Gives up: nobody waits any more, and who waited goes on with whatever the page holds. So the vCPUs must have been
    /// told to stop before; their guest is lost. Answers the pages that never came.
    ///
    /// # Errors
    /// The kernel refuses to end the service.
    pub fn abandon(&self) -> Result<UnitSet<Page>> {
        let lost = {
            let mut state = self.shared.state();
            state.count = 0;
            state.waiting.clear();
            let none = UnitSet::empty(state.missing.len());
            std::mem::replace(&mut state.missing, none)
        };
        self.release()?;
        Ok(lost)
    }

    fn release(&self) -> Result<()> {
        match self.server.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(server) => self.shared.watch.release_faults(server),
            None => Ok(()),
        }
    }
}

impl Drop for MissingPages {
    fn drop(&mut self) {
        // A service that nobody completes would block the guest's threads for ever.
        let _ = self.abandon();
    }
}

impl State {
    fn check(&self) -> Result<()> {
        match &self.failed {
            None => Ok(()),
            Some(why) => {
                let source = std::io::Error::other(why.clone());
                Err(MemoryError::Kernel { call: "answering page faults", source })
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers one fault.
    fn answer(&self, page: u64, now: Instant) -> Result<()> {
        {
            let mut state = self.state();
            if state.missing.contains(page) {
                if state.waiting.contains_key(&page) {
                    return Ok(());
                }
                state.waiting.insert(page, now);
            } else {
                // Complete meanwhile, or mapped before and dropped by the kernel since.
                drop(state);
                return self.watch.map(&self.ram, Extent { start: page, count: 1 });
            }
        }
        (self.on_fault)(page, now);
        Ok(())
    }

    fn serve(&self, stop: &OwnedFd) -> Result<()> {
        let mut faults = Vec::new();
        loop {
            let mut ready =
                [PollFd::new(self.watch.uffd(), PollFlags::IN), PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN)];
            match rustix::event::poll(&mut ready, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(MemoryError::kernel("poll")(error)),
            }
            if !ready[1].revents().is_empty() {
                return Ok(());
            }
            self.watch.uffd().read_faults(&mut faults).map_err(MemoryError::kernel("read(userfaultfd)"))?;
            let now = Instant::now();
            for page in faults.iter().filter_map(|address| self.watch.page_at(*address)) {
                self.answer(page, now)?;
            }
        }
    }
}

/// The runs of `set` within `extent`.
fn runs_within(set: &UnitSet<Page>, extent: Extent) -> Vec<Extent> {
    let end = extent.start.saturating_add(extent.count).min(set.len());
    let mut runs = Vec::new();
    let mut at = extent.start;
    while let Some(start) = set.next(at).filter(|start| *start < end) {
        at = (start..end).find(|page| !set.contains(*page)).unwrap_or(end);
        runs.push(Extent { start, count: at - start });
    }
    runs
}

/// The thread that answers faults.
struct FaultServer {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl FaultServer {
    fn start(shared: Arc<Shared>) -> Result<Self> {
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).map_err(MemoryError::kernel("eventfd"))?;
        let stop = Arc::new(stop);
        let theirs = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("missing-pages".to_owned())
            .spawn(move || {
                // A handler that panics must not leave the guest waiting in silence.
                let failed = match catch_unwind(AssertUnwindSafe(|| shared.serve(&theirs))) {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => error.source().map_or(error.to_string(), |source| format!("{error}: {source}")),
                    Err(_) => "the fault handler panicked".to_owned(),
                };
                shared.state().failed = Some(failed);
            })
            .map_err(MemoryError::kernel("spawning a thread"))?;
        Ok(FaultServer { stop, thread: Some(thread) })
    }
}

impl Server for FaultServer {}

impl Drop for FaultServer {
    fn drop(&mut self) {
        // It fails only for a counter at its largest value, and then the thread is told already.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take().filter(|t| t.thread().id() != std::thread::current().id()) {
            // A handler that panicked has ended the thread already.
            let _ = thread.join();
        }
    }
}
