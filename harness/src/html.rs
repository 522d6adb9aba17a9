//! `report.html`: one file, no network, no script; light and dark, and on paper.

mod charts;
mod energy;

use crate::display::{outcome_word, verdict_word};
use crate::environment::Environment;
use crate::experiment::Experiment;
use crate::laws::number;
use crate::row::Row;
use crate::summary::{CellSummary, Summary};
use charts::{Axis, Bar, Line, Strip, bars, data_link, figure, lines, strips};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use whimbrel_migration::metrics::{self, METRICS};
use whimbrel_migration::report::{EnergyKind, Outcome, Verdict};
use whimbrel_model::{Bytes, Nanos};

/// The metrics of the summary table: heading, path, unit, and what one of it is in the row's unit.
const COLUMNS: [(&str, &str, &str, f64); 11] = [
    ("downtime", "downtime_ns", "ms", 1e6),
    ("guest gap", "guest_gap_ns", "ms", 1e6),
    ("total", "total_ns", "s", 1e9),
    ("eviction", "eviction_ns", "s", 1e9),
    ("bytes", "bytes.total", "MiB", 1048576.0),
    ("push loss", "work.push_degradation_ratio", "%", 0.01),
    ("pull loss", "work.pull_degradation_ratio", "%", 0.01),
    ("delay", "work.delay_ns", "ms", 1e6),
    ("p99 fault", "memory_faults.p99_ns", "us", 1e3),
    ("energy", "energy.gross_uj", "J", 1e6),
    ("energy overhead", "energy.overhead_uj", "J", 1e6),
];

/// The report of a run.
pub fn report(experiment: &Experiment, environment: &Environment, summary: &Summary, rows: &[Row]) -> String {
    let mut page = String::new();
    let title = escape(&title(experiment, summary));
    let _ = write!(
        page,
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <title>{title}</title><style>{}</style></head><body>",
        include_str!("html/style.css")
    );
    page.push_str(&opening(experiment, environment, summary, rows));
    page.push_str(&table(summary));
    page.push_str(&figures(summary, rows));
    page.push_str(&energy::section(summary, rows));
    page.push_str(&all_rows(rows));
    page.push_str(&rounds(rows));
    page.push_str(&background(experiment, environment));
    page.push_str(&notes());
    page.push_str("</body></html>\n");
    page
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;").replace('"', "&quot;")
}

/// The experiment's name, and that its energies are no measurements where they are not.
fn title(experiment: &Experiment, summary: &Summary) -> String {
    let modelled = summary.energy_kind == Some(EnergyKind::Modelled);
    format!("{}{}", experiment.name, if modelled { " (energy modelled, not measured)" } else { "" })
}

fn opening(experiment: &Experiment, environment: &Environment, summary: &Summary, rows: &[Row]) -> String {
    let good = rows.iter().filter(|r| r.good()).count();
    let class = if good == rows.len() && !rows.is_empty() { "good" } else { "bad" };
    let mut text = format!(
        "<h1>{}</h1><p class=question>{}</p><p class=faint>{} · whimbrel {} ({}) · {} cells, {} trials each, seed {}</p>\
         <p class={class}>{good} of {} rows completed with a check that found no difference.</p>",
        escape(&title(experiment, summary)),
        escape(&experiment.question),
        environment.began,
        environment.version,
        environment.build,
        summary.cells.len(),
        experiment.trials,
        experiment.seed,
        rows.len(),
    );
    if summary.interrupted {
        text.push_str("<p class=bad>The run was interrupted: not every trial was made.</p>");
    }
    if let Some(mixture) = summary.mixture() {
        let _ = write!(text, "<p class=bad>{}.</p>", escape(&mixture));
    }
    let _ = write!(text, "<p class=note>{}</p>", escape(&energy_line(summary, rows)));
    for warning in &environment.warnings {
        let _ = write!(text, "<p class=note>{}</p>", escape(warning));
    }
    text
}

