//! The summary: each metric of each cell over its trials.
//!
//! The unit of replication is one row. Values of rows that did not complete are left out and counted: a mean that
//! mixes them in would say nothing of either. Likewise energies: where some rows are measured and others modelled, only the
//! measured ones are summed up. The trips of one trial are one sample of energy: their mean, so that a batch of short
//! migrations there and back rises above the meter's noise.

use crate::experiment::Experiment;
use crate::laws;
use crate::row::Row;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use whimbrel_migration::report::{EnergyKind, Outcome};
use whimbrel_migration::session::UNKNOWN;
use whimbrel_model::rng::{Rng, derive};

/// Resamples of a bootstrap.
const RESAMPLES: usize = 2000;
/// Fewer values than this have no interval.
const FEWEST: usize = 3;

/// The summary of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The experiment.
    pub experiment: String,
    /// What it asks.
    pub question: String,
    /// The seed of the bootstrap.
    pub bootstrap_seed: u64,
    /// Whether the run was ended before its last trial.
    pub interrupted: bool,
    /// Where the energies come from that are summed up; null: no row has any.
    pub energy_kind: Option<EnergyKind>,
    /// Completed rows whose energies are of the other kind, and so left out.
    pub energy_left_out: usize,
    /// Laws of the energy overhead, fitted to the energies that are summed up; empty without any.
    pub energy_laws: Vec<Value>,
    /// Rows by what executed their guests, where that is known.
    pub accelerators: BTreeMap<String, usize>,
    /// The cells, in the experiment's order.
    pub cells: Vec<CellSummary>,
}

/// One cell over its trials.
#[derive(Clone, Debug, Serialize)]
pub struct CellSummary {
    /// The cell.
    pub cell: String,
    /// Its varied keys.
    pub factors: Map<String, Value>,
    /// Everything it fixes.
    pub setting: Value,
    /// Rows.
    pub n: usize,
    /// Rows that completed.
    pub completed: usize,
    /// Rows that did not.
    pub failed: usize,
    /// Rows by outcome.
    pub outcomes: BTreeMap<&'static str, usize>,
    /// Rows by the worse of both checks.
    pub checks: BTreeMap<&'static str, usize>,
    /// The metrics of the completed rows.
    pub metrics: BTreeMap<&'static str, Spread>,
}

/// The values of one metric.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// How many rows have a value.
    pub n: usize,
    /// The median.
    pub median: Option<f64>,
    /// The interquartile range.
    pub iqr: Option<f64>,
    /// The bootstrap's 95 % interval of the median; null with fewer than three values.
    pub ci95: Option<[f64; 2]>,
    /// Every value, in the order of the rows.
    pub values: Vec<f64>,
}

impl Summary {
    /// Sums up the rows of an experiment.
    pub fn of(experiment: &Experiment, rows: &[Row], interrupted: bool) -> Summary {
        let of_kind = |kind| rows.iter().filter(|r| r.report.energy.kind == Some(kind)).count();
        let (measured, modelled) = (of_kind(EnergyKind::Measured), of_kind(EnergyKind::Modelled));
        let energy_kind = match (measured, modelled) {
            (0, 0) => None,
            (0, _) => Some(EnergyKind::Modelled),
            _ => Some(EnergyKind::Measured),
        };
        let cells = experiment.cells.iter().enumerate().map(|(index, cell)| {
            let rows: Vec<&Row> = rows.iter().filter(|r| r.cell == cell.name).collect();
            let completed: Vec<&&Row> = rows.iter().filter(|r| r.report.outcome == Outcome::Completed).collect();
            let mut values: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
            for (name, value) in completed.iter().flat_map(|row| row.numbers()).filter(|(name, _)| !of_energy(name)) {
                values.entry(name).or_default().extend(value);
            }
            values.extend(energies(&completed, energy_kind));
            let seed = derive(experiment.seed, index as u64);
            let spread =
                |(at, (name, values)): (usize, (_, Vec<f64>))| (name, Spread::of(values, derive(seed, at as u64)));
            let mut outcomes = BTreeMap::new();
            let mut checks = BTreeMap::new();
            for row in &rows {
                *outcomes.entry(crate::display::outcome_word(row.report.outcome)).or_insert(0) += 1;
                *checks.entry(row.check_words()).or_insert(0) += 1;
            }
            CellSummary {
                cell: cell.name.clone(),
                factors: cell.factors.clone(),
                setting: cell.setting.resolved(),
                n: rows.len(),
                completed: completed.len(),
                failed: rows.len() - completed.len(),
                outcomes,
                checks,
                metrics: values.into_iter().enumerate().map(spread).collect(),
            }
        });
        Summary {
            experiment: experiment.name.clone(),
            question: experiment.question.clone(),
            bootstrap_seed: experiment.seed,
            interrupted,
            energy_kind,
            energy_laws: energy_kind.map_or_else(Vec::new, |kind| {
                laws::overheads(&laws::of_kind(rows, kind)).iter().map(laws::Fitted::data).collect()
            }),
            accelerators: accelerators(rows),
            energy_left_out: if measured > 0 { modelled } else { 0 },
            cells: cells.collect(),
        }
    }
}

