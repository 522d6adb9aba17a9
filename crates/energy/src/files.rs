//! Small files of the kernel: one value each, read with a bound.

use crate::meter::{Reading, Unmeasured};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use whimbrel_model::Nanos;

/// More than any of these files holds.
const LONGEST: usize = 4096;

/// A file whose writer is at it may be empty for a moment; the kernel's own never are.
const ATTEMPTS: usize = 5;

/// The file's text without white space around it.
pub(crate) fn text(path: &Path) -> Result<String, Unmeasured> {
    let mut bytes = [0; LONGEST];
    let mut filled = 0;
    let mut read = || {
        let mut file = File::open(path)?;
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
    last.parse().map_err(|_| Unmeasured::because(format!("{} holds {last:.40?}, not a whole number", path.display())))
}

/// A counter in microjoules.
pub(crate) fn reading(path: &Path, now: Nanos) -> Result<Reading, Unmeasured> {
    number(path).map(|uj| Reading { at: now, uj })
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

/// The package of a processor, as its number.
pub(crate) fn package_of(sysfs: &Path, processor: u32) -> Result<String, Unmeasured> {
    let topology = sysfs.join(format!("devices/system/cpu/cpu{processor}/topology"));
    Ok(format!("package-{}", number(&topology.join("physical_package_id"))?))
}

/// One processor of each package, by package.
pub(crate) fn one_of_each_package(sysfs: &Path) -> Result<Vec<(String, u32)>, Unmeasured> {
    let folder: PathBuf = sysfs.join("devices/system/cpu");
    let mut found: Vec<(String, u32)> = Vec::new();
    let mut processors: Vec<u32> =
        names(&folder)?.iter().filter_map(|name| name.strip_prefix("cpu")?.parse().ok()).collect();
    processors.sort_unstable();
    for processor in processors {
        // A processor that is off has no topology.
        let Ok(package) = package_of(sysfs, processor) else { continue };
        if !found.iter().any(|(known, _)| *known == package) {
            found.push((package, processor));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_read_and_bounded() {
        assert_eq!(processors("0,28-30\n", 1024), Some(vec![0, 28, 29, 30]));
        assert_eq!(processors("5", 1024), Some(vec![5]));
        for wrong in ["", "a", "3-1", "0-4294967295", "1-", "-1"] {
            assert_eq!(processors(wrong, 1024), None, "{wrong}");
        }
    }
}
