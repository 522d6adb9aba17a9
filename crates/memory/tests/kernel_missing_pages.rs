//! Post-copy on the real kernel: nobody sees a page before it is complete, and nobody waits for one that is.

mod kernel;

use kernel::{begin, or_skip, ram, set};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use whimbrel_memory::{GuestRam, MissingPages};
use whimbrel_model::{Extent, Rng};

const PAGES: u64 = 1024;

/// What every word of a page holds once it is complete; each fifth page stays zero.
fn expected(page: u64) -> u64 {
    if page.is_multiple_of(5) { 0 } else { page * 0x1_0001 + 1 }
}

fn fill(ram: &GuestRam, page: u64) {
    for word in ram.host_page(page) {
        word.store(expected(page), Ordering::Relaxed);
    }
}

fn assert_whole(ram: &GuestRam, page: u64) {
    for word in ram.guest_page(page) {
        assert_eq!(word.load(Ordering::Relaxed), expected(page), "page {page}");
    }
}

/// Fills a page in two halves, as a receiver does, then completes it. Zero pages are left as holes now and then.
fn receive(ram: &GuestRam, pages: &MissingPages, extent: Extent) -> u64 {
    for page in extent.indices().filter(|page| expected(*page) != 0 || page.is_multiple_of(2)) {
        let (first, second) = ram.host_page(page).split_at(256);
        first.iter().for_each(|word| word.store(expected(page), Ordering::Relaxed));
        std::thread::yield_now();
        second.iter().for_each(|word| word.store(expected(page), Ordering::Relaxed));
    }
    pages.complete(extent).unwrap().len() as u64
}

/// Lets the waiting threads go when the receiver's assertions fail: the test ends instead of hanging.
struct OnPanic<'a>(&'a MissingPages);

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.0.abandon();
        }
    }
}

/// Four threads touch pages at random while another completes them in random order, half of them because it is told to.
fn race(seed: u64, missing_share: f64, populated: bool) {
    let test = "race";
    let ram = ram(PAGES);
    let mut rng = Rng::new(seed);
    let missing: BTreeSet<u64> = (0..PAGES).filter(|_| rng.chance(missing_share)).collect();
    if populated {
        ram.populate().unwrap();
    }
    (0..PAGES).filter(|page| !missing.contains(page)).for_each(|page| fill(&ram, page));
    let Some((pages, told)) = or_skip(test, begin(&ram, set(PAGES, missing.iter().copied()))) else { return };
    let mut order: Vec<u64> = missing.iter().copied().collect();
    rng.shuffle(&mut order);
    let (asked, waited) = std::thread::scope(|scope| {
        let _guard = OnPanic(&pages);
        for thread in 0..4 {
            let ram = &ram;
            scope.spawn(move || {
                let mut rng = Rng::new(seed ^ (thread << 32));
                (0..600).for_each(|_| assert_whole(ram, rng.below(PAGES)));
            });
        }
        let (mut asked, mut waited) = (Vec::new(), 0);
        while let Some(pushed) = order.pop() {
            asked.extend(told.try_iter());
            let demanded = asked.last().copied().filter(|page| pages.is_missing(*page));
            for page in demanded.into_iter().chain([pushed]) {
                let count = if rng.chance(0.2) { 4 } else { 1 };
                waited += receive(&ram, &pages, Extent { start: page, count: count.min(PAGES - page) });
            }
        }
        (asked, waited)
    });
    assert_eq!(pages.missing_count(), 0);
    pages.finish().unwrap();
    drop(pages);
    let asked: Vec<u64> = asked.into_iter().chain(told.try_iter()).collect();
    let distinct: BTreeSet<u64> = asked.iter().copied().collect();
    assert_eq!(distinct.len(), asked.len(), "a page is asked for once, seed {seed}");
    assert!(distinct.is_subset(&missing), "only missing pages are asked for, seed {seed}");
    assert_eq!(waited, asked.len() as u64, "each wait that was told of has ended once, seed {seed}");
    (0..PAGES).for_each(|page| assert_whole(&ram, page));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn no_page_is_seen_early_and_no_wake_up_is_lost(seed: u64, share in 0.0f64..=1.0, populated: bool) {
        race(seed, share, populated);
    }
}

#[test]
fn a_wait_lasts_until_the_page_is_complete_and_is_reported() {
    let ram = ram(PAGES);
    let Some((pages, told)) = or_skip("a_wait_lasts", begin(&ram, set(PAGES, 0..PAGES))) else { return };
    let seen = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| seen.fetch_add(ram.guest_page(7)[3].load(Ordering::Relaxed), Ordering::Relaxed));
        }
        assert_eq!(told.recv().unwrap(), 7);
        fill(&ram, 7);
        fill(&ram, 8);
        assert_eq!(pages.waiting_count(), 1);
        assert!(pages.complete(Extent { start: 8, count: 1 }).unwrap().is_empty(), "nobody waits for page 8");
        assert_eq!(seen.load(Ordering::Relaxed), 0, "full, but not complete");
        let waits = pages.complete(Extent { start: 6, count: 4 }).unwrap();
        assert_eq!(waits.iter().map(|w| w.page).collect::<Vec<_>>(), [7]);
    });
    assert_eq!(seen.into_inner(), 2 * expected(7));
    assert!(pages.finish().is_err(), "pages are missing still");
    assert_eq!(pages.missing_count(), PAGES - 4);
    assert!(pages.complete(Extent { start: 6, count: 4 }).unwrap().is_empty(), "complete already");
    pages.complete(Extent { start: 0, count: u64::MAX }).unwrap();
    pages.finish().unwrap();
    pages.finish().unwrap();
}