fn accelerators(rows: &[Row]) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for row in rows.iter().filter(|row| row.accelerator != UNKNOWN) {
        *found.entry(row.accelerator.clone()).or_insert(0) += 1;
    }
    found
}

fn of_energy(metric: &str) -> bool {
    metric.starts_with("energy.")
}

/// The energies of rows of one kind: a value a guest and trial, the mean of its trips. Where a trip has none, the trial has
/// none.
fn energies(rows: &[&&Row], kind: Option<EnergyKind>) -> BTreeMap<&'static str, Vec<f64>> {
    let mut batches: BTreeMap<(u32, u32), Vec<&Row>> = BTreeMap::new();
    for row in rows {
        batches.entry((row.trial, row.guest)).or_default().push(row);
    }
    let mut found: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    for batch in batches.values() {
        let alike = batch.iter().all(|row| row.report.energy.kind == kind && kind.is_some());
        let numbers: Vec<Vec<(&'static str, Option<f64>)>> = batch.iter().map(|row| row.numbers()).collect();
        for (at, (name, _)) in numbers[0].iter().enumerate().filter(|(_, (name, _))| of_energy(name)) {
            let values: Option<Vec<f64>> = numbers.iter().map(|trip| trip[at].1).collect();
            let mean = values.filter(|_| alike).map(|values| values.iter().sum::<f64>() / values.len() as f64);
            found.entry(name).or_default().extend(mean);
        }
    }
    found
}

impl Summary {
    /// That the guests were not all executed by the same, if so.
    pub fn mixture(&self) -> Option<String> {
        let counts: Vec<String> = self.accelerators.iter().map(|(name, rows)| format!("{name} in {rows}")).collect();
        let told = || format!("rows of different accelerators are not to be compared: {}", counts.join(", "));
        (counts.len() > 1).then(told)
    }
}

impl CellSummary {
    /// The median of a metric.
    pub fn median(&self, metric: &str) -> Option<f64> {
        self.metrics.get(metric)?.median
    }
}

impl Spread {
    /// The spread of values; the same values and seed give the same interval.
    pub fn of(values: Vec<f64>, seed: u64) -> Spread {
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let iqr = quantile(&sorted, 0.75).zip(quantile(&sorted, 0.25)).map(|(q3, q1)| q3 - q1);
        Spread { n: values.len(), median: quantile(&sorted, 0.5), iqr, ci95: interval(&sorted, seed), values }
    }
}

/// A quantile of sorted values, interpolated between the two nearest.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let at = share * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(low + (high - low) * at.fract())
}

/// The percentile bootstrap of the median.
fn interval(sorted: &[f64], seed: u64) -> Option<[f64; 2]> {
    if sorted.len() < FEWEST {
        return None;
    }
    let mut rng = Rng::new(seed);
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            let mut drawn: Vec<f64> = sorted.iter().map(|_| sorted[rng.below(sorted.len() as u64) as usize]).collect();
            drawn.sort_by(f64::total_cmp);
            quantile(&drawn, 0.5)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    Some([quantile(&medians, 0.025)?, quantile(&medians, 0.975)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_are_interpolated() {
        let values = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(quantile(&values, 0.5), Some(2.5));
        assert_eq!(quantile(&values, 0.25), Some(1.75));
        assert_eq!(quantile(&[], 0.5), None);
        let one = Spread::of(vec![7.0], 1);
        assert_eq!((one.median, one.iqr, one.ci95), (Some(7.0), Some(0.0), None));
    }

    proptest! {
        #[test]
        fn an_interval_holds_the_median_and_repeats(values in prop::collection::vec(0.0f64..1e9, 3..40), seed in any::<u64>()) {
            let spread = Spread::of(values.clone(), seed);
            let [low, high] = spread.ci95.unwrap();
            let median = spread.median.unwrap();
            prop_assert!(low <= median && median <= high, "{low} <= {median} <= {high}");
            prop_assert_eq!(Spread::of(values, seed), spread);
        }
    }
}
