//! A Linux guest of which pages are copies of disk blocks: they go by name, by whatever frames they lie in.

use super::{available, nothing_is_left, run};
use serde_json::Value;
use std::fs;

#[test]
fn a_linux_guests_copies_of_disk_blocks_go_by_name_and_come_whole() {
    if !available("a_linux_guests_copies_of_disk_blocks") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let guest = "name = \"cached\"\nquestion = \"What does the disk have already?\"\n[guest]\nmachine = \"qemu\"\n\
                 ram = \"192 MiB\"\ndisk = \"64 MiB\"\nfilled = \"48 MiB\"\nbase = \"shared\"\nsettle = \"200 ms\"\ntrips = 2\n";
    let workload = "[workload]\nuse = \"mix\"\ncontent = { cached = 0.5, random = 0.5 }\nparts = [\
                    { use = \"memory-intensive\", rate = \"4 MiB/s\" }, { use = \"disk-write\", rate = \"1 MiB/s\" }]\n";
    let memory = "[memory]\npreset = \"jo2013\"\n[disk]\npreset = \"luo2008\"\n[coordinator]\nuse = \"disk-first\"\n\
                  [link]\nrate = \"800 Mbit/s\"\n";
    let text = format!("{guest}vcpus = 2\n{workload}{memory}");
    let (output, rows) = run(folder.path(), &text, None);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), rows.len()), (Some(0), 2), "{said}\n{rows:#?}");
    for row in &rows {
        let verify = (&row["verify"]["memory"], &row["verify"]["disk"]);
        assert_eq!((&row["outcome"], verify), (&"completed".into(), (&"equal".into(), &"equal".into())), "{row:#}");
        let (by_name, pages) = (row["pages"]["reference"].as_u64().unwrap(), (192 << 20) / 4096);
        assert!((pages / 8..pages / 2).contains(&by_name), "{by_name} of {pages} pages went by name");
    }
    // Of its free pages it isn't asked: whatever its kernel does with those is all the same.
    let events = fs::read_to_string(folder.path().join("run/events.jsonl")).unwrap();
    let events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let told: Vec<Value> = events.filter(|event| event["what"] == "hinted").collect();
    assert!(told.len() >= rows.len(), "{} answers", told.len());
    for event in &told {
        assert!(event["backed_pages"].as_u64() > Some(0), "{event}");
        assert!(event["free_pages"].is_null() && event["types"].is_null(), "{event}");
    }
    nothing_is_left(folder.path());
}
