//! The delay line: a thread that holds what is written for the time it is to take longer.
//!
//! One thread serves one stream. It polls two sockets: the far end of the pair that the writer writes to, and TCP. TCP
//! is shared with whoever reads from the stream, so it is never made non-blocking; single calls are.

use crate::clock;
use crate::nic::Nic;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use std::collections::VecDeque;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use whimbrel_model::{ByteRate, Nanos};

const LEAST_RING_BYTES: u64 = 4 << 20;
const MOST_RING_BYTES: u64 = 256 << 20;

/// The rate that a ring is made for where there is none.
const UNLIMITED_RATE: ByteRate = ByteRate(4e9);

/// The most stamps that are held at a time; 16 bytes each.
const MOST_STAMPS: usize = 1 << 16;

/// How long a relay whose stream was dropped waits for a receiver that takes nothing.
const LINGER: Nanos = Nanos(2_000_000_000);

/// How often a relay looks whether its stream was dropped, while it waits after the last byte was written.
const LOOK: Nanos = Nanos(100_000_000);

/// The writer's end of a delay line. When it is dropped, the relay sends what it holds and ends.
#[derive(Debug)]
pub(super) struct Relay<S> {
    near: S,
    dropped: Dropped,
}

/// Tells the relay's thread that nobody is left who could notice its failure.
#[derive(Debug)]
struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<S> Relay<S> {
    /// Where the writer writes.
    pub(super) fn near(&self) -> &S {
        &self.near
    }

    /// Where the writer writes, for writers that need it to themselves.
    pub(super) fn near_mut(&mut self) -> &mut S {
        &mut self.near
    }

    /// The same end in another form.
    pub(super) fn convert<T>(self, form: impl FnOnce(S) -> io::Result<T>) -> io::Result<Relay<T>> {
        Ok(Relay { near: form(self.near)?, dropped: self.dropped })
    }
}

impl Relay<UnixStream> {
    /// Starts a relay in front of a connection; `None` where the card has no delay.
    pub(super) fn open(tcp: &impl AsFd, nic: &Nic) -> io::Result<Option<Self>> {
        if nic.delay().is_zero() {
            return Ok(None);
        }
        let (near, far) = UnixStream::pair()?;
        let dropped = Arc::new(AtomicBool::new(false));
        let mut line = Line {
            far: far.into(),
            tcp: tcp.as_fd().try_clone_to_owned()?,
            delay: nic.delay().into(),
            ring: Ring::new(ring_bytes(nic)),
            ended: false,
            blocked: false,
            dropped: Arc::clone(&dropped),
            progress: clock::now(),
        };
        std::thread::Builder::new().name("delay".to_owned()).spawn(move || line.run())?;
        Ok(Some(Relay { near, dropped: Dropped(dropped) }))
    }
}

/// What the rate carries in twice the delay, within bounds.
fn ring_bytes(nic: &Nic) -> usize {
    let rate = nic.egress().rate().unwrap_or(UNLIMITED_RATE);
    let bytes = rate.0 * nic.delay().as_secs_f64() * 2.0;
    (bytes as u64).clamp(LEAST_RING_BYTES, MOST_RING_BYTES) as usize
}

/// The relay's thread.
struct Line {
    far: OwnedFd,
    tcp: OwnedFd,
    delay: Nanos,
    ring: Ring,
    /// The writer said that nothing follows.
    ended: bool,
    /// TCP takes nothing at the moment.
    blocked: bool,
    dropped: Arc<AtomicBool>,
    /// When TCP last took something.
    progress: Nanos,
}

