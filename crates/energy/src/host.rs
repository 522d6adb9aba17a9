//! A host's meter as a trial knows it, and its energy over a window of the trial, from readings alone.

use crate::choose::{Chosen, Clock, choose, reopen};
use crate::counter::patience;
use crate::meter::{Domain, DomainKind, Meter, Place, Unmeasured, counted};
use crate::model::{Activity, Coefficients, DEFAULTS, DEFAULTS_SOURCE};
use crate::sampler::Totals;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use whimbrel_model::Nanos;

/// Where a figure of energy comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Counters of the hosts.
    Measured,
    /// A model.
    Modelled,
}

/// How an experiment wants energy to be measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EnergySpec {
    /// The meter's name; `None`: the first that works.
    pub meter: Option<String>,
    /// Between two readings.
    pub sample_every: Duration,
    /// What to compute with where no meter works; `None`: energy is null then.
    pub model: Option<Coefficients>,
}

impl Default for EnergySpec {
    fn default() -> Self {
        EnergySpec { meter: None, sample_every: Duration::from_millis(10), model: None }
    }
}

/// A host's meter, without the meter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostMeter {
    /// Whether it measures or computes.
    pub kind: Kind,
    /// Its name in the registry; `model` for the model.
    pub meter: String,
    /// What it reads: the domains that are the host's energy.
    pub domains: Vec<Domain>,
    /// Domains that never move, or are others' copies, with what was seen of them.
    pub absent: BTreeMap<String, String>,
    /// What it covers, so that nothing else in the world is called the same: packages, or the host.
    pub covers: Vec<String>,
    /// Why it is a model; `None` for a meter.
    pub why: Option<String>,
}

/// The meter of a host, or the model where an experiment asks for it, with its description. `known` is what the same gave
/// before: what was seen of the host's counters then is not looked at again.
///
/// # Errors
/// No meter works, and the experiment asks for no model.
pub fn open(
    place: &Place,
    spec: &EnergySpec,
    known: Option<&HostMeter>,
    clock: Clock,
    activity: impl FnMut() -> Activity + Send + 'static,
) -> Result<(Box<dyn Meter>, HostMeter), Unmeasured> {
    match (known.map(|known| (known, known.kind)), spec.model) {
        (Some((known, Kind::Modelled)), Some(model)) => return Ok((model.meter(activity), known.clone())),
        (Some((known, Kind::Measured)), _) => {
            // One that has changed is looked at anew.
            if let Ok(meter) = reopen(place, known) {
                return Ok((meter, known.clone()));
            }
        }
        _ => {}
    }
    match (choose(place, spec.meter.as_deref(), clock), spec.model) {
        (Ok(Chosen { name, mut meter, absent }), _) => {
            // Nobody asks for the others again: a reading a hundred times a second is to cost the host little.
            let all = HostMeter::measured(name, meter.domains(), absent, &place.identity());
            let summed: Vec<usize> = all.summed().map(|(n, _)| n).collect();
            meter.keep(&(0..all.domains.len()).map(|n| summed.contains(&n)).collect::<Vec<_>>());
            let domains = meter.domains().to_vec();
            Ok((meter, HostMeter { domains, ..all }))
        }
        (Err(why), Some(model)) => {
            let meter = model.meter(activity);
            let described = HostMeter {
                kind: Kind::Modelled,
                meter: "model".to_owned(),
                domains: meter.domains().to_vec(),
                absent: BTreeMap::new(),
                // Each host's process is modelled by itself, wherever it runs.
                covers: Vec::new(),
                why: Some(format!(
                    "modelled at {} W a core, {} nJ a byte, {} W a host{}; no meter: {why}",
                    model.core_w,
                    model.byte_nj,
                    model.base_w,
                    if model == DEFAULTS { format!(" (the defaults: {DEFAULTS_SOURCE})") } else { String::new() }
                )),
            };
            Ok((meter, described))
        }
        (Err(why), None) => Err(why),
    }
}

/// What is covered by a counter of no package.
const WHOLE: &str = "host";

impl HostMeter {
    fn measured(name: &str, domains: &[Domain], absent: BTreeMap<String, String>, identity: &str) -> Self {
        let mut covers: Vec<String> = domains
            .iter()
            .zip(counted(domains))
            .filter(|(domain, counted)| *counted && domain.kind != DomainKind::Dram)
            .map(|(domain, _)| format!("{identity}/{}", domain.package.as_deref().unwrap_or(WHOLE)))
            .collect();
        covers.dedup();
        let (meter, domains) = (name.to_owned(), domains.to_vec());
        HostMeter { kind: Kind::Measured, meter, domains, absent, covers, why: None }
    }

    /// The domains that are summed: each part of the host once, without those that are absent.
    pub fn summed(&self) -> impl Iterator<Item = (usize, &Domain)> {
        let counted = counted(&self.domains);
        let all = self.domains.iter().enumerate();
        all.filter(move |(n, domain)| counted[*n] && !self.absent.contains_key(&domain.name))
    }

    /// Whether the two read some of the same energy, so that theirs can't be told apart: the same package, or all of a host and
    /// a part of it.
    pub fn shares_package(&self, other: &HostMeter) -> bool {
        let one = |covered: &str, others: &str| match (covered.rsplit_once('/'), others.rsplit_once('/')) {
            (Some((host, part)), Some((other, its))) => host == other && (part == its || part == WHOLE || its == WHOLE),
            _ => false,
        };
        self.covers.iter().any(|covered| other.covers.iter().any(|others| one(covered, others)))
    }

