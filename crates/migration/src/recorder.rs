//! Where a host's events go: one list, one clock.

use std::sync::{Arc, Mutex, PoisonError};
use whimbrel_model::{Event, Mark, Nanos, Recorded};

/// Collects the events of one host. Clones share the list.
#[derive(Clone, Debug)]
pub struct Recorder {
    host: Mark,
    events: Arc<Mutex<Vec<Recorded>>>,
}

impl Recorder {
    /// An empty list for `host`.
    pub fn new(host: Mark) -> Self {
        Recorder { host, events: Arc::default() }
    }

    /// Records an event that happened at an instant of this host's clock.
    pub fn record_at(&self, at_ns: Nanos, event: Event) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(Recorded { at_ns, host: self.host, event });
    }

    /// Records an event that happens now.
    pub fn record(&self, event: Event) {
        self.record_at(whimbrel_wire::clock::now(), event);
    }

    /// What was recorded, by time.
    pub fn take(&self) -> Vec<Recorded> {
        let mut events = std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner));
        events.sort_by_key(|e| e.at_ns);
        events
    }
}
