//! The bucket that every byte of one direction of one network card goes through: memory, NBD, demand and control.
//!
//! A token bucket *with debt*: bytes may go once everything that went before them is paid for, and then put the bucket
//! into debt. An idle link saves credit up to one burst.
//!
//! | level | meaning | a reservation of bulk, or ahead of it | an urgent reservation |
//! |---|---|---|---|
//! | >= 0 | credit, at most one burst | goes if the credit also covers the bulk booked before it | goes |
//! | < 0 | debt of what has gone | waits, behind the bulk booked before it | waits for the debt only |
//!
//! Bulk (the memory lanes' push, NBD) is served first come, first served by bursts: callers ask for at most one burst at
//! a time, so several lanes share the link evenly. What is asked for *ahead* (a prefetch) stands in the same queue before
//! all bulk: while it lasts, bulk gets nothing. Urgent bytes (demand replies, control) pass the bulk that *waits*;
//! what has gone they wait for, at most one burst. They are charged all the same: bulk that waits is pushed back, and
//! urgents alone are held to the rate. Over any window, the bytes that go are at most rate x window + 2 bursts.
//!
//! A waiter that wakes late loses no rate: while somebody waits, credit grows up to 10 ms of the rate. (On a busy machine
//! a wake-up is often later than a burst lasts. A real card would have sent from its queue meanwhile.) After a stall
//! longer than a burst, a window that begins at its end can so carry as much more as the stall kept back.
//!
//! The arithmetic is exact (integers, billionths of a byte) and reads no clock: `now` is the caller's. Only
//! [`Bucket::admit`] and [`Bucket::admit_async`] wait, by the host's clock.

use crate::clock;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use whimbrel_model::{ByteRate, Nanos};

/// The least burst, in bytes: what one segmented packet holds.
pub const LEAST_BURST_BYTES: u64 = 64 << 10;

/// The chunk that [`Bucket::burst_bytes`] recommends where there is no rate.
pub const UNLIMITED_CHUNK_BYTES: u64 = 1 << 20;

/// A burst is what the rate carries in this time, unless that is less than [`LEAST_BURST_BYTES`].
const BURST: Nanos = Nanos(2_000_000);

/// The most lateness of a waiter that is made up for.
const LATENESS: Nanos = Nanos(10_000_000);

/// The longest that a waiter sleeps before it looks again: the rate may have changed.
const RECHECK: Nanos = Nanos(20_000_000);

/// Levels are kept in billionths of a byte, so that a rate times nanoseconds is exact.
const SCALE: i128 = 1_000_000_000;

/// How pressing bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Somebody waits for them: a demand reply, control. They pass all that waits.
    Urgent,
    /// Somebody will soon wait for them: what a destination fetches by itself. They go before the bulk that waits.
    Ahead,
    /// Everything else, first come, first served.
    Bulk,
}

/// A shared limit on bytes a second; see the [module](self). One a host, direction and network card.
#[derive(Debug)]
pub struct Bucket {
    state: Mutex<State>,
    /// A copy of the rate that is read without the lock; 0: unlimited.
    rate: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// Bytes a second; `None`: unlimited.
    rate: Option<u64>,
    /// Credit if positive, debt of what has gone if negative, in billionths of a byte.
    level: i128,
    /// The instant for which `level` holds.
    as_of: Nanos,
    /// Bulk that has not gone, first come first.
    waiting: VecDeque<Waiting>,
    next_ticket: u64,
}

#[derive(Debug)]
struct Waiting {
    ticket: u64,
    class: Class,
    bytes: u64,
    /// The instant at which these bytes go by themselves; `None`: their owner asks again.
    goes: Option<Nanos>,
}

impl Bucket {
    /// A bucket with one burst of credit. A rate below one byte a second counts as one byte a second.
    pub fn new(rate: Option<ByteRate>) -> Self {
        let rate = whole(rate);
        let level = rate.map_or(0, |rate| burst_of(rate) as i128 * SCALE);
        let state = State { rate, level, as_of: Nanos(0), waiting: VecDeque::new(), next_ticket: 0 };
        Bucket { state: Mutex::new(state), rate: AtomicU64::new(rate.unwrap_or(0)) }
    }

