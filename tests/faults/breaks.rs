//! The link cut and the hosts killed, at points of every phase, under every pair of strategies.

use crate::proxy::{Act, Lane, Point, Proxy, Toward};
use crate::sample::{Factor, Row, pairwise, part, product};
use crate::support::{Pair, at_once, guest, plan, run, saw};
use serde_json::{Value, json};
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use whimbrel_disk::DISK_STRATEGIES;
use whimbrel_memory::SCHEDULES;
use whimbrel_migration::report::{Outcome, Report, Verdict};
use whimbrel_migration::session::Trip;
use whimbrel_model::rng::Rng;
use whimbrel_model::{Event, Mark, Moment};

use Lane::{Control, Demand, DiskMirror, DiskOffer, DiskPrefetch, DiskPull, DiskPush, Push};
use Toward::{Destination, Source};

const FAULTY: &str = "faulty";

/// Points of a move, in the order of its phases. Not every move comes by each.
const POINTS: [Point; 30] = [
    // Setup: within a hello, before its answer, while clocks are compared, before and while NBD negotiates.
    Point::Bytes(Control, Destination, 5),
    Point::Bytes(Control, Source, 3),
    Point::Bytes(Control, Destination, 300),
    Point::Bytes(DiskPull, Destination, 20),
    Point::Bytes(DiskPull, Source, 14),
    Point::Bytes(DiskPush, Source, 40),
    Point::Bytes(DiskPush, Destination, 100),
    // Push, or whatever comes first on a lane.
    Point::Bytes(Push, Destination, 1),
    Point::Bytes(Push, Destination, 3 << 20),
    Point::Bytes(Push, Destination, 15 << 20),
    Point::Bytes(DiskPush, Destination, 3 << 20),
    Point::Bytes(DiskPush, Source, 400),
    Point::Bytes(DiskMirror, Destination, 64 << 10),
    Point::Bytes(DiskOffer, Destination, 4 << 10),
    // Switchover.
    Point::Before("state"),
    Point::After("state"),
    Point::Before("loaded"),
    Point::After("loaded"),
    // The hand-over itself.
    Point::Before("hand_over"),
    Point::After("hand_over"),
    Point::Before("resumed"),
    Point::After("resumed"),
    // Pull.
    Point::Since("hand_over", Push, Destination, 64 << 10),
    Point::Since("hand_over", Demand, Source, 1),
    Point::Since("hand_over", DiskPush, Destination, 4 << 10),
    Point::Since("hand_over", DiskPull, Destination, 4 << 10),
    Point::Since("hand_over", DiskPrefetch, Destination, 4 << 10),
    Point::Before("whole"),
    Point::After("whole"),
    Point::Before("released"),
];

/// What breaks.
const ACTS: [&str; 4] = ["cut the link", "cut one connection", "kill the source", "kill the destination"];

fn factors() -> Vec<Factor> {
    let sound = |names: Vec<&'static str>| names.into_iter().filter(|n| *n != FAULTY).map(str::to_owned).collect();
    vec![
        ("point", POINTS.iter().map(|point| format!("{point:?}")).collect()),
        ("act", ACTS.map(str::to_owned).to_vec()),
        ("memory", sound(SCHEDULES.names().collect())),
        ("disk", sound(DISK_STRATEGIES.names().collect())),
    ]
}

/// A guest that writes memory and disk, and reads both.
fn busy() -> Value {
    json!({"use": "mix", "parts": [
        {"use": "memory-intensive", "rate": "32 MiB/s", "read_share": 0.5},
        {"use": "disk-write", "rate": "16 MiB/s", "pattern": "random", "read_share": 0.5},
    ]})
}

/// Makes the move of a row, and says what is wrong with how it ended; else whether the point was reached.
fn broken(factors: &[Factor], row: &Row, seed: u64) -> Result<bool, String> {
    let pair = Pair::start();
    let act = match row[1] {
        0 => Act::CutAll,
        1 => Act::CutOne,
        2 => Act::Kill(pair.source.pid()),
        _ => Act::Kill(pair.destination.pid()),
    };
    let proxy = Proxy::start(pair.destination.address, POINTS[row[0]], act);
    let memory = json!({"schedule": factors[2].1[row[2]]});
    let strategy = factors[3].1[row[3]].as_str();
    let mut disk = json!({"strategy": strategy});
    let entry = DISK_STRATEGIES.find(strategy).expect("the name is the registry's");
    if seed.is_multiple_of(2) && entry.parameters.iter().any(|p| p.name == "max_rounds") {
        // Nothing is pushed before the switchover: there is the more to be pulled.
        disk["max_rounds"] = 0.into();
    }
    let mut plan = plan(guest(seed, 2, busy()), memory, disk);
    plan.source_link.egress_bytes_per_s = Some(120e6);
    // A guest that goes on is to have a turn on a busy machine too.
    plan.tail = Duration::from_millis(100);
    let trips = run(&pair.hosts_through(proxy.address), &plan).map_err(|error| format!("{error:?}"))?;
    judge(&trips[0], &proxy, act, &pair)?;
    Ok(proxy.fired())
}

