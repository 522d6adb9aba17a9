//! A running machine moved by its log and its hints: what it calls free needn't go, and what is in use must, however fast pages
//! are freed and taken.

mod common;

use common::{Guest, plan};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::io::Write as _;
use whimbrel_machine::{Asked, Verification};
use whimbrel_memory::DirtyLog;
use whimbrel_memory::dirty_logs::DIRTY_LOGS;
use whimbrel_model::op::Op;
use whimbrel_model::stream::StreamError;
use whimbrel_model::{Extent, Paced, Page, Rng, Stream, UnitSet};

/// Pages that the vCPUs share among themselves; the others keep their first content.
const USED: u64 = 1536;

/// Frees pages of its share, takes them again, and reads and writes those in use, in no order, a quarter of a million times a
/// second.
struct Churn {
    share: Extent,
    state: State,
}

#[derive(Serialize, Deserialize)]
struct State {
    rng: Rng,
    free: UnitSet<Page>,
}

impl Churn {
    fn of(pages: u64, vcpus: u32) -> Vec<Box<dyn Stream>> {
        let count = USED / u64::from(vcpus);
        let make = |vcpu| {
            let share = Extent { start: u64::from(vcpu) * count, count };
            let state = State { rng: Rng::new(u64::from(vcpu) + 9), free: UnitSet::empty(pages) };
            Box::new(Churn { share, state }) as Box<dyn Stream>
        };
        (0..vcpus).map(make).collect()
    }
}

impl Stream for Churn {
    fn next(&mut self) -> Paced {
        let State { rng, free } = &mut self.state;
        let page = self.share.start + rng.below(self.share.count);
        let (first, words) = (rng.below(500) as u16, 1 + rng.below(8) as u16);
        let op = match rng.below(8) {
            _ if free.contains(page) => {
                free.remove(page);
                Op::Allocate { page }
            }
            0..3 => {
                free.insert(page);
                Op::Free { page }
            }
            3..6 => Op::Write { page, first, words },
            _ => Op::Read { page, first, words },
        };
        Paced { op, interval_ns: 4000, units: 1 }
    }

    fn save(&self) -> Vec<u8> {
        serde_json::to_vec(&self.state).unwrap()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StreamError> {
        self.state = serde_json::from_slice(state).unwrap();
        Ok(())
    }
}

/// Asks the machine while it runs, between takes of the log, and at the pause looks at the log alone. `lie` may change what it said.
/// Returns also how many pages were left out; `None`, said loudly, where this host has no such log.
fn move_softly(vcpus: u32, lie: impl Fn(&mut UnitSet<Page>)) -> Option<(Verification, u64)> {
    let plan = plan(json!({ "use": "idle-desktop" }), vcpus, false);
    let streams = || Churn::of(plan.shape.pages, vcpus);
    let (source, destination) = (plan.guest_of(streams(), true), plan.guest_of(streams(), false));
    let mut twin = plan.twin_of(streams());
    let armed = (DIRTY_LOGS.find("userfault").unwrap().build)(&source.ram).and_then(|mut log| log.arm().map(|()| log));
    let mut log: Box<dyn DirtyLog> = armed
        .inspect_err(|error| drop(writeln!(std::io::stderr(), "SKIPPED: moving by log and hints: {error}")))
        .ok()?;
    let mut page = [0; 4096];
    let mut copy = |index| {
        source.ram.read_page(index, &mut page);
        destination.ram.write_page(index, &page);
    };
    source.machine.run();
    go_on(&source, 1000);
    let (mut unsent, mut free) = (UnitSet::full(plan.shape.pages), UnitSet::empty(plan.shape.pages));
    for _ in 0..20 {
        unsent.union(&log.take().unwrap());
        free = source.machine.hints(Asked::Free, &|| false).unwrap().free;
        lie(&mut free);
        let mut now = unsent.clone();
        now.subtract(&free);
        now.iter().for_each(&mut copy);
        unsent.subtract(&now);
    }
    go_on(&source, 100);
    source.machine.pause();
    source.machine.drain().unwrap();
    let written = log.take().unwrap();
    unsent.union(&written);
    free.subtract(&written);
    free.intersect(&unsent);
    unsent.subtract(&free);
    unsent.iter().for_each(&mut copy);
    destination.machine.load_state(&source.machine.save_state().unwrap()).unwrap();
    assert_eq!(
        destination.machine.hints(Asked::Free, &|| false).unwrap(),
        source.machine.hints(Asked::Free, &|| false).unwrap(),
        "the masks move with the state"
    );
    assert!(source.check(&mut twin).is_good(), "the frozen source equals the twin, whatever it says");
    destination.run_for(1000);
    Some((destination.check(&mut twin), free.count()))
}

fn go_on(guest: &Guest, operations: u64) {
    let from = guest.machine.progress().operations;
    while guest.machine.progress().operations.iter().zip(&from).any(|(now, from)| *now < from + operations) {
        std::thread::yield_now();
    }
}

#[test]
fn what_a_machine_calls_free_needs_not_go() {
    let mut left_out = 0;
    for vcpus in [1, 2, 4, 1, 2, 4] {
        if let Some((found, pages)) = move_softly(vcpus, |_| {}) {
            assert!(found.is_good(), "{vcpus} vCPUs: {found:?}");
            left_out += pages;
        } else {
            return;
        }
    }
    assert!(left_out > 0, "a guest that frees pages all the time has moved all of them");
}

#[test]
fn a_machine_that_calls_pages_free_that_are_in_use_is_found_out() {
    let lie = |free: &mut UnitSet<Page>| free.insert_extent(Extent { start: USED, count: 10 });
    if let Some((found, _)) = move_softly(2, lie) {
        let first = found.first_difference.as_deref().unwrap_or_default();
        assert!(first.starts_with("page ") && !found.is_good(), "{found:?}");
    }
}
