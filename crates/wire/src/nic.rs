//! One host's side of the link: its buckets, its delay, and the books of what crossed.

use crate::bucket::Bucket;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use whimbrel_model::{ByteRate, Nanos};

/// A network card of a host: what everything that the host sends and receives goes through. Clones share everything.
#[derive(Clone, Debug)]
pub struct Nic {
    egress: Arc<Bucket>,
    ingress: Option<Arc<Bucket>>,
    delay: Duration,
    traffic: Arc<Traffic>,
    /// The books of the whole card where `traffic` are those of a session.
    card: Option<Arc<Traffic>>,
}

impl Nic {
    /// A card that sends and receives at most so many bytes a second (`None`: no limit), and whose bytes take `delay`
    /// longer to arrive, one way.
    pub fn new(egress: Option<ByteRate>, ingress: Option<ByteRate>, delay: Duration) -> Self {
        Nic {
            egress: Arc::new(Bucket::new(egress)),
            ingress: ingress.map(|rate| Arc::new(Bucket::new(Some(rate)))),
            delay,
            traffic: Arc::default(),
            card: None,
        }
    }

    /// A card without limits and delay.
    pub fn unlimited() -> Self {
        Nic::new(None, None, Duration::ZERO)
    }

    /// The same card with books of its own, for one session. The card's books count its bytes too.
    pub fn for_session(&self) -> Nic {
        let card = self.card.clone().unwrap_or_else(|| Arc::clone(&self.traffic));
        Nic { traffic: Arc::default(), card: Some(card), ..self.clone() }
    }

    /// The bucket of what the host sends.
    pub fn egress(&self) -> &Arc<Bucket> {
        &self.egress
    }

    /// The bucket of what the host receives; `None`: no limit.
    pub fn ingress(&self) -> Option<&Arc<Bucket>> {
        self.ingress.as_ref()
    }

    /// How much longer a byte takes to arrive at the other host.
    pub fn delay(&self) -> Duration {
        self.delay
    }

    /// The books of this card, or of its session.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    pub(crate) fn sent(&self, bytes: u64, at: Nanos) {
        self.traffic.sent.count(bytes, at);
        if let Some(card) = &self.card {
            card.sent.count(bytes, at);
        }
    }

    pub(crate) fn received(&self, bytes: u64, at: Nanos) {
        self.traffic.received.count(bytes, at);
        if let Some(card) = &self.card {
            card.received.count(bytes, at);
        }
    }
}

/// What crossed, in both directions as one host sees them.
#[derive(Debug, Default)]
pub struct Traffic {
    sent: Flow,
    received: Flow,
}

impl Traffic {
    /// What the host sent.
    pub fn sent(&self) -> FlowReading {
        self.sent.read()
    }

    /// What the host received.
    pub fn received(&self) -> FlowReading {
        self.received.read()
    }
}

/// The books of one direction, written by many threads.
#[derive(Debug, Default)]
struct Flow {
    wire_bytes: AtomicU64,
    /// The instant of the first byte; 0: none yet.
    first: AtomicU64,
    last: AtomicU64,
}

impl Flow {
    fn count(&self, bytes: u64, at: Nanos) {
        if bytes == 0 {
            return;
        }
        self.wire_bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.first.load(Ordering::Relaxed) == 0 {
            let _ = self.first.compare_exchange(0, at.0.max(1), Ordering::Relaxed, Ordering::Relaxed);
        }
        self.last.fetch_max(at.0, Ordering::Relaxed);
    }

    fn read(&self) -> FlowReading {
        let first = self.first.load(Ordering::Relaxed);
        FlowReading {
            wire_bytes: self.wire_bytes.load(Ordering::Relaxed),
            first: (first > 0).then_some(Nanos(first)),
            last: (first > 0).then(|| Nanos(self.last.load(Ordering::Relaxed))),
        }
    }
}

/// A reading of one direction's books.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowReading {
    /// All bytes, framing included; what TCP and below add is not.
    pub wire_bytes: u64,
    /// When the first of them crossed, by the host's monotonic clock.
    pub first: Option<Nanos>,
    /// When the last of them crossed.
    pub last: Option<Nanos>,
}

impl FlowReading {
    /// The rate from the first byte to the last; `None` without an interval.
    pub fn achieved(&self) -> Option<ByteRate> {
        ByteRate::over(self.wire_bytes, self.last?.since(self.first?))
    }

    /// What a row says of one direction of a link.
    pub fn link_use(&self, limit: Option<ByteRate>) -> LinkUse {
        LinkUse {
            limit_bytes_per_s: limit.map(|rate| rate.0),
            achieved_bytes_per_s: self.achieved().map(|rate| rate.0),
            wire_bytes: self.wire_bytes,
        }
    }
}

/// What a row says of one direction of a link, besides its ends and its payload.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkUse {
    /// The rate that was set; `None`: none was.
    pub limit_bytes_per_s: Option<f64>,
    /// The rate from the first byte to the last; `None` if there was no interval.
    pub achieved_bytes_per_s: Option<f64>,
    /// All bytes, framing included.
    pub wire_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_books_of_its_own_and_the_card_counts_all() {
        let card = Nic::new(Some(ByteRate(1e6)), None, Duration::ZERO);
        let (one, two) = (card.for_session(), card.for_session());
        let nested = one.for_session();
        one.sent(1000, Nanos(1_000_000));
        one.sent(1000, Nanos(2_000_000));
        two.received(5, Nanos(9));
        nested.sent(1, Nanos(3_000_000));
        assert_eq!(one.traffic().sent().wire_bytes, 2000);
        assert_eq!(one.traffic().sent().achieved(), Some(ByteRate(2e6)));
        assert_eq!(two.traffic().sent(), FlowReading::default());
        assert_eq!(two.traffic().sent().achieved(), None);
        assert_eq!(card.traffic().sent().wire_bytes, 2001);
        assert_eq!(card.traffic().received().wire_bytes, 5);
        assert!(Arc::ptr_eq(one.egress(), card.egress()));
        let used = one.traffic().sent().link_use(one.egress().rate());
        assert_eq!(used.limit_bytes_per_s, Some(1e6));
    }
}
