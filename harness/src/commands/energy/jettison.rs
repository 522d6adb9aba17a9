//! `whimbrel energy jettison`: a fault trace and a host's power states, and what sleeping saves.

use crate::BadInput;
use crate::cli::JettisonOptions;
use crate::folder::json;
use serde_json::{Value, json};
use whimbrel_energy::power_states::{Comparison, Cost, Moves, States, compare, read_trace};
use whimbrel_model::{Bytes, Nanos};

pub(super) fn jettison(options: &JettisonOptions) -> anyhow::Result<u8> {
    let (states, moves) = (states(options)?, moves(options)?);
    let path = options.trace.display();
    let text = std::fs::read_to_string(&options.trace).map_err(|e| {
        BadInput(format!("{path}: {e}; give a fault trace, with the line at_ns,bytes before its faults"))
    })?;
    let faults = read_trace(&text).map_err(|wrong| BadInput(format!("{path}:{wrong}")))?;
    let found = compare(&states, &moves, &faults);
    crate::commands::print(&if options.json { json(&data(&found)) } else { words(&found) })
}

fn states(options: &JettisonOptions) -> Result<States, BadInput> {
    let JettisonOptions { on_w, transfer_w, suspending_w, asleep_w, resuming_w, .. } = *options;
    let powers = [
        ("--on-w", on_w),
        ("--transfer-w", transfer_w),
        ("--suspending-w", suspending_w),
        ("--asleep-w", asleep_w),
        ("--resuming-w", resuming_w),
    ];
    if let Some((name, w)) = powers.iter().find(|(_, w)| !(0.0..1e6).contains(w)) {
        return Err(BadInput(format!("{name} {w}: is no power of a host; write watts, such as 60")));
    }
    let (suspending, resuming) = (options.suspending, options.resuming);
    Ok(States { on_w, transfer_w, suspending_w, suspending, asleep_w, resuming_w, resuming })
}

fn moves(options: &JettisonOptions) -> Result<Moves, BadInput> {
    let rate = options.rate.0;
    if !rate.is_finite() || rate <= 0.0 {
        return Err(BadInput(
            "--rate: nothing would ever arrive; write a rate above zero, such as \"1000 Mbit/s\"".to_owned(),
        ));
    }
    Ok(Moves {
        full_bytes: options.full.0,
        descriptor_bytes: options.descriptor.0,
        returned_bytes: options.returned.0,
        rate,
        idle: options.idle,
    })
}

fn uj(joules: f64) -> i64 {
    (joules * 1e6).round() as i64
}

fn saving(found: &Comparison, cost: &Cost) -> Option<f64> {
    (found.on_joules > 0.0).then(|| 1.0 - cost.joules / found.on_joules)
}

/// Everything, by name. It is computed from power states, so it is modelled.
fn data(found: &Comparison) -> Value {
    let way = |cost: &Cost| {
        json!({
            "energy_uj": uj(cost.joules),
            "saving_ratio": saving(found, cost),
            "bytes": cost.bytes,
            "wakes": cost.wakes,
            "asleep_ns": (cost.asleep_s * 1e9).round() as u64,
        })
    };
    json!({
        "kind": "modelled",
        "on_uj": uj(found.on_joules),
        "full": way(&found.full),
        "partial": way(&found.partial),
        "partial_to_full_saving_ratio": found.partial_to_full_saving(),
        "partial_to_full_bytes_ratio": (found.full.bytes > 0).then(|| found.partial.bytes as f64 / found.full.bytes as f64),
        "break_even_ns": found.break_even_s.map(|s| (s * 1e9).round() as u64),
    })
}

fn words(found: &Comparison) -> String {
    let percent = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |r| format!("{:.1} %", r * 100.0));
    let way = |name: &str, cost: &Cost| {
        format!(
            "{name:16} {:12.1} J  saves {:>8}  moves {:>10}  sleeps {:>8}  wakes {}\n",
            cost.joules,
            percent(saving(found, cost)),
            Bytes(cost.bytes).to_string(),
            Nanos((cost.asleep_s * 1e9) as u64).to_string(),
            cost.wakes
        )
    };
    let break_even = found.break_even_s.map_or_else(
        || "sleeping never saves energy".to_owned(),
        |s| format!("sleeping saves energy in cycles longer than {}", Nanos((s * 1e9) as u64)),
    );
    format!(
        "Modelled from power states, not measured.\n{:16} {:12.1} J\n{}{}partial saves {} of what full saves; {break_even}\n",
        "stays on",
        found.on_joules,
        way("full migration", &found.full),
        way("partial", &found.partial),
        percent(found.partial_to_full_saving()),
    )
}
