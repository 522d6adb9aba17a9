//! Counters that wrap, are reset, stand still, are read too late or not at all: the total is exact or null.

use super::*;
use crate::meter::DomainKind;
use proptest::prelude::*;

const MS: u64 = 1_000_000;

fn domain(kind: DomainKind, range_uj: Option<u64>) -> Domain {
    Domain { name: "d".to_owned(), kind, package: None, range_uj }
}

fn package(range_uj: u64) -> Counter {
    Counter::new(&domain(DomainKind::Package, Some(range_uj)))
}

fn at(ms: u64, uj: u64) -> Result<Reading, Unmeasured> {
    Ok(Reading { at: Nanos(ms * MS), uj })
}

fn gone() -> Result<Reading, Unmeasured> {
    Err(Unmeasured::because("gone"))
}

fn feed<const N: usize>(counter: &mut Counter, readings: [Result<Reading, Unmeasured>; N]) {
    readings.into_iter().for_each(|reading| counter.add(reading));
}

fn total(counter: &Counter) -> Result<u64, String> {
    counter.total().map_err(|e| e.why)
}

/// The range of an Intel client part.
const CLIENT: u64 = 262_143_328_850;

#[test]
fn a_wrap_adds_the_range() {
    let mut counter = package(CLIENT);
    feed(&mut counter, [at(0, CLIENT - 700_000), at(10, CLIENT - 200_000), at(20, 300_000), at(30, 800_000)]);
    assert_eq!(total(&counter), Ok(1_500_000));
}

#[test]
fn counters_that_fall_together_were_reset() {
    let all = |readings: [[u64; 3]; 3]| {
        let mut counters = [package(CLIENT), package(CLIENT), package(CLIENT)];
        for (ms, of_each) in (0..).step_by(10).zip(readings) {
            add_all(&mut counters, of_each.iter().map(|uj| at(ms, *uj)).collect());
        }
        counters.map(|counter| counter.total().ok())
    };
    // Each would be plausible as a wrap.
    let (one, other) = (CLIENT - 200_000, CLIENT - 900_000);
    assert_eq!(all([[one - 1, other - 1, 5], [one, other, 6], [10, 11, 7]]), [None, None, Some(2)]);
    let mut counters = [package(CLIENT), package(CLIENT)];
    add_all(&mut counters, vec![at(0, one), at(0, other)]);
    add_all(&mut counters, vec![at(60_000, 10), at(60_000, 11)]);
    assert_eq!(
        counters.map(|counter| counter.total().ok()),
        [None, None],
        "nor does a late reader take them for wraps"
    );
    assert_eq!(
        all([[one - 1, 7, 5], [one, 8, 6], [10, 9, 7]]),
        [Some(200_011), Some(2), Some(2)],
        "a wrap comes alone"
    );
    let twice = all([[one - 1, one, 5], [one, one + 1, 6], [10, 11, 7]]);
    assert_eq!(twice, [Some(200_011), Some(200_011), Some(2)], "one counter under two names");
    // Where wraps are frequent two of them may meet.
    let mut counters = [package(2_000_000), package(2_000_000)];
    for ms in 0..=1000 {
        add_all(&mut counters, vec![at(ms, ms * 100_000 % 2_000_000), at(ms, (ms * 100_000 + 1_900_000) % 2_000_000)]);
    }
    assert_eq!(counters.map(|counter| counter.total().ok()), [Some(100_000_000); 2]);
}

#[test]
fn many_wraps_are_all_counted() {
    // 2 J of range at 100 W: a wrap every 20 ms, read every millisecond.
    let mut counter = package(2_000_000);
    for ms in 0..=1000 {
        counter.add(at(ms, ms * 100_000 % 2_000_000));
    }
    assert_eq!(total(&counter), Ok(100_000_000));
}

#[test]
fn who_slept_too_long_cannot_tell() {
    let mut counter = package(CLIENT);
    feed(&mut counter, [at(0, 5), at(10, 1000), at(300_000, 2000), at(300_010, 3000)]);
    let why = total(&counter).unwrap_err();
    assert!(why.contains("not read for") && why.contains("wrapped"), "{why}");
    // A counter that never wraps doesn't mind.
    let mut counter = Counter::new(&domain(DomainKind::Package, None));
    feed(&mut counter, [at(0, 5), at(300_000, 2005)]);
    assert_eq!(total(&counter), Ok(2000));
}

