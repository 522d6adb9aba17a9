//! The qemu kind: an unmodified QEMU guest that runs Linux, with an agent as init that executes the operations.
//!
//! ```text
//!   this process                                       QEMU, with the preloaded library
//!     GuestRam ─────── memfd ───────────────────────────► the guest's RAM ──► Linux ──► the agent: a thread machine
//!     watch (dirty log, missing pages) ◄── userfaultfd ── opened when QEMU maps the memfd
//!     monitor ◄──────────── QMP ────────────────────────► stop, cont, migrate
//!     port ◄─────────── virtio-serial ──────────────────► heartbeats, freeze; or a client's requests to what its user brought
//!     drive ◄──────────── NBD ──────────────────────────► /dev/vda
//! ```
//!
//! A pause is QMP's stop: the vCPUs leave guest code, and requests in flight are done. The device state is what QEMU's own
//! migration sends with `x-ignore-shared`, which leaves the RAM out. So the engine moves pages by whatever strategy into
//! the memfd of the other QEMU, as it does for any machine.

pub mod accelerator;
mod boot;
mod command;
mod drive;
mod folder;
mod initramfs;
mod inside;
pub mod kernel;
mod launch;
mod mirror;
mod own;
mod port;
mod process;
mod qmp;
mod service;
mod state;
mod throttle;
pub mod words;

pub use folder::remove_all;
pub use initramfs::{BALLOON, INIT};

use crate::clock::monotonic;
use crate::error::MachineError;
use crate::machine::{
    Asked, Begin, Departure, Hints, Machine, MachineSetup, Operations, OwnEnds, OwnMove, Paused, Progress, Silence,
    Software, Testimony,
};
use crate::machines::Kind;
use accelerator::Accelerator;
use command::Boots;
use drive::Drive;
use folder::Folder;
use inside::Inside;
use kernel::Kernel;
use launch::Launched;
use process::Process;
use qmp::Qmp;
use serde_json::json;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;
use throttle::Throttle;
use whimbrel_disk::GuestDisk;
use whimbrel_memory::GuestRam;
use whimbrel_model::registry::Entry;
use whimbrel_model::stream::Shape;
use whimbrel_model::{Nanos, PAGE_BYTES};
use words::{Task, ToGuest};

/// How long the agent may take to stop between two operations.
const FREEZE: Duration = Duration::from_secs(60);

/// How long the agent may take to read the kernel's tables of pages: a translated guest of 256 MiB takes a tenth of a second.
const HINTS: Duration = Duration::from_secs(30);

/// How long an event may take that QEMU tells before it answers.
const EVENT: Duration = Duration::from_secs(10);

/// Pages that Linux and its init need of a guest's RAM: 80 MiB, and an eighth of all. A guest of 144 MiB can give 75, one of
/// 1 GiB can give 848.
fn workload_pages(pages: u64) -> Result<u64, String> {
    const LINUX: u64 = 80 << 8;
    const LEAST_MIB: u64 = 128;
    const MOST_MIB: u64 = command::MOST_RAM_BYTES >> 20;
    if pages < LEAST_MIB << 8 {
        return Err(format!("at least \"{LEAST_MIB} MiB\""));
    }
    if pages > MOST_MIB << 8 {
        return Err(format!("at most \"{MOST_MIB} MiB\""));
    }
    Ok(pages - pages / 8 - LINUX)
}

/// The member's entry.
pub const ENTRY: Entry<Kind> = Entry {
    name: "qemu",
    summary: "an unmodified QEMU guest that runs Linux; the operations are executed by an agent in it",
    parameters: &[],
    source: "QEMU",
    build: Kind {
        build: |setup| Ok(Arc::new(QemuMachine::new(setup)?)),
        here: || version().and_then(|_| folder::nameable(&std::env::temp_dir())).map_err(|error| error.to_string()),
        default_ram_bytes: 256 << 20,
        workload_pages,
        own: &own::OWN,
        own_disk: &mirror::OWN_DISK,
        throttles: true,
        throttles_here,
        filled_by_host: false,
        takes_brought: true,
    },
};

