//! What a move promises besides losing nothing: what it sends, what it waits for, and what it refuses.

use crate::support::{DISK_BYTES, Desk, Pair, RAM_BYTES, carry, choice, guest, movement, plan, run, sent};
use serde_json::{Value, json};
use std::time::Duration;
use whimbrel_disk::{BuildContext, DISK_PRESETS, DISK_STRATEGIES, DiskChoice};
use whimbrel_memory::SCHEDULES;
use whimbrel_migration::commands::{Account, Command, LinkSpec, MoveSpec};
use whimbrel_migration::core::Ending;
use whimbrel_migration::report::{Outcome, Report, Verdict};
use whimbrel_migration::session::{Hosts, Prepared, TrialPlan};
use whimbrel_model::{Event, Family, PAGE_BYTES, Phase};

const FAULTY: &str = "faulty";
const PAGES: u64 = RAM_BYTES / PAGE_BYTES;
const BLOCKS: u64 = DISK_BYTES / 4096;

/// Whether the disk stays under this strategy.
fn remains(strategy: &str) -> bool {
    let choice: DiskChoice = choice(json!({"strategy": strategy}));
    choice.needs(&BuildContext { blocks: BLOCKS, block_bytes: 4096, seed: 1 }).remains
}

/// A guest that writes memory and disk, so much that every move has something to do and the twin not too much.
pub fn busy() -> Value {
    json!({"use": "mix", "parts": [
        {"use": "memory-intensive", "rate": "32 MiB/s", "read_share": 0.5},
        {"use": "disk-write", "rate": "16 MiB/s", "pattern": "random", "read_share": 0.5},
    ]})
}

/// Makes the trial, whose only guest must arrive whole, and returns the report of its last trip.
pub fn moved(hosts: &Hosts, plan: &TrialPlan) -> Vec<(Report, Vec<Event>, Option<u64>)> {
    let trips = run(hosts, plan).unwrap();
    let trips: Vec<_> = trips
        .into_iter()
        .map(|trip| {
            let report = Report::from_events(&trip.events, &trip.facts);
            assert_eq!((report.outcome, report.verify.memory), (Outcome::Completed, Verdict::Equal), "{report:#?}");
            assert_ne!(report.verify.disk, Verdict::Different, "{report:#?}");
            (report, trip.events.into_iter().map(|e| e.event).collect(), trip.missing_blocks)
        })
        .collect();
    assert_eq!(trips.len() as u32, plan.trips);
    trips
}

fn completed((left, came): &(Account, Account)) {
    assert_eq!((&left.ending, &came.ending), (&Ending::Completed, &Ending::Completed));
}

/// Stops the guest where it runs, and has the twin judge it there and where it is frozen.
fn judged(running: &Desk, frozen: Option<&Desk>) {
    running.stop();
    for desk in [running].into_iter().chain(frozen) {
        let word = desk.verified();
        assert!(word.is_good(), "{word:?}");
    }
}

#[test]
fn a_return_sends_exactly_the_fresh_blocks() {
    let pair = Pair::start();
    for (seed, strategy) in (1..).zip(DISK_STRATEGIES.names().filter(|name| *name != FAULTY)) {
        let (here, there) = pair.desks();
        let (memory, disk) = (json!({"schedule": "stop-and-copy"}), json!({"strategy": strategy}));
        let spec = guest(seed, 2, busy());
        here.begin(&spec);
        let out = movement(memory.clone(), disk.clone());
        completed(&carry(&here, &there, pair.destination.address, &spec, &out));
        // A guest that is stopped writes nothing while it moves: what it sends is what was fresh before.
        there.stop();
        let arrived = there.verified().operations;
        loop {
            there.done(&Command::Run {});
            there.stop();
            if there.verified().operations.iter().zip(&arrived).all(|(now, then)| *now > then + 20) {
                break;
            }
        }
        let mut back = movement(memory, disk);
        back.earlier = vec![out.session];
        let back = carry(&there, &here, pair.source.address, &spec, &back);
        completed(&back);
        let fresh = back.0.missing_blocks.expect("the guest has a disk");
        assert_eq!(fresh == 0, remains(strategy), "{strategy}: {fresh} blocks are fresh");
        assert!(fresh < BLOCKS, "{fresh} blocks are fresh");
        let crossed = sent(&back.0.events, Family::Disk);
        assert_eq!((crossed.first_units, crossed.again_units), (fresh, 0), "{strategy}");
        let names = crossed.reference_bytes + crossed.offer_bytes;
        assert_eq!(crossed.bytes(), crossed.raw_units * 4096 + names, "{strategy}");
        assert_eq!(crossed.raw_units + crossed.zero_units + crossed.reference_units, fresh, "{strategy}");
        judged(&here, Some(&there));
    }
}

