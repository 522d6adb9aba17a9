//! The instruments: each workload offers what its parameters say. Counted over its own intervals, without a clock.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use whimbrel_model::op::Op;
use whimbrel_model::stream::Shape;
use whimbrel_model::units::Nanos;
use whimbrel_workloads::{BuildContext, Observed, WorkloadChoice, observe};

const MIB: f64 = 1048576.0;
const GUEST: Shape = Shape { pages: 65_536, sectors: 2_097_152, filled_sectors: 524_288, vcpus: 2 };

fn build(table: Value, vcpus: u32) -> (WorkloadChoice, BuildContext) {
    let choice = WorkloadChoice::read(&serde_json::from_value::<BTreeMap<_, _>>(table).unwrap()).unwrap();
    (choice, BuildContext::new(Shape { vcpus, ..GUEST }, 11))
}

fn observed(table: Value, vcpus: u32, seconds: f64) -> Observed {
    let (choice, context) = build(table, vcpus);
    let mut streams = choice.build(&context).unwrap();
    observe(&mut streams, Nanos((seconds * 1e9) as u64), 50_000_000).expect("the workload is paced")
}

/// Within a share of what is expected, and a few pages for the edges of the span.
fn close(name: &str, found: f64, expected: f64, share: f64) {
    assert!((found - expected).abs() <= expected * share + 4.0 * 4096.0, "{name}: {found}, expected {expected}");
}

#[test]
fn the_write_rate_is_what_it_says() {
    for pattern in ["uniform", "hot-set", "sweep", "zipf", "phased"] {
        for vcpus in [1, 2, 4] {
            for rate in [1.5, 12.0, 300.0] {
                let table = json!({ "pattern": pattern, "rate": format!("{rate} MiB/s"), "read_share": 0.25 });
                let seen = observed(table, vcpus, 2.0);
                close(pattern, seen.written_bytes as f64, rate * MIB * 2.0, 1e-3);
                let share = seen.reads as f64 / (seen.reads as f64 + seen.written_bytes as f64 / 4096.0);
                assert!((share - 0.25).abs() < 0.05, "{pattern}: {share} of the accesses read");
            }
        }
    }
}

#[test]
fn unique_dirty_rates_follow_their_laws() {
    let set = 16.0 * MIB;
    for seconds in [0.5, 1.0, 4.0] {
        let written = 12.0 * MIB * seconds;
        let unique = |pattern: &str| {
            let table = json!({ "pattern": pattern, "rate": "12 MiB/s", "working_set": "16 MiB" });
            observed(table, 2, seconds).unique_dirty_bytes as f64
        };
        close("sweep", unique("sweep"), written.min(set), 1e-3);
        close("uniform", unique("uniform"), set * (1.0 - (-written / set).exp()), 0.03);
        let (hot, zipf) = (unique("hot-set"), unique("zipf"));
        assert!(hot < unique("uniform") && zipf < unique("uniform"), "hot-set {hot}, zipf {zipf}");
    }
}

#[test]
fn the_working_set_is_covered_and_kept() {
    for (table, expected) in [
        (json!({ "rate": "200 MiB/s", "working_set": "8 MiB" }), 8.0),
        (json!({ "rate": "400 MiB/s", "pattern": "sweep" }), 64.0),
        (json!({ "rate": "100 MiB/s", "pattern": "hot-set", "hot_share": 1, "hot_size": "4 MiB" }), 4.0),
    ] {
        let (choice, context) = build(table.clone(), 3);
        let seen = observed(table.clone(), 3, 2.0);
        close(&table.to_string(), seen.unique_dirty_bytes as f64, expected * MIB, 1e-3);
        if table["pattern"] != "hot-set" {
            assert_eq!(choice.offered(&context).working_set_bytes, Some((expected * MIB) as u64));
        }
    }
}

#[test]
fn the_hot_share_is_what_it_says() {
    let (choice, context) = build(json!({ "pattern": "hot-set", "hot_share": 0.8, "hot_size": "2 MiB" }), 1);
    let mut stream = choice.build(&context).unwrap().remove(0);
    let draws = 100_000;
    let hot = (0..draws).filter(|_| matches!(stream.next().op, Op::Write { page, .. } if page < 512)).count();
    // The rest is uniform over all 16384 pages of the set, hot ones included.
    let expected = 0.8 + 0.2 * 512.0 / 16384.0;
    assert!((hot as f64 / f64::from(draws) - expected).abs() < 0.01, "{hot} of {draws}");
}

