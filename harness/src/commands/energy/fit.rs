//! `whimbrel energy fit` and `calibrate`: laws of energy, fitted to the rows of runs.

use crate::BadInput;
use crate::folder::json;
use crate::laws::{self, Fitted};
use crate::row::Row;
use serde_json::{Value, json};
use std::path::PathBuf;
use whimbrel_energy::fit::Fit;
use whimbrel_migration::report::EnergyKind;

pub(super) fn fit(runs: &[PathBuf], as_json: bool) -> anyhow::Result<u8> {
    let (kind, rows) = rows(runs)?;
    let fitted = laws::overheads(&rows.iter().collect::<Vec<_>>());
    if as_json {
        let laws: Vec<Value> = fitted.iter().map(Fitted::data).collect();
        return crate::commands::print(&json(&json!({ "kind": kind, "rows": rows.len(), "laws": laws })));
    }
    let mut text = format!("{}, {} rows\n", heading(kind), rows.len());
    for law in &fitted {
        text.push_str(&format!("{}, {}: {}\n{}", law.law, law.range(), law.says, words(&law.fit)));
    }
    crate::commands::print(&text)
}

pub(super) fn calibrate(runs: &[PathBuf], as_json: bool) -> anyhow::Result<u8> {
    let (kind, rows) = rows(runs)?;
    if kind == EnergyKind::Modelled {
        let why = "every row is modelled, and a model calibrated on a model only repeats it; give a run of a host with a meter";
        return Err(BadInput(format!("{}: {why}", named(runs))).into());
    }
    let model = laws::model(&rows.iter().collect::<Vec<_>>());
    if as_json {
        return crate::commands::print(&json(&json!({ "kind": kind, "rows": rows.len(), "model": model.data() })));
    }
    let mut text = format!("{}, {} rows\n{}", heading(kind), rows.len(), words(&model.fit));
    if let Ok(Fit { coefficients, .. }) = &model.fit {
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

/// The rows with an energy, of trials all of whose trips were completed.
fn rows(runs: &[PathBuf]) -> anyhow::Result<(EnergyKind, Vec<Row>)> {
    let mut rows: Vec<Row> = Vec::new();
    for run in runs {
        let path = run.join("trials.jsonl");
        let refuse = |why: String| BadInput(format!("{}: {why}; give the folder of a run", path.display()));
        let text = std::fs::read_to_string(&path).map_err(|e| refuse(e.to_string()))?;
        let read =
            |(number, line)| serde_json::from_str(line).map_err(|e| refuse(format!("line {number} is no row: {e}")));
        let of_run: Vec<Row> = (1..).zip(text.lines()).map(read).collect::<Result<_, _>>()?;
        let completed = laws::completed(&of_run);
        let fits = |(row, completed): (Row, bool)| (completed && row.report.energy.kind.is_some()).then_some(row);
        rows.extend(of_run.into_iter().zip(completed).filter_map(fits));
    }
    let Some(kind) = rows.first().and_then(|row| row.report.energy.kind) else {
        return Err(BadInput(format!("{}: no completed row has an energy", named(runs))).into());
    };
    if rows.iter().any(|row| row.report.energy.kind != Some(kind)) {
        let why = "some rows are measured and others modelled; give runs of one kind";
        return Err(BadInput(format!("{}: {why}", named(runs))).into());
    }
    Ok((kind, rows))
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
