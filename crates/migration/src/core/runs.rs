//! How an extent of what is queued is cut: at holes, at what was sent already, and where what was sent before begins.

use super::Run;
use whimbrel_model::{Extent, Unit, UnitSet};

/// The first units of `extent` that are alike, all holes (at most `most_holes`) or none (at most `most`); and which.
pub(super) fn head_of<U: Unit>(holes: &UnitSet<U>, extent: Extent, most: u64, most_holes: u64) -> (Extent, bool) {
    let start = extent.start;
    match holes.next(start) {
        Some(hole) if hole == start => {
            let alike = extent.indices().take(most_holes as usize).take_while(|unit| holes.contains(*unit));
            (Extent { start, count: alike.count() as u64 }, true)
        }
        next => {
            let until = next.map_or(extent.count, |hole| extent.count.min(hole - start));
            (Extent { start, count: until.min(most) }, false)
        }
    }
}

/// The parts of `extent` that are in `unsent`.
pub(super) fn still_unsent<U: Unit>(unsent: &UnitSet<U>, extent: Extent) -> Vec<Extent> {
    let mut parts: Vec<Extent> = Vec::new();
    let mut at = extent.start;
    while let Some(start) = unsent.next(at).filter(|s| *s < extent.end()) {
        let mut end = start + 1;
        while end < extent.end() && unsent.contains(end) {
            end += 1;
        }
        parts.push(Extent { start, count: end - start });
        at = end;
    }
    parts
}

/// Splits `extent` into runs that were sent before and runs that were not, and remembers it as sent.
pub(super) fn split_by<U: Unit>(sent_before: &mut UnitSet<U>, extent: Extent, runs: &mut Vec<Run>) {
    let mut start = extent.start;
    while start < extent.end() {
        let again = sent_before.contains(start);
        let mut end = start + 1;
        while end < extent.end() && sent_before.contains(end) == again {
            end += 1;
        }
        runs.push(Run { extent: Extent { start, count: end - start }, again, place: None });
        start = end;
    }
    sent_before.insert_extent(extent);
}
