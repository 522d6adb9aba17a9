//! What the guest boots into: an archive in memory that holds this program as init, its libraries, and the kernel's
//! modules for virtio.

use super::kernel::{self, Kernel};
use crate::error::MachineError;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The name under which the program starts in a guest.
pub const INIT: &str = "/init";

/// Where the balloon's driver lies in a guest, apart from the modules that load at boot.
pub const BALLOON: &str = "/later/virtio_balloon.ko";

const FILE: u32 = 0o100_755;
const FOLDER: u32 = 0o040_755;

/// Writes the archive to `path`.
///
/// # Errors
/// The program, a library or a module can't be read, or the archive not be written.
pub(super) fn write(path: &Path, program: &Path, kernel: &Kernel) -> Result<(), MachineError> {
    let failed = |what: &Path, error: io::Error| MachineError::Hypervisor(format!("{}: {error}", what.display()));
    let read = |path: &Path| fs::read(path).map_err(|error| failed(path, error));
    let mut archive = Archive::default();
    archive.file(INIT, &slim(read(program)?))?;
    for library in libraries(program)? {
        archive.file(&library.display().to_string(), &slim(read(&library)?))?;
    }
    for (index, module) in kernel.modules.iter().enumerate() {
        // The names are in the order in which the modules are to be loaded.
        archive.file(&format!("/modules/{index:02}.ko"), &kernel::module(module)?)?;
    }
    archive.file(BALLOON, &kernel::module(&kernel.balloon)?)?;
    for folder in ["/proc", "/dev", "/sys"] {
        archive.folder(folder)?;
    }
    fs::write(path, archive.finish()?).map_err(|error| failed(path, error))
}

/// The libraries that a program is linked with, and its loader; none where it is linked statically.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, MachineError> {
    let output = Command::new("ldd").arg(program).output();
    let output = output.map_err(|e| {
        MachineError::Hypervisor(format!("ldd, by which it is seen what the guest's agent is linked with: {e}"))
    })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // `name => /path (address)`, or `/path (address)` for the loader, or a line about the kernel's own, without a path.
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(text.lines().filter(|line| !line.contains("not a dynamic")).filter_map(path).collect())
}

/// An ELF file without what is never loaded: debugging information makes a program five times as big.
fn slim(mut elf: Vec<u8>) -> Vec<u8> {
    let number = |at: usize, bytes: usize| {
        let mut word = [0; 8];
        word[..bytes].copy_from_slice(elf.get(at..at + bytes)?);
        Some(u64::from_le_bytes(word))
    };
    let needed = || {
        if elf.get(..5)? != b"\x7fELF\x02" {
            return None;
        }
        let (first, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        let mut end = first + size * count;
        for header in 0..count {
            let at = (first + size * header) as usize;
            end = end.max(number(at + 8, 8)?.checked_add(number(at + 32, 8)?)?);
        }
        usize::try_from(end).ok()
    };
    if let Some(end) = needed().filter(|end| *end >= 64 && *end < elf.len()) {
        elf.truncate(end);
        // Where the sections begin, and how many there are: they are gone.
        elf[40..48].fill(0);
        elf[58..64].fill(0);
    }
    elf
}

/// An archive in cpio's "newc" form, the one that kernels unpack.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    folders: Vec<String>,
}

impl Archive {
    fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        if let Some((folder, _)) = path.rsplit_once('/').filter(|(folder, _)| !folder.is_empty()) {
            self.folder(folder)?;
        }
        self.entry(path, FILE, content)
    }

    /// A folder with all that lead to it.
    fn folder(&mut self, path: &str) -> io::Result<()> {
        if self.folders.iter().any(|known| known == path) {
            return Ok(());
        }
        if let Some((parent, _)) = path.rsplit_once('/').filter(|(parent, _)| !parent.is_empty()) {
            self.folder(parent)?;
        }
        self.folders.push(path.to_owned());
        self.entry(path, FOLDER, &[])
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let name = path.trim_start_matches('/');
        let links = if mode == FOLDER { 2 } else { 1 };
        write!(self.bytes, "070701{:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}", self.entries, 0, 0, 0)?;
        write!(self.bytes, "{:08x}{:08x}{:08x}{:08x}{:08x}", content.len(), 0, 0, 0, 0)?;
        write!(self.bytes, "{:08x}{:08x}{name}\0", name.len() + 1, 0)?;
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> io::Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slim_program_still_runs_and_lists_its_libraries() {
        use std::os::unix::fs::PermissionsExt;
        let program = Path::new("/bin/true").canonicalize().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("true");
        let whole = fs::read(&program).unwrap();
        let small = slim(whole.clone());
        assert!(small.len() < whole.len());
        fs::write(&copy, &small).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(Command::new(&copy).status().unwrap().success());
        assert!(libraries(&program).unwrap().iter().any(|path| path.display().to_string().contains("libc.so")));
        assert_eq!(slim(b"no program".to_vec()), b"no program");
    }

    #[test]
    fn an_archive_holds_what_was_put_in() {
        let mut archive = Archive::default();
        archive.file("/lib/x86/libc.so.6", b"content").unwrap();
        archive.file("/init", b"abc").unwrap();
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let places: Vec<_> = ["lib\0", "lib/x86\0", "lib/x86/libc.so.6\0", "init\0", "TRAILER!!!\0"]
            .map(|n| text.find(n).unwrap())
            .into();
        assert!(places.is_sorted(), "folders come before what is in them");
        assert!(bytes.len().is_multiple_of(4) && text.matches("070701").count() == 5);
    }
}
