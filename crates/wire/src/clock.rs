//! The host's monotonic clock, precise waiting, and the offset between the clocks of two hosts.
//!
//! An offset is estimated from exchanges of the kind of NTP (Mills, RFC 5905): this host sends at `t0` by its clock, the
//! other receives at `t1` and answers at `t2` by its own, the answer arrives at `t3`.
//!
//! ```text
//!   here   ── t0 ─────────────────────────── t3 ──►
//!               ╲                           ╱
//!   there  ───── t1 ─────────────────── t2 ───────►      offset = ((t1 - t0) + (t2 - t3)) / 2
//! ```
//!
//! The true offset lies within half the round trip of it, whatever the asymmetry of the two ways. So the exchange with
//! the shortest round trip says most, and the others say nothing that it doesn't.

use rustix::thread::{ClockId, clock_nanosleep_absolute};
use rustix::time::{Timespec, clock_gettime};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use whimbrel_model::Nanos;

/// This instant of the host's monotonic clock.
pub fn now() -> Nanos {
    let time = clock_gettime(ClockId::Monotonic);
    Nanos((time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64))
}

/// Blocks the thread until an instant of [`now`]'s clock; returns at once if it has passed.
pub fn sleep_until(instant: Nanos) {
    let time = timespec(instant);
    // The instant is absolute, so a signal in between costs nothing but another turn.
    while clock_nanosleep_absolute(ClockId::Monotonic, &time) == Err(rustix::io::Errno::INTR) {}
}

/// Waits until an instant of [`now`]'s clock without blocking the thread, to tokio's millisecond.
pub async fn sleep_until_async(instant: Nanos) {
    tokio::time::sleep(Duration::from(instant.since(now()))).await;
}

pub(crate) fn timespec(time: Nanos) -> Timespec {
    Timespec { tv_sec: (time.0 / 1_000_000_000) as i64, tv_nsec: (time.0 % 1_000_000_000) as _ }
}

/// One exchange: two instants of this host's clock around two of the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// This host sent.
    pub t0: Nanos,
    /// The other host received, by its clock.
    pub t1: Nanos,
    /// The other host answered, by its clock.
    pub t2: Nanos,
    /// This host received the answer.
    pub t3: Nanos,
}

impl Sample {
    /// The round trip less the other host's pause; `None` where the instants contradict each other.
    fn round_trip(self) -> Option<u64> {
        let here = self.t3.0.checked_sub(self.t0.0)?;
        let there = self.t2.0.checked_sub(self.t1.0)?;
        here.checked_sub(there)
    }
}

/// How far the other host's clock is ahead of this one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offset {
    /// The other clock less this one, in nanoseconds.
    pub offset_ns: i64,
    /// The true offset lies within this of it, in nanoseconds.
    pub error_ns: u64,
}

impl Offset {
    /// An instant of the other host's clock by this host's; an instant before this clock's start becomes its start.
    pub fn to_here(self, there: Nanos) -> Nanos {
        Nanos(there.0.saturating_add_signed(self.offset_ns.saturating_neg()))
    }
}

/// The offset that the exchange with the shortest round trip gives; `None` without a sample that makes sense.
pub fn estimate(samples: &[Sample]) -> Option<Offset> {
    let (round_trip, best) = samples.iter().filter_map(|s| Some((s.round_trip()?, s))).min_by_key(|(trip, _)| *trip)?;
    let out = i128::from(best.t1.0) - i128::from(best.t0.0);
    let back = i128::from(best.t2.0) - i128::from(best.t3.0);
    Some(Offset { offset_ns: i64::try_from((out + back).div_euclid(2)).ok()?, error_ns: round_trip.div_ceil(2) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_true_offset_lies_within_the_error(
            offset in -1_000_000_000_000i64..1_000_000_000_000,
            trips in prop::collection::vec((0u64..5_000_000, 0u64..5_000_000, 0u64..1_000_000), 1..20),
        ) {
            let there = |t: u64| Nanos(t.checked_add_signed(offset).unwrap());
            let mut at = 2_000_000_000_000;
            let mut samples = Vec::new();
            for (out, back, pause) in trips {
                samples.push(Sample { t0: Nanos(at), t1: there(at + out), t2: there(at + out + pause),
                                      t3: Nanos(at + out + pause + back) });
                at += 10_000_000;
            }
            let found = estimate(&samples).unwrap();
            prop_assert!(found.offset_ns.abs_diff(offset) <= found.error_ns, "{found:?}, truly {offset}");
            prop_assert!(samples.iter().all(|s| found.error_ns <= s.round_trip().unwrap().div_ceil(2)));
            prop_assert!(found.to_here(there(at)).0.abs_diff(at) <= found.error_ns);
        }

        #[test]
        fn any_sample_is_survived(t in any::<[u64; 4]>()) {
            let _ = estimate(&[Sample { t0: Nanos(t[0]), t1: Nanos(t[1]), t2: Nanos(t[2]), t3: Nanos(t[3]) }]);
        }
    }

    #[test]
    fn contradictory_samples_say_nothing() {
        let backwards = Sample { t0: Nanos(10), t1: Nanos(5), t2: Nanos(4), t3: Nanos(20) };
        let too_quick = Sample { t0: Nanos(10), t1: Nanos(0), t2: Nanos(50), t3: Nanos(20) };
        assert_eq!(estimate(&[backwards, too_quick]), None);
        assert_eq!(estimate(&[]), None);
    }

    #[test]
    fn sleeping_ends_no_earlier_than_asked() {
        let until = now().plus(Nanos(3_000_000));
        sleep_until(until);
        assert!(now() >= until);
        sleep_until(Nanos(0));
    }
}
