//! Counts the guest's requests in flight and lets a host wait until there is none.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, PoisonError};

/// How many requests are in flight. Entering and leaving take no lock unless somebody waits.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    count: AtomicU64,
    waiting: AtomicU64,
    lock: Mutex<()>,
    idle: Condvar,
}

/// A request in flight, until it is dropped.
pub(crate) struct Request<'a>(&'a InFlight);

impl InFlight {
    pub(crate) fn enter(&self) -> Request<'_> {
        self.count.fetch_add(1, SeqCst);
        Request(self)
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(SeqCst)
    }

    /// Returns when no request is in flight.
    ///
    /// The waiter counts itself, then looks at the requests; the last request leaves, then looks for waiters. One of
    /// the two sees the other.
    pub(crate) fn drain(&self) {
        self.waiting.fetch_add(1, SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.count() > 0 {
            guard = self.idle.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.waiting.fetch_sub(1, SeqCst);
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, SeqCst) == 1 && self.0.waiting.load(SeqCst) > 0 {
            // The lock orders this wake-up after the waiter's look at the count.
            drop(self.0.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.0.idle.notify_all();
        }
    }
}
