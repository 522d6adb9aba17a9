//! Whole migrations in a seeded event queue: the cores of both hosts, a synthetic machine, and a simulated link that
//! delays, stalls and breaks. A simulation: it proves the state machines, and measures nothing.
//!
//! Every failure prints the seed that repeats it. `WHIMBREL_SEED` runs one seed, `WHIMBREL_SEEDS` that many.

mod faults;
mod guest;
mod happening;
mod world;

use faults::{Fault, Verdict};
use whimbrel_disk::DiskChoice;
use whimbrel_memory::MemoryChoice;
use whimbrel_migration::core::SourcePlan;
use whimbrel_model::event::EndedBy;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{Page, Rest, Schedule, Step, View};
use world::World;

/// Seeds of a test run, spread over all pairs of a memory and a disk strategy, with and without faults.
const SEEDS: u64 = 20_000;

fn memory_choices() -> Vec<MemoryChoice> {
    let schedules = whimbrel_memory::SCHEDULES.names().map(|n| ("schedule", n));
    let presets = whimbrel_memory::PRESETS.names().map(|n| ("preset", n));
    let plain = schedules.chain(presets).map(|(key, name)| {
        let table = [(key.to_owned(), serde_json::json!(name))].into();
        MemoryChoice::read(&table).unwrap_or_else(|e| panic!("{name}: {e}"))
    });
    // Copies that are left behind: too late for their names.
    let late = serde_json::json!({"schedule": "hybrid", "rounds": 0, "select": "disk-backed"});
    let late = MemoryChoice::read(&serde_json::from_value(late).expect("a table is a map")).expect("it is accepted");
    plain.chain(that_ask()).chain(by_name()).chain([late]).collect()
}

/// Every schedule that pushes, with pages by name.
fn by_name() -> Vec<MemoryChoice> {
    let schedules = whimbrel_memory::SCHEDULES.entries.iter().filter(|s| s.build.pushes && s.name != "faulty");
    let tables = schedules.map(|s| serde_json::json!({"schedule": s.name, "select": "disk-backed"}));
    tables.map(|table| MemoryChoice::read(&serde_json::from_value(table).expect("a table is a map")).unwrap()).collect()
}

/// Every schedule with every selection that goes by what the guest says.
fn that_ask() -> Vec<MemoryChoice> {
    let asking =
        whimbrel_memory::SELECTIONS.entries.iter().filter(|s| s.parameters.iter().any(|p| p.name == "ask_every"));
    let pairs = asking.flat_map(|select| whimbrel_memory::SCHEDULES.names().map(|schedule| (schedule, select.name)));
    pairs
        .map(|(schedule, select)| {
            // RAM as small as this one would be asked about once.
            let table = serde_json::json!({"schedule": schedule, "select": select, "ask_every": 100});
            let choice = MemoryChoice::read(&serde_json::from_value(table).expect("a table is a map"));
            choice.unwrap_or_else(|e| panic!("{schedule} and {select}: {e}"))
        })
        .collect()
}

fn disk_choices() -> Vec<Option<DiskChoice>> {
    let strategies = whimbrel_disk::DISK_STRATEGIES.names().map(|name| ("strategy", name));
    let presets = whimbrel_disk::DISK_PRESETS.names().map(|name| ("preset", name));
    let named = strategies.chain(presets).map(|(key, name)| {
        let mut table = std::collections::BTreeMap::from([(key.to_owned(), serde_json::json!(name))]);
        let parameters = match key {
            "strategy" => whimbrel_disk::DISK_STRATEGIES.find(name).map(|entry| entry.parameters),
            _ => whimbrel_disk::DISK_PRESETS.find(name).map(|entry| entry.parameters),
        };
        if parameters.is_ok_and(|all| all.iter().any(|parameter| parameter.name == "chunk")) {
            // A disk as small as this one would be a chunk or two.
            table.insert("chunk".to_owned(), "16 KiB".into());
        }
        Some(DiskChoice::try_from(table).unwrap_or_else(|e| panic!("{name}: {e}")))
    });
    named.chain([None]).collect()
}

fn run(seed: u64, memory: &[MemoryChoice], disks: &[Option<DiskChoice>]) {
    let pair = (seed % (memory.len() * disks.len()) as u64) as usize;
    let (memory, disk) = (&memory[pair / disks.len()], &disks[pair % disks.len()]);
    let fault = Fault::from_seed(seed);
    let what = format!(
        "seed {seed}: memory {}, disk {}, {fault:?}",
        memory.name(),
        disk.as_ref().map_or("none", |d| d.name())
    );
    if number("WHIMBREL_SEED").is_some() {
        eprintln!("{what}");
    }
    let mut world = World::new(seed, memory, disk.as_ref(), fault);
    match world.run() {
        Ok(verdict) => world.check(verdict).unwrap_or_else(|e| panic!("{what}: {e}; repeat with WHIMBREL_SEED={seed}")),
        Err(e) => panic!("{what}: {e}; repeat with WHIMBREL_SEED={seed}"),
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|v| v.parse().ok())
}

#[test]
fn a_guest_is_whole_on_exactly_one_host_whatever_breaks() {
    let (memory, disks) = (memory_choices(), disk_choices());
    if let Some(seed) = number("WHIMBREL_SEED") {
        return run(seed, &memory, &disks);
    }
    for seed in 0..number("WHIMBREL_SEEDS").unwrap_or(SEEDS) {
        run(seed, &memory, &disks);
    }
}

