//! A row: what one guest's trip was and what it cost, one JSON line in `trials.jsonl`.

use crate::experiment::{Cell, Experiment};
use crate::trials::Trip;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use whimbrel_migration::metrics::METRICS;
use whimbrel_migration::report::{Outcome, Report, Verdict};

/// One line of `trials.jsonl`. The catalogue of metrics defines every field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "whimbrel_migration::metrics defines every field of a row")]
pub struct Row {
    pub experiment: String,
    pub cell: String,
    pub factors: Map<String, Value>,
    pub trial: u32,
    pub guest: u32,
    pub trip: u32,
    #[serde(default)]
    pub attempt: u32,
    pub seed: u64,
    pub machine: String,
    pub accelerator: String,
    pub placement: String,
    pub workload: String,
    pub memory: String,
    pub disk: Option<String>,
    pub own: Option<Value>,
    #[serde(flatten)]
    pub report: Report,
}

impl Row {
    /// The row of a trip: its metrics computed from what was recorded.
    pub fn new(experiment: &Experiment, cell: &Cell, trial: u32, trip: &Trip) -> Row {
        let setting = &cell.setting;
        Row {
            experiment: experiment.name.clone(),
            cell: cell.name.clone(),
            factors: cell.factors.clone(),
            trial,
            guest: trip.guest,
            trip: trip.trip,
            attempt: trip.attempt,
            seed: experiment.trial_seed(trial),
            machine: setting.guest.machine.to_owned(),
            accelerator: trip.accelerator.clone(),
            placement: trip.placement.clone(),
            workload: setting.software.name().to_owned(),
            memory: setting.memory_name().to_owned(),
            disk: setting.disk_name().map(str::to_owned),
            own: trip.own.clone(),
            report: Report::from_events(&trip.events, &trip.facts),
        }
    }

    /// Whether the guest moved and its check found nothing.
    pub fn good(&self) -> bool {
        let fine = |verdict| verdict != Verdict::Different;
        let moved = matches!(self.report.outcome, Outcome::Completed);
        moved && fine(self.report.verify.memory) && fine(self.report.verify.disk)
    }

    /// The check of memory and disk in one word, the worse of the two.
    pub fn check(&self) -> Verdict {
        let both = [self.report.verify.memory, self.report.verify.disk];
        let worst = [Verdict::Different, Verdict::Equal].into_iter().find(|v| both.contains(v));
        worst.unwrap_or(Verdict::Skipped)
    }

    /// The check as a person reads it: with what of it was not compared.
    pub fn check_words(&self) -> &'static str {
        let has_disk = self.report.disk_bytes > 0;
        match (self.report.verify.memory, self.report.verify.disk) {
            (Verdict::Equal, Verdict::Skipped) if has_disk => "equal, its disk not compared",
            (Verdict::Skipped, Verdict::Equal) => "equal, its memory not compared",
            _ => crate::display::verdict_word(self.check()),
        }
    }

    /// The row as JSON, and the numbers in it that a summary can sum up, by their path in the catalogue.
    pub fn numbers(&self) -> Vec<(&'static str, Option<f64>)> {
        let value = serde_json::to_value(self).expect("a row is plain data");
        let fixed = [
            "trial",
            "guest",
            "trip",
            "attempt",
            "seed",
            "ram_bytes",
            "disk_bytes",
            "page_size_bytes",
            "block_size_bytes",
        ];
        let numeric = |unit: &str| !["text", "map", "list", "flag"].contains(&unit);
        let listed = |name: &str| name.starts_with("rounds.") || name.starts_with("links.");
        let summed = METRICS.iter().filter(|m| numeric(m.unit) && !fixed.contains(&m.name) && !listed(m.name));
        summed.map(|m| (m.name, at(&value, m.name).and_then(Value::as_f64))).collect()
    }
}

/// The value at a path of the catalogue.
fn at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(value, |value, key| value.get(key))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use whimbrel_migration::report::{Facts, LinkCounters};
    use whimbrel_model::event::{Family, Round};
    use whimbrel_model::{Event, Mark, Nanos, Recorded};

    pub(crate) fn experiment(text: &str) -> Experiment {
        Experiment::read("x.toml", "x", text, &[]).unwrap()
    }

    fn paths(value: &Value, path: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) if !["factors", "reasons", "own"].contains(&path) => {
                for (key, value) in fields {
                    let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    paths(value, &below, found);
                }
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                items.iter().for_each(|item| paths(item, path, found));
            }
            _ => drop(found.insert(path.to_owned())),
        }
    }

    #[test]
    fn the_fields_of_a_row_are_the_catalogue() {
        let experiment = experiment("[guest]\nram = \"16 MiB\"\ndisk = \"1 MiB\"");
        let round = Round {
            kind: Family::Memory,
            start_ns: 0,
            ns: 1,
            sent_units: 1,
            dirty_units: 1,
            again_units: 1,
            bytes: 1,
            limit: None,
            predicted_ns: None,
            throttle: 0.0,
        };
        let event = Recorded { at_ns: Nanos(0), host: Mark::Source, event: Event::Round { round } };
        let facts = Facts { disk_bytes: 1, links: vec![LinkCounters::default()], ..Facts::default() };
        let trip = Trip { events: vec![event], facts, ..Trip::default() };
        let row = Row::new(&experiment, &experiment.cells[0], 0, &trip);
        let mut found = BTreeSet::new();
        paths(&serde_json::to_value(&row).unwrap(), "", &mut found);
        let catalogue: BTreeSet<String> = METRICS.iter().map(|m| m.name.to_owned()).collect();
        assert_eq!(found, catalogue);
    }

    #[test]
    fn a_row_survives_its_file() {
        let experiment = experiment("[guest]\nram = \"16 MiB\"");
        let row = Row::new(&experiment, &experiment.cells[0], 3, &Trip::default());
        let again: Row = serde_json::from_str(&serde_json::to_string(&row).unwrap()).unwrap();
        assert_eq!(again, row);
        assert!(!row.good() && row.disk.is_none() && row.cell == "all");
    }
}
