//! Every meter on recorded trees: an Intel client, an Intel server with two sockets, an AMD host, a virtual machine.

use crate::choose::{Measured, choose, measure};
use crate::meter::{Domain, DomainKind, Meter, Place, Unmeasured};
use crate::meters::{METERS, Pmu};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
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

/// A notebook: package, core, uncore, the platform; the package once more by memory-mapped registers.
const CLIENT: &str = "
    class/powercap/intel-rapl/enabled = 1
    class/powercap/intel-rapl:0/name = package-0
    class/powercap/intel-rapl:0/energy_uj = 142033121953
    class/powercap/intel-rapl:0/max_energy_range_uj = 262143328850
    class/powercap/intel-rapl:0/constraint_0_name = long_term
    class/powercap/intel-rapl:0:0/name = core
    class/powercap/intel-rapl:0:0/energy_uj = 85931004395
    class/powercap/intel-rapl:0:0/max_energy_range_uj = 262143328850
    class/powercap/intel-rapl:0:1/name = uncore
    class/powercap/intel-rapl:0:1/energy_uj = 1182374876
    class/powercap/intel-rapl:0:1/max_energy_range_uj = 262143328850
    class/powercap/intel-rapl:1/name = psys
    class/powercap/intel-rapl:1/energy_uj = 209715200123
    class/powercap/intel-rapl:1/max_energy_range_uj = 262143328850
    class/powercap/intel-rapl-mmio/enabled = 0
    class/powercap/intel-rapl-mmio:0/name = package-0
    class/powercap/intel-rapl-mmio:0/energy_uj = 142033121953
    class/powercap/intel-rapl-mmio:0/max_energy_range_uj = 262143328850
    class/powercap/dtpm/enabled = 1
";

/// Two sockets with memory of their own, by powercap and by perf.
const SERVER: &str = "
    class/powercap/intel-rapl:0/name = package-0
    class/powercap/intel-rapl:0/energy_uj = 262143328000
    class/powercap/intel-rapl:0/max_energy_range_uj = 262143328850
    class/powercap/intel-rapl:0:0/name = dram
    class/powercap/intel-rapl:0:0/energy_uj = 65712991000
    class/powercap/intel-rapl:0:0/max_energy_range_uj = 65712999613
    class/powercap/intel-rapl:1/name = package-1
    class/powercap/intel-rapl:1/energy_uj = 5000
    class/powercap/intel-rapl:1/max_energy_range_uj = 262143328850
    class/powercap/intel-rapl:1:0/name = dram
    class/powercap/intel-rapl:1:0/energy_uj = 7000
    class/powercap/intel-rapl:1:0/max_energy_range_uj = 65712999613
    bus/event_source/devices/power/type = 22
    bus/event_source/devices/power/cpumask = 0,28
    bus/event_source/devices/power/format/event = config:0-7
    bus/event_source/devices/power/events/energy-pkg = event=0x02
    bus/event_source/devices/power/events/energy-pkg.scale = 2.3283064365386962890625e-10
    bus/event_source/devices/power/events/energy-pkg.unit = Joules
    bus/event_source/devices/power/events/energy-ram = event=0x03
    bus/event_source/devices/power/events/energy-ram.scale = 2.3283064365386962890625e-10
    bus/event_source/devices/power/events/energy-ram.unit = Joules
    devices/system/cpu/cpu0/topology/physical_package_id = 0
    devices/system/cpu/cpu1/topology/physical_package_id = 0
    devices/system/cpu/cpu28/topology/physical_package_id = 1
    devices/system/cpu/cpufreq/boost = 1
    proc/cpuinfo = vendor_id	: GenuineIntel
";

/// An EPYC host: the same names, no memory; sockets and cores by hwmon too.
const AMD: &str = "
    class/powercap/intel-rapl:0/name = package-0
    class/powercap/intel-rapl:0/energy_uj = 65532610000
    class/powercap/intel-rapl:0/max_energy_range_uj = 65532610987
    class/powercap/intel-rapl:0:0/name = core
    class/powercap/intel-rapl:0:0/energy_uj = 4411
    class/powercap/intel-rapl:0:0/max_energy_range_uj = 65532610987
    class/hwmon/hwmon0/name = k10temp
    class/hwmon/hwmon0/temp1_input = 44125
    class/hwmon/hwmon1/name = amd_energy
    class/hwmon/hwmon1/energy1_label = Ecore000
    class/hwmon/hwmon1/energy1_input = 123456
    class/hwmon/hwmon1/energy65_label = Esocket0
    class/hwmon/hwmon1/energy65_input = 7890123
