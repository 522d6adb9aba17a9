//! What a guest does: operations, and what each does to memory, disk and digest.
//!
//! A write is read-modify-write: `new = f(seed, vCPU, operation, old)`. A read folds what it saw into the vCPU's
//! digest, and what is written to a disk depends on the digest. So one stale page, lost write or repeated operation
//! changes the end state for good.

use crate::rng::mix;
use serde::{Deserialize, Serialize};

/// Words of 8 bytes in a page.
pub const WORDS_PER_PAGE: u64 = crate::units::PAGE_BYTES / 8;

/// Bytes in a sector, the granule of disk operations.
pub const SECTOR_BYTES: u64 = 512;

/// The most work that one operation may hold, so that it is short: sectors of a disk write.
pub const MOST_SECTORS: u32 = 2048;

/// One operation of a vCPU. Each is atomic at a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Rewrites `words` words of a page, from word `first` on.
    Write {
        /// The page.
        page: u64,
        /// The first word.
        first: u16,
        /// How many words.
        words: u16,
    },
    /// Reads `words` words of a page, from word `first` on, into the digest.
    Read {
        /// The page.
        page: u64,
        /// The first word.
        first: u16,
        /// How many words.
        words: u16,
    },
    /// Computes: `units` steps of a dependent chain over the digest, about a microsecond each.
    Compute {
        /// How many units.
        units: u32,
    },
    /// Reads sectors of the disk into the digest.
    DiskRead {
        /// The first sector.
        sector: u64,
        /// How many, at most [`MOST_SECTORS`].
        sectors: u32,
    },
    /// Writes sectors of the disk, with content from seed, vCPU, operation and digest.
    DiskWrite {
        /// The first sector.
        sector: u64,
        /// How many, at most [`MOST_SECTORS`].
        sectors: u32,
    },
    /// Makes what was written to the disk durable.
    Flush,
    /// The guest takes a free page into use.
    Allocate {
        /// The page.
        page: u64,
    },
    /// The guest has no more use for a page's content.
    Free {
        /// The page.
        page: u64,
    },
    /// Does nothing for a time; the only operation that knows time. The twin skips it.
    Idle {
        /// How long.
        nanos: u64,
    },
}

/// What a vCPU carries with it besides its stream: part of the device state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// Operations completed; the next operation's number.
    pub operations: u64,
    /// The fold of all that the vCPU read and computed.
    pub digest: u64,
    /// Work done, in the units that the workload declares.
    pub units: u64,
    /// What remains of an Idle that a pause interrupted, in nanoseconds.
    pub idle_left: u64,
}

/// Tells one operation of one vCPU from every other: the key of what it writes.
pub fn operation_key(seed: u64, vcpu: u32, operation: u64) -> u64 {
    mix(seed ^ mix(operation.wrapping_mul(64).wrapping_add(u64::from(vcpu))))
}

/// The new value of a word of memory.
pub fn new_word(key: u64, word: u64, old: u64) -> u64 {
    mix(old ^ key.wrapping_add(word.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// Folds a word that was seen into a digest. The order of folds matters.
pub fn fold(digest: u64, seen: u64) -> u64 {
    (digest.rotate_left(5) ^ seen).wrapping_mul(0x517c_c1b7_2722_0a95)
}

/// One unit of Compute: about a microsecond of dependent work, so that no processor can run ahead.
pub fn compute_unit(digest: u64) -> u64 {
    (0..200).fold(digest, |d, _| mix(d))
}

/// Fills `buffer` with what a DiskWrite writes at `sector`.
pub fn disk_content(key: u64, digest: u64, sector: u64, buffer: &mut [u8]) {
    let mut word = mix(key ^ digest.rotate_left(17) ^ mix(sector));
    for chunk in buffer.chunks_mut(8) {
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        chunk.copy_from_slice(&(word ^ (word >> 29)).to_le_bytes()[..chunk.len()]);
    }
}

/// Folds what a DiskRead saw.
pub fn fold_bytes(digest: u64, seen: &[u8]) -> u64 {
    seen.chunks(8).fold(digest, |d, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        fold(d, u64::from_le_bytes(word))
    })
}
