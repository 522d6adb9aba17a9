//! RAPL by powercap: `/sys/class/powercap/intel-rapl*`, on Intel and AMD.
//!
//! ```text
//!   intel-rapl:0         name = package-0           max_energy_range_uj, energy_uj
//!   intel-rapl:0:0       name = core (uncore, dram) part of package 0 or beside it
//!   intel-rapl:1         name = package-1, package-0-die-1, psys, psys-1: numbers say nothing, names do
//!   intel-rapl-mmio:0    name = package-0           the same counter by another way: not counted again
//! ```

use crate::bank::{Bank, Count};
use crate::files::{self, CounterFile};
use crate::meter::{Domain, DomainKind, Meter, Open, Place, Unmeasured, counted};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use whimbrel_model::{Entry, Nanos};

pub(super) const ENTRY: Entry<Open> = Entry {
    name: "powercap",
    summary: "RAPL by powercap: packages, cores, uncore, memory and platform, on Intel and AMD",
    parameters: &[],
    source: "Linux, Documentation/power/powercap",
    build: open,
};

/// Zones lie at most so deep: control type, package, part.
const DEEPEST: usize = 3;

/// More zones than any host has.
const MOST_ZONES: usize = 1024;

fn open(place: &Place) -> Result<Box<dyn Meter>, Unmeasured> {
    let class = place.sysfs.join("class/powercap");
    if !class.is_dir() {
        return Err(Unmeasured::because(format!("there is no {}", class.display())));
    }
    let mut zones = BTreeMap::new();
    find(&class, 1, &mut zones)?;
    // By the processor's registers before by memory-mapped ones: the first of a name is counted, the second is its copy.
    let (mapped, direct): (Vec<_>, Vec<_>) = zones.into_iter().partition(|(id, _)| id.starts_with("intel-rapl-mmio"));
    let mut meter = Bank::new();
    let mut names = BTreeMap::new();
    for (id, folder) in direct.into_iter().chain(mapped) {
        let name = match files::text(&folder.join("name")) {
            Ok(name) => name,
            // One that is kept from us is a part of the host that would be missing without a word.
            Err(why) if kept_from_us(&folder) => return Err(why),
            Err(_) => continue,
        };
        let parent = id.rsplit_once(':').and_then(|(parent, _)| names.get(parent).cloned());
        let name: String = name.chars().take(60).collect();
        let mut full = parent.as_ref().map_or_else(|| name.clone(), |parent: &String| format!("{parent}/{name}"));
        let counter = folder.join("energy_uj");
        let known = meter.domains().iter().any(|d| d.name == full);
        if known && !id.starts_with("intel-rapl-mmio") {
            // Two zones of one name by the same way are two, unless they turn out to count alike.
            full = format!("{full} ({id})");
        }
        names.insert(id.clone(), full.clone());
        if !counter.exists() || known && id.starts_with("intel-rapl-mmio") {
            continue;
        }
        let package = full.split('/').next().filter(|p| p.starts_with("package")).map(str::to_owned);
        let range_uj = files::number(&folder.join("max_energy_range_uj")).ok().filter(|range| *range > 0);
        meter.add(Domain { name: full, kind: kind_of(&name), package, range_uj }, CounterFile::new(counter));
    }
    if meter.domains().is_empty() {
        return Err(Unmeasured::because(format!("{} has no zone with a counter{}", class.display(), dangling(&class))));
    }
    let counted = counted(meter.domains());
    let first = meter.first(&counted);
    let first = first.ok_or_else(|| Unmeasured::because(format!("no zone of {} covers the host", class.display())))?;
    first.read(Nanos(0))?;
    Ok(Box::new(meter))
}

/// Whether a zone is there and only not for us.
fn kept_from_us(zone: &Path) -> bool {
    std::fs::File::open(zone.join("name")).is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

/// What to say of zones that are links to nothing, as where a driver has found its domains and could not register them.
fn dangling(class: &Path) -> String {
    let ids = files::names(class).unwrap_or_default();
    let gone = ids.iter().find(|id| id.starts_with("intel-rapl") && !class.join(id).exists());
    gone.map_or_else(String::new, |id| format!(": {id} is a link to nothing"))
}

/// Zones by their id. The kernel lists all of them in one folder, and the parts of each once more inside it.
fn find(folder: &Path, depth: usize, zones: &mut BTreeMap<String, PathBuf>) -> Result<(), Unmeasured> {
    for id in files::names(folder)? {
        let path = folder.join(&id);
        if !id.starts_with("intel-rapl") || !path.is_dir() || zones.len() >= MOST_ZONES {
            continue;
        }
        if depth < DEEPEST {
            // A zone that goes while it is looked at is no zone.
            let _ = find(&path, depth + 1, zones);
        }
        if id.contains(':') {
            zones.entry(id).or_insert(path);
        }
    }
    Ok(())
}

fn kind_of(name: &str) -> DomainKind {
    match name {
        name if name.starts_with("package") => DomainKind::Package,
        // The kernel numbers that of a package other than the first.
        name if name.starts_with("psys-") => DomainKind::Psys,
        "core" => DomainKind::Core,
        "uncore" => DomainKind::Uncore,
        "dram" => DomainKind::Dram,
        "psys" => DomainKind::Psys,
        _ => DomainKind::Device,
    }
}
