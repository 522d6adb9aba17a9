//! Reports of hand-made event lists.

use super::*;
use crate::metrics;
use proptest::prelude::*;
use std::collections::BTreeSet;
use whimbrel_model::event::Sent;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{Mark, Nanos};

/// The destination's clock is this far ahead in these tests.
const AHEAD_NS: i64 = 1_000_000;
const MS: u64 = 1_000_000;

fn source(at_ns: u64, event: Event) -> Recorded {
    Recorded { at_ns: Nanos(at_ns), host: Mark::Source, event }
}

fn destination(at_ns: u64, event: Event) -> Recorded {
    Recorded { at_ns: Nanos(at_ns + AHEAD_NS as u64), host: Mark::Destination, event }
}

fn moment(moment: Moment) -> Event {
    Event::Moment { moment }
}

/// A pre-copy of memory and disk: instants in milliseconds after 1 s.
fn moved() -> Vec<Recorded> {
    let ms = |n: u64| 1000 * MS + n * MS;
    use Moment::*;
    let mut events: Vec<Recorded> = [
        (0, Requested),
        (5, SetupDone),
        (105, PauseRequested),
        (106, Paused),
        (107, Drained),
        (109, StateSaved),
        (116, HandedOver),
        (190, Released),
    ]
    .into_iter()
    .map(|(at, m)| source(ms(at), moment(m)))
    .collect();
    events.extend(
        [
            (111, MemoryCarried),
            (108, DiskCarried),
            (114, StateLoaded),
            (117, Resumed),
            (111, MemoryWhole),
            (197, DiskWhole),
            (197, Whole),
        ]
        .into_iter()
        .map(|(at, m)| destination(ms(at), moment(m))),
    );
    events
}

fn facts() -> Facts {
    Facts {
        ram_bytes: 16 << 20,
        disk_bytes: 1 << 20,
        page_size_bytes: 4096,
        block_size_bytes: 4096,
        clock: Some(ClockOffset { offset_ns: AHEAD_NS, error_ns: 20_000 }),
        ..Facts::default()
    }
}

#[test]
fn intervals_are_on_one_clock() {
    let report = Report::from_events(&moved(), &facts());
    assert_eq!((report.outcome, &report.reason), (Outcome::Completed, &None));
    let in_ms = |ns: Option<u64>| ns.map(|ns| ns / MS);
    assert_eq!(in_ms(report.setup_ns), Some(5));
    assert_eq!(in_ms(report.push_ns), Some(100));
    assert_eq!(in_ms(report.pause_latency_ns), Some(1));
    assert_eq!(in_ms(report.downtime_ns), Some(11));
    assert_eq!(in_ms(report.pull_ns), Some(80));
    assert_eq!(in_ms(report.eviction_ns), Some(190));
    assert_eq!(in_ms(report.total_ns), Some(197));
    assert_eq!(in_ms(report.memory_whole_ns), Some(111));
    assert_eq!(in_ms(report.disk_whole_ns), Some(197));
    assert_eq!(report.clock_error_ns, Some(20_000));
}

#[test]
fn the_parts_of_the_downtime_sum_to_it() {
    let report = Report::from_events(&moved(), &facts());
    let parts = report.downtime_parts_ns;
    let in_ms = [parts.drain, parts.memory, parts.disk, parts.state, parts.hand_over, parts.resume]
        .map(|p| p.expect("every part was recorded") / MS);
    // The last block arrived before the last page: it cost nothing.
    assert_eq!(in_ms, [1, 4, 0, 3, 2, 1]);
    assert_eq!(in_ms.iter().sum::<u64>(), report.downtime_ns.unwrap() / MS);
}

#[test]
fn the_destinations_instants_need_the_offset() {
    let report = Report::from_events(&moved(), &Facts { clock: None, ..facts() });
    assert_eq!(report.outcome, Outcome::Completed);
    assert_eq!((report.downtime_ns, report.total_ns), (None, None));
    assert_eq!(report.setup_ns, Some(5 * MS));
    assert!(report.reasons["downtime_ns"].contains("offset"), "{:?}", report.reasons);
}

