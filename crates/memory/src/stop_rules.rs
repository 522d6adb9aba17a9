//! The table of the stop rules.

mod byte_bound;
mod bytes;
mod downtime_budget;
mod never;
mod pages;
mod round_bound;
mod time_bound;

use crate::stop::MakeStopRule;
use whimbrel_model::Registry;

/// Every stop rule: those by which a move converges, the bounds, the null member.
pub const STOP_RULES: Registry<MakeStopRule> = Registry {
    family: "stop rule",
    entries: &[
        downtime_budget::ENTRY,
        pages::ENTRY,
        bytes::ENTRY,
        round_bound::ENTRY,
        byte_bound::ENTRY,
        time_bound::ENTRY,
        never::ENTRY,
    ],
};
