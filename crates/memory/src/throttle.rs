//! The seam of the throttles: how the guest is slowed so that a move converges.

use whimbrel_model::event::Round;
use whimbrel_model::{ByteRate, Nanos, ParameterError, Parameters};

/// What a throttle sees at a round's end.
#[derive(Clone, Copy, Debug)]
pub struct ThrottleView<'a> {
    /// Memory's rounds that have ended; the last one just now.
    pub rounds: &'a [Round],
    /// The bandwidth achieved lately; `None` until something was sent.
    pub bandwidth: Option<ByteRate>,
    /// Bytes in a page.
    pub unit_bytes: u64,
    /// The time since the migration was requested.
    pub now: Nanos,
    /// The share of the vCPUs' time that is taken now, 0 to 1.
    pub current: f64,
}

/// Decides how much of the vCPUs' time to take. The engine gives all of it back at the switch and on abort.
pub trait Throttle: Send {
    /// The share of the vCPUs' time to take from now on, from 0 (the guest runs free) to below 1.
    fn share(&mut self, view: &ThrottleView<'_>) -> f64;
}

/// The constructor of a throttle.
pub type MakeThrottle = fn(&Parameters) -> Result<Box<dyn Throttle>, ParameterError>;
