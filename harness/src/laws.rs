//! Laws of a migration's energy, fitted to rows: over all cells, over the guest's memory and over the link's rate.
//!
//! Only completed rows with an energy are used, all of one kind. The trips of a trial are one sample: their mean. Cells that
//! differ in one quantity alone show how the overhead depends on it.

use crate::row::Row;
use crate::summary::quantile;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use whimbrel_energy::fit::{Fit, Law, Point, fit};
use whimbrel_migration::report::{EnergyKind, Outcome};
use whimbrel_model::quantity;

/// Fewer cells than this show no dependence.
const FEWEST: usize = 3;

/// A law, and what of a run it was fitted to.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// Its name: `strunk`, `liu`, `model`.
    pub law: &'static str,
    /// What it says.
    pub says: &'static str,
    /// The quantity that alone varies, `guest.ram` or `link.rate`; `None`: all cells.
    pub over: Option<&'static str>,
    /// The other quantities, which are fixed.
    pub fixed: String,
    /// The cells, by the value of what varies, in MiB or MiB/s.
    pub cells: Vec<(f64, String)>,
    /// The law with its coefficients, or why there is none.
    pub fit: Result<Fit, String>,
    /// What it was fitted to.
    pub points: Vec<Point>,
}

/// A law's name, its words, and the quantity that it is about.
type Named = (&'static str, &'static str, Law);

const STRUNK: Named = ("strunk", "energy overhead = bytes x (p0 / bandwidth + p1)", Law::Strunk);
const LIU: Named = ("liu", "energy overhead = a x bytes + b", Law::Liu);
const MODEL: Named = ("model", "gross energy = core_w x CPU time + byte_nj x bytes + base_w x time", Law::Model);

/// The rows of one run that laws are fitted to: with energies of this kind, of trials all of whose trips were completed.
pub fn of_kind(rows: &[Row], kind: EnergyKind) -> Vec<&Row> {
    let fits = |row: &Row| row.report.energy.kind == Some(kind);
    rows.iter().zip(completed(rows)).filter(|(row, completed)| *completed && fits(row)).map(|(row, _)| row).collect()
}

/// Of each of one run's rows, whether all trips of its trial and guest were completed: one that lacks some is no sample.
pub fn completed(rows: &[Row]) -> Vec<bool> {
    let trial = |row: &Row| (row.cell.clone(), row.trial, row.guest);
    let lacking: BTreeSet<_> = rows.iter().filter(|row| row.report.outcome != Outcome::Completed).map(trial).collect();
    rows.iter().map(|row| !lacking.contains(&trial(row))).collect()
}

/// Strunk's and Liu's laws over all cells; then a line over the guest's memory and Strunk's law over the link's rate, for the
/// cells that differ in nothing else.
pub fn overheads(rows: &[&Row]) -> Vec<Fitted> {
    let mut found = vec![over_all(STRUNK, rows), over_all(LIU, rows)];
    for (factor, law) in [("guest.ram", LIU), ("link.rate", STRUNK)] {
        found.extend(groups(rows, factor).into_iter().map(|(fixed, rows)| {
            let mut cells: Vec<(f64, String)> =
                rows.iter().filter_map(|row| Some((number(row.factors.get(factor)?)?, row.cell.clone()))).collect();
            cells.sort_by(|a, b| a.0.total_cmp(&b.0));
            cells.dedup();
            Fitted { over: Some(factor), fixed, cells, ..over_all(law, &rows) }
        }));
    }
    found
}

/// The model's coefficients, from rows that were measured.
pub fn model(rows: &[&Row]) -> Fitted {
    over_all(MODEL, rows)
}

fn over_all((name, says, law): Named, rows: &[&Row]) -> Fitted {
    let points = points(rows, |row| explained(row, law));
    let fit = fit(law, &points).map_err(|e| e.to_string());
    Fitted { law: name, says, over: None, fixed: String::new(), cells: Vec::new(), fit, points }
}

/// The rows in groups whose cells differ in this factor alone, where there are enough of them, with what they share.
fn groups<'r>(rows: &[&'r Row], factor: &str) -> BTreeMap<String, Vec<&'r Row>> {
    let mut groups: BTreeMap<String, Vec<&Row>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.factors.get(factor).and_then(number).is_some()) {
        let others = row.factors.iter().filter(|(key, _)| *key != factor);
        let fixed: Vec<String> = others
            .map(|(key, v)| format!("{key}={}", v.as_str().map_or_else(|| v.to_string(), str::to_owned)))
            .collect();
        groups.entry(fixed.join(", ")).or_default().push(row);
    }
    let distinct = |rows: &Vec<&Row>| {
        let mut values: Vec<f64> = rows.iter().filter_map(|row| number(row.factors.get(factor)?)).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        values.len()
    };
    groups.retain(|_, rows| distinct(rows) >= FEWEST);
    groups
}

/// The number that a varied value stands for: sizes in MiB, rates in MiB/s, durations in ms.
pub fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => {
            let size = quantity::size(text).map(|b| b.0 as f64 / 1048576.0);
            let rate = quantity::rate(text).map(|r| r.0 / 1048576.0);
            size.or(rate).or_else(|_| quantity::duration(text).map(|t| t.0 as f64 / 1e6)).ok()
        }
        _ => None,
    }
}

/// The joules of a trip, and what a law explains them by.
type Trip = (f64, Vec<f64>);

/// A guest of a trial: experiment, cell, trial and guest, and which of several runs it is of.
type Sample<'a> = (&'a str, &'a str, u32, u32, usize);