#[test]
fn whole_is_the_later_of_its_two_parts() {
    let events: Vec<_> = moved().into_iter().filter(|e| e.event != moment(Moment::Whole)).collect();
    assert_eq!(Report::from_events(&events, &facts()).pull_ns, Some(80 * MS));
    let no_disk: Vec<_> = events.into_iter().filter(|e| e.event != moment(Moment::DiskWhole)).collect();
    let report = Report::from_events(&no_disk, &Facts { disk_bytes: 0, ..facts() });
    assert_eq!((report.pull_ns, report.outcome), (Some(0), Outcome::Completed));
    assert_eq!(report.reasons["disk_whole_ns"], NO_DISK);
    assert_eq!(report.reasons["downtime_parts_ns.disk"], NO_DISK);
    assert!(report.blocks.is_none() && report.disk_faults.is_none());
}

#[test]
fn what_failed_is_a_report_too() {
    let failed = |until: usize, why: &str| {
        let mut events: Vec<_> = moved().into_iter().take(until).collect();
        events.push(source(1300 * MS, Event::Failed { reason: why.to_owned() }));
        events
    };
    let alive = |source, destination| Facts { alive: Some(Alive { source, destination }), ..facts() };
    let during_push = Report::from_events(&failed(2, "the link was cut"), &alive(true, false));
    assert_eq!(during_push.outcome, Outcome::Aborted);
    assert_eq!(during_push.reason.as_deref(), Some("the link was cut"));
    assert_eq!(during_push.setup_ns, Some(5 * MS));
    assert_eq!(during_push.downtime_ns, None);
    assert_eq!(during_push.reasons["downtime_ns"], "`paused` was not reached: the link was cut");
    let after = Report::from_events(&failed(7, "the source was killed"), &alive(false, true));
    assert_eq!(after.outcome, Outcome::Lost);
    let mut frozen = failed(6, "the link was cut");
    frozen.push(destination(1111 * MS, moment(Moment::MemoryCarried)));
    assert_eq!(Report::from_events(&frozen, &alive(false, false)).outcome, Outcome::Undecided);
    assert_eq!(Report::from_events(&failed(3, "killed"), &alive(false, false)).outcome, Outcome::Lost);
    assert_eq!(Report::from_events(&failed(3, "?"), &alive(true, true)).outcome, Outcome::Failed);
    let nothing = Report::from_events(&[], &facts());
    assert_eq!(nothing.outcome, Outcome::Failed);
    assert!(nothing.reason.is_some());
}

#[test]
fn transfers_are_split() {
    let sent = |family, stage, demanded, first: u64, again: u64| Event::Sent {
        family,
        stage,
        demanded,
        sent: Sent {
            first_units: first,
            again_units: again,
            first_bytes: first * 4096,
            again_bytes: again * 4096,
            raw_units: first,
            zero_units: 1,
            ..Sent::default()
        },
    };
    let mut events = moved();
    events.extend([
        source(1, sent(Family::Memory, Stage::Push, false, 10, 4)),
        source(2, sent(Family::Memory, Stage::Paused, false, 0, 2)),
        source(3, sent(Family::Disk, Stage::Push, false, 100, 0)),
        source(4, sent(Family::Disk, Stage::Paused, false, 1, 0)),
        source(5, sent(Family::Disk, Stage::Pull, false, 7, 0)),
        source(6, sent(Family::Disk, Stage::Pull, true, 3, 0)),
        source(7, Event::Deferred { pages: 5 }),
        source(8, Event::Deferred { pages: 6 }),
        source(9, Event::LeftOut { pages: 20 }),
    ]);
    let link = LinkCounters {
        from: "source".into(),
        to: "destination".into(),
        limit_bytes_per_s: None,
        payload_bytes: 127 * 4096 + 1000,
        wire_bytes: None,
        in_use_ns: Some(1_000_000_000),
    };
    let report = Report::from_events(&events, &Facts { links: vec![link], control_bytes: Some(1000), ..facts() });
    let bytes = report.bytes;
    assert_eq!((bytes.memory_first, bytes.memory_again), (10 * 4096, Some(6 * 4096)));
    assert_eq!((bytes.disk_first, bytes.disk_again), (111 * 4096, Some(0)));
    assert_eq!((bytes.control, bytes.total), (Some(1000), Some(127 * 4096 + 1000)));
    assert_eq!(report.blocks, Some(Blocks { pushed: 101, pulled: 7, demanded: 3, zero: 4 }));
    assert_eq!((report.pages.raw, report.pages.zero, report.pages.skipped), (10, 2, 31));
    assert_eq!(report.links[0].achieved_bytes_per_s, Some((127 * 4096 + 1000) as f64));
    assert!(report.reasons.contains_key("links.wire_bytes"));
}

