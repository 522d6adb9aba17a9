//! Which meter this host has: the first of the registry that opens and whose counters move.
//!
//! A counter that exists says little: virtual machines show some that never move, and zero joules would be a lie. So a meter
//! is taken only after its counters were seen to move while a processor was kept busy. That is done once for a host's agent
//! ([`reopen`]), not for each trial: it takes a core for as long as the slowest counter needs, at most a fifth of a second; five for a meter at
//! the plug, whose program is waited for before.

use crate::copies::Copies;
use crate::counter::{Counter, add_all, patience};
use crate::host::HostMeter;
use crate::meter::{DomainKind, Meter, Place, Unmeasured, counted};
use crate::meters::METERS;
use crate::sampler::read;
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
    /// Domains that it has and that never move, or are others' copies, with what was seen of them.
    pub absent: BTreeMap<String, String>,
}

/// What a meter read over a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The meter's name.
    pub meter: &'static str,
    /// From the first figure to the last, of those that are counted.
    pub window: Nanos,
    /// Microjoules of every domain; `None`: its reason is in `reasons`.
    pub domains: BTreeMap<String, Option<u64>>,
    /// Why a domain has no figure.
    pub reasons: BTreeMap<String, String>,
    /// The domains that together are the host.
    pub counted: Vec<String>,
}

/// The meters to try, in order: one, or all but the null meter. Who gives a program means that, and nothing else in its place.
fn wanted(place: &Place, name: Option<&str>) -> Result<Vec<&'static Entry<crate::Open>>, Unmeasured> {
    let program = place.command.as_ref().map(|_| "command");
    if let (Some(name), Some(program)) = (name, program)
        && name != program
    {
        return Err(Unmeasured::because(format!(
            "a meter's program is given, and the meter {name:?}: give one of them"
        )));
    }
    match name.or(program) {
        Some(name) => Ok(vec![METERS.find(name).map_err(|e| Unmeasured::because(e.to_string()))?]),
        None => Ok(METERS.entries.iter().filter(|e| e.name != "null").collect()),
    }
}

fn none(why: &[String]) -> Unmeasured {
    Unmeasured::because(why.join("; "))
}

/// While it is seen whether counters move, they are read at least so often: copies show in several looks alone.
const LOOKS: usize = 8;

/// The first meter of a host that works, or the one named `meter`. Keeps a processor busy until all counters of a meter have
/// moved, for its patience where one doesn't: a fifth of a second, five for a meter at the plug.
///
/// # Errors
/// None works; the reason says why of each.
pub fn choose(place: &Place, meter: Option<&str>, clock: Clock) -> Result<Chosen, Unmeasured> {
    let mut why = Vec::new();
    for entry in wanted(place, meter)? {
        match (entry.build)(place).and_then(|meter| accept(meter, clock)) {
            Ok((meter, absent)) => return Ok(Chosen { name: entry.name, meter, absent }),
            Err(reason) => why.push(format!("{}: {reason}", entry.name)),
        }
    }
    Err(none(&why))
}

/// A meter that [`choose`] has accepted before, without seeing again that its counters move: what it reads must be the same.
///
/// # Errors
/// It doesn't open any more, or has other domains now.
pub fn reopen(place: &Place, known: &HostMeter) -> Result<Box<dyn Meter>, Unmeasured> {
    let entry = METERS.find(&known.meter).map_err(|e| Unmeasured::because(e.to_string()))?;
    let mut meter = (entry.build)(place)?;
    let wanted: Vec<bool> = meter.domains().iter().map(|domain| known.domains.contains(domain)).collect();
    meter.keep(&wanted);
    if meter.domains() == known.domains {
        Ok(meter)
    } else {
        Err(Unmeasured::because(format!("{} has other domains than before", known.meter)))
    }
}

/// A meter whose counters move, and its domains that don't, with what was seen of them.
pub(crate) type Accepted = (Box<dyn Meter>, BTreeMap<String, String>);

