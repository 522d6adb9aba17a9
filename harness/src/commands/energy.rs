//! `whimbrel energy`: this host's meters, and what is computed from energies.

mod fit;
mod jettison;
mod read;
mod trace;
mod watch;

use crate::BadInput;
use crate::cli::{EnergyCommand, MeterPlace};
use std::collections::BTreeMap;
use whimbrel_energy::{METERS, Meter, Place};

pub(super) fn energy(command: EnergyCommand) -> anyhow::Result<u8> {
    match command {
        EnergyCommand::Read { time, meter, json } => read::read(&meter, time, json),
        EnergyCommand::Fit { runs, json } => fit::fit(&runs, json),
        EnergyCommand::Calibrate { runs, json } => fit::calibrate(&runs, json),
        EnergyCommand::Trace(options) => trace::trace(&options),
        EnergyCommand::Jettison(options) => jettison::jettison(&options),
        EnergyCommand::Watch { every, time, meter } => watch::watch(&meter, every, time),
    }
}

/// Where the counters lie that the person means.
pub(super) fn place(options: &MeterPlace) -> Result<Place, BadInput> {
    let place = match &options.energy_root {
        Some(root) if !root.is_dir() => {
            let why = "there is no such folder; give one with class/powercap in it";
            return Err(BadInput(format!("--energy-root {}: {why}", root.display())));
        }
        Some(root) => Place::under(root),
        None => Place::host(),
    };
    Ok(Place { command: options.meter_command.clone(), ..place })
}

/// Sees that a meter is one.
fn known(meter: Option<&str>) -> Result<(), BadInput> {
    let find = |name| METERS.find(name).map(drop).map_err(|e| BadInput(format!("--meter: {e}")));
    meter.map_or(Ok(()), find)
}

/// A meter's domains in words.
pub(super) fn domains_of(meter: &dyn Meter, absent: &BTreeMap<String, String>) -> String {
    let names: Vec<&str> =
        meter.domains().iter().map(|d| d.name.as_str()).filter(|name| !absent.contains_key(*name)).collect();
    names.join(", ")
}
