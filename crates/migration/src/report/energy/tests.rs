//! What a migration cost, from readings with known truth.

use super::*;
use crate::report::{ClockOffset, ControlRun, EnergyFacts, WorkSample};
use std::collections::BTreeMap;
use whimbrel_energy::{Conditions, Domain, DomainKind};

const S: u64 = 1_000_000_000;

fn meter(covers: &str) -> Box<HostMeter> {
    let package = Some("package-0".to_owned());
    let domain = Domain { name: "package-0".to_owned(), kind: DomainKind::Package, package, range_uj: None };
    Box::new(HostMeter {
        kind: Kind::Measured,
        meter: "powercap".to_owned(),
        domains: vec![domain],
        absent: BTreeMap::new(),
        covers: vec![covers.to_owned()],
        why: None,
    })
}

fn event(host: Mark, at: u64, event: Event) -> Recorded {
    Recorded { at_ns: Nanos(at), host, event }
}

/// A migration from second 10 to second 12; the source at 30 W and the destination at 20 W, whose clock is 5 s ahead; 10 W
/// and 5 W afterwards.
fn events() -> Vec<Recorded> {
    let moment = |s: u64, moment| event(Mark::Source, s * S, Event::Moment { moment });
    let mut events = vec![
        moment(10, Moment::Requested),
        moment(11, Moment::Resumed),
        moment(12, Moment::MemoryWhole),
        moment(12, Moment::Released),
    ];
    for tenth in 95..=130u64 {
        let used =
            |during: u64, after: u64| tenth.min(120) * during * 100_000 + tenth.saturating_sub(120) * after * 100_000;
        let at = tenth * S / 10;
        events.push(event(Mark::Source, at, Event::Energy { uj: vec![Some(used(30, 10))] }));
        events.push(event(Mark::Destination, at + 5 * S, Event::Energy { uj: vec![Some(used(20, 5))] }));
        events.push(event(Mark::Source, at, Event::Work { units: tenth * 10, operations: vec![tenth * 10] }));
    }
    events
}

fn facts() -> Facts {
    let work = (0..30).map(|n| WorkSample { at_ns: n * S, units: n * 200, operations: vec![n * 200] });
    Facts {
        ram_bytes: 1 << 29,
        clock: Some(ClockOffset { offset_ns: 5 * S as i64, error_ns: 0 }),
        control: Some(ControlRun { work: work.collect(), longest_silence_ns: Some(0) }),
        energy: EnergyFacts {
            source: Ok(meter("a/package-0")),
            destination: Ok(meter("b/package-0")),
            idle: HostPowers { source_w: Ok(4.0), destination_w: Ok(3.0) },
            workload: HostPowers { source_w: Ok(12.0), destination_w: Ok(3.0) },
            source_conditions: Conditions { frequency_hz: Some(2e9), temperature_c: None },
            destination_conditions: Conditions::default(),
        },
        ..Facts::default()
    }
}

#[test]
fn two_hosts_are_told_apart() {
    let report = Report::from_events(&events(), &facts());
    let energy = &report.energy;
    assert_eq!((energy.kind, energy.shared_package, &energy.why), (Some(Kind::Measured), Some(false), &None));
    assert_eq!((energy.source_uj, energy.destination_uj), (Some(60_000_000), Some(40_000_000)));
    assert_eq!((energy.gross_uj, energy.window_ns), (Some(100_000_000), Some(2 * S)));
    assert_eq!((energy.source_overhead_uj, energy.destination_overhead_uj), (Some(36_000_000), Some(34_000_000)));
    assert_eq!((energy.overhead_uj, energy.overhead_per_gib_uj), (Some(70_000_000), Some(140e6)));
    assert_eq!((energy.idle_w, energy.workload_w), (Some(7.0), Some(15.0)));
    assert!((energy.after_w.unwrap() - 15.0).abs() < 1e-9);
    assert_eq!(energy.domains, ["source:powercap/package-0", "destination:powercap/package-0"]);
    // Half the control run's work was done: its energy for as much is that of one second.
    assert_eq!(energy.same_work_overhead_uj, Some(85_000_000));
    assert!((energy.work_unit_uj.unwrap() - 500_000.0).abs() < 1.0 && energy.control_work_unit_uj == Some(75_000.0));
    assert_eq!(energy.source_frequency_hz, Some(2e9));
    assert!(report.reasons.contains_key("energy.source_temperature_c"));
}

#[test]
fn a_shared_package_is_a_sum_and_never_split() {
    let mut facts = facts();
    facts.energy.destination = facts.energy.source.clone();
    let report = Report::from_events(&events(), &facts);
    let energy = &report.energy;
    assert_eq!(energy.shared_package, Some(true));
    assert_eq!((energy.source_uj, energy.destination_uj, energy.source_overhead_uj), (None, None, None));
    assert_eq!((energy.gross_uj, energy.workload_w), (Some(60_000_000), Some(12.0)));
    assert_eq!(energy.overhead_uj, Some(36_000_000));
    assert!(report.reasons["energy.source_uj"].contains("one package"));
    assert_eq!(energy.domains.len(), 1);
}

#[test]
fn one_host_by_two_meters_is_no_sum() {
    let mut facts = facts();
    let mut plug = facts.energy.source.clone().unwrap();
    let host = plug.covers[0].rsplit_once('/').unwrap().0.to_owned();
    (plug.meter, plug.covers) = ("command".to_owned(), vec![format!("{host}/host")]);
    facts.energy.destination = Ok(plug);
    let energy = Report::from_events(&events(), &facts).energy;
    assert_eq!((energy.kind, energy.gross_uj, energy.shared_package), (None, None, None));
    let why = energy.why.unwrap();
    assert!(why.contains("powercap and command") && why.contains("use one"), "{why}");
}

#[test]
fn what_is_not_known_is_null_with_its_reason() {
    let report = Report::from_events(&events(), &Facts::default());
    assert_eq!((report.energy.kind, report.energy.why.as_deref()), (None, Some("no meter was read")));
    // One host's counter was lost within the window.
    let mut lost = events();
    for recorded in &mut lost {
        if let (Mark::Destination, Event::Energy { uj }) = (recorded.host, &mut recorded.event)
            && recorded.at_ns.0 > 16 * S
        {
            *uj = vec![None];
        }
    }
    let report = Report::from_events(&lost, &facts());
    assert_eq!((report.energy.source_uj, report.energy.destination_uj), (Some(60_000_000), None));
    assert_eq!((report.energy.gross_uj, report.energy.overhead_uj), (None, None));
    assert!(report.reasons["energy.overhead_uj"].contains("lost"), "{:?}", report.reasons);
    // A meter and a model are not added.
    let mut mixed = facts();
    mixed.energy.destination.as_mut().unwrap().kind = Kind::Modelled;
    let energy = Report::from_events(&events(), &mixed).energy;
    assert_eq!((energy.kind, energy.gross_uj), (None, None));
    assert!(energy.why.unwrap().contains("modelled"));
    // Without the control run there is a gross energy and no overhead.
    let mut alone = facts();
    alone.energy.workload = HostPowers::none("there was no control run");
    let energy = Report::from_events(&events(), &alone).energy;
    assert_eq!((energy.gross_uj, energy.overhead_uj, energy.workload_w), (Some(100_000_000), None, None));
}
