//! The judge is judged: one page, block, operation or word of state that is dropped, stale, torn or repeated must be found
//! different, and named.

mod common;

use common::{Guest, plan, tables};
use serde_json::Value;
use whimbrel_disk::GuestDisk;
use whimbrel_machine::execute::{Memory, Registers};
use whimbrel_machine::{Twin, Verdict, Verification};
use whimbrel_model::op::{Op, operation_key};
use whimbrel_model::{PAGE_BYTES, Paced, Rng, Stream};
use whimbrel_workloads::BuildContext;

type PageImage = [u8; PAGE_BYTES as usize];

/// A guest that ran, was paused once in the middle, and equals its twin; with its image of the middle.
struct Frozen {
    guest: Guest,
    twin: Twin,
    state: Vec<u8>,
    earlier_pages: Vec<PageImage>,
    earlier_disk: Vec<u8>,
    earlier_state: Vec<u8>,
}

fn pages(guest: &Guest) -> Vec<PageImage> {
    let mut page = [0; PAGE_BYTES as usize];
    let copy = |index| {
        guest.ram.read_page(index, &mut page);
        page
    };
    (0..guest.ram.pages()).map(copy).collect()
}

fn disk(guest: &Guest) -> Vec<u8> {
    let mut bytes = vec![0; guest.plan.shape.sectors as usize * 512];
    guest.disk.as_ref().unwrap().read(0, &mut bytes).unwrap();
    bytes
}

fn frozen(table: &Value, operations: u64) -> Frozen {
    let plan = plan(table.clone(), 2, true);
    let (guest, mut twin) = (plan.guest(true), plan.twin());
    guest.run_for(operations);
    let (earlier_pages, earlier_disk) = (pages(&guest), disk(&guest));
    let earlier_state = guest.machine.save_state().unwrap();
    guest.run_for(operations);
    let state = guest.machine.save_state().unwrap();
    let found = guest.check_state(&mut twin, &state);
    assert!(found.is_good(), "{table}: {found:?}");
    Frozen { guest, twin, state, earlier_pages, earlier_disk, earlier_state }
}

impl Frozen {
    /// Puts `page` in place of page `index`, checks, and puts the right one back.
    fn with_page(&mut self, index: u64, page: &PageImage) -> Verification {
        let mut right = [0; PAGE_BYTES as usize];
        self.guest.ram.read_page(index, &mut right);
        self.guest.ram.write_page(index, page);
        let found = self.guest.check_state(&mut self.twin, &self.state);
        self.guest.ram.write_page(index, &right);
        found
    }

    fn with_disk(&mut self, offset: usize, bytes: &[u8]) -> Verification {
        let disk = self.guest.disk.clone().unwrap();
        let mut right = vec![0; bytes.len()];
        disk.read(offset as u64, &mut right).unwrap();
        disk.write(offset as u64, bytes).unwrap();
        let found = self.guest.check_state(&mut self.twin, &self.state);
        disk.write(offset as u64, &right).unwrap();
        found
    }

    fn with_state(&mut self, change: impl FnOnce(&mut Value)) -> Verification {
        let mut state: Value = serde_json::from_slice(&self.state).unwrap();
        change(&mut state);
        let state = serde_json::to_vec(&state).unwrap();
        let saved = whimbrel_machine::SavedState::from_bytes(&state, &self.guest.plan.shape).unwrap();
        let disk = self.guest.disk.clone().unwrap();
        let read = |at, buffer: &mut [u8]| disk.read(at, buffer);
        self.twin.compare(&saved, (&*self.guest.ram).into(), Some(&read)).unwrap()
    }
}

fn assert_names(found: &Verification, memory: bool, name: &str) {
    let verdict = if memory { found.memory } else { found.disk };
    assert_eq!(verdict, Verdict::Different, "{name}: {found:?}");
    assert!(!found.is_good());
    let first = found.first_difference.as_deref().unwrap();
    assert!(first.starts_with(name), "{first}, expected to name {name}");
}

