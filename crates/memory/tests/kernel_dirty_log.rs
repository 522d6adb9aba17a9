//! The dirty logs against ground truth, on the real kernel.

mod kernel;

use kernel::{or_skip, ram, set};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use whimbrel_memory::dirty_logs::{DIRTY_LOGS, ForgetfulLog, UserfaultLog};
use whimbrel_memory::{DirtyLog, GuestRam, MissingPages};
use whimbrel_model::{Extent, Rng};

const PAGES: u64 = 2048;

/// An armed log over fresh RAM, some of it populated.
fn armed(test: &str, populated: bool) -> Option<(Arc<GuestRam>, UserfaultLog)> {
    let ram = ram(PAGES);
    if populated {
        ram.populate().unwrap();
    }
    let mut log = or_skip(test, UserfaultLog::over(&ram))?;
    or_skip(test, log.arm())?;
    Some((ram, log))
}

fn write(ram: &GuestRam, page: u64) {
    ram.guest_page(page)[(page % 512) as usize].fetch_add(1, Ordering::Relaxed);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// One writer, so the truth is exact: a take is what was written since the last, no less and no more.
    #[test]
    fn a_take_is_exactly_what_was_written(populated: bool, seed: u64, shares in prop::collection::vec(0u64..=100, 1..6)) {
        let Some((ram, mut log)) = armed("a_take_is_exactly_what_was_written", populated) else { return Ok(()) };
        let mut rng = Rng::new(seed);
        for share in shares {
            let mut written = BTreeSet::new();
            for page in 0..PAGES {
                match rng.below(200) {
                    n if n < share => {
                        write(&ram, page);
                        written.insert(page);
                    }
                    // A read maps a page that may have had no entry; it must not look like a write.
                    n if n > 150 => _ = ram.guest_page(page)[0].load(Ordering::Relaxed),
                    _ => {}
                }
            }
            for _ in 0..rng.below(20) {
                let page = rng.below(PAGES);
                ram.host_page(page)[0].store(1, Ordering::Relaxed);
                ram.marks().insert(page);
                written.insert(page);
            }
            let expected = set(PAGES, written);
            prop_assert_eq!(&log.peek().unwrap(), &expected);
            prop_assert_eq!(&log.peek().unwrap(), &expected, "a peek takes nothing");
            prop_assert_eq!(&log.take().unwrap(), &expected);
            prop_assert!(log.peek().unwrap().is_empty());
        }
    }
}

/// Writers bump a page's counter while takes go on. A copy made after each take, of the pages in it, must end up equal to
/// the RAM: that is what a migration does, and it fails if one write goes unseen.
fn copy_while_written(ram: &Arc<GuestRam>, log: &mut dyn DirtyLog, seed: u64) -> u64 {
    let stop = AtomicBool::new(false);
    let mut copy = vec![[0u8; 4096]; PAGES as usize];
    let mut collect = |log: &mut dyn DirtyLog| {
        for page in log.take().unwrap().iter() {
            ram.read_page(page, &mut copy[page as usize]);
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (ram, stop) = (ram, &stop);
            scope.spawn(move || {
                let mut rng = Rng::new(seed ^ thread);
                while !stop.load(Ordering::Relaxed) {
                    // Three in four writes hit a few hot pages, so that takes and writes of one page collide.
                    let hot = rng.chance(0.75);
                    write(ram, rng.below(if hot { 16 } else { PAGES }));
                }
            });
        }
        for _ in 0..300 {
            collect(log);
        }
        stop.store(true, Ordering::Relaxed);
    });
    collect(log);
    assert!(log.take().unwrap().is_empty(), "nobody writes any more");
    let mut now = [0u8; 4096];
    let stale = (0..PAGES).filter(|page| {
        ram.read_page(*page, &mut now);
        now != copy[*page as usize]
    });
    stale.count() as u64
}

#[test]
fn no_write_is_lost_between_writers_and_takes() {
    for seed in 0..4 {
        let Some((ram, mut log)) = armed("no_write_is_lost_between_writers_and_takes", seed % 2 == 0) else { return };
        assert_eq!(copy_while_written(&ram, &mut log, seed), 0, "stale pages, seed {seed}");
    }
}

#[test]
fn the_forgetful_log_is_found_out() {
    let Some((ram, log)) = armed("the_forgetful_log_is_found_out", true) else { return };
    drop(log);
    let mut log = ForgetfulLog::around(Box::new(UserfaultLog::over(&ram).unwrap()));
    log.arm().unwrap();
    for page in 0..PAGES {
        write(&ram, page);
    }
    let mut expected = set(PAGES, 1..PAGES);
    assert_eq!(log.take().unwrap(), expected);
    expected.clear();
    assert_eq!(log.take().unwrap(), expected);
}

