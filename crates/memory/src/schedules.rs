//! The table of memory's schedules.

mod faulty;
mod hybrid;
mod post_copy;
mod pre_copy;
mod stop_and_copy;

use crate::schedule::Maker;
use whimbrel_model::Registry;

/// Every schedule, the plain ones first.
pub const SCHEDULES: Registry<Maker> = Registry {
    family: "schedule",
    entries: &[stop_and_copy::ENTRY, pre_copy::ENTRY, post_copy::ENTRY, hybrid::ENTRY, faulty::ENTRY],
};
