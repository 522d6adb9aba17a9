//! The finished report: the measured half of a row, as a pure function of recorded events and a few plain facts.
//!
//! Nothing here reads a clock, a counter or a file. What could not be measured is `None`, and [`Report::reasons`] says
//! why, under the field's path. A report of a failed trial is as complete as its events allow.
//!
//! - [`facts`]: what the session knows besides the events: sizes, the clocks' offset, counters, the control run
//! - `timeline`: the fixed points on one clock, and every metric that is an interval between two of them
//! - `transfer`: bytes, pages, blocks, rounds, links, faults
//! - `work`: the guest's progress against the control run's, and its silences
//! - `energy`: what the hosts used, and what of it the migration cost

mod energy;
pub mod facts;
mod timeline;
mod transfer;
mod work;

#[cfg(test)]
mod tests;

pub use energy::Energy;
pub use facts::{
    Alive, ClockOffset, ControlRun, Cpu, EnergyFacts, Facts, HostPowers, LinkCounters, OfferedFacts, Outcome, Verdict,
    Verify, WorkSample,
};
pub use timeline::DowntimeParts;
pub use transfer::{Blocks, BytesSplit, Faults, LinkUse, OfWhich, Pages};
pub use whimbrel_energy::Kind as EnergyKind;
pub use work::{Offered, Service, Work};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use timeline::Timeline;
use whimbrel_model::event::{EndedBy, Round};
use whimbrel_model::{Event, Family, Moment, Recorded};

/// A value, or why there is none.
type Measured<T> = Result<T, String>;

/// Why pushing ended, by family; `None` where it did not, or there is no disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EndedBoth {
    /// Pages.
    pub memory: Option<EndedBy>,
    /// Blocks.
    pub disk: Option<EndedBy>,
}

/// What one guest's trip cost. The fields are those of a row, in its order; the catalogue defines each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "crate::metrics defines every field; a second definition here could part from it")]
pub struct Report {
    pub outcome: Outcome,
    pub reason: Option<String>,
    pub ended_by: EndedBoth,
    pub ram_bytes: u64,
    pub disk_bytes: u64,
    pub page_size_bytes: u64,
    pub block_size_bytes: u64,
    pub total_ns: Option<u64>,
    pub setup_ns: Option<u64>,
    pub push_ns: Option<u64>,
    pub pause_latency_ns: Option<u64>,
    pub downtime_ns: Option<u64>,
    pub downtime_parts_ns: DowntimeParts,
    pub predicted_downtime_ns: Option<u64>,
    pub guest_gap_ns: Option<u64>,
    pub guest_clock_lag_ns: Option<u64>,
    pub pull_ns: Option<u64>,
    pub eviction_ns: Option<u64>,
    pub memory_whole_ns: Option<u64>,
    pub disk_whole_ns: Option<u64>,
    pub clock_error_ns: Option<u64>,
    pub bytes: BytesSplit,
    pub links: Vec<LinkUse>,
    pub pages: Pages,
    pub blocks: Option<Blocks>,
    pub rounds: Vec<Round>,
    pub memory_faults: Option<Faults>,
    pub disk_faults: Option<Faults>,
    pub work: Work,
    /// Not in rows of before there were brought guests.
    #[serde(default)]
    pub service: Service,
    pub offered: Offered,
    pub cpu: Cpu,
    pub energy: Energy,
    pub verify: Verify,
    /// For each field above that is `None` because it could not be measured, by its path: why.
    pub reasons: BTreeMap<String, String>,
}

