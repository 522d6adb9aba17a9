//! What the whole-system tests share: agents as child processes, guests as small as they come, and a coordinator.

#![allow(dead_code, reason = "each test program uses a part of it")]

mod desk;

#[allow(unused_imports, reason = "each test program uses a part of it")]
pub use desk::{Desk, carry, movement};

use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;
use whimbrel_migration::CoordinatorChoice;
use whimbrel_migration::commands::{DiskSpec, GuestSpec, LinkSpec, Software};
use whimbrel_migration::session::{Host, Hosts, Prepared, SessionError, TrialPlan, Trip};
use whimbrel_model::event::Sent;
use whimbrel_model::{Event, Family, Mark, Moment, Recorded};

/// Longer than anything here takes on a busy machine: what isn't over by then hangs.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// RAM of every guest here.
pub const RAM_BYTES: u64 = 16 << 20;

/// Disk of every guest here that has one; the first half of it is filled.
pub const DISK_BYTES: u64 = 16 << 20;

/// Moves that go on at once. Each waits for most of its time: for its link, for its rules, for its disk. In a sample other tests go
/// on beside them; the whole products take so long that these are over.
const AT_ONCE: usize = 4;
const AT_ONCE_OF_ALL: usize = 10;

/// Does `work` with each of all, several at a time, and with a state of the thread that does it.
pub fn at_once<T, S>(
    all: impl IntoIterator<Item = T, IntoIter: Send>,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T) + Sync,
) {
    let queue = Mutex::new(all.into_iter());
    let next = || queue.lock().unwrap().next();
    let at_once = if std::env::var_os("WHIMBREL_FULL").is_some() { AT_ONCE_OF_ALL } else { AT_ONCE };
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                let mut state = state();
                while let Some(one) = next() {
                    work(&mut state, one);
                }
            });
        }
    });
}

/// The agent of a host, as a process of its own that ends with this value.
pub struct Agent {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Agent {
    /// Starts one that keeps its images in `directory`.
    pub fn start(directory: &Path) -> Self {
        Self::spawn(Command::new(env!("CARGO_BIN_EXE_whimbrel")), directory)
    }

    /// Starts one by a command that ends in starting the program, whose arguments follow.
    pub fn spawn(command: Command, directory: &Path) -> Self {
        Self::listening(command, directory, "127.0.0.1:0".parse().unwrap())
    }

    /// Starts one in the place of one that has ended: where it listened, with its images.
    pub fn restart(directory: &Path, address: SocketAddr) -> Self {
        Self::listening(Command::new(env!("CARGO_BIN_EXE_whimbrel")), directory, address)
    }

    fn listening(mut command: Command, directory: &Path, address: SocketAddr) -> Self {
        command.args(["host", "--until-input-ends", "--listen", &address.to_string(), "--directory"]).arg(directory);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("an agent starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").and_then(|a| a.parse().ok());
        Agent { child, address: address.unwrap_or_else(|| panic!("an agent said {line:?}")) }
    }

    /// Ends it in order, and returns when it has ended.
    pub fn end(mut self) {
        // Its end would tell it a second time, and then it doesn't end in order.
        let _input = self.child.stdin.take();
        rustix::process::kill_process(self.pid(), rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success(), "an agent that is told to end says how it did");
    }

    /// The process.
    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // One that was not told to end says how it did: by a signal of a test, or by a crash.
        if let Ok(Some(status)) = self.child.try_wait() {
            eprintln!("the agent at {} had ended: {status}", self.address);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A source and a destination.
pub struct Pair {
    /// The host that guests leave.
    pub source: Agent,
    /// The host that they go to.
    pub destination: Agent,
    folder: tempfile::TempDir,
}

impl Pair {
    /// Starts both.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (source, destination) = (Agent::start(folder.path()), Agent::start(folder.path()));
        Pair { source, destination, folder }
    }

    /// Both as a session knows them.
    pub fn hosts(&self) -> Hosts {
        self.hosts_through(self.destination.address)
    }

    /// As [`Pair::hosts`], but the source reaches the destination at another address.
    pub fn hosts_through(&self, destination: SocketAddr) -> Hosts {
        let there = Host { address: destination, dial: Host::at(self.destination.address).dial };
        Hosts::new(Host::at(self.source.address), there, None)
    }

    /// A coordinator's connection to each.
    pub fn desks(&self) -> (Desk, Desk) {
        (Desk::at(self.source.address), Desk::at(self.destination.address))
    }
}

/// Does `work` on a thread of its own, and panics if that takes too long.
pub fn within<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, is_done) = channel();
    let thread = std::thread::spawn(move || drop(done.send(work())));
    match is_done.recv_timeout(PATIENCE) {
        Ok(value) => value,
        Err(RecvTimeoutError::Timeout) => panic!("waited {PATIENCE:?} in vain for {what}"),
        Err(RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panicked) => std::panic::resume_unwind(panicked),
            Ok(()) => unreachable!("the thread sends before it ends"),
        },
    }
}

/// Reads a choice of a strategy or a workload as an experiment file would give it.
pub fn choice<T: DeserializeOwned>(table: Value) -> T {
    let shown = table.to_string();
    serde_json::from_value(table).unwrap_or_else(|error| panic!("{shown}: {error}"))
}

/// A guest with a disk.
pub fn guest(seed: u64, vcpus: u32, workload: Value) -> GuestSpec {
    let disk = DiskSpec { bytes: DISK_BYTES, filled_bytes: DISK_BYTES / 2, block_bytes: 4096, base_shared: false };
    GuestSpec {
        name: format!("guest-{seed}"),
        machine: "thread".to_owned(),
        seed,
        ram_bytes: RAM_BYTES,
        vcpus,
        disk: Some(disk),
        software: Software::Workload(choice(workload)),
    }
}

/// One move of a guest over an unlimited link, judged by its twin.
pub fn plan(guest: GuestSpec, memory: Value, disk: Value) -> TrialPlan {
    TrialPlan {
        guest,
        memory: choice(memory),
        own: None,
        disk: choice(disk),
        coordinator: CoordinatorChoice::default(),
        source_link: LinkSpec::default(),
        destination_link: LinkSpec::default(),
        settle: Duration::from_millis(20),
        tail: Duration::from_millis(20),
        trips: 1,
        attempts: 1,
        verify: true,
        energy: Err("no energy is wanted here".to_owned()),
    }
}

/// Makes a trial. Panics if it doesn't end.
pub fn run(hosts: &Hosts, plan: &TrialPlan) -> Result<Vec<Trip>, SessionError> {
    let (hosts, plan) = (hosts.clone(), plan.clone());
    within("a trial", move || Ok(Prepared::new(&hosts, &plan)?.run(None, &mut |_| {})))
}

/// The sum of what was sent of a family.
pub fn sent(events: &[Recorded], family: Family) -> Sent {
    let mut sum = Sent::default();
    for recorded in events {
        if let Event::Sent { family: of, sent, .. } = &recorded.event
            && *of == family
        {
            sum.add(sent);
        }
    }
    sum
}

/// Whether a host has seen a moment.
pub fn saw(events: &[Recorded], host: Mark, moment: Moment) -> bool {
    events.iter().any(|e| e.host == host && e.event == Event::Moment { moment })
}