/// Whoever sees that nothing is missing may finish, while another thread is still mapping the last page and late faults
/// on complete pages are still being answered.
#[test]
fn finishing_does_not_disturb_who_completes_or_waits() {
    let ram = ram(PAGES);
    for round in 0..50 {
        // Many short runs: nothing is missing long before the last of them is mapped.
        let missing = set(PAGES, (0..PAGES).step_by(2));
        let Some((pages, _told)) = or_skip("finishing", begin(&ram, missing)) else { return };
        std::thread::scope(|scope| {
            let _guard = OnPanic(&pages);
            let (ram, pages) = (&ram, &pages);
            scope.spawn(|| (0..PAGES).for_each(|page| _ = ram.guest_page(page)[0].load(Ordering::Relaxed)));
            scope.spawn(|| pages.complete(ram.all()).unwrap());
            while pages.missing_count() > 0 {
                std::thread::yield_now();
            }
            pages.finish().unwrap();
        });
        assert_eq!(pages.failure(), None, "round {round}");
    }
}

#[test]
fn a_handler_that_panics_is_reported_and_nobody_hangs() {
    let ram = ram(PAGES);
    let panics = Box::new(|_, _| panic!("this panic is part of the test"));
    let begun = MissingPages::begin(Arc::clone(&ram), set(PAGES, 0..PAGES), panics);
    let Some(pages) = or_skip("a_handler_that_panics", begun) else { return };
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| ram.guest_page(1)[0].load(Ordering::Relaxed));
        while pages.failure().is_none() {
            std::thread::yield_now();
        }
        assert!(pages.complete(ram.all()).is_err(), "faults are no longer answered");
        assert!(pages.finish().is_err());
        assert_eq!(pages.abandon().unwrap().count(), PAGES);
        assert_eq!(guest.join().unwrap(), 0);
    });
}

#[test]
fn giving_up_wakes_who_waits() {
    for by_drop in [false, true] {
        let ram = ram(PAGES);
        fill(&ram, 1);
        let Some((pages, told)) = or_skip("giving_up", begin(&ram, set(PAGES, 2..PAGES))) else { return };
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (2..5)
                .map(|page| {
                    let ram = &ram;
                    scope.spawn(move || ram.guest_page(page)[0].load(Ordering::Relaxed))
                })
                .collect();
            let mut asked: Vec<u64> = told.iter().take(3).collect();
            asked.sort_unstable();
            assert_eq!(asked, [2, 3, 4]);
            assert_whole(&ram, 1);
            if by_drop {
                drop(pages);
            } else {
                let lost = pages.abandon().unwrap();
                assert_eq!(lost, set(PAGES, 2..PAGES));
                assert!(pages.abandon().unwrap().is_empty(), "once is enough");
            }
            for thread in waiting {
                assert_eq!(thread.join().unwrap(), 0);
            }
        });
        // The RAM serves again, for example the next attempt.
        let (pages, _told) = begin(&ram, set(PAGES, 0..0)).unwrap();
        assert_whole(&ram, 1);
        pages.finish().unwrap();
    }
}

#[test]
fn what_is_present_never_faults() {
    let ram = ram(PAGES);
    (0..PAGES / 2).for_each(|page| fill(&ram, page));
    ram.drop_pages(Extent { start: 10, count: 2 }).unwrap();
    let Some((pages, told)) = or_skip("what_is_present", begin(&ram, set(PAGES, PAGES - 1..PAGES))) else { return };
    assert!(ram.populate().is_err(), "populating would wait for ever");
    for page in (0..PAGES / 2).filter(|page| !(10..12).contains(page)) {
        assert_whole(&ram, page);
    }
    assert_eq!(ram.guest_page(10)[0].load(Ordering::Relaxed), 0);
    assert!(told.try_recv().is_err());
    let other = MissingPages::begin(Arc::clone(&ram), set(PAGES, []), Box::new(|_, _| ()));
    assert!(other.is_err(), "one service at a time");
    let wrong = MissingPages::begin(Arc::clone(&ram), set(3, []), Box::new(|_, _| ()));
    assert!(wrong.is_err(), "another universe");
    assert_eq!(pages.missing_count(), 1, "the failed attempts have not touched the first");
}

#[test]
fn the_probe_agrees_with_these_tests() {
    for finding in whimbrel_memory::probe::probe() {
        eprintln!("{finding:?}");
        assert!(finding.ok || !finding.remedy.is_empty(), "{finding:?}");
    }
    let found = |name| whimbrel_memory::probe::probe().iter().any(|f| f.name == name && f.ok);
    assert_eq!(found("missing pages"), begin(&ram(PAGES), set(PAGES, [])).is_ok());
}