/// The version of the QEMU that guests would run in, as it gives it.
///
/// # Errors
/// It can't be run.
pub fn version() -> Result<String, MachineError> {
    let output = std::process::Command::new(command::QEMU).arg("--version").output();
    let output = output.map_err(|error| MachineError::Hypervisor(format!("{}: {error}", command::QEMU)))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().next().and_then(|line| line.strip_prefix("QEMU emulator version "));
    version.filter(|_| output.status.success()).map(str::to_owned).ok_or_else(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        let why = said.lines().next().unwrap_or("it says no version");
        MachineError::Hypervisor(format!("{} --version: {}: {why}", command::QEMU, output.status))
    })
}

/// Whether this host's QEMU can slow its vCPUs: asked of the program itself, with our library in it.
fn throttles_here() -> Result<(), String> {
    let ask = || {
        let folder = Folder::new()?;
        let mut command = command::with_library(folder.path())?;
        Ok::<_, MachineError>(command.arg("--version").env("WHIMBREL_ASK", "throttle").output()?)
    };
    let output = ask().map_err(|error| format!("{}: {error}", command::QEMU))?;
    let said = String::from_utf8_lossy(&output.stdout);
    // What starts QEMU, a shell say, has the library in it too, and answers for itself.
    let answers: Vec<&str> = said.lines().filter(|line| line.starts_with("throttles ")).collect();
    match answers.as_slice() {
        [] => Err("the library preloaded into QEMU did not speak".to_owned()),
        answers if answers.contains(&"throttles 1") => Ok(()),
        _ => Err(throttle::NONE.to_owned()),
    }
}

/// A guest in a QEMU of its own.
pub struct QemuMachine {
    ram: Arc<GuestRam>,
    accelerator: Accelerator,
    workload_pages: u64,
    state: Mutex<State>,
    failure: Mutex<Option<String>>,
    inside: Inside,
    qmp: Qmp,
    throttle: Throttle,
    /// `None` once the machine was stopped.
    process: Mutex<Option<Process>>,
    stopped: AtomicBool,
    /// What the process had used when it was asked last: of one that has ended nobody knows.
    cpu_seen_ns: AtomicU64,
    /// How many events had been heard when a migration of QEMU's own began.
    own_since: AtomicUsize,
    // QEMU ends before its disk does, and its folder goes last.
    _drive: Option<Drive>,
    folder: Folder,
}

/// What QEMU says of its user-mode networks.
fn networks(qmp: &Qmp) -> Result<String, MachineError> {
    let told = qmp.execute("human-monitor-command", json!({ "command-line": "info usernet" }))?;
    Ok(told.as_str().unwrap_or_default().to_owned())
}

/// Where the guest is.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    runs: bool,
    /// The agent executes operations, or would if the guest ran.
    executes: bool,
}

impl QemuMachine {
    /// Starts QEMU. A new guest is booted, and its agent made ready if it has one; one that arrives waits for its state.
    ///
    /// # Errors
    /// QEMU, the kernel or the preloaded library is missing or fails; the message says which.
    pub fn new(setup: MachineSetup) -> Result<Self, MachineError> {
        setup.check()?;
        let MachineSetup { begin, ram, disk, shape, seed, software } = setup;
        let kernel = || Kernel::find_or_fetch(&|news| eprintln!("whimbrel: {news}"));
        let (boots, task) = match software {
            Software::Operations(Operations { recipe, .. }) => {
                (Boots::Agent(kernel()?), Some(Task { seed, shape, recipe }))
            }
            Software::Brought(brought) => (Boots::Brought(brought), None),
        };
        let accelerator = match (accelerator::choose(&kernel), &boots) {
            (Ok((accelerator, _)), _) => accelerator,
            (Err(error), Boots::Agent(_)) => return Err(error),
            // What its user brought needs no kernel of ours.
            (Err(error), Boots::Brought(_)) => {
                static TOLD: Once = Once::new();
                TOLD.call_once(|| eprintln!("whimbrel: KVM is not tried, and guests are translated: {error}"));
                Accelerator::Tcg
            }
        };
        let start = || Self::start(begin, &ram, disk.clone(), shape, &boots, accelerator);
        match (begin, &task) {
            (Begin::New, Some(task)) => boot::with_agent(&start, task),
            (Begin::New, None) => {
                let machine = start()?;
                machine.wait_up()?;
                Ok(machine)
            }
            _ => start(),
        }
    }

