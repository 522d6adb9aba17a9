//! `whimbrel energy read`: the energy of this host over a time, or why there is none.

use crate::cli::MeterOptions;
use crate::folder::json;
use crate::interrupt::Interrupt;
use crate::status;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use whimbrel_energy::choose::measure;
use whimbrel_migration::report::EnergyKind;
use whimbrel_model::Nanos;

/// Between two readings, where no counter needs more of them.
const EVERY: Duration = Duration::from_millis(10);

/// What was read. What could not be is null, with its reason.
#[derive(Debug, Serialize)]
struct Reading {
    kind: Option<EnergyKind>,
    why: Option<String>,
    meter: Option<&'static str>,
    window_ns: Option<u64>,
    /// Microjoules.
    domains: BTreeMap<String, Option<u64>>,
    reasons: BTreeMap<String, String>,
    /// The domains that together are the host: the others lie inside them or around them.
    counted: Vec<String>,
}

pub(super) fn read(options: &MeterOptions, time: Duration, as_json: bool) -> anyhow::Result<u8> {
    super::known(options.meter.as_deref())?;
    let place = super::place(&options.place)?;
    let interrupt = Interrupt::on_signals()?;
    let (meter, clock) = (options.meter.as_deref(), whimbrel_wire::clock::now);
    let measured = measure(&place, meter, time, EVERY, clock, || interrupt.raised());
    if interrupt.raised() {
        return Ok(status::INTERRUPTED);
    }
    let reading = match measured {
        Ok(measured) => {
            let why: Vec<String> = measured.reasons.iter().map(|(domain, why)| format!("{domain}: {why}")).collect();
            Reading {
                kind: Some(EnergyKind::Measured),
                why: (!why.is_empty()).then(|| why.join("; ")),
                meter: Some(measured.meter),
                window_ns: Some(measured.window.0),
                domains: measured.domains,
                reasons: measured.reasons,
                counted: measured.counted,
            }
        }
        Err(unmeasured) => Reading {
            kind: None,
            why: Some(unmeasured.why),
            meter: None,
            window_ns: None,
            domains: BTreeMap::new(),
            reasons: BTreeMap::new(),
            counted: Vec::new(),
        },
    };
    crate::commands::print(&if as_json { json(&reading) } else { text(&reading) })
}

fn text(reading: &Reading) -> String {
    let (Some(meter), Some(window_ns)) = (reading.meter, reading.window_ns) else {
        return format!("No energy: {}.\n", reading.why.as_deref().unwrap_or_default());
    };
    let mut text = format!("{meter}, over {}:\n", Nanos(window_ns));
    for (name, uj) in &reading.domains {
        let mark = if reading.counted.contains(name) { "*" } else { " " };
        match uj {
            Some(uj) => {
                let (joules, watts) = (*uj as f64 / 1e6, *uj as f64 * 1e3 / window_ns.max(1) as f64);
                text.push_str(&format!("{mark} {name:24} {joules:12.6} J {watts:9.3} W\n"));
            }
            None => text.push_str(&format!("{mark} {name:24} none: {}\n", reading.reasons[name])),
        }
    }
    text.push_str("* together the host's energy\n");
    text
}
