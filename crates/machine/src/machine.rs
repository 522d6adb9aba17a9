//! The seam: what the engine asks of a machine, of whatever kind.
//!
//! ```text
//!             run ──────────────►
//!   paused ◄────── pause ────────  running
//!     │ drain (requests in flight are done), then save_state or load_state
//! ```

use crate::brought::Brought;
use crate::error::MachineError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use whimbrel_disk::GuestDisk;
use whimbrel_memory::GuestRam;
use whimbrel_model::content::Content;
use whimbrel_model::event::Requests;
use whimbrel_model::stream::{Pacing, Shape, Stream};
use whimbrel_model::{Backed, Nanos, Page, PageTypes, UnitSet};

/// A guest's machine. It is made paused: before operation 0, or about to take up a state from elsewhere. Calls may come from any thread, but [`Machine::run`],
/// [`Machine::pause`] and the calls about device state from one at a time.
pub trait Machine: Send + Sync {
    /// The guest's RAM, perhaps another view of the memory object that the machine was made over. The dirty log and the
    /// missing pages are its, not the machine's.
    fn ram(&self) -> &Arc<GuestRam>;

    /// Lets the vCPUs execute. No effect while they do.
    fn run(&self);

    /// The guest is lost: what its pages hold isn't its own any more. From here on no vCPU begins an operation, nor, where it executes
    /// guest code, goes on when the page that it waits for is mapped. Those that wait for one are not waited for.
    fn give_up(&self);

    /// Stops the vCPUs. Returns when none executes guest code: each is parked, or waits for the disk. A vCPU that waits
    /// for a missing page is waited for.
    fn pause(&self) -> Paused;

    /// After [`Machine::pause`]: returns when the disk requests in flight are done and the operations that made them
    /// completed.
    ///
    /// # Errors
    /// A request failed; its operation is not completed.
    fn drain(&self) -> io::Result<()>;

    /// After [`Machine::drain`]: everything of the guest that is neither page nor block.
    ///
    /// # Errors
    /// The vCPUs run.
    fn save_state(&self) -> Result<Vec<u8>, MachineError>;

    /// Takes up the state that [`Machine::save_state`] gave in a machine built alike. The bytes may come from anywhere:
    /// they are checked. After an error the machine is not fit to run.
    ///
    /// # Errors
    /// The vCPUs run, or the bytes are no state of this machine.
    fn load_state(&self, state: &[u8]) -> Result<(), MachineError>;

    /// After [`Machine::drain`], for the judge: how far the guest is, and where the workload's pages lie. A guest that
    /// must be asked goes on for as long as that takes, and is paused again afterwards; where it has left, which is
    /// `frozen`, it must not, and the answer is `None`.
    ///
    /// # Errors
    /// The vCPUs run, or the guest does not answer.
    fn testimony(&self, frozen: bool) -> Result<Option<Testimony>, MachineError> {
        let _ = frozen;
        Ok(Some(Testimony { state: self.save_state()?, frames: None }))
    }

    /// What a switchover takes, about, whatever the bytes and the link: to pause, to drain, to save the state and to take it up. A
    /// downtime is predicted from it; two round trips come to it.
    fn switchover(&self) -> Nanos {
        Nanos(500_000)
    }

    /// What the guest knows of its own pages, of what is asked. To be asked while it runs, and, where pages are to be left out by
    /// the answer, once the dirty log is armed: see [`Hints`]. Where the guest must be waited for, `given_up` is asked now and
    /// then whether the answer is wanted no more.
    ///
    /// # Errors
    /// Nothing in the guest knows, what it says can't be relied on, it does not answer, or the question was given up.
    fn hints(&self, asked: Asked, given_up: &dyn Fn() -> bool) -> Result<Hints, MachineError> {
        let _ = (asked, given_up);
        Err(MachineError::Setup("nothing in this guest tells what it knows of its pages".to_owned()))
    }

    /// Makes ready to leave by a migration of the hypervisor's own: the sockets at which its streams come in, in order, from
    /// [`Machine::leave_by_itself`] on.
    ///
    /// # Errors
    /// The machine has no such migration, or the hypervisor lacks what it takes.
    fn prepare_to_leave(&self, own: &OwnMove) -> Result<OwnEnds<UnixListener>, MachineError> {
        Err(no_own(own))
    }

    /// After [`Machine::prepare_to_leave`]: returns when the guest has left. After an error it is here, and may be paused; but
    /// after [`MachineError::Departed`] it may run at the destination, and must not run here.
    ///
    /// # Errors
    /// The migration has failed, or didn't end in time.
    fn leave_by_itself(&self, own: &OwnMove) -> Result<Departure, MachineError> {
        Err(no_own(own))
    }

