//! The clocks of this host, read in one place.

use rustix::time::{ClockId, Timespec, clock_gettime};
use whimbrel_model::Nanos;

pub use whimbrel_wire::clock::now as monotonic;

/// The time of day (CLOCK_REALTIME), since 1970. Only for what must be told from one host to another without a
/// measured offset: how long a guest was away.
pub(crate) fn time_of_day() -> Nanos {
    nanos(clock_gettime(ClockId::Realtime))
}

fn nanos(time: Timespec) -> Nanos {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Nanos(seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0))
}
