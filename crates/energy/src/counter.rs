//! From readings of a counter to the energy used since the first of them: exact, or null with its reason.
//!
//! | reading | what is done |
//! |---|---|
//! | higher than the one before | the difference is added |
//! | lower, and the counter wraps | the difference across the wrap is added, if that is a plausible energy for the time; else it was reset: null from here on |
//! | lower, and it never wraps | it was reset: null from here on |
//! | lower, and so is another counter's in the same look at the host | both were reset, unless wraps are frequent: null from here on |
//! | the same, again and again | it stands still: null until it moves |
//! | failed | null until it is read again |
//! | so late that a whole wrap may have been missed | null from here on |
//! | not later than the one before | it says nothing new |
//!
//! The range is what the kernel calls it, `max_energy_range_uj`: the counter's highest value. The step from there to zero,
//! 15 to 61 uJ, is not in it, and so is missing from each wrap's difference.

use crate::copies::CLOSE_UJ;
use crate::meter::{Domain, DomainKind, Reading, Unmeasured};
use whimbrel_model::Nanos;

/// A counter of a processor that hasn't moved for this long stands still: they move every millisecond.
pub const PATIENCE: Nanos = Nanos(200_000_000);

/// How long a counter of this kind may be still before it counts as standing still. A meter at the plug has something new
/// once a second or so.
pub fn patience(kind: DomainKind) -> Nanos {
    if kind == DomainKind::Host { Nanos(5_000_000_000) } else { PATIENCE }
}

/// Counters move in steps, and the instant of a reading is known within [`crate::sampler::DOUBT`]: so much more time a
/// difference may stand for. The less it is, the fewer resets can pass for a wrap: only one of a lone counter that happens when
/// less than a kilowatt's energy of this time is left in the range.
fn slack_ns(kind: DomainKind) -> u64 {
    use DomainKind::{Core, Dram, Package, Psys, Uncore};
    if matches!(kind, Package | Core | Uncore | Dram | Psys) { 100_000_000 } else { 1_000_000_000 }
}

/// The energy of one domain since its first reading.
#[derive(Clone, Debug)]
pub struct Counter {
    range_uj: Option<u64>,
    highest_w: u64,
    slack_ns: u64,
    first: Option<Reading>,
    last: Option<Reading>,
    total_uj: u64,
    /// The last attempt gave no reading.
    missing: Option<Unmeasured>,
    /// It can't be told any more.
    lost: Option<Unmeasured>,
}

impl Counter {
    /// Nothing is read yet.
    pub fn new(domain: &Domain) -> Self {
        Counter {
            range_uj: domain.range_uj,
            highest_w: domain.kind.highest_w(),
            slack_ns: slack_ns(domain.kind),
            first: None,
            last: None,
            total_uj: 0,
            missing: None,
            lost: None,
        }
    }

    /// The longest time between two readings in which no wrap can be missed; `None`: any.
    pub fn longest_gap(&self) -> Option<Nanos> {
        // A microjoule at a watt is a microsecond.
        self.range_uj.map(|range| Nanos(range.saturating_mul(1000) / self.highest_w))
    }

    /// Takes in a reading, or an attempt that failed.
    pub fn add(&mut self, reading: Result<Reading, Unmeasured>) {
        if self.lost.is_some() {
            return;
        }
        let reading = match reading {
            Ok(reading) => reading,
            Err(why) => {
                self.missing = Some(why);
                return;
            }
        };
        self.missing = None;
        let Some(last) = self.last else {
            self.first = Some(reading);
            self.last = Some(reading);
            return;
        };
        if reading.at <= last.at {
            return;
        }
        match self.step(last, reading) {
            Ok(total_uj) => {
                self.total_uj = total_uj;
                self.last = Some(reading);
            }
            Err(why) => self.lost = Some(why),
        }
    }

