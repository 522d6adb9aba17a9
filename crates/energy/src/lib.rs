//! Energy meters of a host, and the model for hosts without one.
//!
//! [`meter`] is the seam, [`meters`] the table, `meters/` has a file for each member. So far there is only the floor of
//! the measurement, a meter that reads nothing: rows then have no energy, and say why.

#![forbid(unsafe_code)]

pub mod meter;
pub mod meters;

pub use meter::{Build, Meter, Unmeasured};
pub use meters::METERS;