    /// A bucket that limits nothing.
    pub fn unlimited() -> Self {
        Bucket::new(None)
    }

    /// The rate, in whole bytes a second; `None`: unlimited.
    pub fn rate(&self) -> Option<ByteRate> {
        match self.rate.load(Ordering::Relaxed) {
            0 => None,
            rate => Some(ByteRate(rate as f64)),
        }
    }

    /// The most bytes that a caller may ask for at once: 2 ms of the rate, at least [`LEAST_BURST_BYTES`].
    pub fn burst_bytes(&self) -> u64 {
        match self.rate.load(Ordering::Relaxed) {
            0 => UNLIMITED_CHUNK_BYTES,
            rate => burst_of(rate),
        }
    }

    /// Changes the rate from `now` on. Who waits learns of it within 20 ms.
    pub fn set_rate(&self, now: Nanos, rate: Option<ByteRate>) {
        let rate = whole(rate);
        let mut state = self.lock();
        state.advance(now);
        // Coming from unlimited there is no history: the bucket starts with one burst of credit, as a new one does.
        let credit = rate.map_or(0, |rate| burst_of(rate) as i128 * SCALE);
        state.level = if state.rate.is_none() { credit } else { state.level.min(credit) };
        state.as_of = state.as_of.max(now);
        state.rate = rate;
        self.rate.store(rate.unwrap_or(0), Ordering::Relaxed);
    }

    /// The instant at which these bytes may go, never before `now`. Final: the caller need not ask again.
    ///
    /// Bulk that got an instant this way is not pushed back by urgent bytes that come later, so several callers that
    /// wait at the same time can together exceed the bound by a burst each; [`Bucket::book`] can't.
    pub fn reserve(&self, now: Nanos, bytes: u64, class: Class) -> Nanos {
        let mut state = self.lock();
        state.advance(now);
        let instant = state.instant(now, state.ahead_of(class));
        if class != Class::Urgent && instant > now {
            state.queue(class, bytes, Some(instant));
        } else {
            state.charge(bytes);
        }
        instant
    }

    /// Asks to send bytes: `None` means now, else the booking says when to ask again.
    pub fn book(self: &Arc<Self>, now: Nanos, bytes: u64, class: Class) -> Option<Booking> {
        if self.rate.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut state = self.lock();
        state.advance(now);
        let instant = state.instant(now, state.ahead_of(class));
        if instant <= now {
            state.charge(bytes);
            return None;
        }
        let place = match class {
            Class::Urgent => {
                state.charge(bytes);
                Place::At(instant)
            }
            Class::Ahead | Class::Bulk => Place::Ticket(state.queue(class, bytes, None)),
        };
        drop(state);
        Some(Booking { bucket: Arc::clone(self), place })
    }

    /// Charges bytes that have gone already, such as those that were read from a stream.
    pub fn charge(&self, now: Nanos, bytes: u64) {
        if self.rate.load(Ordering::Relaxed) != 0 {
            let mut state = self.lock();
            state.advance(now);
            state.charge(bytes);
        }
    }

    /// Blocks the thread until these bytes may go. Cheap where there is no rate.
    pub fn admit(self: &Arc<Self>, bytes: u64, class: Class) {
        let Some(mut booking) = self.book(clock::now(), bytes, class) else { return };
        while let Some(instant) = booking.due(clock::now()) {
            clock::sleep_until(instant);
        }
    }

