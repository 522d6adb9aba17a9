//! The host's end of the guest's port: hears the agent in the guest, and stamps its heartbeats by the host's clock.

use super::words::{FromGuest, ToGuest, backed_frames, from_run_lengths, hear, line};
use crate::clock::monotonic;
use crate::error::MachineError;
use crate::machine::{Asked, Hints, Progress, Silence};
use std::io::{BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use whimbrel_model::rng::derive;
use whimbrel_model::{Nanos, PageTypes};

/// How often a wait looks whether it should be given up.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What is answered to a question.
enum Told {
    /// What the guest knows of its pages.
    Pages(OfPages),
    /// QEMU's own migrations hear which are.
    Offered,
}

/// As [`FromGuest::Hints`] has it.
struct OfPages {
    free: Vec<u64>,
    types: Option<PageTypes>,
    backed: Vec<(u64, u64, u64)>,
}

#[derive(Default)]
struct Heard {
    here: Option<u64>,
    ready: bool,
    frozen: Option<(String, Vec<(u64, u64)>)>,
    /// The last answer to a question about pages, with the question's number; `Err`: why there is none.
    hints: Option<(u64, Result<Told, String>)>,
    failed: Option<String>,
    closed: Option<String>,
    progress: Progress,
    longest_ns: u64,
    first: Nanos,
    last: Nanos,
    /// What the guest's clock said at both.
    own_clock: [Option<Nanos>; 2],
}

#[derive(Default)]
struct Shared {
    heard: Mutex<Heard>,
    changed: Condvar,
}

/// Whether the agent may be asked, and the question that it has not answered.
///
/// QEMU puts what is written to the port into the RAM of a guest that stands as well. Once all RAM has been carried over that is a
/// page which the other host lacks, so a guest that stands is asked nothing.
#[derive(Default)]
struct Asking {
    allowed: bool,
    open: Option<u64>,
}

/// The connection to the agent in the guest.
pub(super) struct Port {
    stream: UnixStream,
    asking: Mutex<Asking>,
    shared: Arc<Shared>,
    vcpus: usize,
}

impl Port {
    /// Listens from now on.
    ///
    /// # Errors
    /// There are no more threads or descriptors.
    pub(super) fn over(stream: UnixStream, vcpus: u32) -> Result<Self, MachineError> {
        let shared = Arc::new(Shared::default());
        let told = Arc::clone(&shared);
        let reader = BufReader::new(stream.try_clone()?);
        std::thread::Builder::new()
            .name("guest-port".to_owned())
            .spawn(move || listen(reader, vcpus as usize, &told))
            .map_err(MachineError::Thread)?;
        Ok(Port { stream, asking: Mutex::default(), shared, vcpus: vcpus as usize })
    }

    /// Says something to the agent.
    ///
    /// # Errors
    /// QEMU has closed the port.
    pub(super) fn say(&self, words: &ToGuest) -> Result<(), MachineError> {
        Ok((&self.stream).write_all(&line(words))?)
    }

    /// Waits for the agent's first word: the memory that the guest could give, in bytes.
    pub(super) fn wait_here(
        &self,
        patience: Duration,
        ended: &dyn Fn() -> Option<String>,
    ) -> Result<u64, MachineError> {
        self.wait("to start", patience, ended, |heard| heard.here)
    }

    /// Waits until all is ready for operation 0.
    pub(super) fn wait_ready(
        &self,
        patience: Duration,
        ended: &dyn Fn() -> Option<String>,
    ) -> Result<(), MachineError> {
        self.wait("to be ready", patience, ended, |heard| heard.ready.then_some(()))
    }

    /// Has the agent stop between two operations: its vCPUs, and where the workload's pages lie.
    pub(super) fn freeze(
        &self,
        patience: Duration,
        ended: &dyn Fn() -> Option<String>,
    ) -> Result<(String, Vec<(u64, u64)>), MachineError> {
        self.heard().frozen = None;
        self.say(&ToGuest::Freeze)?;
        self.wait("to stop between two operations", patience, ended, |heard| heard.frozen.take())
    }

    /// Asks the agent what the guest knows of its frames, of so many.
    ///
    /// # Errors
    /// It can't tell, or does not answer in time, as where the guest is paused.
    pub(super) fn hints(
        &self,
        asked: Asked,
        frames: u64,
        patience: Duration,
        ended: &dyn Fn() -> Option<String>,
    ) -> Result<Hints, MachineError> {
        match self.ask(&|question| ToGuest::Hint { question, asked, frames }, patience, ended)? {
            Told::Pages(told) => Ok(Hints {
                free: from_run_lengths(&told.free, frames)?,
                types: told.types,
                backed: backed_frames(&told.backed, frames)?,
            }),
            Told::Offered => Err(answers_another_question()),
        }
    }

    /// Has the agent let QEMU's own migrations hear which pages are free.
    ///
    /// # Errors
    /// As [`Port::hints`].
    pub(super) fn offer_free(
        &self,
        patience: Duration,
        ended: &dyn Fn() -> Option<String>,
    ) -> Result<(), MachineError> {
        match self.ask(&|question| ToGuest::OfferFree { question }, patience, ended)? {
            Told::Offered => Ok(()),
            Told::Pages(_) => Err(answers_another_question()),
        }
    }

    /// From now on the agent may be asked.
    pub(super) fn may_ask(&self) {
        self.asking().allowed = true;
    }

    /// From now on nobody asks the agent. Whether it has a question to answer.
    pub(super) fn hush(&self) -> bool {
        let mut asking = self.asking();
        asking.allowed = false;
        asking.open.is_some()
    }

    fn asking(&self) -> MutexGuard<'_, Asking> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(
        &self,
        words: &dyn Fn(u64) -> ToGuest,
        patience: Duration,
        ended: &dyn Fn() -> Option<String>,
    ) -> Result<Told, MachineError> {
        // The same at no other time and in no other process, at this host or at the one that the guest moves to.
        let question = derive(u64::from(std::process::id()), monotonic().0);
        {
            let mut asking = self.asking();
            if !asking.allowed {
                return Err(MachineError::Hypervisor("the guest is paused, and can't be asked".to_owned()));
            }
            self.say(&words(question))?;
            asking.open = Some(question);
        }
        let what = "to say what it knows of its pages";
        let answer = self.wait(what, patience, ended, |heard| heard.hints.take_if(|(of, _)| *of == question))?;
        self.asking().open.take_if(|open| *open == question);
        answer.1.map_err(MachineError::Hypervisor)
    }

    fn wait<T>(
        &self,
        what: &str,
        patience: Duration,
        ended: &dyn Fn() -> Option<String>,
        mut pick: impl FnMut(&mut Heard) -> Option<T>,
    ) -> Result<T, MachineError> {
        let end = Instant::now() + patience;
        loop {
            // Asked before the lock is taken: it may ask this port.
            let ended = ended();
            let mut heard = self.heard();
            if let Some(picked) = pick(&mut heard) {
                return Ok(picked);
            }
            if let Some(why) = heard.failed.clone().or(ended) {
                return Err(MachineError::Hypervisor(why));
            }
            if Instant::now() >= end {
                let why = format!("the guest's agent took longer than {} s {what}", patience.as_secs());
                return Err(MachineError::Hypervisor(why));
            }
            drop(self.shared.changed.wait_timeout(heard, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// How far the guest was at its last heartbeat; of one that arrives nothing is known before the first.
    pub(super) fn progress(&self) -> Progress {
        self.heard().progress.clone()
    }

    /// The heartbeats as they were heard. They are the agent's: each vCPU gets the same.
    pub(super) fn silence(&self) -> Silence {
        let heard = self.heard();
        Silence {
            longest_ns: heard.longest_ns,
            first_beats: vec![heard.first; self.vcpus],
            last_beats: vec![heard.last; self.vcpus],
            own_clock: heard.own_clock,
            requests: None,
        }
    }

    /// Forgets the longest silence and the first heartbeat.
    pub(super) fn reset_silence(&self) {
        let mut heard = self.heard();
        heard.longest_ns = 0;
        (heard.first, heard.own_clock[0]) = (Nanos(0), None);
    }

    /// Why the agent can't go on, if so.
    pub(super) fn failed(&self) -> Option<String> {
        self.heard().failed.clone()
    }

    /// Why nothing can be heard any more, if the connection broke: as a rule QEMU has ended.
    pub(super) fn closed(&self) -> Option<String> {
        self.heard().closed.clone()
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.shared.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answers_another_question() -> MachineError {
    MachineError::Hypervisor("the guest's agent answers another question than it was asked".to_owned())
}

impl Drop for Port {
    fn drop(&mut self) {
        // The listener ends at this; QEMU may have ended it already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn listen(mut reader: BufReader<UnixStream>, vcpus: usize, shared: &Shared) {
    loop {
        let word = hear::<FromGuest>(&mut reader);
        let now = monotonic();
        let mut heard = shared.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let mut over = false;
        match word {
            Ok(Some(FromGuest::Here { available_bytes })) => heard.here = Some(available_bytes),
            Ok(Some(FromGuest::Ready)) => {
                heard.ready = true;
                heard.progress = Progress { units: 0, operations: vec![0; vcpus] };
            }
            Ok(Some(FromGuest::Beat { operations, .. })) if operations.len() != vcpus => {
                heard.failed = Some(format!("the guest's agent tells of {} vCPUs of {vcpus}", operations.len()));
            }
            Ok(Some(FromGuest::Beat { clock_ns, units, operations })) => {
                if heard.last.0 != 0 {
                    heard.longest_ns = heard.longest_ns.max(now.since(heard.last).0);
                }
                if heard.first.0 == 0 {
                    (heard.first, heard.own_clock[0]) = (now, Some(Nanos(clock_ns)));
                }
                (heard.last, heard.own_clock[1]) = (now, Some(Nanos(clock_ns)));
                heard.progress = Progress { units, operations };
            }
            Ok(Some(FromGuest::Frozen { state, frames })) => heard.frozen = Some((state, frames)),
            Ok(Some(FromGuest::Hints { question, free, types, backed })) => {
                heard.hints = Some((question, Ok(Told::Pages(OfPages { free, types, backed }))));
            }
            Ok(Some(FromGuest::OffersFree { question })) => heard.hints = Some((question, Ok(Told::Offered))),
            Ok(Some(FromGuest::NoHints { question, why })) => heard.hints = Some((question, Err(why))),
            Ok(Some(FromGuest::Failed { why })) => heard.failed = Some(format!("the guest's agent: {why}")),
            // QEMU's own end is told of by its monitor.
            Ok(None) => over = true,
            Err(error) => {
                heard.closed = Some(format!("the guest's port: {error}"));
                over = true;
            }
        }
        drop(heard);
        shared.changed.notify_all();
        if over {
            return;
        }
    }
}
