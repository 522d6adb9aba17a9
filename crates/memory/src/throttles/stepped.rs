//! A throttle that rises step by step while the guest dirties much of what is sent: QEMU's auto-converge.

use crate::throttle::{MakeThrottle, Throttle, ThrottleView};
use whimbrel_model::registry::Kind;
use whimbrel_model::{Entry, Parameter, ParameterError, Parameters};

pub(super) const ENTRY: Entry<MakeThrottle> = Entry {
    name: "stepped",
    summary: "slows the guest a step further each second time that a round dirties much of what it sent",
    parameters: &[
        Parameter {
            name: "throttle_initial",
            summary: "the first step: share of the vCPUs' time",
            kind: Kind::Ratio,
            default: Some("0.20"),
        },
        Parameter {
            name: "throttle_increment",
            summary: "each further step",
            kind: Kind::Ratio,
            default: Some("0.10"),
        },
        Parameter {
            name: "throttle_most",
            summary: "the largest share, at most 0.99",
            kind: Kind::Ratio,
            default: Some("0.99"),
        },
        Parameter {
            name: "throttle_trigger",
            summary: "a round counts if its dirty bytes exceed this share of the bytes that it sent",
            kind: Kind::Ratio,
            default: Some("0.50"),
        },
    ],
    source: "QEMU 2.5 and later, auto-converge; a round stands for its period",
    build,
};

/// Rounds beyond the trigger that make a step.
const STRIKES: u32 = 2;

fn build(parameters: &Parameters) -> Result<Box<dyn Throttle>, ParameterError> {
    let [initial, increment, most, trigger] =
        ["throttle_initial", "throttle_increment", "throttle_most", "throttle_trigger"].map(|n| parameters.number(n));
    let refuse = |key: &str, found: f64, accepted: &str| {
        let (key, found, accepted) = (key.to_owned(), found.to_string(), accepted.to_owned());
        Err(ParameterError::Value { key, found, accepted })
    };
    if most > 0.99 {
        return refuse("throttle_most", most, "at most 0.99: a guest that stands still isn't live");
    }
    if initial > most || initial <= 0.0 {
        return refuse("throttle_initial", initial, &format!("a share above 0 and at most throttle_most, {most}"));
    }
    Ok(Box::new(Stepped { initial, increment, most, trigger, strikes: 0 }))
}

struct Stepped {
    initial: f64,
    increment: f64,
    most: f64,
    trigger: f64,
    strikes: u32,
}

impl Throttle for Stepped {
    fn share(&mut self, view: &ThrottleView<'_>) -> f64 {
        let Some(round) = view.rounds.last() else { return view.current };
        let dirty_bytes = (round.dirty_units * view.unit_bytes) as f64;
        if dirty_bytes <= self.trigger * round.bytes as f64 {
            return view.current;
        }
        self.strikes += 1;
        if self.strikes < STRIKES {
            return view.current;
        }
        self.strikes = 0;
        if view.current == 0.0 { self.initial } else { (view.current + self.increment).min(self.most) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whimbrel_model::event::Round;
    use whimbrel_model::{Family, Nanos};

    fn shares(dirty: &[u64]) -> Vec<f64> {
        let mut throttle = build(&Parameters::defaults(ENTRY.parameters)).unwrap();
        let mut current = 0.0;
        dirty
            .iter()
            .map(|&dirty_units| {
                let round = Round {
                    kind: Family::Memory,
                    start_ns: 0,
                    ns: 1,
                    sent_units: 100,
                    dirty_units,
                    again_units: 0,
                    bytes: 100 * 4096,
                    limit: None,
                    predicted_ns: None,
                    throttle: current,
                };
                let rounds = [round];
                let view = ThrottleView { rounds: &rounds, bandwidth: None, unit_bytes: 4096, now: Nanos(1), current };
                current = throttle.share(&view);
                (current * 100.0).round() / 100.0
            })
            .collect()
    }

    #[test]
    fn each_second_strike_is_a_step_and_the_largest_share_holds() {
        assert_eq!(shares(&[51, 51, 51, 51]), [0.0, 0.2, 0.2, 0.3]);
        assert_eq!(shares(&[51, 50, 10, 51]), [0.0, 0.0, 0.0, 0.2], "calm rounds between strikes don't pardon them");
        assert_eq!(shares(&[50; 40]), [0.0; 40], "at the trigger is not beyond it");
        assert_eq!(shares(&[100; 40]).last(), Some(&0.99));
    }

    #[test]
    fn shares_that_make_no_sense_are_refused() {
        let read = |key: &str, value: f64| {
            let given = [(key.to_owned(), value.into())].into();
            build(&Parameters::read(ENTRY.parameters, &given).unwrap()).map(|_| ())
        };
        assert!(read("throttle_most", 1.0).is_err());
        assert!(read("throttle_initial", 0.0).is_err());
        assert!(read("throttle_most", 0.1).unwrap_err().to_string().contains("throttle_initial"));
    }
}