    /// Starts a QEMU with RAM that is as it must be when the guest begins.
    fn start(
        begin: Begin,
        ram: &Arc<GuestRam>,
        disk: Option<Arc<dyn GuestDisk>>,
        shape: Shape,
        boots: &Boots,
        accelerator: Accelerator,
    ) -> Result<Self, MachineError> {
        if begin != Begin::Arriving {
            // A new guest begins with empty RAM, as on any machine; and QEMU, since 9.0, doesn't write a page of zeroes that
            // comes to it for the first time.
            ram.drop_all()?;
            ram.populate_host(ram.all())?;
        }
        // A view of its own: what watches the RAM watches this QEMU, and ends with it.
        let view = GuestRam::from_fd(ram.fd().try_clone_to_owned()?, ram.pages() * PAGE_BYTES)?;
        view.populate_host(view.all())?;
        let (vcpus, has_disk) = (shape.vcpus, disk.is_some());
        let shown = command::Shape { begin, boots, ram: &view, vcpus, disk: has_disk, accelerator };
        let Launched { folder, drive, process, port, qmp, throttle } = Launched::launch(&shown, disk)?;
        let inside = match (boots, port) {
            (Boots::Brought(brought), _) => Inside::brought(brought.clone(), &networks(&qmp)?)?,
            (Boots::Agent(_), Some(port)) => Inside::Agent(port),
            (Boots::Agent(_), None) => unreachable!("a guest with an agent has its port"),
        };
        let machine = QemuMachine {
            ram: Arc::clone(&view),
            accelerator,
            workload_pages: shape.pages,
            state: Mutex::default(),
            failure: Mutex::default(),
            inside,
            qmp,
            throttle,
            process: Mutex::new(Some(process)),
            stopped: AtomicBool::new(false),
            cpu_seen_ns: AtomicU64::new(0),
            own_since: AtomicUsize::new(0),
            _drive: drive,
            folder,
        };
        machine.prepare()?;
        Ok(machine)
    }

    /// Sets what QEMU's migration is to do: everything but the RAM, as fast as it can, and tell of it.
    fn prepare(&self) -> Result<(), MachineError> {
        let on = |name: &str| json!({ "capability": name, "state": true });
        let wanted = json!({ "capabilities": [on("x-ignore-shared"), on("events")] });
        self.qmp.execute("migrate-set-capabilities", wanted)?;
        self.qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": 1u64 << 40 }))?;
        Ok(())
    }

    /// Stops the vCPUs; the instant at which the last one left guest code.
    fn halt(&self) -> Result<Nanos, MachineError> {
        let mark = self.qmp.mark();
        // What is said to the agent from here on would come into a guest whose RAM is taken to be still.
        let unanswered = self.inside.hush();
        self.qmp.execute("stop", json!({}))?;
        self.set_runs(false);
        let stopped = self.qmp.wait(mark, EVENT, |event| event.name == "STOP").map_err(|error| self.stands(error))?;
        if unanswered {
            // The question may lie in the socket: QEMU's main loop has passed it on when it has gone round, which it has between
            // two answers.
            for _ in 0..2 {
                self.qmp.execute("query-status", json!({}))?;
            }
        }
        Ok(stopped.at)
    }

