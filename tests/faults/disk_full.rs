//! A host whose disk is full: the other one keeps the guest, or the row says what became of it.

use crate::support::{Agent, DISK_BYTES, Pair, guest, plan, run, within};
use serde_json::json;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use whimbrel_migration::report::{Outcome, Report, Verdict};
use whimbrel_migration::session::{Host, Hosts, SessionError};

/// An agent whose images lie in a file system of so many bytes, of a mount namespace of its own; `None` where this
/// machine doesn't allow that.
fn cramped(folder: &Path, bytes: u64) -> Option<Agent> {
    let tried = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "none"]).arg(folder).output();
    match tried {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            drop(writeln!(
                std::io::stderr(),
                "SKIPPED: a host whose disk is full: a small file system can't be mounted: {why}"
            ));
            return None;
        }
        Err(error) => {
            drop(writeln!(std::io::stderr(), "SKIPPED: a host whose disk is full: unshare: {error}"));
            return None;
        }
    }
    let mut command = Command::new("unshare");
    let script = format!("mount -t tmpfs -o size={bytes} none \"$0\" && exec \"$@\"");
    command.args(["--mount", "sh", "-c", &script]).arg(folder).arg(env!("CARGO_BIN_EXE_whimbrel"));
    let folder = folder.to_owned();
    Some(within("an agent with a small disk", move || Agent::spawn(command, &folder)))
}

/// Writes new blocks as fast as it can.
fn filling() -> serde_json::Value {
    json!({"use": "disk-write", "pattern": "sequential", "extent": format!("{} MiB", DISK_BYTES >> 20)})
}

#[test]
fn a_destination_without_room_leaves_the_guest_at_the_source() {
    let pair = Pair::start();
    let folder = tempfile::tempdir().unwrap();
    let Some(agent) = cramped(folder.path(), DISK_BYTES / 4) else { return };
    let hosts = Hosts::new(Host::at(pair.source.address), Host::at(agent.address), None);
    // Those that push the whole disk before they are ready.
    let pushing = ["freeze-and-copy", "three-phase", "iterative", "mirrored", "by-frequency", "by-content"];
    for (seed, strategy) in (1..).zip(pushing) {
        let paced = json!({"use": "disk-write", "rate": "16 MiB/s"});
        let plan = plan(guest(seed, 2, paced), json!({}), json!({"strategy": strategy}));
        let trip = &run(&hosts, &plan).unwrap()[0];
        let report = Report::from_events(&trip.events, &trip.facts);
        assert_eq!(report.outcome, Outcome::Aborted, "{strategy}: {report:#?}");
        assert_eq!((report.verify.memory, report.verify.disk), (Verdict::Equal, Verdict::Equal), "{report:#?}");
        let reason = report.reason.unwrap_or_default().to_lowercase();
        assert!(reason.contains("space"), "{strategy}: {reason}");
    }
}

#[test]
fn a_destination_that_runs_out_of_room_after_the_hand_over_is_a_loss_that_is_told() {
    let pair = Pair::start();
    let folder = tempfile::tempdir().unwrap();
    let Some(agent) = cramped(folder.path(), DISK_BYTES / 4) else { return };
    let hosts = Hosts::new(Host::at(pair.source.address), Host::at(agent.address), None);
    let all_left_behind = [
        json!({"strategy": "three-phase", "max_rounds": 0}),
        json!({"strategy": "by-content", "max_deltas": 0}),
        json!({"strategy": "pull"}),
    ];
    for (seed, disk) in (1..).zip(all_left_behind) {
        let plan = plan(guest(seed, 2, json!({"use": "disk-write", "rate": "16 MiB/s"})), json!({}), disk);
        let trip = &run(&hosts, &plan).unwrap()[0];
        let report = Report::from_events(&trip.events, &trip.facts);
        assert_eq!(report.outcome, Outcome::Lost, "{report:#?}");
        assert!(report.reason.is_some_and(|reason| !reason.is_empty()));
    }
}

#[test]
fn a_disk_that_remains_needs_no_room_and_one_that_is_pushed_and_fetched_is_kept_or_told_lost() {
    let pair = Pair::start();
    let folder = tempfile::tempdir().unwrap();
    let Some(agent) = cramped(folder.path(), DISK_BYTES / 4) else { return };
    let hosts = Hosts::new(Host::at(pair.source.address), Host::at(agent.address), None);
    for (seed, strategy) in (1..).zip(["remote", "push-and-prefetch"]) {
        let paced = json!({"use": "disk-write", "rate": "16 MiB/s"});
        let plan = plan(guest(seed, 2, paced), json!({}), json!({"strategy": strategy}));
        let trip = &run(&hosts, &plan).unwrap()[0];
        let report = Report::from_events(&trip.events, &trip.facts);
        let whole = (report.verify.memory, report.verify.disk) == (Verdict::Equal, Verdict::Equal);
        match report.outcome {
            Outcome::Completed => assert!(whole && strategy == "remote", "{report:#?}"),
            Outcome::Aborted => assert!(whole && strategy != "remote", "{report:#?}"),
            Outcome::Lost => assert!(report.reason.is_some() && strategy != "remote", "{report:#?}"),
            other => panic!("{other:?}: {report:#?}"),
        }
    }
}

#[test]
fn a_source_without_room_makes_no_guest_or_tells_of_its_end() {
    let pair = Pair::start();
    let folder = tempfile::tempdir().unwrap();
    let Some(agent) = cramped(folder.path(), DISK_BYTES / 4) else { return };
    let hosts = Hosts::new(Host::at(agent.address), Host::at(pair.destination.address), None);
    let mut plan = plan(guest(1, 2, filling()), json!({}), json!({}));
    match run(&hosts, &plan) {
        Err(SessionError::Refused { reason, .. }) => assert!(reason.to_lowercase().contains("space"), "{reason}"),
        other => panic!("{other:?}"),
    }
    // Room for what is filled, and for little more.
    drop(agent);
    let folder = tempfile::tempdir().unwrap();
    let Some(agent) = cramped(folder.path(), DISK_BYTES * 5 / 8) else { return };
    let hosts = Hosts::new(Host::at(agent.address), Host::at(pair.destination.address), None);
    plan.source_link.egress_bytes_per_s = Some(30e6);
    let trip = &run(&hosts, &plan).unwrap()[0];
    let report = Report::from_events(&trip.events, &trip.facts);
    // The guest's own disk failed: wherever it was, that is the end of it.
    assert_eq!(report.outcome, Outcome::Lost, "{report:#?}");
    let reason = report.reason.clone().unwrap_or_default().to_lowercase();
    assert!(reason.contains("the guest failed") && reason.contains("space"), "{report:#?}");
}
