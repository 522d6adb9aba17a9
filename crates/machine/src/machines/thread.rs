//! The thread kind, the default: a vCPU is a thread that executes operations on the mapped RAM. Any Linux, no KVM.

mod control;
mod free_map;
mod vcpu;

use crate::clock::{monotonic, time_of_day};
use crate::error::MachineError;
use crate::machine::{Asked, Hints, Machine, MachineSetup, Operations, Paused, Progress, Silence};
use crate::machines::{Kind, NO_OWN, NO_OWN_DISK};
use crate::saved::SavedState;
use control::{Command, Control, Place, lock};
use free_map::FreeMap;
use std::io;
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use vcpu::{Board, Vcpu};
use whimbrel_memory::GuestRam;
use whimbrel_model::registry::Entry;
use whimbrel_model::stream::Pacing;
use whimbrel_model::{Nanos, UnitSet};

/// The longest absence that open arrivals make up: two hosts' times of day may differ by anything.
const LONGEST_AWAY_NS: u64 = 600_000_000_000;

/// The member's entry.
pub const ENTRY: Entry<Kind> = Entry {
    name: "thread",
    summary: "a vCPU is a thread that executes the workload's operations on real memory; needs no KVM",
    parameters: &[],
    source: "Whimbrel",
    build: Kind {
        build: |setup| Ok(Arc::new(ThreadMachine::new(setup)?)),
        here: || Ok(()),
        default_ram_bytes: super::DEFAULT_RAM_BYTES,
        workload_pages: Ok,
        own: NO_OWN,
        own_disk: NO_OWN_DISK,
        throttles: true,
        throttles_here: || Ok(()),
        filled_by_host: true,
        takes_brought: false,
    },
};

/// A machine whose vCPUs are threads of this process.
pub struct ThreadMachine {
    board: Arc<Board>,
    vcpus: Vec<Arc<Mutex<Vcpu>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl ThreadMachine {
    /// Makes the machine, paused, and starts its threads, parked.
    ///
    /// # Errors
    /// The parts don't fit together, or there are no more threads.
    pub fn new(setup: MachineSetup) -> Result<Self, MachineError> {
        setup.check()?;
        let MachineSetup { ram, disk, shape, seed, software, .. } = setup;
        let Operations { streams, pacing, content, .. } = software.operations()?;
        let content = content.of_guest(&shape);
        let (free, control) = (FreeMap::new(shape.pages), Control::new(shape.vcpus));
        let board = Arc::new(Board { ram, disk, shape, seed, pacing, content, free, control });
        let vcpus: Vec<_> = (0..).zip(streams).map(|(i, s)| Arc::new(Mutex::new(Vcpu::new(i, s, &shape)))).collect();
        let machine = ThreadMachine { board, vcpus, threads: Mutex::new(Vec::new()) };
        for (index, vcpu) in machine.vcpus.iter().enumerate() {
            let (board, vcpu) = (Arc::clone(&machine.board), Arc::clone(vcpu));
            let thread = std::thread::Builder::new().name(format!("vcpu {index}"));
            let thread = thread.spawn(move || serve(&board, index, &vcpu)).map_err(MachineError::Thread)?;
            lock(&machine.threads).push(thread);
        }
        Ok(machine)
    }

    fn refuse_running(&self, what: &'static str) -> Result<(), MachineError> {
        if self.board.control.runs() { Err(MachineError::Running(what)) } else { Ok(()) }
    }
}

/// The life of a vCPU's thread.
fn serve(board: &Board, index: usize, vcpu: &Mutex<Vcpu>) {
    let seat = &board.control.seats()[index];
    seat.sit();
    // Sleeps end within microseconds of their time, not 50 us after. A kernel that refuses makes coarser sleeps.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    // 0: no run has been served; the count of the last one that failed afterwards.
    let mut failed_run = 0;
    while let Some(run) = board.control.await_run(failed_run) {
        let mut vcpu = lock(vcpu);
        seat.enter(Place::Executing);
        // A panic has said what it is; the machine must be able to pause and to say that it failed.
        let outcome = catch_unwind(AssertUnwindSafe(|| vcpu.run(board)));
        if let Err(error) = outcome.unwrap_or_else(|_| Err(io::Error::other("it panicked"))) {
            board.control.fail(format!("vCPU {index}: {error}"));
            failed_run = run;
        }
        drop(vcpu);
        seat.enter(Place::Parked);
        board.control.notify();
    }
}

impl Machine for ThreadMachine {
    fn ram(&self) -> &Arc<GuestRam> {
        &self.board.ram
    }