#[test]
fn waits_are_ranked() {
    let fault = |ns, in_flight| destination(5, Event::Fault { family: Family::Memory, ns, in_flight });
    let mut events = moved();
    events.extend((1..=200).rev().map(|n| fault(n, n % 4 == 0)));
    let report = Report::from_events(&events, &facts());
    let expected =
        Faults { count: 200, in_flight: 50, sum_ns: 15000, p50_ns: Some(99), p99_ns: Some(198), max_ns: Some(199) };
    assert_eq!(report.memory_faults, Some(expected));
    assert_eq!(report.disk_faults, Some(Faults::default()));
    assert_eq!(report.reasons["disk_faults.p99_ns"], "no request fetched what was not already on its way");
}

#[test]
fn waits_that_nobody_measured_are_none() {
    let mut facts = facts();
    facts.unmeasured.insert("memory_faults".to_owned(), "nobody saw them".to_owned());
    let report = Report::from_events(&moved(), &facts);
    assert_eq!((report.memory_faults, &*report.reasons["memory_faults"]), (None, "nobody saw them"));
    assert!(!report.reasons.contains_key("memory_faults.p50_ns"));
}

/// A control run that does a unit and ten operations a millisecond.
fn control() -> ControlRun {
    let work = (0..=400).map(|n| WorkSample { at_ns: 77 + n * MS, units: n, operations: vec![n * 5, n * 5] });
    ControlRun { work: work.collect(), longest_silence_ns: Some(MS) }
}

fn work(units: u64) -> Event {
    Event::Work { units, operations: vec![units * 5, units * 5] }
}

#[test]
fn work_is_compared_with_the_control_run() {
    let at = |ms: u64| (1000 + ms) * MS;
    let mut events = moved();
    // Full speed before; half from 5 ms to 105 ms; nothing while paused; a quarter from 117 ms to 197 ms.
    events.extend([
        source(at(0), work(100)),
        source(at(5), work(105)),
        source(at(105), work(155)),
        source(at(106), work(156)),
        destination(at(117), work(156)),
        destination(at(197), work(176)),
        source(at(55), Event::Throttled { share: 0.5 }),
        source(at(95), Event::Throttled { share: 0.0 }),
    ]);
    let with = Facts { control: Some(control()), ..facts() };
    let report = Report::from_events(&events, &with);
    let near = |value: Option<f64>, wanted: f64| {
        let value = value.unwrap_or_else(|| panic!("{:?}", report.reasons));
        assert!((value - wanted).abs() < 1e-6, "{value}, {wanted} expected");
    };
    near(report.work.push_degradation_ratio, 0.5);
    near(report.work.pull_degradation_ratio, 0.75);
    near(report.work.baseline_units_per_s, 1000.0);
    near(report.work.lost_units, 197.0 - 76.0);
    near(report.work.delay_ns.map(|ns| ns as f64), ((197 - 76) * MS) as f64);
    assert_eq!(report.work.throttle_ns, Some(20 * MS));
    let without = Report::from_events(&events, &facts());
    assert_eq!(without.work.lost_units, None);
    assert!(without.reasons["work.lost_units"].contains("control run"));
}

