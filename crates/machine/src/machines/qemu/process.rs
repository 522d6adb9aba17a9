//! The QEMU process: started, told from its end, and ended.

use crate::error::MachineError;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open, pidfd_send_signal};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::RawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often an awaited connection and QEMU's end are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long a QEMU that has closed its monitor may take to end.
const ENDING: Duration = Duration::from_secs(2);

/// Bytes of a log in which a message is looked for: more than the stacks that follow a panic.
const LOOKED_AT: u64 = 64 << 10;

/// Bytes of a log that a message shows.
const SHOWN: usize = 600;

/// In the line in which a Linux that gives up says why; a list of its stacks follows, longer than what is shown.
const PANIC: &str = "Kernel panic";

/// A QEMU that was started.
pub(super) struct Process {
    pid: Pid,
    pidfd: OwnedFd,
    exited: Arc<Mutex<Option<io::Result<ExitStatus>>>>,
    keeper: Option<JoinHandle<()>>,
    folder: PathBuf,
}

impl Process {
    /// Starts `command`; what it writes goes to the folder.
    ///
    /// # Errors
    /// The program can't be started.
    pub(super) fn start(mut command: Command, folder: &Path) -> Result<Self, MachineError> {
        let log = File::create(folder.join("qemu.log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let exited = Arc::new(Mutex::new(None));
        let told = Arc::clone(&exited);
        let (started, outcome) = channel();
        // The kernel ends QEMU with the thread that started it: this one waits for QEMU, and so lives as long.
        let keep = move || match command.spawn() {
            Err(error) => drop(started.send(Err((error, command.get_program().to_owned())))),
            Ok(mut child) => {
                drop(started.send(Ok(child.id())));
                let status = child.wait();
                *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
            }
        };
        let keeper = std::thread::Builder::new().name("qemu".to_owned()).spawn(keep).map_err(MachineError::Thread)?;
        let pid = match outcome.recv() {
            Ok(Ok(id)) => Pid::from_raw(id as i32).ok_or_else(|| MachineError::Hypervisor("no process".to_owned()))?,
            Ok(Err((error, program))) => {
                let program = program.display();
                return Err(MachineError::Hypervisor(format!("{program} can't be started: {error}")));
            }
            Err(_) => return Err(MachineError::Hypervisor("QEMU's keeper panicked".to_owned())),
        };
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from)?;
        Ok(Process { pid, pidfd, exited, keeper: Some(keeper), folder: folder.to_owned() })
    }

    /// Its number.
    pub(super) fn id(&self) -> u32 {
        self.pid.as_raw_pid().cast_unsigned()
    }

    /// A copy of one of its descriptors.
    ///
    /// # Errors
    /// It has no such descriptor, or this process may not trace it.
    pub(super) fn descriptor(&self, number: RawFd) -> io::Result<OwnedFd> {
        Ok(pidfd_getfd(&self.pidfd, number, PidfdGetfdFlags::empty())?)
    }

    /// How it ended, with the last of what it said; `None` while it runs.
    pub(super) fn ended(&self) -> Option<String> {
        let exited = self.exited.lock().unwrap_or_else(PoisonError::into_inner);
        let how = match exited.as_ref()? {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let said = [super::command::CONSOLE, "qemu.log"].map(|log| self.last_words(log)).concat();
        Some(format!("QEMU has ended ({how}){said}"))
    }

    /// What a failure was really: where QEMU has ended, or is about to, that.
    pub(super) fn blame(&self, error: MachineError) -> MachineError {
        let end = Instant::now() + ENDING;
        while Instant::now() < end {
            if let Some(how) = self.ended() {
                return MachineError::Hypervisor(how);
            }
            std::thread::sleep(LOOK_EVERY);
        }
        error
    }

    /// The end of one of the logs in the folder, for a message; of a kernel that panicked, why.
    pub(super) fn last_words(&self, log: &str) -> String {
        let bytes = tail(&self.folder.join(log)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        if let Some(panic) = text.lines().find(|line| line.contains(PANIC)) {
            return format!("; {log} says: {}", panic.trim());
        }
        let end = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(SHOWN)..]).trim().to_owned();
        if end.is_empty() { end } else { format!("; {log} ends: {end}") }
    }

    /// Waits until QEMU connects to `listener`.
    ///
    /// # Errors
    /// QEMU has ended, or doesn't connect in time.
    pub(super) fn accept(&self, listener: &UnixListener, patience: Duration) -> Result<UnixStream, MachineError> {
        let end = Instant::now() + patience;
        listener.set_nonblocking(true)?;
        let wait = Timespec { tv_sec: 0, tv_nsec: LOOK_EVERY.subsec_nanos().into() };
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(how) = self.ended() {
                return Err(MachineError::Hypervisor(how));
            }
            if Instant::now() >= end {
                return Err(MachineError::Hypervisor(format!("QEMU did not connect within {} s", patience.as_secs())));
            }
            // An error shows again at the next accept.
            let _ = rustix::event::poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&wait));
        }
    }

    /// CPU time of it so far, in nanoseconds.
    pub(super) fn cpu_ns(&self) -> Option<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).ok()?;
        // The name may hold anything; after it come fields 3 and on: user and system time are 14 and 15, in ticks.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(ticks * (1_000_000_000 / rustix::param::clock_ticks_per_second().max(1)))
    }
}

/// The end of a log, which a guest may have made as long as it likes.
fn tail(log: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(log)?;
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(LOOKED_AT)))?;
    let mut bytes = Vec::new();
    file.take(LOOKED_AT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        if let Some(keeper) = self.keeper.take() {
            // What panics there has said so.
            let _ = keeper.join();
        }
    }
}
