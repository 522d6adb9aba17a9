//! What of a disk needn't move again: after an attempt that failed, and on the way back, whatever became of the agents. The twin
//! proves that no block is stale.

use crate::proxy::{Act, Lane, Point, Proxy, Toward};
use crate::support::{Agent, DISK_BYTES, Desk, Pair, carry, guest, movement, plan, within};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use whimbrel_migration::commands::{Account, Command, GuestSpec, MoveSpec};
use whimbrel_migration::core::Ending;
use whimbrel_migration::report::{Outcome, Report, Verdict};
use whimbrel_migration::session::{Host, Hosts, Prepared};
use whimbrel_model::rng::Rng;

const BLOCKS: u64 = DISK_BYTES / 4096;

/// Strategies that push most of the disk before the guest is handed over.
const PUSHING: [&str; 5] = ["three-phase", "iterative", "mirrored", "by-frequency", "by-content"];

/// A guest that writes memory, and so little of its disk that most of it stays as it is. What it writes lies where every
/// strategy begins, so that blocks which have arrived already are written again.
fn light() -> Value {
    json!({"use": "mix", "parts": [
        {"use": "disk-write", "rate": "2 MiB/s", "pattern": "random", "extent": "8 MiB", "read_share": 0.3},
        {"use": "memory-intensive", "rate": "16 MiB/s"},
    ]})
}

/// Two hosts, each with a folder of its own.
struct Place {
    source: TempDir,
    destination: TempDir,
}

impl Place {
    fn new() -> Self {
        Place { source: tempfile::tempdir().unwrap(), destination: tempfile::tempdir().unwrap() }
    }

    fn agents(&self) -> (Agent, Agent) {
        (Agent::start(self.source.path()), Agent::start(self.destination.path()))
    }
}

fn recorded(disk: Value, earlier: &[u64]) -> MoveSpec {
    let mut movement = movement(json!({}), disk);
    movement.link.egress_bytes_per_s = Some(60e6);
    (movement.recorded, movement.earlier) = (true, earlier.to_vec());
    movement
}

fn completed((left, came): &(Account, Account)) -> u64 {
    assert_eq!((&left.ending, &came.ending), (&Ending::Completed, &Ending::Completed));
    left.missing_blocks.expect("the guest has a disk")
}

fn judged(running: &Desk, frozen: &Desk) {
    running.stop();
    for desk in [running, frozen] {
        let word = desk.verified();
        assert!(word.is_good(), "{word:?}");
    }
}

/// The files in a folder that end so.
fn files(folder: &Path, extension: &str) -> Vec<std::path::PathBuf> {
    let all = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|e| e == extension)).collect()
}

/// Begins a move whose destination is killed after so many bytes of the disk. Whether it was, and the guest runs on.
fn killed(here: &Desk, destination: &Agent, spec: &GuestSpec, movement: &MoveSpec, bytes: u64) -> bool {
    let point = Point::Bytes(Lane::DiskPush, Toward::Destination, bytes);
    let proxy = Proxy::start(destination.address, point, Act::Kill(destination.pid()));
    let there = Desk::at(destination.address);
    there.done(&Command::Receive { spec: spec.clone(), movement: movement.clone() });
    here.tell(&Command::Migrate { to: proxy.address, movement: movement.clone() });
    let left = here.ended();
    if proxy.fired() {
        assert!(matches!(left.ending, Ending::Aborted { .. }), "{:?}", left.ending);
        assert!(here.runs(), "the guest goes on at the source");
    }
    proxy.fired()
}

