//! The record of a copy: after a crash, of the process or of the host, no block counts as here that isn't, as it was sent last.

use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use whimbrel_disk::CopyRecord;
use whimbrel_model::{Block, Extent, UnitSet};

const BLOCK: u64 = 4096;
/// 16 regions of 1 MiB.
const BLOCKS: u64 = 4096;
const ABOUT: [u64; 2] = [2, 77];

/// An image whose host may lose its power: a block holds the number of the arrival that wrote it.
#[derive(Clone)]
struct Image {
    /// What a process that is started anew finds.
    cached: Vec<u64>,
    /// What a flush has made durable.
    durable: Vec<u64>,
}

impl Image {
    fn flush(&mut self, fails_after: &Cell<Option<u8>>, failed: &Cell<bool>) -> std::io::Result<()> {
        let left = fails_after.take();
        if left == Some(0) {
            self.cached = self.durable.clone();
            failed.set(true);
            return Err(std::io::Error::other("the device failed"));
        }
        fails_after.set(left.map(|left| left - 1));
        self.durable = self.cached.clone();
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Act {
    Arrive(Extent),
    /// The image takes a part of it, and fails.
    Fail(Extent),
    /// Of the flushes from now on, the one after so many fails, and what it should have made durable is gone. The host tells
    /// of that once.
    FlushFails(u8),
    Checkpoint,
}

fn extents() -> impl Strategy<Value = Extent> {
    (0..BLOCKS, prop_oneof![1u64..8, 100u64..600])
        .prop_map(|(start, count)| Extent { start, count: count.min(BLOCKS - start) })
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        12 => extents().prop_map(Act::Arrive),
        1 => extents().prop_map(Act::Fail),
        1 => (0u8..4).prop_map(Act::FlushFails),
        2 => Just(Act::Checkpoint),
    ];
    prop::collection::vec(act, 1..40)
}

fn open(path: &Path) -> CopyRecord {
    CopyRecord::open(path, BLOCKS, BLOCK).unwrap().expect("it is whole")
}

/// The first block that counts as here and isn't as it was acknowledged last.
fn stale(record: &CopyRecord, image: &Image, sent: &[Option<u64>]) -> Option<u64> {
    let lacking = record.lacking();
    let is_stale = |block: &u64| Some(image.cached[*block as usize]) != sent[*block as usize];
    (0..BLOCKS).filter(|block| !lacking.contains(*block)).find(is_stale)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn what_is_not_lacking_after_a_crash_is_as_it_was_sent_last(
        acts in acts(),
        again in acts(),
        had in prop::collection::vec(extents(), 0..3),
        loses_power in any::<bool>(),
        survives in prop::collection::vec(any::<bool>(), 64),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.copy");
        let mut lacking = UnitSet::<Block>::full(BLOCKS);
        had.iter().for_each(|extent| lacking.remove_extent(*extent));
        let image = RefCell::new(Image { cached: vec![0; BLOCKS as usize], durable: vec![0; BLOCKS as usize] });
        // What was acknowledged last, and what no answer came to.
        let mut sent: Vec<Option<u64>> = vec![Some(0); BLOCKS as usize];
        lacking.iter().for_each(|block| sent[block as usize] = None);
        drop(CopyRecord::create(&path, BLOCK, ABOUT, &lacking).unwrap());
        let mut number = 0;
        for acts in [acts, again] {
            let record = open(&path);
            prop_assert_eq!(record.about(), ABOUT);
            prop_assert_eq!(stale(&record, &image.borrow(), &sent), None);
            let (fails_after, failed) = (Cell::new(None), Cell::new(false));
            let flush = || image.borrow_mut().flush(&fails_after, &failed);
            for act in acts {
                number += 1;
                match act {
                    Act::Arrive(extent) => {
                        let store = || {
                            extent.indices().for_each(|block| image.borrow_mut().cached[block as usize] = number);
                            Ok(())
                        };
                        let stored = record.storing(extent, store, flush);
                        prop_assert_eq!(stored.is_err(), failed.take());
                        extent.indices().for_each(|block| sent[block as usize] = stored.is_ok().then_some(number));
                    }
                    Act::Fail(extent) => {
                        let store = || {
                            image.borrow_mut().cached[extent.start as usize] = number;
                            Err(std::io::Error::other("no space"))
                        };
                        prop_assert!(record.storing(extent, store, flush).is_err());
                        extent.indices().for_each(|block| sent[block as usize] = None);
                        prop_assert!(record.lacking().count_in(extent) == extent.count);
                    }
                    Act::FlushFails(after) => fails_after.set(Some(after)),
                    Act::Checkpoint => {
                        prop_assert_eq!(record.checkpoint(false, flush).is_err(), failed.take());
                    }
                }
                prop_assert_eq!(stale(&record, &image.borrow(), &sent), None);
            }
            // No orderly end. Where the power goes, some of what was not flushed is gone.
            if loses_power {
                let mut image = image.borrow_mut();
                for block in 0..BLOCKS as usize {
                    if !survives[block % survives.len()] {
                        image.cached[block] = image.durable[block];
                    }
                }
            }
        }
        let record = open(&path);
        prop_assert_eq!(stale(&record, &image.borrow(), &sent), None);
    }
}

#[test]
fn what_arrives_in_order_is_not_lacking_after_a_crash_but_for_the_last_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.copy");
    let record = CopyRecord::create(&path, BLOCK, ABOUT, &UnitSet::full(BLOCKS)).unwrap();
    let flushes = std::cell::Cell::new(0);
    let flush = || {
        flushes.set(flushes.get() + 1);
        Ok(())
    };
    for start in (0..3000).step_by(8) {
        record.storing(Extent { start, count: 8 }, || Ok(()), flush).unwrap();
    }
    assert_eq!(record.lacking().extents().collect::<Vec<_>>(), [Extent { start: 3000, count: BLOCKS - 3000 }]);
    assert!((10..60).contains(&flushes.get()), "{} flushes", flushes.get());
    drop(record);
    assert_eq!(CopyRecord::about_of(&path), Some(ABOUT));
    let lacking = open(&path).lacking();
    assert_eq!(lacking.next(0), Some(2816), "all of the regions before was flushed and written down");
    assert_eq!(lacking.count(), BLOCKS - 2816);
}

