//! The bandwidth that a migration achieves, over the time in which something was on its way.

use whimbrel_model::{ByteRate, Nanos};

/// Once this much was sent, older bytes count half: the estimate follows the link within a few such windows.
const WINDOW_BYTES: u64 = 16 << 20;

/// Bytes over busy time, for memory and disk together: what a pause would have at its disposal.
#[derive(Debug, Default)]
pub(super) struct Bandwidth {
    bytes: u64,
    busy_ns: u64,
    outstanding: u64,
    since: Nanos,
    /// Sends on their way of which pages go by name, and how many others went on beside such a one: neither says anything of the
    /// link.
    named: u64,
    spoiled: u64,
}

impl Bandwidth {
    /// A send begins.
    pub(super) fn begin(&mut self, now: Nanos) {
        if self.outstanding == 0 {
            self.since = now;
        }
        self.outstanding += 1;
        self.spoiled += u64::from(self.named > 0);
    }

    /// A send begins of which pages go by name: it takes time that the link doesn't take.
    pub(super) fn begin_named(&mut self) {
        self.named += 1;
        self.spoiled = self.outstanding;
    }

    /// Such a send has ended.
    pub(super) fn end_named(&mut self) {
        self.named = self.named.saturating_sub(1);
    }

    /// A send has ended.
    pub(super) fn end(&mut self, now: Nanos, bytes: u64) {
        let busy_ns = now.since(self.since).0;
        self.since = now;
        self.outstanding = self.outstanding.saturating_sub(1);
        if self.spoiled > 0 {
            self.spoiled -= 1;
            return;
        }
        self.busy_ns += busy_ns;
        self.bytes += bytes;
        if self.bytes > WINDOW_BYTES {
            self.bytes /= 2;
            self.busy_ns /= 2;
        }
    }

    /// Bytes a second, once anything was sent.
    pub(super) fn rate(&self) -> Option<ByteRate> {
        (self.bytes > 0).then(|| ByteRate::over(self.bytes, Nanos(self.busy_ns.max(1)))).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_lanes_at_once_count_once_in_time() {
        let mut b = Bandwidth::default();
        assert_eq!(b.rate(), None);
        b.begin(Nanos(0));
        b.begin(Nanos(0));
        b.end(Nanos(1_000_000), 1000);
        b.end(Nanos(1_000_000), 1000);
        assert_eq!(b.rate(), Some(ByteRate(2e6)));
    }

    #[test]
    fn what_goes_beside_names_does_not_count() {
        let mut b = Bandwidth::default();
        b.begin(Nanos(0));
        b.begin_named();
        b.begin(Nanos(10));
        b.end(Nanos(1_000_000), 1000);
        b.end_named();
        b.end(Nanos(2_000_000), 1000);
        assert_eq!(b.rate(), None);
        b.begin(Nanos(3_000_000));
        b.end(Nanos(4_000_000), 1000);
        assert_eq!(b.rate(), Some(ByteRate(1e6)));
    }

    #[test]
    fn idle_time_does_not_count() {
        let mut b = Bandwidth::default();
        b.begin(Nanos(0));
        b.end(Nanos(1_000), 1000);
        b.begin(Nanos(1_000_000));
        b.end(Nanos(1_001_000), 1000);
        assert_eq!(b.rate(), Some(ByteRate(1e9)));
    }
}