#[test]
fn after_a_destination_was_killed_at_any_point_the_next_attempt_sends_what_it_lacks_and_nothing_is_stale() {
    let seed = std::env::var("WHIMBREL_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let (mut rng, mut saved, mut kills) = (Rng::new(seed), 0, 0);
    for (number, strategy) in (seed..).zip(PUSHING.iter().cycle().take(2 * PUSHING.len())) {
        let place = Place::new();
        let (source, mut destination) = place.agents();
        let (here, spec) = (Desk::at(source.address), guest(number, 2, light()));
        here.begin(&spec);
        let disk = || json!({"strategy": strategy});
        let mut earlier = Vec::new();
        // Half of them are killed twice.
        for kill in 0..1 + number % 2 {
            let attempt = recorded(disk(), &earlier);
            let bytes = if kill == 0 { (1 << 20) + rng.below(7 << 20) } else { 10_000 + rng.below(1 << 20) };
            if !killed(&here, &destination, &spec, &attempt, bytes) {
                break;
            }
            (kills, earlier) = (kills + 1, [earlier, vec![attempt.session]].concat());
            // Until it is dead it has its files.
            drop(destination);
            destination = Agent::start(place.destination.path());
        }
        if !here.runs() {
            // So little was left to be sent that the last attempt was through before its point.
            continue;
        }
        let there = Desk::at(destination.address);
        let last = recorded(disk(), &earlier);
        let missing = completed(&carry(&here, &there, destination.address, &spec, &last));
        println!("seed {number}, {strategy}: {missing} of {BLOCKS} blocks after {} kills", earlier.len());
        saved += BLOCKS - missing;
        judged(&there, &here);
        assert_eq!(files(place.destination.path(), "copy").len(), 0, "a guest that is here is no copy");
    }
    assert!(kills > 5 && saved > BLOCKS, "{kills} kills, {saved} blocks less to be sent");
}

#[test]
fn an_attempt_after_a_failed_one_sends_only_what_the_destination_lacks() {
    let place = Place::new();
    let (source, destination) = place.agents();
    let (here, spec) = (Desk::at(source.address), guest(1, 2, light()));
    here.begin(&spec);
    // It pushes everything, and then gives up.
    let fails = recorded(json!({"strategy": "faulty", "rounds": 1}), &[]);
    let there = Desk::at(destination.address);
    let (left, _) = carry(&here, &there, destination.address, &spec, &fails);
    assert!(matches!(left.ending, Ending::Aborted { .. }) && here.runs(), "{:?}", left.ending);
    assert_eq!(left.missing_blocks, Some(BLOCKS));
    // Again, to the same agent, and to one that was stopped in order and started.
    let fails = recorded(json!({"strategy": "faulty", "rounds": 1}), &[fails.session]);
    let (left, _) = carry(&here, &there, destination.address, &spec, &fails);
    assert!(left.missing_blocks < Some(BLOCKS / 2), "{:?}", left.missing_blocks);
    destination.end();
    let destination = Agent::start(place.destination.path());
    let there = Desk::at(destination.address);
    let last = recorded(json!({}), &[fails.earlier[0], fails.session]);
    let missing = completed(&carry(&here, &there, destination.address, &spec, &last));
    assert!(missing < BLOCKS / 2, "{missing} blocks");
    judged(&there, &here);
}

#[test]
fn a_move_that_is_told_of_no_other_and_a_record_that_is_torn_send_everything() {
    let place = Place::new();
    let (source, mut destination) = place.agents();
    let (here, spec) = (Desk::at(source.address), guest(1, 2, light()));
    here.begin(&spec);
    let first = recorded(json!({"strategy": "faulty", "rounds": 1}), &[]);
    let there = Desk::at(destination.address);
    carry(&here, &there, destination.address, &spec, &first);
    let untold = recorded(json!({"strategy": "faulty", "rounds": 1}), &[]);
    let (left, _) = carry(&here, &there, destination.address, &spec, &untold);
    assert_eq!(left.missing_blocks, Some(BLOCKS));
    destination.end();
    let records = files(place.destination.path(), "copy");
    let mut bytes = std::fs::read(&records[0]).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&records[0], bytes).unwrap();
    destination = Agent::start(place.destination.path());
    let there = Desk::at(destination.address);
    let last = recorded(json!({}), &[untold.session]);
    assert_eq!(completed(&carry(&here, &there, destination.address, &spec, &last)), BLOCKS);
    judged(&there, &here);
}

#[test]
fn a_guest_returns_to_the_disk_that_it_left_whatever_became_of_that_hosts_agent() {
    for (seed, orderly) in [(1, true), (2, false)] {
        let place = Place::new();
        let (source, destination) = place.agents();
        let (here, there) = (Desk::at(source.address), Desk::at(destination.address));
        let spec = guest(seed, 2, light());
        here.begin(&spec);
        assert!(here.refused(&Command::Keep {}).contains("not left"));
        let out = recorded(json!({}), &[]);
        completed(&carry(&here, &there, destination.address, &spec, &out));
        here.done(&Command::Keep {});
        if orderly {
            source.end()
        } else {
            drop(source)
        }
        let source = Agent::start(place.source.path());
        // A first attempt to return is killed, as if that were not enough.
        let back = recorded(json!({}), &[out.session]);
        assert!(killed(&there, &source, &spec, &back, 8_000));
        drop(source);
        let source = Agent::start(place.source.path());
        let here = Desk::at(source.address);
        let back = recorded(json!({}), &[out.session, back.session]);
        let missing = completed(&carry(&there, &here, source.address, &spec, &back));
        assert!(missing < BLOCKS / 2, "{missing} blocks");
        judged(&here, &there);
    }
}