#[test]
fn of_many_that_store_at_once_one_makes_the_checkpoint_that_is_due() {
    const THREADS: u64 = 4;
    let folder = tempfile::tempdir().unwrap();
    let record = CopyRecord::create(&folder.path().join("disk.copy"), BLOCK, ABOUT, &UnitSet::full(BLOCKS)).unwrap();
    let flushes = AtomicU64::new(0);
    let flush = || {
        flushes.fetch_add(1, SeqCst);
        // Others go on meanwhile.
        (0..100).for_each(|_| std::thread::yield_now());
        Ok(())
    };
    std::thread::scope(|scope| {
        for first in 0..THREADS {
            let (record, flush) = (&record, &flush);
            scope.spawn(move || {
                for start in (first..BLOCKS).step_by(THREADS as usize) {
                    record.storing(Extent { start, count: 1 }, || Ok(()), flush).unwrap();
                }
            });
        }
    });
    assert!(record.lacking().is_empty());
    // Two of each checkpoint, and one of those for every sixteenth of the disk.
    assert!((2..=32).contains(&flushes.load(SeqCst)), "{flushes:?} flushes");
}

#[test]
fn of_a_record_that_is_torn_nothing_is_believed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.copy");
    drop(CopyRecord::create(&path, BLOCK, ABOUT, &UnitSet::empty(BLOCKS)).unwrap());
    let mut bytes = std::fs::read(&path).unwrap();
    for at in [20, 4096 + 20] {
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(CopyRecord::open(&path, BLOCKS, BLOCK).unwrap().is_none());
        bytes[at] ^= 1;
    }
}
