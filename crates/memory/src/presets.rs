//! The presets: named combinations of answers with published parameters. A paper's system is one of these.

use serde_json::Value;
use std::collections::BTreeMap;
use whimbrel_model::{Entry, Registry};

/// What a preset sets: keys of an experiment file's `[memory]` table with their values, written as in JSON (and TOML).
pub type Keys = &'static [(&'static str, &'static str)];

/// Every preset.
pub const PRESETS: Registry<Keys> =
    Registry { family: "preset", entries: &[CLARK2005, XEN, QEMU, AUTO_CONVERGE, XBZRLE, KVM2011, KOTO2012, JO2013] };

const CLARK2005: Entry<Keys> = Entry {
    name: "clark2005",
    summary: "pre-copy whose rate adapts from 100 to 500 Mbit/s, with peek and pseudo-random order, down to 256 KiB; \
              bounded also by 30 rounds and 3 x RAM, which the published runs never meet",
    parameters: &[],
    source: "Clark et al., NSDI 2005",
    build: &[
        ("schedule", r#""pre-copy""#),
        ("order", r#""scattered""#),
        ("min_rate", r#""100 Mbit/s""#),
        ("max_rate", r#""500 Mbit/s""#),
        ("rate_step", r#""50 Mbit/s""#),
        ("clamp_once", "true"),
        ("select", r#""peek""#),
        ("encode", r#"["raw"]"#),
        // The bounds matter on a link slower than max_rate, where the wanted rate may never exceed it.
        ("stop", r#"["bytes", "round-bound", "byte-bound"]"#),
        ("stop_bytes", r#""256 KiB""#),
        ("max_rounds", "30"),
        ("max_bytes_ratio", "3.0"),
    ],
};

const XEN: Entry<Keys> = Entry {
    name: "xen",
    summary: "the classic Xen loop: until 50 pages remain, at most 30 rounds and 3 x RAM",
    parameters: &[],
    source: "Xen, xc_domain_save",
    build: &[
        ("schedule", r#""pre-copy""#),
        ("encode", r#"["raw"]"#),
        ("stop", r#"["pages", "round-bound", "byte-bound"]"#),
        ("stop_pages", "50"),
        ("max_rounds", "30"),
        ("max_bytes_ratio", "3.0"),
    ],
};

const QEMU: Entry<Keys> = Entry {
    name: "qemu",
    summary: "until 300 ms of downtime are predicted from the bandwidth; unlike QEMU at most 30 rounds and 3 x RAM",
    parameters: &[],
    source: "QEMU 2.9 and later",
    build: &[
        ("schedule", r#""pre-copy""#),
        ("encode", r#"["zero"]"#),
        ("stop", r#"["downtime-budget", "round-bound", "byte-bound"]"#),
        ("downtime_budget", r#""300 ms""#),
        ("max_rounds", "30"),
        ("max_bytes_ratio", "3.0"),
    ],
};

const AUTO_CONVERGE: Entry<Keys> = Entry {
    name: "auto-converge",
    summary: "as qemu without the bound on bytes; the guest is slowed by 20 %, then in steps of 10 %, while it dirties too much",
    parameters: &[],
    source: "QEMU 2.5 and later, auto-converge",
    build: &[
        ("schedule", r#""pre-copy""#),
        ("encode", r#"["zero"]"#),
        // No bound on bytes: the throttle takes 18 rounds to rise from nothing to its most.
        ("stop", r#"["downtime-budget", "round-bound"]"#),
        ("downtime_budget", r#""300 ms""#),
        ("max_rounds", "30"),
        ("throttle", r#""stepped""#),
        ("throttle_initial", "0.20"),
        ("throttle_increment", "0.10"),
        ("throttle_most", "0.99"),
        ("throttle_trigger", "0.50"),
    ],
};

const XBZRLE: Entry<Keys> = Entry {
    name: "xbzrle",
    summary: "as qemu, and a page sent again goes as its difference from the version sent last, of which 64 MiB are kept",
    parameters: &[],
    source: "Svard et al., VEE 2011; QEMU, xbzrle",
    build: &[
        ("schedule", r#""pre-copy""#),
        ("encode", r#"["zero", "delta"]"#),
        ("delta_cache", r#""64 MiB""#),
        ("stop", r#"["downtime-budget", "round-bound", "byte-bound"]"#),
        ("downtime_budget", r#""300 ms""#),
        ("max_rounds", "30"),
        ("max_bytes_ratio", "3.0"),
    ],
};

const KVM2011: Entry<Keys> = Entry {
    name: "kvm2011",
    summary: "as qemu with the defaults of its day: at most 32 MiB/s, 30 ms of downtime",
    parameters: &[],
    source: "the baseline of Ibrahim et al., SC 2011",
    build: &[
        ("schedule", r#""pre-copy""#),
        ("max_rate", r#""32 MiB/s""#),
        ("encode", r#"["zero"]"#),
        ("stop", r#"["downtime-budget", "round-bound", "byte-bound"]"#),
        ("downtime_budget", r#""30 ms""#),
        ("max_rounds", "30"),
        ("max_bytes_ratio", "3.0"),
    ],
};

const KOTO2012: Entry<Keys> = Entry {
    name: "koto2012",
    summary: "as xen, without the guest's free pages; of the paper's soft pages clean page cache still goes",
    parameters: &[],
    source: "Koto et al., SonicMigration, APSys 2012",
    build: &[
        ("schedule", r#""pre-copy""#),
        ("select", r#""soft""#),
        ("encode", r#"["raw"]"#),
        ("stop", r#"["pages", "round-bound", "byte-bound"]"#),
        ("stop_pages", "50"),
        ("max_rounds", "30"),
        ("max_bytes_ratio", "3.0"),
    ],
};

const JO2013: Entry<Keys> = Entry {
    name: "jo2013",
    summary: "as xen, but a page that is a copy of a disk block goes by name where the destination has the block",
    parameters: &[],
    source: "Jo et al., VEE 2013; there the disk is shared storage, here it is what has moved of it, or guest.base",
    build: &[
        ("schedule", r#""pre-copy""#),
        ("select", r#""disk-backed""#),
        ("encode", r#"["raw"]"#),
        ("stop", r#"["pages", "round-bound", "byte-bound"]"#),
        ("stop_pages", "50"),
        ("max_rounds", "30"),
        ("max_bytes_ratio", "3.0"),
    ],
};

/// What a preset sets, read.
pub(crate) fn values(keys: Keys) -> BTreeMap<String, Value> {
    keys.iter()
        .map(|(key, text)| ((*key).to_owned(), serde_json::from_str(text).expect("the table is tested to be JSON")))
        .collect()
}