    /// Why a guest that was to be stopped did not tell that it was: QEMU stops one by itself too, and tells once.
    fn stands(&self, error: MachineError) -> MachineError {
        let told = self.qmp.execute("query-status", json!({})).unwrap_or_default();
        match (told["running"].as_bool(), told["status"].as_str()) {
            (Some(false), Some(status)) => {
                MachineError::Hypervisor(format!("QEMU had stopped the guest by itself; its status is {status}"))
            }
            _ => error,
        }
    }

    fn go_on(&self) -> Result<(), MachineError> {
        self.qmp.execute("cont", json!({}))?;
        self.set_runs(true);
        Ok(())
    }

    fn set_runs(&self, runs: bool) {
        self.lock().runs = runs;
        self.throttle.note(monotonic(), runs);
        self.inside.note(runs);
    }

    fn refuse_running(&self, what: &'static str) -> Result<(), MachineError> {
        if self.lock().runs { Err(MachineError::Running(what)) } else { Ok(()) }
    }

    /// Why the guest can't go on, if so.
    fn ended(&self) -> Option<String> {
        if self.stopped.load(Ordering::SeqCst) {
            return None;
        }
        let process = self.process();
        let ended = process.as_ref().and_then(Process::ended);
        ended.or_else(|| {
            let monitor = self.qmp.closed().map(|why| format!("QEMU's monitor has closed: {why}"));
            let closed = MachineError::Hypervisor(monitor.or_else(|| self.inside.closed())?);
            // Of a QEMU that was killed, its sockets are known to be gone first.
            Some(process.as_ref().map_or(closed.to_string(), |process| process.blame(closed).to_string()))
        })
    }

