//! A running machine moved by its dirty log alone, round by round: what the log names is enough, and a log that leaves one
//! page out is found out by the twin.

mod common;

use common::plan;
use serde_json::json;
use std::io::Write as _;
use whimbrel_machine::{Twin, Verification};
use whimbrel_memory::dirty_logs::DIRTY_LOGS;

/// Copies all pages while the guest runs, then what the log names, until the guest is paused; runs it at the destination.
/// `None` where this host has no such log.
fn move_by(log: &str, vcpus: u32) -> Option<Verification> {
    let plan = plan(json!({ "pattern": "zipf", "working_set": "2 MiB" }), vcpus, false);
    let (source, destination) = (plan.guest(true), plan.guest(false));
    let mut twin: Twin = plan.twin();
    let armed = (DIRTY_LOGS.find(log).unwrap().build)(&source.ram).and_then(|mut log| log.arm().map(|()| log));
    let mut log = match armed {
        Ok(log) => log,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "SKIPPED: moving by the log {log}: {error}"));
            return None;
        }
    };
    let mut page = [0; 4096];
    let mut copy = |index| {
        source.ram.read_page(index, &mut page);
        destination.ram.write_page(index, &page);
    };
    source.machine.run();
    (0..plan.shape.pages).for_each(&mut copy);
    for _ in 0..5 {
        log.take().unwrap().iter().for_each(&mut copy);
    }
    // Something is written after the last take, however busy this host is.
    let from = source.machine.progress().operations;
    while source.machine.progress().operations.iter().zip(&from).any(|(now, from)| *now < from + 100) {
        std::thread::yield_now();
    }
    source.machine.pause();
    source.machine.drain().unwrap();
    log.take().unwrap().iter().for_each(&mut copy);
    destination.machine.load_state(&source.machine.save_state().unwrap()).unwrap();
    assert!(source.check(&mut twin).is_good(), "the frozen source equals the twin, whatever the log does");
    destination.run_for(100);
    Some(destination.check(&mut twin))
}

#[test]
fn what_the_log_names_is_enough() {
    for vcpus in [1, 2, 4] {
        if let Some(found) = move_by("userfault", vcpus) {
            assert!(found.is_good(), "{vcpus} vCPUs: {found:?}");
        }
    }
}

#[test]
fn a_log_that_forgets_is_found_out() {
    for log in ["null", "forgetful"] {
        if let Some(found) = move_by(log, 2) {
            assert!(found.first_difference.is_some() && !found.is_good(), "{log}: {found:?}");
        }
    }
}
