//! Energy counters of the hwmon class: `/sys/class/hwmon/hwmon*/energy*_input`, in microjoules.
//!
//! Drivers give them labels of their own: `Esocket0` and `Ecore000` (amd_energy). What has no label that covers a socket or the
//! board, such as the counter of a graphics card, is shown and not counted.

use crate::bank::{Bank, Count};
use crate::files::{self, CounterFile};
use crate::meter::{Domain, DomainKind, Meter, Open, Place, Unmeasured, counted};
use whimbrel_model::{Entry, Nanos};

pub(super) const ENTRY: Entry<Open> = Entry {
    name: "hwmon",
    summary: "energy counters of the hwmon class whose label names a socket or the board",
    parameters: &[],
    source: "Linux, Documentation/hwmon/sysfs-interface.rst",
    build: open,
};

fn open(place: &Place) -> Result<Box<dyn Meter>, Unmeasured> {
    let class = place.sysfs.join("class/hwmon");
    if !class.is_dir() {
        return Err(Unmeasured::because(format!("there is no {}", class.display())));
    }
    let mut meter = Bank::new();
    for device in files::names(&class)? {
        let folder = class.join(&device);
        let Ok(names) = files::names(&folder) else { continue };
        let driver = files::text(&folder.join("name")).unwrap_or_else(|_| device.clone());
        for counter in names.iter().filter(|n| n.starts_with("energy") && n.ends_with("_input")) {
            let label = files::text(&folder.join(counter.replace("_input", "_label"))).unwrap_or_default();
            let (kind, package) = covers(&label);
            let label = if label.is_empty() { counter.trim_end_matches("_input").to_owned() } else { label };
            let name = format!("{device}:{driver:.30}/{label:.30}");
            meter.add(Domain { name, kind, package, range_uj: None }, CounterFile::new(folder.join(counter)));
        }
    }
    if meter.domains().is_empty() {
        return Err(Unmeasured::because(format!("{} has no counter of energy", class.display())));
    }
    let counted = counted(meter.domains());
    let Some(first) = meter.first(&counted) else {
        let names: Vec<&str> = meter.domains().iter().map(|d| d.name.as_str()).take(8).collect();
        let names = names.join(", ");
        return Err(Unmeasured::because(format!(
            "none of the counters in {} covers the host: {names}",
            class.display()
        )));
    };
    first.read(Nanos(0))?;
    Ok(Box::new(meter))
}

/// What a label covers.
fn covers(label: &str) -> (DomainKind, Option<String>) {
    let label = label.to_ascii_lowercase();
    let after = |prefix: &str| label.strip_prefix(prefix).and_then(|rest| rest.trim().parse::<u32>().ok());
    if let Some(number) = after("esocket").or_else(|| after("socket")).or_else(|| after("package")) {
        return (DomainKind::Package, Some(format!("package-{number}")));
    }
    match label.as_str() {
        label if label.starts_with("ecore") => (DomainKind::Core, None),
        "board" | "system" | "platform" | "total" => (DomainKind::Psys, None),
        _ => (DomainKind::Device, None),
    }
}
