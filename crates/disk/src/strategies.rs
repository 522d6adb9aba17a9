//! The registry of the disk strategies and of the published settings of them.

mod faulty;
mod freeze_and_copy;
mod iterative;
mod pull;
mod push_and_prefetch;
mod three_phase;

use crate::rounds::STOP_BLOCKS;
use crate::strategy::{Constructor, Preset};
use push_and_prefetch::{CHUNK, DRAIN, HOT, PREFETCH, THRESHOLD};
use whimbrel_model::registry::Kind;
use whimbrel_model::{Entry, Parameter, Registry};

/// The disk strategies. `freeze-and-copy` is the floor of the measurement, `faulty` proves the unwinding.
pub const DISK_STRATEGIES: Registry<Constructor> = Registry {
    family: "disk strategy",
    entries: &[
        three_phase::ENTRY,
        freeze_and_copy::ENTRY,
        iterative::ENTRY,
        pull::ENTRY,
        push_and_prefetch::ENTRY,
        faulty::ENTRY,
    ],
};

/// Published systems: named combinations of a strategy with its published parameters.
pub const DISK_PRESETS: Registry<Preset> =
    Registry { family: "disk preset", entries: &[LUO_2008, NICOLAE_2012, BLOBSEER, PUSH_ALL] };

const LUO_2008: Entry<Preset> = Entry {
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
};

const NICOLAE_2012: Entry<Preset> = Entry {
    name: "nicolae2012",
    summary: "chunks of 256 KiB, a write counter with a threshold, prefetch by descending count; guest.base = \"shared\" \
              is part of it. The published threshold is not known: 2",
    parameters: &[THRESHOLD, CHUNK, HOT, PREFETCH, DRAIN],
    source: push_and_prefetch::PAPER,
    build: Preset { strategy: push_and_prefetch::NAME },
};

const BLOBSEER: Entry<Preset> = Entry {
    name: "blobseer",
    summary: "the rule of the released code: what is written while it waits is hot, and fetched first, by index",
    parameters: &[THRESHOLD, CHUNK, with(HOT, "waiting"), with(PREFETCH, "hot-first"), DRAIN],
    source: BLOBSEER_CODE,
    build: Preset { strategy: push_and_prefetch::NAME },
};

const PUSH_ALL: Entry<Preset> = Entry {
    name: "push-all",
    summary: "the released code's baseline: all that is cold is pushed before the switch, what is hot follows it",
    parameters: &[THRESHOLD, CHUNK, with(HOT, "waiting"), with(PREFETCH, "hot-first"), with(DRAIN, "true")],
    source: BLOBSEER_CODE,
    build: Preset { strategy: push_and_prefetch::NAME },
};

const BLOBSEER_CODE: &str = "the code of Nicolae and Cappello (HPDC 2012) as released with BlobSeer";

/// A strategy's parameter with another default.
const fn with(parameter: Parameter, default: &'static str) -> Parameter {
    Parameter { default: Some(default), ..parameter }
}
