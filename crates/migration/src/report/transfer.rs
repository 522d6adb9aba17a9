//! What crossed: bytes, pages, blocks, links, and the waits for what was missing.

use super::timeline::Timeline;
use super::{Facts, Measured, Reasons, not_recorded};
use serde::{Deserialize, Serialize};
use whimbrel_model::event::Sent;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{Event, Family, Moment, Recorded};

/// The payload that crossed, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "crate::metrics defines every field of a row")]
pub struct BytesSplit {
    pub memory_first: u64,
    pub memory_again: Option<u64>,
    pub disk_first: u64,
    pub disk_again: Option<u64>,
    pub control: Option<u64>,
    pub total: Option<u64>,
    pub of_which: OfWhich,
}

/// Parts of the payload that are counted above too, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "crate::metrics defines every field of a row")]
pub struct OfWhich {
    pub unused: Option<u64>,
    pub reference: u64,
    pub offer: u64,
}

impl BytesSplit {
    pub(super) fn of(events: &[Recorded], facts: &Facts, reasons: &mut Reasons<'_>) -> Self {
        let (memory, disk) = (sum(events, Family::Memory, |_, _| true), sum(events, Family::Disk, |_, _| true));
        let data = memory.bytes() + disk.bytes();
        let control = match facts.control_bytes {
            Some(control) => Ok(control),
            None => Err("what crossed the links was not counted".to_owned()),
        };
        let unused = facts.unused_bytes.ok_or_else(|| "what the guest never used was not counted".to_owned());
        let control = reasons.keep("bytes.control", control);
        let total = control.map(|c| c + data).ok_or_else(|| "bytes.control is not known".to_owned());
        BytesSplit {
            memory_first: memory.first_bytes,
            memory_again: reasons.unless_given("bytes.memory_again", || memory.again_bytes),
            disk_first: disk.first_bytes,
            disk_again: reasons.unless_given("bytes.disk_again", || disk.again_bytes),
            control,
            total: reasons.keep("bytes.total", total),
            of_which: OfWhich {
                unused: reasons.keep("bytes.of_which.unused", unused),
                reference: memory.reference_bytes + disk.reference_bytes,
                offer: memory.offer_bytes + disk.offer_bytes,
            },
        }
    }
}

/// The sum of what was sent of one family in the stages, and by demand or not, that `wanted` accepts.
fn sum(events: &[Recorded], family: Family, wanted: impl Fn(Stage, bool) -> bool) -> Sent {
    let mut total = Sent::default();
    for recorded in events {
        if let Event::Sent { family: of, stage, demanded, sent } = &recorded.event
            && *of == family
            && wanted(*stage, *demanded)
        {
            total.add(sent);
        }
    }
    total
}

/// How pages crossed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "crate::metrics defines every field of a row")]
pub struct Pages {
    pub raw: u64,
    pub zero: u64,
    pub delta: u64,
    pub compressed: u64,
    pub reference: u64,
    pub skipped: u64,
}

impl Pages {
    pub(super) fn of(events: &[Recorded]) -> Self {
        let sent = sum(events, Family::Memory, |_, _| true);
        let skipped = events.iter().map(|e| match e.event {
            Event::Deferred { pages } | Event::LeftOut { pages } => pages,
            _ => 0,
        });
        Pages {
            raw: sent.raw_units,
            zero: sent.zero_units,
            delta: sent.delta_units,
            compressed: sent.compressed_units,
            reference: sent.reference_units,
            skipped: skipped.sum(),
        }
    }
}

/// How blocks crossed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "crate::metrics defines every field of a row")]
pub struct Blocks {
    pub pushed: u64,
    pub pulled: u64,
    pub demanded: u64,
    pub zero: u64,
}

impl Blocks {
    pub(super) fn of(events: &[Recorded]) -> Self {
        let pull = |stage| stage == Stage::Pull;
        let all = sum(events, Family::Disk, |_, _| true);
        let demanded = sum(events, Family::Disk, |_, demanded| demanded).units();
        let pulled = sum(events, Family::Disk, |stage, demanded| pull(stage) && !demanded).units();
        Blocks { pushed: all.units() - demanded - pulled, pulled, demanded, zero: all.zero_units }
    }
}

/// One direction of a link: what it may carry and what it did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "crate::metrics defines every field of a row")]
pub struct LinkUse {
    pub from: String,
    pub to: String,
    pub limit_bytes_per_s: Option<f64>,
    pub achieved_bytes_per_s: Option<f64>,
    pub payload_bytes: u64,
    pub wire_bytes: Option<u64>,
}

pub(super) fn links(facts: &Facts, timeline: &Timeline<'_>, reasons: &mut Reasons<'_>) -> Vec<LinkUse> {
    let trial = || Ok(super::timeline::between(timeline.at(Moment::Requested)?, timeline.finished()?));
    let mut links = Vec::new();
    for link in &facts.links {
        let window: Measured<u64> = link.in_use_ns.map_or_else(trial, Ok);
        let achieved = window.and_then(|ns| match ns {
            0 => Err("the link was in use for no time".to_owned()),
            // Framing crosses too: what the link achieved is all that went over it.
            ns => Ok(link.wire_bytes.unwrap_or(link.payload_bytes) as f64 * 1e9 / ns as f64),
        });
        links.push(LinkUse {
            from: link.from.clone(),
            to: link.to.clone(),
            limit_bytes_per_s: link.limit_bytes_per_s,
            achieved_bytes_per_s: reasons.keep("links.achieved_bytes_per_s", achieved),
            payload_bytes: link.payload_bytes,
            wire_bytes: reasons.keep("links.wire_bytes", link.wire_bytes.ok_or_else(not_recorded)),
        });
    }
    links
}

/// The guest's waits for missing units for which a request was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "crate::metrics defines every field of a row")]
pub struct Faults {
    pub count: u64,
    pub in_flight: u64,
    pub sum_ns: u64,
    pub p50_ns: Option<u64>,
    pub p99_ns: Option<u64>,
    pub max_ns: Option<u64>,
}

impl Faults {
    pub(super) fn of(events: &[Recorded], family: Family, reasons: &mut Reasons<'_>) -> Self {
        let mut waits = Vec::new();
        let (mut count, mut in_flight) = (0, 0);
        for recorded in events {
            if let Event::Fault { family: of, ns, in_flight: flying } = recorded.event
                && of == family
            {
                count += 1;
                in_flight += u64::from(flying);
                // What was on its way already came without a round trip: it says nothing of what a request costs.
                if !flying {
                    waits.push(ns);
                }
            }
        }
        waits.sort_unstable();
        let object = match family {
            Family::Memory => "memory_faults",
            Family::Disk => "disk_faults",
        };
        // The nearest rank: the smallest wait that at least this share of all waits don't exceed.
        let mut rank = |field: &str, percent: usize| {
            let at = (waits.len() * percent).div_ceil(100).max(1) - 1;
            let wait =
                waits.get(at).copied().ok_or_else(|| "no request fetched what was not already on its way".to_owned());
            reasons.keep(&format!("{object}.{field}"), wait)
        };
        Faults {
            count,
            in_flight,
            p50_ns: rank("p50_ns", 50),
            p99_ns: rank("p99_ns", 99),
            max_ns: rank("max_ns", 100),
            sum_ns: waits.iter().fold(0, |sum: u64, ns| sum.saturating_add(*ns)),
        }
    }
}
