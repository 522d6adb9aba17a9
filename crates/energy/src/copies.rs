//! One counter under several names: its energy must not be counted again.
//!
//! Memory-mapped copies are known by their zones. Others are not: a virtual machine may show each of its processors as a
//! package, all of which read the one that it runs on (Xen), and drivers have read the first package for every other one
//! (amd_energy on hosts with several memory nodes a socket). Counters count since their package was switched on, so two
//! that agree to a fraction of a joule, whenever they are looked at, are one.

use crate::counter::Counter;
use crate::meter::{Domain, Reading, Unmeasured, counted};
use std::collections::BTreeMap;

/// Readings of one counter lie so close together, in microjoules: a thousand watts between two reads 100 us apart.
pub(crate) const CLOSE_UJ: u64 = 100_000;

/// A counter below this has begun to count too lately for its value to tell it from others: perf's begin at zero. What it counts
/// from look to look does, where that is the same to the microjoule in most of them.
const LEAST_UJ: u64 = 100_000_000;

/// So many looks are enough.
const LOOKS: usize = 64;

/// How often each pair of domains agreed.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    looks: usize,
    /// The readings of the last look, of each domain.
    last: Vec<Option<u64>>,
    agreed: BTreeMap<(usize, usize), usize>,
}

impl Copies {
    /// Looks at a reading of all domains.
    pub(crate) fn look(&mut self, domains: &[Domain], readings: &[Result<Reading, Unmeasured>]) {
        if self.looks == LOOKS {
            return;
        }
        self.looks += 1;
        let counted: Vec<usize> = (0..).zip(counted(domains)).filter(|(_, counted)| *counted).map(|(n, _)| n).collect();
        let now: Vec<Option<u64>> = readings.iter().map(|reading| Some(reading.as_ref().ok()?.uj)).collect();
        let step = |n: usize| {
            let (last, now) = (self.last.get(n).copied().flatten()?, now[n]?);
            now.checked_sub(last).filter(|step| *step > 0)
        };
        let agree = |(one, a): (usize, u64), (other, b): (usize, u64)| match a.min(b) >= LEAST_UJ {
            true => a.abs_diff(b) <= CLOSE_UJ,
            false => step(one).is_some_and(|of_one| step(other) == Some(of_one)),
        };
        let uj = |n: usize| Some((n, *now.get(n)?.as_ref()?));
        for (at, one) in counted.iter().enumerate() {
            for other in counted[at + 1..].iter().filter(|other| domains[**other].kind == domains[*one].kind) {
                if uj(*one).zip(uj(*other)).is_some_and(|(a, b)| agree(a, b)) {
                    *self.agreed.entry((*one, *other)).or_default() += 1;
                }
            }
        }
        self.last = now;
    }

    /// The domains that are copies of an earlier one, with what is to be said of them. A counter that stands still is not
    /// judged here.
    pub(crate) fn found(&self, domains: &[Domain], counters: &[Counter]) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for ((one, other), agreed) in &self.agreed {
            // A reader that was kept from running between two reads sees them apart: most looks are enough.
            if agreed * 2 > self.looks && counters[*other].total().is_ok() {
                let why =
                    format!("it is {}'s counter under another name: both always read the same", domains[*one].name);
                found.entry(domains[*other].name.clone()).or_insert(why);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::DomainKind;
    use whimbrel_model::Nanos;

    /// What is found of two packages that read so, look by look.
    fn found(looks: impl Iterator<Item = [u64; 2]>) -> Vec<String> {
        let domains = ["package-0", "package-1"].map(|name| Domain {
            name: name.to_owned(),
            kind: DomainKind::Package,
            package: Some(name.to_owned()),
            range_uj: Some(1 << 38),
        });
        let mut counters = domains.each_ref().map(Counter::new);
        let mut copies = Copies::default();
        for (ms, look) in (0..).zip(looks) {
            let readings = look.map(|uj| Ok(Reading { at: Nanos(ms * 1_000_000), uj }));
            copies.look(&domains, &readings);
            counters.iter_mut().zip(readings).for_each(|(counter, reading)| counter.add(reading));
        }
        copies.found(&domains, &counters).into_keys().collect()
    }

    #[test]
    fn a_copy_is_known_by_its_value_or_while_that_is_small_by_its_steps() {
        // Now and then a counter moves between the reads of the two.
        let step = |n: u64| n * 61_035;
        let copy = |from: u64| (0..12).map(move |n| [from + step(n), from + step(n + u64::from(n % 6 == 3))]);
        assert_eq!(found(copy(0)), ["package-1"]);
        assert_eq!(found(copy(200_000_000)), ["package-1"]);
        // perf's begin at zero when they are opened, one after the other.
        assert_eq!(found((0..12).map(|n| [step(n) + 700, step(n)])), ["package-1"]);
        // Two that are as busy as each other.
        let others = |from: u64| (0..12).map(move |n| [from + step(n), from * 2 + step(n) + 61 * (n * n % 7)]);
        assert_eq!(found(others(0)), [""; 0]);
        assert_eq!(found(others(200_000_000)), [""; 0]);
    }
}