#[test]
fn a_dropped_stale_or_torn_page_is_different() {
    for table in tables() {
        let mut frozen = frozen(&table, 300);
        let now = pages(&frozen.guest);
        let freed = frozen.twin.freed();
        let mut rng = Rng::new(1);
        // Dropped: any page whose content isn't zero.
        let held: Vec<usize> = (0..now.len()).filter(|p| !freed.contains(*p as u64) && now[*p] != [0; 4096]).collect();
        for _ in 0..4 {
            let page = held[rng.below(held.len() as u64) as usize];
            assert_names(&frozen.with_page(page as u64, &[0; 4096]), true, &format!("page {page},"));
            let mut flipped = now[page];
            flipped[rng.below(4096) as usize] ^= 1 << rng.below(8);
            assert_names(&frozen.with_page(page as u64, &flipped), true, &format!("page {page},"));
        }
        // Stale and torn: pages that were written in the second half.
        let changed = held.iter().filter(|p| now[**p] != frozen.earlier_pages[**p]).copied().collect::<Vec<_>>();
        assert!(!changed.is_empty() || table["use"] == "idle", "{table} changed no page");
        for page in changed.into_iter().take(4) {
            let stale = frozen.earlier_pages[page];
            assert_names(&frozen.with_page(page as u64, &stale), true, &format!("page {page},"));
            let at = (0..4096).find(|at| stale[*at] != now[page][*at]).unwrap() / 8 * 8;
            let mut torn = now[page];
            torn[at..at + 8].copy_from_slice(&stale[at..at + 8]);
            let found = frozen.with_page(page as u64, &torn);
            assert_names(&found, true, &format!("page {page}, offset {at}:"));
        }
        // Two pages that changed places.
        let (a, b) = (held[0], held[held.len() / 2]);
        if now[a] != now[b] {
            assert_names(&frozen.with_page(a as u64, &now[b]), true, &format!("page {a},"));
        }
    }
}

#[test]
fn a_dropped_stale_or_torn_block_is_different() {
    for table in tables() {
        let mut frozen = frozen(&table, 300);
        let now = disk(&frozen.guest);
        let filled = frozen.guest.plan.shape.filled_sectors as usize * 512;
        let mut rng = Rng::new(2);
        for _ in 0..4 {
            let at = rng.below(filled as u64 / 512) as usize * 512;
            if now[at..at + 512] != [0; 512] {
                assert_names(&frozen.with_disk(at, &[0; 512]), false, &format!("block {},", at / 4096));
            }
            // A write that went astray.
            let astray = now.len() - 512 * (1 + rng.below(100) as usize);
            let name = format!("block {},", astray / 4096);
            let flipped = now[astray] ^ 1;
            assert_names(&frozen.with_disk(astray, &[flipped]), false, &name);
        }
        let sectors = (0..now.len()).step_by(512);
        let changed: Vec<usize> =
            sectors.filter(|at| now[*at..at + 512] != frozen.earlier_disk[*at..at + 512]).collect();
        for at in changed.iter().step_by(changed.len() / 4 + 1) {
            let stale = frozen.earlier_disk[*at..at + 512].to_vec();
            assert_names(&frozen.with_disk(*at, &stale), false, &format!("block {},", at / 4096));
        }
        if table.to_string().contains("disk-write") {
            assert!(!changed.is_empty(), "{table} changed no block");
        }
    }
}

