//! A bitmap in a file: exact after an orderly end, never too small after any other, and nothing believed that is torn.

use proptest::prelude::*;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use whimbrel_disk::{BitmapFile, BlockBitmap, DiskError, Found, GuestDisk, Volume};
use whimbrel_model::{Block, Extent, UnitSet};

const BLOCK: u64 = 4096;
/// 16 regions of 1 MiB.
const BLOCKS: u64 = 4096;

fn open(path: &Path) -> (BitmapFile, UnitSet<Block>, Found) {
    BitmapFile::open(path, BLOCKS, BLOCK).unwrap()
}

fn one(start: u64) -> Extent {
    Extent { start, count: 1 }
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bitmap");
    (folder, path)
}

#[test]
fn an_orderly_end_is_exact_and_a_crash_is_rounded_up_to_regions() {
    let (_folder, path) = place();
    let (file, set, found) = open(&path);
    assert_eq!((set.count(), found), (0, Found::New));
    let written = BlockBitmap::new(BLOCKS);
    for block in [3, 300, 4095] {
        let intent = file.intend(one(block)).unwrap();
        written.mark(one(block));
        drop(intent);
    }
    file.checkpoint(true, || Ok(written.peek())).unwrap();
    drop(file);
    let (file, set, found) = open(&path);
    assert_eq!((set.iter().collect::<Vec<_>>(), found), (vec![3, 300, 4095], Found::Clean));
    drop(file.intend(one(700)).unwrap());
    // No orderly end: what a crash leaves.
    drop(file);
    let (_, set, found) = open(&path);
    assert_eq!(found, Found::Crashed);
    let expected: Vec<u64> = [3, 300].into_iter().chain(512..768).chain([4095]).collect();
    assert_eq!(set.iter().collect::<Vec<_>>(), expected);
}

#[test]
fn a_file_that_was_emptied_says_nothing() {
    let (_folder, path) = place();
    drop(open(&path).0);
    fs::write(&path, []).unwrap();
    let (_, set, found) = open(&path);
    assert_eq!((set.count(), found), (BLOCKS, Found::Torn));
}

#[test]
fn a_write_without_a_durable_intent_would_wait_and_one_with_goes_on() {
    let (_folder, path) = place();
    let (file, _, _) = open(&path);
    let intended = |writes: &[Extent]| file.try_intend(writes.iter().copied()).map_or(0, |(_, count)| count);
    assert_eq!(intended(&[one(5)]), 0);
    drop(file.intend(one(5)).unwrap());
    assert_eq!(intended(&[Extent { start: 200, count: 56 }]), 1);
    assert_eq!(intended(&[Extent { start: 200, count: 57 }]), 0, "the next region has none");
    assert_eq!(intended(&[one(5), one(255), one(256), one(5)]), 2, "from the first on");
    file.checkpoint(false, || Ok(UnitSet::empty(BLOCKS))).unwrap();
    assert_eq!(intended(&[one(5)]), 0, "a checkpoint takes intents back");
}

#[test]
fn another_disks_bitmap_a_strange_file_and_one_in_use_are_refused() {
    let (_folder, path) = place();
    let kept = open(&path);
    assert!(matches!(BitmapFile::open(&path, BLOCKS, BLOCK), Err(DiskError::InUse { .. })));
    drop(kept);
    assert!(matches!(BitmapFile::open(&path, BLOCKS + 1, BLOCK), Err(DiskError::AlienBitmap { .. })));
    assert!(matches!(BitmapFile::open(&path, BLOCKS, 512), Err(DiskError::AlienBitmap { .. })));
    fs::write(&path, "a letter").unwrap();
    assert!(matches!(BitmapFile::open(&path, BLOCKS, BLOCK), Err(DiskError::AlienBitmap { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"a letter", "it is left as it is");
}

/// A file after some writes and a crash, and what was written.
fn crashed(path: &Path, acts: &[(bool, u64)]) -> UnitSet<Block> {
    let (file, _, _) = open(path);
    let written = BlockBitmap::new(BLOCKS);
    for (checkpoint, block) in acts {
        if *checkpoint {
            file.checkpoint(false, || Ok(written.peek())).unwrap();
        }
        let intent = file.intend(one(*block)).unwrap();
        written.mark(one(*block));
        drop(intent);
    }
    written.peek()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_bytes_a_torn_write_leaves_no_written_block_is_missing(
        acts in prop::collection::vec((prop::bool::weighted(0.2), 0..BLOCKS), 1..40),
        at in prop_oneof![0u64..200, 0u64..8192, 0u64..9216],
        garbage in prop::collection::vec(any::<u8>(), 1..600),
    ) {
        let (_folder, path) = place();
        let written = crashed(&path, &acts);
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&garbage, at).unwrap();
        drop(file);
        match BitmapFile::open(&path, BLOCKS, BLOCK) {
            Ok((_, set, _)) => prop_assert_eq!(written.iter().find(|block| !set.contains(*block)), None),
            // Nothing of it is left to be known by.
            Err(error) => prop_assert!(matches!(error, DiskError::AlienBitmap { .. }), "{}", error),
        }
    }

    #[test]
    fn a_file_cut_off_anywhere_misses_nothing(
        acts in prop::collection::vec((prop::bool::weighted(0.2), 0..BLOCKS), 1..40),
        length in prop_oneof![1u64..16, 1u64..9216],
    ) {
        let (_folder, path) = place();
        let written = crashed(&path, &acts);
        File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
        let (_, set, found) = open(&path);
        prop_assert_eq!(written.iter().find(|block| !set.contains(*block)), None);
        prop_assert!(found == Found::Torn || found == Found::Crashed);
    }
}

#[test]
fn writers_and_checkpoints_at_once_lose_no_mark() {
    let (folder, path) = place();
    let image = folder.path().join("disk.raw");
    File::create(&image).unwrap().set_len(BLOCKS * BLOCK).unwrap();
    let written: Vec<u64> = (0..BLOCKS).step_by(7).collect();
    {
        let (volume, found) = Volume::open_with_bitmap(&image, BLOCK, &path).unwrap();
        assert_eq!(found, Found::New);
        std::thread::scope(|scope| {
            for part in 0..4 {
                let (volume, written) = (&volume, &written);
                scope.spawn(move || {
                    for block in written.iter().skip(part).step_by(4) {
                        volume.write(block * BLOCK, &[7; BLOCK as usize]).unwrap();
                    }
                });
            }
            // Any number of orderly ends in between: writes after one are recorded as before.
            (0..20).for_each(|_| volume.close_bitmap().unwrap());
        });
        volume.close_bitmap().unwrap();
    }
    let (volume, found) = Volume::open_with_bitmap(&image, BLOCK, &path).unwrap();
    assert_eq!((volume.peek().iter().collect::<Vec<_>>(), found), (written, Found::Clean));
}
