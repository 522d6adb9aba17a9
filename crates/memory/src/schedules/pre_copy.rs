//! Pre-copy: rounds of push while the guest runs, until the stop rules say that the rest is small enough.
//!
//! ```text
//!              ┌───────────────── Continue ────────────────┐
//!              ▼                                           │
//!   round: push what is unsent, take the log ──► verdict ──┤
//!              ▲                                           ├─ Stop(converged) ──► ready, while the other family isn't:
//!              └── no longer converged ── peek, judge ◄────┘                      look again every other time
//!                                                          └─ Stop(a bound) ────► ready for good
//! ```
//!
//! The rate adapts as in Clark et al. 2005 where `min_rate` is given: round 0 runs at it, and the next round at what
//! was dirtied in a second of the last one plus `rate_step`.

use crate::schedule::{BuildContext, Maker, ORDER, Order};
use whimbrel_model::event::{EndedBy, Round};
use whimbrel_model::registry::Kind;
use whimbrel_model::strategy::{Stage, Verdict};
use whimbrel_model::{
    ByteRate, Entry, Nanos, Observe, Page, Parameter, ParameterError, Parameters, Rest, Schedule, Step, View,
};

pub(super) const ENTRY: Entry<Maker> = Entry {
    name: "pre-copy",
    summary: "rounds of push while the guest runs; what is left when a stop rule says so goes while it is paused",
    parameters: &[ORDER, MOST_RATE, LEAST_RATE, RATE_STEP, CLAMP_ONCE],
    source: "Clark et al., NSDI 2005",
    build: Maker { pushes: true, judged: true, build },
};

const MOST_RATE: Parameter = Parameter {
    name: "max_rate",
    summary: "the most that a round takes of the link; left out: all there is",
    kind: Kind::Rate,
    default: None,
};
const LEAST_RATE: Parameter = Parameter {
    name: "min_rate",
    summary: "the rate of round 0, from which the rate adapts up to max_rate; left out: every round runs at max_rate",
    kind: Kind::Rate,
    default: None,
};
const RATE_STEP: Parameter = Parameter {
    name: "rate_step",
    summary: "with min_rate: how far a round's rate lies above what the last one saw dirtied; left out: 50 Mbit/s",
    kind: Kind::Rate,
    default: None,
};
const CLAMP_ONCE: Parameter = Parameter {
    name: "clamp_once",
    summary: "with min_rate: the first rate beyond max_rate is cut to it and the round made (as the published figures \
              show) instead of ending the push (as the paper's prose has it); left out: true",
    kind: Kind::Flag,
    default: None,
};

/// What lies between the dirty rate and the next round's rate: 50 Mbit/s, by Clark et al.
const STEP: ByteRate = ByteRate(50e6 / 8.0);

/// After a round in which nothing could be sent the next one waits, so that rounds don't follow each other at once.
const REST: Nanos = Nanos(20_000_000);

fn build(parameters: &Parameters, context: &BuildContext) -> Result<Box<dyn Schedule<Page>>, ParameterError> {
    let pace = Pace::read(parameters)?;
    Ok(Box::new(PreCopy { order: Order::read(parameters, context), pace, begun: 0, held: None, looked: false }))
}

struct PreCopy {
    order: Order,
    pace: Pace,
    /// Rounds begun; the engine's list of rounds holds those that have ended.
    begun: u64,
    /// Why it is ready, if it is.
    held: Option<EndedBy>,
    /// The verdict is as of a look that was asked for since it became ready.
    looked: bool,
}

impl Schedule<Page> for PreCopy {
    fn source(&mut self, view: &View<'_, Page>) -> Vec<Step<Page>> {
        let round_goes_on = (view.rounds.len() as u64) < self.begun;
        if view.stage != Stage::Push || round_goes_on {
            return Vec::new();
        }
        match (self.held, view.verdict) {
            (Some(bound), _) if bound != EndedBy::Converged => vec![ready(bound)],
            (_, Verdict::Stop(ended_by)) if self.begun > 0 => self.hold(ended_by),
            _ => self.round(view),
        }
    }
}

fn ready(ended_by: EndedBy) -> Step<Page> {
    Step::Ready { rest: Rest::CarryOver, firm: false, ended_by }
}

