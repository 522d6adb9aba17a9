//! Small files of the kernel: one value each, read with a bound.

use crate::bank::Count;
use crate::meter::{Place, Reading, Unmeasured};
use rustix::fs::OFlags;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use whimbrel_model::Nanos;

/// More than any of these files holds.
const LONGEST: usize = 4096;

/// A file whose writer is at it may be empty for a moment; the kernel's own never are.
const ATTEMPTS: usize = 5;

/// Opens a file, and waits for nobody: a pipe in its place holds no number, and would have a writer to wait for.
fn open(path: &Path) -> std::io::Result<File> {
    File::options().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)
}

/// The file's text without white space around it.
pub(crate) fn text(path: &Path) -> Result<String, Unmeasured> {
    let mut bytes = [0; LONGEST];
    let mut filled = 0;
    let mut read = || {
        let mut file = open(path)?;
        while filled < bytes.len() {
            match file.read(&mut bytes[filled..])? {
                0 => break,
                n => filled += n,
            }
        }
        Ok(())
    };
    read().map_err(|e| Unmeasured::file(path, &e))?;
    Ok(String::from_utf8_lossy(&bytes[..filled]).trim().to_owned())
}

/// A whole number.
pub(crate) fn number(path: &Path) -> Result<u64, Unmeasured> {
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        last = text(path)?;
        if !last.is_empty() {
            break;
        }
        std::thread::yield_now();
    }
    last.parse().map_err(|_| no_number(path, &last))
}

/// The file of a counter in microjoules. It stays open: at a hundred readings a second, opening it anew would be most of what
/// a reading costs.
pub(crate) struct CounterFile {
    path: PathBuf,
    file: Option<File>,
    last: Option<u64>,
    /// When it last moved, or was last seen to be there still.
    seen: Nanos,
}

/// A counter that stands still is looked after so often, and no oftener: that costs as much as reading it.
const LOOK_EVERY: Nanos = Nanos(100_000_000);

impl CounterFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        CounterFile { path, file: None, last: None, seen: Nanos(0) }
    }

    /// Whether the file was replaced or removed since it was opened, and so never changes again: it has no name any more. The
    /// kernel's own keep theirs, and can't be read once they are gone.
    fn is_gone(&self) -> bool {
        self.file.as_ref().is_some_and(|file| file.metadata().map_or(true, |known| known.nlink() == 0))
    }

    fn number(&mut self) -> Result<u64, Unmeasured> {
        let mut bytes = [0; 64];
        let mut filled = 0;
        for _ in 0..ATTEMPTS {
            filled = self.read_at_start(&mut bytes).map_err(|e| Unmeasured::file(&self.path, &e))?;
            if filled > 0 {
                break;
            }
            std::thread::yield_now();
        }
        let text = std::str::from_utf8(&bytes[..filled]).unwrap_or_default().trim();
        text.parse().map_err(|_| no_number(&self.path, text))
    }

    fn read_at_start(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let file = match self.file.take() {
            Some(file) => file,
            None => open(&self.path)?,
        };
        // One that can't be read is not kept: a zone that goes and comes back is another file.
        let filled = file.read_at(bytes, 0)?;
        self.file = Some(file);
        Ok(filled)
    }
}

impl Count for CounterFile {
    fn read(&mut self, now: Nanos) -> Result<Reading, Unmeasured> {
        let mut uj = self.number()?;
        let moved = self.last != Some(uj);
        if moved || now.since(self.seen) >= LOOK_EVERY {
            self.seen = now;
            if !moved && self.is_gone() {
                self.file = None;
                uj = self.number()?;
            }
        }
        self.last = Some(uj);
        Ok(Reading { at: now, uj })
    }
}

fn no_number(path: &Path, text: &str) -> Unmeasured {
    Unmeasured::because(format!("{} holds {text:.40?}, not a whole number", path.display()))
}

/// The names in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Result<BTreeSet<String>, Unmeasured> {
    let entries = std::fs::read_dir(folder).map_err(|e| Unmeasured::file(folder, &e))?;
    Ok(entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect())
}

/// A list of processors as the kernel writes it, `0,28-31`, at most so many.
pub(crate) fn processors(list: &str, most: usize) -> Option<Vec<u32>> {
    let mut found = Vec::new();
    for part in list.trim().split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last < first || (last - first) as usize >= most || found.len() + (last - first) as usize >= most {
            return None;
        }
        found.extend(first..=last);
    }
    (!found.is_empty()).then_some(found)
}