    fn run(&self) {
        if !self.board.control.runs() {
            self.board.control.command(Command::Run);
        }
    }

    fn give_up(&self) {
        self.board.control.command(Command::Stop);
    }

    fn pause(&self) -> Paused {
        let asked = monotonic();
        self.board.control.command(Command::Pause);
        Paused { asked, left: self.board.control.wait_left(asked) }
    }

    fn drain(&self) -> io::Result<()> {
        self.board.control.wait_parked();
        self.failure().map_or(Ok(()), |why| Err(io::Error::other(why)))
    }

    fn save_state(&self) -> Result<Vec<u8>, MachineError> {
        self.refuse_running("the device state can't be saved")?;
        self.board.control.wait_parked();
        let now = monotonic();
        let vcpus = self.vcpus.iter().map(|vcpu| lock(vcpu).save(now)).collect();
        Ok(SavedState::new(time_of_day(), vcpus).to_bytes())
    }

    fn load_state(&self, state: &[u8]) -> Result<(), MachineError> {
        self.refuse_running("no device state can be taken up")?;
        self.board.control.wait_parked();
        let saved = SavedState::from_bytes(state, &self.board.shape)?;
        let away = match self.board.pacing {
            Pacing::OpenCatchUp => time_of_day().since(saved.saved_at).0.min(LONGEST_AWAY_NS),
            Pacing::Closed | Pacing::OpenSkip => 0,
        };
        let now = monotonic();
        let mut free = UnitSet::empty(self.board.shape.pages);
        saved.vcpus.iter().for_each(|vcpu| free.union(&vcpu.free_set(self.board.shape.pages)));
        self.board.free.set(&free);
        for ((vcpu, saved), seat) in self.vcpus.iter().zip(&saved.vcpus).zip(self.board.control.seats()) {
            lock(vcpu).load(saved, seat, now, Nanos(away))?;
        }
        Ok(())
    }

    fn hints(&self, asked: Asked, _given_up: &dyn Fn() -> bool) -> Result<Hints, MachineError> {
        let pages = self.board.ram.pages();
        let (free, backed) = match asked {
            Asked::Free => (self.board.free.within(pages), Vec::new()),
            Asked::Copies => {
                (UnitSet::empty(pages), self.board.content.backed(self.board.seed, self.board.shape.pages))
            }
        };
        Ok(Hints { free, types: None, backed })
    }

    fn throttle(&self, share: f64) {
        self.board.control.set_throttle(share);
    }

    fn throttled_ns(&self) -> u64 {
        self.board.control.seats().iter().map(|seat| seat.throttled.load(Relaxed)).sum()
    }

    fn progress(&self) -> Progress {
        let seats = self.board.control.seats();
        Progress {
            units: seats.iter().map(|seat| seat.units.load(Relaxed)).sum(),
            operations: seats.iter().map(|seat| seat.operations.load(Relaxed)).collect(),
        }
    }

    fn silence(&self) -> Silence {
        let mut silence = Silence::default();
        for (longest, first, last) in self.board.control.seats().iter().map(control::Seat::silence) {
            silence.longest_ns = silence.longest_ns.max(longest);
            silence.first_beats.push(first);
            silence.last_beats.push(last);
        }
        silence
    }

    fn reset_silence(&self) {
        self.board.control.seats().iter().for_each(control::Seat::reset_silence);
    }

    fn failure(&self) -> Option<String> {
        self.board.control.failure()
    }

    fn stop(&self) {
        self.board.control.command(Command::Stop);
        for thread in lock(&self.threads).drain(..) {
            // What panics in a vCPU is caught there.
            let _ = thread.join();
        }
    }
}

impl Drop for ThreadMachine {
    fn drop(&mut self) {
        self.stop();
    }
}
