//! The merge rules of the pull phase against a reference disk: whatever the order in which the guest writes and blocks
//! arrive, pushed or fetched, the destination must be byte-identical to it.

use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;
use whimbrel_disk::{Fetch, GuestDisk, Volume};
use whimbrel_model::{Block, Extent, Rng, UnitSet};

const BLOCK: u64 = 512;
/// Crosses the borders of the groups of 16 blocks that share a lock.
const BLOCKS: u64 = 37;

/// Passes requests on; counts how often the volume said that it is whole.
struct Requests {
    asked: Mutex<Sender<u64>>,
    whole: Arc<AtomicU64>,
}

impl Requests {
    fn channel() -> (Arc<Self>, Receiver<u64>, Arc<AtomicU64>) {
        let (asked, requests) = channel();
        let whole = Arc::new(AtomicU64::new(0));
        (Arc::new(Requests { asked: Mutex::new(asked), whole: Arc::clone(&whole) }), requests, whole)
    }
}

impl Fetch for Requests {
    fn fetch(&self, block: u64) {
        self.asked.lock().unwrap().send(block).unwrap();
    }

    fn whole(&self) {
        self.whole.fetch_add(1, SeqCst);
    }
}

/// Ends whoever answers the requests, and, when a test fails, the guests' waits: a scope joins its threads first.
struct Unstick<'a>(&'a Volume, &'a dyn Fetch);

impl Drop for Unstick<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail_pull("the test failed");
        }
        self.1.fetch(NO_MORE);
    }
}

/// Asked for, it ends whoever answers the requests.
const NO_MORE: u64 = u64::MAX;

/// A request that is due; it never comes only where the test is to fail.
fn next(requests: &Receiver<u64>) -> u64 {
    requests.recv_timeout(Duration::from_secs(60)).expect("a missing block was not asked for")
}

fn one(block: u64) -> Extent {
    Extent { start: block, count: 1 }
}

fn bytes_of(extent: Extent) -> std::ops::Range<usize> {
    (extent.start * BLOCK) as usize..(extent.end() * BLOCK) as usize
}

/// What the guest left at the source, some of it zeroes.
fn source_disk(seed: u64) -> Vec<u8> {
    let mut disk = vec![0; (BLOCKS * BLOCK) as usize];
    for block in 0..BLOCKS {
        if block % 5 != 4 {
            let mut rng = Rng::new(seed ^ block);
            disk[bytes_of(one(block))].fill_with(|| rng.next_u64() as u8);
        }
    }
    disk
}

/// A destination that holds what the source has, but for the missing blocks, which are stale.
fn destination(folder: &tempfile::TempDir, source: &[u8], todo: &UnitSet<Block>) -> Volume {
    let volume = Volume::create(folder.path().join("disk.raw"), BLOCKS * BLOCK, BLOCK).unwrap();
    volume.receive(0, source).unwrap();
    for extent in todo.extents() {
        volume.receive(extent.start * BLOCK, &vec![0xee; (extent.count * BLOCK) as usize]).unwrap();
    }
    volume
}

fn deliver(volume: &Volume, source: &[u8], extent: Extent) -> Vec<u64> {
    let data = &source[bytes_of(extent)];
    let waited = if data.iter().all(|byte| *byte == 0) {
        volume.arrive_zeroes(extent).unwrap()
    } else {
        volume.arrive(extent, data).unwrap()
    };
    waited.into_iter().map(|(block, _)| block).collect()
}

fn image(volume: &Volume) -> Vec<u8> {
    let all = Extent { start: 0, count: BLOCKS };
    let mut bytes = vec![0; (BLOCKS * BLOCK) as usize];
    volume.read_blocks(all, &mut bytes).unwrap();
    bytes
}

/// What the guest does; it may have to wait for blocks.
#[derive(Clone, Debug)]
enum Access {
    Read { offset: u64, length: u64 },
    Write { offset: u64, length: u64, fill: u8 },
    Zero { offset: u64, length: u64 },
}

