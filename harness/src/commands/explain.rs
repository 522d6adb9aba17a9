//! `whimbrel explain METRIC`: what a field of a row means, from the catalogue.

use crate::BadInput;
use whimbrel_migration::metrics::{self, Better, Clock, METRICS, Metric};
use whimbrel_model::registry::UnknownName;

pub(super) fn explain(name: Option<&str>) -> Result<String, BadInput> {
    let Some(name) = name else {
        return Ok(METRICS.iter().map(|m| format!("{:34} {:8} {}\n", m.name, m.unit, m.definition)).collect());
    };
    let found = metrics::find_all(name);
    if found.is_empty() {
        // Objects are named once: a hundred paths would hide the name that was meant.
        let mut names: Vec<&str> = METRICS.iter().filter_map(|m| m.name.split('.').next()).collect();
        names.dedup();
        return Err(BadInput(UnknownName::among("metric", name, names).to_string()));
    }
    Ok(found.into_iter().map(entry).collect::<Vec<_>>().join("\n"))
}

fn entry(metric: &Metric) -> String {
    let clock = match metric.clock {
        Clock::Source => "the source's",
        Clock::Destination => "the destination's",
        Clock::Both => "both hosts', the destination's shifted by the measured offset (clock_error_ns)",
        Clock::None => "none",
    };
    let better = match metric.better {
        Better::Smaller => "smaller is better",
        Better::Larger => "larger is better",
        Better::Neither => "neither way is better",
    };
    let interval = metric.interval().map(|i| format!("  interval: {i}\n")).unwrap_or_default();
    let Metric { name, unit, definition, .. } = metric;
    format!("{name}\n  unit:     {unit}\n{interval}  clock:    {clock}\n  better:   {better}\n  {definition}\n")
}
