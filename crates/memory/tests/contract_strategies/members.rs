//! The contract of every member of every family of answers, and of every combination: names and texts, defaults,
//! nothing lost, an end within bounds, legal steps only.

use crate::pure_engine::{End, Report, Setting, migrate};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use whimbrel_memory::{
    BuildContext, ChoiceError, ENCODINGS, MemoryChoice, PRESETS, SCHEDULES, SELECTIONS, STOP_RULES, THROTTLES,
};
use whimbrel_model::event::EndedBy;
use whimbrel_model::{Entry, Page, Parameters, Registry, Rest, Step, UnitSet, View};

fn read(value: Value) -> Result<MemoryChoice, ChoiceError> {
    MemoryChoice::read(&serde_json::from_value::<BTreeMap<_, _>>(value).unwrap())
}

/// 8 MiB over 4 MiB/s: two seconds for all of it, of which half a second fits no default budget.
const SMALL: Setting = Setting {
    pages: 2048,
    bandwidth_bytes_per_s: 4.0 * 1048576.0,
    working_pages: 0,
    writes_per_s: 0.0,
    other_ready_ns: 0,
    longest_ns: 100_000_000_000,
};

/// Guests: idle; one that converges (30 % of the link, 4 MiB); one that can't (twice the link, 6 MiB).
fn guests() -> [(&'static str, Setting); 3] {
    [
        ("idle", SMALL),
        ("slow", Setting { working_pages: 1024, writes_per_s: 0.3 * 1024.0, ..SMALL }),
        ("hot", Setting { working_pages: 1536, writes_per_s: 2.0 * 1024.0, ..SMALL }),
    ]
}

fn check_table<C>(registry: &Registry<C>) {
    let kebab =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    let snake = |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let names: BTreeSet<_> = registry.names().collect();
    assert_eq!(names.len(), registry.entries.len(), "{}: a name comes twice", registry.family);
    for Entry { name, summary, parameters, source, .. } in registry.entries {
        assert!(kebab(name), "{name}");
        assert!(summary.len() > 10 && !summary.ends_with('.') && !summary.contains('\n'), "{name}: {summary:?}");
        assert!(!source.is_empty(), "{name} names no source");
        for parameter in *parameters {
            assert!(snake(parameter.name), "{name}: {}", parameter.name);
            assert!(parameter.summary.len() > 5, "{name}: {}", parameter.name);
            assert!(
                parameter.default.is_some() || parameter.summary.contains("left out"),
                "{name}: {} has no default, so its summary says what leaving it out means",
                parameter.name
            );
        }
        Parameters::defaults(parameters);
    }
}

#[test]
fn every_table_is_in_order() {
    check_table(&SCHEDULES);
    check_table(&SELECTIONS);
    check_table(&ENCODINGS);
    check_table(&STOP_RULES);
    check_table(&THROTTLES);
    check_table(&PRESETS);
}

#[test]
fn a_flat_table_is_unambiguous() {
    // Members that may be chosen together may not share a parameter, nor a parameter be named as an answer.
    fn of<C>(registry: &Registry<C>) -> Vec<&'static str> {
        registry.entries.iter().flat_map(|e| e.parameters).map(|p| p.name).collect()
    }
    let once = |names: Vec<&'static str>| names.into_iter().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>();
    let answers = vec!["preset", "schedule", "select", "encode", "stop", "throttle"];
    // Of schedules, selections and throttles one is chosen, so that they may share among themselves.
    let all =
        [answers, once(of(&SCHEDULES)), once(of(&SELECTIONS)), once(of(&THROTTLES)), of(&ENCODINGS), of(&STOP_RULES)]
            .concat();
    let mut seen = BTreeSet::new();
    for name in all {
        assert!(seen.insert(name), "{name} means two things");
    }
}

#[test]
fn every_preset_reads_and_sets_only_what_it_uses() {
    for preset in PRESETS.entries {
        let keys: BTreeMap<String, Value> =
            preset.build.iter().map(|(k, v)| ((*k).to_owned(), serde_json::from_str(v).unwrap())).collect();
        let by_hand = MemoryChoice::read(&keys).unwrap_or_else(|e| panic!("{}: {e}", preset.name));
        let by_name = read(json!({"preset": preset.name})).unwrap();
        let mut resolved = by_name.resolved();
        assert_eq!(resolved.remove("preset"), Some(json!(preset.name)));
        assert_eq!(resolved, by_hand.resolved());
        assert_eq!(by_name.name(), preset.name);
    }
}

