//! What one vCPU of the twin has touched: the content as it was filled, changed as its operations say.

use crate::execute::{Disk, Memory};
use crate::fill::{page_content, unit_content};
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use whimbrel_model::content::{Content, UNIT_BYTES};
use whimbrel_model::op::{SECTOR_BYTES, WORDS_PER_PAGE};
use whimbrel_model::stream::Shape;
use whimbrel_model::units::PAGE_BYTES;

/// The words of a page.
type Words = [u64; WORDS_PER_PAGE as usize];

/// Pages of a part of the memory, which is allocated whole: 2 MiB.
const PART_PAGES: usize = 512;

/// The bytes of a page.
pub type PageBuffer = [u8; PAGE_BYTES as usize];

/// The bytes of a unit of the disk.
pub type UnitBuffer = [u8; UNIT_BYTES as usize];

/// The pages that one vCPU of the twin has touched.
pub struct TwinMemory {
    content: Content,
    seed: u64,
    parts: Vec<Option<Part>>,
}

/// Pages that lie together: the kernel gives memory only for those that are touched.
struct Part {
    words: Box<[Words]>,
    touched: [u64; PART_PAGES / 64],
}

impl Part {
    fn new() -> Self {
        Part { words: vec![[0; WORDS_PER_PAGE as usize]; PART_PAGES].into(), touched: [0; PART_PAGES / 64] }
    }

    fn holds(&self, at: usize) -> bool {
        self.touched[at / 64] >> (at % 64) & 1 == 1
    }
}

/// A page's part, and its place there.
fn place(page: u64) -> (usize, usize) {
    (page as usize / PART_PAGES, page as usize % PART_PAGES)
}

impl TwinMemory {
    /// Memory of `pages` pages as it is before operation 0: none is touched.
    pub fn new(pages: u64, content: Content, seed: u64) -> Self {
        let parts = (0..pages.div_ceil(PART_PAGES as u64)).map(|_| None).collect();
        TwinMemory { content, seed, parts }
    }

    /// A page, if it was touched.
    pub fn page(&self, page: u64) -> Option<&Words> {
        let (part, at) = place(page);
        self.parts[part].as_ref().filter(|part| part.holds(at)).map(|part| &part.words[at])
    }

    /// A page that another one's vCPU has touched too, if there is any.
    pub fn common(&self, other: &TwinMemory) -> Option<u64> {
        let both = self.parts.iter().zip(&other.parts).enumerate();
        let mut pages = both.filter_map(|(index, (a, b))| {
            let (a, b) = (a.as_ref()?, b.as_ref()?);
            let at = (0..PART_PAGES).find(|at| a.holds(*at) && b.holds(*at))?;
            Some((index * PART_PAGES + at) as u64)
        });
        pages.next()
    }

    /// Loads the first and the last of `words` words of a page from word `first` on, which brings them near.
    #[inline(always)]
    pub fn load_ends(&self, page: u64, first: u16, words: u16) -> u64 {
        let (part, at) = place(page);
        let Some(part) = &self.parts[part] else { return 0 };
        let word = |index: u16| part.words[at].get(usize::from(index)).copied().unwrap_or(0);
        word(first) ^ word(first + words.saturating_sub(1))
    }

    #[inline(always)]
    fn touch(&mut self, page: u64) -> &mut Words {
        let (part, at) = place(page);
        if !self.parts[part].as_ref().is_some_and(|part| part.holds(at)) {
            self.fill(page);
        }
        &mut self.parts[part].as_mut().expect("it was filled").words[at]
    }

    /// Gives a page its content of before operation 0. Kept out of the loop, which needs no room for a page's bytes.
    #[cold]
    #[inline(never)]
    fn fill(&mut self, page: u64) {
        let (part, at) = place(page);
        let part = self.parts[part].get_or_insert_with(Part::new);
        let mut buffer = [0; PAGE_BYTES as usize];
        page_content(&self.content, self.seed, page, &mut buffer);
        for (word, bytes) in part.words[at].iter_mut().zip(buffer.as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        part.touched[at / 64] |= 1 << (at % 64);
    }
}

impl Memory for TwinMemory {
    #[inline(always)]
    fn change(&mut self, page: u64, words: Range<usize>, mut change: impl FnMut(usize, u64) -> u64) {
        let mut index = words.start;
        // Eight at a time fill the widest vector.
        let (eights, rest) = self.touch(page)[words].as_chunks_mut::<8>();
        for eight in eights {
            for (at, word) in eight.iter_mut().enumerate() {
                *word = change(index + at, *word);
            }
            index += 8;
        }
        for (at, word) in rest.iter_mut().enumerate() {
            *word = change(index + at, *word);
        }
    }

    #[inline(always)]
    fn see(&mut self, page: u64, words: Range<usize>, see: impl FnMut(u64)) {
        self.touch(page)[words].iter().copied().for_each(see);
    }
}

/// The blocks that one vCPU of the twin has written.
pub struct TwinDisk {
    content: Content,
    seed: u64,
    filled_bytes: u64,
    units: HashMap<u64, Box<UnitBuffer>>,
}

impl TwinDisk {
    /// A disk as it is before operation 0.
    pub fn new(shape: &Shape, content: Content, seed: u64) -> Self {
        let filled_bytes = shape.filled_sectors.min(shape.sectors) * SECTOR_BYTES;
        TwinDisk { content, seed, filled_bytes, units: HashMap::new() }
    }

    /// A unit, if it was written.
    pub fn unit(&self, unit: u64) -> Option<&UnitBuffer> {
        self.units.get(&unit).map(|bytes| &**bytes)
    }

    /// A unit that another one's vCPU has written too, if there is any.
    pub fn common(&self, other: &TwinDisk) -> Option<u64> {
        self.units.keys().copied().find(|unit| other.units.contains_key(unit))
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
            let bytes = self.unit(unit).unwrap_or_else(|| {
                unit_content(&self.content, self.seed, self.filled_bytes, unit, &mut whole);
                &whole
            });
            buffer[outside].copy_from_slice(&bytes[inside]);
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