/// What can honestly be said of energy.
fn energy_line(summary: &Summary, rows: &[Row]) -> String {
    let with = rows.iter().filter(|r| r.report.energy.kind.is_some()).count();
    let why = |none: bool| {
        rows.iter().map(|r| &r.report.energy).find(|e| e.kind.is_none() == none).and_then(|e| e.why.clone())
    };
    let word = match summary.energy_kind {
        _ if rows.is_empty() => return "Energy: there are no rows.".to_owned(),
        None => return format!("No energy in any row: {}.", why(true).unwrap_or_default()),
        Some(EnergyKind::Measured) => "measured",
        Some(EnergyKind::Modelled) => "modelled, not measured,",
    };
    let mut text = format!("Energy: {word} in {} of {} rows", with - summary.energy_left_out, rows.len());
    let remarks = [why(false), why(true).map(|why| format!("elsewhere none: {why}"))];
    remarks.into_iter().flatten().for_each(|remark| text.push_str(&format!("; {remark}")));
    if summary.energy_left_out > 0 {
        text.push_str(&format!("; {} rows are modelled, and not summed up", summary.energy_left_out));
    }
    text + "."
}

fn table(summary: &Summary) -> String {
    let mut text = String::from("<h2>Cells</h2><div class=wide><table><tr><th class=word>cell<th>n");
    for (heading, path, unit, _) in COLUMNS {
        let definition = metrics::find(path).map_or("", |m| m.definition);
        let _ = write!(text, "<th title='{}'>{heading}<br><span class=faint>{unit}</span>", escape(definition));
    }
    text.push_str("<th class=word>check</tr>");
    for cell in &summary.cells {
        let n = if cell.failed == 0 {
            cell.n.to_string()
        } else {
            format!("<span class=bad>{} of {}</span>", cell.completed, cell.n)
        };
        let _ = write!(text, "<tr><td class=word>{}<td>{n}", escape(&cell.cell));
        for (_, path, _, scale) in COLUMNS {
            let _ = write!(text, "<td>{}", spread(cell, path, scale));
        }
        let checks: Vec<String> = cell.checks.iter().map(|(word, n)| format!("{n} {word}")).collect();
        let class = if cell.checks.contains_key("different") { "word bad" } else { "word" };
        let _ = write!(text, "<td class='{class} short'>{}</tr>", checks.join(", "));
    }
    text.push_str(
        "</table></div><p class=faint>Medians over completed rows; in brackets the bootstrap's 95 % interval.</p>",
    );
    text
}

fn spread(cell: &CellSummary, path: &str, scale: f64) -> String {
    let Some(spread) = cell.metrics.get(path) else { return "-".to_owned() };
    let Some(median) = spread.median else { return "-".to_owned() };
    let interval = spread
        .ci95
        .map(|[low, high]| format!("<br><span class=faint>[{}, {}]</span>", figure(low / scale), figure(high / scale)));
    format!("{}{}", figure(median / scale), interval.unwrap_or_default())
}

