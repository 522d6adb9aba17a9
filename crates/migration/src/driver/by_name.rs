//! Pages that go by name: at the source it is seen whether they are the copies that the guest calls them, at the destination
//! they are read from its disk. Which pages, and when their names hold no longer, is the core's to know.

use crate::core::Run;
use crate::driver::DriverError;
use std::sync::Arc;
use whimbrel_disk::Volume;
use whimbrel_memory::GuestRam;
use whimbrel_model::{Backed, Extent, PAGE_BYTES};

/// Splits runs into those that are copies of what lies on the disk, by a look at both, and all others.
///
/// # Errors
/// The disk can't be read.
pub(super) fn seen(ram: &GuestRam, volume: &Volume, runs: &[Run]) -> Result<(Vec<Run>, Vec<Run>), DriverError> {
    let (mut named, mut others): (Vec<Run>, Vec<Run>) = (Vec::new(), Vec::new());
    let (mut in_memory, mut on_disk) = ([0; PAGE_BYTES as usize], [0; PAGE_BYTES as usize]);
    for run in runs {
        let Some(place) = run.place else {
            others.push(*run);
            continue;
        };
        for (at, page) in (0..).zip(run.extent.indices()) {
            let place = place + at * PAGE_BYTES;
            ram.read_page(page, &mut in_memory);
            volume.read_image(place, &mut on_disk)?;
            let (list, place) = if in_memory == on_disk { (&mut named, Some(place)) } else { (&mut others, None) };
            match list.last_mut() {
                Some(last) if last.goes_on(page, run.again, place) => last.extent.count += 1,
                _ => list.push(Run { extent: Extent { start: page, count: 1 }, again: run.again, place }),
            }
        }
    }
    Ok((named, others))
}

/// Takes up pages from the disk here.
///
/// # Errors
/// There is no such place on it, or no disk at all, or the guest may have written to it: the other side broke the protocol.
pub(super) fn take_up(ram: &GuestRam, volume: Option<&Arc<Volume>>, named: Backed) -> Result<(), DriverError> {
    let size_bytes = volume.map_or(0, |volume| volume.blocks() * volume.block_bytes());
    let is_a_page = named.offset_bytes.is_multiple_of(PAGE_BYTES);
    let (Some(volume), true) = (volume, is_a_page && named.end_bytes().is_some_and(|end| end <= size_bytes)) else {
        return Err(DriverError::Protocol(format!(
            "pages are to be taken from {named:?} of a disk of {size_bytes} bytes"
        )));
    };
    let mut content = [0; PAGE_BYTES as usize];
    for (at, page) in (0..).zip(named.pages.indices()) {
        volume.read_image(named.offset_bytes + at * PAGE_BYTES, &mut content)?;
        ram.write_page(page, &content);
    }
    Ok(())
}