impl Line {
    fn run(&mut self) {
        // The default slack of 50 us would be added to every delay. Without the call the delay is merely longer.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        if self.carry().is_err() {
            // The connection failed. The writer learns of it as of any pipe whose reader has gone.
            let _ = shutdown(&self.far, Shutdown::Both);
            let _ = shutdown(&self.tcp, Shutdown::Both);
        }
    }

    /// Carries bytes until the writer ends and everything is sent.
    fn carry(&mut self) -> Result<(), Errno> {
        while !(self.ended && self.ring.is_empty()) {
            self.wait()?;
            self.take_in()?;
            self.send_out()?;
        }
        shutdown(&self.tcp, Shutdown::Write)
    }

    /// Sleeps until something can be read, written or is due.
    fn wait(&mut self) -> Result<(), Errno> {
        let reads = if !self.ended && self.ring.has_space() { PollFlags::IN } else { PollFlags::empty() };
        let writes = if self.blocked { PollFlags::OUT } else { PollFlags::empty() };
        let due = self.ring.due().filter(|_| !self.blocked).map(|due| due.since(clock::now()));
        let look = self.ended.then_some(LOOK);
        let timeout: Option<Timespec> = [due, look].into_iter().flatten().min().map(clock::timespec);
        let mut sockets = [PollFd::new(&self.far, reads), PollFd::new(&self.tcp, writes)];
        match poll(&mut sockets, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let tcp = sockets[1].revents();
        // A hang-up of TCP means that both directions are shut, and this side's was not shut by the relay.
        if tcp.intersects(PollFlags::ERR | PollFlags::HUP) {
            return Err(Errno::CONNRESET);
        }
        self.blocked &= !tcp.contains(PollFlags::OUT);
        if self.ended
            && self.dropped.load(Ordering::Relaxed)
            && clock::now().since(self.progress) > LINGER.plus(self.delay)
        {
            return Err(Errno::TIMEDOUT);
        }
        Ok(())
    }

    /// Reads what there is and stamps it.
    fn take_in(&mut self) -> Result<(), Errno> {
        while !self.ended && self.ring.has_space() {
            match recv(&self.far, self.ring.space(), RecvFlags::DONTWAIT) {
                Ok((_, 0)) => self.ended = true,
                Ok((_, bytes)) => self.ring.fill(bytes, clock::now().plus(self.delay)),
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes what is due.
    fn send_out(&mut self) -> Result<(), Errno> {
        while !self.blocked {
            let due = self.ring.due_by(clock::now());
            if due.is_empty() {
                break;
            }
            match send(&self.tcp, due, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(bytes) => {
                    self.ring.consume(bytes);
                    self.progress = clock::now();
                }
                Err(Errno::AGAIN) => self.blocked = true,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A bounded queue of bytes with the instants at which they are due.
struct Ring {
    bytes: Box<[u8]>,
    head: usize,
    len: usize,
    /// When the next so many bytes are due, in their order.
    stamps: VecDeque<(Nanos, usize)>,
}

impl Ring {
    fn new(capacity: usize) -> Self {
        // Zeroed memory of this size is not touched, and so takes no room, before it is used.
        Ring { bytes: vec![0; capacity].into(), head: 0, len: 0, stamps: VecDeque::new() }
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn has_space(&self) -> bool {
        self.len < self.bytes.len() && self.stamps.len() < MOST_STAMPS
    }

    /// The free bytes after the last one, up to the ring's seam.
    fn space(&mut self) -> &mut [u8] {
        let tail = (self.head + self.len) % self.bytes.len();
        let end = if tail < self.head { self.head } else { self.bytes.len() };
        // A full ring has its tail at its head: no space, not all of it.
        let end = if self.len == self.bytes.len() { tail } else { end };
        &mut self.bytes[tail..end]
    }

    fn fill(&mut self, bytes: usize, due: Nanos) {
        self.len += bytes;
        self.stamps.push_back((due, bytes));
    }

    fn due(&self) -> Option<Nanos> {
        self.stamps.front().map(|(due, _)| *due)
    }

    /// What is due by `now`, from the first byte on, up to the ring's seam.
    fn due_by(&self, now: Nanos) -> &[u8] {
        let due: usize = self.stamps.iter().take_while(|(due, _)| *due <= now).map(|(_, bytes)| bytes).sum();
        let end = (self.head + due).min(self.bytes.len());
        &self.bytes[self.head..end]
    }

    fn consume(&mut self, bytes: usize) {
        self.len -= bytes;
        // An empty ring starts anew, so that a quiet stream stays in memory that it has touched.
        self.head = if self.len == 0 { 0 } else { (self.head + bytes) % self.bytes.len() };
        let mut rest = bytes;
        while let Some((_, first)) = self.stamps.front_mut()
            && rest > 0
        {
            let part = rest.min(*first);
            *first -= part;
            rest -= part;
            if *first == 0 {
                self.stamps.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        #[test]
        fn a_ring_gives_back_what_it_took_in_order_and_no_earlier_than_due(
            capacity in 1usize..60, steps in prop::collection::vec((0usize..40, 0usize..40), 1..200),
        ) {
            let mut ring = Ring::new(capacity);
            let (mut taken, mut given) = (Vec::new(), Vec::new());
            let mut next = 0u8;
            for (now, (take, give)) in steps.into_iter().enumerate() {
                let now = now as u64;
                let space = ring.space();
                let take = take.min(space.len());
                for byte in &mut space[..take] {
                    *byte = next;
                    taken.push((now + 3, next));
                    next = next.wrapping_add(1);
                }
                if take > 0 {
                    ring.fill(take, Nanos(now + 3));
                }
                let due = ring.due_by(Nanos(now));
                let give = give.min(due.len());
                given.extend_from_slice(&due[..give]);
                ring.consume(give);
                prop_assert!(taken[..given.len()].iter().all(|(due, _)| *due <= now));
                prop_assert!(ring.len <= capacity && ring.len == taken.len() - given.len());
                prop_assert_eq!(ring.stamps.iter().map(|(_, bytes)| bytes).sum::<usize>(), ring.len);
            }
            let expected: Vec<u8> = taken.iter().map(|(_, byte)| *byte).take(given.len()).collect();
            prop_assert_eq!(given, expected);
        }
    }

    #[test]
    fn a_ring_holds_what_the_rate_carries_in_twice_the_delay() {
        let bytes = |rate, ms| ring_bytes(&Nic::new(rate, None, Duration::from_millis(ms)));
        assert_eq!(bytes(Some(ByteRate(1e9)), 10), 20_000_000);
        assert_eq!(bytes(Some(ByteRate(1e6)), 10), 4 << 20);
        assert_eq!(bytes(None, 10), 80_000_000);
        assert_eq!(bytes(None, 1000), 256 << 20);
    }
}
