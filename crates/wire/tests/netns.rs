//! Two real network namespaces: the kernel's rate holds, children run inside, and nothing stays behind.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use whimbrel_model::ByteRate;
use whimbrel_wire::netns::{End, Namespaces, available, connect_in, remove_stale, within};
use whimbrel_wire::{Class, LinkStream, Nic, SILENCE, WireError};

/// Namespaces for a test; `None`, and a word on it, where there can't be any.
fn namespaces(rate: Option<ByteRate>, prefix: &str) -> Option<Namespaces> {
    let made = available().and_then(|()| Namespaces::create(rate, prefix));
    made.inspect_err(|error| drop(writeln!(std::io::stderr(), "SKIPPED: {error}"))).ok()
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
        drop(writeln!(std::io::stderr(), "SKIPPED: {error}"));
        return;
    }
    // No kernel takes this rate: the last step fails, after both namespaces were made.
    let error = Namespaces::create(Some(ByteRate(f64::INFINITY)), "wtest-fail").unwrap_err();
    assert!(matches!(&error, WireError::Command { command, .. } if command.contains("tbf")), "{error}");
    let left = std::fs::read_dir("/run/netns").unwrap().filter_map(Result::ok);
    assert_eq!(left.filter(|name| name.file_name().to_string_lossy().starts_with("wtest-fail")).count(), 0);
}

/// Two ends of a connection between the namespaces.
fn connected(namespaces: &Namespaces) -> (LinkStream, LinkStream) {
    let (source, destination) = (namespaces.name(End::Source), namespaces.name(End::Destination));
    let listener = within(&destination, || TcpListener::bind((End::Destination.address(), 0))).unwrap();
    let near = connect_in(&source, listener.local_addr().unwrap()).unwrap();
    let over = |tcp| LinkStream::over(tcp, &Nic::unlimited(), Class::Bulk).unwrap();
    (over(near), over(listener.accept().unwrap().0))
}

/// Lets every packet of both ends vanish, or none: they go to a card that isn't there, and nobody is told.
fn lose_everything(namespaces: &Namespaces, lose: bool) {
    for (end, other) in [(End::Source, End::Destination), (End::Destination, End::Source)] {
        let [program, arguments @ ..] = namespaces.command_prefix(end);
        let address = other.address().to_string();
        let change: &[&str] = match lose {
            true => &["replace", &address, "lladdr", "02:00:00:00:00:99", "dev", "whimbrel0", "nud", "permanent"],
            false => &["del", &address, "dev", "whimbrel0"],
        };
        let changed = Command::new(&program).args(&arguments).args(["ip", "neighbour"]).args(change).status().unwrap();
        assert!(changed.success());
    }
}

/// One end writes without an end, and nobody may notice that nothing arrives: what comes at the other is counted.
fn flow(namespaces: &Namespaces) -> (Receiver<&'static str>, Receiver<()>) {
    let (near, mut far) = connected(namespaces);
    let (ended, ends) = channel();
    let (came, comes) = channel();
    let told = ended.clone();
    std::thread::spawn(move || {
        while (&near).write_all(&[7; 4096]).is_ok() {}
        let _ = told.send("the writer");
    });
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while far.read_exact(&mut piece).is_ok() {
            let _ = came.send(());
        }
        let _ = ended.send("the reader");
    });
    (ends, comes)
}

#[test]
fn a_link_that_loses_every_packet_ends_and_one_that_stalls_for_half_a_minute_goes_on() {
    if std::env::var_os("WHIMBREL_FULL").is_none() {
        drop(writeln!(std::io::stderr(), "SKIPPED: links that lose every packet take minutes: with --full"));
        return;
    }
    let Some(stalls) = namespaces(Some(ByteRate(1e6)), "wtest-stall") else { return };
    let Some(lost) = namespaces(Some(ByteRate(1e6)), "wtest-lost") else { return };
    let ((stall_ends, stall_comes), (lost_ends, lost_comes)) = (flow(&stalls), flow(&lost));
    for comes in [&stall_comes, &lost_comes] {
        comes.recv().unwrap();
    }
    lose_everything(&stalls, true);
    lose_everything(&lost, true);
    assert_eq!(stall_ends.recv_timeout(SILENCE / 2), Err(RecvTimeoutError::Timeout), "half a minute is lived through");
    lose_everything(&stalls, false);
    stall_comes.try_iter().for_each(drop);
    stall_comes.recv_timeout(SILENCE).expect("what had stalled goes on");
    let mut both = [lost_ends.recv_timeout(2 * SILENCE).unwrap(), lost_ends.recv_timeout(2 * SILENCE).unwrap()];
    both.sort_unstable();
    assert_eq!(both, ["the reader", "the writer"], "both ends of a lost link end");
}
