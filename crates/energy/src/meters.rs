//! The registry of the meters.

mod null;

use crate::meter::Build;
use whimbrel_model::Registry;

/// The meters.
pub const METERS: Registry<Build> = Registry { family: "meter", entries: &[null::ENTRY] };

#[cfg(test)]
mod tests {
    use super::METERS;

    #[test]
    fn a_meter_gives_a_figure_or_says_why_not() {
        for entry in METERS.entries {
            if let Err(unmeasured) = (entry.build)().read() {
                assert!(!unmeasured.why.is_empty(), "{} gives no reason", entry.name);
            }
        }
    }
}
