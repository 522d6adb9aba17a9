//! How long to look for what a thread waits for before it sleeps.
//!
//! A client that waits for each reply sends its next request soon after. A thread that sleeps meanwhile has to be woken, and
//! on a virtual machine whose processor went idle that can take longer than the request: 20 to 60 us. Looking again and
//! again instead saves it. But where others want the processor, or a wake-up is cheap, it only burns time. No figure of the
//! host tells which it is, so it is tried: the same connection sleeps for some waits and looks for some, and goes on in the
//! way in which more bytes moved a second.
//!
//! ```text
//!            waits are short            looks moved bytes faster
//!   sleeping -----------------> trying -------------------------> looking
//!   ^  ^ '-. waits are longer     |                                |   |
//!   |  '---' than a look may be   | not faster, or others ran long |   | after LOOKING waits, sooner
//!   |                             v                                |   | if looks were in vain
//!   '------------------------- resting <---------------------------'   |
//!   '------------------------------------------------------------------'
//! ```
//!
//! A connection that is idle or paced stays in the first state, which costs it nothing. Each rest in a row is twice as long.

use std::time::Duration;

/// The longest look.
const LOOK_MAX: Duration = Duration::from_micros(150);
/// A wait counts as no longer than this: one pause of a client says nothing about the rest.
const WAIT_MAX: Duration = Duration::from_micros(600);
/// Letting others run takes less than this where nobody wants to for long.
const CROWDED: Duration = Duration::from_millis(1);
/// Waits by which a way is judged.
const SAMPLE: u32 = 64;
/// Waits until looks that won are judged again.
const LOOKING: u32 = 4096;
/// As how many waits a look in vain counts there.
const VAIN: u32 = 64;
/// Waits until looks that lost are tried again, the first time and at most.
const RESTING: [u32; 2] = [1024, 64 << 10];
/// How much faster bytes have to move with looks: they cost a processor's time.
const GAIN: f64 = 1.1;

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Sleeping,
    /// How fast bytes moved before.
    Trying {
        sleeping: f64,
    },
    Looking,
    Resting,
}

/// What a thread did between the ends of two waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    /// How long it had something to do.
    pub(crate) busy: Duration,
    /// How long it waited then.
    pub(crate) waited: Duration,
    /// Bytes moved, both ways.
    pub(crate) moved_bytes: u64,
}

/// The rule, told of every wait.
#[derive(Debug)]
pub(crate) struct Vigil {
    state: State,
    /// Waits until the next state.
    left: u32,
    /// Time and bytes since this state began.
    spent: Duration,
    waited: Duration,
    moved_bytes: u64,
    /// How long the next rest is.
    rest: u32,
    /// Whether there is a processor for the client while this thread looks.
    may: bool,
}

impl Vigil {
    /// For a thread that may run on so many processors.
    pub(crate) fn new(processors: usize) -> Self {
        let (spent, waited) = (Duration::ZERO, Duration::ZERO);
        let [rest, _] = RESTING;
        Self { state: State::Sleeping, left: SAMPLE, spent, waited, moved_bytes: 0, rest, may: processors > 1 }
    }

    /// Asked when a wait begins: how long to look.
    pub(crate) fn look(&self) -> Duration {
        match self.state {
            State::Trying { .. } | State::Looking => LOOK_MAX,
            State::Sleeping | State::Resting => Duration::ZERO,
        }
    }

    /// Told during a look how long others ran when they were let; whether to go on.
    pub(crate) fn let_others_run(&mut self, took: Duration) -> bool {
        if took >= CROWDED {
            self.begin_rest();
        }
        took < CROWDED
    }

