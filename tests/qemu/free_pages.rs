//! A Linux guest that moves without what its kernel calls free, by ours and by QEMU's own, and the judge that leaves that out
//! and nothing else.

use super::{available, nothing_is_left, run};
use serde_json::Value;
use std::fs;

#[test]
fn a_linux_guest_moves_whole_without_the_pages_that_its_kernel_calls_free() {
    if !available("a_linux_guest_without_free_pages") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let guest = "name = \"soft\"\nquestion = \"What of Linux is free?\"\n[guest]\nmachine = \"qemu\"\nram = \"192 MiB\"\n\
                 vcpus = 2\nsettle = \"200 ms\"\ntrips = 2\n";
    let workload = "[workload]\nuse = \"mix\"\nparts = [{ use = \"idle-desktop\", speed = 1000 }, \
                    { use = \"memory-intensive\", rate = \"4 MiB/s\" }]\n";
    let memory = "[memory]\nselect = \"soft\"\nask_every = 8192\n[link]\nrate = \"1600 Mbit/s\"\n\
                  [vary]\n\"memory.schedule\" = [\"pre-copy\", \"post-copy\"]\n";
    let (output, rows) = run(folder.path(), &format!("{guest}{workload}{memory}"), None);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), rows.len()), (Some(0), 4), "{said}\n{rows:#?}");
    for row in &rows {
        assert_eq!((&row["outcome"], &row["verify"]["memory"]), (&"completed".into(), &"equal".into()), "{row:#}");
        let (skipped, pages) = (row["pages"]["skipped"].as_u64().unwrap(), (192 << 20) / 4096);
        assert!((pages / 10..pages).contains(&skipped), "{skipped} of {pages} pages were left out");
        let scope = row["verify"]["scope"].as_str().unwrap();
        assert!(scope.contains("that were free at the pause and not sent are left out"), "{scope}");
    }
    let events = fs::read_to_string(folder.path().join("run/events.jsonl")).unwrap();
    let events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let told: Vec<Value> = events.filter(|event| event["what"] == "hinted").collect();
    assert!(told.len() >= rows.len(), "{} answers", told.len());
    for event in &told {
        let of = |name: &str| event["types"][format!("{name}_pages")].as_u64().unwrap();
        let all: u64 = event["types"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
        assert_eq!(all, (192 << 20) / 4096, "every page has a type: {event}");
        // The workload's own freed pages are in use to the kernel.
        assert!(of("free") > 0 && event["free_pages"].as_u64() >= Some(of("free")), "{event}");
        assert!(of("slab") > 0 && of("page_table") > 0 && of("anonymous") > 0 && of("dirty_cache") > 0, "{event}");
    }
    nothing_is_left(folder.path());
}

#[test]
fn qemus_own_precopy_leaves_out_what_the_guest_hints_and_the_guest_has_it_back() {
    if !available("qemus_own_precopy_leaves_out") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // No multiple of 256 KiB: of such a guest QEMU before 9.0 loses pages under TCG.
    let text = "name = \"hinted\"\nquestion = \"What is not sent?\"\n[guest]\nmachine = \"qemu\"\nram = \"196480 KiB\"\n\
                settle = \"200 ms\"\ntrips = 2\n[workload]\nuse = \"idle\"\n[link]\nrate = \"400 Mbit/s\"\n\
                [memory]\npreset = \"qemu:precopy\"\n[vary]\n\"memory.free_page_hints\" = [false, true]\n";
    let (output, rows) = run(folder.path(), text, None);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), rows.len()), (Some(0), 4), "{said}\n{rows:#?}");
    for row in &rows {
        assert_eq!((&row["outcome"], &row["verify"]["memory"]), (&"completed".into(), &"equal".into()), "{row:#}");
    }
    let raw = |row: &Value| row["pages"]["raw"].as_u64().unwrap();
    for trip in 0..2 {
        // What the kernel unpacked its init from is free, and no zeroes. A guest whose pages were not given back has none to
        // hint on its way home.
        let (all, hinted) = (raw(&rows[trip]), raw(&rows[2 + trip]));
        assert!(hinted + 512 < all, "trip {trip}: {hinted} pages with hints, {all} without");
    }
    nothing_is_left(folder.path());
}