impl Report {
    /// Computes every metric from what was recorded on both hosts, in any order.
    pub fn from_events(events: &[Recorded], facts: &Facts) -> Report {
        let timeline = Timeline::new(events, facts);
        let mut reasons = Reasons { given: &facts.unmeasured, found: BTreeMap::new() };
        let (outcome, reason) = outcome(events, &timeline, facts);
        let span = |name: &str, reasons: &mut Reasons<'_>| reasons.keep(name, timeline.span(name));
        let mut report = Report {
            outcome,
            reason,
            ended_by: ended_by(events, &timeline),
            ram_bytes: facts.ram_bytes,
            disk_bytes: facts.disk_bytes,
            page_size_bytes: facts.page_size_bytes,
            block_size_bytes: facts.block_size_bytes,
            total_ns: span("total_ns", &mut reasons),
            setup_ns: span("setup_ns", &mut reasons),
            push_ns: span("push_ns", &mut reasons),
            pause_latency_ns: span("pause_latency_ns", &mut reasons),
            downtime_ns: span("downtime_ns", &mut reasons),
            downtime_parts_ns: DowntimeParts::of(&timeline, &mut reasons),
            predicted_downtime_ns: reasons.keep("predicted_downtime_ns", predicted(events)),
            guest_gap_ns: reasons.keep("guest_gap_ns", work::guest_gap(events, &timeline, facts)),
            guest_clock_lag_ns: reasons.keep("guest_clock_lag_ns", work::guest_clock_lag(events, &timeline, facts)),
            pull_ns: span("pull_ns", &mut reasons),
            eviction_ns: span("eviction_ns", &mut reasons),
            memory_whole_ns: span("memory_whole_ns", &mut reasons),
            disk_whole_ns: span("disk_whole_ns", &mut reasons),
            clock_error_ns: reasons.keep("clock_error_ns", clock_error(facts)),
            bytes: BytesSplit::of(events, facts, &mut reasons),
            links: transfer::links(facts, &timeline, &mut reasons),
            pages: Pages::of(events),
            blocks: (facts.disk_bytes > 0).then(|| reasons.unless_given("blocks", || Blocks::of(events))).flatten(),
            rounds: rounds(events),
            memory_faults: reasons
                .unless_given("memory_faults", || ())
                .map(|()| Faults::of(events, Family::Memory, &mut reasons)),
            disk_faults: (facts.disk_bytes > 0).then(|| Faults::of(events, Family::Disk, &mut reasons)),
            work: Work::of(events, &timeline, facts, &mut reasons),
            service: Service::of(events, &mut reasons),
            offered: Offered::of(facts, &mut reasons),
            cpu: facts.cpu,
            energy: Energy::default(),
            verify: facts.verify.clone(),
            reasons: BTreeMap::new(),
        };
        report.energy = Energy::of(events, &timeline, facts, &report, &mut reasons);
        reasons.keep("cpu.source_ns", facts.cpu.source_ns.ok_or_else(not_recorded));
        reasons.keep("cpu.destination_ns", facts.cpu.destination_ns.ok_or_else(not_recorded));
        let never = || Err::<(), _>(failure(events).unwrap_or_else(|| "no schedule said that it was ready".to_owned()));
        if report.ended_by.memory.is_none() {
            reasons.keep("ended_by.memory", never());
        }
        if report.ended_by.disk.is_none() {
            let why = if facts.disk_bytes == 0 { Err(NO_DISK.to_owned()) } else { never() };
            reasons.keep("ended_by.disk", why);
        }
        report.reasons = reasons.found;
        report
    }
}

/// Collects why fields are `None`. What the session itself knows of a field goes before what is found here.
struct Reasons<'a> {
    given: &'a BTreeMap<String, String>,
    found: BTreeMap<String, String>,
}

impl Reasons<'_> {
    /// What could be computed, unless the session knows that it would say nothing.
    fn unless_given<T>(&mut self, field: &str, value: impl FnOnce() -> T) -> Option<T> {
        match self.given.get(field) {
            None => Some(value()),
            Some(why) => self.keep(field, Err(why.clone())),
        }
    }

    fn keep<T>(&mut self, field: &str, value: Measured<T>) -> Option<T> {
        match value {
            Ok(value) => Some(value),
            Err(why) => {
                let why = self.given.get(field).cloned().unwrap_or(why);
                self.found.insert(field.to_owned(), why);
                None
            }
        }
    }
}

