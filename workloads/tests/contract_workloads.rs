//! What every registered workload keeps: it runs with its defaults on a small guest, stays inside what its vCPUs own,
//! and goes on the same from a saved state.

use proptest::prelude::{ProptestConfig, any, prop};
use proptest::{prop_assert, prop_assert_eq, proptest};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use whimbrel_model::op::{MOST_SECTORS, Op, WORDS_PER_PAGE};
use whimbrel_model::rng::Rng;
use whimbrel_model::stream::{Paced, Shape, Stream};
use whimbrel_workloads::{BuildContext, WORKLOADS, WorkloadChoice};

const SMALL: Shape = Shape { pages: 16_384, sectors: 131_072, filled_sectors: 32_768, vcpus: 2 };

fn choice(table: Value) -> WorkloadChoice {
    WorkloadChoice::read(&serde_json::from_value::<BTreeMap<_, _>>(table).unwrap()).unwrap()
}

/// Every member with its defaults, and the shapes of each that differ most from them.
fn tables() -> Vec<Value> {
    let mut tables: Vec<Value> = WORKLOADS.entries.iter().map(|entry| json!({ "use": entry.name })).collect();
    for pattern in ["uniform", "hot-set", "sweep", "zipf", "phased"] {
        tables.push(json!({ "pattern": pattern, "rate": "12 MiB/s", "read_share": 0.3, "compute_share": 0.2,
                            "phase_operations": 100, "words_per_write": 512 }));
    }
    for pattern in ["sequential", "random", "zipf"] {
        tables.push(json!({ "use": "disk-write", "pattern": pattern, "rate": "4 MiB/s", "rewrite_share": 0.5,
                            "partial_share": 0.5, "read_share": 0.5, "flush_every": 3, "compute_share": 0.9,
                            "request": "20 KiB", "extent": "1 MiB" }));
    }
    tables.push(json!({ "use": "idle-desktop", "speed": 1000 }));
    tables.push(json!({ "rate": "0 MiB/s", "compute_share": 0.5 }));
    let part = json!({ "use": "memory-intensive", "pattern": "sweep", "working_set": "1 MiB" });
    tables.push(json!({ "use": "mix", "parts": [part, "disk-write", "idle"] }));
    tables
}

/// A mix has at most a part for each vCPU.
fn has_enough(vcpus: u32, table: &Value) -> bool {
    let parts = table["parts"].as_array().map(Vec::len);
    let by_default = if table["use"] == "mix" { 2 } else { 1 };
    parts.unwrap_or(by_default) <= vcpus as usize
}

fn runs_without_disk(table: &Value) -> bool {
    !table.to_string().contains("disk-write")
}

/// The pages and sectors that an operation touches.
fn touched(op: Op) -> (Option<u64>, std::ops::Range<u64>) {
    match op {
        Op::Write { page, first, words } | Op::Read { page, first, words } => {
            assert!(words > 0 && u64::from(first) + u64::from(words) <= WORDS_PER_PAGE, "{op:?}");
            (Some(page), 0..0)
        }
        Op::Allocate { page } | Op::Free { page } => (Some(page), 0..0),
        Op::DiskRead { sector, sectors } | Op::DiskWrite { sector, sectors } => {
            assert!((1..=MOST_SECTORS).contains(&sectors), "{op:?}");
            (None, sector..sector + u64::from(sectors))
        }
        Op::Compute { units } => {
            assert!(units <= 100, "an operation is at most 100 us long: {op:?}");
            (None, 0..0)
        }
        Op::Flush | Op::Idle { .. } => (None, 0..0),
    }
}

#[test]
fn every_workload_stays_inside_and_its_streams_are_disjoint() {
    for table in tables() {
        for vcpus in [1, 2, 3, 8] {
            for sectors in [SMALL.sectors, 0] {
                if sectors == 0 && !runs_without_disk(&table) || !has_enough(vcpus, &table) {
                    continue;
                }
                let shape = Shape { sectors, filled_sectors: SMALL.filled_sectors.min(sectors), vcpus, ..SMALL };
                let mut streams = choice(table.clone()).build(&BuildContext::new(shape, 5)).unwrap();
                assert_eq!(streams.len(), vcpus as usize);
                let (mut pages, mut owners) = (HashMap::new(), HashMap::new());
                for (vcpu, stream) in streams.iter_mut().enumerate() {
                    let mut freed = HashSet::new();
                    for _ in 0..20_000 {
                        let op = stream.next().op;
                        let (page, sectors) = touched(op);
                        assert!(
                            page.is_none_or(|p| p < shape.pages) && sectors.end <= shape.sectors,
                            "{table}: {op:?}"
                        );
                        if let Some(page) = page {
                            assert_eq!(*pages.entry(page).or_insert(vcpu), vcpu, "{table}: page {page} has two owners");
                            match op {
                                Op::Free { .. } => assert!(freed.insert(page), "{table}: {page} freed twice"),
                                Op::Allocate { .. } => assert!(freed.remove(&page), "{table}: {page} was not free"),
                                _ => assert!(!freed.contains(&page), "{table}: {op:?} of a free page"),
                            }
                        }
                        for sector in sectors {
                            assert_eq!(*owners.entry(sector).or_insert(vcpu), vcpu, "{table}: sector {sector}");
                        }
                    }
                }
            }
        }
    }
}

