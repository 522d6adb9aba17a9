//! Every meter on trees of the shapes that hosts have (`recorded_trees/trees.rs` says whose), and which one is chosen.

mod others;
mod perf;
mod powercap;
mod trees;

use crate::choose::{Measured, choose, measure};
use crate::meter::{Domain, Meter, Place, Unmeasured};
use crate::meters::METERS;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use trees::{AMD, VIRTUAL};
use whimbrel_model::Nanos;

/// A clock that goes a millisecond on whenever it is read, so that a fifth of a second is two hundred looks.
fn clock() -> Nanos {
    static NOW: AtomicU64 = AtomicU64::new(0);
    Nanos(NOW.fetch_add(1_000_000, Ordering::Relaxed))
}

/// A tree of files, each `path = content`.
struct Tree(TempDir);

impl Tree {
    fn of(files: &str) -> Tree {
        let tree = Tree(tempfile::tempdir().unwrap());
        for line in files.lines().filter(|l| !l.trim().is_empty()) {
            let (path, content) = line.split_once('=').unwrap();
            tree.write(path.trim(), content.trim());
        }
        tree
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("{content}\n")).unwrap();
    }

    fn place(&self) -> Place {
        Place::under(self.0.path())
    }

    fn open(&self, name: &str) -> Result<Box<dyn Meter>, Unmeasured> {
        (METERS.find(name).unwrap().build)(&self.place())
    }

    /// What opening a meter says against it.
    fn refusal(&self, name: &str) -> String {
        self.open(name).map(|m| panic!("{:?} opened", m.domains())).unwrap_err().why
    }
}

fn names(domains: &[Domain]) -> Vec<&str> {
    domains.iter().map(|d| d.name.as_str()).collect()
}

/// Reads a tree for two seconds, and changes its counters meanwhile.
fn read(tree: &Tree, meter: Option<&str>, change: impl FnOnce(&Tree)) -> Result<Measured, Unmeasured> {
    /// A clock that the writer sets, and how often it was looked at.
    static NOW: AtomicU64 = AtomicU64::new(0);
    static LOOKS: AtomicU64 = AtomicU64::new(0);
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    fn set_clock() -> Nanos {
        LOOKS.fetch_add(1, Ordering::SeqCst);
        Nanos(NOW.load(Ordering::SeqCst))
    }
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    NOW.store(0, Ordering::SeqCst);
    LOOKS.store(0, Ordering::SeqCst);
    let place = tree.place();
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            measure(&place, meter, Duration::from_secs(2), Duration::from_millis(1), set_clock, || false)
        });
        // While the clock stands still readings after the first say nothing new, so the writer may take its time.
        while LOOKS.load(Ordering::SeqCst) < 20 && !reading.is_finished() {
            std::thread::yield_now();
        }
        change(tree);
        NOW.store(2_000_000_000, Ordering::SeqCst);
        reading.join().unwrap()
    })
}

#[test]
fn a_virtual_machine_has_no_meter_and_says_why() {
    let tree = Tree::of(VIRTUAL);
    let why = read(&tree, None, |_| {}).unwrap_err().why;
    for part in ["powercap: package-0: it never moved", "virtual machines", "power PMU", "hwmon3:i915", "no program"] {
        assert!(why.contains(part), "{why} lacks {part}");
    }
    let why = choose(&tree.place(), None, clock).map(|c| panic!("{}", c.name)).unwrap_err().why;
    assert!(why.contains("powercap: package-0: it never moved"), "{why}");
    let nothing = Tree::of("");
    let why = choose(&nothing.place(), None, clock).map(|c| panic!("{}", c.name)).unwrap_err().why;
    assert!(["powercap: there is no", "perf: ", "msr: ", "hwmon: "].iter().all(|part| why.contains(part)), "{why}");
}

#[test]
fn a_meter_named_is_the_only_one_tried() {
    let tree = Tree::of(AMD);
    let why = choose(&tree.place(), Some("powercpa"), clock).map(|c| panic!("{}", c.name)).unwrap_err().why;
    assert!(why.contains("did you mean \"powercap\""), "{why}");
    let why = choose(&tree.place(), Some("null"), clock).map(|c| panic!("{}", c.name)).unwrap_err().why;
    assert_eq!(why, "null: the null meter was chosen");
    let measured = read(&tree, Some("hwmon"), |tree| {
        tree.write("class/hwmon/hwmon1/energy65_input", "7891123");
    });
    let measured = measured.unwrap();
    assert_eq!(measured.counted, ["hwmon1:amd_energy/Esocket0"]);
    assert_eq!(measured.domains["hwmon1:amd_energy/Esocket0"], Some(1000));
    assert_eq!(measured.domains["hwmon1:amd_energy/Ecore000"], None);
}

#[test]
fn hostile_trees_are_refused_in_words() {
    for (tree, meter, part) in [
        (
            "class/powercap/intel-rapl:0/name = package-0\nclass/powercap/intel-rapl:0/energy_uj = many",
            "powercap",
            "whole number",
        ),
        (
            "class/powercap/intel-rapl:0/name = package-0\nclass/powercap/intel-rapl:0/energy_uj = -5",
            "powercap",
            "whole number",
        ),
        ("class/powercap/intel-rapl:0/name = package-0", "powercap", "no zone with a counter"),
        (
            "class/powercap/intel-rapl:0/name = core\nclass/powercap/intel-rapl:0/energy_uj = 5",
            "powercap",
            "covers the host",
        ),
        ("class/hwmon/hwmon0/name = nvme", "hwmon", "no counter"),
        ("bus/event_source/devices/power/cpumask = 0-4294967295", "perf", "no processor"),
        ("proc/cpuinfo = vendor_id : CentaurHauls", "msr", "CentaurHauls"),
        (
            "proc/cpuinfo = vendor_id : GenuineIntel\ndevices/system/cpu/cpu0/topology/physical_package_id = 0",
            "msr",
            "cpu/0/msr",
        ),
    ] {
        let why = Tree::of(tree).refusal(meter);
        assert!(why.contains(part), "{meter}: {why} lacks {part}");
    }
}

#[test]
fn this_host_gives_a_figure_or_says_why_not() {
    for entry in METERS.entries {
        match (entry.build)(&Place::host()) {
            Ok(meter) => assert!(!meter.domains().is_empty(), "{} reads nothing", entry.name),
            Err(unmeasured) => assert!(!unmeasured.why.is_empty(), "{} gives no reason", entry.name),
        }
    }
    assert!(!Place::host().identity().is_empty());
    assert_ne!(Place::host().identity(), Place::under(Path::new("/nowhere")).identity());
}
