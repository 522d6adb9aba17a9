//! A volume's bitmaps, visits, holes and errors, on real files.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::channel;
use whimbrel_disk::{BLOCK_BYTES, GuestDisk, Volume};
use whimbrel_model::{Block, Extent, Rng, UnitSet};

const BLOCKS: u64 = 64;

fn volume(folder: &tempfile::TempDir, name: &str) -> Volume {
    Volume::create(folder.path().join(name), BLOCKS * BLOCK_BYTES, BLOCK_BYTES).unwrap()
}

fn image(volume: &Volume) -> Vec<u8> {
    let mut bytes = vec![0; volume.size_bytes() as usize];
    volume.read_blocks(Extent { start: 0, count: volume.blocks() }, &mut bytes).unwrap();
    bytes
}

fn members(set: &UnitSet<Block>) -> Vec<u64> {
    set.iter().collect()
}

fn copy(from: &Volume, to: &Volume, set: &UnitSet<Block>) {
    for extent in set.extents() {
        let mut data = vec![0; (extent.count * from.block_bytes()) as usize];
        from.read_blocks(extent, &mut data).unwrap();
        to.arrive(extent, &data).unwrap();
    }
}

#[test]
fn only_an_armed_volume_records() {
    let folder = tempfile::tempdir().unwrap();
    let volume = volume(&folder, "disk.raw");
    volume.write(0, &[1; 10]).unwrap();
    assert!(volume.take().is_empty());
    volume.arm();
    assert!(volume.peek().is_empty());
    volume.write(BLOCK_BYTES - 1, &[2; 2]).unwrap();
    volume.write_zeroes(5 * BLOCK_BYTES, BLOCK_BYTES, true).unwrap();
    volume.write(9 * BLOCK_BYTES, &[]).unwrap();
    volume.read(20 * BLOCK_BYTES, &mut [0; 9]).unwrap();
    assert_eq!(members(&volume.peek()), [0, 1, 5]);
    let taken = volume.take();
    assert_eq!((members(&taken), volume.dirty_count()), (vec![0, 1, 5], 0));
    volume.write(5 * BLOCK_BYTES, &[1; 10]).unwrap();
    let mut all = UnitSet::from_extents(BLOCKS, [Extent { start: 7, count: 1 }]);
    assert_eq!(volume.take_into(&mut all), 1);
    assert_eq!(members(&all), [5, 7]);
    volume.write(0, &[1; 10]).unwrap();
    volume.disarm();
    volume.write(0, &[1; 10]).unwrap();
    assert!(volume.take().is_empty());
}

/// While guests write, what was taken is copied; after the drain and the last take the copy is the disk. This is the
/// argument of the module's comment at work.
#[test]
fn no_write_is_missing_from_the_takes() {
    const GUESTS: u64 = 3;
    let folder = tempfile::tempdir().unwrap();
    let (source, destination) = (volume(&folder, "source.raw"), volume(&folder, "destination.raw"));
    source.arm();
    let running = AtomicU64::new(GUESTS);
    std::thread::scope(|scope| {
        for guest in 0..GUESTS {
            let (source, running) = (&source, &running);
            scope.spawn(move || {
                let mut rng = Rng::new(guest);
                let mut data = vec![0; 3 * BLOCK_BYTES as usize];
                for _ in 0..3000 {
                    let length = 1 + rng.below(data.len() as u64);
                    let offset = rng.below(source.size_bytes() - length);
                    data[..length as usize].fill(rng.next_u64() as u8);
                    source.write(offset, &data[..length as usize]).unwrap();
                }
                running.fetch_sub(1, SeqCst);
            });
        }
        while running.load(SeqCst) > 0 {
            copy(&source, &destination, &source.take());
        }
    });
    source.drain();
    copy(&source, &destination, &source.take());
    assert!(image(&source) == image(&destination), "the copy differs from the disk");
}

