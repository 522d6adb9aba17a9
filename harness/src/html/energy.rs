//! What of the report is energy: a table a cell, and the laws that were fitted, with their curves.

use super::charts::{Axis, Line, figure, lines};
use super::{escape, spread};
use crate::laws::{self, Fitted};
use crate::row::Row;
use crate::summary::Summary;
use std::fmt::Write;
use whimbrel_migration::metrics;
use whimbrel_migration::report::EnergyKind;

/// The columns of the table: heading, path, unit, and what one of it is in the row's unit.
const COLUMNS: [(&str, &str, &str, f64); 15] = [
    ("idle", "energy.idle_w", "W", 1.0),
    ("workload", "energy.workload_w", "W", 1.0),
    ("after", "energy.after_w", "W", 1.0),
    ("gross", "energy.gross_uj", "J", 1e6),
    ("overhead", "energy.overhead_uj", "J", 1e6),
    ("of the source", "energy.source_overhead_uj", "J", 1e6),
    ("of the destination", "energy.destination_overhead_uj", "J", 1e6),
    ("for the same work", "energy.same_work_overhead_uj", "J", 1e6),
    ("a GiB of state", "energy.overhead_per_gib_uj", "J", 1e6),
    ("a unit of work", "energy.work_unit_uj", "uJ", 1.0),
    ("in the control run", "energy.control_work_unit_uj", "uJ", 1.0),
    ("source", "energy.source_frequency_hz", "GHz", 1e9),
    ("destination", "energy.destination_frequency_hz", "GHz", 1e9),
    ("source", "energy.source_temperature_c", "C", 1.0),
    ("destination", "energy.destination_temperature_c", "C", 1.0),
];

/// The section; nothing where no row has an energy.
pub(super) fn section(summary: &Summary, rows: &[Row]) -> String {
    let Some(kind) = summary.energy_kind else { return String::new() };
    let word = match kind {
        EnergyKind::Measured => "measured",
        EnergyKind::Modelled => "modelled, not measured",
    };
    let mut text = format!("<h2>Energy ({word})</h2>{}", table(summary));
    let fitted = laws::overheads(&laws::of_kind(rows, kind));
    text.push_str(&laws_table(&fitted));
    for law in &fitted {
        if let (Some(over), Some([had, by_law])) = (law.over, law.lines()) {
            let title = format!("Energy overhead {} ({word})", law.range());
            let label = |label: &str, points| Line { label: label.to_owned(), points };
            let most = had.iter().map(|(x, _)| *x).fold(0.0, f64::max);
            let axis = Axis { name: over.to_owned(), ticks: vec![(most, figure(most))] };
            text.push_str(&lines(&title, &axis, "J", 1.0, &[label("had", had), label(law.law, by_law)]));
        }
    }
    text
}

fn table(summary: &Summary) -> String {
    // What no cell has, as the host's frequency where it isn't told, needs no column.
    let shown = COLUMNS.iter().filter(|(_, path, ..)| summary.cells.iter().any(|cell| cell.median(path).is_some()));
    let shown: Vec<_> = shown.collect();
    let mut text = String::from("<div class=wide><table><tr><th class=word>cell<th>n");
    for (heading, path, unit, _) in &shown {
        let definition = metrics::find(path).map_or("", |m| m.definition);
        let _ = write!(text, "<th title='{}'>{heading}<br><span class=faint>{unit}</span>", escape(definition));
    }
    for cell in &summary.cells {
        let n = cell.metrics.get("energy.gross_uj").map_or(0, |spread| spread.n);
        let _ = write!(text, "<tr><td class=word>{}<td>{n}", escape(&cell.cell));
        shown.iter().for_each(|(_, path, _, scale)| {
            let _ = write!(text, "<td>{}", spread(cell, path, *scale));
        });
    }
    text.push_str(
        "</table></div><p class=faint>Medians over trials and guests, whose trips are one sample; in brackets the bootstrap's \
         95 % interval.</p>",
    );
    text
}

fn laws_table(fitted: &[Fitted]) -> String {
    if fitted.iter().all(|law| law.fit.is_err()) {
        return String::from(
            "<p class=faint>No law was fitted: the cells vary neither memory nor bandwidth enough.</p>",
        );
    }
    let mut text = String::from(
        "<div class=wide><table><tr><th class=word>law<th class=word>fitted<th class=word>coefficients<th>R squared\
         <th>error on cells held out<br><span class=faint>%, mean</span>",
    );
    for law in fitted {
        let _ =
            write!(text, "<tr><td class=word title='{}'>{}<td class=word>{}", law.says, law.law, escape(&law.range()));
        let or_none = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), figure);
        let _ = match &law.fit {
            Ok(fit) => {
                let terms: Vec<String> = fit.coefficients.iter().map(|(name, v)| format!("{name} = {v:.3e}")).collect();
                let error = fit.held_out_error().map(|error| error * 100.0);
                let r_squared = fit.r_squared.map_or_else(|| "-".to_owned(), |r| format!("{r:.3}"));
                write!(text, "<td class=word>{}<td>{r_squared}<td>{}", terms.join(", "), or_none(error))
            }
            Err(why) => write!(text, "<td class=word>none: {}<td>-<td>-", escape(why)),
        };
    }
    text.push_str("</table></div>");
    text
}
