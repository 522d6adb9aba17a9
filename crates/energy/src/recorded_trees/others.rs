//! Registers, and a program of the user's.

use super::trees::SERVER;
use super::{Tree, names};
use crate::meter::{DomainKind, Meter, Place, Unmeasured};
use crate::meters::METERS;
use std::os::unix::fs::FileExt;
use whimbrel_model::Nanos;

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
    assert!(Tree::of("").refusal("command").contains("no program"));
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
