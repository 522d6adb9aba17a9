//! QEMU's command line.

use super::accelerator::Accelerator;
use super::kernel::Kernel;
use super::words::PORT;
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

/// A busy host is late with a translated guest's timer, and the kernel would take that for a broken one.
const KERNEL_LINE: &str = "console=ttyS0 quiet panic=-1 no_timer_check random.trust_cpu=on mitigations=off";

/// What of a machine shows on the command line.
pub(super) struct Shape<'a> {
    pub(super) begin: Begin,
    pub(super) ram: &'a GuestRam,
    pub(super) vcpus: u32,
    pub(super) disk: bool,
    pub(super) accelerator: Accelerator,
}

/// Writes what QEMU needs into `folder`, and makes the command.
///
/// # Errors
/// The folder can't be written, or this program not be read.
pub(super) fn command(folder: &Path, kernel: &Kernel, shape: &Shape<'_>) -> Result<Command, MachineError> {
    let initrd = folder.join(INITRD);
    // A guest that arrives has booted already; what QEMU puts into its RAM is overwritten.
    super::initramfs::write(&initrd, &std::env::current_exe()?, kernel)?;
    std::fs::write(folder.join(LIBRARY), PRELOAD)?;
    let bytes = shape.ram.pages() * PAGE_BYTES;
    let own = format!("/proc/{}/fd/{}", std::process::id(), shape.ram.fd().as_raw_fd());
    let of = std::fs::metadata(&own)?;
    let path = |name: &str| folder.join(name).display().to_string();
    let mut command = Command::new(QEMU);
    command.current_dir(folder);
    command.env("LD_PRELOAD", folder.join(LIBRARY));
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
    option("-kernel", kernel.image.display().to_string());
    option("-initrd", path(INITRD));
    option("-append", KERNEL_LINE.to_owned());
    option("-display", "none".to_owned());
    option("-chardev", format!("file,id=console,path={}", path(CONSOLE)));
    option("-serial", "chardev:console".to_owned());
    option("-chardev", format!("socket,id=qmp,path={},server=off", path(MONITOR)));
    option("-mon", "chardev=qmp,mode=control".to_owned());
    option("-device", "virtio-serial-pci,id=ports".to_owned());
    option("-chardev", format!("socket,id=port,path={},server=off", path(GUEST_PORT)));
    option("-device", format!("virtserialport,bus=ports.0,chardev=port,name={PORT}"));
    if shape.disk {
        option(
            "-blockdev",
            format!("driver=nbd,node-name=disk,server.type=unix,server.path={},discard=unmap", path(DISK)),
        );
        option("-device", "virtio-blk-pci,drive=disk".to_owned());
    }
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        command.arg(flag);
    }
    if shape.begin != Begin::New {
        command.args(["-S", "-incoming", "defer"]);
    }
    Ok(command)
}
