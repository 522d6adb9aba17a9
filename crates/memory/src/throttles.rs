//! The table of the throttles.

mod none;
mod stepped;

use crate::throttle::MakeThrottle;
use whimbrel_model::Registry;

/// Every throttle, the null member first.
pub const THROTTLES: Registry<MakeThrottle> = Registry { family: "throttle", entries: &[none::ENTRY, stepped::ENTRY] };
