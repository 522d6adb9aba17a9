//! The registry of the disk strategies and of the published settings of them.

mod faulty;
mod freeze_and_copy;
mod iterative;
mod pull;
mod three_phase;

use crate::rounds::STOP_BLOCKS;
use crate::strategy::{Constructor, Preset};
use whimbrel_model::registry::Kind;
use whimbrel_model::{Entry, Parameter, Registry};

/// The disk strategies. `freeze-and-copy` is the floor of the measurement, `faulty` proves the unwinding.
pub const DISK_STRATEGIES: Registry<Constructor> = Registry {
    family: "disk strategy",
    entries: &[three_phase::ENTRY, freeze_and_copy::ENTRY, iterative::ENTRY, pull::ENTRY, faulty::ENTRY],
};

/// Published systems: named combinations of a strategy with its published parameters.
pub const DISK_PRESETS: Registry<Preset> = Registry {
    family: "disk preset",
    entries: &[Entry {
        name: "luo2008",
        summary: "three-phase migration as published: about 4 rounds; its \"small\" dirty set has no published number",
        parameters: &[
            STOP_BLOCKS,
            Parameter {
                name: "max_rounds",
                summary: "the most rounds of push; the paper says a small constant, about 4",
                kind: Kind::Count,
                default: Some("4"),
            },
        ],
        source: three_phase::SOURCE,
        build: Preset { strategy: three_phase::NAME },
    }],
};
