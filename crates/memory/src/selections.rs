//! The table of the selections.

mod all;
mod disk_backed;
mod peek;
mod soft;

pub use all::All;

use crate::select::MakeSelect;
use whimbrel_model::Registry;

/// Every selection, the null member first.
pub const SELECTIONS: Registry<MakeSelect> =
    Registry { family: "selection", entries: &[all::ENTRY, peek::ENTRY, soft::ENTRY, disk_backed::ENTRY] };
