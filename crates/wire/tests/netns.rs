//! Two real network namespaces: the kernel's rate holds, children run inside, and nothing stays behind.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use whimbrel_model::ByteRate;
use whimbrel_wire::netns::{End, Namespaces, available, connect_in, remove_stale, within};
use whimbrel_wire::{Class, LinkStream, Nic, WireError};

/// Namespaces for a test; `None`, and a word on it, where there can't be any.
fn namespaces(rate: Option<ByteRate>, prefix: &str) -> Option<Namespaces> {
    let made = available().and_then(|()| Namespaces::create(rate, prefix));
    made.inspect_err(|error| eprintln!("SKIPPED: {error}")).ok()
}

fn exists(name: &str) -> bool {
    Path::new("/run/netns").join(name).exists()
}

#[test]
fn the_kernel_holds_the_rate() {
    let rate = ByteRate(25e6);
    let Some(namespaces) = namespaces(Some(rate), "wtest-rate") else { return };
    let (source, destination) = (namespaces.name(End::Source), namespaces.name(End::Destination));
    let listener = within(&destination, || TcpListener::bind((End::Destination.address(), 0))).unwrap();
    let address = listener.local_addr().unwrap();
    assert_eq!(address.ip(), End::Destination.address());
    let out = LinkStream::over(connect_in(&source, address).unwrap(), &Nic::unlimited(), Class::Bulk).unwrap();
    let (inward, from) = listener.accept().unwrap();
    assert_eq!(from.ip(), End::Source.address());
    let mut inward = LinkStream::over(inward, &Nic::unlimited(), Class::Bulk).unwrap();
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || (&out).write_all(&vec![7; 10_000_000]).unwrap());
        assert_eq!(std::io::copy(&mut inward, &mut std::io::sink()).unwrap(), 10_000_000);
    });
    let least: Duration = rate.time_for(10_000_000 - (128 << 10)).into();
    assert!(start.elapsed() >= least, "{:?}", start.elapsed());
}

#[test]
fn children_run_inside_and_nothing_stays_behind() {
    let Some(namespaces) = namespaces(None, "wtest-child") else { return };
    let [program, arguments @ ..] = namespaces.command_prefix(End::Source);
    let inside = |command: &[&str]| Command::new(&program).args(&arguments).args(command).output().unwrap();
    let said = String::from_utf8(inside(&["ip", "-brief", "address"]).stdout).unwrap();
    assert!(said.contains("10.83.0.1/24") && !said.contains("10.83.0.2"), "{said}");
    let (source, destination) = (namespaces.name(End::Source), namespaces.name(End::Destination));
    assert!(exists(&source) && exists(&destination));
    drop(namespaces);
    assert!(!exists(&source) && !exists(&destination));
}

#[test]
fn two_pairs_do_not_meet() {
    let (Some(one), Some(two)) = (namespaces(None, "wtest-two"), namespaces(None, "wtest-two")) else { return };
    let listener = within(&one.name(End::Destination), || TcpListener::bind((End::Destination.address(), 0))).unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    assert!(connect_in(&two.name(End::Source), address).is_err(), "nobody listens in the other pair");
    assert!(connect_in(&one.name(End::Source), address).is_ok());
}

#[test]
fn only_the_namespaces_of_dead_programs_are_stale() {
    let Some(namespaces) = namespaces(None, "wtest-stale") else { return };
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let stale = format!("wtest-stale-{}-0-source", child.id());
    assert!(Command::new("ip").args(["netns", "add", &stale]).status().unwrap().success());
    assert_eq!(remove_stale("wtest-stale").unwrap(), std::slice::from_ref(&stale));
    assert!(!exists(&stale) && exists(&namespaces.name(End::Source)));
}

#[test]
fn a_failed_step_leaves_nothing_behind() {
    if let Err(error) = available() {
        eprintln!("SKIPPED: {error}");
        return;
    }
    // No kernel takes this rate: the last step fails, after both namespaces were made.
    let error = Namespaces::create(Some(ByteRate(f64::INFINITY)), "wtest-fail").unwrap_err();
    assert!(matches!(&error, WireError::Command { command, .. } if command.contains("tbf")), "{error}");
    let left = std::fs::read_dir("/run/netns").unwrap().filter_map(Result::ok);
    assert_eq!(left.filter(|name| name.file_name().to_string_lossy().starts_with("wtest-fail")).count(), 0);
}
