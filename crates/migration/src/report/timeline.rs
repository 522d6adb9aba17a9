//! The fixed points of a trial on one clock, the source's, and the intervals between them.

use super::{Facts, Measured, NO_DISK, Reasons, failure};
use crate::metrics::{self, Point, moment_name};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use whimbrel_model::{Event, Mark, Moment, Recorded};

/// Why nothing that needs both clocks can be said.
pub(super) const NO_OFFSET: &str = "the offset between the hosts' clocks was not measured";

/// The instants that were reached, by the source's clock.
pub(super) struct Timeline<'a> {
    facts: &'a Facts,
    /// `None`: reached, by a clock whose offset is unknown.
    instants: BTreeMap<Moment, Option<i64>>,
    failure: Option<String>,
}

impl<'a> Timeline<'a> {
    pub(super) fn new(events: &[Recorded], facts: &'a Facts) -> Self {
        let mut timeline = Timeline { facts, instants: BTreeMap::new(), failure: failure(events) };
        for recorded in events {
            if let Event::Moment { moment } = recorded.event {
                let at = timeline.place(recorded);
                // A pause that was given up and asked for again counts from its last attempt.
                if moment != Moment::Requested || !timeline.instants.contains_key(&moment) {
                    timeline.instants.insert(moment, at);
                }
            }
        }
        timeline
    }

    /// An event's instant by the source's clock; `None` where the destination's offset is unknown.
    pub(super) fn place(&self, recorded: &Recorded) -> Option<i64> {
        let at = i64::try_from(recorded.at_ns.0).unwrap_or(i64::MAX);
        match recorded.host {
            Mark::Source => Some(at),
            Mark::Destination => self.facts.clock.map(|c| at.saturating_sub(c.offset_ns)),
        }
    }

    pub(super) fn reached(&self, moment: Moment) -> bool {
        self.instants.contains_key(&moment)
    }

    /// The instant of a fixed point, or why there is none.
    pub(super) fn at(&self, moment: Moment) -> Measured<i64> {
        let disk = matches!(moment, Moment::DiskWhole | Moment::DiskCarried);
        if disk && self.facts.disk_bytes == 0 {
            return Err(NO_DISK.to_owned());
        }
        if let Some(at) = self.instants.get(&moment) {
            return at.ok_or_else(|| NO_OFFSET.to_owned());
        }
        if moment == Moment::Whole
            && let Some((memory, disk)) = self.whole()
        {
            return Ok(self.at(memory)?.max(self.at(disk)?));
        }
        let name = moment_name(moment);
        Err(match &self.failure {
            Some(failure) => format!("`{name}` was not reached: {failure}"),
            None => format!("`{name}` was not reached"),
        })
    }

    /// The fixed points that together make the guest whole, if they were reached.
    pub(super) fn whole(&self) -> Option<(Moment, Moment)> {
        if self.reached(Moment::Whole) {
            return Some((Moment::Whole, Moment::Whole));
        }
        let disk = if self.facts.disk_bytes == 0 { Moment::MemoryWhole } else { Moment::DiskWhole };
        (self.reached(Moment::MemoryWhole) && self.reached(disk)).then_some((Moment::MemoryWhole, disk))
    }

    /// When the migration was over: whole, and the source released.
    pub(super) fn finished(&self) -> Measured<i64> {
        self.point(Point::Later(Moment::Whole, Moment::Released))
    }

    fn point(&self, point: Point) -> Measured<i64> {
        match point {
            Point::At(moment) => self.at(moment),
            Point::Later(a, b) => Ok(self.at(a)?.max(self.at(b)?)),
        }
    }

    /// A metric that the catalogue defines as an interval, in nanoseconds, never negative.
    pub(super) fn span(&self, metric: &str) -> Measured<u64> {
        let entry = metrics::find(metric).and_then(|m| m.between);
        let (from, to) = entry.expect("the catalogue gives the metric's two ends");
        Ok(between(self.point(from)?, self.point(to)?))
    }
}

/// The time from one instant to another, 0 if they lie the other way round (by the error of the clocks).
pub(super) fn between(from: i64, to: i64) -> u64 {
    u64::try_from(to.saturating_sub(from)).unwrap_or(0)
}

/// The downtime's parts, in nanoseconds. They follow one another and sum to the downtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "crate::metrics defines every field of a row")]
pub struct DowntimeParts {
    pub drain: Option<u64>,
    pub memory: Option<u64>,
    pub disk: Option<u64>,
    pub state: Option<u64>,
    pub hand_over: Option<u64>,
    pub resume: Option<u64>,
}

impl DowntimeParts {
    /// Each part ends at its own fixed point and starts where the part before it ended; what happens beside a longer
    /// part costs nothing.
    pub(super) fn of(timeline: &Timeline<'_>, reasons: &mut Reasons<'_>) -> Self {
        let ends = timeline.at(Moment::Paused).and_then(|from| Ok((from, timeline.at(Moment::Resumed)?)));
        let mut walk = Walk { ends, timeline, reasons };
        DowntimeParts {
            drain: walk.part("drain", Moment::Drained),
            memory: walk.part("memory", Moment::MemoryCarried),
            disk: walk.part("disk", Moment::DiskCarried),
            state: walk.part("state", Moment::StateLoaded),
            hand_over: walk.part("hand_over", Moment::HandedOver),
            resume: walk.part("resume", Moment::Resumed),
        }
    }
}

struct Walk<'w, 'a, 'r> {
    /// Where the next part starts, and the end of the downtime.
    ends: Measured<(i64, i64)>,
    timeline: &'w Timeline<'a>,
    reasons: &'w mut Reasons<'r>,
}

impl Walk<'_, '_, '_> {
    fn part(&mut self, name: &str, moment: Moment) -> Option<u64> {
        let field = format!("downtime_parts_ns.{name}");
        let Walk { ends, timeline, .. } = self;
        let walk = || {
            ends.clone().and_then(|(from, end)| {
                let to = timeline.at(moment)?.min(end).max(from);
                *ends = Ok((to, end));
                Ok(between(from, to))
            })
        };
        let part = self.reasons.unless_given(&field, walk)?;
        self.reasons.keep(&field, part)
    }
}