/// Sees whether a meter's counters move.
pub(crate) fn accept(mut meter: Box<dyn Meter>, clock: Clock) -> Result<Accepted, Unmeasured> {
    let mut counters: Vec<Counter> = meter.domains().iter().map(Counter::new).collect();
    let mut copies = Copies::default();
    let patience = meter.domains().iter().map(|d| patience(d.kind)).max().unwrap_or_default();
    let began = clock();
    for look in 1.. {
        let now = add(&mut *meter, &mut counters, &mut copies, clock);
        let moving = counters.iter().all(|c| c.total().is_ok());
        if now.since(began) > patience || (moving && look >= LOOKS) {
            break;
        }
        let busy_until = now.plus(Nanos::from(EVERY));
        while clock() < busy_until {
            std::hint::spin_loop();
        }
    }
    let mut absent = copies.found(meter.domains(), &counters);
    let counts = counted(meter.domains());
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

/// Reads all domains; gives when.
fn add(meter: &mut dyn Meter, counters: &mut [Counter], copies: &mut Copies, clock: Clock) -> Nanos {
    let (at, readings) = read(meter, clock);
    copies.look(meter.domains(), &readings);
    add_all(counters, readings);
    at
}

/// A meter while it is read for a time.
struct Open {
    name: &'static str,
    meter: Box<dyn Meter>,
    counters: Vec<Counter>,
    copies: Copies,
}

impl Open {
    fn new(name: &'static str, meter: Box<dyn Meter>) -> Self {
        let counters = meter.domains().iter().map(Counter::new).collect();
        Open { name, meter, counters, copies: Copies::default() }
    }

    fn read(&mut self, clock: Clock) {
        add(&mut *self.meter, &mut self.counters, &mut self.copies, clock);
    }
}

/// Reads for a time, and gives what the first meter says whose counters moved meanwhile. `every` is how often; oftener where
/// a counter would wrap. It ends early once `enough` says so.
///
/// # Errors
/// None gave a figure that covers the host; the reason says why of each.
pub fn measure(
    place: &Place,
    meter: Option<&str>,
    time: Duration,
    every: Duration,
    clock: Clock,
    enough: impl Fn() -> bool,
) -> Result<Measured, Unmeasured> {
    let (mut open, mut why) = (Vec::new(), Vec::new());
    for entry in wanted(place, meter)? {
        match (entry.build)(place) {
            Ok(meter) => open.push(Open::new(entry.name, meter)),
            Err(reason) => why.push(format!("{}: {reason}", entry.name)),
        }
    }
    if open.is_empty() {
        return Err(none(&why));
    }
    let every = open.iter().map(|open| pace(&open.counters, every)).min().unwrap_or(every);
    let end = clock().plus(time.into());
    loop {
        let now = clock();
        open.iter_mut().for_each(|open| open.read(clock));
        if now >= end || enough() {
            break;
        }
        std::thread::sleep(Duration::from(end.since(now)).min(every));
    }
    for open in &open {
        let figures = figures(open);
        if figures.counted.iter().any(|name| figures.domains[name].is_some()) {
            return Ok(figures);
        }
        why.extend(
            figures.counted.iter().map(|domain| format!("{}: {domain}: {}", open.name, figures.reasons[domain])),
        );
    }
    Err(none(&why))
}

fn figures(open: &Open) -> Measured {
    let (mut domains, mut reasons) = (BTreeMap::new(), open.copies.found(open.meter.domains(), &open.counters));
    let copies: Vec<String> = reasons.keys().cloned().collect();
    for (domain, counter) in open.meter.domains().iter().zip(&open.counters) {
        let total = counter.total();
        if let Err(why) = &total {
            reasons.insert(domain.name.clone(), why.why.clone());
        }
        domains.insert(domain.name.clone(), total.ok().filter(|_| !copies.contains(&domain.name)));
    }
    let counts = counted(open.meter.domains());
    let counted = open.meter.domains().iter().zip(&counts).filter(|(d, c)| **c && !copies.contains(&d.name));
    let counted = counted.map(|(d, _)| d.name.clone()).collect();
    // Of the figures, not of the attempts: a meter at the plug has something new once a second or so.
    let spans = || open.counters.iter().zip(&counts).filter(|(_, counted)| **counted).filter_map(|(c, _)| c.span());
    let (first, last) = (spans().map(|(first, _)| first).min(), spans().map(|(_, last)| last).max());
    let window = last.unwrap_or_default().since(first.unwrap_or_default());
    Measured { meter: open.name, window, domains, reasons, counted }
}

/// How often to read so that no wrap is missed: four times in the shortest one, and as often as asked.
pub(crate) fn pace(counters: &[Counter], asked: Duration) -> Duration {
    let shortest = counters.iter().filter_map(Counter::longest_gap).min();
    shortest.map_or(asked, |gap| asked.min(Duration::from(gap) / 4).max(Duration::from_micros(200)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::{Domain, Reading};

    /// A meter at the plug that has had two figures, a second apart, however often it was asked.
    struct Plug([Domain; 1]);

    impl Meter for Plug {
        fn domains(&self) -> &[Domain] {
            &self.0
        }

        fn read(&mut self, now: Nanos) -> Vec<Result<Reading, Unmeasured>> {
            let second = 1_000_000_000;
            let at = now.0 / second * second;
            vec![Ok(Reading { at: Nanos(at), uj: at / 10 })]
        }
    }

    #[test]
    fn energy_and_window_are_of_the_same_stretch() {
        let domain = Domain { name: "wall".to_owned(), kind: DomainKind::Host, package: None, range_uj: None };
        let mut open = Open::new("command", Box::new(Plug([domain])));
        for clock in [|| Nanos(1_900_000_000), || Nanos(2_500_000_000), || Nanos(3_800_000_000)] as [Clock; 3] {
            open.read(clock);
        }
        let Measured { window, domains, .. } = figures(&open);
        assert_eq!((window, domains["wall"]), (Nanos(2_000_000_000), Some(200_000_000)), "100 W");
    }
}
