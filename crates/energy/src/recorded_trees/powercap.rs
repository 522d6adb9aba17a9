//! Powercap's zones: every counter once, whatever it is called and wherever it lies.

use super::trees::{AMD, CLIENT, DIES, HASWELL, SAPPHIRE, SERVER, XEN};
use super::{Tree, names, read};
use crate::choose::choose;
use crate::meter::{DomainKind, counted};
use whimbrel_model::Nanos;

#[test]
fn powercap_knows_every_zone_once() {
    let client = Tree::of(CLIENT).open("powercap").unwrap();
    assert_eq!(names(client.domains()), ["package-0", "package-0/core", "package-0/uncore", "package-0/dram", "psys"]);
    assert!(client.domains().iter().all(|d| d.range_uj == Some(262_143_328_850)));
    let server = Tree::of(SERVER).open("powercap").unwrap();
    assert_eq!(names(server.domains()), ["package-0", "package-0/dram", "package-1", "package-1/dram"]);
    assert_eq!(server.domains()[3].package.as_deref(), Some("package-1"));
    assert_eq!(server.domains()[3].range_uj, Some(65_712_999_613));
    let amd = Tree::of(AMD).open("powercap").unwrap();
    assert_eq!(names(amd.domains()), ["package-0", "package-0/core"]);
}

#[test]
fn only_what_is_wanted_is_read() {
    let tree = Tree::of(CLIENT);
    let mut client = tree.open("powercap").unwrap();
    client.keep(&counted(client.domains()));
    assert_eq!(names(client.domains()), ["package-0", "package-0/dram"]);
    // What nobody wants may even be gone.
    std::fs::remove_dir_all(tree.path("class/powercap/intel-rapl:0:0")).unwrap();
    let uj = client.read(Nanos(7)).into_iter().map(|reading| reading.unwrap().uj);
    assert_eq!(uj.collect::<Vec<_>>(), [142_033_121_953, 22_969_474_853]);
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
fn two_zones_of_one_name_by_the_same_way_are_two() {
    let tree = Tree::of(
        "class/powercap/intel-rapl:0/name = package-0
         class/powercap/intel-rapl:0/energy_uj = 5
         class/powercap/intel-rapl:1/name = package-0
         class/powercap/intel-rapl:1/energy_uj = 6
         class/powercap/intel-rapl-mmio:0/name = package-0
         class/powercap/intel-rapl-mmio:0/energy_uj = 5",
    );
    let meter = tree.open("powercap").unwrap();
    assert_eq!(names(meter.domains()), ["package-0", "package-0 (intel-rapl:1)"]);
    assert_eq!(counted(meter.domains()), [true, true]);
}

#[test]
fn only_memory_mapped_registers_are_registers_too() {
    let tree = Tree::of(
        "class/powercap/intel-rapl-mmio:0/name = package-0
         class/powercap/intel-rapl-mmio:0/energy_uj = 5",
    );
    assert_eq!(names(tree.open("powercap").unwrap().domains()), ["package-0"]);
}

#[test]
fn two_sockets_that_wrap_are_exact() {
    let wraps = |package_0: &str, dram_0: &str| {
        let tree = Tree::of(SERVER);
        let measured = read(&tree, None, |tree| {
            tree.write("class/powercap/intel-rapl:0/energy_uj", package_0);
            tree.write("class/powercap/intel-rapl:0:0/energy_uj", dram_0);
            tree.write("class/powercap/intel-rapl:1/energy_uj", "80005000");
            tree.write("class/powercap/intel-rapl:1:0/energy_uj", "7061");
        })
        .unwrap();
        assert_eq!((measured.meter, measured.window), ("powercap", Nanos(2_000_000_000)));
        assert_eq!(measured.counted.len(), 4);
        let names = ["package-0", "package-0/dram", "package-1", "package-1/dram"];
        names.map(|name| measured.domains[name])
    };
    let others = [Some(80_000_000), Some(61)];
    assert_eq!(wraps("150", "65712992000"), [Some(1000), Some(1000), others[0], others[1]]);
    assert_eq!(wraps("262143328350", "1387"), [Some(350), Some(10_000), others[0], others[1]]);
    assert_eq!(wraps("150", "1387"), [None, None, others[0], others[1]], "both at once: they were reset");
}

#[test]
fn dead_reset_and_vanished_domains_are_null_and_the_others_exact() {
    let tree = Tree::of(SERVER);
    let measured = read(&tree, Some("powercap"), |tree| {
        tree.write("class/powercap/intel-rapl:1/energy_uj", "6000");
        std::fs::remove_dir_all(tree.path("class/powercap/intel-rapl:1:0")).unwrap();
        tree.write("class/powercap/intel-rapl:0:0/energy_uj", "65712992000");
        // A counter that goes back by a little was reset: a wrap would be 262 kJ in two seconds.
        tree.write("class/powercap/intel-rapl:0/energy_uj", "262143000000");
    })
    .unwrap();
    assert_eq!(measured.domains["package-1"], Some(1000));
    assert_eq!(measured.domains["package-0/dram"], Some(1000));
    assert_eq!(measured.domains["package-0"], None);
    assert!(measured.reasons["package-0"].contains("reset"), "{:?}", measured.reasons);
    assert_eq!(measured.domains["package-1/dram"], None);
    assert!(measured.reasons["package-1/dram"].contains("intel-rapl:1:0/energy_uj"), "{:?}", measured.reasons);
}

/// The layout that the kernel makes: all zones are links in one folder, and lie inside each other where they lead, with
/// links of their own up and sideways.
#[test]
fn zones_are_links_into_a_tree_with_links_of_its_own() {
    let tree = Tree::of(
        "devices/virtual/powercap/intel-rapl/enabled = 1
         devices/virtual/powercap/intel-rapl/intel-rapl:0/name = package-0
         devices/virtual/powercap/intel-rapl/intel-rapl:0/energy_uj = 5
         devices/virtual/powercap/intel-rapl/intel-rapl:0/intel-rapl:0:0/name = core
         devices/virtual/powercap/intel-rapl/intel-rapl:0/intel-rapl:0:0/energy_uj = 3
         class/powercap/uevent =",
    );
    let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, tree.path(at)).unwrap();
    let zones = "devices/virtual/powercap/intel-rapl";
    link("../../devices/virtual/powercap/intel-rapl", "class/powercap/intel-rapl");
    link("../../devices/virtual/powercap/intel-rapl/intel-rapl:0", "class/powercap/intel-rapl:0");
    link("../../devices/virtual/powercap/intel-rapl/intel-rapl:0/intel-rapl:0:0", "class/powercap/intel-rapl:0:0");
    link("../../../../class/powercap", &format!("{zones}/subsystem"));
    link("../../intel-rapl", &format!("{zones}/intel-rapl:0/device"));
    link("../../../../../class/powercap", &format!("{zones}/intel-rapl:0/subsystem"));
    link("../../intel-rapl:0", &format!("{zones}/intel-rapl:0/intel-rapl:0:0/device"));
    assert_eq!(names(tree.open("powercap").unwrap().domains()), ["package-0", "package-0/core"]);
    // A driver that has found its domains and could not register them leaves links to nothing (home-assistant, N150).
    std::fs::remove_dir_all(tree.path(&format!("{zones}/intel-rapl:0"))).unwrap();
    let why = tree.refusal("powercap");
    assert!(why.contains("intel-rapl:0 is a link to nothing"), "{why}");
}

