//! From a command line to a QEMU whose RAM is watched and whose monitor and port are open.

use super::command::{self, Boots, Shape};
use super::drive::Drive;
use super::folder::Folder;
use super::port::Port;
use super::process::Process;
use super::qmp::Qmp;
use super::throttle::Throttle;
use crate::error::MachineError;
use rustix::fd::OwnedFd;
use serde_json::json;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;
use whimbrel_disk::GuestDisk;
use whimbrel_memory::GuestRam;
use whimbrel_memory::uffd::Way;
use whimbrel_memory::watch::Watch;
use whimbrel_model::PAGE_BYTES;

/// How long QEMU may take to start and to connect.
const START: Duration = Duration::from_secs(30);

/// A QEMU that was started.
pub(super) struct Launched {
    // QEMU ends before its disk does, and its folder goes last.
    pub(super) process: Process,
    /// The agent's; `None`: there is none.
    pub(super) port: Option<Port>,
    pub(super) qmp: Qmp,
    pub(super) throttle: Throttle,
    pub(super) drive: Option<Drive>,
    pub(super) folder: Folder,
}

impl Launched {
    /// Starts a QEMU of this shape.
    ///
    /// # Errors
    /// QEMU or the preloaded library is missing or fails; the message says which.
    pub(super) fn launch(shape: &Shape<'_>, disk: Option<Arc<dyn GuestDisk>>) -> Result<Self, MachineError> {
        let folder = Folder::new()?;
        let listen = |name: &str| UnixListener::bind(folder.path().join(name));
        let (monitor, guest_port, tell) =
            (listen(command::MONITOR)?, listen(command::GUEST_PORT)?, listen(command::TELL)?);
        let drive = disk.map(|disk| Drive::serve(&folder.path().join(command::DISK), disk)).transpose()?;
        let process = Process::start(command::command(folder.path(), shape)?, folder.path())?;
        let qmp = Qmp::over(process.accept(&monitor, START)?).map_err(|error| process.blame(error))?;
        // Answered by the main loop: the machine is made by then, and its RAM mapped.
        qmp.execute("query-status", json!({})).map_err(|error| process.blame(error))?;
        let port = match shape.boots {
            Boots::Agent(_) => Some(Port::over(process.accept(&guest_port, START)?, shape.vcpus)?),
            Boots::Brought(_) => None,
        };
        let throttle = watch(shape.ram, &process, &tell, shape.vcpus)?;
        Ok(Launched { process, port, qmp, throttle, drive, folder })
    }
}

/// Hears where QEMU has mapped the RAM, and takes a copy of the userfaultfd that was opened there. What is left of the
/// conversation is the throttle's.
fn watch(ram: &GuestRam, process: &Process, tell: &UnixListener, vcpus: u32) -> Result<Throttle, MachineError> {
    let hypervisor = MachineError::Hypervisor;
    let unheard = |_| {
        let why = "the library preloaded into QEMU did not speak, so the guest's RAM can't be watched";
        hypervisor(format!("{why}; a program that is set-user-id or linked statically preloads nothing"))
    };
    let stream = process.accept(tell, Duration::ZERO).map_err(unheard)?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let numbers: Vec<u64> = words.iter().skip(1).filter_map(|word| word.parse().ok()).collect();
    match (words.first().copied(), &numbers[..]) {
        (Some("ram"), [address, bytes, number, kernel, throttles]) if *bytes == ram.pages() * PAGE_BYTES => {
            let denied =
                |error| hypervisor(format!("QEMU's userfaultfd can't be had; it takes ptrace's rights: {error}"));
            // By which of the two ways that serve all faults makes no difference.
            let way = if *kernel == 1 { Way::Call } else { Way::UserModeOnly };
            let uffd: OwnedFd = process.descriptor(*number as i32).map_err(denied)?;
            ram.watch_by(Watch::outside(process.id(), *address, ram.pages(), (uffd, way))?)?;
            Ok(Throttle::over((*throttles == 1).then_some(stream), vcpus))
        }
        (Some("error"), _) => {
            let why = line.trim().trim_start_matches("error ").to_owned();
            let help = "a kernel that has it (for a user without rights 5.11 or newer), and no sandbox that forbids it";
            Err(hypervisor(format!("QEMU may not open a userfaultfd: {why}; it takes {help}")))
        }
        _ => Err(hypervisor(format!("the library preloaded into QEMU said {line:?}"))),
    }
}
