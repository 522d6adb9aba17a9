//! What executes a guest's code: the processor by KVM, where a guest really boots so, or QEMU's translator.
//!
//! That `/dev/kvm` opens says little: some hosts offer one on which no stock kernel boots. So a small guest is booted
//! once, and the outcome is kept in the cache until the host itself boots again; that the guest could not be tried is not.

use super::command::{Boots, Shape};
use super::kernel::{self, Kernel};
use super::launch::Launched;
use crate::error::MachineError;
use crate::machine::Begin;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use whimbrel_memory::GuestRam;

/// RAM of the guest that is booted to see whether KVM works.
const PROBE_BYTES: u64 = 192 << 20;

/// What is kept where that guest has booted.
const WORKS: &str = "works";

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

/// The accelerator for guests on this host, and why it is not the other one.
///
/// # Errors
/// KVM is to be tried, and there is nothing to try it with: no kernel, no QEMU that starts with its RAM watched.
pub fn choose(kernel: &dyn Fn() -> Result<Kernel, MachineError>) -> Result<(Accelerator, String), MachineError> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        return Ok((Accelerator::Tcg, format!("/dev/kvm: {error}")));
    }
    let path = kept();
    let known = path.as_ref().and_then(|path| fs::read_to_string(path).ok());
    let word = match known {
        Some(word) => word,
        None => {
            let word = try_kvm(&kernel()?)?;
            // Without a cache the next guest tries again.
            let _ = path.as_ref().map(|path| keep(path, &word));
            word
        }
    };
    let again = path.map_or(String::new(), |path| format!(" (remove {} to try again)", path.display()));
    Ok(match word.as_str() {
        WORKS => (Accelerator::Kvm, "a guest has booted under it".to_owned()),
        why => (Accelerator::Tcg, format!("a guest did not boot under KVM: {why}{again}")),
    })
}

/// Where the outcome is kept: a file for each time that the host booted.
fn kept() -> Option<PathBuf> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(kernel::cache().join(format!("kvm-{}", boot.trim())))
}

/// In one step: nobody reads half a word.
fn keep(path: &Path, word: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(word.as_bytes())?;
    Ok(file.persist(path).map(drop)?)
}

/// Boots a guest under KVM until its agent speaks: [`WORKS`], or why it does not.
///
/// # Errors
/// No guest of any kind would come so far.
fn try_kvm(kernel: &Kernel) -> Result<String, MachineError> {
    let ram = GuestRam::create(PROBE_BYTES)?;
    let boots = Boots::Agent(kernel.clone());
    let shape =
        Shape { begin: Begin::New, boots: &boots, ram: &ram, vcpus: 1, disk: false, accelerator: Accelerator::Kvm };
    let launched = match Launched::launch(&shape, None) {
        Ok(launched) => launched,
        // A KVM that QEMU can't begin with ends it; translated, the same guest starts.
        Err(error) => {
            Launched::launch(&Shape { accelerator: Accelerator::Tcg, ..shape }, None)?;
            return Ok(error.to_string());
        }
    };
    let Launched { process, port, .. } = launched;
    let port = port.ok_or_else(|| MachineError::Hypervisor("the guest has no port".to_owned()))?;
    let heard = port.wait_here(PROBE, &|| process.ended());
    Ok(heard.map_or_else(|error| error.to_string(), |_| WORKS.to_owned()))
}
