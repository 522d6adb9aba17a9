//! Where a host's events go: one list, one clock.

use std::sync::{Arc, Mutex, PoisonError};
use whimbrel_machine::{Machine, Silence};
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

    /// Records how far the guest is, at an instant. Of one of which nobody knows there is nothing to record.
    pub fn progress(&self, at: Nanos, machine: &dyn Machine) {
        let progress = machine.progress();
        if !progress.operations.is_empty() {
            self.record_at(at, Event::Work { units: progress.units, operations: progress.operations });
        }
    }

    /// Records what the heartbeats say of a guest that leaves this host, or has tried to.
    pub fn departure(&self, machine: &dyn Machine) {
        self.silence(machine.silence(), |silence| (silence.last_beats, silence.own_clock[1]));
    }

    /// Records what the heartbeats say of a guest that came to this host.
    pub fn arrival(&self, machine: &dyn Machine) {
        self.silence(machine.silence(), |silence| (silence.first_beats, silence.own_clock[0]));
    }

    fn silence(&self, heard: Silence, edge: fn(Silence) -> (Vec<Nanos>, Option<Nanos>)) {
        if let Some(requests) = heard.requests {
            self.record(Event::Served { requests });
        }
        let longest_ns = heard.longest_ns;
        let (edge, said) = edge(heard);
        if let (Some(said), Some(heard)) = (said, edge.first()) {
            self.record(Event::GuestClock { heard: *heard, said });
        }
        // Where nothing beats there is no silence.
        if !edge.is_empty() {
            self.record(Event::Silence { longest_ns, edge });
        }
    }

    /// What was recorded, by time.
    pub fn take(&self) -> Vec<Recorded> {
        let mut events = std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner));
        events.sort_by_key(|e| e.at_ns);
        events
    }
}