#[test]
fn a_changed_state_is_different() {
    for table in tables() {
        let mut frozen = frozen(&table, 100);
        for vcpu in 0..2 {
            let name = format!("vCPU {vcpu}:");
            for (key, change) in [("operations", 1), ("digest", 1), ("units", 1)] {
                let found = frozen.with_state(|state| {
                    let count = state["vcpus"][vcpu]["state"][key].as_u64().unwrap();
                    state["vcpus"][vcpu]["state"][key] = Value::from(count ^ change);
                });
                assert_names(&found, true, &name);
            }
            let earlier: Value = serde_json::from_slice(&frozen.earlier_state).unwrap();
            let found = frozen.with_state(|s| s["vcpus"][vcpu]["stream"] = earlier["vcpus"][vcpu]["stream"].clone());
            assert_names(&found, true, &name);
            let freed = serde_json::json!([{ "start": 7, "count": 1 }]);
            let found = frozen.with_state(|state| state["vcpus"][vcpu]["free"] = freed);
            assert_names(&found, true, &name);
            let found = frozen.with_state(|state| state["vcpus"][vcpu]["state"]["idle_left"] = Value::from(1));
            assert!(found.is_good(), "what is left of an Idle is time, not state");
        }
        let found = frozen.with_state(|state| {
            let other = state["vcpus"][1].clone();
            state["vcpus"][1] = std::mem::replace(&mut state["vcpus"][0], other);
        });
        // Two idle vCPUs that did as much are the same.
        assert!(!found.is_good() || table["use"] == "idle", "{table}: two vCPUs changed places");
    }
}

/// The guest repeats or loses one operation and then goes on: the difference never goes away.
#[test]
fn a_repeated_or_lost_operation_is_different_for_good() {
    for table in tables().into_iter().filter(|t| t["use"] != "idle") {
        for replay in [true, false] {
            let plan = plan(table.clone(), 1, true);
            let (guest, mut twin) = (plan.guest(true), plan.twin());
            guest.run_for(100);
            let operations = guest.machine.progress().operations[0];
            let Some((at, op)) = last_effective(&plan, operations) else { continue };
            let key = operation_key(plan.seed, 0, at);
            if replay {
                // What an engine does that puts a vCPU back by one operation without its memory.
                let mut registers = Registers::new(plan.shape.pages);
                let disk = guest.disk.clone().unwrap();
                let mut disk = Some(&*disk as &dyn GuestDisk);
                registers.execute(&Paced { op, interval_ns: 0, units: 0 }, key, &mut &*guest.ram, &mut disk).unwrap();
            } else if let Op::Write { page, first, words } = op {
                // What one does that loses it: here, that one word was never written.
                let mut word = u64::from(first);
                (&*guest.ram).change(page, usize::from(first)..usize::from(first + words), |index, now| {
                    if index as u64 == word { mangle(&mut word, now) } else { now }
                });
            } else {
                continue;
            }
            let found = guest.check(&mut twin);
            if matches!(op, Op::Write { .. }) {
                assert!(!found.is_good(), "{table}: {op:?} repeated: {replay}");
                guest.run_for(50);
                assert!(!guest.check(&mut twin).is_good(), "{table}: {op:?} repeated: {replay}, later");
            }
        }
    }
}

fn mangle(at: &mut u64, now: u64) -> u64 {
    *at = u64::MAX;
    !now
}

/// The last operation that wrote memory, with its number.
fn last_effective(plan: &common::Plan, operations: u64) -> Option<(u64, Op)> {
    let mut stream: Box<dyn Stream> = plan.choice.build(&BuildContext::new(plan.shape, plan.seed)).unwrap().remove(0);
    let ops = (0..operations).map(|at| (at, stream.next().op));
    ops.filter(|(_, op)| matches!(op, Op::Write { .. })).last()
}

/// An engine that replays the last stretch from a stale state onto the newer memory.
#[test]
fn a_stale_state_over_newer_memory_is_different_for_good() {
    for table in tables().into_iter().filter(|t| t["use"] != "idle") {
        let mut frozen = frozen(&table, 300);
        frozen.guest.machine.load_state(&frozen.earlier_state).unwrap();
        let before = frozen.guest.machine.progress().operations;
        assert!(before.iter().zip(frozen.twin.operations()).all(|(a, b)| *a < b));
        // It comes past the twin again, and is not what it should be.
        while frozen.guest.machine.progress().operations.iter().zip(frozen.twin.operations()).any(|(a, b)| *a < b) {
            frozen.guest.run_for(100);
        }
        let found = frozen.guest.check(&mut frozen.twin);
        assert!(!found.is_good(), "{table}: {found:?}");
    }
}
