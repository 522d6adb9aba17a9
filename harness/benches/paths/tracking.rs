//! What tracking costs a guest: its writes of 4 KiB with the block bitmap armed, against the same writes without, on the same
//! volume, in turns until it is known to 1 %.

use crate::tally::{Figure, Limit, Tally, interval};
use crate::{Options, Outcome};
use std::time::Instant;
use whimbrel_disk::{BLOCK_BYTES, GuestDisk, Volume};
use whimbrel_model::Rng;

/// Writes of a turn: so few that most turns are disturbed by nothing.
const WRITES: usize = 2_000;
/// The fewest pairs, and the most.
const PAIRS: [usize; 2] = [200, 3_000];
/// How narrow the interval of the median ratio has to be.
const NARROW: f64 = 0.01;

/// Blocks of the disk, and how many of them the guest writes, over and over: they stay in the page cache.
const DISKS: [(&str, u64, u64); 2] = [("64 MiB", 16 << 10, 16 << 10), ("0.01 % of 1 TiB", 1 << 28, (1 << 28) / 10_000)];

/// Both disks.
pub fn tracking(options: &Options, tally: &mut Tally) -> Outcome {
    for (name, blocks, used) in DISKS {
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let volume = Volume::create(folder.path().join("disk.raw"), blocks * BLOCK_BYTES, BLOCK_BYTES);
        let volume = volume.map_err(|e| e.to_string())?;
        let mut guest = Guest::new(&volume, blocks, used);
        // The image's blocks and the bitmap's leaves are there before anything is timed.
        guest.arm(true);
        guest.writes(3 * used as usize)?;
        let mut pairs = Vec::new();
        let [fewest, most] = PAIRS.map(|pairs| options.pairs(pairs));
        while pairs.len() < most {
            if pairs.len() >= fewest
                && pairs.len().is_multiple_of(100)
                && interval(&pairs).is_some_and(|(low, high)| high - low <= NARROW)
            {
                break;
            }
            let mut turn = |armed| {
                guest.arm(armed);
                guest.writes(WRITES)
            };
            pairs.push(if pairs.len() % 2 == 0 {
                let tracked = turn(true)?;
                (tracked, turn(false)?)
            } else {
                let plain = turn(false)?;
                (turn(true)?, plain)
            });
        }
        let name = format!("write of 4 KiB, {name}: tracked / not");
        tally.enter(&Figure { name: &name, unit: "ns", pairs: &pairs, limit: Limit::Most(1.01) });
    }
    Ok(())
}

struct Guest<'a> {
    volume: &'a Volume,
    blocks: Vec<u64>,
    rng: Rng,
}

impl<'a> Guest<'a> {
    fn new(volume: &'a Volume, blocks: u64, used: u64) -> Self {
        let mut rng = Rng::new(1);
        let blocks = match used == blocks {
            true => (0..blocks).collect(),
            false => (0..used).map(|_| rng.below(blocks)).collect(),
        };
        Guest { volume, blocks, rng }
    }

    /// Has the writes tracked or not.
    fn arm(&self, armed: bool) {
        self.volume.disarm();
        if armed {
            self.volume.arm();
        }
    }

    /// Nanoseconds a write.
    fn writes(&mut self, count: usize) -> Result<f64, String> {
        let data = [1; BLOCK_BYTES as usize];
        let start = Instant::now();
        for _ in 0..count {
            let block = self.blocks[self.rng.below(self.blocks.len() as u64) as usize];
            self.volume.write(block * BLOCK_BYTES, &data).map_err(|e| e.to_string())?;
        }
        Ok(start.elapsed().as_nanos() as f64 / count as f64)
    }
}