    /// The total after another reading, or why there can be none any more.
    fn step(&self, last: Reading, reading: Reading) -> Result<u64, Unmeasured> {
        let gap = reading.at.since(last.at);
        if let Some(longest) = self.longest_gap().filter(|longest| gap >= *longest) {
            let most = self.highest_w;
            return Err(Unmeasured::because(format!(
                "it was not read for {gap}, and may have wrapped unseen: at {most} W that takes {longest}"
            )));
        }
        let step = match self.range_uj {
            Some(range) if reading.uj > range || last.uj > range => {
                return Err(Unmeasured::because(format!("it reads more than its own range of {range} uJ")));
            }
            Some(range) if reading.uj < last.uj => range - last.uj + reading.uj,
            None if reading.uj < last.uj => {
                return Err(Unmeasured::because("it fell, though it never wraps: it was reset"));
            }
            _ => reading.uj - last.uj,
        };
        let time = gap.0.saturating_add(self.slack_ns);
        if u128::from(step) * 1000 > u128::from(self.highest_w) * u128::from(time) {
            return Err(Unmeasured::because(format!(
                "it went from {} to {} uJ in {gap}, more than {} W: it was reset, or counts something else",
                last.uj, reading.uj, self.highest_w
            )));
        }
        self.total_uj.checked_add(step).ok_or_else(|| Unmeasured::because("its total is beyond 64 bits"))
    }

    /// The energy from the first reading to the last, in microjoules.
    ///
    /// # Errors
    /// It can't be told, and why. It is never a zero: a counter that stands still measures nothing.
    pub fn total(&self) -> Result<u64, Unmeasured> {
        if let Some(why) = self.lost.as_ref().or(self.missing.as_ref()) {
            return Err(why.clone());
        }
        let (Some(first), Some(last)) = (self.first, self.last) else {
            return Err(Unmeasured::because("it was not read"));
        };
        if self.total_uj > 0 {
            return Ok(self.total_uj);
        }
        let span = last.at.since(first.at);
        Err(Unmeasured::because(if span == Nanos(0) {
            "it gave one figure, and no second that differs".to_owned()
        } else if span < PATIENCE {
            format!("it did not move in {span}, which is too short to tell")
        } else {
            format!("it never moved in {span}, as on many virtual machines: it reads {} uJ all the time", first.uj)
        }))
    }

    /// From the first reading to the last, as their meter dates them; `None`: it was not read.
    pub fn span(&self) -> Option<(Nanos, Nanos)> {
        Some((self.first?.at, self.last?.at))
    }

    /// The energy so far even if it is none yet, for a counter that is known to move; `None`: it can't be told.
    pub fn so_far(&self) -> Option<u64> {
        (self.lost.is_none() && self.missing.is_none() && self.last.is_some()).then_some(self.total_uj)
    }
}

/// Two wraps in one reading are a coincidence where a counter takes so long at least to wrap. Real ones take a minute and more
/// at the highest plausible power.
const RARE: Nanos = Nanos(10_000_000_000);

/// Takes in a reading of all counters of a host, each at its counter's place.
///
/// What resets one (a suspended host, a driver that is loaded anew) resets all. So where several fall in the same reading that is
/// what has happened, however plausible each would be as a wrap.
pub(crate) fn add_all(counters: &mut [Counter], readings: Vec<Result<Reading, Unmeasured>>) {
    let fallen = |(counter, reading): (&Counter, &Result<Reading, Unmeasured>)| {
        let (last, reading) = (counter.last?, reading.as_ref().ok()?);
        let rare = counter.longest_gap()? >= RARE;
        (rare && reading.uj < last.uj && reading.at > last.at).then_some(last.uj)
    };
    let falls: Vec<Option<u64>> = counters.iter().zip(&readings).map(fallen).collect();
    // One counter under two names wraps under both.
    let several = |(least, most): (u64, u64)| most - least > CLOSE_UJ;
    let span = falls.iter().flatten().min().copied().zip(falls.iter().flatten().max().copied());
    let together = span.is_some_and(several);
    for ((counter, reading), fell) in counters.iter_mut().zip(readings).zip(falls) {
        counter.add(reading);
        if together && fell.is_some() {
            counter.lost.get_or_insert_with(|| Unmeasured::because("it fell together with others: they were reset"));
        }
    }
}

#[cfg(test)]
mod tests;