#[test]
fn the_rate_of_the_control_runs_second_half_goes_on() {
    let at = |ms: u64| (1000 + ms) * MS;
    let mut events = moved();
    events.extend([source(at(0), work(350)), source(at(106), work(456)), destination(at(197), work(536))]);
    let report = Report::from_events(&events, &Facts { control: Some(control()), ..facts() });
    assert!((report.work.lost_units.unwrap() - 11.0).abs() < 1e-6, "{:?}", report.work);
    // A cold start, of which the trial has nothing left, doesn't count.
    let sample = |ms: u64, units| WorkSample { at_ns: ms * MS, units, operations: vec![units * 10] };
    let cold = ControlRun { work: vec![sample(0, 0), sample(300, 100), sample(600, 400)], ..control() };
    let report = Report::from_events(&events, &Facts { control: Some(cold), ..facts() });
    assert!((report.work.lost_units.unwrap() - 11.0).abs() < 1e-6, "{:?}", report.work);
}

#[test]
fn silence_counts_across_the_move_and_less_the_control_runs() {
    let edge = |ns: [u64; 2]| ns.map(Nanos).to_vec();
    let mut events = moved();
    events.push(source(1106 * MS, Event::Silence { longest_ns: 3 * MS, edge: edge([1105 * MS, 1106 * MS]) }));
    let clock = AHEAD_NS as u64;
    events.push(destination(
        1400 * MS,
        Event::Silence { longest_ns: 2 * MS, edge: edge([1117 * MS + clock, 1119 * MS + clock]) },
    ));
    let report = Report::from_events(&events, &Facts { control: Some(control()), ..facts() });
    assert_eq!(report.guest_gap_ns, Some(12 * MS));
    assert!(Report::from_events(&events, &facts()).reasons["guest_gap_ns"].contains("control"));
}

#[test]
fn a_guests_own_clock_lags_by_what_it_missed() {
    let clock = AHEAD_NS as u64;
    let read = |heard: u64, said: u64| Event::GuestClock { heard: Nanos(heard), said: Nanos(said) };
    let lag = |events: &[Recorded]| Report::from_events(events, &facts());
    let without = lag(&moved());
    assert_eq!(without.guest_clock_lag_ns, None);
    assert!(without.reasons["guest_clock_lag_ns"].contains("at the source"), "{:?}", without.reasons);
    let mut events = moved();
    events.push(source(1106 * MS, read(1105 * MS, 70 * MS)));
    assert!(lag(&events).reasons["guest_clock_lag_ns"].contains("at the destination"));
    // The hosts count 14 ms, of which the guest saw 5.
    events.push(destination(1400 * MS, read(1119 * MS + clock, 75 * MS)));
    assert_eq!(lag(&events).guest_clock_lag_ns, Some(9 * MS));
}

#[test]
fn the_last_word_on_readiness_counts() {
    let ready = |family, ended_by| source(1, Event::Ready { family, ended_by });
    let mut events = moved();
    events.extend([
        ready(Family::Memory, Some(EndedBy::Converged)),
        ready(Family::Disk, Some(EndedBy::RoundBound)),
        ready(Family::Memory, None),
        ready(Family::Memory, Some(EndedBy::ByteBound)),
        // What is said after the pause comes too late to have ended anything.
        source(1500 * MS, Event::Ready { family: Family::Disk, ended_by: None }),
        source(9, Event::Predicted { ns: 7 }),
        source(9, Event::Predicted { ns: 8 }),
    ]);
    let report = Report::from_events(&events, &facts());
    let both = EndedBoth { memory: Some(EndedBy::ByteBound), disk: Some(EndedBy::RoundBound) };
    assert_eq!((report.ended_by, report.predicted_downtime_ns), (both, Some(8)));
}

#[test]
fn rho_is_the_unique_dirty_rate_by_the_links() {
    let link = LinkCounters { to: "destination".into(), limit_bytes_per_s: Some(100.0), ..LinkCounters::default() };
    let offered = OfferedFacts { unique_dirty_bytes_per_s: Some(25.0), ..OfferedFacts::default() };
    let report = Report::from_events(&moved(), &Facts { links: vec![link], offered, ..facts() });
    assert_eq!(report.offered.rho, Some(0.25));
}

