//! The power PMU: its description on trees, and the kernel's own call on events that every host has.

use super::trees::{AMD, DIES, SERVER};
use super::{Tree, clock};
use crate::choose::accept;
use crate::meter::{Meter, Unmeasured};
use crate::meters::Pmu;
use std::io::Write as _;
use whimbrel_model::Nanos;

#[test]
fn perf_reads_each_package_where_the_mask_says() {
    let tree = Tree::of(SERVER);
    let pmu = Pmu::read(&tree.place()).unwrap();
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
    let described = Pmu::read(&tree.place()).unwrap().described();
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
        let why = Pmu::read(&tree.place()).unwrap_err().why;
        assert!(why.contains(part), "{why} lacks {part}");
    }
}

#[test]
fn a_die_is_a_counter_on_intel_and_none_on_amd() {
    let tree = Tree::of(DIES);
    let read_by = |tree: &Tree| Pmu::read(&tree.place()).unwrap().described();
    assert_eq!(
        read_by(&tree),
        [
            "package-0-die-0 on cpu 0: event 0x2, 0.000232830644 uJ",
            "package-0-die-1 on cpu 24: event 0x2, 0.000232830644 uJ",
        ]
    );
    // Linux 6.9 named a processor for each die of AMD's packages too, where all of them read one counter.
    tree.write("proc/cpuinfo", "vendor_id\t: AuthenticAMD");
    assert_eq!(read_by(&tree), ["package-0 on cpu 0: event 0x2, 0.000232830644 uJ"]);
    let why = Tree::of(AMD).refusal("perf");
    assert!(why.contains("there is no") && why.contains("devices/power"), "{why}");
}

/// A tree that calls events of the kernel's software PMU, which every host has, by the names of the power PMU's.
fn software(event: &str) -> Tree {
    let tree = Tree::of(
        "bus/event_source/devices/power/type = 1
         bus/event_source/devices/power/cpumask = 0
         bus/event_source/devices/power/events/energy-pkg.scale = 1e-9
         bus/event_source/devices/power/events/energy-pkg.unit = Joules
         devices/system/cpu/cpu0/topology/physical_package_id = 0
         proc/cpuinfo = vendor_id	: GenuineIntel",
    );
    tree.write("bus/event_source/devices/power/events/energy-pkg", event);
    tree
}

/// Opens such an event by the kernel's call; `None`, and loudly, where this process may not.
fn opened(event: &str) -> Option<Box<dyn Meter>> {
    match Pmu::read(&software(event).place()).unwrap().open() {
        Ok(meter) => Some(meter),
        Err(Unmeasured { why }) => {
            assert!(why.contains("permission denied") && why.contains("perf_event_paranoid"), "{why}");
            drop(writeln!(
                std::io::stderr(),
                "SKIPPED: reading perf events, since this process may not open any: {why}"
            ));
            None
        }
    }
}

fn nanoseconds() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// `cpu-clock` counts nanoseconds: at a nanojoule a count, a watt.
#[test]
fn the_kernels_counters_are_read_where_they_are_and_scaled_as_they_say() {
    let Some(mut meter) = opened("event=0x00") else { return };
    assert_eq!(meter.domains()[0].name, "package-0");
    let mut uj = || {
        let before = nanoseconds();
        let uj = meter.read(Nanos(before))[0].clone().unwrap().uj;
        (before, uj, nanoseconds())
    };
    let first = uj();
    while nanoseconds() < first.2 + 20_000_000 {
        std::hint::spin_loop();
    }
    let last = uj();
    // The two clocks may differ by a thousandth, and the readings lie anywhere within their calls.
    let used = (last.1 - first.1) as f64;
    let (least, most) = ((last.0 - first.2) as f64 / 1e3 * 0.999, (last.2 - first.0) as f64 / 1e3 * 1.001);
    assert!((least - 1.0..=most + 1.0).contains(&used), "{used} uJ, not {least} to {most}");
}

/// The kernel's `dummy` event counts nothing, as the power PMU's do on many virtual machines.
#[test]
fn a_counter_of_the_kernels_that_stands_still_is_no_meter() {
    let Some(meter) = opened("event=0x09") else { return };
    let why = accept(meter, clock).map(|_| panic!("it was accepted")).unwrap_err().why;
    assert!(why.contains("package-0: it never moved") && why.contains("reads 0 uJ"), "{why}");
}

/// This host's own power PMU, if it has one: its figure is believed, or refused with its reason.
#[test]
fn this_hosts_own_events_are_read_or_it_is_said_why_not() {
    let place = crate::Place::host();
    let pmu = match Pmu::read(&place) {
        Ok(pmu) => pmu,
        Err(Unmeasured { why }) => {
            drop(writeln!(std::io::stderr(), "SKIPPED: this host's power PMU: {why}"));
            return;
        }
    };
    match pmu.open() {
        Ok(meter) => match accept(meter, clock) {
            Ok((meter, absent)) => assert!(meter.domains().len() > absent.len()),
            Err(Unmeasured { why }) => assert!(why.contains("never moved"), "{why}"),
        },
        Err(Unmeasured { why }) => {
            drop(writeln!(std::io::stderr(), "SKIPPED: this host's power PMU {:?}: {why}", pmu.described()))
        }
    }
}
