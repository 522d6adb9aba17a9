//! What a stream offers, counted over its own intervals: deterministic, no clock, no guest.

use std::collections::HashSet;
use whimbrel_model::op::{Op, SECTOR_BYTES};
use whimbrel_model::stream::Stream;
use whimbrel_model::units::{Nanos, PAGE_BYTES};

/// Sectors of a block of 4 KiB.
const BLOCK_SECTORS: u64 = 8;

/// What streams did in a stretch of their own time: intervals and idling; operations themselves take none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Operations.
    pub operations: u64,
    /// Work, in the workload's units.
    pub units: u64,
    /// Bytes of the pages written, rewrites counted.
    pub written_bytes: u64,
    /// Bytes of the distinct pages written.
    pub unique_dirty_bytes: u64,
    /// Accesses of memory that read.
    pub reads: u64,
    /// Bytes written to the disk, rewrites counted.
    pub disk_written_bytes: u64,
    /// Bytes of the distinct blocks of 4 KiB that were written, in part or whole.
    pub unique_disk_dirty_bytes: u64,
    /// Requests that read the disk.
    pub disk_reads: u64,
    /// Requests to make what was written durable.
    pub flushes: u64,
    /// Units of Compute.
    pub compute_units: u64,
}

/// Draws from every stream what falls into the next `span` of its own time. The streams have moved on afterwards: make
/// new ones for the guest.
///
/// `None` where a stream has no pace, so that its operations in that time exceed `most_operations`.
pub fn observe(streams: &mut [Box<dyn Stream>], span: Nanos, most_operations: u64) -> Option<Observed> {
    let mut seen = Observed::default();
    let (mut pages, mut blocks) = (HashSet::new(), HashSet::new());
    for stream in streams {
        let mut now = 0u64;
        while now < span.0 {
            let paced = stream.next();
            seen.operations += 1;
            if seen.operations > most_operations {
                return None;
            }
            seen.units += u64::from(paced.units);
            now = now.saturating_add(paced.interval_ns);
            match paced.op {
                Op::Write { page, .. } | Op::Allocate { page } => {
                    seen.written_bytes += PAGE_BYTES;
                    pages.insert(page);
                }
                Op::Read { .. } => seen.reads += 1,
                Op::Compute { units } => seen.compute_units += u64::from(units),
                Op::DiskRead { .. } => seen.disk_reads += 1,
                Op::DiskWrite { sector, sectors } => {
                    seen.disk_written_bytes += u64::from(sectors) * SECTOR_BYTES;
                    let last = (sector + u64::from(sectors)).div_ceil(BLOCK_SECTORS);
                    blocks.extend(sector / BLOCK_SECTORS..last);
                }
                Op::Flush => seen.flushes += 1,
                Op::Free { .. } => {}
                Op::Idle { nanos } => now = now.saturating_add(nanos),
            }
        }
    }
    seen.unique_dirty_bytes = pages.len() as u64 * PAGE_BYTES;
    seen.unique_disk_dirty_bytes = blocks.len() as u64 * BLOCK_SECTORS * SECTOR_BYTES;
    Some(seen)
}
