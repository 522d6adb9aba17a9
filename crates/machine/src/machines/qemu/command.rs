//! QEMU's command line.

use super::accelerator::Accelerator;
use super::kernel::Kernel;
use super::words::PORT;
use crate::brought::Brought;
use crate::error::MachineError;
use crate::machine::Begin;
use rustix::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use whimbrel_memory::GuestRam;
use whimbrel_model::PAGE_BYTES;

/// The program.
pub(super) const QEMU: &str = "qemu-system-x86_64";

/// The library that the build script made.
const PRELOAD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/preload.so"));

/// Above this, a PC has its RAM in two parts, with a hole for devices between.
pub(super) const MOST_RAM_BYTES: u64 = 3 << 30;

/// The sockets and files of one QEMU, in its folder.
pub(super) const MONITOR: &str = "qmp";
/// The guest's port.
pub(super) const GUEST_PORT: &str = "port";
/// The guest's disk.
pub(super) const DISK: &str = "disk";
/// Where the preloaded library speaks.
pub(super) const TELL: &str = "tell";
/// The guest's console.
pub(super) const CONSOLE: &str = "console.log";
const INITRD: &str = "initrd";
const LIBRARY: &str = "preload.so";

/// A busy host is late with a translated guest's timer, and the kernel would take that for a broken one. What it says while it boots
/// is how one that stands still is known.
const KERNEL_LINE: &str = "console=ttyS0 panic=-1 no_timer_check random.trust_cpu=on mitigations=off";

/// The network by which a client reaches the guest.
pub(super) const NETWORK: &str = "whimbrel";

/// What a guest boots into.
pub(super) enum Boots {
    /// Linux with our agent as init.
    Agent(Kernel),
    /// What its user brought.
    Brought(Box<Brought>),
}

/// What of a machine shows on the command line.
pub(super) struct Shape<'a> {
    pub(super) begin: Begin,
    pub(super) boots: &'a Boots,
    pub(super) ram: &'a GuestRam,
    pub(super) vcpus: u32,
    pub(super) disk: bool,
    pub(super) accelerator: Accelerator,
}

/// Writes what QEMU needs into `folder`, and makes the command.
///
/// # Errors
/// The folder can't be written, or this program not be read.
pub(super) fn command(folder: &Path, shape: &Shape<'_>) -> Result<Command, MachineError> {
    let mut command = with_library(folder)?;
    base(&mut command, folder, shape)?;
    match shape.boots {
        Boots::Agent(kernel) => boot_agent(&mut command, folder, kernel)?,
        Boots::Brought(brought) => boot_brought(&mut command, brought),
    }
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        command.arg(flag);
    }
    if shape.begin != Begin::New {
        command.args(["-S", "-incoming", "defer"]);
    }
    Ok(command)
}

/// QEMU with our library in it, which is written into `folder`, and no arguments.
///
/// # Errors
/// The folder can't be written.
pub(super) fn with_library(folder: &Path) -> Result<Command, MachineError> {
    std::fs::write(folder.join(LIBRARY), PRELOAD)?;
    let mut command = Command::new(QEMU);
    command.current_dir(folder).env("LD_PRELOAD", folder.join(LIBRARY));
    Ok(command)
}

/// What every guest has: its processors, its RAM, its console and its monitor.
fn base(command: &mut Command, folder: &Path, shape: &Shape<'_>) -> Result<(), MachineError> {
    let bytes = shape.ram.pages() * PAGE_BYTES;
    let own = format!("/proc/{}/fd/{}", std::process::id(), shape.ram.fd().as_raw_fd());
    let of = std::fs::metadata(&own)?;
    let path = |name: &str| folder.join(name).display().to_string();
    command.env("WHIMBREL_RAM", format!("{}:{}", of.dev(), of.ino()));
    command.env("WHIMBREL_SOCKET", folder.join(TELL));
    let mut option = |name: &str, value: String| {
        command.arg(name).arg(value);
    };
    option("-name", "whimbrel".to_owned());
    option("-machine", "pc,memory-backend=ram".to_owned());
    option("-accel", shape.accelerator.name().to_owned());
    option("-cpu", shape.accelerator.cpu().to_owned());
    option("-smp", shape.vcpus.to_string());
    option("-m", format!("{}K", bytes >> 10));
    // What the engine receives it writes through its own mapping, which has all pages; QEMU's is to have them too where
    // QEMU receives. (Where faults are served, it must have none.)
    let prealloc = if shape.begin == Begin::ArrivingByItself { ",prealloc=on" } else { "" };
    option("-object", format!("memory-backend-file,id=ram,size={bytes},mem-path={own},share=on{prealloc}"));
    option("-display", "none".to_owned());
    option("-chardev", format!("file,id=console,path={}", path(CONSOLE)));
    option("-serial", "chardev:console".to_owned());
    option("-chardev", format!("socket,id=qmp,path={},server=off", path(MONITOR)));
    option("-mon", "chardev=qmp,mode=control".to_owned());
    if shape.disk {
        let device = match shape.boots {
            Boots::Agent(_) => "virtio-blk-pci",
            Boots::Brought(brought) => &brought.disk_device,
        };
        let server = format!("server.type=unix,server.path={}", path(DISK));
        option("-blockdev", format!("driver=nbd,node-name=disk,{server},discard=unmap"));
        // By default QEMU stops a guest when the host's disk is full, and it waits for somebody. Here the guest is told.
        let tells = if device.starts_with("virtio-blk") { ",werror=report,rerror=report" } else { "" };
        option("-device", format!("{device},drive=disk{tells}"));
    }
    Ok(())
}

/// Our agent as init, and the port over which it speaks.
fn boot_agent(command: &mut Command, folder: &Path, kernel: &Kernel) -> Result<(), MachineError> {
    let initrd = folder.join(INITRD);
    // A guest that arrives has booted already; what QEMU puts into its RAM is overwritten.
    super::initramfs::write(&initrd, &std::env::current_exe()?, kernel)?;
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initrd).args(["-append", KERNEL_LINE]);
    // By this one QEMU's own migrations hear which pages are free. It does nothing before its driver is loaded. Every QEMU that
    // knows `memory-backend` (5.0) has it with hints (4.0).
    command.args(["-object", "iothread,id=hints", "-device"]);
    command.arg("virtio-balloon-pci,id=balloon,free-page-hint=on,iothread=hints");
    command.args(["-device", "virtio-serial-pci,id=ports", "-chardev"]);
    command.arg(format!("socket,id=port,path={},server=off", folder.join(GUEST_PORT).display()));
    command.arg("-device").arg(format!("virtserialport,bus=ports.0,chardev=port,name={PORT}"));
    Ok(())
}

/// What the user brought, and the network by which it is asked.
fn boot_brought(command: &mut Command, brought: &Brought) {
    command.current_dir(&brought.folder);
    for (option, path) in [("-kernel", &brought.kernel), ("-initrd", &brought.initrd)] {
        if let Some(path) = path {
            command.arg(option).arg(brought.place(path));
        }
    }
    if let Some(line) = &brought.append {
        command.arg("-append").arg(line);
    }
    if let Some(probe) = &brought.probe {
        // Port 0: the kernel finds one that is free, and QEMU says which.
        let forward = format!("user,id={NETWORK},hostfwd=tcp:127.0.0.1:0-:{}", probe.port);
        command.arg("-netdev").arg(forward).arg("-device").arg(format!("{},netdev={NETWORK}", brought.network_device));
    }
    command.args(&brought.arguments);
}