";

/// A virtual machine: only the platform, and it never moves; a graphics card with a counter of its own.
const VIRTUAL: &str = "
    class/powercap/intel-rapl:0/name = package-0
    class/powercap/intel-rapl:0/energy_uj = 0
    class/powercap/intel-rapl:0/max_energy_range_uj = 262143328850
    bus/event_source/devices/power/type = 11
    bus/event_source/devices/power/cpumask = 0
    bus/event_source/devices/power/events/energy-psys = event=0x05
    bus/event_source/devices/power/events/energy-psys.scale = 2.3283064365386962890625e-10
    bus/event_source/devices/power/events/energy-psys.unit = Joules
    class/hwmon/hwmon3/name = i915
    class/hwmon/hwmon3/energy1_input = 99
";

fn names(domains: &[Domain]) -> Vec<&str> {
    domains.iter().map(|d| d.name.as_str()).collect()
}

#[test]
fn powercap_knows_every_zone_once() {
    let client = Tree::of(CLIENT).open("powercap").unwrap();
    assert_eq!(names(client.domains()), ["package-0", "package-0/core", "package-0/uncore", "psys"]);
    assert!(client.domains().iter().all(|d| d.range_uj == Some(262_143_328_850)));
    let server = Tree::of(SERVER).open("powercap").unwrap();
    assert_eq!(names(server.domains()), ["package-0", "package-0/dram", "package-1", "package-1/dram"]);
    assert_eq!(server.domains()[3].package.as_deref(), Some("package-1"));
    assert_eq!(server.domains()[3].range_uj, Some(65_712_999_613));
    let amd = Tree::of(AMD).open("powercap").unwrap();
    assert_eq!(names(amd.domains()), ["package-0", "package-0/core"]);
}

#[test]
fn parts_that_lie_only_inside_their_package_are_found() {
    let tree = Tree::of(
        "class/powercap/intel-rapl/intel-rapl:0/name = package-0
         class/powercap/intel-rapl/intel-rapl:0/energy_uj = 5
         class/powercap/intel-rapl/intel-rapl:0/intel-rapl:0:0/name = dram
         class/powercap/intel-rapl/intel-rapl:0/intel-rapl:0:0/energy_uj = 6",
    );
    assert_eq!(names(tree.open("powercap").unwrap().domains()), ["package-0", "package-0/dram"]);
}

#[test]
fn only_memory_mapped_registers_are_registers_too() {
    let tree = Tree::of(
        "class/powercap/intel-rapl-mmio:0/name = package-0
         class/powercap/intel-rapl-mmio:0/energy_uj = 5",
    );
    assert_eq!(names(tree.open("powercap").unwrap().domains()), ["package-0"]);
}

/// Reads a tree for a while, and changes its counters meanwhile.
fn read(tree: &Tree, meter: Option<&str>, change: impl FnOnce(&Tree)) -> Result<Measured, Unmeasured> {
    /// The reader and the writer take turns: the reader waits in its clock for a second turn of the writer's.
    static TURN: (std::sync::Mutex<u32>, std::sync::Condvar) = (std::sync::Mutex::new(0), std::sync::Condvar::new());
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    fn wait(turn: u32) {
        drop(TURN.1.wait_while(TURN.0.lock().unwrap(), |now| *now != turn).unwrap());
    }
    fn give(turn: u32) {
        *TURN.0.lock().unwrap() = turn;
        TURN.1.notify_all();
    }
    /// First look: the window begins. Second: the first readings have been made, and the writer may write. Then it is over.
    fn in_turns() -> Nanos {
        let mut turn = TURN.0.lock().unwrap();
        if *turn == 0 {
            *turn = 1;
            return Nanos(0);
        }
        drop(turn);
        give(2);
        wait(3);
        Nanos(2_000_000_000)
    }
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    give(0);
    let place = tree.place();
    std::thread::scope(|scope| {
        let reading =
            scope.spawn(move || measure(&place, meter, Duration::from_secs(2), Duration::from_millis(1), in_turns));
        wait_or_end(&reading, || *TURN.0.lock().unwrap() == 2);
        change(tree);
        give(3);
        reading.join().unwrap()
    })
}