/// A point a trial and guest: the mean of its trips. A trial of which a trip lacks something is left out.
fn points(rows: &[&Row], explained: impl Fn(&Row) -> Option<Trip>) -> Vec<Point> {
    let mut samples: BTreeMap<Sample<'_>, Vec<Option<Trip>>> = BTreeMap::new();
    // The rows of several runs of one experiment differ in nothing that a row says: a trip that was there is another run's.
    let mut seen = BTreeMap::new();
    for row in rows {
        let times: &mut usize = seen.entry((&row.experiment, &row.cell, row.trial, row.guest, row.trip)).or_default();
        samples.entry((&row.experiment, &row.cell, row.trial, row.guest, *times)).or_default().push(explained(row));
        *times += 1;
    }
    let point = |((_, cell, ..), trips): (Sample<'_>, Vec<Option<Trip>>)| {
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

impl Fitted {
    /// What it was fitted over, in words.
    pub fn range(&self) -> String {
        match (self.over, self.fixed.as_str()) {
            (None, _) => "all cells".to_owned(),
            (Some(over), "") => format!("over {over}"),
            (Some(over), fixed) => format!("over {over} at {fixed}"),
        }
    }

    /// All of it as JSON.
    pub fn data(&self) -> Value {
        let (law, over, fixed) = (self.law, self.over, &self.fixed);
        match &self.fit {
            Ok(fit) => json!({
                "law": law, "says": self.says, "over": over, "fixed": fixed,
                "coefficients": fit.coefficients,
                "r_squared": fit.r_squared,
                "held_out_error_ratio": fit.held_out_error(),
                "held_out": fit.held_out,
                "why": null,
            }),
            Err(why) => json!({
                "law": law, "says": self.says, "over": over, "fixed": fixed,
                "coefficients": null, "r_squared": null, "held_out_error_ratio": null, "held_out": null, "why": why,
            }),
        }
    }

    /// The median of the points of each cell, had and by the law, by what varies: two lines for a chart.
    pub fn lines(&self) -> Option<[Vec<(f64, f64)>; 2]> {
        let fit = self.fit.as_ref().ok()?;
        let median = |cell: &str, value: &dyn Fn(&Point) -> f64| {
            let mut values: Vec<f64> = self.points.iter().filter(|p| p.cell == cell).map(value).collect();
            values.sort_by(f64::total_cmp);
            quantile(&values, 0.5)
        };
        let line = |value: &dyn Fn(&Point) -> f64| {
            self.cells.iter().filter_map(|(x, cell)| Some((*x, median(cell, value)?))).collect::<Vec<_>>()
        };
        Some([line(&|p| p.joules), line(&|p| fit.at(p))])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::tests::experiment;
    use whimbrel_migration::report::LinkUse;

    /// A row of a cell, as Strunk's law with 2 W and 10 nJ a byte has it.
    fn row(ram_mib: u64, rate_mib: f64) -> Row {
        let text = format!("[guest]\nram = \"{ram_mib} MiB\"\n[link]\nrate = \"{rate_mib} MiB/s\"");
        let experiment = experiment(&text);
        let mut row = Row::new(&experiment, &experiment.cells[0], 0, &crate::trials::Trip::default());
        row.cell = format!("{ram_mib}/{rate_mib}");
        row.factors = serde_json::from_value(
            json!({ "guest.ram": format!("{ram_mib} MiB"), "link.rate": format!("{rate_mib} MiB/s") }),
        )
        .unwrap();
        let (bytes, rate) = (ram_mib << 20, rate_mib * 1048576.0);
        row.report.outcome = Outcome::Completed;
        row.report.bytes.total = Some(bytes);
        row.report.links = vec![LinkUse { achieved_bytes_per_s: Some(rate), ..LinkUse::default() }];
        row.report.energy.kind = Some(EnergyKind::Measured);
        row.report.energy.overhead_uj = Some((bytes as f64 * (2.0 / rate + 1e-8) * 1e6) as i64);
        row
    }

    #[test]
    fn what_varies_alone_is_an_axis_of_its_own() {
        let cells = [(128, 50.0), (256, 50.0), (512, 50.0), (256, 12.5), (256, 25.0)];
        let rows: Vec<Row> = cells.iter().map(|(ram, rate)| row(*ram, *rate)).collect();
        let found = overheads(&of_kind(&rows, EnergyKind::Measured));
        let ranges: Vec<String> = found.iter().map(Fitted::range).collect();
        assert_eq!(
            ranges,
            ["all cells", "all cells", "over guest.ram at link.rate=50 MiB/s", "over link.rate at guest.ram=256 MiB"]
        );
        let r_squared = |n: usize| found[n].fit.as_ref().unwrap().r_squared.unwrap();
        assert!(r_squared(0) > 0.9999 && r_squared(1) < 0.9 && r_squared(2) > 0.9999 && r_squared(3) > 0.9999);
        let [had, law] = found[3].lines().unwrap();
        assert_eq!(had.iter().map(|p| p.0).collect::<Vec<_>>(), [12.5, 25.0, 50.0]);
        assert!(had.iter().zip(&law).all(|(a, b)| (a.1 - b.1).abs() < 1e-3) && had[0].1 > had[2].1);
        assert!(of_kind(&rows, EnergyKind::Modelled).is_empty());
        // A trial of which a trip was aborted is no sample.
        let mut lacking: Vec<Row> = rows.iter().chain(&rows[..1]).cloned().collect();
        (lacking[5].trip, lacking[5].report.outcome) = (1, Outcome::Aborted);
        assert_eq!(overheads(&of_kind(&lacking, EnergyKind::Measured))[0].points.len(), 4);
        // Rows of two runs of one experiment are points of their own.
        let twice: Vec<&Row> = rows.iter().chain(&rows).collect();
        assert_eq!(overheads(&twice)[0].points.len(), 10);
    }
}