#[test]
fn without_a_fault_every_pair_that_does_not_give_up_completes() {
    let (memory, disks) = (memory_choices(), disk_choices());
    for m in &memory {
        for d in &disks {
            let gives_up = m.name() == "faulty" || d.as_ref().is_some_and(|d| d.name() == "faulty");
            let mut world = World::new(7, m, d.as_ref(), Fault::None);
            let verdict = world.run().unwrap_or_else(|e| panic!("{} and {:?}: {e}", m.name(), d));
            let expected = if gives_up { Verdict::Aborted } else { Verdict::Completed };
            assert_eq!(verdict, expected, "{} and {:?}", m.name(), d.as_ref().map(|d| d.name()));
            world.check(verdict).unwrap_or_else(|e| panic!("{} and {:?}: {e}", m.name(), d));
        }
    }
}

/// Switches at once, and waits for nobody.
struct Firm;

impl Schedule<Page> for Firm {
    fn source(&mut self, view: &View<'_, Page>) -> Vec<Step<Page>> {
        match view.stage {
            Stage::Push => vec![Step::Ready { rest: Rest::CarryOver, firm: true, ended_by: EndedBy::TimeBound }],
            Stage::Paused | Stage::Pull => Vec::new(),
        }
    }
}

#[test]
fn memory_that_waits_for_nobody_moves_with_every_disk() {
    let (memory, disks) = (memory_choices(), disk_choices());
    for disk in disks.iter().filter(|disk| disk.as_ref().is_none_or(|disk| disk.name() != "faulty")) {
        // Each seed another coordinator, link and guest.
        for seed in 0..60 {
            let fault = Fault::None;
            let firm = |plan: &mut SourcePlan| plan.memory.schedule = Box::new(Firm);
            let mut world = World::planned(seed, &memory[0], disk.as_ref(), fault, firm);
            let what = format!("seed {seed}, {:?}", disk.as_ref().map(|disk| disk.name()));
            let verdict = world.run().unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(verdict, Verdict::Completed, "{what}");
            world.check(verdict).unwrap_or_else(|e| panic!("{what}: {e}"));
        }
    }
}

#[test]
fn the_simulation_sees_a_page_that_was_not_sent() {
    let (memory, disks) = (memory_choices(), disk_choices());
    let pre_copy = memory.iter().find(|m| m.name() == "pre-copy").expect("pre-copy is registered");
    let is_seen = |seed| {
        let mut world = World::new(seed, pre_copy, disks[0].as_ref(), Fault::DropOneUnit);
        let verdict = world.run().expect("it runs");
        world.check(verdict).is_err()
    };
    // Some are written and sent again.
    let seen = (0..20).filter(|seed| is_seen(*seed)).count();
    assert!(seen >= 5, "a page that the lane dropped must be seen: {seen} of 20 were");
}

#[test]
fn what_is_free_is_left_out_and_nothing_else() {
    for memory in that_ask().iter().filter(|memory| memory.name() != "faulty") {
        let mut left_out = 0;
        for seed in 0..300 {
            let mut world = World::new(seed, memory, None, Fault::None);
            let verdict = world.run().unwrap_or_else(|e| panic!("{}, seed {seed}: {e}", memory.name()));
            assert_eq!(verdict, Verdict::Completed, "{}, seed {seed}", memory.name());
            world.check(verdict).unwrap_or_else(|e| panic!("{}, seed {seed}: {e}", memory.name()));
            left_out += world.left_out();
        }
        assert!(left_out > 0, "{}: a guest of which half is free moves whole", memory.name());
    }
}

#[test]
fn pages_that_are_copies_of_blocks_go_by_name_and_come_whole() {
    let disks = disk_choices();
    for memory in &by_name() {
        for disk in disks.iter().flatten().filter(|disk| disk.name() != "faulty") {
            let mut names = 0;
            for seed in 0..60 {
                let what = format!("{} and {}, seed {seed}", memory.name(), disk.name());
                let mut world = World::new(seed, memory, Some(disk), Fault::None);
                let verdict = world.run().unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_eq!(verdict, Verdict::Completed, "{what}");
                world.check(verdict).unwrap_or_else(|e| panic!("{what}: {e}"));
                names += world.names();
            }
            let context = whimbrel_disk::BuildContext { blocks: 400, block_bytes: 4096, seed: 1 };
            let needs = disk.needs(&context);
            // What is mirrored shows in no log, and what remains is not there.
            assert_eq!(names > 0, !needs.mirror && !needs.remains, "{} and {}: {names}", memory.name(), disk.name());
        }
    }
}

#[test]
fn a_guest_that_calls_pages_free_that_are_in_use_is_found_out() {
    for memory in that_ask().iter().filter(|memory| memory.name() != "faulty") {
        let mut world = World::new(3, memory, None, Fault::CallsAllFree);
        let verdict = world.run().expect("it runs");
        assert!(world.check(verdict).is_err(), "{}: a page in use was left out", memory.name());
    }
}

#[test]
fn a_guest_that_cannot_tell_what_is_free_stays_where_it_is() {
    let (asking, disks) = (that_ask(), disk_choices());
    for memory in &asking {
        for disk in &disks {
            let mut world = World::new(5, memory, disk.as_ref(), Fault::KnowsNothing);
            let verdict = world.run().expect("it ends");
            assert_eq!(verdict, Verdict::Aborted, "{} and {:?}", memory.name(), disk.as_ref().map(|d| d.name()));
            world.check(verdict).expect("it runs on at the source");
        }
    }
}