const NO_DISK: &str = "the guest has no disk";

fn not_recorded() -> String {
    "it was not recorded".to_owned()
}

/// What the first `Failed` event says.
fn failure(events: &[Recorded]) -> Option<String> {
    events.iter().find_map(|e| match &e.event {
        Event::Failed { reason } => Some(reason.clone()),
        _ => None,
    })
}

/// How the trial ended, and why if it is not simply completed.
fn outcome(events: &[Recorded], timeline: &Timeline<'_>, facts: &Facts) -> (Outcome, Option<String>) {
    let failed = failure(events);
    let reached = |moment| timeline.reached(moment);
    let whole = timeline.whole().is_some();
    let or = |text: &str| Some(failed.clone().unwrap_or_else(|| text.to_owned()));
    if let Some(outcome) = facts.outcome {
        return (outcome, failed);
    }
    if !reached(Moment::Requested) {
        return (Outcome::Failed, or("the migration was never requested"));
    }
    if whole && reached(Moment::Resumed) {
        return match (facts.alive, &failed) {
            (Some(Alive { destination: false, .. }), _) => (Outcome::Lost, or("the guest no longer runs")),
            (_, None) if !reached(Moment::Released) => {
                (Outcome::Completed, Some("the source was not released".to_owned()))
            }
            _ => (Outcome::Completed, failed),
        };
    }
    let frozen = [Moment::Paused, Moment::StateSaved, Moment::MemoryCarried];
    match facts.alive {
        Some(Alive { source: true, destination: true }) => (Outcome::Failed, or("the guest runs at both hosts")),
        Some(Alive { source: true, destination: false }) => (Outcome::Aborted, or("the migration did not finish")),
        Some(Alive { source: false, destination: true }) => {
            (Outcome::Lost, or("state that the guest lacks can no longer be had"))
        }
        Some(Alive { source: false, destination: false })
            if !reached(Moment::HandedOver) && frozen.iter().all(|m| reached(*m)) =>
        {
            (Outcome::Undecided, or("the link broke during the hand-over"))
        }
        Some(_) => (Outcome::Lost, or("the guest runs at neither host")),
        None if reached(Moment::HandedOver) || reached(Moment::Resumed) => {
            (Outcome::Lost, or("nothing was recorded after the hand-over"))
        }
        None => (Outcome::Aborted, or("nothing was recorded after the push")),
    }
}

/// The schedules' last words before the pause: what they say later no longer decides anything.
fn ended_by(events: &[Recorded], timeline: &Timeline<'_>) -> EndedBoth {
    let mut both = EndedBoth::default();
    let paused = timeline.at(Moment::Paused).unwrap_or(i64::MAX);
    for recorded in events {
        if timeline.place(recorded).is_none_or(|at| at > paused) {
            continue;
        }
        if let Event::Ready { family, ended_by } = &recorded.event {
            match family {
                Family::Memory => both.memory = *ended_by,
                Family::Disk => both.disk = *ended_by,
            }
        }
    }
    both
}

fn predicted(events: &[Recorded]) -> Measured<u64> {
    let last = events.iter().rev().find_map(|e| match e.event {
        Event::Predicted { ns } => Some(ns),
        _ => None,
    });
    last.ok_or_else(|| failure(events).unwrap_or_else(|| "nothing predicted the downtime".to_owned()))
}

fn clock_error(facts: &Facts) -> Measured<u64> {
    facts.clock.map(|c| c.error_ns).ok_or_else(|| timeline::NO_OFFSET.to_owned())
}

fn rounds(events: &[Recorded]) -> Vec<Round> {
    let rounds = events.iter().filter_map(|e| match &e.event {
        Event::Round { round } => Some(round.clone()),
        _ => None,
    });
    rounds.collect()
}
