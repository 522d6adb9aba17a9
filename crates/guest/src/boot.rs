//! From the kernel's first process to an open port.

use crate::GuestError;
use rustix::mount::MountFlags;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use whimbrel_machine::machines::qemu::words::PORT;

/// How long the port may take to appear once its driver is loaded.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks for it.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Mounts what is needed, loads the modules, and opens the port.
pub(crate) fn boot() -> Result<File, GuestError> {
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        let mounted = rustix::mount::mount(kind, place, kind, MountFlags::empty(), None);
        // A kernel may have mounted it itself.
        mounted.or_else(|e| if e == rustix::io::Errno::BUSY { Ok(()) } else { Err(e) }).map_err(host(place))?;
    }
    let mut modules: Vec<PathBuf> = entries("/modules")?;
    modules.sort();
    for module in modules {
        load(&module)?;
    }
    // Pages stay where they are: the host reads them by their frames.
    for (key, value) in [("compact_unevictable_allowed", "0"), ("compaction_proactiveness", "0")] {
        // A kernel without compaction has no such key.
        let _ = fs::write(format!("/proc/sys/vm/{key}"), value);
    }
    // What booting says tells the host how far it is; from now on it would take the guest's time.
    let _ = fs::write("/proc/sys/kernel/printk", "4");
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(port) = find_port()? {
            return Ok(port);
        }
        if Instant::now() > end {
            return Err(host("the port to the host")(io::ErrorKind::NotFound));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Loads a module. Its driver has met its devices when this returns.
pub(crate) fn load(module: &Path) -> Result<(), GuestError> {
    let name = module.display().to_string();
    let file = File::open(module).map_err(host(&name))?;
    rustix::system::finit_module(&file, c"", 0).map_err(host(&name))
}

fn find_port() -> Result<Option<File>, GuestError> {
    if !Path::new("/sys/class/virtio-ports").exists() {
        return Ok(None);
    }
    for port in entries("/sys/class/virtio-ports")? {
        let name = fs::read_to_string(port.join("name")).unwrap_or_default();
        if let (true, Some(node)) = (name.trim() == PORT, port.file_name()) {
            let opened = File::options().read(true).write(true).open(Path::new("/dev").join(node));
            return Ok(opened.ok());
        }
    }
    Ok(None)
}

pub(crate) fn entries(folder: &str) -> Result<Vec<PathBuf>, GuestError> {
    let listed = fs::read_dir(folder).and_then(|entries| entries.map(|e| Ok(e?.path())).collect());
    listed.map_err(host(folder))
}

/// Says what failed.
pub(crate) fn host<E: Into<io::Error>>(what: &str) -> impl FnOnce(E) -> GuestError {
    move |error| GuestError::Host { what: what.to_owned(), error: error.into() }
}
