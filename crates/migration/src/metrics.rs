//! The catalogue of metrics: every field of a row, machine-readable.
//!
//! The computation of a report, `whimbrel explain`, the data dictionary and the report's notes all read this table, so
//! one name never means two things. A field inside an object or a list is named by its path: `bytes.memory_first`,
//! `rounds.dirty_units`.

use serde::Serialize;
use whimbrel_model::Moment;

mod table;

pub use table::METRICS;

/// Which way a metric gets better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// Less is better.
    Smaller,
    /// More is better.
    Larger,
    /// It is a description, a setting or a cause.
    Neither,
}

/// Whose clock a metric is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clock {
    /// The source's monotonic clock alone.
    Source,
    /// The destination's monotonic clock alone.
    Destination,
    /// Instants of both hosts: the destination's are shifted by the measured offset, right to `clock_error_ns`.
    Both,
    /// Not a time, or one that no clock of a host gave.
    None,
}

/// One end of an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A fixed point of the trial.
    At(Moment),
    /// The later of two.
    Later(Moment, Moment),
}

/// One field of a row.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Metric {
    /// The field's path.
    pub name: &'static str,
    /// The unit: `ns`, `bytes`, `ratio`, ... or `text`, `list`, `map`.
    pub unit: &'static str,
    /// From which instant to which, where the metric is an interval of the trial. It is never negative.
    #[serde(skip)]
    pub between: Option<(Point, Point)>,
    /// Whose clock.
    pub clock: Clock,
    /// Which way is better.
    pub better: Better,
    /// What it is, in one or two sentences.
    pub definition: &'static str,
}

impl Metric {
    /// The two ends of an interval as text, such as `requested to setup_done`.
    pub fn interval(&self) -> Option<String> {
        self.between.map(|(from, to)| format!("{from} to {to}"))
    }
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Point::At(moment) => f.write_str(moment_name(*moment)),
            Point::Later(a, b) => write!(f, "the later of {} and {}", moment_name(*a), moment_name(*b)),
        }
    }
}

/// The metric of that name.
pub fn find(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name)
}

/// The metric of that name and everything inside the object of that name: `bytes` finds `bytes.total` too.
pub fn find_all(name: &str) -> Vec<&'static Metric> {
    METRICS
        .iter()
        .filter(|m| m.name == name || m.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
        .collect()
}

/// The name of a fixed point in files and messages.
pub fn moment_name(moment: Moment) -> &'static str {
    match moment {
        Moment::Requested => "requested",
        Moment::SetupDone => "setup_done",
        Moment::PauseRequested => "pause_requested",
        Moment::Paused => "paused",
        Moment::Drained => "drained",
        Moment::StateSaved => "state_saved",
        Moment::MemoryCarried => "memory_carried",
        Moment::DiskCarried => "disk_carried",
        Moment::StateLoaded => "state_loaded",
        Moment::HandedOver => "handed_over",
        Moment::Resumed => "resumed",
        Moment::MemoryWhole => "memory_whole",
        Moment::DiskWhole => "disk_whole",
        Moment::Whole => "whole",
        Moment::Released => "released",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_name_is_given_once() {
        let names: BTreeSet<_> = METRICS.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), METRICS.len());
    }

    #[test]
    fn names_end_in_their_units() {
        for metric in METRICS {
            for (unit, endings) in [
                ("ns", &["_ns", ".ns"][..]),
                ("bytes", &["_bytes", "bytes"]),
                ("bytes/s", &["_bytes_per_s", "limit"]),
                ("ratio", &["_ratio", "rho", "throttle"]),
                ("uj", &["_uj"]),
                ("w", &["_w"]),
            ] {
                let parts = metric.name.starts_with("downtime_parts_ns.") || metric.name.starts_with("bytes.");
                if metric.unit == unit && !parts {
                    assert!(endings.iter().any(|e| metric.name.ends_with(e)), "{} is in {unit}", metric.name);
                }
            }
        }
    }

    #[test]
    fn moments_are_named_as_in_the_event_log() {
        for (_, to) in METRICS.iter().filter_map(|m| m.between) {
            if let Point::At(moment) = to {
                assert_eq!(serde_json::to_value(moment).unwrap(), moment_name(moment));
            }
        }
    }

    #[test]
    fn an_object_is_found_with_its_fields() {
        assert!(find_all("bytes").iter().any(|m| m.name == "bytes.total"));
        assert!(find_all("byte").is_empty());
        assert_eq!(find("downtime_ns").unwrap().interval().as_deref(), Some("paused to resumed"));
    }
}
