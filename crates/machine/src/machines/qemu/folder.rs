//! The private folder of one QEMU: its sockets, its logs, what it boots.
//!
//! It goes with the guest. Where the program ends in the middle of something, [`remove_all`] sees to what is left; where it was
//! killed, the next program that makes a folder does, which tells by a lock that nobody holds any more.

use crate::error::MachineError;
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use tempfile::TempDir;

/// How their names begin. Short: a socket's path has at most 107 bytes.
const PREFIX: &str = "whimbrel-q";

/// The longest path of the folder for temporary files: a QEMU's folder, and in it a socket's name, come after it.
const LONGEST: usize = 80;

/// The file that is locked for as long as the folder is in use.
const LOCK: &str = "lock";

/// Those of this process.
static FOLDERS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn folders() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A folder that only this user can enter, for one QEMU.
pub(super) struct Folder {
    folder: TempDir,
    _lock: File,
}

impl Folder {
    /// # Errors
    /// There is no room, or no right, in the folder for temporary files, or QEMU can't be told of it.
    pub(super) fn new() -> Result<Self, MachineError> {
        static SWEPT: Once = Once::new();
        let temporary = std::env::temp_dir();
        nameable(&temporary)?;
        SWEPT.call_once(|| sweep(&temporary));
        // Mode 0700 is tempfile's own.
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
        let lock = lock(folder.path())?;
        folders().insert(folder.path().to_owned());
        Ok(Folder { folder, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        folders().remove(self.folder.path());
    }
}

/// Whether a path can stand in QEMU's options, in the list of what is preloaded, and before a socket's name.
///
/// # Errors
/// It can't; the message says what could.
pub(super) fn nameable(temporary: &Path) -> Result<(), MachineError> {
    let shown = temporary.display().to_string();
    let parts = |c: char| c.is_whitespace() || [',', ':'].contains(&c);
    if shown.len() <= LONGEST && temporary.is_absolute() && !shown.contains(parts) {
        return Ok(());
    }
    let why = format!("an absolute path of at most {LONGEST} bytes without a comma, a colon or a space");
    Err(MachineError::Setup(format!("TMPDIR: {shown:?} can't be told to QEMU; set it to {why}")))
}

/// A lock that shows only once it is held: nobody takes a folder that is being made for one that was left.
fn lock(folder: &Path) -> io::Result<File> {
    let making = folder.join("locking");
    let lock = File::create(&making)?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    std::fs::rename(making, folder.join(LOCK))?;
    Ok(lock)
}

/// Removes what this process has made and not removed, whatever goes on there: it is about to end, and the kernel ends its
/// QEMUs with it.
pub fn remove_all() {
    for folder in std::mem::take(&mut *folders()) {
        // What can't be removed the next program will try.
        let _ = std::fs::remove_dir_all(folder);
    }
}

/// Removes what programs that were killed have left.
fn sweep(temporary: &Path) {
    let named = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    let all = std::fs::read_dir(temporary).into_iter().flatten().flatten().map(|entry| entry.path());
    for folder in all.filter(|path| named(path)) {
        let Ok(lock) = File::open(folder.join(LOCK)) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // Another's can't be removed, and needn't be by us.
            let _ = std::fs::remove_dir_all(&folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_qemu_would_misread_is_refused() {
        assert!(nameable(Path::new("/var/tmp")).is_ok());
        for bad in ["tmp", "/my tmp", "/a:b", "/a,b", &format!("/{}", "long/".repeat(16))] {
            let refused = nameable(Path::new(bad)).unwrap_err().to_string();
            assert!(refused.contains("TMPDIR") && refused.contains("at most 80 bytes"), "{refused}");
        }
    }

    #[test]
    fn what_a_killed_program_has_left_goes_and_what_is_in_use_stays() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let folder = temporary.path().join(format!("{PREFIX}{name}"));
            std::fs::create_dir(&folder).unwrap();
            folder
        };
        let (left, used, begun) = (folder("left"), folder("used"), folder("begun"));
        drop(lock(&left).unwrap());
        let _held = lock(&used).unwrap();
        let others = temporary.path().join("others");
        std::fs::create_dir(&others).unwrap();
        drop(lock(&others).unwrap());
        sweep(temporary.path());
        assert_eq!([left, used, begun, others].map(|folder| folder.exists()), [false, true, true, true]);
    }
}
