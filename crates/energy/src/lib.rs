//! Energy meters of a host, and the model for hosts without one.
//!
//! Reading order: [`meter`] (the seam), [`meters`] (the table; `meters/` has a file for each member), [`counter`] (wraps,
//! gaps, resets and dead counters: from readings to a total that is exact or null), [`choose`] (which meter this host
//! has), [`sampler`] (readings at a steady pace), [`model`] (for hosts without a meter), [`host`] (a host's energy over a
//! window, from readings alone).

#![deny(unsafe_code)]

mod bank;
pub mod choose;
pub mod conditions;
mod copies;
pub mod counter;
mod files;
pub mod fit;
pub mod host;
pub mod meter;
pub mod meters;
pub mod model;
pub mod power_states;
#[cfg(test)]
mod recorded_trees;
pub mod sampler;

pub use choose::{Chosen, choose};
pub use conditions::Conditions;
pub use counter::Counter;
pub use host::{EnergySpec, HostMeter, Kind};
pub use meter::{Domain, DomainKind, Meter, Open, Place, Reading, Unmeasured};
pub use meters::METERS;
pub use model::{Activity, Coefficients};
pub use sampler::{Sampler, Totals};