fn figures(summary: &Summary, rows: &[Row]) -> String {
    let mut text = String::new();
    let charted = [COLUMNS[0], COLUMNS[2], COLUMNS[4], COLUMNS[5]];
    match numeric_factor(summary) {
        Some(axis) => {
            for (heading, path, unit, scale) in charted {
                text.push_str(&lines(heading, &axis, unit, scale, &series(summary, &axis.name, path)));
            }
        }
        None => {
            for (heading, path, unit, scale) in charted {
                let strip = |cell: &CellSummary| {
                    let spread = cell.metrics.get(path);
                    Strip {
                        label: label(cell),
                        values: spread.map(|s| s.values.clone()).unwrap_or_default(),
                        median: spread.and_then(|s| s.median),
                        interval: spread.and_then(|s| s.ci95),
                    }
                };
                text.push_str(&strips(heading, unit, scale, &summary.cells.iter().map(strip).collect::<Vec<_>>()));
            }
        }
    }
    let first =
        |cell: &CellSummary| rows.iter().find(|r| r.cell == cell.cell && r.report.outcome == Outcome::Completed);
    let stacked = |parts: &dyn Fn(&Row) -> Vec<Option<u64>>| -> Vec<Bar> {
        let bar = |cell: &CellSummary| {
            let parts = first(cell).map(parts).unwrap_or_default();
            Bar { label: label(cell), parts: parts.into_iter().map(|p| p.map(|v| v as f64)).collect() }
        };
        summary.cells.iter().map(bar).collect()
    };
    let phases = stacked(&|row| {
        let r = &row.report;
        vec![r.setup_ns, r.push_ns, r.pause_latency_ns, r.downtime_ns, r.pull_ns]
    });
    text.push_str(&bars("Phases", "s", 1e9, &["setup", "push", "pause latency", "downtime", "pull"], &phases));
    let downtime = stacked(&|row| {
        let p = row.report.downtime_parts_ns;
        vec![p.drain, p.memory, p.disk, p.state, p.hand_over, p.resume]
    });
    let names = ["drain", "last memory", "last disk", "state", "hand-over", "resume"];
    text.push_str(&bars("Parts of the downtime", "ms", 1e6, &names, &downtime));
    let bytes = stacked(&|row| {
        let b = row.report.bytes;
        vec![Some(b.memory_first), b.memory_again, Some(b.disk_first), b.disk_again, b.control]
    });
    let names = ["memory first", "memory again", "disk first", "disk again", "control"];
    text.push_str(&bars("Bytes", "MiB", 1048576.0, &names, &bytes));
    text
}

/// A cell by its values alone, in the order of its name.
fn label(cell: &CellSummary) -> String {
    let values = cell.cell.split(", ").filter_map(|pair| Some(pair.split_once('=')?.1));
    let values: Vec<&str> = values.collect();
    if values.is_empty() { cell.cell.clone() } else { values.join(" · ") }
}

/// The first varied key with at least three values that are numbers or quantities of one kind.
fn numeric_factor(summary: &Summary) -> Option<Axis> {
    let keys = summary.cells.first()?.factors.keys();
    let axis = |name: &String| {
        let values = summary.cells.iter().map(|cell| cell.factors.get(name));
        let ticks = values.map(|value| value.and_then(|value| Some((number(value)?, word(value)))));
        let mut ticks: Vec<(f64, String)> = ticks.collect::<Option<_>>()?;
        ticks.sort_by(|a, b| a.0.total_cmp(&b.0));
        ticks.dedup_by(|a, b| a.0 == b.0);
        (ticks.len() >= 3).then(|| Axis { name: name.clone(), ticks })
    };
    keys.into_iter().find_map(axis)
}

/// A factor's value as a person wrote it.
fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn series(summary: &Summary, factor: &str, path: &str) -> Vec<Line> {
    let mut lines: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for cell in &summary.cells {
        let others = cell.factors.iter().filter(|(key, _)| *key != factor);
        let others: Vec<String> = others.map(|(key, value)| format!("{key}={}", word(value))).collect();
        let label = if others.is_empty() { "median".to_owned() } else { others.join(", ") };
        let point = cell.factors.get(factor).and_then(number).zip(cell.median(path));
        lines.entry(label).or_default().extend(point);
    }
    let sorted = |(label, mut points): (String, Vec<(f64, f64)>)| {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Line { label, points }
    };
    lines.into_iter().map(sorted).collect()
}

