//! The twin's memory and disk: content as it was filled, with what operations have changed laid over it.

use crate::execute::{Disk, Memory};
use crate::fill::{UNIT_BYTES, page_content, unit_content};
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use whimbrel_model::content::Content;
use whimbrel_model::op::{SECTOR_BYTES, WORDS_PER_PAGE};
use whimbrel_model::stream::Shape;
use whimbrel_model::units::PAGE_BYTES;

/// The words of a page.
type Words = [u64; WORDS_PER_PAGE as usize];

/// The bytes of a page.
pub type PageBuffer = [u8; PAGE_BYTES as usize];

/// The bytes of a unit of the disk.
pub type UnitBuffer = [u8; UNIT_BYTES as usize];

/// The twin's memory.
pub struct TwinMemory {
    content: Content,
    seed: u64,
    /// The pages that were touched.
    pages: Vec<Option<Box<Words>>>,
}

impl TwinMemory {
    /// Memory of `pages` pages as it is before operation 0.
    pub fn new(pages: u64, content: Content, seed: u64) -> Self {
        TwinMemory { content, seed, pages: vec![None; pages as usize] }
    }

    /// Copies a page out.
    pub fn page(&self, page: u64, into: &mut PageBuffer) {
        match &self.pages[page as usize] {
            None => page_content(&self.content, self.seed, page, into),
            Some(words) => {
                for (bytes, word) in into.as_chunks_mut().0.iter_mut().zip(words.iter()) {
                    *bytes = word.to_ne_bytes();
                }
            }
        }
    }

    fn touch(&mut self, page: u64) -> &mut Words {
        let TwinMemory { content, seed, pages } = self;
        pages[page as usize].get_or_insert_with(|| {
            let mut buffer = [0; PAGE_BYTES as usize];
            page_content(content, *seed, page, &mut buffer);
            let mut words = Box::new([0; WORDS_PER_PAGE as usize]);
            for (word, bytes) in words.iter_mut().zip(buffer.as_chunks().0) {
                *word = u64::from_ne_bytes(*bytes);
            }
            words
        })
    }
}

impl Memory for TwinMemory {
    fn change(&mut self, page: u64, words: Range<usize>, mut change: impl FnMut(usize, u64) -> u64) {
        for (index, word) in words.clone().zip(&mut self.touch(page)[words]) {
            *word = change(index, *word);
        }
    }

    fn see(&mut self, page: u64, words: Range<usize>, see: impl FnMut(u64)) {
        self.touch(page)[words].iter().copied().for_each(see);
    }
}

/// The twin's disk.
pub struct TwinDisk {
    content: Content,
    seed: u64,
    bytes: u64,
    filled_bytes: u64,
    /// The units that were written.
    units: HashMap<u64, Box<UnitBuffer>>,
}

impl TwinDisk {
    /// A disk as it is before operation 0.
    pub fn new(shape: &Shape, content: Content, seed: u64) -> Self {
        let bytes = shape.sectors * SECTOR_BYTES;
        let filled_bytes = shape.filled_sectors.min(shape.sectors) * SECTOR_BYTES;
        TwinDisk { content, seed, bytes, filled_bytes, units: HashMap::new() }
    }

    /// The size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Copies a unit out; what of it lies beyond the disk is zero.
    pub fn unit(&self, unit: u64, into: &mut UnitBuffer) {
        match self.units.get(&unit) {
            Some(bytes) => into.copy_from_slice(&bytes[..]),
            None => unit_content(&self.content, self.seed, self.filled_bytes, unit, into),
        }
    }

    /// Whether a unit was neither filled nor written.
    pub fn is_untouched(&self, unit: u64) -> bool {
        unit * UNIT_BYTES >= self.filled_bytes && !self.units.contains_key(&unit)
    }

    fn touch(&mut self, unit: u64) -> &mut UnitBuffer {
        let TwinDisk { content, seed, filled_bytes, units, .. } = self;
        units.entry(unit).or_insert_with(|| {
            let mut buffer = Box::new([0; UNIT_BYTES as usize]);
            unit_content(content, *seed, *filled_bytes, unit, &mut buffer);
            buffer
        })
    }
}

/// Splits `length` bytes from `offset` on into parts of units: the unit, the range in it, the range in the request.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let (unit, skip) = (at / UNIT_BYTES, (at % UNIT_BYTES) as usize);
        let count = (UNIT_BYTES as usize - skip).min(length - done);
        let part = (unit, skip..skip + count, done..done + count);
        done += count;
        (count > 0).then_some(part)
    })
}

impl Disk for TwinDisk {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut whole = [0; UNIT_BYTES as usize];
        for (unit, inside, outside) in parts(offset, buffer.len()) {
            self.unit(unit, &mut whole);
            buffer[outside].copy_from_slice(&whole[inside]);
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        for (unit, inside, outside) in parts(offset, data.len()) {
            self.touch(unit)[inside].copy_from_slice(&data[outside]);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
