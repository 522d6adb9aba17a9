//! The table that closes a run in the terminal: a line a cell, medians over its completed rows.

use crate::summary::{CellSummary, Summary};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use std::collections::BTreeMap;
use whimbrel_migration::report::EnergyKind;
use whimbrel_model::{Bytes, Nanos};

/// The table as text.
pub fn closing_table(summary: &Summary, width: Option<u16>) -> String {
    let factors = factor_names(summary);
    // A model's figures never look like a meter's.
    let energy = match summary.energy_kind {
        Some(EnergyKind::Measured) => Some("energy overhead"),
        Some(EnergyKind::Modelled) => Some("modelled overhead"),
        None => None,
    };
    let columns: Vec<&str> = ["n", "downtime", "guest gap", "total", "eviction", "bytes", "push loss"]
        .into_iter()
        .chain(energy)
        .chain(["check"])
        .collect();
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    if let Some(width) = width {
        table.set_width(width);
    }
    let names = factors.iter().map(|f| short(f, &factors).to_owned());
    let names: Vec<String> = if factors.is_empty() { vec!["cell".to_owned()] } else { names.collect() };
    table.set_header(names.iter().map(String::as_str).chain(columns.iter().copied()));
    for cell in &summary.cells {
        let named: Vec<String> = match factors.is_empty() {
            true => vec![cell.cell.clone()],
            false => factors.iter().map(|f| cell.factors.get(*f).map_or_else(String::new, plain)).collect(),
        };
        table.add_row(named.into_iter().chain(figures(cell, energy.is_some())));
    }
    for column in table.column_iter_mut().skip(names.len()).take(columns.len() - 1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// The varied keys, in the order of a cell's name.
fn factor_names(summary: &Summary) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for key in summary.cells.iter().flat_map(|c| c.factors.keys()) {
        if !names.contains(&key.as_str()) {
            names.push(key);
        }
    }
    let place = |key: &str| summary.cells.iter().find_map(|c| c.cell.find(&format!("{key}=")));
    names.sort_by_key(|key| place(key));
    names
}

/// A key without its table, where that is still clear.
fn short<'f>(factor: &'f str, all: &[&str]) -> &'f str {
    let last = factor.rsplit('.').next().unwrap_or(factor);
    let clear =
        !["use", "rate"].contains(&last) && all.iter().filter(|f| f.rsplit('.').next() == Some(last)).count() == 1;
    if clear { last } else { factor }
}

fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn figures(cell: &CellSummary, energy: bool) -> Vec<String> {
    let none = || "-".to_owned();
    let time = |metric: &str| cell.median(metric).map_or_else(none, |ns| Nanos(ns.round() as u64).to_string());
    // Adding zero takes the sign from a zero that rounding made.
    let tenths = |ratio: f64| (ratio * 1000.0).round() / 10.0 + 0.0;
    let percent = |metric: &str| cell.median(metric).map_or_else(none, |r| format!("{:.1} %", tenths(r)));
    let rows = if cell.failed == 0 { cell.n.to_string() } else { format!("{} of {}", cell.completed, cell.n) };
    let mut figures = vec![
        rows,
        time("downtime_ns"),
        time("guest_gap_ns"),
        time("total_ns"),
        time("eviction_ns"),
        cell.median("bytes.total").map_or_else(none, |b| Bytes(b.round() as u64).to_string()),
        percent("work.push_degradation_ratio"),
    ];
    let joules = || cell.median("energy.overhead_uj").map_or_else(none, |uj| format!("{:.3} J", uj / 1e6));
    figures.extend(energy.then(joules));
    figures.push(checks(&cell.checks));
    figures
}

fn checks(checks: &BTreeMap<&'static str, usize>) -> String {
    let words = checks.iter().map(|(word, n)| match checks.len() {
        1 => (*word).to_owned(),
        _ => format!("{n} {word}"),
    });
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{Row, tests::experiment};
    use crate::trials::Trip;

    #[test]
    fn there_is_a_line_for_every_cell_made_or_not() {
        let experiment = experiment("[guest]\nram = \"16 MiB\"\n[vary]\n\"guest.vcpus\" = [1, 2]");
        let row = Row::new(&experiment, &experiment.cells[0], 0, &Trip::default());
        let table = closing_table(&Summary::of(&experiment, &[row], false), Some(120));
        assert!(table.contains("vcpus") && table.contains("0 of 1"), "{table}");
        assert_eq!(table.lines().filter(|l| l.contains(" -")).count(), 2, "{table}");
    }
}
