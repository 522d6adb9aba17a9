//! The registry of the meters, in the order in which a host is searched for one.

mod command;
mod hwmon;
mod msr;
mod null;
mod perf;
mod powercap;

use crate::meter::Open;
use whimbrel_model::Registry;

/// The meters.
pub const METERS: Registry<Open> = Registry {
    family: "meter",
    entries: &[command::ENTRY, powercap::ENTRY, perf::ENTRY, msr::ENTRY, hwmon::ENTRY, null::ENTRY],
};

#[cfg(test)]
pub(crate) use perf::Pmu;
