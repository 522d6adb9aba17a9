//! Pages that are copies of the disk go by name where the destination has the blocks, and a guest that moves so is whole.

use crate::laws::moved;
use crate::support::{DISK_BYTES, Pair, RAM_BYTES, choice, guest, plan};
use serde_json::json;
use whimbrel_disk::{BuildContext, DISK_STRATEGIES, DiskChoice};
use whimbrel_memory::SCHEDULES;
use whimbrel_model::{Event, Family, PAGE_BYTES};

const PAGES: u64 = RAM_BYTES / PAGE_BYTES;

#[test]
fn a_page_that_the_destinations_disk_holds_crosses_as_its_name() {
    let pair = Pair::start();
    let schedules = || SCHEDULES.entries.iter().filter(|s| s.build.pushes && s.name != "faulty").map(|s| s.name);
    let disks = DISK_STRATEGIES.names().filter(|name| *name != "faulty");
    // Every disk strategy, with the schedules in turns.
    for ((seed, disk), schedule) in (1..).zip(disks).zip(schedules().cycle()) {
        // It writes to what the names stand for, and to the pages themselves.
        let busy = json!({"use": "mix", "content": {"cached": 0.5, "random": 0.5}, "parts": [
            {"use": "memory-intensive", "rate": "16 MiB/s", "read_share": 0.5},
            {"use": "disk-write", "rate": "8 MiB/s", "pattern": "random", "read_share": 0.5},
        ]});
        let mut guest = guest(seed, 2, busy);
        guest.disk.iter_mut().for_each(|disk| disk.base_shared = true);
        let memory = json!({"schedule": schedule, "select": "disk-backed", "encode": ["zero", "delta"]});
        let mut plan = plan(guest, memory, json!({"strategy": disk}));
        plan.coordinator = choice(json!({"use": "disk-first"}));
        plan.trips = 2;
        let needs = choice::<DiskChoice>(json!({"strategy": disk}));
        let needs = needs.needs(&BuildContext { blocks: DISK_BYTES / 4096, block_bytes: 4096, seed: 1 });
        for (report, events, _) in moved(&pair.hosts(), &plan) {
            let told = events.iter().filter_map(|event| match event {
                Event::Hinted { backed_pages, .. } => *backed_pages,
                _ => None,
            });
            let told: Vec<u64> = told.collect();
            let what = format!("{schedule} and {disk}: {} by name, told of {told:?}", report.pages.reference);
            assert_eq!(told.len(), 1, "{what}: asked once");
            assert!((PAGES / 3..PAGES * 2 / 3).contains(&told[0]), "{what}");
            if needs.mirror || needs.remains {
                assert_eq!(report.pages.reference, 0, "{what}");
                continue;
            }
            // Most have been written neither in memory nor on the disk.
            assert!(report.pages.reference > PAGES / 5, "{what}");
            let first = events.iter().filter_map(|event| match event {
                Event::Sent { family: Family::Memory, sent, .. } => Some(sent.first_bytes),
                _ => None,
            });
            let by_content = PAGES - report.pages.reference;
            let first: u64 = first.sum();
            assert!(first <= by_content * PAGE_BYTES + 8 * report.pages.reference, "{what}: {first} bytes at first");
        }
    }
}
