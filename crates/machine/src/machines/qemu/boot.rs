//! From a QEMU that was started to a guest that is ready and stopped.

use super::QemuMachine;
use super::command;
use super::inside::{self, Inside};
use super::words::{Task, ToGuest};
use crate::error::MachineError;
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use whimbrel_model::PAGE_BYTES;

/// How long a guest may take to boot, and to fill its memory: translated, on a host that is busy otherwise.
const BOOT: Duration = Duration::from_secs(180);

/// A guest whose console has said nothing for so long, and whose agent hasn't either, stands still: at rest, all of a boot takes
/// three seconds.
const STILL: Duration = Duration::from_secs(60);

/// What a guest must be able to give besides the workload's pages: the agent's threads and tables.
const SPARE_BYTES: u64 = 8 << 20;

/// Boots a guest until its agent is ready for the task, and stops it.
///
/// One that stands still while Linux boots is told of, and started again, once: nothing of this is measured, and the disk is as it
/// was. Seen of one guest of two vCPUs under QEMU 7.2's translator, on a busy host, and of none of 360 like it; why is not known.
///
/// # Errors
/// The guest doesn't come up, or can't give what the task needs.
pub(super) fn with_agent(
    start: &dyn Fn() -> Result<QemuMachine, MachineError>,
    task: &Task,
) -> Result<QemuMachine, MachineError> {
    let mut machine = start()?;
    let mut available = machine.wait_here()?;
    if let Err(why) = &available {
        eprintln!("whimbrel: {why}; it is started again");
        // Its folder and its disk's server go first.
        drop(machine);
        machine = start()?;
        available = machine.wait_here()?;
    }
    let available = available.map_err(|why| MachineError::Hypervisor(format!("for the second time {why}")))?;
    if available < task.shape.pages * PAGE_BYTES + SPARE_BYTES {
        let (has, wants) = (available >> 20, (task.shape.pages >> 8) + (SPARE_BYTES >> 20));
        let why = format!("the guest has {has} MiB to give, and {wants} MiB are needed");
        return Err(MachineError::Setup(why));
    }
    let port = machine.inside.agent()?;
    port.say(&ToGuest::Begin(task.clone()))?;
    port.wait_ready(BOOT, &|| machine.ended()).map_err(|error| machine.with_console(error))?;
    machine.halt()?;
    Ok(machine)
}

impl QemuMachine {
    /// Waits until what the user brought is up, and stops it.
    pub(super) fn wait_up(&self) -> Result<(), MachineError> {
        if let Inside::Brought(brought, service) = &self.inside {
            self.set_runs(true);
            let up = inside::wait_up(brought, service.as_ref(), self.folder.path(), &|| self.ended());
            up.map_err(|error| self.with_console(error))?;
        }
        self.halt()?;
        Ok(())
    }

    /// Lets the guest run until its agent's first word: the memory that it could give, in bytes, or why it stands still.
    fn wait_here(&self) -> Result<Result<u64, String>, MachineError> {
        self.set_runs(true);
        let console = RefCell::new(Console::new(self.folder.path().join(command::CONSOLE)));
        let stands = Cell::new(false);
        let still = || {
            stands.set(console.borrow_mut().silent_for() >= STILL);
            stands.get().then(|| format!("the guest stood still for {} s while it booted", STILL.as_secs()))
        };
        let ended = || self.ended().or_else(still);
        match self.inside.agent()?.wait_here(BOOT, &ended) {
            Err(why) if stands.get() => Ok(Err(self.with_console(why).to_string())),
            other => other.map(Ok).map_err(|error| self.with_console(error)),
        }
    }

    fn with_console(&self, error: MachineError) -> MachineError {
        match self.process().as_ref() {
            Some(process) => MachineError::Hypervisor(format!("{error}{}", process.last_words(command::CONSOLE))),
            None => error,
        }
    }
}

/// What a guest says on its console, by its length.
struct Console {
    path: PathBuf,
    bytes: u64,
    since: Instant,
}

impl Console {
    fn new(path: PathBuf) -> Self {
        Console { path, bytes: 0, since: Instant::now() }
    }

    /// For how long it has said nothing, as far as it was looked at.
    fn silent_for(&mut self) -> Duration {
        // Who can't look sees nothing new.
        let bytes = std::fs::metadata(&self.path).map_or(self.bytes, |of| of.len());
        if bytes != self.bytes {
            (self.bytes, self.since) = (bytes, Instant::now());
        }
        self.since.elapsed()
    }
}