/// What happens before an access, or while it waits.
#[derive(Clone, Debug)]
enum Meanwhile {
    /// A push, or a pull's answer, or a second copy of either.
    Arrive(Extent),
    /// Another vCPU overwrites a whole block.
    Overwrite { block: u64, fill: u8 },
}

fn accesses() -> impl Strategy<Value = Access> {
    let range = prop_oneof![
        // Anything, whole blocks, and less than a block.
        (0..BLOCKS * BLOCK, 0..3 * BLOCK),
        (0..BLOCKS, 1..20u64).prop_map(|(block, count)| (block * BLOCK, count * BLOCK)),
        (0..BLOCKS * BLOCK, 1..64u64),
    ];
    (range, 0..8u8, any::<u8>()).prop_map(|((offset, length), kind, fill)| {
        let length = length.min(BLOCKS * BLOCK - offset);
        match kind {
            0..3 => Access::Read { offset, length },
            3 => Access::Zero { offset, length },
            _ => Access::Write { offset, length, fill },
        }
    })
}

fn meanwhile() -> impl Strategy<Value = Meanwhile> {
    prop_oneof![
        3 => (0..BLOCKS, prop_oneof![Just(1u64), 1..25u64])
            .prop_map(|(start, count)| Meanwhile::Arrive(Extent { start, count: count.min(BLOCKS - start) })),
        1 => (0..BLOCKS, any::<u8>()).prop_map(|(block, fill)| Meanwhile::Overwrite { block, fill }),
    ]
}

/// The reference: a disk that never lacked anything, and the papers' table.
struct Reference {
    disk: Vec<u8>,
    todo: BTreeSet<u64>,
    asked: BTreeSet<u64>,
    fresh: BTreeSet<u64>,
    dropped: u64,
}

impl Reference {
    /// The blocks that an access has to wait for.
    fn needed(&self, access: &Access) -> BTreeSet<u64> {
        let blocks: Vec<u64> = match *access {
            Access::Read { offset, length } => (offset / BLOCK..(offset + length).div_ceil(BLOCK)).collect(),
            Access::Write { offset, length, .. } | Access::Zero { offset, length } => [offset, offset + length]
                .into_iter()
                .filter(|edge| edge % BLOCK != 0)
                .map(|edge| edge / BLOCK)
                .collect(),
        };
        let (Access::Read { length, .. } | Access::Write { length, .. } | Access::Zero { length, .. }) = access;
        blocks.into_iter().filter(|block| *length > 0 && self.todo.contains(block)).collect()
    }

    fn write(&mut self, offset: u64, length: u64, fill: u8) {
        self.disk[offset as usize..(offset + length) as usize].fill(fill);
        if length > 0 {
            self.fresh.extend(offset / BLOCK..(offset + length).div_ceil(BLOCK));
        }
        for block in offset.div_ceil(BLOCK)..(offset + length) / BLOCK {
            self.todo.remove(&block);
            self.asked.remove(&block);
        }
    }

    /// Returns the blocks that were asked for.
    fn arrive(&mut self, extent: Extent) -> Vec<u64> {
        let stored: Vec<u64> = extent.indices().filter(|block| self.todo.remove(block)).collect();
        self.dropped += extent.count - stored.len() as u64;
        stored.into_iter().filter(|block| self.asked.remove(block)).collect()
    }
}

fn happen(volume: &Volume, source: &[u8], reference: &mut Reference, event: &Meanwhile) {
    match *event {
        Meanwhile::Arrive(extent) => assert_eq!(deliver(volume, source, extent), reference.arrive(extent)),
        Meanwhile::Overwrite { block, fill } => {
            volume.write(block * BLOCK, &[fill; BLOCK as usize]).unwrap();
            reference.write(block * BLOCK, BLOCK, fill);
        }
    }
}

