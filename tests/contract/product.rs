//! Every registry entry, in combination with the others, moves a guest: the twin has the last word.

use crate::sample::{Factor, Row, pairwise, part, product};
use crate::support::{Pair, at_once, choice, guest, plan, run};
use serde_json::{Map, Value, json};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;
use whimbrel_disk::{DISK_PRESETS, DISK_STRATEGIES};
use whimbrel_machine::MACHINES;
use whimbrel_memory::{ChoiceError, ENCODINGS, MemoryChoice, PRESETS, SCHEDULES, SELECTIONS, STOP_RULES, THROTTLES};
use whimbrel_migration::COORDINATORS;
use whimbrel_migration::commands::Software;
use whimbrel_migration::report::{Outcome, Report, Verdict};
use whimbrel_migration::session::{TrialPlan, Trip};
use whimbrel_model::registry::Kind;
use whimbrel_model::rng::Rng;
use whimbrel_model::stream::Shape;
use whimbrel_model::{Mark, Moment};
use whimbrel_workloads::{BuildContext, WORKLOADS, WorkloadChoice};

/// The name of each family's member that fails or damages on purpose.
const FAULTY: &str = "faulty";

fn factors() -> Vec<Factor> {
    let of = |key: &str, names: Vec<&'static str>| names.into_iter().map(|n| format!("{key} {n}")).collect::<Vec<_>>();
    let plain = |names: Vec<&'static str>| names.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let memory = [of("schedule", SCHEDULES.names().collect()), of("preset", PRESETS.names().collect())].concat();
    let disks = [of("strategy", DISK_STRATEGIES.names().collect()), of("preset", DISK_PRESETS.names().collect())];
    vec![
        ("memory", memory),
        ("disk", [vec!["none".to_owned()], disks.concat()].concat()),
        ("workload", plain(WORKLOADS.names().collect())),
        ("select", plain(SELECTIONS.names().collect())),
        ("encode", plain(ENCODINGS.names().collect())),
        ("stop", plain(STOP_RULES.names().collect())),
        ("throttle", plain(THROTTLES.names().collect())),
        ("vcpus", plain(vec!["1", "2", "4"])),
        // A QEMU guest takes seconds to boot: its moves are tests of their own.
        ("machine", plain(MACHINES.names().filter(|name| *name != "qemu").collect())),
        ("coordinator", plain(COORDINATORS.names().collect())),
    ]
}

/// A combination as a trial.
struct Case {
    shown: String,
    plan: TrialPlan,
    aborts: bool,
    damages: bool,
}

/// The trial of a combination; `None` where the workload doesn't fit the guest, which is a legal answer.
fn case(factors: &[Factor], row: &Row, seed: u64) -> Option<Case> {
    let value = |name: &str| {
        let at = factors.iter().position(|f| f.0 == name).expect("a factor of that name");
        factors[at].1[row[at]].as_str()
    };
    let (memory, resolved) = memory(&value);
    let vcpus = value("vcpus").parse().unwrap();
    let mut guest = guest(seed, vcpus, json!({"use": value("workload")}));
    guest.machine = value("machine").to_owned();
    let disk = match value("disk").split_once(' ') {
        Some((key, name)) => disk(key, name),
        None => {
            guest.disk = None;
            json!({})
        }
    };
    let sectors = guest.disk.map_or(0, |d| d.bytes / 512);
    let filled_sectors = guest.disk.map_or(0, |d| d.filled_bytes / 512);
    let shape = Shape { pages: guest.ram_bytes / 4096, sectors, filled_sectors, vcpus };
    guest.software = Software::Workload(workload(value("workload"), seed, shape)?);
    let encode = &resolved["encode"];
    let (machine, coordinator) = (value("machine"), value("coordinator"));
    let mut plan = plan(guest.clone(), memory.clone(), disk.clone());
    plan.coordinator = choice(json!({ "use": coordinator }));
    Some(Case {
        shown: format!(
            "seed {seed}, {machine}, {vcpus} vCPUs, workload {}, disk {disk}, memory {memory}, {coordinator}",
            value("workload")
        ),
        aborts: machine == FAULTY
            || resolved["schedule"] == FAULTY
            || guest.disk.is_some() && disk["strategy"] == FAULTY,
        damages: encode.as_array().is_some_and(|chain| chain.iter().any(|name| name == FAULTY)),
        plan,
    })
}

/// The `[disk]` table. What follows a guest that writes as fast as it can is not to follow it for a hundred rounds.
fn disk(key: &str, name: &str) -> Value {
    let parameters = match key {
        "preset" => DISK_PRESETS.find(name).map(|entry| entry.parameters),
        _ => DISK_STRATEGIES.find(name).map(|entry| entry.parameters),
    };
    let mut table = json!({key: name});
    let rounds = parameters.expect("the name is the registry's").iter().find(|p| p.name == "max_rounds");
    let default = rounds.and_then(|p| p.default?.parse::<u64>().ok());
    // Those that have fewer keep their own.
    if default.is_some_and(|rounds| rounds > 30) {
        table["max_rounds"] = 30.into();
    }
    table
}