fn wait_or_end<T>(thread: &std::thread::ScopedJoinHandle<'_, T>, reached: impl Fn() -> bool) {
    while !reached() && !thread.is_finished() {
        std::thread::yield_now();
    }
}

#[test]
fn two_sockets_that_wrap_are_exact() {
    let tree = Tree::of(SERVER);
    let measured = read(&tree, None, |tree| {
        tree.write("class/powercap/intel-rapl:0/energy_uj", "150");
        tree.write("class/powercap/intel-rapl:0:0/energy_uj", "1387");
        tree.write("class/powercap/intel-rapl:1/energy_uj", "80005000");
        tree.write("class/powercap/intel-rapl:1:0/energy_uj", "7061");
    })
    .unwrap();
    assert_eq!((measured.meter, measured.window), ("powercap", Nanos(2_000_000_000)));
    let uj = |name: &str| measured.domains[name];
    assert_eq!([uj("package-0"), uj("package-0/dram")], [Some(1000), Some(10_000)]);
    assert_eq!([uj("package-1"), uj("package-1/dram")], [Some(80_000_000), Some(61)]);
    assert_eq!(measured.counted.len(), 4);
}

#[test]
fn dead_reset_and_vanished_domains_are_null_and_the_others_exact() {
    let tree = Tree::of(SERVER);
    let measured = read(&tree, Some("powercap"), |tree| {
        tree.write("class/powercap/intel-rapl:1/energy_uj", "6000");
        std::fs::remove_dir_all(tree.path("class/powercap/intel-rapl:1:0")).unwrap();
        tree.write("class/powercap/intel-rapl:0:0/energy_uj", "4000000");
        // A counter that goes back by a little was reset: a wrap would be 262 kJ in two seconds.
        tree.write("class/powercap/intel-rapl:0/energy_uj", "262143000000");
    })
    .unwrap();
    assert_eq!(measured.domains["package-1"], Some(1000));
    assert_eq!(measured.domains["package-0/dram"], Some(65_712_999_613 - 65_712_991_000 + 4_000_000));
    assert_eq!(measured.domains["package-0"], None);
    assert!(measured.reasons["package-0"].contains("reset"), "{:?}", measured.reasons);
    assert_eq!(measured.domains["package-1/dram"], None);
    assert!(measured.reasons["package-1/dram"].contains("intel-rapl:1:0/energy_uj"), "{:?}", measured.reasons);
}