    /// The host's energy from one instant to another, in microjoules. Between two readings it is taken to rise evenly.
    ///
    /// # Errors
    /// The readings don't cover the window, or a counter was lost in it, or stood still: a dead counter measures nothing.
    pub fn energy(&self, samples: &[Totals], from: Nanos, to: Nanos) -> Result<u64, Unmeasured> {
        if to <= from {
            return Err(Unmeasured::because("the window is empty"));
        }
        let mut sum = 0.0;
        for (n, domain) in self.summed() {
            let at = |instant| at(samples, n, instant);
            let why = |what| Unmeasured::because(format!("{}: {what}", domain.name));
            let begin =
                at(from).ok_or_else(|| why("it was not read just before the window began, or just after that"))?;
            let end = at(to);
            let end = end.ok_or_else(|| why("it was not read just after the window ended, or was lost within it"))?;
            if end == begin && self.kind == Kind::Measured && to.since(from) >= patience(domain.kind) {
                return Err(why("it stood still all through the window"));
            }
            sum += end - begin;
        }
        Ok(sum.round() as u64)
    }
}

/// A domain's total at an instant that two readings in a row enclose. Where one of those failed, what was used before the instant
/// and what after it is not known, though a later reading has the sum.
fn at(samples: &[Totals], domain: usize, instant: Nanos) -> Option<f64> {
    let value = |totals: &Totals| Some((totals.at.0 as f64, (*totals.uj.get(domain)?)? as f64));
    let split = samples.partition_point(|totals| totals.at <= instant);
    let before = samples[..split].last().and_then(value)?;
    if before.0 == instant.0 as f64 {
        return Some(before.1);
    }
    let after = samples.get(split).and_then(value)?;
    let share = (instant.0 as f64 - before.0) / (after.0 - before.0);
    Some(before.1 + (after.1 - before.1) * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(name: &str, kind: DomainKind) -> Domain {
        let package = name.starts_with("package").then(|| name.split('/').next().unwrap().to_owned());
        Domain { name: name.to_owned(), kind, package, range_uj: None }
    }

    fn meter(identity: &str) -> HostMeter {
        let domains = [
            domain("package-0", DomainKind::Package),
            domain("package-0/core", DomainKind::Core),
            domain("package-0/dram", DomainKind::Dram),
        ];
        HostMeter::measured("powercap", &domains, BTreeMap::new(), identity)
    }

    fn totals(at: u64, uj: [Option<u64>; 3]) -> Totals {
        Totals { at: Nanos(at), uj: uj.to_vec() }
    }

    #[test]
    fn a_window_is_read_between_readings() {
        let samples = [
            totals(0, [Some(0), Some(0), Some(0)]),
            totals(10, [Some(100), Some(90), Some(10)]),
            totals(20, [None, Some(180), Some(20)]),
            totals(30, [Some(300), Some(270), Some(30)]),
        ];
        let energy = |from, to| meter("a").energy(&samples, Nanos(from), Nanos(to));
        assert_eq!(energy(0, 30), Ok(330));
        assert_eq!(energy(5, 30), Ok(275));
        // A counter that was away when the window ended, and came back, tells when of nothing.
        assert!(energy(5, 25).unwrap_err().why.contains("after the window ended"));
        assert!(energy(15, 30).unwrap_err().why.contains("before the window began"));
        assert!(energy(5, 31).unwrap_err().why.contains("after the window ended"));
        assert!(energy(5, 5).is_err());
        let lost = &samples[..3];
        assert!(meter("a").energy(lost, Nanos(0), Nanos(15)).is_err());
        assert!(
            meter("a").energy(&samples[1..], Nanos(5), Nanos(15)).unwrap_err().why.contains("before the window began")
        );
    }

    #[test]
    fn a_domain_that_never_moves_is_left_out() {
        let mut meter = meter("a");
        meter.absent.insert("package-0/dram".to_owned(), "it never moved".to_owned());
        let samples = [totals(0, [Some(0), None, Some(0)]), totals(10, [Some(100), None, Some(0)])];
        assert_eq!(meter.energy(&samples, Nanos(0), Nanos(10)), Ok(100));
    }

    /// A meter that worked when it was chosen, and has died since.
    #[test]
    fn a_counter_that_stands_still_all_through_the_window_measured_nothing() {
        let second = 1_000_000_000;
        let samples = [0, 1, 2].map(|s| totals(s * second, [Some(500), Some(400), Some(if s == 2 { 30 } else { 20 })]));
        let energy = |meter: &HostMeter, to| meter.energy(&samples, Nanos(0), Nanos(to));
        let why = energy(&meter("a"), 2 * second).unwrap_err().why;
        assert!(why.contains("package-0: it stood still"), "{why}");
        // Between two steps a counter is still, and a model of a host that does nothing may give nothing.
        assert_eq!(energy(&meter("a"), second / 10), Ok(0));
        assert_eq!(energy(&HostMeter { kind: Kind::Modelled, ..meter("a") }, 2 * second), Ok(10));
    }

    #[test]
    fn packages_are_told_apart_by_their_host() {
        assert!(meter("a").shares_package(&meter("a")) && !meter("a").shares_package(&meter("b")));
        // A meter at the plug, or the platform's counter, has the packages of its host in it.
        for kind in [DomainKind::Host, DomainKind::Psys] {
            let all = |identity| HostMeter::measured("wall", &[domain("all", kind)], BTreeMap::new(), identity);
            assert!(all("a").shares_package(&meter("a")) && meter("a").shares_package(&all("a")));
            assert!(all("a").shares_package(&all("a")));
            assert!(!all("a").shares_package(&meter("b")) && !all("a").shares_package(&all("b")));
        }
    }
}
