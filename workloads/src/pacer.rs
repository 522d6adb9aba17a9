//! When: the time between operations, so that a rate is met without drift, and the compute time that fills it.

use serde::{Deserialize, Serialize};
use whimbrel_model::op::Op;
use whimbrel_model::stream::Paced;

/// Fractional bits of a nanosecond.
const FRACTION_BITS: u32 = 40;

/// How long a generator without work idles in one operation, in nanoseconds.
pub const REST_NS: u64 = 10_000_000;

/// The work of one Compute operation, in units of about a microsecond: short, as every operation.
const COMPUTE_UNITS: u64 = 50;

/// Turns bytes into the nanoseconds that they take at a rate, and carries the fraction of a nanosecond over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pacer {
    per_byte: Option<u128>,
}

impl Pacer {
    /// A pacer of `rate` bytes a second; `None`: as fast as it can.
    pub fn new(rate: Option<f64>) -> Self {
        Pacer { per_byte: rate.map(|r| ((1e9 / r) * (1u64 << FRACTION_BITS) as f64) as u128) }
    }

    /// The time that `bytes` take, in nanoseconds; 0 without a rate. `carry` is part of the generator's state.
    pub fn interval(&self, bytes: u64, carry: &mut u64) -> u64 {
        let Some(per_byte) = self.per_byte else { return 0 };
        let total = per_byte.saturating_mul(u128::from(bytes)).saturating_add(u128::from(*carry));
        *carry = (total & ((1 << FRACTION_BITS) - 1)) as u64;
        u64::try_from(total >> FRACTION_BITS).unwrap_or(u64::MAX).min(1 << 62)
    }
}

/// The share of its time that a vCPU computes, handed out as short operations between the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Computing {
    share: f64,
}

/// Compute time that is due, in nanoseconds: part of a generator's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Debt(u64);

impl Computing {
    /// Computes for `share` of the time, from 0 to 1.
    pub fn new(share: f64) -> Self {
        Computing { share }
    }

    /// Notes an operation: `interval_ns` until the next one, or without a pace `alone_ns`, what it takes by itself.
    pub fn owe(&self, debt: &mut Debt, interval_ns: u64, alone_ns: u64) {
        let owed = if interval_ns > 0 {
            interval_ns as f64 * self.share
        } else {
            // Unpaced, the share is taken of operation and computing together.
            alone_ns as f64 * (self.share / (1.0 - self.share).max(1e-3))
        };
        debt.0 = debt.0.saturating_add(owed as u64).min(1 << 50);
    }

    /// The next Compute operation, if enough of it is due.
    pub fn due(&self, debt: &mut Debt) -> Option<Paced> {
        let units = (debt.0 / 1000).min(COMPUTE_UNITS);
        if units < COMPUTE_UNITS / 2 {
            return None;
        }
        debt.0 -= units * 1000;
        Some(Paced { op: Op::Compute { units: units as u32 }, interval_ns: 0, units: 0 })
    }

    /// What a generator does whose rate is zero: idles, and computes for its share.
    pub fn rest(&self, debt: &mut Debt) -> Paced {
        let busy = (REST_NS as f64 * self.share) as u64;
        debt.0 = debt.0.saturating_add(busy);
        Paced { op: Op::Idle { nanos: REST_NS - busy }, interval_ns: 0, units: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_rate_is_met_without_drift(rate in 1e3f64..1e10, sizes in prop::collection::vec(512u64..1_048_576, 50..200)) {
            let pacer = Pacer::new(Some(rate));
            let mut carry = 0;
            let time: u64 = sizes.iter().map(|s| pacer.interval(*s, &mut carry)).sum();
            let expected = sizes.iter().sum::<u64>() as f64 * 1e9 / rate;
            prop_assert!((time as f64 - expected).abs() <= 1.0 + expected * 1e-6, "{time} ns, expected {expected}");
        }

        #[test]
        fn compute_fills_its_share(share in 0.0f64..1.0, interval in 1_000u64..1_000_000) {
            let computing = Computing::new(share);
            let (mut debt, mut computed) = (Debt::default(), 0u64);
            for _ in 0..1000 {
                computing.owe(&mut debt, interval, 0);
                while let Some(Paced { op: Op::Compute { units }, .. }) = computing.due(&mut debt) {
                    prop_assert!(units <= 50);
                    computed += u64::from(units) * 1000;
                }
            }
            let expected = share * interval as f64 * 1000.0;
            prop_assert!((computed as f64 - expected).abs() <= 60_000.0, "{computed} ns, expected {expected}");
        }
    }
}
