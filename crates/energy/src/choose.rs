//! Which meter this host has: the first of the registry that opens and whose counters move.
//!
//! A counter that exists says little: virtual machines show some that never move, and zero joules would be a lie. So a meter
//! is taken only after its counters were seen to move while a processor was kept busy.

use crate::counter::{Counter, PATIENCE};
use crate::meter::{DomainKind, Meter, Place, Unmeasured, counted};
use crate::meters::METERS;
use std::collections::BTreeMap;
use std::time::Duration;
use whimbrel_model::{Entry, Nanos};

/// This instant of a host's monotonic clock.
pub type Clock = fn() -> Nanos;

/// While it is seen whether counters move, they are read so often.
const EVERY: Duration = Duration::from_millis(5);

/// A meter that works.
pub struct Chosen {
    /// Its name in the registry.
    pub name: &'static str,
    /// The meter.
    pub meter: Box<dyn Meter>,
    /// Domains that it has and that never move, with what was seen of them.
    pub absent: BTreeMap<String, String>,
}

/// What a meter read over a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The meter's name.
    pub meter: &'static str,
    /// From the first reading to the last.
    pub window: Nanos,
    /// Microjoules of every domain; `None`: its reason is in `reasons`.
    pub domains: BTreeMap<String, Option<u64>>,
    /// Why a domain has no figure.
    pub reasons: BTreeMap<String, String>,
    /// The domains that together are the host.
    pub counted: Vec<String>,
}

/// The meters to try, in order: one, or all but the null meter.
fn wanted(name: Option<&str>) -> Result<Vec<&'static Entry<crate::Open>>, Unmeasured> {
    match name {
        Some(name) => Ok(vec![METERS.find(name).map_err(|e| Unmeasured::because(e.to_string()))?]),
        None => Ok(METERS.entries.iter().filter(|e| e.name != "null").collect()),
    }
}

fn none(why: &[String]) -> Unmeasured {
    Unmeasured::because(why.join("; "))
}

/// The first meter of a host that works, or the one named `meter`. Keeps a processor busy for a fifth of a second for each
/// meter that opens.
///
/// # Errors
/// None works; the reason says why of each.
pub fn choose(place: &Place, meter: Option<&str>, clock: Clock) -> Result<Chosen, Unmeasured> {
    let mut why = Vec::new();
    for entry in wanted(meter)? {
        match (entry.build)(place).and_then(|meter| accept(meter, clock)) {
            Ok((meter, absent)) => return Ok(Chosen { name: entry.name, meter, absent }),
            Err(reason) => why.push(format!("{}: {reason}", entry.name)),
        }
    }
    Err(none(&why))
}

/// A meter whose counters move, and its domains that don't, with what was seen of them.
type Accepted = (Box<dyn Meter>, BTreeMap<String, String>);

/// Sees whether a meter's counters move.
fn accept(mut meter: Box<dyn Meter>, clock: Clock) -> Result<Accepted, Unmeasured> {
    let mut counters: Vec<Counter> = meter.domains().iter().map(Counter::new).collect();
    let began = clock();
    // A wall meter says something once a second or so.
    let patience =
        if meter.domains().iter().any(|d| d.kind == DomainKind::Host) { Nanos(5_000_000_000) } else { PATIENCE };
    loop {
        let now = clock();
        add(&mut *meter, &mut counters, now);
        let waited = now.since(began);
        let moving = counters.iter().all(|c| c.total().is_ok());
        if waited > patience || (moving && waited >= PATIENCE) {
            break;
        }
        let busy_until = now.plus(Nanos::from(EVERY));
        while clock() < busy_until {
            std::hint::spin_loop();
        }
    }
    let counts = counted(meter.domains());
    let mut absent = BTreeMap::new();
    for ((domain, counter), counted) in meter.domains().iter().zip(&counters).zip(counts) {
        match counter.total() {
            Ok(_) => {}
            Err(why) if counted && domain.kind != DomainKind::Dram => {
                return Err(Unmeasured::because(format!("{}: {why}", domain.name)));
            }
            Err(why) => drop(absent.insert(domain.name.clone(), why.why)),
        }
    }
    Ok((meter, absent))
}

fn add(meter: &mut dyn Meter, counters: &mut [Counter], now: Nanos) {
    counters.iter_mut().zip(meter.read(now)).for_each(|(counter, reading)| counter.add(reading));
}

/// Reads for a time, and gives what the first meter says whose counters moved meanwhile. `every` is how often; oftener where
/// a counter would wrap.
///
/// # Errors
/// None gave a figure that covers the host; the reason says why of each.
pub fn measure(
    place: &Place,
    meter: Option<&str>,
    time: Duration,
    every: Duration,
    clock: Clock,
) -> Result<Measured, Unmeasured> {
    let (mut open, mut why) = (Vec::new(), Vec::new());
    for entry in wanted(meter)? {
        match (entry.build)(place) {
            Ok(meter) => {
                let counters: Vec<Counter> = meter.domains().iter().map(Counter::new).collect();
                open.push((entry.name, meter, counters));
            }
            Err(reason) => why.push(format!("{}: {reason}", entry.name)),
        }
    }
    if open.is_empty() {
        return Err(none(&why));
    }
    let every = open.iter().map(|(_, _, counters)| pace(counters, every)).min().unwrap_or(every);
    let began = clock();
    let end = began.plus(time.into());
    let mut now = began;
    loop {
        for (_, meter, counters) in &mut open {
            add(&mut **meter, counters, now);
        }
        if now >= end {
            break;
        }
        std::thread::sleep(Duration::from(end.since(now)).min(every));
        now = clock();
    }
    for (name, meter, counters) in &open {
        let figures = figures(name, &**meter, counters, now.since(began));
        if figures.counted.iter().any(|name| figures.domains[name].is_some()) {
            return Ok(figures);
        }
        why.extend(figures.counted.iter().map(|domain| format!("{name}: {domain}: {}", figures.reasons[domain])));
    }
    Err(none(&why))
}

fn figures(name: &'static str, meter: &dyn Meter, counters: &[Counter], window: Nanos) -> Measured {
    let (mut domains, mut reasons) = (BTreeMap::new(), BTreeMap::new());
    for (domain, counter) in meter.domains().iter().zip(counters) {
        let total = counter.total();
        if let Err(why) = &total {
            reasons.insert(domain.name.clone(), why.why.clone());
        }
        domains.insert(domain.name.clone(), total.ok());
    }
    let counts = counted(meter.domains());
    let counted = meter.domains().iter().zip(counts).filter(|(_, c)| *c).map(|(d, _)| d.name.clone()).collect();
    Measured { meter: name, window, domains, reasons, counted }
}

/// How often to read so that no wrap is missed: four times in the shortest one, and as often as asked.
pub(crate) fn pace(counters: &[Counter], asked: Duration) -> Duration {
    let shortest = counters.iter().filter_map(Counter::longest_gap).min();
    shortest.map_or(asked, |gap| asked.min(Duration::from(gap) / 4).max(Duration::from_micros(200)))
}
