//! The guest's progress against the control run's, and the silences of its heartbeat.
//!
//! Trial and control run execute the same stream of operations. A stretch of the trial is compared with as long a
//! stretch of the control run that begins at the same operations, so that a workload with phases is compared with the
//! same phase. Beyond the control run's last reading the rate of its second half goes on: in the first, caches were cold.

use super::timeline::{Timeline, between};
use super::{Facts, Measured, Reasons, WorkSample, not_recorded};
use serde::{Deserialize, Serialize};
use whimbrel_model::event::Requests;
use whimbrel_model::{Event, Mark, Moment, Nanos, Recorded};

/// Progress may be extrapolated to an instant that lies at most this far outside the readings.
const REACH_NS: f64 = 50e6;

/// Progress is read every 10 ms or so: a stretch shorter than this says nothing of a rate.
const SHORTEST_NS: u64 = 50_000_000;

/// What the migration cost the guest, in work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "crate::metrics defines every field of a row")]
pub struct Work {
    pub baseline_units_per_s: Option<f64>,
    pub push_degradation_ratio: Option<f64>,
    pub pull_degradation_ratio: Option<f64>,
    pub lost_units: Option<f64>,
    pub delay_ns: Option<i64>,
    pub throttle_ns: Option<u64>,
}

impl Work {
    pub(super) fn of(events: &[Recorded], timeline: &Timeline<'_>, facts: &Facts, reasons: &mut Reasons<'_>) -> Self {
        let both = Comparison::new(events, timeline, facts);
        let with = |f: &dyn Fn(&Comparison) -> Measured<f64>| both.as_ref().map_err(Clone::clone).and_then(f);
        let window = |from, to| with(&|c| c.degradation(timeline.at(from)?, timeline.at(to)?));
        let whole = |c: &Comparison| Ok((timeline.at(Moment::Requested)?, timeline.finished()?, c.clone()));
        let ends = both.as_ref().map_err(Clone::clone).and_then(whole);
        let over = |f: &dyn Fn(&Comparison, i64, i64) -> Measured<f64>| {
            ends.as_ref().map_err(Clone::clone).and_then(|(from, to, c)| f(c, *from, *to))
        };
        Work {
            baseline_units_per_s: reasons.keep("work.baseline_units_per_s", over(&Comparison::baseline)),
            push_degradation_ratio: reasons
                .keep("work.push_degradation_ratio", window(Moment::SetupDone, Moment::PauseRequested)),
            pull_degradation_ratio: reasons.keep("work.pull_degradation_ratio", window(Moment::Resumed, Moment::Whole)),
            lost_units: reasons.keep("work.lost_units", over(&Comparison::lost)),
            delay_ns: reasons.keep("work.delay_ns", over(&Comparison::delay)).map(|ns| ns as i64),
            throttle_ns: reasons
                .unless_given("work.throttle_ns", || ())
                .and_then(|()| reasons.keep("work.throttle_ns", throttled(events, timeline))),
        }
    }
}

/// Progress over time: instants in nanoseconds, work in units, and operations of all vCPUs.
#[derive(Clone, Debug)]
struct Curve(Vec<Reading>);

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: f64,
    units: f64,
    operations: f64,
}

impl Curve {
    fn control(samples: &[WorkSample]) -> Measured<Self> {
        let readings = samples.iter().map(|s| Reading {
            at: s.at_ns as f64,
            units: s.units as f64,
            operations: s.operations.iter().map(|n| *n as f64).sum(),
        });
        Curve(readings.collect()).checked("the control run")
    }

    fn trial(events: &[Recorded], timeline: &Timeline<'_>) -> Measured<Self> {
        let pause = timeline.at(Moment::Paused).ok().zip(timeline.at(Moment::Resumed).ok());
        let mut readings: Vec<Reading> = Vec::new();
        let mut left_with: Option<Reading> = None;
        for recorded in events {
            let Event::Work { units, operations } = &recorded.event else { continue };
            let Some(at) = timeline.place(recorded) else { continue };
            let operations = operations.iter().map(|n| *n as f64).sum();
            let mut reading = Reading { at: at as f64, units: *units as f64, operations };
            if let (Mark::Source, Some((paused, _))) = (recorded.host, pause) {
                reading.at = reading.at.min(paused as f64);
                left_with = left_with.filter(|l| l.units > reading.units).or(Some(reading));
            }
            readings.push(reading);
        }
        // The guest does nothing while it is paused: without these two, work would be spread over the pause.
        if let (Some(left), Some((paused, resumed))) = (left_with, pause) {
            readings.extend([paused, resumed].map(|at| Reading { at: at as f64, ..left }));
        }
        readings.sort_by(|a, b| a.at.total_cmp(&b.at).then(a.operations.total_cmp(&b.operations)));
        Curve(readings).checked("the trial")
    }

