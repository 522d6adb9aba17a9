//! The model for hosts without a meter: processor seconds by watts a core, bytes by joules a byte, and a base power by time.
//!
//! It reads like a meter, from what its host's agent counts, so whatever holds for measured energy is computed the same way.
//! Its figures say that they are modelled, and never stand in one table with measured ones.

use crate::meter::{Domain, DomainKind, Meter, Reading, Unmeasured};
use serde::{Deserialize, Serialize};
use whimbrel_model::Nanos;

/// What a host's work costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Coefficients {
    /// Watts of a busy core, above its share of the base.
    pub core_w: f64,
    /// Nanojoules of a byte sent or received.
    pub byte_nj: f64,
    /// Watts of the host whatever it does. It cancels out of an overhead.
    pub base_w: f64,
}

/// The defaults, from the Cloud Carbon Footprint methodology: the mean of AWS servers in SPECpower is 0.74 W an idle vCPU and
/// 3.5 W a busy one, and the network inside a data center is "close to 0". The base is that of one vCPU.
pub const DEFAULTS: Coefficients = Coefficients { core_w: 2.76, byte_nj: 0.0, base_w: 0.74 };

/// Where [`DEFAULTS`] come from.
pub const DEFAULTS_SOURCE: &str = "Cloud Carbon Footprint methodology: AWS mean of SPECpower, 0.74 to 3.5 W a vCPU";

/// What a host has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Processor time of the agent and its guests, in nanoseconds.
    pub cpu_ns: u64,
    /// Bytes sent and received.
    pub bytes: u64,
}

impl Coefficients {
    /// The energy of an activity over a time, in microjoules.
    pub fn uj(&self, activity: Activity, time: Nanos) -> f64 {
        self.core_w * activity.cpu_ns as f64 / 1e3
            + self.byte_nj * activity.bytes as f64 / 1e3
            + self.base_w * time.0 as f64 / 1e3
    }

    /// A meter that reads this model.
    pub fn meter(self, activity: impl FnMut() -> Activity + Send + 'static) -> Box<dyn Meter> {
        let domain = Domain { name: "model".to_owned(), kind: DomainKind::Host, package: None, range_uj: None };
        Box::new(Modelled { coefficients: self, activity: Box::new(activity), domains: [domain], began: None })
    }
}

struct Modelled {
    coefficients: Coefficients,
    activity: Box<dyn FnMut() -> Activity + Send>,
    domains: [Domain; 1],
    began: Option<Nanos>,
}

impl Meter for Modelled {
    fn domains(&self) -> &[Domain] {
        &self.domains
    }

    fn read(&mut self, now: Nanos) -> Vec<Result<Reading, Unmeasured>> {
        let began = *self.began.get_or_insert(now);
        let uj = self.coefficients.uj((self.activity)(), now.since(began));
        vec![Ok(Reading { at: now, uj: uj as u64 })]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_term_has_its_unit() {
        let activity = Activity { cpu_ns: 2_000_000_000, bytes: 1_000_000 };
        let model = Coefficients { core_w: 3.0, byte_nj: 5.0, base_w: 7.0 };
        assert_eq!(model.uj(activity, Nanos(10_000_000_000)), 6e6 + 5e3 + 70e6);
        let mut meter = model.meter(move || activity);
        let read = |meter: &mut Box<dyn Meter>, s: u64| meter.read(Nanos(s * 1_000_000_000))[0].clone().unwrap().uj;
        let first = read(&mut meter, 100);
        assert_eq!(read(&mut meter, 110) - first, 70_000_000);
    }
}