#[test]
fn a_return_of_a_guest_that_writes_on_sends_what_is_fresh_and_little_more() {
    let pair = Pair::start();
    for (seed, strategy) in (1..).zip(DISK_STRATEGIES.names().filter(|name| *name != FAULTY)) {
        let mut plan = plan(guest(seed, 2, busy()), json!({}), json!({"strategy": strategy}));
        plan.trips = 2;
        let trips = moved(&pair.hosts(), &plan);
        let (_, events, missing) = &trips[1];
        let missing = missing.expect("the guest has a disk");
        let sent: u64 = events
            .iter()
            .map(|event| match event {
                Event::Sent { family: Family::Disk, sent, .. } => sent.first_units,
                _ => 0,
            })
            .sum();
        assert!((missing..BLOCKS).contains(&sent), "{sent} sent, {missing} missing");
        assert_eq!(trips[0].2, Some(if remains(strategy) { 0 } else { BLOCKS }));
    }
}

#[test]
fn of_a_disk_on_a_shared_base_image_only_what_was_written_moves() {
    let pair = Pair::start();
    let strategies = DISK_STRATEGIES.names().filter(|name| *name != FAULTY).map(|name| ("strategy", name));
    for (seed, (key, name)) in (1..).zip(strategies.chain(DISK_PRESETS.names().map(|name| ("preset", name)))) {
        let mut spec = guest(seed, 2, busy());
        spec.disk.iter_mut().for_each(|disk| disk.base_shared = true);
        let mut plan = plan(spec, json!({}), json!({key: name}));
        // There and back: what returns is what was written since the guest came.
        plan.trips = 2;
        for (_, events, missing) in &moved(&pair.hosts(), &plan) {
            let missing = missing.expect("the guest has a disk");
            let first = events.iter().map(|event| match event {
                Event::Sent { family: Family::Disk, sent, .. } => sent.first_units,
                _ => 0,
            });
            let first: u64 = first.sum();
            assert!((missing..BLOCKS / 2).contains(&first), "{name}: {first} sent, {missing} missing");
        }
    }
}

#[test]
fn post_copy_sends_each_page_once_and_a_demanded_one_takes_the_round_trip() {
    const DELAY: Duration = Duration::from_millis(3);
    let pair = Pair::start();
    let mut requested = [0, 0];
    for seed in 1..4 {
        let disk = json!({"strategy": "three-phase", "max_rounds": 0});
        let mut plan = plan(guest(seed, 2, busy()), json!({"schedule": "post-copy"}), disk);
        let delay_ns = DELAY.as_nanos() as u64;
        plan.source_link = LinkSpec {
            egress_bytes_per_s: Some(60e6),
            ingress_bytes_per_s: None,
            delay_ns,
            path_bytes_per_s: Some(60e6),
        };
        plan.destination_link = plan.source_link;
        let (report, events, _) = &moved(&pair.hosts(), &plan)[0];
        assert_eq!(report.pages.raw + report.pages.zero, PAGES, "{:?}", report.pages);
        assert_eq!((report.bytes.memory_again, report.bytes.memory_first), (Some(0), report.pages.raw * PAGE_BYTES));
        for event in events {
            if let Event::Fault { family, ns, in_flight: false } = event {
                assert!(*ns >= 2 * delay_ns, "{family:?}: {ns} ns with {DELAY:?} each way");
                requested[usize::from(*family == Family::Disk)] += 1;
            }
        }
    }
    assert!(requested.iter().all(|n| *n > 0), "{requested:?} pages and blocks were asked for");
}