#[test]
fn a_rate_of_zero_only_idles_and_no_rate_has_no_pace() {
    let seen = observed(json!({ "rate": "0 MiB/s" }), 2, 10.0);
    assert_eq!((seen.written_bytes, seen.reads, seen.units), (0, 0, 0));
    let (choice, context) = build(json!({}), 2);
    assert_eq!(observe(&mut choice.build(&context).unwrap(), Nanos(1), 10_000), None);
    let seen = observed(json!({ "use": "idle" }), 2, 1.0);
    assert_eq!((seen.units, seen.written_bytes), (2000, 0));
}

#[test]
fn the_compute_share_is_what_it_says() {
    // A unit is about a microsecond. A vCPU that rests idles for the rest of its time, and only that is its span.
    for (table, expected) in [
        (json!({ "rate": "12 MiB/s", "compute_share": 0.4 }), 0.4),
        (json!({ "rate": "0 MiB/s", "compute_share": 0.4 }), 0.4 / 0.6),
        (json!({ "use": "disk-write", "rate": "4 MiB/s", "compute_share": 0.4 }), 0.4),
    ] {
        let share = observed(table.clone(), 2, 4.0).compute_units as f64 / 8e6;
        assert!((share - expected).abs() < 0.01, "{table}: {share}");
    }
}

#[test]
fn the_disk_write_rate_is_what_it_says() {
    for pattern in ["sequential", "random", "zipf"] {
        for vcpus in [1, 3] {
            let table = json!({ "use": "disk-write", "pattern": pattern, "rate": "20 MiB/s", "rewrite_share": 0.3 });
            let seen = observed(table, vcpus, 5.0);
            close(pattern, seen.disk_written_bytes as f64, 100.0 * MIB, 0.01);
            assert!(seen.unique_disk_dirty_bytes < seen.disk_written_bytes, "{pattern} rewrites nothing");
            assert!(seen.flushes > 10 && seen.disk_reads > 10 && seen.written_bytes > 0);
        }
    }
}

#[test]
fn rewrites_and_the_extent_are_what_they_say() {
    for (share, least, most) in [(0.0, 0.999, 1.001), (0.5, 0.45, 0.55), (0.9, 0.08, 0.12)] {
        let table = json!({ "use": "disk-write", "rate": "50 MiB/s", "rewrite_share": share, "partial_share": 0,
                            "extent": "1 GiB" });
        let seen = observed(table, 1, 10.0);
        let unique = seen.unique_disk_dirty_bytes as f64 / seen.disk_written_bytes as f64;
        assert!((least..=most).contains(&unique), "rewrite_share {share}: {unique} of the bytes are new");
    }
    let table = json!({ "use": "disk-write", "rate": "50 MiB/s", "extent": "16 MiB" });
    close("extent", observed(table, 2, 10.0).unique_disk_dirty_bytes as f64, 16.0 * MIB, 1e-3);
}

#[test]
fn an_idle_desktop_shows_activity_within_seconds_and_keeps_to_a_small_set() {
    let seen = observed(json!({ "use": "idle-desktop" }), 2, 3.0);
    assert!(
        seen.units > 60 && seen.written_bytes > 0 && seen.disk_written_bytes > 0 && seen.disk_reads > 0,
        "{seen:?}"
    );
    // Half an hour of its life touches far less than the guest's RAM: the premise of partial migration.
    let seen = observed(json!({ "use": "idle-desktop", "speed": 100 }), 1, 18.0);
    let share = seen.unique_dirty_bytes as f64 / (65_536.0 * 4096.0);
    assert!((0.01..0.2).contains(&share), "{share} of RAM written in half an hour");
}

#[test]
fn a_mix_offers_what_its_parts_offer() {
    let part = json!({ "use": "memory-intensive", "rate": "8 MiB/s", "working_set": "4 MiB", "pattern": "sweep" });
    let disk = json!({ "use": "disk-write", "rate": "6 MiB/s" });
    let table = json!({ "use": "mix", "parts": [part, disk] });
    let seen = observed(table.clone(), 4, 4.0);
    close("disk", seen.disk_written_bytes as f64, 24.0 * MIB, 0.02);
    assert!(seen.written_bytes as f64 >= 32.0 * MIB);
    let (choice, context) = build(table, 4);
    let offered = choice.offered(&context);
    // How much memory the disk's part writes follows from its requests, not from a parameter.
    assert_eq!((offered.write_bytes_per_s, offered.disk_write_bytes_per_s), (None, Some(6.0 * MIB)));
    assert_eq!(offered.working_set_bytes, Some(4 * 1048576 + 2 * 64 * 4096));
}
