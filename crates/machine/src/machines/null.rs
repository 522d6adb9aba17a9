//! The machine that executes nothing: a guest of which only its pages and blocks move.

use super::thread::ThreadMachine;
use super::{Kind, NO_OWN, NO_OWN_DISK};
use crate::error::MachineError;
use crate::machine::{Asked, Hints, Machine, Paused, Progress, Silence};
use std::io;
use std::sync::Arc;
use whimbrel_memory::GuestRam;
use whimbrel_model::registry::Entry;

pub const ENTRY: Entry<Kind> = Entry {
    name: "null",
    summary: "executes nothing: the floor of the measurement, what a move costs by itself",
    parameters: &[],
    source: "Whimbrel, the floor of the measurement",
    build: Kind {
        build: |setup| Ok(Arc::new(Null { stopped: ThreadMachine::new(setup)? })),
        here: || Ok(()),
        default_ram_bytes: super::DEFAULT_RAM_BYTES,
        workload_pages: Ok,
        own: NO_OWN,
        own_disk: NO_OWN_DISK,
        throttles: false,
        throttles_here: || Ok(()),
        filled_by_host: true,
        takes_brought: false,
    },
};

/// A thread machine that is never let run.
struct Null {
    stopped: ThreadMachine,
}

impl Machine for Null {
    fn ram(&self) -> &Arc<GuestRam> {
        self.stopped.ram()
    }

    fn run(&self) {}

    fn give_up(&self) {}

    fn pause(&self) -> Paused {
        self.stopped.pause()
    }

    fn drain(&self) -> io::Result<()> {
        self.stopped.drain()
    }

    fn save_state(&self) -> Result<Vec<u8>, MachineError> {
        self.stopped.save_state()
    }

    fn load_state(&self, state: &[u8]) -> Result<(), MachineError> {
        self.stopped.load_state(state)
    }

    fn hints(&self, asked: Asked, given_up: &dyn Fn() -> bool) -> Result<Hints, MachineError> {
        self.stopped.hints(asked, given_up)
    }

    fn throttle(&self, _share: f64) {}

    fn throttled_ns(&self) -> u64 {
        0
    }

    fn progress(&self) -> Progress {
        self.stopped.progress()
    }

    fn silence(&self) -> Silence {
        self.stopped.silence()
    }

    fn reset_silence(&self) {
        self.stopped.reset_silence();
    }

    fn failure(&self) -> Option<String> {
        self.stopped.failure()
    }

    fn stop(&self) {
        self.stopped.stop();
    }
}
