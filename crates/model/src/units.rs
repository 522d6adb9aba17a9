//! Distinct types for distinct numbers: bytes, rates, instants, and the two kinds of unit that migrate.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The size of a memory page in bytes, the granule of memory tracking.
pub const PAGE_BYTES: u64 = 4096;

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// A rate in bytes a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteRate(pub f64);

impl ByteRate {
    /// The rate that moved `bytes` in `time`; `None` for an empty interval.
    pub fn over(bytes: u64, time: Nanos) -> Option<Self> {
        (time.0 > 0).then(|| ByteRate(bytes as f64 * 1e9 / time.0 as f64))
    }

    /// How long `bytes` take at this rate. A rate of zero takes for ever (the largest instant).
    pub fn time_for(self, bytes: u64) -> Nanos {
        if bytes == 0 {
            return Nanos(0);
        }
        let ns = bytes as f64 * 1e9 / self.0;
        Nanos(if ns.is_finite() { ns.ceil() as u64 } else { u64::MAX })
    }
}

/// Nanoseconds: an instant of a host's monotonic clock, or a duration between two of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nanos(pub u64);

impl Nanos {
    /// The time from `earlier` to `self`, zero if it lies the other way round.
    pub fn since(self, earlier: Nanos) -> Nanos {
        Nanos(self.0.saturating_sub(earlier.0))
    }

    /// This instant, `later` nanoseconds on.
    pub fn plus(self, later: Nanos) -> Nanos {
        Nanos(self.0.saturating_add(later.0))
    }
}

impl From<Duration> for Nanos {
    fn from(duration: Duration) -> Self {
        Nanos(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl From<Nanos> for Duration {
    fn from(nanos: Nanos) -> Self {
        Duration::from_nanos(nanos.0)
    }
}

/// What migrates in units: a page of memory or a block of a disk. Keeps page numbers and block numbers apart.
pub trait Unit: Copy + Clone + std::fmt::Debug + PartialEq + Eq + Send + Sync + 'static {
    /// The unit's name in messages: `page` or `block`.
    const NAME: &'static str;
}

/// The unit of memory: one page of [`PAGE_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page;

/// The unit of a disk: one block, of a size that the guest's disk declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block;

impl Unit for Page {
    const NAME: &'static str = "page";
}

impl Unit for Block {
    const NAME: &'static str = "block";
}
