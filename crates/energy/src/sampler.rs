//! Reads a meter at a steady pace, on a thread of its own.

use crate::choose::{Clock, pace};
use crate::counter::{Counter, add_all};
use crate::meter::{Meter, Reading, Unmeasured};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use whimbrel_model::Nanos;

/// The energy of every domain from the sampler's start to an instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals {
    /// The instant.
    pub at: Nanos,
    /// Microjoules, in the order of the meter's domains; `None`: it can't be told.
    pub uj: Vec<Option<u64>>,
}

/// Reads until it is dropped. The last reading is made then.
pub struct Sampler {
    ask: Option<Sender<Sender<()>>>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    /// Starts with a first reading now. `every` is how often; oftener where a counter would wrap. `tell` hears of all domains
    /// whenever there is something new.
    pub fn start(
        mut meter: Box<dyn Meter>,
        every: Duration,
        clock: Clock,
        mut tell: impl FnMut(Totals) + Send + 'static,
    ) -> Self {
        let (ask, asked) = channel::<Sender<()>>();
        let mut counters: Vec<Counter> = meter.domains().iter().map(Counter::new).collect();
        let every = pace(&counters, every);
        let thread = std::thread::spawn(move || {
            let (mut next, mut told) = (clock(), None);
            let mut read = || {
                let totals = sample(&mut *meter, &mut counters, clock);
                if told.is_none_or(|last| totals.at > last) {
                    told = Some(totals.at);
                    tell(totals);
                }
            };
            loop {
                read();
                // A reader that was kept from running reads again from now on, and not once for each missed turn.
                let now = clock();
                next = next.plus(every.into()).max(now);
                match wait(&asked, next, clock) {
                    Err(TryRecvError::Empty) => {}
                    Err(TryRecvError::Disconnected) => break,
                    Ok(answer) => {
                        read();
                        // Who asked may have gone.
                        let _ = answer.send(());
                    }
                }
            }
            read();
        });
        Sampler { ask: Some(ask), thread: Some(thread) }
    }

    /// Reads now, besides the steady pace, and returns when what was read has been told.
    pub fn read_now(&self) {
        let (answer, answered) = channel();
        if self.ask.as_ref().is_some_and(|ask| ask.send(answer).is_ok()) {
            self.wake();
            // A thread that has panicked has told of that itself.
            let _ = answered.recv();
        }
    }

    fn wake(&self) {
        self.thread.iter().for_each(|thread| thread.thread().unpark());
    }
}

/// Waits until somebody asks or goes, or until an instant, which is empty. Parked and not in the channel's own wait: that one
/// looks and yields for a while before it sleeps, a hundred times a second.
fn wait(asked: &Receiver<Sender<()>>, until: Nanos, clock: Clock) -> Result<Sender<()>, TryRecvError> {
    loop {
        let said = asked.try_recv();
        let left = until.since(clock());
        if !matches!(said, Err(TryRecvError::Empty)) || left == Nanos(0) {
            return said;
        }
        std::thread::park_timeout(left.into());
    }
}

/// The instant of a reading is known so well. One of which it isn't, since the reader was kept from running meanwhile, would
/// make a power implausible that is none, or a reset plausible.
pub const DOUBT: Nanos = Nanos(50_000_000);

/// A reading is made so often before its instant is given up.
const ATTEMPTS: usize = 5;

/// Reads all domains at an instant, which is given too.
pub(crate) fn read(meter: &mut dyn Meter, clock: Clock) -> (Nanos, Vec<Result<Reading, Unmeasured>>) {
    let mut began = clock();
    for _ in 0..ATTEMPTS {
        let readings = meter.read(began);
        let ended = clock();
        if ended.since(began) <= DOUBT {
            return (began, readings);
        }
        began = ended;
    }
    let why =
        || Unmeasured::because(format!("the reader was kept from running for more than {DOUBT}, again and again"));
    (began, meter.domains().iter().map(|_| Err(why())).collect())
}

/// Reads once. The instant is that of the newest figure; now where there is none.
fn sample(meter: &mut dyn Meter, counters: &mut [Counter], clock: Clock) -> Totals {
    let (now, readings) = read(meter, clock);
    let at = readings.iter().filter_map(|r| Some(r.as_ref().ok()?.at)).max().unwrap_or(now);
    add_all(counters, readings);
    Totals { at, uj: counters.iter().map(Counter::so_far).collect() }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        drop(self.ask.take());
        self.wake();
        if let Some(thread) = self.thread.take() {
            // A panic there is a bug that its own message has told of.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::{Domain, DomainKind};
    use std::sync::atomic::{AtomicU64, Ordering};

    static NOW: AtomicU64 = AtomicU64::new(0);

    fn clock() -> Nanos {
        Nanos(NOW.load(Ordering::SeqCst))
    }

    /// A meter during whose first reads the reader is kept from running.
    struct Slow {
        domains: [Domain; 1],
        slow_reads: usize,
    }

    impl Meter for Slow {
        fn domains(&self) -> &[Domain] {
            &self.domains
        }

        fn read(&mut self, now: Nanos) -> Vec<Result<Reading, Unmeasured>> {
            let late = u64::from(self.slow_reads > 0) * 300_000_000;
            self.slow_reads = self.slow_reads.saturating_sub(1);
            NOW.fetch_add(late + 1000, Ordering::SeqCst);
            vec![Ok(Reading { at: now, uj: clock().0 / 1000 })]
        }
    }

    #[test]
    fn a_reading_whose_instant_is_not_known_is_made_again() {
        let domain = Domain { name: "d".to_owned(), kind: DomainKind::Package, package: None, range_uj: None };
        let mut slow = Slow { domains: [domain], slow_reads: 3 };
        let (at, readings) = read(&mut slow, clock);
        let reading = readings[0].clone().unwrap();
        assert_eq!((reading.at, reading.uj), (at, at.0 / 1000 + 1));
        slow.slow_reads = ATTEMPTS;
        let why = read(&mut slow, clock).1[0].clone().unwrap_err().why;
        assert!(why.contains("kept from running"), "{why}");
    }
}