    fn checked(self, whose: &str) -> Measured<Self> {
        let spread = self.0.first().zip(self.0.last()).is_some_and(|(a, b)| b.at > a.at);
        if spread { Ok(self) } else { Err(format!("the guest's work was read less than twice in {whose}")) }
    }

    fn first(&self) -> Reading {
        self.0[0]
    }

    fn last(&self) -> Reading {
        self.0[self.0.len() - 1]
    }

    /// What had been done at an instant, wherever it lies: before the readings by the mean rate, after them by the rate of
    /// their second half.
    fn at(&self, at: f64) -> Reading {
        self.along(at, |r| r.at)
    }

    /// When so many operations had been done.
    fn when(&self, operations: f64) -> Reading {
        self.along(operations, |r| r.operations)
    }

    /// Between which readings the curve has settled: what comes before has the cost of a cold start in it.
    fn second_half(&self) -> (Reading, Reading) {
        let (first, last) = (self.first(), self.last());
        let middle = self.0.partition_point(|r| r.at < (first.at + last.at) / 2.0);
        let middle = self.0[middle];
        if middle.at < last.at && middle.operations < last.operations { (middle, last) } else { (first, last) }
    }

    fn along(&self, value: f64, key: impl Fn(&Reading) -> f64) -> Reading {
        let (first, last) = (self.first(), self.last());
        let after = self.0.partition_point(|r| key(r) < value);
        let (a, b) = match after {
            0 => (first, last),
            n if n == self.0.len() => self.second_half(),
            n => (self.0[n - 1], self.0[n]),
        };
        let width = key(&b) - key(&a);
        // Operations may stand still between two readings: the earlier instant is when they had been reached.
        let share = if width > 0.0 { (value - key(&a)) / width } else { 0.0 };
        let mix = |x: f64, y: f64| x + (y - x) * share;
        Reading { at: mix(a.at, b.at), units: mix(a.units, b.units), operations: mix(a.operations, b.operations) }
    }
}

#[derive(Clone, Debug)]
struct Comparison {
    trial: Curve,
    control: Curve,
}

impl Comparison {
    fn new(events: &[Recorded], timeline: &Timeline<'_>, facts: &Facts) -> Measured<Self> {
        let control = facts.control.as_ref().ok_or_else(|| "there was no control run".to_owned())?;
        Ok(Comparison { trial: Curve::trial(events, timeline)?, control: Curve::control(&control.work)? })
    }

    /// The trial's progress at an instant that its readings cover.
    fn trial_at(&self, at: i64) -> Measured<Reading> {
        let at = at as f64;
        if (self.trial.first().at - REACH_NS..=self.trial.last().at + REACH_NS).contains(&at) {
            return Ok(self.trial.at(at));
        }
        Err("the guest's work was not read at both ends of the stretch".to_owned())
    }

    /// The same stretch of trial and control run: what the trial had done at both ends, and what the control run had.
    fn stretch(&self, from: i64, to: i64) -> Measured<[Reading; 4]> {
        let (begin, end) = (self.trial_at(from)?, self.trial_at(to)?);
        let start = self.control.when(begin.operations);
        Ok([begin, end, start, self.control.at(start.at + to as f64 - from as f64)])
    }

    fn degradation(&self, from: i64, to: i64) -> Measured<f64> {
        if between(from, to) < SHORTEST_NS {
            return Err("the stretch is shorter than 50 ms, too short to tell".to_owned());
        }
        let [begin, end, start, stop] = self.stretch(from, to)?;
        let would_be = stop.units - start.units;
        if would_be <= 0.0 {
            return Err("the control run does no work in this stretch".to_owned());
        }
        Ok(1.0 - (end.units - begin.units) / would_be)
    }

