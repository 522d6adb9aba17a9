//! How vCPU threads are told to run, pause and stop, and what they tell: two words that are written and read in turn.
//!
//! A vCPU says where it is *before* it looks at the command; whoever commands writes *before* looking where the vCPUs are.
//! Both are sequentially consistent, so at least one sees the other: a vCPU that is seen outside guest code finds the
//! command before it executes again.
//!
//! ```text
//!            command is Run                 a disk operation begins
//!   Parked ──────────────────► Executing ◄────────────────────────► AtDisk
//!     ▲  ▲       command is not Run │         and ends, completed      │
//!     │  └──────────────────────────┘                                  │
//!     └─────────────── the disk failed (until run is called) ──────────┘
//! ```

use crate::clock::monotonic;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU8, AtomicU64};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::Thread;
use std::time::Duration;
use whimbrel_model::Nanos;

/// How long a vCPU that idles or waits sleeps at most before it gives a heartbeat.
const SLICE_NS: u64 = 170_000;

/// How often a waiting caller looks by itself, should a notice come early.
const LOOK_AGAIN: Duration = Duration::from_micros(200);

/// What the vCPUs are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Pause,
    Run,
    Stop,
}

/// Where a vCPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Parked,
    Executing,
    AtDisk,
}

/// What all vCPUs of a machine and its callers share.
pub(super) struct Control {
    command: AtomicU8,
    /// Counts the calls of run: a vCPU whose disk failed tries again only after a new one.
    runs: AtomicU64,
    /// Share of the time that is taken from the vCPUs, as the bits of an `f64`.
    throttle: AtomicU64,
    gate: Mutex<()>,
    changed: Condvar,
    failure: Mutex<Option<String>>,
    seats: Vec<Seat>,
}

/// One vCPU's public words, on cache lines of their own: its thread writes them after every operation.
#[repr(align(128))]
#[derive(Default)]
pub(super) struct Seat {
    place: AtomicU8,
    left: AtomicU64,
    pub(super) operations: AtomicU64,
    pub(super) units: AtomicU64,
    pub(super) throttled: AtomicU64,
    first_beat: AtomicU64,
    last_beat: AtomicU64,
    longest: AtomicU64,
    thread: OnceLock<Thread>,
}

impl Seat {
    /// Says where the vCPU is. Only its own thread says so.
    pub(super) fn enter(&self, place: Place) {
        if place != Place::Executing {
            self.left.store(monotonic().0, Relaxed);
        }
        self.place.store(place as u8, SeqCst);
    }

    fn is(&self, place: Place) -> bool {
        self.place.load(SeqCst) == place as u8
    }

    /// A heartbeat. Only the vCPU's own thread gives one, so plain loads and stores do.
    pub(super) fn beat(&self, now: Nanos) {
        let last = self.last_beat.load(Relaxed);
        self.last_beat.store(now.0, Relaxed);
        if last != 0 && now.0.saturating_sub(last) > self.longest.load(Relaxed) {
            self.longest.store(now.0 - last, Relaxed);
        }
        if self.first_beat.load(Relaxed) == 0 {
            self.first_beat.store(now.0, Relaxed);
        }
    }

    /// The longest silence, the first heartbeat and the last one.
    pub(super) fn silence(&self) -> (u64, Nanos, Nanos) {
        (self.longest.load(Relaxed), Nanos(self.first_beat.load(Relaxed)), Nanos(self.last_beat.load(Relaxed)))
    }

    pub(super) fn reset_silence(&self) {
        self.longest.store(0, Relaxed);
        self.first_beat.store(0, Relaxed);
    }

    /// Binds the seat to the calling thread, which a command then wakes.
    pub(super) fn sit(&self) {
        let _ = self.thread.set(std::thread::current());
    }

    /// Sleeps until `until`, a command, or the next heartbeat is due.
    pub(super) fn nap(&self, now: Nanos, until: Nanos) {
        std::thread::park_timeout(Duration::from_nanos(until.since(now).0.min(SLICE_NS)));
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

impl Control {
    pub(super) fn new(vcpus: u32) -> Self {
        Control {
            command: AtomicU8::new(Command::Pause as u8),
            runs: AtomicU64::new(0),
            throttle: AtomicU64::new(0),
            gate: Mutex::new(()),
            changed: Condvar::new(),
            failure: Mutex::new(None),
            seats: (0..vcpus).map(|_| Seat::default()).collect(),
        }
    }

    pub(super) fn seats(&self) -> &[Seat] {
        &self.seats
    }

    /// Whether the command is still to run. A vCPU asks before every operation.
    #[inline]
    pub(super) fn runs(&self) -> bool {
        self.command.load(SeqCst) == Command::Run as u8
    }

    /// Commands the vCPUs, and wakes those that sleep. Once they are to stop, nothing else is a command any more.
    pub(super) fn command(&self, command: Command) {
        if command == Command::Run {
            *lock(&self.failure) = None;
            self.runs.fetch_add(1, SeqCst);
        }
        let unless_stopped = |now| (now != Command::Stop as u8).then_some(command as u8);
        let _ = self.command.fetch_update(SeqCst, SeqCst, unless_stopped);
        self.notify();
        self.seats.iter().for_each(Seat::wake);
    }

    /// Tells whoever waits that a vCPU's place or the command has changed.
    pub(super) fn notify(&self) {
        let _gate = lock(&self.gate);
        self.changed.notify_all();
    }

    /// Blocks until `true_now`.
    fn wait(&self, mut true_now: impl FnMut() -> bool) {
        let mut gate = lock(&self.gate);
        while !true_now() {
            gate = self.changed.wait_timeout(gate, LOOK_AGAIN).unwrap_or_else(|e| e.into_inner()).0;
        }
    }

    /// Waits until no vCPU executes; returns the instant at which the last one left, not before `asked`.
    pub(super) fn wait_left(&self, asked: Nanos) -> Nanos {
        self.wait(|| self.seats.iter().all(|seat| !seat.is(Place::Executing)));
        self.seats.iter().map(|seat| Nanos(seat.left.load(Relaxed))).fold(asked, Nanos::max)
    }

    /// Waits until every vCPU is parked.
    pub(super) fn wait_parked(&self) {
        self.wait(|| self.seats.iter().all(|seat| seat.is(Place::Parked)));
    }

    /// Blocks a parked vCPU until it is to run, and more often than `served` times so; returns how often that was, or
    /// `None` when it is to stop.
    pub(super) fn await_run(&self, served: u64) -> Option<u64> {
        let mut gate = lock(&self.gate);
        loop {
            let runs = self.runs.load(SeqCst);
            match self.command.load(SeqCst) {
                c if c == Command::Stop as u8 => return None,
                c if c == Command::Run as u8 && runs > served => return Some(runs),
                _ => gate = self.changed.wait(gate).unwrap_or_else(|e| e.into_inner()),
            }
        }
    }

    pub(super) fn fail(&self, why: String) {
        lock(&self.failure).get_or_insert(why);
    }

    pub(super) fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }

    pub(super) fn set_throttle(&self, share: f64) {
        let share = if share.is_nan() { 0.0 } else { share.clamp(0.0, 0.99) };
        self.throttle.store(share.to_bits(), Relaxed);
    }

    #[inline]
    pub(super) fn throttle(&self) -> f64 {
        f64::from_bits(self.throttle.load(Relaxed))
    }
}

/// Locks a mutex that guards nothing which a panic could leave half done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