#[test]
fn zeros_are_never_sent_as_content() {
    let pair = Pair::start();
    for (seed, schedule) in (1..).zip(SCHEDULES.names().filter(|name| *name != FAULTY)) {
        let workload = json!({"use": "idle", "content": "zero"});
        let plan = plan(guest(seed, 1, workload), json!({"schedule": schedule, "encode": "zero"}), json!({}));
        let (report, _, _) = &moved(&pair.hosts(), &plan)[0];
        assert_eq!(
            (report.pages.raw, report.bytes.memory_first, report.bytes.memory_again),
            (0, 0, Some(0)),
            "{schedule}"
        );
        assert!(report.pages.zero >= PAGES, "{schedule}");
    }
}

#[test]
fn what_a_disk_has_no_content_of_is_never_fetched() {
    let pair = Pair::start();
    let prefetching =
        |choice: &DiskChoice| choice.needs(&BuildContext { blocks: BLOCKS, block_bytes: 4096, seed: 1 }).prefetch;
    let strategies: Vec<_> =
        DISK_STRATEGIES.names().filter(|name| prefetching(&choice(json!({ "strategy": name })))).collect();
    assert!(!strategies.is_empty());
    for (seed, strategy) in (1..).zip(strategies) {
        let workload = json!({"use": "disk-write", "rate": "1 MiB/s", "extent": "4 MiB"});
        let plan = plan(guest(seed, 1, workload), json!({"schedule": "stop-and-copy"}), json!({"strategy": strategy}));
        let (report, events, _) = &moved(&pair.hosts(), &plan)[0];
        let blocks = report.blocks.unwrap();
        // Half of the disk was never written.
        assert!(blocks.zero >= BLOCKS / 2, "{strategy}: {blocks:?}");
        assert!(
            blocks.pulled > 0 && blocks.pushed + blocks.pulled + blocks.demanded >= BLOCKS,
            "{strategy}: {blocks:?}"
        );
        let mut sum = whimbrel_model::event::Sent::default();
        for event in events {
            if let Event::Sent { family: Family::Disk, sent, .. } = event {
                sum.add(sent);
            }
        }
        assert_eq!(sum.bytes(), sum.raw_units * 4096, "{strategy}");
        assert!(sum.raw_units <= BLOCKS * 3 / 4, "{strategy}: {sum:?}");
    }
}

#[test]
fn two_guests_move_at_once() {
    let pair = Pair::start();
    let hosts = pair.hosts();
    let memories = [json!({"schedule": "pre-copy"}), json!({"schedule": "post-copy"})];
    let plans: Vec<TrialPlan> =
        (1..).zip(memories).map(|(seed, m)| plan(guest(seed, 2, busy()), m, json!({}))).collect();
    let trips: Vec<_> = std::thread::scope(|scope| {
        let prepared: Vec<_> = plans.iter().map(|plan| Prepared::new(&hosts, plan).unwrap()).collect();
        let moving: Vec<_> = prepared.into_iter().map(|p| scope.spawn(|| p.run(None, &mut |_| {}))).collect();
        moving.into_iter().map(|m| m.join().unwrap().remove(0)).collect()
    });
    for trip in trips {
        let report = Report::from_events(&trip.events, &trip.facts);
        assert_eq!((report.outcome, report.verify.memory), (Outcome::Completed, Verdict::Equal), "{report:#?}");
        assert_eq!(report.verify.disk, Verdict::Equal, "{report:#?}");
    }
}