/// One guest's access, on a thread of its own; what happens meanwhile happens while it waits.
fn access(
    volume: &Volume,
    source: &[u8],
    requests: &Receiver<u64>,
    reference: &mut Reference,
    (access, events): &(Access, Vec<Meanwhile>),
) {
    std::thread::scope(|scope| {
        let needed = reference.needed(access);
        let _unstick = Unstick(volume, &|_| ());
        let guest = scope.spawn(move || match *access {
            Access::Read { offset, length } => {
                let mut buffer = vec![0x55; length as usize];
                volume.read(offset, &mut buffer).unwrap();
                Some(buffer)
            }
            Access::Write { offset, length, fill } => {
                volume.write(offset, &vec![fill; length as usize]).unwrap();
                None
            }
            Access::Zero { offset, length } => {
                volume.write_zeroes(offset, length, offset % 2 == 0).unwrap();
                None
            }
        });
        // The guest now waits, having asked for exactly what nobody asked for before.
        let expected: BTreeSet<u64> = needed.difference(&reference.asked).copied().collect();
        let asked: BTreeSet<u64> = expected.iter().map(|_| next(requests)).collect();
        assert_eq!(asked, expected);
        reference.asked.extend(asked);
        let mut events = events.iter();
        while let Some(block) = needed.iter().find(|block| reference.todo.contains(block)) {
            let answer = Meanwhile::Arrive(one(*block));
            happen(volume, source, reference, events.next().unwrap_or(&answer));
        }
        let seen = guest.join().unwrap();
        match *access {
            Access::Read { offset, length } => {
                let expected = &reference.disk[offset as usize..(offset + length) as usize];
                assert!(seen.as_deref() == Some(expected), "a read of {length} bytes at {offset} saw something else");
            }
            Access::Write { offset, length, fill } => reference.write(offset, length, fill),
            Access::Zero { offset, length } => reference.write(offset, length, 0),
        }
        assert!(requests.try_recv().is_err(), "a block was asked for that nobody needs, or twice");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn the_destination_is_the_reference(
        seed in any::<u64>(),
        todo in prop::collection::btree_set(0..BLOCKS, 0..BLOCKS as usize),
        steps in prop::collection::vec((accesses(), prop::collection::vec(meanwhile(), 0..6)), 0..24),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let source = source_disk(seed);
        let set = UnitSet::from_extents(BLOCKS, todo.iter().map(|block| one(*block)));
        let volume = destination(&folder, &source, &set);
        let (fetch, requests, whole) = Requests::channel();
        let none = BTreeSet::new();
        let mut reference = Reference { disk: source.clone(), todo, asked: none.clone(), fresh: none, dropped: 0 };
        volume.begin_pull(set.clone(), fetch);
        for step in &steps {
            access(&volume, &source, &requests, &mut reference, step);
            prop_assert!(volume.todo().iter().eq(reference.todo.iter().copied()));
            prop_assert_eq!(volume.missing(), reference.todo.len() as u64);
            prop_assert_eq!(volume.dropped(), reference.dropped);
            prop_assert!(volume.fresh().iter().eq(reference.fresh.iter().copied()));
        }
        // The push comes by everything in the end, needed or not.
        for extent in [Extent { start: 0, count: 20 }, Extent { start: 20, count: BLOCKS - 20 }] {
            prop_assert_eq!(deliver(&volume, &source, extent), reference.arrive(extent));
        }
        prop_assert_eq!(volume.missing(), 0);
        prop_assert_eq!(whole.load(SeqCst), 1);
        prop_assert_eq!(volume.dropped(), reference.dropped);
        prop_assert!(image(&volume) == reference.disk, "the destination differs from the reference");
    }
}

/// Three vCPUs write parts of the same blocks and whole blocks; a push, or a prefetch, and pulls race for all of them.
#[test]
fn racing_threads_leave_the_reference() {
    const GUESTS: u64 = 3;
    const PIECE: u64 = 32;
    let fetched = AtomicU64::new(0);
    for seed in 0..12 {
        // All begin at once, else the push is through before anybody misses a block.
        let begin = Barrier::new(GUESTS as usize + 1);
        let (begin, fetched) = (&begin, &fetched);
        let folder = tempfile::tempdir().unwrap();
        let source = source_disk(seed);
        let todo = UnitSet::full(BLOCKS);
        let volume = destination(&folder, &source, &todo);
        let (fetch, requests, whole) = Requests::channel();
        volume.begin_pull(todo.clone(), Arc::clone(&fetch) as Arc<dyn Fetch>);
        let disks: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let (volume, source) = (&volume, &source);
            let _unstick = Unstick(volume, &*fetch);
            // The source's push, and its answers to pulls, each a thread: any block may come twice. Or a prefetch: then
            // a guest that needs a block on its way waits for that.
            scope.spawn(move || {
                let mut rng = Rng::new(seed);
                let mut start = 0;
                begin.wait();
                while start < BLOCKS {
                    let count = (1 + rng.below(5)).min(BLOCKS - start);
                    let extent = Extent { start, count };
                    let runs = if seed % 2 == 0 { vec![extent] } else { volume.begin_prefetch(extent) };
                    std::thread::yield_now();
                    runs.into_iter().for_each(|run| drop(deliver(volume, source, run)));
                    start += count;
                    std::thread::yield_now();
                }
            });
            scope.spawn(move || {
                for block in requests.iter().take_while(|block| *block != NO_MORE) {
                    fetched.fetch_add(1, SeqCst);
                    deliver(volume, source, one(block));
                }
            });
            let guests: Vec<_> = (0..GUESTS)
                .map(|guest| {
                    scope.spawn(move || {
                        begin.wait();
                        run_guest(volume, source, seed, guest, GUESTS, PIECE)
                    })
                })
                .collect();
            guests.into_iter().map(|guest| guest.join().unwrap()).collect()
        });
        let mut reference = source.clone();
        for (guest, disk) in disks.iter().enumerate() {
            for at in (0..reference.len()).filter(|at| owner(*at as u64, GUESTS, PIECE) == guest as u64) {
                reference[at] = disk[at];
            }
        }
        assert_eq!(volume.missing(), 0);
        assert_eq!(whole.load(SeqCst), 1);
        assert!(image(&volume) == reference, "seed {seed}: the destination differs from the reference");
    }
    eprintln!("{} blocks were fetched in the race", fetched.load(SeqCst));
}