#[test]
fn every_member_arms_takes_and_disarms() {
    for entry in DIRTY_LOGS.entries {
        let ram = ram(PAGES);
        let Some(mut log) = or_skip(entry.name, (entry.build)(&ram)) else { continue };
        for _ in 0..2 {
            if or_skip(entry.name, log.arm()).is_none() {
                break;
            }
            assert!(log.take().unwrap().is_empty(), "{}: nothing was written", entry.name);
            assert_eq!(log.peek().unwrap().len(), PAGES, "{}", entry.name);
            log.disarm().unwrap();
            log.disarm().unwrap();
            write(&ram, 3);
        }
    }
}

#[test]
fn arming_again_forgets_and_disarming_refuses() {
    let Some((ram, mut log)) = armed("arming_again_forgets_and_disarming_refuses", false) else { return };
    write(&ram, 5);
    ram.marks().insert(6);
    log.arm().unwrap();
    assert!(log.take().unwrap().is_empty());
    write(&ram, 7);
    assert_eq!(log.take().unwrap(), set(PAGES, [7]));
    let mut second = UserfaultLog::over(&ram).unwrap();
    assert!(second.arm().is_err(), "two logs would take each other's pages");
    write(&ram, 8);
    drop(second);
    assert_eq!(log.take().unwrap(), set(PAGES, [8]));
    log.disarm().unwrap();
    assert!(log.take().is_err());
    assert!(log.peek().is_err());
}

#[test]
fn more_runs_than_one_call_can_answer() {
    let pages = 40_000;
    let ram = ram(pages);
    let Some(mut log) = or_skip("more_runs_than_one_call_can_answer", UserfaultLog::over(&ram)) else { return };
    if or_skip("more_runs_than_one_call_can_answer", log.arm()).is_none() {
        return;
    }
    let odd = || (1..pages).step_by(2);
    odd().for_each(|page| write(&ram, page));
    assert_eq!(log.peek().unwrap(), set(pages, odd()));
    assert_eq!(log.take().unwrap(), set(pages, odd()));
    assert!(log.take().unwrap().is_empty());
}

#[test]
fn a_log_outlives_post_copy_on_the_same_ram() {
    let test = "a_log_outlives_post_copy_on_the_same_ram";
    // A trip back: log, then missing pages, then log again, on one mapping.
    let Some((ram, mut log)) = armed(test, true) else { return };
    write(&ram, 1);
    assert_eq!(log.take().unwrap(), set(PAGES, [1]));
    let missing = || set(PAGES, 100..200);
    let refused = MissingPages::begin(Arc::clone(&ram), missing(), Box::new(|_, _| ()));
    assert!(refused.is_err(), "the log is armed");
    log.disarm().unwrap();
    let Some((pages, _told)) = or_skip(test, kernel::begin(&ram, missing())) else { return };
    write(&ram, 5);
    pages.complete(Extent { start: 100, count: 100 }).unwrap();
    pages.finish().unwrap();
    log.arm().unwrap();
    write(&ram, 150);
    write(&ram, 5);
    assert_eq!(log.take().unwrap(), set(PAGES, [5, 150]));
}

#[test]
fn a_log_armed_while_pages_are_missing_sees_writes_only() {
    let test = "a_log_armed_while_pages_are_missing_sees_writes_only";
    let ram = ram(PAGES);
    ram.populate_host(Extent { start: 0, count: PAGES / 2 }).unwrap();
    let Some((pages, _told)) = or_skip(test, kernel::begin(&ram, set(PAGES, 100..PAGES))) else { return };
    let mut log = or_skip(test, UserfaultLog::over(&ram)).unwrap();
    if or_skip(test, log.arm()).is_none() {
        return;
    }
    write(&ram, 3);
    pages.complete(Extent { start: 100, count: 500 }).unwrap();
    write(&ram, 101);
    assert_eq!(log.take().unwrap(), set(PAGES, [3, 101]), "an arrival is no write");
    pages.complete(Extent { start: 0, count: PAGES }).unwrap();
    pages.finish().unwrap();
    drop(pages);
    write(&ram, 1500);
    assert_eq!(log.take().unwrap(), set(PAGES, [1500]), "the end of post-copy leaves the log armed");
    log.disarm().unwrap();
    // All is released: both can begin anew.
    let (pages, _told) = kernel::begin(&ram, set(PAGES, [])).unwrap();
    pages.finish().unwrap();
    log.arm().unwrap();
    write(&ram, 9);
    assert_eq!(log.take().unwrap(), set(PAGES, [9]));
}
