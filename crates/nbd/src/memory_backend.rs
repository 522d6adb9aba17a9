//! A backend in memory: for tests, and as the floor of a measurement.

use std::{
    io,
    sync::{PoisonError, RwLock},
};

use crate::{
    backend::{Backend, BlockSizes, Extents, Now, ZeroMode},
    protocol::{CONTEXT_ALLOCATION, allocation},
};

/// Bytes in memory. Zeroes count as holes, in pieces of 4 KiB.
#[derive(Debug)]
pub struct MemoryBackend {
    bytes: RwLock<Vec<u8>>,
    size_bytes: u64,
    block_sizes: BlockSizes,
    read_only: bool,
}

/// The granule in which zeroes are reported as holes.
const PIECE_BYTES: usize = 4096;

impl MemoryBackend {
    /// With these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        let size_bytes = bytes.len() as u64;
        let block_sizes = BlockSizes::default();
        Self { bytes: RwLock::new(bytes), size_bytes, block_sizes, read_only: false }
    }

    /// The same, read-only.
    pub fn into_read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// The same, with other block sizes.
    pub fn with_block_sizes(mut self, block_sizes: BlockSizes) -> Self {
        self.block_sizes = block_sizes;
        self
    }

    /// A copy of the bytes.
    pub fn snapshot(&self) -> Vec<u8> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn with_range<T>(&self, offset: u64, length: u64, act: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        let start = offset as usize;
        let range = bytes.get_mut(start..start.saturating_add(length as usize));
        range.map(act).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl Backend for MemoryBackend {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn block_sizes(&self) -> BlockSizes {
        self.block_sizes
    }

    fn description(&self) -> String {
        "bytes in memory".into()
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn multi_conn(&self) -> bool {
        true
    }

    fn contexts(&self) -> Vec<String> {
        vec![CONTEXT_ALLOCATION.into()]
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        let start = offset as usize;
        let range = bytes.get(start..start.saturating_add(buffer.len()));
        buffer.copy_from_slice(range.ok_or(io::ErrorKind::InvalidInput)?);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8], _fua: bool) -> io::Result<()> {
        self.with_range(offset, data.len() as u64, |range| range.copy_from_slice(data))
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64, _mode: ZeroMode) -> io::Result<()> {
        self.with_range(offset, length, |range| range.fill(0))
    }

    fn block_status(&self, _context: &str, offset: u64, length: u64, extents: &mut Extents) -> io::Result<()> {
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        let start = offset as usize;
        let range = bytes.get(start..start.saturating_add(length as usize));
        for piece in range.ok_or(io::ErrorKind::InvalidInput)?.chunks(PIECE_BYTES) {
            let zero = piece.iter().all(|byte| *byte == 0);
            let flags = if zero { allocation::HOLE | allocation::ZERO } else { 0 };
            if !extents.push(piece.len() as u64, flags) {
                break;
            }
        }
        Ok(())
    }

    fn try_read_now(&self, offset: u64, buffer: &mut [u8]) -> io::Result<Now> {
        self.read(offset, buffer).map(|()| Now::Done)
    }

    fn try_write_now(&self, offset: u64, data: &[u8]) -> io::Result<Now> {
        self.write(offset, data, false).map(|()| Now::Done)
    }
}
