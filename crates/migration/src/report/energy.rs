//! What the hosts used over the trial's window, from `requested` until the migration is over, and what of it the migration
//! cost: the rest would have been used without it too.
//!
//! Hosts that share a package have one counter: their sum is known, and nothing of either. Energies of a meter and of a
//! model are never added.

use super::timeline::Timeline;
use super::{Facts, HostPowers, Measured, Reasons, Report, not_recorded};
use serde::{Deserialize, Serialize};
use whimbrel_energy::{HostMeter, Kind, Totals};
use whimbrel_model::{Event, Mark, Moment, Nanos, Recorded};

#[cfg(test)]
mod tests;

/// The power after a migration is taken over at least this long.
const SHORTEST_AFTER_NS: u64 = 100_000_000;

/// What the hosts used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "crate::metrics defines every field of a row")]
pub struct Energy {
    pub kind: Option<Kind>,
    pub why: Option<String>,
    pub source_uj: Option<u64>,
    pub destination_uj: Option<u64>,
    pub gross_uj: Option<u64>,
    pub overhead_uj: Option<i64>,
    pub source_overhead_uj: Option<i64>,
    pub destination_overhead_uj: Option<i64>,
    pub same_work_overhead_uj: Option<i64>,
    pub overhead_per_gib_uj: Option<f64>,
    pub work_unit_uj: Option<f64>,
    pub control_work_unit_uj: Option<f64>,
    pub idle_w: Option<f64>,
    pub workload_w: Option<f64>,
    pub after_w: Option<f64>,
    pub window_ns: Option<u64>,
    pub domains: Vec<String>,
    pub shared_package: Option<bool>,
    pub source_frequency_hz: Option<f64>,
    pub destination_frequency_hz: Option<f64>,
    pub source_temperature_c: Option<f64>,
    pub destination_temperature_c: Option<f64>,
}

impl Energy {
    pub(super) fn of(
        events: &[Recorded],
        timeline: &Timeline<'_>,
        facts: &Facts,
        report: &Report,
        reasons: &mut Reasons<'_>,
    ) -> Self {
        match Both::new(events, timeline, facts) {
            Ok(both) => both.energy(facts, report, reasons),
            Err(why) => Energy { why: Some(why), ..Energy::default() },
        }
    }
}

/// Both hosts' meters with their readings, on the source's clock.
struct Both<'a> {
    source: &'a HostMeter,
    destination: &'a HostMeter,
    shared: bool,
    readings: [Vec<Totals>; 2],
    from: Nanos,
    to: Nanos,
}

/// What each host used; where they share a package, only the sum is known.
struct Used {
    source: Measured<f64>,
    destination: Measured<f64>,
    both: Measured<f64>,
}

impl<'a> Both<'a> {
    fn new(events: &[Recorded], timeline: &Timeline<'_>, facts: &'a Facts) -> Measured<Self> {
        let (source, destination) = match (&facts.energy.source, &facts.energy.destination) {
            (Ok(source), Ok(destination)) => (source, destination),
            (Err(why), Err(other)) if why == other => return Err(why.clone()),
            (Err(why), Err(other)) => return Err(format!("source: {why}; destination: {other}")),
            (Err(why), _) => return Err(format!("source: {why}")),
            (_, Err(why)) => return Err(format!("destination: {why}")),
        };
        if source.kind != destination.kind {
            return Err("one host is measured and the other modelled: their sum would be neither".to_owned());
        }
        let shared = source.shares_package(destination);
        if shared && source.covers != destination.covers {
            let why = "both hosts are one machine, and their meters are not the same, but overlap";
            return Err(format!("{why}: {} and {}; use one for both", source.meter, destination.meter));
        }
        let instant = |at: i64| Nanos(u64::try_from(at).unwrap_or(0));
        let (from, to) = (instant(timeline.at(Moment::Requested)?), instant(timeline.finished()?));
        let readings = |host: Mark| {
            let of_host = events.iter().filter(|e| e.host == host);
            let readings = of_host.filter_map(|e| match &e.event {
                Event::Energy { uj } => Some(Totals { at: instant(timeline.place(e)?), uj: uj.clone() }),
                _ => None,
            });
            let mut readings: Vec<Totals> = readings.collect();
            readings.sort_by_key(|r| r.at);
            readings
        };
        let readings = [readings(Mark::Source), readings(Mark::Destination)];
        Ok(Both { source, destination, shared, readings, from, to })
    }