/// There and back: the way back takes what was written meanwhile, and no more.
#[test]
fn a_return_takes_what_is_fresh() {
    let folder = tempfile::tempdir().unwrap();
    let (home, away) = (volume(&folder, "home.raw"), volume(&folder, "away.raw"));
    home.receive(0, &vec![3; 20 * BLOCK_BYTES as usize]).unwrap();
    assert!(!home.is_visited() && !away.is_visited());
    assert_eq!(home.fresh().count(), BLOCKS, "a guest that came from nowhere has no image elsewhere");
    away.begin_receive(None);
    home.arm();
    copy(&home, &away, &home.fresh());
    away.begin_visit();
    assert!(away.is_visited());
    home.disarm();

    assert!(away.fresh().is_empty());
    assert!(away.receive(0, &[9]).is_err(), "the host wrote to its guest's disk");
    away.write(3 * BLOCK_BYTES, &[5; 100]).unwrap();
    away.arm();
    away.write(40 * BLOCK_BYTES, &[6; 100]).unwrap();
    // A failed attempt loses nothing: what is fresh is never taken.
    assert!(!away.take().is_empty());
    away.disarm();
    assert_eq!(members(&away.fresh()), [3, 40]);

    home.begin_receive(None);
    away.arm();
    copy(&away, &home, &away.fresh());
    away.write(41 * BLOCK_BYTES, &[7; 100]).unwrap();
    away.drain();
    let todo = away.take();
    let (asked, requests) = channel();
    let asked = std::sync::Mutex::new(asked);
    home.begin_pull(todo.clone(), Arc::new(move |block| asked.lock().unwrap().send(block).unwrap()));
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            let mut seen = [0; 100];
            home.read(41 * BLOCK_BYTES, &mut seen).unwrap();
            seen
        });
        assert_eq!(requests.recv().unwrap(), 41);
        copy(&away, &home, &todo);
        assert_eq!(guest.join().unwrap(), [7; 100]);
    });
    assert!(image(&home) == image(&away));
    home.write(1, &[1]).unwrap();
    assert_eq!(members(&home.fresh()), [0], "a new visit records anew");
}

/// A request that waits for a block is in flight, and the drain waits for it.
#[test]
fn a_drain_waits_for_what_is_in_flight() {
    let folder = tempfile::tempdir().unwrap();
    let volume = volume(&folder, "disk.raw");
    volume.drain();
    let (asked, requests) = channel();
    let asked = std::sync::Mutex::new(asked);
    let todo = UnitSet::from_extents(BLOCKS, [Extent { start: 8, count: 1 }]);
    volume.begin_pull(todo.clone(), Arc::new(move |block| asked.lock().unwrap().send(block).unwrap()));
    let drained = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| volume.read(8 * BLOCK_BYTES, &mut [0; 1]).unwrap());
        requests.recv().unwrap();
        assert_eq!(volume.in_flight(), 1);
        scope.spawn(|| {
            volume.drain();
            drained.store(true, SeqCst);
        });
        std::thread::yield_now();
        assert!(!drained.load(SeqCst), "drained with a request in flight");
        let waited = volume.arrive(Extent { start: 8, count: 1 }, &[1; BLOCK_BYTES as usize]).unwrap();
        assert_eq!(waited.len(), 1);
        guest.join().unwrap();
    });
    assert!(drained.load(SeqCst));
    assert_eq!(volume.in_flight(), 0);
}

#[test]
fn holes_are_told_from_data() {
    let folder = tempfile::tempdir().unwrap();
    let volume = volume(&folder, "disk.raw");
    let all = Extent { start: 0, count: BLOCKS };
    if !volume.is_zero_extent(all).unwrap() {
        drop(writeln!(std::io::stderr(), "SKIPPED: the file system of {} reports no holes", folder.path().display()));
        return;
    }
    volume.write(10 * BLOCK_BYTES + 5, &[1; 1]).unwrap();
    volume.write(12 * BLOCK_BYTES - 1, &[1; 2]).unwrap();
    let data: BTreeSet<u64> = volume.data_extents(all).unwrap().into_iter().flat_map(Extent::indices).collect();
    assert!([10, 11, 12].iter().all(|block| data.contains(block)), "data is called a hole: {data:?}");
    assert!(!data.contains(&40), "a hole is called data: {data:?}");
    assert!(!volume.is_zero_extent(Extent { start: 10, count: 1 }).unwrap());
    // What is not a hole may be zero, but what is called one must be.
    volume.write_zeroes(10 * BLOCK_BYTES, 3 * BLOCK_BYTES, true).unwrap();
    assert!(image(&volume).iter().all(|byte| *byte == 0));
    volume.arrive(Extent { start: 1, count: 1 }, &[1; BLOCK_BYTES as usize]).unwrap();
    volume.arrive_zeroes(Extent { start: 0, count: 3 }).unwrap();
    assert!(image(&volume).iter().all(|byte| *byte == 0), "zeroes that arrive must replace a stale block");
}