#[test]
fn a_guest_that_has_returned_to_where_it_began_takes_all_of_its_disk_to_a_host_that_has_no_copy_any_more() {
    let place = Place::new();
    let (source, destination) = place.agents();
    let (here, there) = (Desk::at(source.address), Desk::at(destination.address));
    let spec = based(1);
    here.begin(&spec);
    let out = recorded(json!({}), &[]);
    let missing = completed(&carry(&here, &there, destination.address, &spec, &out));
    assert!(missing < BLOCKS, "the base image is there: {missing} blocks");
    let back = recorded(json!({}), &[out.session]);
    completed(&carry(&there, &here, source.address, &spec, &back));
    // Nothing was kept there when its agent ended.
    destination.end();
    assert_eq!(files(place.destination.path(), "img").len(), 0);
    let destination = Agent::start(place.destination.path());
    let there = Desk::at(destination.address);
    let again = recorded(json!({}), &[out.session, back.session]);
    assert_eq!(completed(&carry(&here, &there, destination.address, &spec, &again)), BLOCKS);
    judged(&there, &here);
}

/// A guest on a base image that every host has.
fn based(seed: u64) -> GuestSpec {
    let mut spec = guest(seed, 2, light());
    spec.disk.iter_mut().for_each(|disk| disk.base_shared = true);
    spec
}

#[test]
fn on_a_shared_base_only_what_was_written_moves_after_two_attempts_that_failed_in_their_setup() {
    let pair = Pair::start();
    let point = Point::Bytes(Lane::Control, Toward::Destination, 0);
    let proxy = Proxy::start(pair.destination.address, point, Act::CutOneAndTheNext);
    let mut plan = plan(based(1), json!({}), json!({}));
    plan.attempts = 3;
    let trips = crate::support::run(&pair.hosts_through(proxy.address), &plan).unwrap();
    let of: Vec<_> = trips.iter().map(|trip| (trip.facts.outcome, trip.missing_blocks.is_some())).collect();
    let aborted = (Some(Outcome::Aborted), false);
    assert_eq!(of, [aborted, aborted, (Some(Outcome::Completed), true)]);
    assert!(trips[2].missing_blocks < Some(BLOCKS / 2), "{:?}", trips[2].missing_blocks);
    let report = Report::from_events(&trips[2].events, &trips[2].facts);
    assert_eq!((report.verify.memory, report.verify.disk), (Verdict::Equal, Verdict::Equal), "{report:#?}");
}

#[test]
fn on_a_shared_base_what_came_in_an_attempt_of_which_nothing_is_known_any_more_is_not_stale() {
    let place = Place::new();
    let (source, destination) = place.agents();
    let (here, there, spec) = (Desk::at(source.address), Desk::at(destination.address), based(1));
    here.begin(&spec);
    let first = recorded(json!({"strategy": "faulty", "rounds": 1}), &[]);
    carry(&here, &there, destination.address, &spec, &first);
    // It ends while the hosts compare their clocks, when the source has given up what it knew.
    let second = recorded(json!({}), &[first.session]);
    let proxy = Proxy::start(destination.address, Point::Bytes(Lane::Control, Toward::Destination, 200), Act::CutAll);
    there.done(&Command::Receive { spec: spec.clone(), movement: second.clone() });
    here.tell(&Command::Migrate { to: proxy.address, movement: second.clone() });
    let left = here.ended();
    assert!(proxy.fired() && matches!(left.ending, Ending::Aborted { .. }) && left.missing_blocks.is_none());
    let third = recorded(json!({}), &[first.session, second.session]);
    let missing = completed(&carry(&here, &there, destination.address, &spec, &third));
    assert!(missing < BLOCKS / 2, "{missing} blocks");
    judged(&there, &here);
}

#[test]
fn a_copy_stays_where_the_machine_for_it_cannot_be_made() {
    let place = Place::new();
    let (source, destination) = place.agents();
    let (here, spec) = (Desk::at(source.address), guest(1, 2, light()));
    here.begin(&spec);
    let first = recorded(json!({"strategy": "faulty", "rounds": 1}), &[]);
    // Its coordinator doesn't hang up before it ends: that would have removed the copy.
    let before = Desk::at(destination.address);
    carry(&here, &before, destination.address, &spec, &first);
    destination.end();
    drop(before);
    let destination = Agent::start(place.destination.path());
    let there = Desk::at(destination.address);
    let second = recorded(json!({}), &[first.session]);
    let unknown = GuestSpec { machine: "nonesuch".to_owned(), ..spec.clone() };
    there.refused(&Command::Receive { spec: unknown, movement: second.clone() });
    for kind in ["img", "copy"] {
        assert_eq!(files(place.destination.path(), kind).len(), 1, "{kind}");
    }
    let missing = completed(&carry(&here, &there, destination.address, &spec, &second));
    assert!(missing < BLOCKS / 2, "{missing} blocks");
    judged(&there, &here);
}