/// Which counters of energy a host's processors read, by the names that powercap has for them.
///
/// Intel's count a die, so a package of several dies has several counters. AMD's count the whole package: its dies are no
/// counters of their own, whatever the topology says.
pub(crate) struct Packages {
    of: BTreeMap<u32, String>,
}

impl Packages {
    /// Reads the topology. A processor that is off has none.
    pub(crate) fn read(place: &Place) -> Result<Packages, Unmeasured> {
        let folder = place.sysfs.join("devices/system/cpu");
        let processors = names(&folder)?.into_iter().filter_map(|name| name.strip_prefix("cpu")?.parse().ok());
        let id = |cpu: u32, name: &str| number(&folder.join(format!("cpu{cpu}/topology/{name}"))).ok();
        let known = |cpu| Some((cpu, (id(cpu, "physical_package_id")?, id(cpu, "die_id").unwrap_or(0))));
        let known: BTreeMap<u32, (u64, u64)> = processors.filter_map(known).collect();
        let dies: BTreeSet<&(u64, u64)> = known.values().collect();
        let packages: BTreeSet<u64> = known.values().map(|ids| ids.0).collect();
        let by_die = dies.len() > packages.len() && !counts_packages(place);
        let name = |(package, die)| {
            if by_die { format!("package-{package}-die-{die}") } else { format!("package-{package}") }
        };
        Ok(Packages { of: known.into_iter().map(|(cpu, ids)| (cpu, name(ids))).collect() })
    }

    /// What a processor reads.
    pub(crate) fn of(&self, processor: u32) -> Option<&str> {
        self.of.get(&processor).map(String::as_str)
    }

    /// The lowest processor that reads each.
    pub(crate) fn one_of_each(&self) -> Vec<(&str, u32)> {
        let mut found: Vec<(&str, u32)> = Vec::new();
        for (cpu, name) in &self.of {
            if !found.iter().any(|(known, _)| known == name) {
                found.push((name, *cpu));
            }
        }
        found
    }
}

/// A field of the first processor in `/proc/cpuinfo`; `None` where there is none, or no such file.
pub(crate) fn processor_field(place: &Place, key: &str) -> Option<String> {
    let cpuinfo = text(&place.procfs.join("cpuinfo")).ok()?;
    let line = cpuinfo.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == key))?;
    line.split_once(':').map(|(_, value)| value.trim().to_owned())
}

/// Makers whose counters are those of packages.
pub(crate) const AMD_VENDORS: [&str; 2] = ["AuthenticAMD", "HygonGenuine"];

fn counts_packages(place: &Place) -> bool {
    processor_field(place, "vendor_id").is_some_and(|vendor| AMD_VENDORS.contains(&vendor.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_is_replaced_or_removed_is_not_read_from_its_grave() {
        let dir = tempfile::tempdir().unwrap();
        let (path, next) = (dir.path().join("energy_uj"), dir.path().join("next"));
        std::fs::write(&path, "5\n").unwrap();
        let mut counter = CounterFile::new(path.clone());
        let mut at = 0..;
        // As often as it is looked after at most.
        let mut uj = || counter.read(Nanos(at.next().unwrap_or(0) * LOOK_EVERY.0)).map(|reading| reading.uj);
        assert_eq!(uj(), Ok(5));
        std::fs::write(&path, "7\n").unwrap();
        assert_eq!(uj(), Ok(7));
        std::fs::write(&next, "9\n").unwrap();
        std::fs::rename(&next, &path).unwrap();
        assert_eq!(uj(), Ok(9));
        std::fs::remove_file(&path).unwrap();
        assert!(uj().unwrap_err().why.contains("energy_uj"));
        std::fs::write(&path, "11\n").unwrap();
        assert_eq!(uj(), Ok(11));
    }

    #[test]
    fn a_pipe_is_no_counter_and_nobody_waits_for_its_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("energy_uj");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        assert!(number(&path).unwrap_err().why.contains("energy_uj"));
        assert!(CounterFile::new(path).read(Nanos(1)).unwrap_err().why.contains("energy_uj"));
    }

    #[test]
    fn lists_of_processors_are_read_and_bounded() {
        assert_eq!(processors("0,28-30\n", 1024), Some(vec![0, 28, 29, 30]));
        assert_eq!(processors("5", 1024), Some(vec![5]));
        for wrong in ["", "a", "3-1", "0-4294967295", "1-", "-1"] {
            assert_eq!(processors(wrong, 1024), None, "{wrong}");
        }
    }
}
