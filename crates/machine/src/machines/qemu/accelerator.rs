//! What executes a guest's code: the processor by KVM, where a guest really boots so, or QEMU's translator.
//!
//! That `/dev/kvm` opens says little: some hosts offer one on which no stock kernel boots. So a small guest is booted
//! once, and the outcome is kept in the cache until the host itself boots again.

use super::command::Shape;
use super::kernel::{self, Kernel};
use super::launch::Launched;
use crate::error::MachineError;
use crate::machine::Begin;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;
use whimbrel_memory::GuestRam;

/// RAM of the guest that is booted to see whether KVM works.
const PROBE_BYTES: u64 = 192 << 20;

/// How long that guest may take; a processor that executes it needs two seconds.
const PROBE: Duration = Duration::from_secs(15);

/// What executes a guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// QEMU translates it.
    Tcg,
    /// The processor executes it.
    Kvm,
}

impl Accelerator {
    /// As QEMU and a row name it.
    pub fn name(self) -> &'static str {
        match self {
            Accelerator::Tcg => "tcg",
            Accelerator::Kvm => "kvm",
        }
    }

    /// The processor that the guest sees.
    pub(super) fn cpu(self) -> &'static str {
        match self {
            Accelerator::Tcg => "qemu64",
            Accelerator::Kvm => "host",
        }
    }
}

/// The accelerator for guests on this host.
pub(super) fn choose(kernel: &Kernel) -> Accelerator {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Accelerator::Tcg;
    }
    let known = kept().and_then(|path| fs::read_to_string(path).ok());
    let works = match known.as_deref() {
        Some("works") => true,
        Some(_) => false,
        None => {
            let booted = boots(kernel);
            let word = booted.as_ref().map_or_else(ToString::to_string, |()| "works".to_owned());
            // Without a cache the next guest tries again.
            let _ = kept().map(|path| fs::write(path, word));
            booted.is_ok()
        }
    };
    if works { Accelerator::Kvm } else { Accelerator::Tcg }
}

/// What is known of KVM on this host, in words; `None`: no guest has tried it since the host booted.
pub fn known_of_kvm() -> Option<String> {
    kept().and_then(|path| fs::read_to_string(path).ok())
}

/// Where the outcome is kept: a file for each time that the host booted.
fn kept() -> Option<PathBuf> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(kernel::cache().join(format!("kvm-{}", boot.trim())))
}

/// Boots a guest under KVM until its agent speaks.
fn boots(kernel: &Kernel) -> Result<(), MachineError> {
    let ram = GuestRam::create(PROBE_BYTES)?;
    let shape = Shape { begin: Begin::New, ram: &ram, vcpus: 1, disk: false, accelerator: Accelerator::Kvm };
    let Launched { process, port, .. } = Launched::launch(kernel, &shape, None)?;
    port.wait_here(PROBE, &|| process.ended()).map(drop)
}
