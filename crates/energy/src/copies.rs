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

/// A counter below this has begun to count too lately for its value to tell it from others: perf's begin at zero.
const LEAST_UJ: u64 = 100_000_000;

/// So many looks are enough.
const LOOKS: usize = 64;

/// How often each pair of domains agreed.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    looks: usize,
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
        let uj = |n: usize| Some(readings.get(n)?.as_ref().ok()?.uj).filter(|uj| *uj >= LEAST_UJ);
        for (at, one) in counted.iter().enumerate() {
            for other in counted[at + 1..].iter().filter(|other| domains[**other].kind == domains[*one].kind) {
                if uj(*one).zip(uj(*other)).is_some_and(|(a, b)| a.abs_diff(b) <= CLOSE_UJ) {
                    *self.agreed.entry((*one, *other)).or_default() += 1;
                }
            }
        }
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
