//! What RAM and disk hold before operation 0: the content model, unit by unit, at no cost to the guest.

use std::io;
use whimbrel_memory::GuestRam;
use whimbrel_model::content::{Class, Content, UNIT_BYTES};
use whimbrel_model::stream::Shape;
use whimbrel_model::units::PAGE_BYTES;

/// Bytes that are written to a disk at a time.
const CHUNK_UNITS: u64 = 256;

/// Threads that fill RAM.
const THREADS: u64 = 2;

/// The content of page `page`.
pub fn page_content(content: &Content, seed: u64, page: u64, buffer: &mut [u8; PAGE_BYTES as usize]) {
    content.fill_page(seed, page, buffer);
}

/// The content of unit `unit` of a disk of which `filled_bytes` from the start are filled; the rest is zero.
pub fn unit_content(
    content: &Content,
    seed: u64,
    filled_bytes: u64,
    unit: u64,
    buffer: &mut [u8; UNIT_BYTES as usize],
) {
    let filled = filled_bytes.saturating_sub(unit.saturating_mul(UNIT_BYTES)).min(UNIT_BYTES) as usize;
    if filled > 0 {
        content.fill_unit(seed, unit, buffer);
    }
    buffer[filled..].fill(0);
}

/// Fills the first `pages` pages of RAM through the host's mapping, with the content of a guest of that shape. What they held
/// before is gone.
pub fn fill_ram(ram: &GuestRam, pages: u64, content: &Content, shape: &Shape, seed: u64) {
    let content = &content.of_guest(shape);
    let fill = |pages: std::ops::Range<u64>| {
        let mut buffer = [0; PAGE_BYTES as usize];
        for page in pages {
            if content.class(seed, page) == Class::Zero {
                ram.zero_page(page);
            } else {
                page_content(content, seed, page, &mut buffer);
                ram.write_page(page, &buffer);
            }
        }
    };
    let pages = pages.min(ram.pages());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || fill(pages * thread / THREADS..pages * (thread + 1) / THREADS));
        }
    });
}

/// Gives `write` the content of the first `filled_bytes` of a disk, in ascending order, at most 1 MiB at a time.
///
/// # Errors
/// What `write` answers.
pub fn fill_disk(
    filled_bytes: u64,
    content: &Content,
    seed: u64,
    mut write: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut chunk = Vec::new();
    let mut offset = 0;
    while offset < filled_bytes {
        chunk.clear();
        let first = offset / UNIT_BYTES;
        for unit in first..(first + CHUNK_UNITS).min(filled_bytes.div_ceil(UNIT_BYTES)) {
            let mut buffer = [0; UNIT_BYTES as usize];
            unit_content(content, seed, filled_bytes, unit, &mut buffer);
            chunk.extend_from_slice(&buffer);
        }
        chunk.truncate((filled_bytes - offset) as usize);
        write(offset, &chunk)?;
        offset += chunk.len() as u64;
    }
    Ok(())
}
