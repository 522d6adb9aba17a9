//! What recording a guest's writes costs: runs with the bitmap armed against runs without, in turns, until the interval of
//! the ratio is narrower than 1 % (Luo et al., CLUSTER 2008, say below 1 % of write throughput).
//!
//! A run is 4 KiB writes at random places of an image in the page cache, the fastest disk there is: the ratio is an upper
//! bound. The interval is that of the median of the pairs' ratios, 95 %, by bootstrap.

use std::time::Instant;
use whimbrel_disk::{BLOCK_BYTES, GuestDisk, Volume};
use whimbrel_model::Rng;

const DISK_BYTES: u64 = 64 << 20;
const WRITES: u64 = 4000;
const MOST_PAIRS: usize = 4000;
const LOOK_EVERY: usize = 100;
const RESAMPLES: usize = 1000;
const NARROW: f64 = 0.01;

fn run(volume: &Volume, tracked: bool, seed: u64) -> f64 {
    if tracked {
        volume.arm();
    } else {
        volume.disarm();
    }
    let (mut rng, data) = (Rng::new(seed), [seed as u8; BLOCK_BYTES as usize]);
    let began = Instant::now();
    for _ in 0..WRITES {
        let block = rng.below(DISK_BYTES / BLOCK_BYTES);
        volume.write(block * BLOCK_BYTES, &data).expect("the image can be written");
    }
    began.elapsed().as_secs_f64()
}

fn median(values: &mut [f64]) -> f64 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

fn interval(ratios: &[f64], rng: &mut Rng) -> (f64, f64) {
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut drawn: Vec<f64> = ratios.iter().map(|_| ratios[rng.below(ratios.len() as u64) as usize]).collect();
            median(&mut drawn)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    (medians[RESAMPLES / 40], medians[RESAMPLES - 1 - RESAMPLES / 40])
}

fn main() {
    let folder = tempfile::tempdir().expect("a folder for the image");
    let volume = Volume::create(folder.path().join("disk.img"), DISK_BYTES, BLOCK_BYTES).expect("an image");
    // Every page of the image is in the cache before anything is timed.
    for offset in (0..DISK_BYTES).step_by(1 << 20) {
        volume.write(offset, &vec![1; 1 << 20]).expect("the image can be written");
    }
    let (mut rng, mut ratios, mut untracked_s) = (Rng::new(1), Vec::new(), Vec::new());
    while ratios.len() < MOST_PAIRS {
        let seed = ratios.len() as u64;
        // Each goes first in turn, with the same places.
        let (tracked, untracked) = if seed.is_multiple_of(2) {
            let tracked = run(&volume, true, seed);
            (tracked, run(&volume, false, seed))
        } else {
            let untracked = run(&volume, false, seed);
            (run(&volume, true, seed), untracked)
        };
        ratios.push(tracked / untracked);
        untracked_s.push(untracked);
        if ratios.len().is_multiple_of(LOOK_EVERY) {
            let (low, high) = interval(&ratios, &mut rng);
            if high - low < NARROW {
                break;
            }
        }
    }
    let (low, high) = interval(&ratios, &mut rng);
    let write_ns = median(&mut untracked_s) * 1e9 / WRITES as f64;
    let pairs = ratios.len();
    println!(
        "tracked / untracked: {:.4} ({low:.4} to {high:.4}), {pairs} pairs of {WRITES} writes, {write_ns:.0} ns a write",
        median(&mut ratios)
    );
}
