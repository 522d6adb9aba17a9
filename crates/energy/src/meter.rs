//! The seam: what reads the energy that a host has used.

use std::collections::BTreeMap;

/// How a member of the registry makes a meter.
pub type Build = fn() -> Box<dyn Meter>;

/// Reads a host's cumulative energy.
pub trait Meter: Send {
    /// The energy used so far, in microjoules, one figure a domain. Only differences of two readings mean something.
    ///
    /// # Errors
    /// There is no figure, and why. It is never a zero.
    fn read(&mut self) -> Result<BTreeMap<String, u64>, Unmeasured>;
}

/// Why there is no figure of energy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("energy is not measured: {why}")]
pub struct Unmeasured {
    /// In words.
    pub why: String,
}
