//! What a volume holds, by content: for blocks that another host offers by their digests.
//!
//! The index only says where to look. A block that was written since it was noted is found out, because what is taken over
//! is read and its digest compared first; so what is stored always has the digest that was offered.

use crate::volume::Volume;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io;
use whimbrel_model::Extent;

/// Bytes of a digest: the first of SHA-256, as many as the paper's SHA-1 has.
pub const DIGEST_BYTES: usize = 20;

/// Blocks that are read at a time while the index is made.
const READ_BYTES: u64 = 1 << 20;

type Name = [u8; DIGEST_BYTES];

/// The digests of the blocks in `data`, one after another.
pub fn digests(data: &[u8], block_bytes: u64) -> Vec<u8> {
    data.chunks(block_bytes as usize).flat_map(name).collect()
}

fn name(block: &[u8]) -> Name {
    let mut name = [0; DIGEST_BYTES];
    name.copy_from_slice(&Sha256::digest(block)[..DIGEST_BYTES]);
    name
}

/// Where a volume holds which content, as far as is known.
#[derive(Debug, Default)]
pub struct ContentIndex {
    blocks: HashMap<Name, u64>,
}

/// What became of an offer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TakenOver {
    /// The blocks whose content is held nowhere, and must be sent.
    pub lacking: Vec<Extent>,
    /// Of the others those that the guest had caused to be fetched, each with the nanoseconds since.
    pub waited: Vec<(u64, u64)>,
}

impl ContentIndex {
    /// Reads a volume's image and notes all that isn't a hole.
    ///
    /// # Errors
    /// The host's I/O failed.
    pub fn of(volume: &Volume) -> io::Result<Self> {
        let bytes = volume.block_bytes();
        let mut index = ContentIndex::default();
        let mut buffer = Vec::new();
        for data in volume.data_extents(Extent { start: 0, count: volume.blocks() })? {
            let most = (READ_BYTES / bytes).max(1);
            for start in (data.start..data.end()).step_by(most as usize) {
                let extent = Extent { start, count: most.min(data.end() - start) };
                buffer.resize((extent.count * bytes) as usize, 0);
                volume.read_blocks(extent, &mut buffer)?;
                for (block, content) in extent.indices().zip(buffer.chunks(bytes as usize)) {
                    index.blocks.entry(name(content)).or_insert(block);
                }
            }
        }
        Ok(index)
    }

    /// Takes over what is held of blocks with these digests, as if it had arrived, and says what is lacking. That is noted
    /// as held from now on: it is to come.
    ///
    /// # Errors
    /// The extent lies beyond the disk, `digests` has another length, or the host's I/O failed.
    pub fn take_over(&mut self, volume: &Volume, extent: Extent, digests: &[u8]) -> io::Result<TakenOver> {
        let (names, rest) = digests.as_chunks::<DIGEST_BYTES>();
        if !rest.is_empty() || names.len() as u64 != extent.count {
            let why = format!("{} bytes are not the digests of {} blocks", digests.len(), extent.count);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        volume.check_extent(extent, extent.count.saturating_mul(volume.block_bytes()))?;
        let mut taken = TakenOver::default();
        let mut buffer = vec![0; volume.block_bytes() as usize];
        for (wanted, block) in names.iter().zip(extent.indices()) {
            let block = Extent { start: block, count: 1 };
            if self.find(volume, wanted, &mut buffer)? {
                taken.waited.extend(volume.arrive(block, &buffer)?);
                continue;
            }
            // Whatever is offered, memory is bounded; what isn't noted is only sent.
            if self.blocks.len() as u64 <= 2 * volume.blocks() {
                self.blocks.insert(*wanted, block.start);
            }
            match taken.lacking.last_mut() {
                Some(last) if last.end() == block.start => last.count += 1,
                _ => taken.lacking.push(block),
            }
        }
        Ok(taken)
    }

    /// Reads the block that has this digest, if one still has.
    fn find(&self, volume: &Volume, wanted: &Name, buffer: &mut [u8]) -> io::Result<bool> {
        let Some(&block) = self.blocks.get(wanted) else { return Ok(false) };
        volume.read_blocks(Extent { start: block, count: 1 }, buffer)?;
        Ok(name(buffer) == *wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 4096;

    fn volume(folder: &tempfile::TempDir, blocks: u64) -> Volume {
        let volume = Volume::create(folder.path().join("disk.img"), blocks * BLOCK, BLOCK).unwrap();
        for block in 0..blocks / 2 {
            volume.receive(block * BLOCK, &content(block as u8 + 1)).unwrap();
        }
        volume
    }

    fn content(fill: u8) -> Vec<u8> {
        vec![fill; BLOCK as usize]
    }

    fn read(volume: &Volume, block: u64) -> Vec<u8> {
        let mut buffer = vec![0; BLOCK as usize];
        volume.read_blocks(Extent { start: block, count: 1 }, &mut buffer).unwrap();
        buffer
    }

    #[test]
    fn what_is_held_elsewhere_on_the_disk_is_taken_over_and_the_rest_is_lacking() {
        let folder = tempfile::tempdir().unwrap();
        let volume = volume(&folder, 16);
        let mut index = ContentIndex::of(&volume).unwrap();
        let offered: Vec<u8> = [3, 99, 98, 1].into_iter().flat_map(content).collect();
        let extent = Extent { start: 10, count: 4 };
        let taken = index.take_over(&volume, extent, &digests(&offered, BLOCK)).unwrap();
        assert_eq!(taken, TakenOver { lacking: vec![Extent { start: 11, count: 2 }], waited: Vec::new() });
        assert_eq!((read(&volume, 10), read(&volume, 13)), (content(3), content(1)));
        // What was lacking has come since, and is held.
        volume.arrive(Extent { start: 11, count: 1 }, &content(99)).unwrap();
        let again = index.take_over(&volume, Extent { start: 0, count: 1 }, &digests(&content(99), BLOCK)).unwrap();
        assert_eq!(again.lacking, []);
        assert_eq!(read(&volume, 0), content(99));
    }

    #[test]
    fn content_that_has_gone_since_is_lacking() {
        let folder = tempfile::tempdir().unwrap();
        let volume = volume(&folder, 16);
        let mut index = ContentIndex::of(&volume).unwrap();
        volume.receive(0, &content(77)).unwrap();
        let extent = Extent { start: 9, count: 1 };
        let taken = index.take_over(&volume, extent, &digests(&content(1), BLOCK)).unwrap();
        assert_eq!(taken.lacking, [extent]);
    }

    #[test]
    fn an_offer_that_is_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let volume = volume(&folder, 16);
        let mut index = ContentIndex::default();
        let extent = |start, count| Extent { start, count };
        assert!(index.take_over(&volume, extent(0, 2), &[0; DIGEST_BYTES]).is_err());
        assert!(index.take_over(&volume, extent(0, 1), &[0; DIGEST_BYTES + 1]).is_err());
        // Beyond the disk there is nothing to be lacking, and content that is held is not stored there.
        let held = digests(&content(1), BLOCK);
        let mut index = ContentIndex::of(&volume).unwrap();
        assert!(index.take_over(&volume, extent(16, 1), &held).is_err());
        assert!(index.take_over(&volume, extent(u64::MAX, 1), &held).is_err());
    }
}