    /// Energies over a stretch, in microjoules.
    fn used(&self, from: Nanos, to: Nanos) -> Used {
        let of = |meter: &HostMeter, readings| {
            meter.energy(readings, from, to).map(|uj| uj as f64).map_err(|why| format!("{}: {why}", meter.meter))
        };
        let source = of(self.source, &self.readings[0]);
        self.apart(source, || of(self.destination, &self.readings[1]))
    }

    /// The same of powers.
    fn powers(&self, powers: &HostPowers) -> Used {
        self.apart(powers.source_w.clone(), || powers.destination_w.clone())
    }

    fn apart(&self, source: Measured<f64>, destination: impl FnOnce() -> Measured<f64>) -> Used {
        if self.shared {
            let why = || Err("both hosts are on one package: only their sum is known".to_owned());
            return Used { source: why(), destination: why(), both: source };
        }
        let destination = destination();
        let both = source.clone().and_then(|source| Ok(source + destination.clone()?));
        Used { source, destination, both }
    }

    fn energy(&self, facts: &Facts, report: &Report, reasons: &mut Reasons<'_>) -> Energy {
        let window_ns = self.to.since(self.from).0;
        let gross = self.used(self.from, self.to);
        let idle = self.powers(&facts.energy.idle);
        let workload = self.powers(&facts.energy.workload);
        // A watt over a nanosecond is a thousandth of a microjoule.
        let over =
            |uj: &Measured<f64>, w: &Measured<f64>, ns: f64| Ok::<f64, String>(uj.clone()? - w.clone()? * ns / 1e3);
        let ns = window_ns as f64;
        let overhead = over(&gross.both, &workload.both, ns);
        let delay = report.work.delay_ns.ok_or_else(|| why_not(reasons, "work.delay_ns"));
        let same_work = delay.and_then(|delay| over(&gross.both, &workload.both, ns - delay as f64));
        let state = facts.ram_bytes as f64 + report.bytes.disk_first as f64;
        let per_gib = match &overhead {
            Ok(uj) if state > 0.0 => Ok(uj * f64::from(1 << 30) / state),
            Ok(_) => Err("the guest's size is not known".to_owned()),
            Err(why) => Err(why.clone()),
        };
        let (unit, control_unit) = per_unit(&gross, &workload, ns, report, reasons);
        let after = self.after();
        let mut whole = |field: &str, value: Measured<f64>| keep(reasons, field, value).map(|uj| uj.round() as i64);
        Energy {
            kind: Some(self.source.kind),
            why: self.remarks(),
            source_uj: whole("source_uj", gross.source.clone()).map(i64::unsigned_abs),
            destination_uj: whole("destination_uj", gross.destination.clone()).map(i64::unsigned_abs),
            gross_uj: whole("gross_uj", gross.both.clone()).map(i64::unsigned_abs),
            overhead_uj: whole("overhead_uj", overhead),
            source_overhead_uj: whole("source_overhead_uj", over(&gross.source, &workload.source, ns)),
            destination_overhead_uj: whole(
                "destination_overhead_uj",
                over(&gross.destination, &workload.destination, ns),
            ),
            same_work_overhead_uj: whole("same_work_overhead_uj", same_work),
            overhead_per_gib_uj: keep(reasons, "overhead_per_gib_uj", per_gib),
            work_unit_uj: keep(reasons, "work_unit_uj", unit),
            control_work_unit_uj: keep(reasons, "control_work_unit_uj", control_unit),
            idle_w: keep(reasons, "idle_w", idle.both),
            workload_w: keep(reasons, "workload_w", workload.both),
            after_w: keep(reasons, "after_w", after),
            window_ns: Some(window_ns),
            domains: self.domains(),
            shared_package: Some(self.shared),
            source_frequency_hz: said(reasons, "source_frequency_hz", facts.energy.source_conditions.frequency_hz),
            destination_frequency_hz: said(
                reasons,
                "destination_frequency_hz",
                facts.energy.destination_conditions.frequency_hz,
            ),
            source_temperature_c: said(reasons, "source_temperature_c", facts.energy.source_conditions.temperature_c),
            destination_temperature_c: said(
                reasons,
                "destination_temperature_c",
                facts.energy.destination_conditions.temperature_c,
            ),
        }
    }