#[test]
fn what_a_killed_host_leaves_is_removed_when_it_starts_again_and_an_orderly_end_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let agent = Agent::start(folder.path());
    let desk = Desk::at(agent.address);
    desk.begin(&guest(1, 2, light()));
    assert_eq!(files(folder.path(), "img").len(), 1);
    drop(agent);
    assert_eq!(files(folder.path(), "img").len(), 1, "a killed process removes nothing");
    let agent = Agent::start(folder.path());
    assert_eq!(files(folder.path(), "img").len(), 0);
    let desk = Desk::at(agent.address);
    desk.begin(&guest(2, 2, light()));
    // Another's agent in the same folder leaves alone what is in use.
    let other = Agent::start(folder.path());
    assert_eq!(files(folder.path(), "img").len(), 1);
    other.end();
    agent.end();
    assert_eq!(files(folder.path(), "img").len(), 0);
}

#[test]
fn a_trial_makes_another_attempt_where_the_link_breaks() {
    let pair = Pair::start();
    let point = Point::Bytes(Lane::DiskPush, Toward::Destination, 7 << 20);
    let proxy = Proxy::start(pair.destination.address, point, Act::CutOne);
    let mut plan = plan(guest(1, 2, light()), json!({}), json!({}));
    plan.source_link.egress_bytes_per_s = Some(60e6);
    plan.attempts = 3;
    let trips = crate::support::run(&pair.hosts_through(proxy.address), &plan).unwrap();
    let of: Vec<_> = trips.iter().map(|trip| (trip.trip, trip.attempt, trip.facts.outcome)).collect();
    assert_eq!(of, [(0, 0, Some(Outcome::Aborted)), (0, 1, Some(Outcome::Completed))]);
    assert_eq!(trips[0].missing_blocks, Some(BLOCKS));
    assert!(trips[1].missing_blocks < Some(BLOCKS), "{:?}", trips[1].missing_blocks);
    let report = Report::from_events(&trips[1].events, &trips[1].facts);
    assert_eq!((report.verify.memory, report.verify.disk), (Verdict::Equal, Verdict::Equal), "{report:#?}");
}

#[test]
fn an_attempt_that_fails_in_its_setup_leaves_the_copy_to_the_next() {
    let pair = Pair::start();
    let point = Point::Bytes(Lane::DiskPush, Toward::Destination, 7 << 20);
    let proxy = Proxy::start(pair.destination.address, point, Act::CutOneAndTheNext);
    let mut plan = plan(guest(1, 2, light()), json!({}), json!({}));
    plan.source_link.egress_bytes_per_s = Some(60e6);
    plan.attempts = 3;
    let trips = crate::support::run(&pair.hosts_through(proxy.address), &plan).unwrap();
    let of: Vec<_> =
        trips.iter().map(|trip| (trip.attempt, trip.facts.outcome, trip.missing_blocks.is_some())).collect();
    let aborted = Some(Outcome::Aborted);
    assert_eq!(of, [(0, aborted, true), (1, aborted, false), (2, Some(Outcome::Completed), true)]);
    assert!(trips[2].missing_blocks < Some(BLOCKS), "{:?}", trips[2].missing_blocks);
    let report = Report::from_events(&trips[2].events, &trips[2].facts);
    assert_eq!((report.verify.memory, report.verify.disk), (Verdict::Equal, Verdict::Equal), "{report:#?}");
}

#[test]
fn a_trial_waits_for_a_destination_that_was_killed_and_starts_again() {
    let place = Place::new();
    let (source, destination) = place.agents();
    let address = destination.address;
    let point = Point::Bytes(Lane::DiskPush, Toward::Destination, 7 << 20);
    let proxy = Arc::new(Proxy::start(address, point, Act::Kill(destination.pid())));
    let there = Host { address: proxy.address, dial: Host::at(address).dial };
    let hosts = Hosts::new(Host::at(source.address), there, None);
    let mut plan = plan(guest(1, 2, light()), json!({}), json!({}));
    plan.source_link.egress_bytes_per_s = Some(60e6);
    plan.attempts = 2;
    let (folder, watched) = (place.destination.path().to_owned(), Arc::clone(&proxy));
    let restarted = std::thread::spawn(move || {
        watched.wait_until_fired();
        drop(destination);
        Agent::restart(&folder, address)
    });
    let trips = within("a trial", move || Prepared::new(&hosts, &plan).unwrap().run(None, &mut |_| {}));
    let outcomes: Vec<_> = trips.iter().map(|trip| trip.facts.outcome).collect();
    assert_eq!(outcomes, [Some(Outcome::Aborted), Some(Outcome::Completed)]);
    assert!(trips[1].missing_blocks < Some(BLOCKS), "{:?}", trips[1].missing_blocks);
    let report = Report::from_events(&trips[1].events, &trips[1].facts);
    assert_eq!((report.verify.memory, report.verify.disk), (Verdict::Equal, Verdict::Equal), "{report:#?}");
    drop(restarted.join().unwrap());
}