    fn baseline(&self, from: i64, to: i64) -> Measured<f64> {
        let [_, _, start, stop] = self.stretch(from, to)?;
        let ns = stop.at - start.at;
        if ns > 0.0 { Ok((stop.units - start.units) * 1e9 / ns) } else { Err("the trial took no time".to_owned()) }
    }

    fn lost(&self, from: i64, to: i64) -> Measured<f64> {
        let [begin, end, start, stop] = self.stretch(from, to)?;
        Ok((stop.units - start.units) - (end.units - begin.units))
    }

    fn delay(&self, from: i64, to: i64) -> Measured<f64> {
        let [_, end, start, _] = self.stretch(from, to)?;
        let same = self.control.when(end.operations);
        Ok((to as f64 - from as f64 - (same.at - start.at)).round())
    }
}

/// Share by time, summed, until the guest pauses or the last event.
fn throttled(events: &[Recorded], timeline: &Timeline<'_>) -> Measured<u64> {
    let shares = events.iter().filter_map(|e| match e.event {
        Event::Throttled { share } => Some((timeline.place(e)?, share)),
        _ => None,
    });
    let mut shares: Vec<(i64, f64)> = shares.collect();
    if shares.is_empty() {
        return if timeline.reached(Moment::Requested) { Ok(0) } else { Err(not_recorded()) };
    }
    shares.sort_by_key(|(at, _)| *at);
    let last = events.iter().filter_map(|e| timeline.place(e)).max().expect("there are events");
    let end = timeline.at(Moment::Paused).unwrap_or(last);
    let until = shares.iter().skip(1).map(|(at, _)| *at).chain([end]);
    let taken: f64 =
        shares.iter().zip(until).map(|((from, share), to)| between(*from, to.min(end)) as f64 * share).sum();
    Ok(taken as u64)
}

/// What the last event that `pick` picks of a host's says.
fn last_word<T>(events: &[Recorded], host: Mark, pick: impl Fn(&Event) -> Option<T>) -> Option<T> {
    events.iter().rev().filter(|recorded| recorded.host == host).find_map(|recorded| pick(&recorded.event))
}

/// A reading of a clock, for differences.
fn clock(read: Nanos) -> i64 {
    i64::try_from(read.0).unwrap_or(i64::MAX)
}

/// The longest silence of the heartbeat on either host or across the move, less the control run's.
pub(super) fn guest_gap(events: &[Recorded], timeline: &Timeline<'_>, facts: &Facts) -> Measured<u64> {
    let silence = |host| {
        last_word(events, host, |event| match event {
            Event::Silence { longest_ns, edge } => Some((*longest_ns, edge.clone())),
            _ => None,
        })
    };
    let absent = |host: &str| format!("the guest's heartbeat was not read at the {host}");
    let (mut longest, left) = silence(Mark::Source).ok_or_else(|| absent("source"))?;
    if timeline.reached(Moment::Resumed) {
        let (there, arrived) = silence(Mark::Destination).ok_or_else(|| absent("destination"))?;
        // One that was never heard says only that the gap is longer than the trial.
        if left.iter().any(|beat| beat.0 == 0) {
            return Err("the guest was not heard at the source before it left".to_owned());
        }
        if arrived.iter().any(|beat| beat.0 == 0) {
            return Err("the guest was not heard at the destination before the trial ended".to_owned());
        }
        let offset = facts.clock.ok_or_else(|| super::timeline::NO_OFFSET.to_owned())?.offset_ns;
        let across = left.iter().zip(&arrived).map(|(a, b)| between(clock(*a), clock(*b).saturating_sub(offset)));
        longest = longest.max(there).max(across.max().unwrap_or(0));
    }
    let control = facts.control.as_ref().and_then(|c| c.longest_silence_ns);
    let control = control.ok_or_else(|| "the control run's heartbeat was not read".to_owned())?;
    Ok(longest.saturating_sub(control))
}