/// What holds of every move that ends.
fn check_whole(what: &str, report: &Report) {
    match report.end {
        End::Completed(_, rest) => {
            assert_eq!(report.left_at_end, 0, "{what}: the destination lacks pages");
            if rest == Rest::LeaveBehind {
                assert_eq!(report.downtime_ns, 0, "{what}: what is left behind costs no downtime");
            }
        }
        End::Aborted | End::Endless => {}
    }
}

/// Whether a list of stop rules must end the move of this guest. Only one that writes much reaches a bound on bytes.
fn must_end(stop: &[&str], guest: &str) -> bool {
    let bounded = stop.iter().any(|rule| ["round-bound", "time-bound"].contains(rule))
        || guest == "hot" && stop.contains(&"byte-bound");
    let converges = guest != "hot" && stop.iter().any(|rule| ["downtime-budget", "pages", "bytes"].contains(rule));
    bounded || converges
}

#[test]
fn every_combination_ends_whole_or_is_refused_with_a_reason() {
    let default: &[&str] = &["downtime-budget", "round-bound", "byte-bound"];
    let stops: Vec<Vec<&str>> = STOP_RULES.names().map(|name| vec![name]).chain([default.to_vec()]).collect();
    let (mut moves, mut refused) = (0, 0);
    for schedule in SCHEDULES.entries {
        for (select, throttle) in SELECTIONS.names().flat_map(|s| THROTTLES.names().map(move |t| (s, t))) {
            for stop in stops.iter().map(Some).chain([None]) {
                let mut keys = json!({"schedule": schedule.name, "select": select, "throttle": throttle});
                if let Some(stop) = stop {
                    keys["stop"] = json!(stop);
                }
                let pointless = (stop.is_some() && !schedule.build.judged)
                    || (!schedule.build.pushes && (!["all", "soft"].contains(&select) || throttle != "none"));
                let choice = match read(keys.clone()) {
                    Err(ChoiceError::Pointless { .. }) if pointless => {
                        refused += 1;
                        continue;
                    }
                    other => other.unwrap_or_else(|e| panic!("{keys}: {e}")),
                };
                assert!(!pointless, "{keys} ought to be refused");
                for (guest, setting) in guests() {
                    let report = migrate(&choice, setting);
                    let what = format!("{keys}, {guest}");
                    check_whole(&what, &report);
                    let leaves_out = select == "soft" && matches!(report.end, End::Completed(..));
                    assert_eq!(report.left_out > 0, leaves_out, "{what}: {} pages are left out", report.left_out);
                    let ends = stop.is_none_or(|stop| must_end(stop, guest));
                    assert!(!ends || report.end != End::Endless, "{what} doesn't end");
                    let endless = stop.is_some_and(|stop| stop == &["never"]);
                    assert!(!endless || report.end == End::Endless, "{what}: never means never");
                    moves += 1;
                }
            }
        }
    }
    assert!(moves > 100 && refused > 10, "{moves} moves, {refused} refused");
}

#[test]
fn every_preset_ends_whole_on_every_guest_and_link() {
    for name in PRESETS.names() {
        let choice = read(json!({"preset": name})).unwrap();
        for ((guest, setting), faster) in guests().into_iter().flat_map(|g| [1.0, 40.0].map(|f| (g, f))) {
            let bandwidth_bytes_per_s = setting.bandwidth_bytes_per_s * faster;
            let report = migrate(&choice, Setting { bandwidth_bytes_per_s, ..setting });
            let what = format!("{name}, {guest}, link x {faster}: {:?}", report.end);
            assert!(matches!(report.end, End::Completed(_, Rest::CarryOver)), "{what}");
            assert!(report.sent_bytes <= 31 * (8 << 20) && report.rounds.len() <= 30, "{what}");
            check_whole(&what, &report);
        }
    }
}