    /// Makes ready to arrive by a migration of the hypervisor's own: the paths of the sockets to which the streams are to
    /// be connected, in order.
    ///
    /// # Errors
    /// As [`Machine::prepare_to_leave`].
    fn prepare_to_arrive(&self, own: &OwnMove) -> Result<OwnEnds<PathBuf>, MachineError> {
        Err(no_own(own))
    }

    /// After [`Machine::prepare_to_arrive`]: returns when the guest is here and lacks nothing. Of a disk that moves
    /// too, `disk_whole` hears before the guest runs here: nothing arrives any more. `resumed` hears of the instant at which
    /// it began to run here.
    ///
    /// # Errors
    /// It could not be taken in.
    fn arrive_by_itself(
        &self,
        own: &OwnMove,
        disk_whole: &dyn Fn(),
        resumed: &dyn Fn(Nanos),
    ) -> Result<(), MachineError> {
        let _ = (disk_whole, resumed);
        Err(no_own(own))
    }

    /// CPU time that the guest took outside this process, in nanoseconds.
    fn cpu_ns(&self) -> u64 {
        0
    }

    /// What executes the guest, as a row says it: `none` where it is this program itself.
    fn accelerator(&self) -> &'static str {
        "none"
    }

    /// Whether [`Machine::throttle`] can do anything, where the kind says so of all its machines.
    ///
    /// # Errors
    /// Why not.
    fn can_throttle(&self) -> Result<(), MachineError> {
        Ok(())
    }

    /// Takes `share` of each vCPU's time from now on: 0 gives all of it back. Held to at most 0.99.
    fn throttle(&self, share: f64);

    /// The vCPU time that throttling took so far, in nanoseconds, summed over the vCPUs.
    fn throttled_ns(&self) -> u64;

    /// How far the guest is. Exact while it is paused and drained.
    fn progress(&self) -> Progress;

    /// The guest's own heartbeats since it was made or [`Machine::reset_silence`] was called.
    fn silence(&self) -> Silence;

    /// Forgets the longest silence, the first heartbeats and the requests.
    fn reset_silence(&self);

    /// Why a vCPU has stopped for good, if one has: its disk failed.
    fn failure(&self) -> Option<String>;

    /// Ends the machine: its vCPUs stop and their threads are gone when this returns. RAM and disk stay as they are.
    /// Where a vCPU waits for a missing page or block, that wait must be ended first.
    fn stop(&self);
}

fn no_own(own: &OwnMove) -> MachineError {
    MachineError::Setup(format!("this machine has no migration of its own named {:?}", own.memory))
}

/// A move that the hypervisor makes itself, by the names in the registries of its kind of machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnMove {
    /// How memory moves.
    pub memory: String,
    /// The parameters of that, as they were written.
    pub parameters: BTreeMap<String, Value>,
    /// How the disk moves; `None` without a disk.
    pub disk: Option<String>,
}

/// One end of the streams of such a move.
#[derive(Debug)]
pub struct OwnEnds<S> {
    /// Of the migration's own streams.
    pub memory: S,
    /// Of the disk's one stream.
    pub disk: Option<S>,
}

/// A guest that has left by a migration of the hypervisor's own.
#[derive(Clone, Debug, PartialEq)]
pub struct Departure {
    /// When its last vCPU left guest code here.
    pub paused: Nanos,
    /// When the hypervisor said that its disk is whole at the destination, if it has moved one.
    pub disk_whole: Option<Nanos>,
    /// What the hypervisor says of it, as it says it.
    pub figures: Value,
}

/// When a machine was paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paused {
    /// The call, by this host's monotonic clock.
    pub asked: Nanos,
    /// The instant at which the last vCPU left guest code; not before `asked`.
    pub left: Nanos,
}

/// How far a guest is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Work done since operation 0, in units that the workload declares, summed over the vCPUs.
    pub units: u64,
    /// Operations completed, one count a vCPU; empty where nothing counts them, in a guest that its user brought.
    pub operations: Vec<u64>,
}

/// What the heartbeats say. Every vCPU that executes gives one at least every 200 us, also while it idles or waits for
/// its pace; none while it is paused, throttled, or waits for the disk or a missing page. Of a guest that its user brought
/// they are the answers that a client gets, if there is one: one count, whatever the vCPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Silence {
    /// The longest time between two heartbeats of one vCPU, in nanoseconds. One that began before the reset counts whole.
    pub longest_ns: u64,
    /// Each vCPU's first heartbeat, by this host's monotonic clock; 0: none yet.
    pub first_beats: Vec<Nanos>,
    /// Each vCPU's last heartbeat; 0: none yet.
    pub last_beats: Vec<Nanos>,
    /// What the guest's own clock said at the first heartbeat and at the last; `None`: it has none, or was not heard.
    pub own_clock: [Option<Nanos>; 2],
    /// Where heartbeats are a client's answers: its requests.
    pub requests: Option<Requests>,
}

