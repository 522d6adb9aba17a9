//! What this host can hold: checked before anything starts.

use super::{Cell, Experiment, Mistake, Place};
use whimbrel_machine::MACHINES;
use whimbrel_machine::machines::Kind;
use whimbrel_model::Bytes;

/// What a host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostMemory {
    /// All its memory.
    pub total: Bytes,
    /// What may be taken without swapping.
    pub available: Bytes,
}

impl HostMemory {
    /// This host's, from the kernel; `None` where the kernel doesn't say.
    pub fn here() -> Option<HostMemory> {
        HostMemory::parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
    }

    fn parse(meminfo: &str) -> Option<HostMemory> {
        let value = |key: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
            let kib: u64 = line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse().ok()?;
            Some(Bytes(kib << 10))
        };
        Some(HostMemory { total: value("MemTotal")?, available: value("MemAvailable")? })
    }
}

/// Sees that every cell's guests fit. With both hosts here, each guest is held twice.
///
/// # Errors
/// The first cell that doesn't fit.
pub fn check(experiment: &Experiment, host: HostMemory, both_here: bool) -> Result<(), Mistake> {
    let copies = if both_here { 2 } else { 1 };
    let needs = |cell: &Cell| cell.setting.guest.ram.0.saturating_mul(u64::from(cell.setting.guest.count) * copies);
    let Some(cell) = experiment.cells.iter().find(|cell| needs(cell) > host.total.0) else { return Ok(()) };
    let place = experiment.tree.at(&["guest".to_owned(), "ram".to_owned()]).map_or(Place::Missing, |f| f.place.clone());
    let guest = &cell.setting.guest;
    let times = match (both_here, guest.count) {
        (true, 1) => " at both hosts, which are this one,".to_owned(),
        (true, n) => format!(" in each of {n} guests at both hosts, which are this one,"),
        (false, 1) => String::new(),
        (false, n) => format!(" in each of {n} guests"),
    };
    let most = (host.total.0 / copies / u64::from(guest.count)) >> 20;
    let message = format!(
        "guest.ram: {}{times} is more than the {} of this host's memory; write at most \"{most} MiB\"",
        guest.ram, host.total
    );
    Err(Mistake { origin: experiment.origin.clone(), place, message })
}

/// Sees that the filled parts of all guests' disks fit into what is free where the images will lie. With both hosts here,
/// each disk is held twice.
///
/// # Errors
/// The first cell that doesn't fit.
pub fn check_disk(experiment: &Experiment, free: Bytes) -> Result<(), Mistake> {
    let needs = |cell: &Cell| cell.setting.guest.filled.0.saturating_mul(2 * u64::from(cell.setting.guest.count));
    let Some(cell) = experiment.cells.iter().find(|cell| needs(cell) > free.0) else { return Ok(()) };
    let key = ["guest".to_owned(), "filled".to_owned()];
    let place = experiment.tree.at(&key).map_or(Place::Missing, |f| f.place.clone());
    let guest = &cell.setting.guest;
    let most = (free.0 / 2 / u64::from(guest.count)) >> 20;
    let message = format!(
        "guest.filled: {} for each of {} guests at both hosts is more than the {free} that are free for disk images in {}; \
         write at most \"{most} MiB\", or set TMPDIR to a folder with more room",
        guest.filled,
        guest.count,
        std::env::temp_dir().display()
    );
    Err(Mistake { origin: experiment.origin.clone(), place, message })
}

/// Sees that the files of guests that their user brought are here.
///
/// # Errors
/// The first that is not, or not what it should be.
pub fn check_brought(experiment: &Experiment) -> Result<(), Mistake> {
    let wrong = |cell: &Cell| {
        let (guest, brought) = (&cell.setting.guest, cell.setting.guest.brought.as_ref()?);
        brought.check_files(guest.disk.map_or(0, |disk| disk.0)).err()
    };
    let Some(error) = experiment.cells.iter().find_map(wrong) else { return Ok(()) };
    let key = ["guest", "qemu", error.key].map(str::to_owned);
    let place = experiment.tree.at(&key).map_or(Place::Missing, |f| f.place.clone());
    Err(Mistake { origin: experiment.origin.clone(), place, message: error.to_string() })
}

/// The first of these cells with each kind of machine, and the kind: what a host has of it is asked once.
fn each_machine<'a>(cells: impl Iterator<Item = &'a Cell>) -> impl Iterator<Item = (&'a Cell, &'static Kind)> {
    let mut seen: Vec<&str> = Vec::new();
    cells.filter_map(move |cell| {
        let machine = cell.setting.guest.machine;
        if seen.contains(&machine) {
            return None;
        }
        seen.push(machine);
        Some((cell, &MACHINES.find(machine).expect("the name was looked up in the registry").build))
    })
}

/// Sees that the programs are here in which guests at embedded hosts run.
///
/// # Errors
/// The first that is not.
pub fn check_machines(experiment: &Experiment) -> Result<(), Mistake> {
    for (cell, kind) in each_machine(experiment.cells.iter()) {
        if let Err(why) = (kind.here)() {
            let machine = cell.setting.guest.machine;
            let key = ["guest".to_owned(), "machine".to_owned()];
            let place = experiment.tree.at(&key).map_or(Place::Missing, |f| f.place.clone());
            let message = format!(
                "guest.machine: {machine:?} can't be had on this host: {why}; `whimbrel doctor` says what helps"
            );
            return Err(Mistake { origin: experiment.origin.clone(), place, message });
        }
    }
    Ok(())
}

/// Sees that guests which a strategy may slow can be slowed here.
///
/// # Errors
/// A kind of machine that can't, with the first cell that needs it.
pub fn check_throttles(experiment: &Experiment) -> Result<(), Mistake> {
    let slowed = |cell: &&Cell| cell.setting.own.is_none() && cell.setting.memory.throttles();
    for (cell, kind) in each_machine(experiment.cells.iter().filter(slowed)) {
        if let Err(why) = (kind.throttles_here)() {
            let machine = cell.setting.guest.machine;
            let at = |key: &str| experiment.tree.at(&["memory".to_owned(), key.to_owned()]).map(|f| f.place.clone());
            let place = at("throttle").or_else(|| at("preset")).unwrap_or(Place::Missing);
            let throttle = &cell.setting.memory.resolved()["throttle"];
            let message = format!(
                "memory.throttle: {throttle} is not accepted, for the vCPUs of machine {machine:?} can't be slowed here: \
                 {why}; write \"none\""
            );
            return Err(Mistake { origin: experiment.origin.clone(), place, message });
        }
    }
    Ok(())
}

/// What is free where the embedded hosts keep their disk images; `None` where the file system doesn't say.
pub fn free_for_images() -> Option<Bytes> {
    let of = rustix::fs::statvfs(std::env::temp_dir()).ok()?;
    Some(Bytes(of.f_bavail.saturating_mul(of.f_frsize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let host = HostMemory::parse("MemTotal:       16303428 kB\nMemFree: 1 kB\nMemAvailable:   15000000 kB\n");
        let expected = HostMemory { total: Bytes(16303428 << 10), available: Bytes(15000000 << 10) };
        assert_eq!(host, Some(expected));
        assert_eq!(HostMemory::parse("nothing"), None);
    }
}