/// The guest is whole and equal at one side only, or lost when it had to be.
fn judge(trip: &Trip, proxy: &Proxy, act: Act, pair: &Pair) -> Result<(), String> {
    use Outcome::{Aborted, Completed, Lost, Undecided};
    let report = Report::from_events(&trip.events, &trip.facts);
    let told = proxy.crossed("hand_over");
    let said = saw(&trip.events, Mark::Source, Moment::HandedOver);
    let allowed: &[Outcome] = match act {
        _ if !proxy.fired() => &[Completed],
        // What is broken before the hand-over keeps the guest, even where it is noticed late.
        Act::CutOne if !proxy.had_crossed("loaded") => &[Completed, Aborted],
        Act::CutAll | Act::CutOne if proxy.crossed("resumed") => &[Completed, Lost],
        // It may lie unheard behind the end of another connection: then the hosts' meeting decides for the source.
        Act::CutAll | Act::CutOne if told => &[Completed, Lost, Aborted],
        Act::CutAll | Act::CutOne | Act::CutOneAndTheNext => &[Aborted],
        Act::Kill(pid) if pid == pair.source.pid() && told => &[Completed, Lost],
        Act::Kill(pid) if pid == pair.source.pid() => &[Lost],
        Act::Kill(_) if told || said => &[Lost, Undecided],
        Act::Kill(_) => &[Aborted],
        Act::Stall(_) => &[Completed],
    };
    let wrong = |what: &str| Err(format!("{what}: {:?} ({:?}), {:?}", report.outcome, report.reason, report.verify));
    if !allowed.contains(&report.outcome) {
        return wrong(&format!("allowed was {allowed:?}, hand-over said {said} and told {told}"));
    }
    let verify = (report.verify.memory, report.verify.disk);
    let resumed = saw(&trip.events, Mark::Destination, Moment::Resumed);
    match report.outcome {
        Completed if verify == (Verdict::Equal, Verdict::Equal) && resumed => Ok(()),
        Aborted if verify == (Verdict::Equal, Verdict::Equal) && !resumed && report.reason.is_some() => {
            let last = trip.events.iter().rev().find_map(|event| match &event.event {
                Event::Work { operations, .. } if event.host == Mark::Source => Some(operations.iter().sum::<u64>()),
                _ => None,
            });
            let goes_on = last.is_none_or(|last| report.verify.operations.iter().sum::<u64>() > last);
            if goes_on { Ok(()) } else { wrong("the guest did nothing more") }
        }
        Lost | Undecided if report.reason.is_some() => Ok(()),
        _ => wrong("the guest is not where it should be, or not whole"),
    }
}

#[test]
fn whatever_breaks_the_guest_is_alive_at_one_side_or_the_row_says_lost() {
    let seed = std::env::var("WHIMBREL_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let (factors, mut rng) = (factors(), Rng::new(seed));
    let rows = match std::env::var_os("WHIMBREL_FULL") {
        None => pairwise(&factors, &mut rng),
        Some(_) => product(&factors, &["point", "act", "memory", "disk"], &mut rng),
    };
    let (complaints, reached) = (Mutex::new(Vec::new()), Mutex::new(vec![false; POINTS.len()]));
    let tried = part((seed..).zip(&rows));
    at_once(
        &tried,
        || (),
        |(), &(seed, row)| {
            let shown: Vec<&str> = row.iter().zip(&factors).map(|(value, factor)| factor.1[*value].as_str()).collect();
            let began = Instant::now();
            let ended = catch_unwind(AssertUnwindSafe(|| broken(&factors, row, seed)));
            println!("{:?}: seed {seed}, {shown:?}", began.elapsed());
            let complain = |what: &str| complaints.lock().unwrap().push(format!("seed {seed}, {shown:?}: {what}"));
            match ended {
                Ok(Ok(fired)) => reached.lock().unwrap()[row[0]] |= fired,
                Ok(Err(complaint)) => complain(&complaint),
                Err(_) => complain("it panicked or didn't end"),
            }
        },
    );
    println!("{} moves; WHIMBREL_SEED={seed}", tried.len());
    let (complaints, reached) = (complaints.into_inner().unwrap(), reached.into_inner().unwrap());
    for (point, _) in POINTS.iter().zip(&reached).filter(|(_, reached)| !**reached) {
        drop(writeln!(std::io::stderr(), "SKIPPED: no move came by {point:?}"));
    }
    assert!(complaints.is_empty(), "WHIMBREL_SEED={seed}\n{}", complaints.join("\n"));
}

#[test]
fn a_link_that_stalls_for_half_a_minute_is_lived_through() {
    const STALL: Duration = Duration::from_secs(30);
    if std::env::var_os("WHIMBREL_FULL").is_none() {
        drop(writeln!(
            std::io::stderr(),
            "SKIPPED: links that stall for {STALL:?}: real time, by --full alone; the simulation stalls them always"
        ));
        return;
    }
    let points = [
        Point::Bytes(DiskPush, Destination, 3 << 20),
        Point::Bytes(Push, Destination, 3 << 20),
        Point::After("state"),
        Point::After("hand_over"),
        Point::Since("hand_over", DiskPush, Destination, 4 << 10),
        Point::Since("hand_over", DiskPull, Destination, 4 << 10),
    ];
    let names: Vec<_> = DISK_STRATEGIES.names().filter(|name| *name != FAULTY).collect();
    for (seed, (at, strategy)) in (1..).zip(names.iter().enumerate().flat_map(|(at, s)| [(2 * at, s), (2 * at + 1, s)]))
    {
        let pair = Pair::start();
        let act = Act::Stall(STALL);
        let proxy = Proxy::start(pair.destination.address, points[at % points.len()], act);
        let mut plan = plan(guest(seed, 2, busy()), json!({}), json!({"strategy": strategy}));
        plan.source_link.egress_bytes_per_s = Some(120e6);
        let trips = run(&pair.hosts_through(proxy.address), &plan).unwrap();
        judge(&trips[0], &proxy, act, &pair).unwrap_or_else(|why| panic!("{strategy}, {at}: {why}"));
        println!("{strategy}: stalled: {}", proxy.fired());
    }
}
