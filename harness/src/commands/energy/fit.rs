//! `whimbrel energy fit` and `calibrate`: laws of energy, fitted to the rows of runs.
//!
//! Only completed rows with an energy are used, all of one kind. The trips of a trial are one sample: their mean.

use crate::BadInput;
use crate::folder::json;
use crate::row::Row;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use whimbrel_energy::fit::{Fit, Law, Point, fit as fit_law};
use whimbrel_migration::report::{EnergyKind, Outcome};

pub(super) fn fit(runs: &[PathBuf], as_json: bool) -> anyhow::Result<u8> {
    let (kind, rows) = rows(runs)?;
    let laws = [
        ("strunk", "energy overhead = bytes x (p0 / bandwidth + p1)", Law::Strunk),
        ("liu", "energy overhead = a x bytes + b", Law::Liu),
    ];
    let fitted: Vec<_> = laws
        .iter()
        .map(|(name, what, law)| {
            (*name, *what, fit_law(*law, &points(&rows, |row| explained(row, *law))).map_err(|e| e.to_string()))
        })
        .collect();
    if as_json {
        let laws: BTreeMap<&str, Value> = fitted.iter().map(|(name, _, fit)| (*name, data(fit))).collect();
        return crate::commands::print(&json(&json!({ "kind": kind, "rows": rows.len(), "laws": laws })));
    }
    let mut text = format!("{}, {} rows\n", heading(kind), rows.len());
    fitted.iter().for_each(|(name, what, fit)| text.push_str(&format!("{name}: {what}\n{}", words(fit))));
    crate::commands::print(&text)
}

pub(super) fn calibrate(runs: &[PathBuf], as_json: bool) -> anyhow::Result<u8> {
    let (kind, rows) = rows(runs)?;
    if kind == EnergyKind::Modelled {
        let why = "every row is modelled, and a model calibrated on a model only repeats it; give a run of a host with a meter";
        return Err(BadInput(format!("{}: {why}", named(runs))).into());
    }
    let fit = fit_law(Law::Model, &points(&rows, |row| explained(row, Law::Model))).map_err(|e| e.to_string());
    if as_json {
        return crate::commands::print(&json(&json!({ "kind": kind, "rows": rows.len(), "model": data(&fit) })));
    }
    let mut text = format!("{}, {} rows\n{}", heading(kind), rows.len(), words(&fit));
    if let Ok(Fit { coefficients, .. }) = &fit {
        let terms: Vec<String> = coefficients.iter().map(|(name, value)| format!("{name} = {value:?}")).collect();
        text.push_str(&format!("\n[energy]\nmodel = {{ {} }}\n", terms.join(", ")));
    }
    crate::commands::print(&text)
}

fn heading(kind: EnergyKind) -> &'static str {
    match kind {
        EnergyKind::Measured => "Measured energies",
        EnergyKind::Modelled => "MODELLED energies, not measured: a law that fits them says how the model behaves",
    }
}