#[test]
fn a_second_attempt_moves_everything_that_the_first_did_not() {
    let pair = Pair::start();
    let failing = [
        (json!({"schedule": FAULTY, "faulty_rounds": 2}), json!({})),
        (json!({}), json!({"strategy": FAULTY, "rounds": 2})),
    ];
    for (seed, (memory, disk)) in (1..).zip(failing) {
        let (here, there) = pair.desks();
        let spec = guest(seed, 2, busy());
        here.begin(&spec);
        let fails = movement(memory, disk);
        let (left, came) = carry(&here, &there, pair.destination.address, &spec, &fails);
        for ending in [left.ending, came.ending] {
            assert!(matches!(ending, Ending::Aborted { .. }), "{ending:?}");
        }
        assert!(here.runs() && !there.runs(), "the guest goes on at the source");
        let good = movement(json!({}), json!({}));
        let out = carry(&here, &there, pair.destination.address, &spec, &good);
        completed(&out);
        let memory = sent(&out.0.events, Family::Memory);
        assert_eq!((memory.first_units, sent(&out.0.events, Family::Disk).first_units), (PAGES, BLOCKS));
        // And back: a failed return leaves what is fresh as fresh as it was.
        let back = |movement: &whimbrel_migration::commands::MoveSpec| {
            let mut back = movement.clone();
            (back.earlier, back.session) = (vec![good.session], back.session ^ 1 << 20);
            carry(&there, &here, pair.source.address, &spec, &back)
        };
        let (left, _) = back(&fails);
        assert!(matches!(left.ending, Ending::Aborted { .. }), "{:?}", left.ending);
        assert!(there.runs() && !here.runs(), "the guest goes on where it was");
        let returned = back(&good);
        completed(&returned);
        assert!(returned.0.missing_blocks < Some(BLOCKS));
        judged(&here, Some(&there));
    }
}

#[test]
fn a_guest_on_its_way_is_not_moved_again() {
    let pair = Pair::start();
    let (here, there) = pair.desks();
    let spec = guest(1, 2, busy());
    here.begin(&spec);
    let mut slow = movement(json!({"schedule": "post-copy"}), json!({}));
    slow.link.egress_bytes_per_s = Some(30e6);
    let elsewhere = movement(json!({}), json!({}));
    let again = Command::Migrate { to: pair.source.address, movement: elsewhere };
    there.done(&Command::Receive { spec: spec.clone(), movement: slow.clone() });
    let excluded =
        [again.clone(), Command::Run {}, Command::Stop {}, Command::Verify {}, Command::Resolve { run: true }];
    for command in &excluded {
        there.refused(command);
    }
    here.tell(&Command::Migrate { to: pair.destination.address, movement: slow });
    here.await_phase(Phase::Pull);
    for command in &excluded {
        let reason = there.refused(command);
        assert!(reason.contains("on its way"), "{reason}");
    }
    let left = here.ended();
    there.tell(&Command::Collect {});
    completed(&(left, there.ended()));
    let reason =
        here.refused(&Command::Migrate { to: pair.destination.address, movement: movement(json!({}), json!({})) });
    assert!(reason.contains("left"), "{reason}");
    assert!(here.refused(&Command::Run {}).contains("left"));
    judged(&there, Some(&here));
}

#[test]
fn a_coordinator_that_hangs_up_ends_its_move() {
    let pair = Pair::start();
    let (here, there) = pair.desks();
    let spec = guest(1, 2, busy());
    here.begin(&spec);
    let mut slow = movement(json!({"schedule": "pre-copy"}), json!({}));
    // It would take minutes.
    slow.link.egress_bytes_per_s = Some(100e3);
    there.done(&Command::Receive { spec: spec.clone(), movement: slow.clone() });
    here.tell(&Command::Migrate { to: pair.destination.address, movement: slow });
    here.await_phase(Phase::Push);
    drop(here);
    there.tell(&Command::Collect {});
    let came = there.ended();
    assert!(matches!(&came.ending, Ending::Aborted { reason } if reason.contains("hung up")), "{:?}", came.ending);
    // The host is free for the next.
    let (here, there) = pair.desks();
    here.begin(&spec);
    let movement = movement(json!({"schedule": "pre-copy"}), json!({}));
    completed(&carry(&here, &there, pair.destination.address, &spec, &movement));
}