    /// The power from the end of the migration to the last reading.
    fn after(&self) -> Measured<f64> {
        let ends = self.readings.iter().map(|readings| readings.last().map(|r| r.at));
        let end = ends.min().flatten().ok_or_else(not_recorded)?;
        let ns = end.since(self.to).0;
        if ns < SHORTEST_AFTER_NS {
            return Err(
                "the hosts were read for less than 100 ms after the migration: energy.after is short".to_owned()
            );
        }
        self.used(self.to, end).both.map(|uj| uj * 1e3 / ns as f64)
    }

    /// What was summed. Of a shared package one host's counters are.
    fn domains(&self) -> Vec<String> {
        let of = |name: &str, meter: &HostMeter| {
            meter.summed().map(|(_, domain)| format!("{name}:{}/{}", meter.meter, domain.name)).collect::<Vec<_>>()
        };
        let mut domains = of("source", self.source);
        if !self.shared {
            domains.extend(of("destination", self.destination));
        }
        domains
    }

    /// What is to be known of the figures.
    fn remarks(&self) -> Option<String> {
        let absent = |host: &str, meter: &HostMeter| {
            let absent = meter.absent.iter().map(|(domain, why)| format!("{host} without {domain}: {why}"));
            absent.collect::<Vec<_>>()
        };
        let mut remarks: Vec<String> = self.source.why.iter().cloned().collect();
        remarks.extend(absent("source", self.source));
        remarks.extend(absent("destination", self.destination));
        (!remarks.is_empty()).then(|| remarks.join("; "))
    }
}

/// Energy by the guest's work, during the migration and in the control run.
fn per_unit(
    gross: &Used,
    workload: &Used,
    ns: f64,
    report: &Report,
    reasons: &Reasons<'_>,
) -> (Measured<f64>, Measured<f64>) {
    let rate = report.work.baseline_units_per_s.ok_or_else(|| why_not(reasons, "work.baseline_units_per_s"));
    let lost = report.work.lost_units.ok_or_else(|| why_not(reasons, "work.lost_units"));
    let by = |energy: Measured<f64>, units: Measured<f64>| {
        let (energy, units) = (energy?, units?);
        if units > 0.0 { Ok(energy / units) } else { Err("the guest did no work".to_owned()) }
    };
    let done = rate.clone().and_then(|rate| Ok(rate * ns / 1e9 - lost?));
    (by(gross.both.clone(), done), by(workload.both.clone().map(|w| w * 1e6), rate))
}

fn why_not(reasons: &Reasons<'_>, field: &str) -> String {
    reasons.found.get(field).cloned().unwrap_or_else(not_recorded)
}

fn keep(reasons: &mut Reasons<'_>, field: &str, value: Measured<f64>) -> Option<f64> {
    reasons.keep(&format!("energy.{field}"), value)
}

fn said(reasons: &mut Reasons<'_>, field: &str, value: Option<f64>) -> Option<f64> {
    keep(reasons, field, value.ok_or_else(|| "the host doesn't say".to_owned()))
}
