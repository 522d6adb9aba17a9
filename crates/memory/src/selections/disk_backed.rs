//! Pages that hold what is on the disk: where the destination has the blocks, only their names go.

use crate::select::{MakeSelect, Select, SelectView};
use whimbrel_model::{Entry, Extent};

pub(super) const ENTRY: Entry<MakeSelect> = Entry {
    name: "disk-backed",
    summary: "sends pages that are copies of disk blocks by name, where the destination has these: by guest.base = shared, an earlier trip, or coordinator disk-first",
    parameters: &[],
    source: "Jo et al., VEE 2013",
    build: |_| Ok(Box::new(DiskBacked)),
};

struct DiskBacked;

impl Select for DiskBacked {
    fn peek_every(&self) -> Option<u64> {
        None
    }

    /// Once: no guest here brings pages into its cache while it is moved, and what it writes the log shows.
    fn ask_every(&self) -> Option<u64> {
        Some(u64::MAX)
    }

    fn refers(&self) -> bool {
        true
    }

    fn choose(&mut self, pages: Extent, _: &SelectView<'_>, keep: &mut Vec<Extent>) {
        keep.push(pages);
    }
}