fn take(stream: &mut dyn Stream, count: usize) -> Vec<Paced> {
    (0..count).map(|_| stream.next()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..Default::default() })]
    #[test]
    fn a_restored_stream_goes_on_the_same(seed in any::<u64>(), vcpus in 1u32..5,
                                          stops in prop::collection::vec(0usize..3000, 1..4)) {
        let context = BuildContext::new(Shape { vcpus, ..SMALL }, seed);
        for table in tables().into_iter().filter(|table| has_enough(vcpus, table)) {
            let choice = choice(table.clone());
            let (mut ran, mut fresh) = (choice.build(&context).unwrap(), choice.build(&context).unwrap());
            for stop in &stops {
                for (a, b) in ran.iter_mut().zip(&mut fresh) {
                    take(a.as_mut(), *stop);
                    let saved = a.save();
                    prop_assert!(saved.len() < 16_384, "{}: {} bytes of state", table, saved.len());
                    b.restore(&saved).unwrap();
                    prop_assert_eq!(&b.save(), &saved, "{}", table);
                    prop_assert_eq!(take(a.as_mut(), 500), take(b.as_mut(), 500), "{}", table);
                    prop_assert_eq!(a.save(), b.save());
                }
            }
        }
    }

    #[test]
    fn hostile_state_is_refused_or_harmless(seed in any::<u64>()) {
        let context = BuildContext::new(Shape { vcpus: 3, ..SMALL }, 1);
        let mut rng = Rng::new(seed);
        for table in tables() {
            let mut streams = choice(table.clone()).build(&context).unwrap();
            let stream = &mut streams[1];
            take(stream.as_mut(), 200);
            let saved = stream.save();
            prop_assert!(stream.restore(b"no state").is_err());
            prop_assert!(stream.restore(&saved[..saved.len() / 2]).is_err());
            for _ in 0..50 {
                let mut mutated = saved.clone();
                for _ in 0..=rng.below(3) {
                    let at = rng.below(mutated.len() as u64) as usize;
                    mutated[at] = b"0123456789"[rng.below(10) as usize];
                }
                if stream.restore(&mutated).is_ok() {
                    for paced in take(stream.as_mut(), 300) {
                        let (page, sectors) = touched(paced.op);
                        prop_assert!(page.is_none_or(|p| p < SMALL.pages) && sectors.end <= SMALL.sectors);
                    }
                }
            }
        }
    }
}

#[test]
fn seeds_differ_and_repeat() {
    for table in tables().into_iter().filter(|t| t["use"] != "idle" && t["rate"] != "0 MiB/s") {
        let draw = |seed| {
            take(
                choice(table.clone()).build(&BuildContext::new(Shape { vcpus: 3, ..SMALL }, seed)).unwrap()[1].as_mut(),
                400,
            )
        };
        assert_eq!(draw(1), draw(1), "{table}");
        assert_ne!(draw(1), draw(2), "{table}");
    }
}

#[test]
fn what_a_guest_cannot_satisfy_is_refused_by_name() {
    for (table, shape, part) in [
        (json!({ "working_set": "65 MiB" }), SMALL, "working_set"),
        (json!({ "words_per_write": 513 }), SMALL, "words_per_write"),
        (json!({ "words_per_write": 0 }), SMALL, "words_per_write"),
        (json!({ "read_share": 1 }), SMALL, "read_share"),
        (json!({ "exponent": 9 }), SMALL, "exponent"),
        (json!({ "use": "disk-write" }), Shape { sectors: 0, filled_sectors: 0, ..SMALL }, "disk"),
        (json!({ "use": "disk-write", "extent": "1 GiB" }), SMALL, "extent"),
        (json!({ "use": "disk-write", "request": "1000 B" }), SMALL, "request"),
        (json!({ "use": "disk-write", "request": "2 MiB" }), SMALL, "request"),
        (json!({ "use": "idle-desktop", "speed": 0 }), SMALL, "speed"),
        (json!({ "use": "mix", "parts": ["mix"] }), SMALL, "mix"),
        (json!({ "use": "mix", "parts": [] }), SMALL, "parts"),
        (json!({ "use": "mix", "parts": ["idle", "idle", "idle"] }), SMALL, "parts"),
        (json!({ "use": "mix", "parts": [{ "use": "idle", "sped": 1 }] }), SMALL, "sped"),
    ] {
        let built = choice(table.clone()).build(&BuildContext::new(shape, 1));
        let message = built.err().unwrap_or_else(|| panic!("{table} is accepted")).to_string();
        assert!(message.contains(part), "{table}: {message}");
    }
}

#[test]
fn every_default_and_summary_is_there() {
    for entry in WORKLOADS.entries {
        assert!(
            !entry.summary.is_empty() && !entry.source.is_empty() && !entry.build.unit.is_empty(),
            "{}",
            entry.name
        );
        assert!(entry.parameters.iter().all(|p| !p.summary.is_empty()), "{}", entry.name);
        whimbrel_model::Parameters::defaults(entry.parameters);
    }
}