#[test]
fn a_reset_is_no_wrap() {
    let mut counter = package(CLIENT);
    feed(&mut counter, [at(0, 100_000_000_000), at(10, 100_000_500_000), at(20, 400)]);
    assert!(total(&counter).unwrap_err().contains("reset"));
    let mut counter = Counter::new(&domain(DomainKind::Package, None));
    feed(&mut counter, [at(0, 100), at(10, 200), at(20, 50), at(30, 60)]);
    assert!(total(&counter).unwrap_err().contains("reset"));
}

/// A virtual machine under Xen that was moved between two sockets, each second another counter (scaphandre's issue 134).
#[test]
fn two_counters_under_one_name_are_none() {
    let mut counter = package(CLIENT);
    feed(&mut counter, [at(0, 194_127_997_354), at(1000, 45_766_381_128), at(2000, 45_831_036_419)]);
    assert!(total(&counter).unwrap_err().contains("reset, or counts something else"));
    let mut counter = package(CLIENT);
    feed(&mut counter, [at(0, 45_897_290_000), at(1000, 194_961_270_917), at(2000, 195_025_000_000)]);
    assert!(total(&counter).unwrap_err().contains("counts something else"));
}

/// A reset looks like a wrap if it happens just below the top of the range. It passes for one only where the wrap's energy is
/// plausible for the time, a kilowatt at most; so what is wrong is at most that.
#[test]
fn a_reset_near_the_top_of_the_range_is_no_wrap_either() {
    let mut counter = package(CLIENT);
    feed(&mut counter, [at(0, CLIENT - 200_000_000), at(10, CLIENT - 199_000_000), at(20, 400)]);
    assert!(total(&counter).unwrap_err().contains("reset"), "199 J in 10 ms are 20 kW");
    let mut counter = package(CLIENT);
    feed(&mut counter, [at(0, CLIENT - 5_000_000), at(10, CLIENT - 4_000_000), at(20, 400)]);
    assert_eq!(total(&counter), Ok(5_000_400));
}

#[test]
fn a_counter_that_stands_still_is_no_meter() {
    let mut counter = package(CLIENT);
    (0..100).for_each(|n| counter.add(at(n * 10, 7_000_000)));
    let why = total(&counter).unwrap_err();
    assert!(why.contains("never moved") && why.contains("7000000"), "{why}");
    counter.add(at(1000, 7_000_061));
    assert_eq!(total(&counter), Ok(61));
}

#[test]
fn a_domain_that_disappears_has_no_total_and_one_that_comes_back_has() {
    let mut counter = package(CLIENT);
    feed(&mut counter, [at(0, 0), at(10, 100), gone()]);
    assert_eq!(total(&counter), Err("gone".to_owned()));
    counter.add(at(40, 900));
    assert_eq!(total(&counter), Ok(900));
}

#[test]
fn what_is_not_later_says_nothing_new() {
    let mut counter = package(CLIENT);
    feed(&mut counter, [at(10, 100), at(20, 300), at(20, 900), at(15, 5000), at(30, 400)]);
    assert_eq!(total(&counter), Ok(300));
    assert_eq!(total(&package(CLIENT)), Err("it was not read".to_owned()));
}

#[test]
fn what_exceeds_the_range_is_not_believed() {
    let mut counter = package(1_000_000_000);
    feed(&mut counter, [at(0, 10), at(1, 1_000_000_001)]);
    assert!(total(&counter).unwrap_err().contains("range"));
}

/// One turn of a recorded trace.
#[derive(Clone, Debug)]
enum Turn {
    /// So much later (in ms), at so much power (in W): read.
    Read { ms: u64, w: u64 },
    /// The same, and the reading fails.
    Fail { ms: u64, w: u64 },
    /// The same reading again.
    Again,
}

fn turns(longest_ms: u64) -> impl Strategy<Value = Vec<Turn>> {
    let turn = prop_oneof![
        6 => (1..=longest_ms, 0u64..=1000).prop_map(|(ms, w)| Turn::Read { ms, w }),
        1 => (1..=longest_ms / 4, 0u64..=1000).prop_map(|(ms, w)| Turn::Fail { ms, w }),
        1 => Just(Turn::Again),
    ];
    prop::collection::vec(turn, 1..200)
}