#[test]
fn the_schedules_do_what_they_say() {
    let (_, slow) = guests()[1];
    let run = |value: Value| migrate(&read(value).unwrap(), slow);
    let stop = run(json!({"schedule": "stop-and-copy"}));
    assert_eq!(stop.end, End::Completed(EndedBy::Immediate, Rest::CarryOver));
    assert_eq!((stop.left_at_pause, stop.sent_bytes, stop.rounds.len()), (2048, 8 << 20, 0));
    let post = run(json!({"schedule": "post-copy", "order": "scattered"}));
    assert_eq!(post.end, End::Completed(EndedBy::Immediate, Rest::LeaveBehind));
    assert_eq!((post.left_at_pause, post.sent_bytes), (2048, 8 << 20), "each page once");
    for rounds in 0..4 {
        let hybrid = run(json!({"schedule": "hybrid", "rounds": rounds}));
        let why = if rounds == 0 { EndedBy::Immediate } else { EndedBy::RoundBound };
        assert_eq!(hybrid.end, End::Completed(why, Rest::LeaveBehind));
        assert_eq!(hybrid.rounds.len(), rounds);
    }
    let idle = migrate(&read(json!({"schedule": "hybrid", "rounds": 9})).unwrap(), SMALL);
    assert_eq!((idle.end, idle.rounds.len()), (End::Completed(EndedBy::Converged, Rest::LeaveBehind), 1));
    for rounds in 0..3 {
        let faulty = run(json!({"schedule": "faulty", "faulty_rounds": rounds}));
        assert_eq!((faulty.end, faulty.rounds.len()), (End::Aborted, rounds));
    }
    let pre = run(json!({"schedule": "pre-copy"}));
    assert_eq!(pre.end, End::Completed(EndedBy::Converged, Rest::CarryOver));
    assert!(pre.downtime_ns <= 300_000_000, "within the budget: {} ns", pre.downtime_ns);
    assert_eq!(pre.predicted_ns.map(|p| p.abs_diff(pre.downtime_ns) < 1_000_000), Some(true));
}

#[test]
fn while_the_disk_is_not_ready_memory_stays_within_its_budget_without_using_up_its_bounds() {
    // The disk takes so long that memory has to be sent again and again: far more often than its 30 rounds.
    let (_, slow) = guests()[1];
    let setting = Setting { other_ready_ns: 90_000_000_000, ..slow };
    let report = migrate(&MemoryChoice::default(), setting);
    assert_eq!(report.end, End::Completed(EndedBy::Converged, Rest::CarryOver));
    assert!(report.withdrawn > 10 && report.rounds.len() > 30, "{} times, {}", report.withdrawn, report.rounds.len());
    // What is written between two looks may come on top of the budget.
    assert!(report.downtime_ns <= 350_000_000, "{} ns", report.downtime_ns);
    check_whole("waiting", &report);
    let idle = migrate(&MemoryChoice::default(), Setting { other_ready_ns: 90_000_000_000, ..SMALL });
    assert_eq!((idle.rounds.len(), idle.withdrawn), (1, 0), "an idle guest gives no reason to send again");
}

#[test]
fn ended_by_a_bound_memory_stays_ready() {
    let (_, hot) = guests()[2];
    let report = migrate(&MemoryChoice::default(), Setting { other_ready_ns: 90_000_000_000, ..hot });
    assert_eq!(report.end, End::Completed(EndedBy::ByteBound, Rest::CarryOver));
    assert_eq!(report.withdrawn, 0);
}

#[test]
fn a_schedule_may_be_asked_more_often_than_it_needs() {
    // While its round goes on, a schedule that is asked again must not begin another.
    for schedule in SCHEDULES.entries.iter().filter(|s| s.build.pushes) {
        let choice = read(json!({"schedule": schedule.name})).unwrap();
        let mut built = choice.build(&BuildContext { pages: 8, seed: 1 }).schedule;
        let unsent = UnitSet::<Page>::full(8);
        let mut ask = || {
            built.source(&View {
                now: whimbrel_model::Nanos(1),
                stage: whimbrel_model::strategy::Stage::Push,
                unit_bytes: 4096,
                unsent: &unsent,
                peeked: None,
                counts: None,
                rounds: &[],
                verdict: whimbrel_model::strategy::Verdict::Continue,
                bandwidth: None,
                other_ready: true,
            })
        };
        assert!(matches!(ask()[..], [Step::Push { .. }, Step::Observe(_)]), "{}", schedule.name);
        assert_eq!(ask(), [], "{}", schedule.name);
    }
}