/// The paths of all values in `value`, and of those which are null.
fn paths(value: &serde_json::Value, path: &str, all: &mut BTreeSet<String>, null: &mut BTreeSet<String>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        serde_json::Value::Object(fields) => {
            fields.iter().for_each(|(key, v)| paths(v, &below(key), all, null));
        }
        serde_json::Value::Array(items) if items.iter().any(serde_json::Value::is_object) => {
            items.iter().for_each(|v| paths(v, path, all, null));
        }
        other => {
            all.insert(path.to_owned());
            if other.is_null() {
                null.insert(path.to_owned());
            }
        }
    }
}

/// Null says something of its own in these fields.
fn may_be_null(path: &str) -> bool {
    ["reason", "blocks", "disk_faults", "links.limit_bytes_per_s", "rounds.limit", "rounds.predicted_ns"]
        .contains(&path)
        || path.starts_with("energy.")
        || path == "verify.first_difference"
}

fn event() -> impl Strategy<Value = Recorded> {
    let moments = prop::sample::select(
        [
            Moment::Requested,
            Moment::SetupDone,
            Moment::PauseRequested,
            Moment::Paused,
            Moment::HandedOver,
            Moment::Resumed,
            Moment::MemoryWhole,
            Moment::DiskWhole,
            Moment::Whole,
            Moment::Released,
        ]
        .to_vec(),
    );
    let round = |ns| Round {
        kind: Family::Memory,
        start_ns: 0,
        ns,
        sent_units: 1,
        dirty_units: 1,
        again_units: 0,
        bytes: 4096,
        limit: None,
        predicted_ns: None,
        throttle: 0.0,
    };
    let event = prop_oneof![
        8 => moments.prop_map(moment),
        2 => any::<u32>().prop_map(|u| work(u.into())),
        1 => any::<u64>().prop_map(|ns| Event::Fault { family: Family::Disk, ns, in_flight: false }),
        1 => any::<u64>().prop_map(|ns| Event::Silence { longest_ns: ns, edge: vec![Nanos(ns)] }),
        1 => any::<[u64; 2]>().prop_map(|[heard, said]| Event::GuestClock { heard: Nanos(heard), said: Nanos(said) }),
        1 => any::<u64>().prop_map(move |ns| Event::Round { round: round(ns) }),
        1 => (0.0..=1.0).prop_map(|share| Event::Throttled { share }),
        1 => Just(Event::Failed { reason: "it broke".to_owned() }),
    ];
    (any::<u64>(), any::<bool>(), event).prop_map(|(at_ns, here, event)| Recorded {
        at_ns: Nanos(at_ns),
        host: if here { Mark::Source } else { Mark::Destination },
        event,
    })
}

proptest! {
    #[test]
    fn whatever_was_recorded_gives_a_row_whose_nulls_have_reasons(
        events in prop::collection::vec(event(), 0..30), disk in any::<bool>(), clock in any::<Option<i64>>(),
        with_control in any::<bool>(),
    ) {
        let facts = Facts {
            disk_bytes: u64::from(disk) << 20,
            clock: clock.map(|offset_ns| ClockOffset { offset_ns, error_ns: 1 }),
            control: with_control.then(control),
            links: vec![LinkCounters::default()],
            ..facts()
        };
        let report = Report::from_events(&events, &facts);
        let text = serde_json::to_string(&report).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Report>(&text).unwrap().reasons, &report.reasons);
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let reasons = value["reasons"].take();
        value.as_object_mut().unwrap().remove("reasons");
        let (mut all, mut null) = (BTreeSet::new(), BTreeSet::new());
        paths(&value, "", &mut all, &mut null);
        for path in null.iter().filter(|p| !may_be_null(p)) {
            prop_assert!(reasons.get(path).is_some(), "{} is null without a reason", path);
        }
        for reason in reasons.as_object().unwrap().keys() {
            prop_assert!(null.contains(reason), "{} has a value and a reason for having none", reason);
        }
        for path in &all {
            let known = metrics::find(path).is_some() || ["blocks", "disk_faults", "links", "rounds"].contains(&path.as_str());
            prop_assert!(known, "{} is not in the catalogue", path);
        }
    }
}