    /// Told of a turn when its wait is over.
    pub(crate) fn turned(&mut self, turn: Turn) {
        let waited = turn.waited.min(WAIT_MAX);
        self.spent += turn.busy + waited;
        self.waited += waited;
        self.moved_bytes += turn.moved_bytes;
        let vain = self.state == State::Looking && turn.waited > LOOK_MAX;
        self.left = self.left.saturating_sub(if vain { VAIN } else { 1 });
        if self.left > 0 {
            return;
        }
        let speed = self.moved_bytes as f64 / self.spent.as_secs_f64().max(1e-9);
        match self.state {
            State::Sleeping if self.may && self.waited < LOOK_MAX * SAMPLE => {
                self.begin(State::Trying { sleeping: speed }, SAMPLE);
            }
            State::Trying { sleeping } if speed >= sleeping * GAIN => {
                [self.rest, _] = RESTING;
                self.begin(State::Looking, LOOKING);
            }
            State::Trying { .. } => self.begin_rest(),
            State::Sleeping | State::Looking | State::Resting => self.begin(State::Sleeping, SAMPLE),
        }
    }

    fn begin_rest(&mut self) {
        self.begin(State::Resting, self.rest);
        let [_, most] = RESTING;
        self.rest = (self.rest * 2).min(most);
    }

    fn begin(&mut self, state: State, waits: u32) {
        (self.state, self.left) = (state, waits);
        (self.spent, self.waited, self.moved_bytes) = (Duration::ZERO, Duration::ZERO, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that takes its time for each request, and what a wake-up adds to a wait that was slept.
    struct Client {
        takes_us: u64,
        wake_us: u64,
        /// What looking adds: a processor that is missed elsewhere.
        look_us: u64,
    }

    impl Client {
        /// The share of so many waits that were looks.
        fn looks(&self, vigil: &mut Vigil, waits: u32) -> f64 {
            let mut looks = 0;
            for _ in 0..waits {
                let look = !vigil.look().is_zero();
                looks += u32::from(look);
                let woken_us = if look && self.takes_us <= 150 { self.look_us } else { self.wake_us };
                let waited = Duration::from_micros(self.takes_us + woken_us);
                vigil.turned(Turn { busy: Duration::from_micros(5), waited, moved_bytes: 4140 });
            }
            f64::from(looks) / f64::from(waits)
        }
    }

    #[test]
    fn looks_go_on_where_they_win_and_nowhere_else() {
        let slow_to_wake = Client { takes_us: 60, wake_us: 40, look_us: 0 };
        assert!(slow_to_wake.looks(&mut Vigil::new(2), 20_000) > 0.95);
        assert_eq!(slow_to_wake.looks(&mut Vigil::new(1), 20_000), 0.0);
        let quick_to_wake = Client { takes_us: 10, wake_us: 1, look_us: 0 };
        assert!(quick_to_wake.looks(&mut Vigil::new(2), 1_000_000) < 0.005);
        let busy_host = Client { takes_us: 10, wake_us: 5, look_us: 20 };
        assert!(busy_host.looks(&mut Vigil::new(2), 1_000_000) < 0.005);
        let paced = Client { takes_us: 200, wake_us: 40, look_us: 0 };
        assert_eq!(paced.looks(&mut Vigil::new(2), 20_000), 0.0);
    }

    #[test]
    fn a_client_that_goes_away_is_not_looked_for_long() {
        let mut vigil = Vigil::new(2);
        let present = Client { takes_us: 60, wake_us: 40, look_us: 0 };
        present.looks(&mut vigil, 300);
        assert!(!vigil.look().is_zero());
        let away = Client { takes_us: 1_000_000, wake_us: 40, look_us: 0 };
        assert!(away.looks(&mut vigil, 10_000) * 10_000.0 <= 64.0);
        // And when it is back, so are the looks.
        assert!(present.looks(&mut vigil, 20_000) > 0.9);
    }

    #[test]
    fn looks_end_at_once_where_others_want_the_processor() {
        let mut vigil = Vigil::new(2);
        let client = Client { takes_us: 60, wake_us: 40, look_us: 0 };
        client.looks(&mut vigil, 300);
        assert!(vigil.let_others_run(Duration::from_micros(20)) && !vigil.look().is_zero());
        assert!(!vigil.let_others_run(Duration::from_millis(3)) && vigil.look().is_zero());
        assert_eq!(client.looks(&mut vigil, 1000), 0.0);
        assert!(client.looks(&mut vigil, 20_000) > 0.9);
    }
}
