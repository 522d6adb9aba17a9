//! What a guest says is free needs not move, and a guest that moves without it is whole.

use crate::laws::moved;
use crate::support::{Pair, RAM_BYTES, guest, plan};
use serde_json::json;
use std::time::Duration;
use whimbrel_memory::SCHEDULES;
use whimbrel_model::{Event, Family, PAGE_BYTES};

#[test]
fn each_page_goes_or_is_left_out_and_what_is_in_use_goes() {
    let pair = Pair::start();
    let mut all_left_out = 0;
    for (seed, schedule) in (1..).zip(SCHEDULES.names().filter(|name| *name != "faulty")) {
        let memory = json!({"schedule": schedule, "select": "soft", "ask_every": 512});
        let desktop = json!({"use": "idle-desktop", "speed": 10000});
        let mut plan = plan(guest(seed, 2, desktop), memory, json!({}));
        plan.settle = Duration::from_millis(100);
        // There and back: what is free moves with the guest, and what was left out is not what the guest has at home.
        plan.trips = 2;
        for (report, events, _) in moved(&pair.hosts(), &plan) {
            let (mut first, mut left_out, mut answers) = (0, 0, 0);
            for event in events {
                match event {
                    Event::Sent { family: Family::Memory, sent, .. } => first += sent.first_units,
                    Event::LeftOut { pages } => left_out += pages,
                    Event::Hinted { types, .. } => {
                        assert_eq!(types, None, "a thread machine has no kernel");
                        answers += 1;
                    }
                    _ => {}
                }
            }
            assert!(answers > 0, "{schedule}: the guest was not asked");
            assert_eq!(report.pages.skipped, left_out, "{schedule}");
            // A page that was sent before it was freed, and written between, is left out too.
            let pages = RAM_BYTES / PAGE_BYTES;
            assert!(first + left_out >= pages && first <= pages, "{schedule}: {first} sent, {left_out} left out");
            all_left_out += left_out;
        }
    }
    // At one pause a desktop may have all that it freed in use again; at eight of them it doesn't.
    assert!(all_left_out > 0, "guests that free pages moved all of them");
}