fn all_rows(rows: &[Row]) -> String {
    let data: String = rows.iter().map(|r| serde_json::to_string(r).expect("a row is plain data") + "\n").collect();
    let link = data_link("every field of every row (JSON lines)", "application/x-ndjson", &data);
    let mut text = format!(
        "<h2>Rows</h2><p>{link}</p><div class=wide><table><tr><th class=word>cell<th>trial<th>guest<th>trip<th>attempt<th class=word>outcome\
         <th class=word>ended by<th>downtime<th>predicted<th>total<th>bytes<th>rounds<th>faults<th class=word>memory<th class=word>disk"
    );
    for row in rows {
        let r = &row.report;
        let time = |ns: Option<u64>| ns.map_or_else(|| "-".to_owned(), |ns| Nanos(ns).to_string());
        let ended = |by: Option<_>| {
            by.map_or(Value::Null, |b| serde_json::to_value::<whimbrel_model::event::EndedBy>(b).unwrap_or_default())
        };
        let ended = [ended(r.ended_by.memory), ended(r.ended_by.disk)]
            .iter()
            .filter_map(Value::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        let reason = r.reason.as_ref().map(|reason| format!(": {}", escape(reason))).unwrap_or_default();
        let class = |bad: bool| if bad { "word bad" } else { "word" };
        let _ = write!(
            text,
            "<tr><td class=word>{}<td>{}<td>{}<td>{}<td>{}<td class='{}'>{}{reason}<td class=word>{ended}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}\
             <td class='{}'>{}<td class='{}'>{}",
            escape(&row.cell),
            row.trial,
            row.guest,
            row.trip,
            row.attempt,
            class(r.outcome != Outcome::Completed),
            outcome_word(r.outcome),
            time(r.downtime_ns),
            time(r.predicted_downtime_ns),
            time(r.total_ns),
            r.bytes.total.map_or_else(|| "-".to_owned(), |b| Bytes(b).to_string()),
            r.rounds.len(),
            r.memory_faults.map_or_else(|| "-".to_owned(), |faults| faults.count.to_string()),
            class(r.verify.memory == Verdict::Different),
            verdict_word(r.verify.memory),
            class(r.verify.disk == Verdict::Different),
            verdict_word(r.verify.disk),
        );
    }
    text.push_str("</table></div>");
    text
}

fn rounds(rows: &[Row]) -> String {
    let mut text = String::from("<h2>Rounds</h2>");
    let shown = rows.iter().filter(|r| r.trial == 0 && !r.report.rounds.is_empty());
    for row in shown {
        let _ = write!(
            text,
            "<details><summary>{}, guest {}, trip {}: {} rounds</summary><table><tr><th class=word>kind<th>start<th>took<th>sent\
             <th>again<th>dirty<th>bytes<th>predicted downtime<th>throttle",
            escape(&row.cell),
            row.guest,
            row.trip,
            row.report.rounds.len()
        );
        for round in &row.report.rounds {
            let predicted = round.predicted_ns.map_or_else(|| "-".to_owned(), |ns| Nanos(ns).to_string());
            let _ = write!(
                text,
                "<tr><td class=word>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{predicted}<td>{:.0} %",
                if round.kind == whimbrel_model::Family::Memory { "memory" } else { "disk" },
                Nanos(round.start_ns),
                Nanos(round.ns),
                round.sent_units,
                round.again_units,
                round.dirty_units,
                Bytes(round.bytes),
                round.throttle * 100.0,
            );
        }
        text.push_str("</table></details>");
    }
    text
}

fn background(experiment: &Experiment, environment: &Environment) -> String {
    format!(
        "<h2>Experiment and host</h2><details><summary>experiment.toml, as resolved</summary><pre>{}</pre></details>\
         <details><summary>environment.json</summary><pre>{}</pre></details>",
        escape(&experiment.to_toml()),
        escape(&crate::folder::json(environment))
    )
}

/// The definitions behind the numbers, from the catalogue.
fn notes() -> String {
    let mut text = String::from("<h2>Notes</h2><details><summary>What each field of a row means</summary><dl>");
    for metric in METRICS {
        let interval = metric.interval().map(|i| format!(" From {i}.")).unwrap_or_default();
        let _ = write!(
            text,
            "<dt>{} <span class=faint>({})</span></dt><dd>{}{}</dd>",
            metric.name,
            metric.unit,
            escape(metric.definition),
            escape(&interval)
        );
    }
    text.push_str("</dl></details>");
    text
}

#[cfg(test)]
mod tests;