impl PreCopy {
    /// Ready; and while the other family isn't, every other time with a fresh look at the log first.
    fn hold(&mut self, ended_by: EndedBy) -> Vec<Step<Page>> {
        let look = self.held == Some(EndedBy::Converged) && ended_by == EndedBy::Converged && !self.looked;
        self.held = Some(ended_by);
        self.looked = look;
        if ended_by == EndedBy::Converged {
            self.pace.clamped = false;
        }
        if look { vec![Step::Observe(Observe::Peek), ready(ended_by)] } else { vec![ready(ended_by)] }
    }

    fn round(&mut self, view: &View<'_, Page>) -> Vec<Step<Page>> {
        self.held = None;
        self.looked = false;
        if let Some(last) = view.rounds.last()
            && last.sent_units == 0
        {
            let rested = Nanos(end_ns(last)).plus(REST);
            if view.now < rested {
                return vec![Step::Wait(rested)];
            }
        }
        let Some(limit) = self.pace.next(view.rounds, view.unit_bytes) else {
            self.held = Some(EndedBy::RateBound);
            return vec![ready(EndedBy::RateBound)];
        };
        let units = self.order.of(view.unsent, self.begun);
        self.begun += 1;
        vec![Step::Push { units, limit }, Step::Observe(Observe::Take)]
    }
}

fn end_ns(round: &Round) -> u64 {
    round.start_ns.saturating_add(round.ns)
}

/// The rates of the rounds.
struct Pace {
    most: Option<ByteRate>,
    adapt: Option<Adapt>,
    /// A rate beyond the largest was cut to it.
    clamped: bool,
}

/// What adapts a round's rate to what was dirtied in the last one.
struct Adapt {
    least: ByteRate,
    step: ByteRate,
    clamp_once: bool,
}

impl Pace {
    fn read(parameters: &Parameters) -> Result<Self, ParameterError> {
        let rate = |name| parameters.optional_number(name).map(ByteRate);
        let refuse = |key: &str, found: String, accepted: &str| {
            Err(ParameterError::Value { key: key.to_owned(), found, accepted: accepted.to_owned() })
        };
        let most = rate("max_rate");
        if most.is_some_and(|m| m.0 <= 0.0) {
            return refuse("max_rate", "a rate of zero".to_owned(), "a rate above zero, or leave it out");
        }
        let Some(least) = rate("min_rate") else {
            return match ["rate_step", "clamp_once"].into_iter().find(|name| parameters.has(name)) {
                Some(key) => {
                    refuse(key, "its value without min_rate".to_owned(), "min_rate too: the rate adapts from it")
                }
                None => Ok(Pace { most, adapt: None, clamped: false }),
            };
        };
        match most {
            None => refuse("min_rate", least.to_string(), "max_rate too: the rate adapts up to it"),
            Some(most) if least.0 <= 0.0 || least > most => {
                refuse("min_rate", least.to_string(), &format!("a rate above zero and at most max_rate, {most}"))
            }
            Some(_) => {
                let clamp_once = !parameters.has("clamp_once") || parameters.flag("clamp_once");
                let adapt = Adapt { least, step: rate("rate_step").unwrap_or(STEP), clamp_once };
                Ok(Pace { most, adapt: Some(adapt), clamped: false })
            }
        }
    }

    /// The next round's limit; `None` where it would have to exceed the largest allowed.
    fn next(&mut self, rounds: &[Round], unit_bytes: u64) -> Option<Option<ByteRate>> {
        let (Some(adapt), Some(most)) = (&self.adapt, self.most) else { return Some(self.most) };
        let Some(dirtied) = dirty_rate(rounds, unit_bytes) else { return Some(Some(adapt.least)) };
        let wanted = dirtied.0 + adapt.step.0;
        if wanted <= most.0 {
            return Some(Some(ByteRate(wanted.max(adapt.least.0))));
        }
        let once_more = adapt.clamp_once && !self.clamped;
        self.clamped = true;
        once_more.then_some(Some(most))
    }
}

/// What was dirtied in a second, from one `Take` to the next: the log was empty when the round before last ended.
fn dirty_rate(rounds: &[Round], unit_bytes: u64) -> Option<ByteRate> {
    let last = rounds.last()?;
    let since = match rounds {
        [.., before, _] => end_ns(before),
        _ => last.start_ns,
    };
    ByteRate::over(last.dirty_units * unit_bytes, Nanos(end_ns(last)).since(Nanos(since)))
}