/// Whole overwrites, arrivals of the same blocks and reads, all at once, block by block: the overwrite wins, and a reader
/// never sees what was here before. Large blocks, so that the windows are wide.
#[test]
fn an_overwrite_wins_over_a_racing_arrival() {
    const LARGE: u64 = 1 << 20;
    const COUNT: u64 = 4;
    const STALE: u8 = 0xee;
    let folder = tempfile::tempdir().unwrap();
    let volume = Volume::create(folder.path().join("disk.raw"), COUNT * LARGE, LARGE).unwrap();
    let whole = |fill| vec![fill; LARGE as usize];
    let stale_reads = AtomicU64::new(0);
    for turn in 0..60 {
        volume.begin_receive(None);
        (0..COUNT).for_each(|block| volume.receive(block * LARGE, &whole(STALE)).unwrap());
        volume.begin_pull(UnitSet::full(COUNT), Arc::new(|_| ()));
        let begin = Barrier::new(3);
        let together = |mut act: Box<dyn FnMut(u64) + Send>| {
            let begin = &begin;
            move || {
                for block in 0..COUNT {
                    begin.wait();
                    act(block);
                }
            }
        };
        std::thread::scope(|scope| {
            let (volume, whole, stale_reads) = (&volume, &whole, &stale_reads);
            let (pushed, written) = (whole(1), whole(2));
            let push = move |block| drop(volume.arrive(one(block), &pushed).unwrap());
            let write = move |block| volume.write(block * LARGE, &written).unwrap();
            let read = move |block| {
                let mut seen = whole(0);
                volume.read(block * LARGE, &mut seen).unwrap();
                stale_reads.fetch_add(u64::from(seen.contains(&STALE)), SeqCst);
            };
            scope.spawn(together(Box::new(push)));
            scope.spawn(together(Box::new(write)));
            scope.spawn(together(Box::new(read)));
        });
        assert_eq!(stale_reads.load(SeqCst), 0, "turn {turn}: a read saw what was here before");
        for block in 0..COUNT {
            let mut seen = whole(0);
            volume.read_blocks(one(block), &mut seen).unwrap();
            assert!(seen.iter().all(|byte| *byte == 2), "turn {turn}: an arrival overwrote the guest's block {block}");
        }
    }
}

