//! What tracking costs: a mark against the write that it goes with, and a take of a large disk's bitmap against those of
//! bitvec and roaring.
//!
//! The bounds: a mark is less than 1 % of a 4 KiB write, and 1 TiB in 4 KiB blocks with at most 0.01 % set is taken in
//! less than 10 ms. On a busy host compare by the lower ends. What tracking costs a guest's writes on a small and on a large
//! disk is measured in turns by the whole paths' line `tracking`.

use bitvec::prelude::{BitVec, Lsb0};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use roaring::RoaringBitmap;
use std::cell::RefCell;
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use whimbrel_disk::{BLOCK_BYTES, BitmapFile, BlockBitmap, GuestDisk, Volume};
use whimbrel_model::{Block, Extent, Rng, UnitSet};

/// 1 TiB in 4 KiB blocks.
const LARGE: u64 = 1 << 28;
/// 0.01 % of them.
const FEW: u64 = LARGE / 10_000;
/// A disk of 64 MiB, which stays in the page cache.
const SMALL: u64 = 16 << 10;

fn one(block: u64) -> Extent {
    Extent { start: block, count: 1 }
}

fn mark(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mark");
    let mut rng = Rng::new(1);
    let bitmap = BlockBitmap::new(LARGE);
    // The leaves of a disk in use are there; what a mark costs is what follows.
    (0..LARGE).step_by(1 << 15).for_each(|block| bitmap.mark(one(block)));
    group.bench_function("random, 1 TiB", |b| b.iter(|| bitmap.mark(black_box(one(rng.below(LARGE))))));
    let bitmap = BlockBitmap::new(SMALL);
    group.bench_function("random, 64 MiB", |b| b.iter(|| bitmap.mark(black_box(one(rng.below(SMALL))))));
    let plain = Mutex::new(BitVec::<u64, Lsb0>::repeat(false, SMALL as usize));
    group.bench_function("random, 64 MiB, bitvec under a lock", |b| {
        b.iter(|| plain.lock().expect("no holder panics").set(black_box(rng.below(SMALL)) as usize, true));
    });
    group.finish();
}

fn write(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("the host has a folder for temporary files");
    let path = folder.path().join("disk.raw");
    let volume = Volume::create(&path, SMALL * BLOCK_BYTES, BLOCK_BYTES).expect("the folder takes a new image");
    let data = [1; BLOCK_BYTES as usize];
    (0..SMALL).for_each(|block| volume.receive(block * BLOCK_BYTES, &data).expect("the image takes its content"));
    let file = File::options().write(true).open(&path).expect("the image was created");
    let mut group = criterion.benchmark_group("write 4 KiB");
    let mut rng = Rng::new(1);
    let mut at = || rng.below(SMALL) * BLOCK_BYTES;
    group.bench_function("pwrite", |b| b.iter(|| file.write_all_at(&data, at()).expect("the file takes it")));
    let write = |offset| volume.write(offset, &data).expect("the volume takes it");
    group.bench_function("volume, unarmed", |b| b.iter(|| write(at())));
    volume.arm();
    group.bench_function("volume, armed", |b| b.iter(|| write(at())));
    group.finish();
}

fn take(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("take 1 TiB, 0.01 % set");
    group.sample_size(20);
    let mut rng = Rng::new(1);
    let scattered: Vec<u64> = (0..FEW).map(|_| rng.below(LARGE)).collect();
    // A guest's writes cluster: here in runs of 64 blocks.
    let clustered: Vec<u64> =
        scattered.iter().step_by(64).flat_map(|block| *block & !63..(*block & !63) + 64).collect();
    for (name, blocks) in [("scattered", &scattered), ("clustered", &clustered)] {
        let bitmap = BlockBitmap::new(LARGE);
        let fill = || blocks.iter().for_each(|block| bitmap.mark(one(*block)));
        group.bench_function(format!("{name}, take"), |b| {
            b.iter_batched(fill, |()| bitmap.take(), BatchSize::PerIteration);
        });
        let mut unsent = UnitSet::<Block>::empty(LARGE);
        group.bench_function(format!("{name}, take into a set"), |b| {
            b.iter_batched(fill, |()| bitmap.take_into(&mut unsent), BatchSize::PerIteration);
        });
        let plain = RefCell::new(BitVec::<u64, Lsb0>::repeat(false, LARGE as usize));
        group.bench_function(format!("{name}, bitvec: walk and clear"), |b| {
            b.iter_batched(
                || blocks.iter().for_each(|block| plain.borrow_mut().set(*block as usize, true)),
                |()| take_plain(&mut plain.borrow_mut()),
                BatchSize::PerIteration,
            );
        });
        group.bench_function(format!("{name}, roaring: swap and walk"), |b| {
            b.iter_batched(
                || blocks.iter().map(|block| *block as u32).collect::<RoaringBitmap>(),
                |set| set.iter().map(u64::from).collect::<Vec<u64>>(),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// What keeping the bitmap in a file costs at a checkpoint, beside writing down all of it.
fn checkpoint(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("the host has a folder for temporary files");
    let opened = BitmapFile::open(&folder.path().join("bitmap"), LARGE, BLOCK_BYTES);
    let (kept, ..) = opened.expect("the folder takes a new file");
    let bitmap = BlockBitmap::new(LARGE);
    let mut group = criterion.benchmark_group("checkpoint of 1 TiB");
    group.sample_size(10);
    let mut rng = Rng::new(1);
    group.bench_function("one mark since the last", |b| {
        b.iter(|| {
            bitmap.mark(one(rng.below(LARGE)));
            kept.checkpoint(false, || Ok(bitmap.peek())).expect("the file takes it");
        });
    });
    let file = File::create(folder.path().join("flat")).expect("the folder takes a new file");
    let flat = vec![1; (LARGE / 8) as usize];
    group.bench_function("32 MiB, written and synced", |b| {
        b.iter(|| file.write_all_at(&flat, 0).and_then(|()| file.sync_data()).expect("the file takes it"));
    });
    group.finish();
}

/// A take of a plain bitmap: the words that are not zero, with their places.
fn take_plain(bits: &mut BitVec<u64, Lsb0>) -> Vec<(usize, u64)> {
    let words = bits.as_raw_mut_slice().iter_mut().enumerate();
    words.filter(|(_, word)| **word != 0).map(|(at, word)| (at, std::mem::take(word))).collect()
}

criterion_group!(benches, mark, write, take, checkpoint);
criterion_main!(benches);