proptest! {
    /// A genuine counter, with wraps, failures and late readings: exact, or null and never wrong.
    #[test]
    fn a_genuine_counter_gives_its_exact_energy_or_none(
        range_mj in 2_000u64..300_000,
        begin in any::<u64>(),
        turns in turns(400),
    ) {
        let range = range_mj * 1000;
        let mut counter = package(range);
        let longest = counter.longest_gap().unwrap();
        let (mut now, mut truth) = (0u64, begin % range);
        counter.add(at(now, truth));
        let (began, mut last_read, mut too_late, mut failed) = (truth, 0, false, false);
        let mut seen = truth;
        for turn in turns {
            match turn {
                Turn::Read { ms, w } => {
                    (now, truth) = (now + ms, truth + ms * w * 1000);
                    too_late |= Nanos((now - last_read) * MS) >= longest;
                    (last_read, failed, seen) = (now, false, truth);
                    counter.add(at(now, truth % range));
                }
                Turn::Fail { ms, w } => {
                    (now, truth) = (now + ms, truth + ms * w * 1000);
                    failed = true;
                    counter.add(gone());
                }
                Turn::Again => {
                    failed = false;
                    counter.add(at(last_read, seen % range));
                }
            }
        }
        let used = seen - began;
        match counter.total() {
            Ok(total) => {
                prop_assert!(!too_late && !failed);
                prop_assert_eq!(total, used);
            }
            Err(why) => prop_assert!(too_late || failed || used == 0, "{}", why),
        }
    }

    /// A counter that is reset at any height, read every few milliseconds, at any power: its energy is exact, or none, or, where
    /// the reset can't be told from a wrap, wrong by no more than the highest power in the time that a reading may stand for.
    #[test]
    fn a_reset_is_told_from_a_wrap_or_bounded(
        range_mj in 65_000u64..300_000,
        below_top_mj in prop_oneof![0u64..300, 0u64..65_000],
        steps in prop::collection::vec((1u64..50, 0u64..=500), 1..40),
        at_step in any::<prop::sample::Index>(),
        restart in 0u64..1000,
    ) {
        let range = range_mj * 1000;
        let mut counter = package(range);
        let (mut now, mut value, mut used) = (0u64, (range - below_top_mj * 1000) % range, 0u64);
        counter.add(at(now, value));
        let reset_at = at_step.index(steps.len());
        for (n, (ms, w)) in steps.iter().enumerate() {
            now += ms;
            used += ms * w * 1000;
            value = (value + ms * w * 1000) % range;
            if n == reset_at {
                value = restart;
            }
            counter.add(at(now, value));
        }
        let (ms, _) = steps[reset_at];
        // A kilowatt over the step and a tenth of a second, in microjoules.
        let bound = (ms + 100) * 1_000_000;
        if let Some(total) = counter.so_far() {
            prop_assert!(total <= used + bound, "{total} of {used} with {bound}");
        }
    }

    /// Whatever is read, the total never falls, never is negative, and never exceeds what the time allows: so a reset
    /// that looks like a wrap can't double it.
    #[test]
    fn no_sequence_of_readings_gives_an_implausible_energy(
        range in prop::option::of(1u64..=u64::MAX),
        readings in prop::collection::vec((0u64..=20_000, prop::option::weighted(0.9, any::<u64>()), any::<bool>()), 1..60),
    ) {
        let mut counter = Counter::new(&domain(DomainKind::Package, range));
        let (mut now, mut before, mut steps) = (0u64, 0, 0u128);
        for (ms, reading, small) in readings {
            now += ms;
            counter.add(reading.map_or_else(gone, |uj| at(now, if small { uj % 5_000_000_000 } else { uj })));
            steps += 1;
            if let Some(total) = counter.so_far() {
                prop_assert!(total >= before);
                before = total;
                prop_assert!(u128::from(total) <= 1000 * (u128::from(now) * 1000 + steps * 100_000));
            }
        }
    }

    /// Reading twice as often changes nothing.
    #[test]
    fn the_total_does_not_depend_on_how_often_it_is_read(
        steps in prop::collection::vec((1u64..100, 0u64..1000), 2..100),
        begin in 0u64..CLIENT,
    ) {
        let (mut often, mut seldom) = (package(CLIENT), package(CLIENT));
        let (mut now, mut truth) = (0, begin);
        for (n, (ms, w)) in steps.iter().enumerate() {
            often.add(at(now, truth % CLIENT));
            if n % 2 == 0 || n + 1 == steps.len() {
                seldom.add(at(now, truth % CLIENT));
            }
            (now, truth) = (now + ms, truth + ms * w * 1000);
        }
        prop_assert_eq!(often.so_far(), seldom.so_far());
    }
}