    /// Keeps why the guest can't go on: where QEMU has ended, or is about to, that is the cause of anything else.
    fn fail(&self, error: MachineError) {
        let error = self.blame(error);
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error.to_string());
    }

    /// What a failure was really.
    fn blame(&self, error: MachineError) -> MachineError {
        match self.process().as_ref() {
            Some(process) => process.blame(error),
            None => error,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machine for QemuMachine {
    fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    fn run(&self) {
        let State { runs, executes } = *self.lock();
        let go = || {
            if !runs {
                self.go_on()?;
            }
            if let (Inside::Agent(port), false) = (&self.inside, executes) {
                port.say(&ToGuest::Go)?;
                self.lock().executes = true;
            }
            Ok(())
        };
        if let Err(error) = go() {
            self.fail(error);
        }
    }

    fn give_up(&self) {
        // A vCPU in a fault leaves its monitor without an answer. Its process can be ended there.
        self.stop();
    }

    fn pause(&self) -> Paused {
        let asked = monotonic();
        let left = if self.lock().runs { self.halt() } else { Ok(asked) };
        match left {
            Ok(left) => Paused { asked, left: left.max(asked) },
            Err(error) => {
                // A guest that can't be stopped has no QEMU any more.
                self.fail(error);
                self.set_runs(false);
                Paused { asked, left: monotonic() }
            }
        }
    }

    fn drain(&self) -> io::Result<()> {
        // Requests in flight were done when stop had been answered.
        self.failure().map_or(Ok(()), |why| Err(io::Error::other(why)))
    }

    fn save_state(&self) -> Result<Vec<u8>, MachineError> {
        self.refuse_running("the device state can't be saved")?;
        // Held until QEMU has connected, and no longer: whether it has ended is asked meanwhile.
        let accept = |listener: &UnixListener, patience| match self.process().as_ref() {
            Some(process) => process.accept(listener, patience),
            None => Err(MachineError::Hypervisor("QEMU was ended".to_owned())),
        };
        state::save(&self.qmp, &accept, self.folder.path())
    }

    fn load_state(&self, state: &[u8]) -> Result<(), MachineError> {
        self.refuse_running("no device state can be taken up")?;
        state::load(&self.qmp, self.folder.path(), state)?;
        self.lock().executes = true;
        Ok(())
    }

    fn testimony(&self, frozen: bool) -> Result<Option<Testimony>, MachineError> {
        self.refuse_running("the guest can't be heard")?;
        if frozen {
            return Ok(None);
        }
        if let Some(why) = self.failure() {
            return Err(MachineError::Hypervisor(why));
        }
        let agent = self.inside.agent()?;
        self.go_on().map_err(|error| self.blame(error))?;
        let frozen = agent.freeze(FREEZE, &|| self.ended());
        let halted = self.halt();
        let (state, runs) = frozen?;
        halted.map_err(|error| self.blame(error))?;
        self.lock().executes = false;
        let frames = words::spread(&runs, self.workload_pages, self.ram.pages())?;
        Ok(Some(Testimony { state: state.into_bytes(), frames: Some(frames) }))
    }

    /// Measured, 11 to 17 ms under TCG on two cores for a guest that had nothing left to send; under KVM not measured.
    fn switchover(&self) -> Nanos {
        Nanos(12_000_000)
    }

    fn hints(&self, asked: Asked, given_up: &dyn Fn() -> bool) -> Result<Hints, MachineError> {
        let over = || self.ended().or_else(|| given_up().then(|| "the move has ended".to_owned()));
        self.inside.agent()?.hints(asked, self.ram.pages(), HINTS, &over)
    }

    fn prepare_to_leave(&self, own: &OwnMove) -> Result<OwnEnds<UnixListener>, MachineError> {
        if own::is_hinted(own)? {
            self.inside.agent()?.offer_free(HINTS, &|| self.ended())?;
        }
        own::prepare_to_leave(&self.qmp, self.folder.path(), own)
    }

    fn leave_by_itself(&self, own: &OwnMove) -> Result<Departure, MachineError> {
        let left = own::leave(&self.qmp, self.folder.path(), own);
        // Where QEMU had stopped it before it failed, it is for the caller to let it go on.
        self.set_runs(left.is_err() && own::runs(&self.qmp));
        left
    }

    fn prepare_to_arrive(&self, own: &OwnMove) -> Result<OwnEnds<PathBuf>, MachineError> {
        self.own_since.store(self.qmp.mark(), Ordering::SeqCst);
        own::prepare_to_arrive(&self.qmp, self.folder.path(), own)
    }

    fn arrive_by_itself(
        &self,
        own: &OwnMove,
        disk_whole: &dyn Fn(),
        resumed: &dyn Fn(Nanos),
    ) -> Result<(), MachineError> {
        let since = self.own_since.load(Ordering::SeqCst);
        own::arrive(&self.qmp, since, own, disk_whole, &|at| {
            self.lock().executes = true;
            self.set_runs(true);
            resumed(at);
        })
    }

    fn accelerator(&self) -> &'static str {
        self.accelerator.name()
    }

    fn cpu_ns(&self) -> u64 {
        if let Some(ns) = self.process().as_ref().and_then(Process::cpu_ns) {
            self.cpu_seen_ns.store(ns, Ordering::SeqCst);
        }
        self.cpu_seen_ns.load(Ordering::SeqCst)
    }

    fn can_throttle(&self) -> Result<(), MachineError> {
        self.throttle.available().map_err(MachineError::Hypervisor)
    }

    fn throttle(&self, share: f64) {
        if let Err(why) = self.throttle.set(monotonic(), share) {
            self.fail(MachineError::Hypervisor(why));
        }
    }

    fn throttled_ns(&self) -> u64 {
        self.throttle.taken_ns(monotonic())
    }

    fn progress(&self) -> Progress {
        self.inside.progress()
    }

    fn silence(&self) -> Silence {
        self.inside.silence()
    }

    fn reset_silence(&self) {
        self.inside.reset_silence();
    }

    fn failure(&self) -> Option<String> {
        let known = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        known.or_else(|| self.inside.failed()).or_else(|| self.ended())
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Keeps what the process has used.
        self.cpu_ns();
        let process = self.process().take();
        drop(process);
        self.set_runs(false);
    }
}

impl Drop for QemuMachine {
    fn drop(&mut self) {
        self.stop();
    }
}