/// What a guest is asked of its own pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Asked {
    /// Which are free.
    Free,
    /// Which are copies of what the disk holds.
    Copies,
}

/// What a guest knows of its own pages; of what it was not asked, nothing.
///
/// A page may be taken into use at any time, also before the answer is read. But who takes one writes it before its content
/// matters to anybody (a thread machine's Allocate makes it zero, and Linux relies on nothing that it has not written, unless
/// it was told to), and calls it free no longer before it does. So a page that is named here and whose next write a dirty log would
/// show, and does not show, holds what is nobody's still. Such a log was armed, and last taken, before the question; a write that
/// a take has shown before the question says nothing, for the page was freed after it; and none may be taken between the
/// question and the answer, for nobody would know on which side of it the page was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hints {
    /// Over the pages of RAM: those that were free at an instant between the question and the answer, each at its own.
    pub free: UnitSet<Page>,
    /// What all pages are; `None`: the guest has no kernel that could tell, or was asked for copies.
    pub types: Option<PageTypes>,
    /// Pages that hold what is on the disk, as far as the guest knows: some may have been written since. Who goes by it looks.
    pub backed: Vec<Backed>,
}

/// What a guest says of itself to the judge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Testimony {
    /// Its vCPUs, as [`crate::SavedState`] has them.
    pub state: Vec<u8>,
    /// The page of RAM in which each page of the workload lies; `None`: the first lies in the first, and so on.
    pub frames: Option<Vec<u64>>,
}

/// How a machine begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Before operation 0.
    New,
    /// With a state that [`Machine::load_state`] will bring; until then there is nothing to run.
    Arriving,
    /// By a migration of the hypervisor's own, [`Machine::prepare_to_arrive`]; until then there is nothing to run.
    ArrivingByItself,
}

/// What a machine is built from.
pub struct MachineSetup {
    /// How it begins.
    pub begin: Begin,
    /// The RAM; the workload uses `shape.pages` of its pages.
    pub ram: Arc<GuestRam>,
    /// The disk, if the guest has one.
    pub disk: Option<Arc<dyn GuestDisk>>,
    /// The guest's size.
    pub shape: Shape,
    /// The seed of all that is written.
    pub seed: u64,
    /// What it executes.
    pub software: Software,
}

/// What a guest executes.
pub enum Software {
    /// A workload's operations.
    Operations(Operations),
    /// What its user brought, of which nothing is known.
    Brought(Box<Brought>),
}

/// A workload's operations.
pub struct Operations {
    /// The streams, one a vCPU.
    pub streams: Vec<Box<dyn Stream>>,
    /// What the streams are made of, in JSON: for a machine that executes them in another program.
    pub recipe: String,
    /// What happens to operations that could not start when they were due.
    pub pacing: Pacing,
    /// What RAM and disk hold before operation 0.
    pub content: Content,
}

impl Software {
    /// The operations, for a machine that executes nothing else.
    ///
    /// # Errors
    /// There are none.
    pub fn operations(self) -> Result<Operations, MachineError> {
        match self {
            Software::Operations(operations) => Ok(operations),
            Software::Brought(_) => {
                let why = "this machine executes a workload's operations, and the guest has software of its own";
                Err(MachineError::Setup(why.to_owned()))
            }
        }
    }
}

impl MachineSetup {
    /// Whether the parts fit together.
    ///
    /// # Errors
    /// They don't; the message says which.
    pub fn check(&self) -> Result<(), MachineError> {
        let refuse = |why: String| Err(MachineError::Setup(why));
        let shape = self.shape;
        if let Software::Operations(Operations { streams, .. }) = &self.software
            && (shape.vcpus == 0 || streams.len() != shape.vcpus as usize)
        {
            return refuse(format!("{} streams for {} vCPUs", streams.len(), shape.vcpus));
        }
        if shape.pages > self.ram.pages() {
            return refuse(format!("the workload has {} pages, RAM {}", shape.pages, self.ram.pages()));
        }
        let bytes = self.disk.as_ref().map_or(0, |disk| disk.size_bytes());
        if shape.sectors > bytes / whimbrel_model::op::SECTOR_BYTES {
            return refuse(format!("the workload has {} sectors, the disk {bytes} bytes", shape.sectors));
        }
        Ok(())
    }
}
