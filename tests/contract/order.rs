//! What a coordinator promises: who goes first, and that nothing is lost for it.

use crate::laws::{busy, moved};
use crate::support::{Pair, choice, guest, plan};
use serde_json::json;
use whimbrel_migration::COORDINATORS;
use whimbrel_migration::commands::LinkSpec;
use whimbrel_model::{Event, Family};

/// The first event of this sort, by its place in the source's record.
fn first(events: &[Event], is: impl Fn(&Event) -> bool) -> Option<usize> {
    events.iter().position(is)
}

#[test]
fn every_coordinator_moves_a_guest_whole_and_in_its_order() {
    let pair = Pair::start();
    let rate = Some(60e6);
    for (seed, name) in (1..).zip(COORDINATORS.names()) {
        let mut plan = plan(guest(seed, 2, busy()), json!({}), json!({"strategy": "iterative"}));
        plan.coordinator = choice(json!({ "use": name }));
        plan.source_link =
            LinkSpec { egress_bytes_per_s: rate, ingress_bytes_per_s: None, delay_ns: 0, path_bytes_per_s: rate };
        plan.destination_link = plan.source_link;
        let (_, events, _) = &moved(&pair.hosts(), &plan)[0];
        let sent = |of| first(events, |e| matches!(e, Event::Sent { family, .. } if *family == of));
        let ready = |of| first(events, |e| matches!(e, Event::Ready { family, ended_by: Some(_) } if *family == of));
        let (memory, disk) = (Family::Memory, Family::Disk);
        match name {
            "disk-first" => assert!(ready(disk) < sent(memory), "{name}: memory was pushed before the disk was ready"),
            "memory-first" => {
                assert!(ready(memory) < sent(disk), "{name}: the disk was pushed before memory was ready")
            }
            // What goes first is then left to the link.
            _ => {}
        }
    }
}
