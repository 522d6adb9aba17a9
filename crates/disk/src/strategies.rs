//! The registry of the disk strategies and of the published settings of them.

mod by_content;
mod by_frequency;
mod faulty;
mod freeze_and_copy;
mod iterative;
mod mirrored;
mod pull;
mod push_and_prefetch;
mod remote;
mod three_phase;

use crate::rounds::STOP_BLOCKS;
use crate::strategy::{Constructor, Preset, RATE_LIMIT};
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
        mirrored::ENTRY,
        by_frequency::ENTRY,
        by_content::ENTRY,
        remote::ENTRY,
        faulty::ENTRY,
    ],
};

/// Published systems: named combinations of a strategy with its published parameters.
pub const DISK_PRESETS: Registry<Preset> = Registry {
    family: "disk preset",
    entries: &[
        LUO_2008,
        NICOLAE_2012,
        BLOBSEER,
        PUSH_ALL,
        MIRROR,
        BACKGROUND_MIRROR,
        MASHTIZADEH_2011,
        ZHENG_2011,
        CAPSULES_COW,
        SHARED,
    ],
};

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
        RATE_LIMIT,
    ],
    source: three_phase::SOURCE,
    build: Preset { strategy: three_phase::NAME },
};

const NICOLAE_2012: Entry<Preset> = Entry {
    name: "nicolae2012",
    summary: "chunks of 256 KiB, a write counter with a threshold, prefetch by descending count; guest.base = \"shared\" \
              is part of it. The published threshold is not known: 2",
    parameters: &[THRESHOLD, CHUNK, HOT, PREFETCH, DRAIN, RATE_LIMIT],
    source: push_and_prefetch::PAPER,
    build: Preset { strategy: push_and_prefetch::NAME },
};

const BLOBSEER: Entry<Preset> = Entry {
    name: "blobseer",
    summary: "the rule of the released code: what is written while it waits is hot, and fetched first, by index",
    parameters: &[THRESHOLD, CHUNK, with(HOT, "waiting"), with(PREFETCH, "hot-first"), DRAIN, RATE_LIMIT],
    source: BLOBSEER_CODE,
    build: Preset { strategy: push_and_prefetch::NAME },
};

const PUSH_ALL: Entry<Preset> = Entry {
    name: "push-all",
    summary: "the released code's baseline: all that is cold is pushed before the switch, what is hot follows it",
    parameters: &[THRESHOLD, CHUNK, with(HOT, "waiting"), with(PREFETCH, "hot-first"), with(DRAIN, "true"), RATE_LIMIT],
    source: BLOBSEER_CODE,
    build: Preset { strategy: push_and_prefetch::NAME },
};

const MIRROR: Entry<Preset> = Entry {
    name: "mirror",
    summary: "every write is acknowledged once both hosts have it",
    parameters: &[mirrored::WRITES, RATE_LIMIT],
    source: "QEMU's block mirror, copy-mode write-blocking",
    build: Preset { strategy: mirrored::NAME },
};

const BACKGROUND_MIRROR: Entry<Preset> = Entry {
    name: "background-mirror",
    summary: "the copy follows what the guest writes, and is drained in the pause; unlike QEMU, at most 100 rounds",
    parameters: &[STOP_BLOCKS, with(iterative::MAX_ROUNDS, "100"), RATE_LIMIT],
    source: "QEMU's block mirror, copy-mode background (its default)",
    build: Preset { strategy: iterative::NAME },
};

const MASHTIZADEH_2011: Entry<Preset> = Entry {
    name: "mashtizadeh2011",
    summary: "one pass; writes behind its cursor are mirrored, those ahead of it are not",
    parameters: &[with(mirrored::WRITES, "copied"), RATE_LIMIT],
    source: "Mashtizadeh, Celebi, Garfinkel, Cai: the design and evolution of live storage migration in VMware ESX, \
             USENIX ATC 2011",
    build: Preset { strategy: mirrored::NAME },
};

const ZHENG_2011: Entry<Preset> = Entry {
    name: "zheng2011",
    summary: "blocks by ascending write frequency, neighbors together; without the paper's history from before",
    parameters: &[STOP_BLOCKS, by_frequency::MAX_ROUNDS, by_frequency::CHUNK, RATE_LIMIT],
    source: by_frequency::SOURCE,
    build: Preset { strategy: by_frequency::NAME },
};

const CAPSULES_COW: Entry<Preset> = Entry {
    name: "capsules-cow",
    summary: "copy-on-write deltas, sent by content hash: a running guest's, where the paper's is suspended",
    parameters: &[STOP_BLOCKS, by_content::MAX_DELTAS, RATE_LIMIT],
    source: by_content::SOURCE,
    build: Preset { strategy: by_content::NAME },
};

const SHARED: Entry<Preset> = Entry {
    name: "shared",
    summary: "shared storage, the control: the disk stays, and the other host reaches it by NBD",
    parameters: &[],
    source: remote::SOURCE,
    build: Preset { strategy: remote::NAME },
};

const BLOBSEER_CODE: &str = "the code of Nicolae and Cappello (HPDC 2012) as released with BlobSeer";

/// A strategy's parameter with another default.
const fn with(parameter: Parameter, default: &'static str) -> Parameter {
    Parameter { default: Some(default), ..parameter }
}