#[test]
fn ranges_are_those_of_the_kernel_that_made_them() {
    let haswell = Tree::of(HASWELL);
    assert!(haswell.open("powercap").unwrap().domains().iter().all(|d| d.range_uj == Some(262_143_999_938)));
    let measured = read(&haswell, None, |tree| {
        tree.write("class/powercap/intel-rapl:0/energy_uj", "62");
        tree.write("class/powercap/intel-rapl:0:2/energy_uj", "2469474953");
    });
    let measured = measured.unwrap();
    assert_eq!(measured.domains["package-0"], Some(100_000));
    assert_eq!(measured.domains["package-0/dram"], Some(100));
}

#[test]
fn the_platform_is_no_package_whatever_its_number() {
    let sapphire = Tree::of(SAPPHIRE);
    let meter = sapphire.open("powercap").unwrap();
    assert_eq!(
        names(meter.domains()),
        ["package-0", "package-0/dram", "psys", "package-1", "package-1/dram", "psys-1"]
    );
    assert!([2, 5].iter().all(|n| meter.domains()[*n].kind == DomainKind::Psys));
    // It counts whole joules, and its range is that of whole joules.
    assert_eq!(meter.domains()[2].range_uj, Some(4_294_967_295_000_000));
    let measured = read(&sapphire, None, |tree| {
        for (zone, uj) in [("0", "101000700000"), ("0:0", "41000020000"), ("2", "202000600000"), ("2:0", "52000010000")]
        {
            tree.write(&format!("class/powercap/intel-rapl:{zone}/energy_uj"), uj);
        }
        tree.write("class/powercap/intel-rapl:1/energy_uj", "60293989000000");
    });
    let measured = measured.unwrap();
    assert_eq!(measured.counted, ["package-0", "package-0/dram", "package-1", "package-1/dram"]);
    assert_eq!((measured.domains["psys"], measured.domains["psys-1"]), (Some(2_000_000), None));
    let dies = Tree::of(DIES).open("powercap").unwrap();
    assert_eq!(names(dies.domains()), ["package-0-die-0", "package-0-die-1"]);
    assert!(dies.domains().iter().all(|d| d.kind == DomainKind::Package && d.package.as_deref() == Some(&d.name)));
}

#[test]
fn one_counter_under_several_names_is_counted_once() {
    let tree = Tree::of(XEN);
    // One file, which changes in one go, under all names.
    let used = |tree: &Tree, uj: &str| {
        tree.write("next", uj);
        std::fs::rename(tree.path("next"), tree.path("counter")).unwrap();
    };
    used(&tree, "194127997354");
    for zone in 0..3 {
        let counter = tree.path(&format!("class/powercap/intel-rapl:{zone}/energy_uj"));
        std::fs::remove_file(&counter).unwrap();
        std::os::unix::fs::symlink(tree.path("counter"), counter).unwrap();
    }
    let measured = read(&tree, None, |tree| used(tree, "194128997354")).unwrap();
    assert_eq!(measured.counted, ["package-0"]);
    assert_eq!((measured.domains["package-0"], measured.domains["package-1"]), (Some(1_000_000), None));
    assert!(measured.reasons["package-2"].contains("package-0's counter under another name"), "{:?}", measured.reasons);
    // An agent sees it when it chooses its meter.
    let place = tree.place();
    let moving = std::sync::atomic::AtomicBool::new(true);
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let mut uj = 194_128_997_354u64;
            while moving.load(std::sync::atomic::Ordering::SeqCst) {
                uj += 61;
                used(&tree, &uj.to_string());
            }
        });
        let chosen = choose(&place, Some("powercap"), real_clock).map_err(|why| why.why);
        moving.store(false, std::sync::atomic::Ordering::SeqCst);
        mover.join().unwrap();
        let absent: Vec<String> = chosen.map(|chosen| chosen.absent.into_keys().collect()).unwrap();
        assert_eq!(absent, ["package-1", "package-2"]);
    });
}

/// This host's clock.
fn real_clock() -> Nanos {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Nanos(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}