    /// Waits until these bytes may go. If the future is dropped before, they are not charged (urgent ones are).
    pub async fn admit_async(self: &Arc<Self>, bytes: u64, class: Class) {
        let Some(mut booking) = self.book(clock::now(), bytes, class) else { return };
        while let Some(instant) = booking.due(clock::now()) {
            clock::sleep_until_async(instant).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds a bucket's lock")
    }
}

/// Bytes that wait for their turn in a [`Bucket`]. Dropped before its turn, a bulk booking charges nothing.
#[derive(Debug)]
pub struct Booking {
    bucket: Arc<Bucket>,
    place: Place,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// Bulk in the queue.
    Ticket(u64),
    /// Urgent: charged, and goes at this instant.
    At(Nanos),
    /// Gone.
    Gone,
}

impl Booking {
    /// `None`: the bytes may go now, and are charged. Else the instant at which to ask again, later than `now`.
    pub fn due(&mut self, now: Nanos) -> Option<Nanos> {
        let mut state = self.bucket.lock();
        state.advance(now);
        let next = match self.place {
            Place::Ticket(ticket) => state.depart(now, ticket),
            Place::At(instant) => (instant > now && state.rate.is_some()).then_some(instant),
            Place::Gone => None,
        };
        if next.is_none() {
            self.place = Place::Gone;
        }
        next.map(|instant| instant.min(now.plus(RECHECK)))
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        if let Place::Ticket(ticket) = self.place {
            self.bucket.lock().waiting.retain(|w| w.ticket != ticket);
        }
    }
}

impl State {
    /// Earns what the time since the last call is worth, and lets go what goes by itself in between.
    fn advance(&mut self, now: Nanos) {
        // In the order of their instants: credit that was used in between must not be cut off at the burst.
        while let Some(at) = (0..self.waiting.len())
            .filter(|at| self.waiting[*at].goes.is_some_and(|goes| goes <= now))
            .min_by_key(|at| self.waiting[*at].goes)
        {
            if let Some(Waiting { bytes, goes: Some(goes), .. }) = self.waiting.remove(at) {
                self.earn(goes);
                self.charge(bytes);
            }
        }
        self.earn(now);
    }

    fn earn(&mut self, now: Nanos) {
        let Some(rate) = self.rate else { return };
        let elapsed = now.since(self.as_of);
        let burst = burst_of(rate) as i128 * SCALE;
        let most = if self.waiting.iter().any(|w| w.goes.is_none()) {
            burst.max(i128::from(LATENESS.0) * i128::from(rate))
        } else if elapsed < BURST {
            // What lateness earned is kept until the late ones have asked again.
            burst.max(self.level)
        } else {
            burst
        };
        self.level = (self.level + i128::from(elapsed.0) * i128::from(rate)).min(most);
        self.as_of = self.as_of.max(now);
    }

    fn charge(&mut self, bytes: u64) {
        if self.rate.is_some() {
            self.level -= i128::from(bytes) * SCALE;
        }
    }

    /// When the debt and the `ahead` bytes will be paid for.
    fn instant(&self, now: Nanos, ahead: u64) -> Nanos {
        let Some(rate) = self.rate else { return now };
        let owed = i128::from(ahead) * SCALE - self.level;
        if owed <= 0 {
            return now;
        }
        let wait = (owed + i128::from(rate) - 1) / i128::from(rate);
        now.plus(Nanos(u64::try_from(wait).unwrap_or(u64::MAX)))
    }

    /// The bytes that wait and go before those of this class that come now.
    fn ahead_of(&self, class: Class) -> u64 {
        self.waiting.iter().filter(|waiting| waiting.class <= class).map(|waiting| waiting.bytes).sum()
    }

    fn queue(&mut self, class: Class, bytes: u64, goes: Option<Nanos>) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let place = self.waiting.partition_point(|waiting| waiting.class <= class);
        self.waiting.insert(place, Waiting { ticket, class, bytes, goes });
        ticket
    }

    /// Lets a booking go if its turn has come, else says when it may have.
    fn depart(&mut self, now: Nanos, ticket: u64) -> Option<Nanos> {
        let at = self.waiting.iter().position(|w| w.ticket == ticket)?;
        let ahead = self.waiting.iter().take(at).map(|w| w.bytes).sum();
        let instant = self.instant(now, ahead);
        if instant > now {
            return Some(instant);
        }
        if let Some(gone) = self.waiting.remove(at) {
            self.charge(gone.bytes);
        }
        None
    }
}

/// A rate in whole bytes a second, at least one.
fn whole(rate: Option<ByteRate>) -> Option<u64> {
    rate.map(|rate| rate.0.clamp(1.0, 1e15) as u64).map(|rate| rate.max(1))
}

fn burst_of(rate: u64) -> u64 {
    let bytes = u128::from(rate) * u128::from(BURST.0) / 1_000_000_000;
    (bytes as u64).max(LEAST_BURST_BYTES)
}

#[cfg(test)]
mod tests;