/// The workload, if it fits. Most are paced where they can be, since the twin has to do again whatever is done as fast as
/// it can be; every fourth is not. A mix is of as many of the others
/// as there are vCPUs, other ones with each seed.
fn workload(name: &str, seed: u64, shape: Shape) -> Option<WorkloadChoice> {
    let has = |name: &str, key: &str| {
        let entry = WORKLOADS.find(name).expect("the name is the registry's");
        entry.parameters.iter().any(|p| p.name == key)
    };
    let plain = |name: &str| match has(name, "rate") && !seed.is_multiple_of(4) {
        true => json!({"use": name, "rate": "48 MiB/s"}),
        false => json!({"use": name}),
    };
    let fits = |table: &Value| choice::<WorkloadChoice>(table.clone()).build(&BuildContext::new(shape, seed)).is_ok();
    let table = match has(name, "parts") {
        true => {
            let others = WORKLOADS.names().filter(|name| !has(name, "parts"));
            let mut parts: Vec<Value> = others.map(plain).filter(fits).collect();
            let first = seed as usize % parts.len();
            parts.rotate_left(first);
            parts.truncate(shape.vcpus as usize);
            json!({"use": name, "parts": parts})
        }
        false => plain(name),
    };
    fits(&table).then(|| choice(table))
}

/// The `[memory]` table: what the schedule has no use for is left out, since it is refused, with its reason.
fn memory<'a>(value: &impl Fn(&str) -> &'a str) -> (Value, Value) {
    let (key, name) = value("memory").split_once(' ').expect("a key and a name");
    // A rule by which a move might never end has the bounds beside it.
    let bounds = ["round-bound", "byte-bound"];
    let stop: Vec<&str> =
        [value("stop")].into_iter().chain(bounds.into_iter().filter(|b| *b != value("stop"))).collect();
    let mut table: Map<String, Value> = Map::new();
    table.insert(key.to_owned(), name.into());
    table.insert("select".to_owned(), value("select").into());
    table.insert("encode".to_owned(), value("encode").into());
    table.insert("stop".to_owned(), stop.into());
    table.insert("throttle".to_owned(), value("throttle").into());
    if value("encode") == FAULTY {
        table.insert("faulty_every".to_owned(), 20.into());
    }
    // No rule is to wait for long.
    let rule = STOP_RULES.find(value("stop")).expect("the name is the registry's");
    for parameter in rule.parameters.iter().filter(|p| p.kind == Kind::Duration) {
        table.insert(parameter.name.to_owned(), "200 ms".into());
    }
    loop {
        match MemoryChoice::read(&table.clone().into_iter().collect()) {
            Ok(choice) => return (table.into(), choice.resolved().into_iter().collect::<Map<_, _>>().into()),
            Err(ChoiceError::Pointless { key, why, .. }) => {
                assert!(!why.is_empty());
                table.remove(key);
            }
            // A parameter goes with its member.
            Err(ChoiceError::NotChosen { key, .. }) => {
                table.remove(&key);
            }
            Err(error) => panic!("{table:?}: {error}"),
        }
    }
}

/// What is wrong with a trial's only trip.
fn complaint(case: &Case, trip: &Trip) -> Option<String> {
    let report = Report::from_events(&trip.events, &trip.facts);
    let arrived = trip.events.iter().any(|e| e.host == Mark::Destination)
        && crate::support::saw(&trip.events, Mark::Destination, Moment::Resumed);
    let expected = if case.aborts { Outcome::Aborted } else { Outcome::Completed };
    let memory = if case.damages && !case.aborts { Verdict::Different } else { Verdict::Equal };
    let disk = if case.plan.guest.disk.is_some() { Verdict::Equal } else { Verdict::Skipped };
    // What is damaged in memory the guest may write to its disk.
    let spread = case.damages && report.verify.disk == Verdict::Different && disk == Verdict::Equal;
    let good = report.outcome == expected
        && arrived != case.aborts
        && report.verify.memory == memory
        && (report.verify.disk == disk || spread)
        && (report.reason.is_some() == case.aborts);
    (!good).then(|| {
        let (outcome, reason, verify) = (report.outcome, report.reason, report.verify);
        format!("{outcome:?} ({reason:?}), {verify:?}; expected {expected:?}, {memory:?}, {disk:?}")
    })
}

#[test]
fn every_member_moves_a_guest_with_every_other() {
    let full = std::env::var_os("WHIMBREL_FULL").is_some();
    let seed = std::env::var("WHIMBREL_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let (factors, mut rng) = (factors(), Rng::new(seed));
    let rows = match full {
        false => pairwise(&factors, &mut rng),
        true => [
            product(&factors, &["memory", "disk", "workload", "vcpus"], &mut rng),
            product(&factors, &["memory", "select", "encode", "stop", "throttle"], &mut rng),
        ]
        .concat(),
    };
    let tried = part((seed..).zip(&rows));
    let cases: Vec<Case> = tried.iter().filter_map(|(seed, row)| case(&factors, row, *seed)).collect();
    println!("{} combinations of {} fit their guests; WHIMBREL_SEED={seed}", cases.len(), tried.len());
    let complaints = Mutex::new(Vec::new());
    at_once(&cases, Pair::start, |pair, case| {
        let began = Instant::now();
        let made = catch_unwind(AssertUnwindSafe(|| run(&pair.hosts(), &case.plan)));
        let complaint = match made {
            Ok(Ok(trips)) => complaint(case, &trips[0]),
            Ok(Err(error)) => Some(format!("{error:?}")),
            Err(_) => Some("it panicked or didn't end".to_owned()),
        };
        println!("{:?}: {}", began.elapsed(), case.shown);
        if let Some(complaint) = complaint {
            complaints.lock().unwrap().push(format!("{}: {complaint}", case.shown));
            *pair = Pair::start();
        }
    });
    let complaints = complaints.into_inner().unwrap();
    assert!(complaints.is_empty(), "WHIMBREL_SEED={seed}\n{}", complaints.join("\n"));
}

#[test]
fn names_of_no_member_are_refused() {
    let read = |table: Value| serde_json::from_value::<MemoryChoice>(table).is_err();
    assert!(read(json!({"schedule": "nothing"})) && read(json!({"encode": ["zero", "nothing"]})));
    let _: MemoryChoice = choice(json!({}));
}