/// How much less time passed by the guest's own clock than by the hosts', from its last heartbeat at the source to its first at the
/// destination.
pub(super) fn guest_clock_lag(events: &[Recorded], timeline: &Timeline<'_>, facts: &Facts) -> Measured<u64> {
    if !timeline.reached(Moment::Resumed) {
        return Err(not_recorded());
    }
    let at = |host| {
        let found = last_word(events, host, |event| match event {
            Event::GuestClock { heard, said } => Some((clock(*heard), clock(*said))),
            _ => None,
        });
        found.ok_or_else(|| format!("the guest has no clock of its own, or was not heard at the {}", host_name(host)))
    };
    let ((left, before), (arrived, after)) = (at(Mark::Source)?, at(Mark::Destination)?);
    let offset = facts.clock.ok_or_else(|| super::timeline::NO_OFFSET.to_owned())?.offset_ns;
    Ok(between(left, arrived.saturating_sub(offset)).saturating_sub(between(before, after)))
}

/// What a client of a service in the guest saw besides the longest gap between two answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "crate::metrics defines every field of a row")]
pub struct Service {
    pub requests: Option<u64>,
    pub lost_requests: Option<u64>,
}

impl Service {
    pub(super) fn of(events: &[Recorded], reasons: &mut Reasons<'_>) -> Self {
        let of = |host| {
            let found = last_word(events, host, |event| match event {
                Event::Served { requests } => Some(*requests),
                _ => None,
            });
            found.ok_or_else(|| format!("no client asked the guest at the {}", host_name(host)))
        };
        let counts = of(Mark::Source).and_then(|source| {
            let moved = events.iter().any(|e| e.event == Event::Moment { moment: Moment::Resumed });
            let there = if moved { of(Mark::Destination)? } else { Requests::default() };
            // What was open when the guest left is never answered there; what was open at the end was cut by it.
            let lost = source.lost + if moved { source.open } else { 0 } + there.lost;
            Ok((source.answered + there.answered + lost, lost))
        });
        Service {
            requests: reasons.keep("service.requests", counts.clone().map(|(all, _)| all)),
            lost_requests: reasons.keep("service.lost_requests", counts.map(|(_, lost)| lost)),
        }
    }
}

fn host_name(host: Mark) -> &'static str {
    match host {
        Mark::Source => "source",
        Mark::Destination => "destination",
    }
}

/// What the workload asks for and does, and how that compares with the link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "crate::metrics defines every field of a row")]
pub struct Offered {
    pub write_bytes_per_s: Option<f64>,
    pub achieved_bytes_per_s: Option<f64>,
    pub unique_dirty_bytes_per_s: Option<f64>,
    pub interval_ns: Option<u64>,
    pub working_set_bytes: Option<u64>,
    pub rho: Option<f64>,
}

impl Offered {
    pub(super) fn of(facts: &Facts, reasons: &mut Reasons<'_>) -> Self {
        let offered = &facts.offered;
        let unpaced =
            || "the workload states no rate of page writes: it writes as fast as it can, or to the disk".to_owned();
        // The first link is the one that the trip's state crosses.
        let link = facts.links.first();
        let rate = link.and_then(|l| {
            let achieved = || Some(l.payload_bytes as f64 * 1e9 / l.in_use_ns.filter(|ns| *ns > 0)? as f64);
            l.limit_bytes_per_s.or_else(achieved).filter(|rate| *rate > 0.0)
        });
        let rho = offered.unique_dirty_bytes_per_s.ok_or_else(|| "the unique dirty rate is not known".to_owned());
        let rho = rho.and_then(|d| Ok(d / rate.ok_or_else(|| "the link's rate is not known".to_owned())?));
        let mut keep = |field: &str, value: Option<f64>, why: String| reasons.keep(field, value.ok_or(why));
        Offered {
            write_bytes_per_s: keep("offered.write_bytes_per_s", offered.write_bytes_per_s, unpaced()),
            achieved_bytes_per_s: keep("offered.achieved_bytes_per_s", offered.achieved_bytes_per_s, not_recorded()),
            unique_dirty_bytes_per_s: keep(
                "offered.unique_dirty_bytes_per_s",
                offered.unique_dirty_bytes_per_s,
                not_recorded(),
            ),
            interval_ns: reasons.keep("offered.interval_ns", offered.interval_ns.ok_or_else(not_recorded)),
            working_set_bytes: reasons
                .keep("offered.working_set_bytes", offered.working_set_bytes.ok_or_else(not_recorded)),
            rho: reasons.keep("offered.rho", rho),
        }
    }
}