fn named(runs: &[PathBuf]) -> String {
    runs.iter().map(|run| run.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The completed rows with an energy.
fn rows(runs: &[PathBuf]) -> anyhow::Result<(EnergyKind, Vec<Row>)> {
    let mut rows: Vec<Row> = Vec::new();
    for run in runs {
        let path = run.join("trials.jsonl");
        let refuse = |why: String| BadInput(format!("{}: {why}; give the folder of a run", path.display()));
        let text = std::fs::read_to_string(&path).map_err(|e| refuse(e.to_string()))?;
        for (number, line) in (1..).zip(text.lines()) {
            rows.push(serde_json::from_str(line).map_err(|e| refuse(format!("line {number} is no row: {e}")))?);
        }
    }
    rows.retain(|row| row.report.outcome == Outcome::Completed && row.report.energy.kind.is_some());
    let Some(kind) = rows.first().and_then(|row| row.report.energy.kind) else {
        return Err(BadInput(format!("{}: no completed row has an energy", named(runs))).into());
    };
    if rows.iter().any(|row| row.report.energy.kind != Some(kind)) {
        let why = "some rows are measured and others modelled; give runs of one kind";
        return Err(BadInput(format!("{}: {why}", named(runs))).into());
    }
    Ok((kind, rows))
}

/// The joules of a trip, and what a law explains them by.
type Trip = (f64, Vec<f64>);

/// A guest of a trial: experiment, cell, trial and guest.
type Sample<'a> = (&'a str, &'a str, u32, u32);

/// A point a trial and guest: the mean of its trips. A trial of which a trip lacks something is left out.
fn points(rows: &[Row], explained: impl Fn(&Row) -> Option<Trip>) -> Vec<Point> {
    let mut samples: BTreeMap<Sample<'_>, Vec<Option<Trip>>> = BTreeMap::new();
    for row in rows {
        samples.entry((&row.experiment, &row.cell, row.trial, row.guest)).or_default().push(explained(row));
    }
    let point = |((_, cell, _, _), trips): (Sample<'_>, Vec<Option<Trip>>)| {
        let trips: Vec<Trip> = trips.into_iter().collect::<Option<_>>()?;
        let mean = |pick: &dyn Fn(&Trip) -> f64| trips.iter().map(pick).sum::<f64>() / trips.len() as f64;
        let regressors = (0..trips[0].1.len()).map(|n| mean(&|trip| trip.1[n])).collect();
        Some(Point { cell: cell.to_owned(), joules: mean(&|trip| trip.0), regressors })
    };
    samples.into_iter().filter_map(point).collect()
}

/// What a law explains in a row, and by what.
fn explained(row: &Row, law: Law) -> Option<Trip> {
    let report = &row.report;
    let bytes = report.bytes.total? as f64;
    let overhead = || Some(report.energy.overhead_uj? as f64 / 1e6);
    match law {
        Law::Strunk => {
            let bandwidth = report.links.first()?.achieved_bytes_per_s.filter(|rate| *rate > 0.0)?;
            Some((overhead()?, vec![bytes / bandwidth, bytes]))
        }
        Law::Liu => Some((overhead()?, vec![bytes, 1.0])),
        Law::Model => {
            let cpu_s = (report.cpu.source_ns? + report.cpu.destination_ns?) as f64 / 1e9;
            let wire: Option<u64> = report.links.iter().map(|link| link.wire_bytes).sum();
            // Both hosts handle every byte. A shared package has its base once.
            let bases = if report.energy.shared_package? { 1.0 } else { 2.0 };
            let seconds = report.energy.window_ns? as f64 / 1e9;
            Some((report.energy.gross_uj? as f64 / 1e6, vec![cpu_s, 2.0 * wire? as f64 / 1e9, bases * seconds]))
        }
    }
}

fn data(fit: &Result<Fit, String>) -> Value {
    match fit {
        Ok(fit) => json!({
            "coefficients": fit.coefficients,
            "r_squared": fit.r_squared,
            "held_out_error_ratio": fit.held_out_error(),
            "held_out": fit.held_out,
            "why": null,
        }),
        Err(why) => json!({
            "coefficients": null, "r_squared": null, "held_out_error_ratio": null, "held_out": null, "why": why,
        }),
    }
}

fn words(fit: &Result<Fit, String>) -> String {
    let fit = match fit {
        Ok(fit) => fit,
        Err(why) => return format!("  none: {why}\n"),
    };
    let mut text: String = fit.coefficients.iter().map(|(name, value)| format!("  {name} = {value:.6e}\n")).collect();
    let or_none =
        |value: Option<f64>, scale: f64| value.map_or_else(|| "none".to_owned(), |v| format!("{:.4}", v * scale));
    text.push_str(&format!("  R squared {}\n", or_none(fit.r_squared, 1.0)));
    text.push_str(&format!("  error on cells held out: {} % in the mean\n", or_none(fit.held_out_error(), 100.0)));
    for (cell, error) in &fit.held_out {
        text.push_str(&format!("    {cell}: {} %\n", or_none(*error, 100.0)));
    }
    text
}