#[test]
fn a_virtual_machine_has_no_meter_and_says_why() {
    let tree = Tree::of(VIRTUAL);
    let why = read(&tree, None, |_| {}).unwrap_err().why;
    for part in ["powercap: package-0: it never moved", "virtual machines", "power PMU", "hwmon3:i915", "no command"] {
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
fn perf_reads_each_package_where_the_mask_says() {
    let tree = Tree::of(SERVER);
    let pmu = Pmu::read(&tree.path("")).unwrap();
    assert_eq!(
        pmu.described(),
        [
            "package-0 on cpu 0: event 0x2, 0.000232830644 uJ",
            "package-0/dram on cpu 0: event 0x3, 0.000232830644 uJ",
            "package-1 on cpu 28: event 0x2, 0.000232830644 uJ",
            "package-1/dram on cpu 28: event 0x3, 0.000232830644 uJ",
        ]
    );
    // Two processors of one package read it once, and the platform is one.
    tree.write("bus/event_source/devices/power/cpumask", "0-1,28");
    tree.write("bus/event_source/devices/power/events/energy-psys", "event=0x05");
    tree.write("bus/event_source/devices/power/events/energy-psys.scale", "1e-6");
    tree.write("bus/event_source/devices/power/events/energy-psys.unit", "Joules");
    let described = Pmu::read(&tree.path("")).unwrap().described();
    assert_eq!(described.len(), 5);
    assert_eq!(described[2], "psys on cpu 0: event 0x5, 1.000000000000 uJ");
    assert!(tree.refusal("perf").contains("own host"));
    for (file, wrong, part) in [
        ("energy-pkg.unit", "Watts", "Watts"),
        ("energy-pkg.scale", "-1", "-1"),
        ("energy-pkg.scale", "nan", "nan"),
        ("energy-pkg", "event=0x1ff", "0x1ff"),
    ] {
        let tree = Tree::of(SERVER);
        tree.write(&format!("bus/event_source/devices/power/events/{file}"), wrong);
        let why = Pmu::read(&tree.path("")).unwrap_err().why;
        assert!(why.contains(part), "{why} lacks {part}");
    }
}

/// A processor's registers as a sparse file.
fn registers(tree: &Tree, processor: u32, values: &[(u64, u64)]) {
    let path = tree.path(&format!("dev/cpu/{processor}/msr"));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = std::fs::File::options().create(true).write(true).truncate(false).open(path).unwrap();
    for (address, value) in values {
        file.write_all_at(&value.to_le_bytes(), *address).unwrap();
    }
}

fn uj(meter: &mut dyn Meter) -> Vec<u64> {
    meter.read(Nanos(0)).into_iter().map(|r| r.unwrap().uj).collect()
}

#[test]
fn registers_are_worth_what_the_unit_register_says() {
    let tree = Tree::of(SERVER);
    // Skylake-X: 2^-14 J, memory 2^-16 J; bits above the counter's 32 mean nothing.
    tree.write("proc/cpuinfo", "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Xeon");
    for processor in [0, 28] {
        registers(
            &tree,
            processor,
            &[(0x606, 0x000a_0e03), (0x611, 0xffff_0000_0000_4000), (0x619, 1 << 16), (0x641, 0)],
        );
    }
    let mut meter = tree.open("msr").unwrap();
    assert_eq!(names(meter.domains())[..2], ["package-0", "package-0/dram"]);
    assert_eq!(meter.domains().iter().filter(|d| d.kind == DomainKind::Package).count(), 2);
    assert_eq!(meter.domains()[0].range_uj, Some(((1u64 << 32) * 1_000_000) >> 14));
    assert_eq!(uj(&mut *meter)[..2], [1_000_000, 1_000_000]);
    // EPYC: 2^-16 J, packages only.
    let tree =
        Tree::of("devices/system/cpu/cpu0/topology/physical_package_id = 0\nproc/cpuinfo = vendor_id : AuthenticAMD");
    registers(&tree, 0, &[(0xC001_0299, 0x000a_1003), (0xC001_029B, 3 << 16)]);
    let mut meter = tree.open("msr").unwrap();
    assert_eq!(names(meter.domains()), ["package-0"]);
    assert_eq!(uj(&mut *meter), [3_000_000]);
}

/// A meter by command, given once the program has printed its last line.
fn commanded(line: &str) -> Result<Box<dyn Meter>, Unmeasured> {
    (METERS.find("command").unwrap().build)(&Place { command: Some(line.to_owned()), ..Place::host() })
}

#[test]
fn a_program_may_be_the_meter() {
    let dir = tempfile::tempdir().unwrap();
    let more = dir.path().join("more");
    assert!(std::process::Command::new("mkfifo").arg(&more).status().unwrap().success());
    let mut meter = commanded(&format!("echo 12.5; read x < '{}'; echo $x; sleep 1000", more.display())).unwrap();
    assert_eq!(names(meter.domains()), ["wall"]);
    let first = meter.read(Nanos(10))[0].clone().unwrap();
    assert_eq!((first.at, first.uj), (Nanos(10), 12_500_000));
    // The figure keeps the instant at which it was first seen.
    assert_eq!(meter.read(Nanos(20))[0].clone().unwrap(), first);
    std::fs::write(&more, "13.25\n").unwrap();
    let next = until(&mut *meter, |reading| *reading != Ok(first));
    assert_eq!(next.unwrap().uj, 13_250_000);
}

#[test]
fn a_program_that_ends_or_prints_something_else_is_no_meter() {
    for (line, part) in [("exit 3", "has ended"), ("echo watts", "\"watts\""), ("echo -5", "-5"), ("echo inf", "inf")] {
        let why = commanded(line).map(|m| panic!("{:?}", m.domains())).unwrap_err().why;
        assert!(why.contains(part), "{line}: {why}");
    }
    let mut meter = commanded("echo 5; sleep 1").unwrap();
    let why = until(&mut *meter, Result::is_err).unwrap_err().why;
    assert!(why.contains("has ended"), "{why}");
    assert!(Tree::of("").refusal("command").contains("no command"));
}

fn until(
    meter: &mut dyn Meter,
    wanted: impl Fn(&Result<crate::Reading, Unmeasured>) -> bool,
) -> Result<crate::Reading, Unmeasured> {
    loop {
        let reading = meter.read(Nanos(30)).remove(0);
        if wanted(&reading) {
            return reading;
        }
        std::thread::yield_now();
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
