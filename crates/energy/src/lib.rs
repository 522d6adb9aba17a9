//! Energy meters of a host, and the model for hosts without one.
//!
//! Reading order: [`meter`] (the seam), [`meters`] (the table; `meters/` has a file for each member), [`counter`] (wraps,
//! gaps, resets and dead counters: from readings to a total that is exact or null), [`choose`] (which meter this host
//! has), [`sampler`] (readings at a steady pace).

#![deny(unsafe_code)]

pub mod choose;
pub mod counter;
mod files;
pub mod meter;
pub mod meters;
#[cfg(test)]
mod recorded_trees;
pub mod sampler;

pub use choose::{Chosen, choose};
pub use counter::Counter;
pub use meter::{Domain, DomainKind, Meter, Open, Place, Reading, Unmeasured};
pub use meters::METERS;
pub use sampler::{Sampler, Totals};
