//! The machine whose state can't be read: it proves that a switchover which fails leaves the guest where it was.

use super::thread::ThreadMachine;
use super::{Kind, NO_OWN, NO_OWN_DISK};
use crate::error::MachineError;
use crate::machine::{Asked, Hints, Machine, Paused, Progress, Silence, Testimony};
use std::io;
use std::sync::Arc;
use whimbrel_memory::GuestRam;
use whimbrel_model::registry::Entry;

pub const ENTRY: Entry<Kind> = Entry {
    name: "faulty",
    summary: "its device state can't be read, so that every move is aborted in the pause: for tests of the unwinding",
    parameters: &[],
    source: "Whimbrel, for tests",
    build: Kind {
        build: |setup| Ok(Arc::new(Faulty { sound: ThreadMachine::new(setup)? })),
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

/// A thread machine that keeps its state to itself.
struct Faulty {
    sound: ThreadMachine,
}

impl Machine for Faulty {
    fn ram(&self) -> &Arc<GuestRam> {
        self.sound.ram()
    }

    fn run(&self) {
        self.sound.run();
    }

    fn give_up(&self) {
        self.sound.give_up();
    }

    fn pause(&self) -> Paused {
        self.sound.pause()
    }

    fn drain(&self) -> io::Result<()> {
        self.sound.drain()
    }

    fn save_state(&self) -> Result<Vec<u8>, MachineError> {
        Err(MachineError::State("a faulty machine keeps it to itself".to_owned()))
    }

    fn load_state(&self, state: &[u8]) -> Result<(), MachineError> {
        self.sound.load_state(state)
    }

    /// The judge may know what the engine may not.
    fn testimony(&self, frozen: bool) -> Result<Option<Testimony>, MachineError> {
        self.sound.testimony(frozen)
    }

    fn hints(&self, asked: Asked, given_up: &dyn Fn() -> bool) -> Result<Hints, MachineError> {
        self.sound.hints(asked, given_up)
    }

    fn throttle(&self, share: f64) {
        self.sound.throttle(share);
    }

    fn throttled_ns(&self) -> u64 {
        self.sound.throttled_ns()
    }

    fn progress(&self) -> Progress {
        self.sound.progress()
    }

    fn silence(&self) -> Silence {
        self.sound.silence()
    }

    fn reset_silence(&self) {
        self.sound.reset_silence();
    }

    fn failure(&self) -> Option<String> {
        self.sound.failure()
    }

    fn stop(&self) {
        self.sound.stop();
    }
}