#[test]
fn mistakes_name_the_file_and_what_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let message = |result: Result<Volume, whimbrel_disk::DiskError>| {
        let message = result.unwrap_err().to_string();
        assert!(!message.ends_with('.'), "{message}");
        message
    };
    let text = message(Volume::open(&path, BLOCK_BYTES));
    assert!(text.contains("disk.raw") && text.contains("exists"), "{text}");
    std::fs::write(&path, vec![0; 5000]).unwrap();
    let text = message(Volume::open(&path, BLOCK_BYTES));
    assert!(text.contains("disk.raw") && text.contains("5000") && text.contains("multiples") && text.contains("4096"));
    let text = message(Volume::create(&path, 4096, BLOCK_BYTES));
    assert!(text.contains("exists already"), "{text}");
    assert_eq!(std::fs::read(&path).unwrap().len(), 5000, "an existing file was touched");
    let used = folder.path().join("used.raw");
    let user = Volume::create(&used, BLOCK_BYTES, BLOCK_BYTES).unwrap();
    assert!(message(Volume::open(&used, BLOCK_BYTES)).contains("in use"));
    drop(user);
    Volume::open(&used, BLOCK_BYTES).unwrap();
    for bad in [0, 256, 1000, 2 << 20] {
        assert!(message(Volume::open(&path, bad)).contains("from 512 B to 1 MiB"));
    }
    std::fs::write(&path, b"").unwrap();
    assert!(message(Volume::open(&path, BLOCK_BYTES)).contains("0 bytes"));
}

#[test]
fn nothing_is_done_beyond_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let volume = volume(&folder, "disk.raw");
    volume.arm();
    let end = volume.size_bytes();
    for (offset, length) in [(end, 1), (end - 1, 2), (u64::MAX, 1), (u64::MAX - 1, 2)] {
        assert!(volume.write(offset, &vec![1; length]).is_err());
        assert!(volume.read(offset, &mut vec![1; length]).is_err());
        assert!(volume.receive(offset, &vec![1; length]).is_err());
    }
    let block = BLOCK_BYTES as usize;
    assert!(volume.arrive(Extent { start: BLOCKS - 1, count: 2 }, &vec![0; 2 * block]).is_err());
    assert!(volume.arrive(Extent { start: 0, count: 2 }, &vec![0; block]).is_err());
    assert!(volume.arrive_zeroes(Extent { start: u64::MAX, count: 2 }).is_err());
    assert!(volume.read_blocks(Extent { start: 0, count: 1 }, &mut vec![0; block + 1]).is_err());
    assert!(volume.take().is_empty());
    assert!(image(&volume).iter().all(|byte| *byte == 0));
}

#[test]
fn a_write_while_a_volume_is_armed_is_fresh_or_taken() {
    const WRITERS: u64 = 16;
    const EACH: u64 = 200;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let volume = Volume::create(path, WRITERS * EACH * BLOCK_BYTES, BLOCK_BYTES).unwrap();
    let mut rng = Rng::new(1);
    for round in 0..600 {
        volume.disarm();
        volume.begin_visit();
        let written = AtomicU64::new(0);
        let fresh = std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (volume, written) = (&volume, &written);
                scope.spawn(move || {
                    for block in writer * EACH..(writer + 1) * EACH {
                        volume.write(block * BLOCK_BYTES, &[7; 512]).unwrap();
                        written.fetch_add(1, SeqCst);
                    }
                });
            }
            let some = rng.below(WRITERS * EACH);
            while written.load(SeqCst) < some {
                std::thread::yield_now();
            }
            volume.arm();
            volume.fresh()
        });
        volume.drain();
        let mut told = volume.take();
        told.union(&fresh);
        assert_eq!(told.count(), WRITERS * EACH, "in round {round}");
    }
}