/// Who writes a byte: every fourth block is one guest's, the others are cut into pieces of all.
fn owner(offset: u64, guests: u64, piece: u64) -> u64 {
    let block = offset / BLOCK;
    if block % 4 == 3 { block / 4 % guests } else { offset / piece % guests }
}

/// Writes and reads what is this guest's; returns the disk as this guest must find it.
fn run_guest(volume: &Volume, source: &[u8], seed: u64, guest: u64, guests: u64, piece: u64) -> Vec<u8> {
    let mut disk = source.to_vec();
    let mut rng = Rng::new(seed ^ (guest << 32));
    for turn in 0..400u64 {
        let block = rng.below(BLOCKS);
        let (offset, length) = match block % 4 {
            3 => (block * BLOCK, BLOCK),
            _ => (block * BLOCK + rng.below(BLOCK / piece) * piece, piece),
        };
        if owner(offset, guests, piece) != guest {
            continue;
        }
        let range = offset as usize..(offset + length) as usize;
        if rng.chance(0.6) {
            let fill = vec![turn as u8 ^ guest as u8; length as usize];
            volume.write(offset, &fill).unwrap();
            disk[range].copy_from_slice(&fill);
        } else {
            let mut seen = vec![0; length as usize];
            volume.read(offset, &mut seen).unwrap();
            assert!(seen == disk[range], "seed {seed}, guest {guest}: a read at {offset} saw something else");
        }
    }
    disk
}

/// A guest that waits when the pull fails gets an error that says why; what is here is still served.
#[test]
fn a_failed_pull_ends_the_wait() {
    let folder = tempfile::tempdir().unwrap();
    let source = source_disk(1);
    let todo = UnitSet::from_extents(BLOCKS, [one(3), one(30)]);
    let volume = destination(&folder, &source, &todo);
    let (fetch, requests, whole) = Requests::channel();
    volume.begin_pull(todo.clone(), fetch);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| volume.read(3 * BLOCK, &mut [0; 10]));
        let writer = scope.spawn(|| volume.write(30 * BLOCK + 1, &[1; 10]));
        let asked: BTreeSet<u64> = (0..2).map(|_| next(&requests)).collect();
        assert_eq!(asked, BTreeSet::from([3, 30]));
        volume.fail_pull("the source is gone");
        for error in [reader.join().unwrap().unwrap_err(), writer.join().unwrap().unwrap_err()] {
            assert!(error.to_string().contains("the source is gone"), "{error}");
        }
    });
    assert!(volume.read(3 * BLOCK, &mut [0; 10]).is_err());
    volume.read(4 * BLOCK, &mut [0; 10]).unwrap();
    // A whole overwrite needs nothing from the source.
    volume.write(3 * BLOCK, &[7; BLOCK as usize]).unwrap();
    assert_eq!((volume.missing(), whole.load(SeqCst)), (1, 0));
    assert!(requests.try_recv().is_err());
}

/// An empty missing set is whole at once.
#[test]
fn nothing_missing_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let source = source_disk(1);
    let todo = UnitSet::empty(BLOCKS);
    let volume = destination(&folder, &source, &todo);
    let (fetch, _requests, whole) = Requests::channel();
    volume.begin_pull(todo.clone(), fetch);
    assert_eq!(whole.load(SeqCst), 1);
    assert!(volume.fresh().is_empty());
    assert_eq!(volume.arrive(one(0), &[9; BLOCK as usize]).unwrap(), []);
    assert_eq!(volume.dropped(), 1);
    assert!(image(&volume) == source);
}