#[test]
fn of_content_that_the_destination_holds_only_digests_cross() {
    const DIGEST_BYTES: u64 = 20;
    let pair = Pair::start();
    let (here, there) = pair.desks();
    let spec = guest(1, 2, json!({"use": "disk-write", "rate": "4 MiB/s"}));
    here.begin(&spec);
    let by_content = || movement(json!({"schedule": "stop-and-copy"}), json!({"preset": "capsules-cow"}));
    let first = by_content();
    let out = carry(&here, &there, pair.destination.address, &spec, &first);
    completed(&out);
    assert_eq!(sent(&out.0.events, Family::Disk).first_units, BLOCKS);
    // The way back to the image of the first visit, by a move that is told nothing of it: every block is offered.
    let back = by_content();
    let kept = MoveSpec { earlier: vec![first.session], ..back.clone() };
    here.done(&Command::Receive { spec: spec.clone(), movement: kept });
    there.tell(&Command::Migrate { to: pair.source.address, movement: back });
    let left = there.ended();
    here.tell(&Command::Collect {});
    let back = (left, here.ended());
    completed(&back);
    let crossed = sent(&back.0.events, Family::Disk);
    assert!(crossed.first_units == BLOCKS && crossed.raw_units < BLOCKS / 4, "{crossed:?}");
    assert!(crossed.reference_units > BLOCKS / 4, "{crossed:?}");
    assert_eq!(crossed.reference_bytes, crossed.reference_units * DIGEST_BYTES);
    assert_eq!(crossed.offer_bytes, crossed.raw_units * DIGEST_BYTES);
    assert_eq!(crossed.bytes(), crossed.raw_units * 4096 + crossed.reference_bytes + crossed.offer_bytes);
    judged(&here, Some(&there));
}

#[test]
fn a_disk_that_remains_comes_home_as_it_left_and_no_other_way() {
    let pair = Pair::start();
    let (here, there) = pair.desks();
    let spec = guest(1, 2, busy());
    here.begin(&spec);
    let first = movement(json!({}), json!({"preset": "shared"}));
    let out = carry(&here, &there, pair.destination.address, &spec, &first);
    completed(&out);
    assert_eq!((out.0.missing_blocks, sent(&out.0.events, Family::Disk).units()), (Some(0), 0));
    // It works on, on a disk that is elsewhere.
    assert!(there.runs());
    let mut otherwise = movement(json!({}), json!({"strategy": "three-phase"}));
    otherwise.earlier = vec![first.session];
    let reason = here.refused(&Command::Receive { spec: spec.clone(), movement: otherwise });
    assert!(reason.contains("remains"), "{reason}");
    // Nor is it forgotten by mistake, or moved on to a third host without its disk.
    let fresh = movement(json!({}), json!({"strategy": "three-phase"}));
    for command in
        [Command::Receive { spec: spec.clone(), movement: fresh.clone() }, Command::Create { spec: spec.clone() }]
    {
        let reason = here.refused(&command);
        assert!(reason.contains("works on its disk here"), "{reason}");
    }
    let third = Desk::at(pair.destination.address);
    third.done(&Command::Receive { spec: spec.clone(), movement: fresh.clone() });
    there.tell(&Command::Migrate { to: pair.destination.address, movement: fresh });
    let left = there.ended();
    assert!(matches!(&left.ending, Ending::Aborted { reason } if reason.contains("at another host")), "{left:?}");
    drop(third);
    assert!(there.runs());
    let mut home = movement(json!({}), json!({"preset": "shared"}));
    home.earlier = vec![first.session];
    let back = carry(&there, &here, pair.source.address, &spec, &home);
    completed(&back);
    judged(&here, Some(&there));
    assert_eq!(here.verified().disk, whimbrel_machine::Verdict::Equal);
}
