//! The null selection: everything goes.

use crate::select::{MakeSelect, Select, SelectView};
use whimbrel_model::{Entry, Extent};

pub(super) const ENTRY: Entry<MakeSelect> = Entry {
    name: "all",
    summary: "sends every page that is pushed",
    parameters: &[],
    source: "the null member",
    build: |_| Ok(Box::new(All)),
};

/// Keeps everything.
#[derive(Clone, Copy, Debug)]
pub struct All;

impl Select for All {
    fn peek_every(&self) -> Option<u64> {
        None
    }

    fn choose(&mut self, pages: Extent, _: &SelectView<'_>, keep: &mut Vec<Extent>) {
        keep.push(pages);
    }
}
