//! Whole runs of the program: two host processes, real memory and disks, real sockets.

use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// A guest so small that a run of many cells takes seconds, with more disk than memory. Its workload is paced, so that
/// the twin, which doesn't wait, has little to repeat.
const SMALL: &str = r#"
    name = "small"
    question = "Does everything move?"
    [guest]
    ram = "16 MiB"
    vcpus = 2
    disk = "48 MiB"
    filled = "24 MiB"
    settle = "100 ms"
    [link]
    rate = "400 Mbit/s"
"#;

/// Writes to memory and to the disk, at rates that the link can follow.
const PACED: &str = r#"
    [workload]
    use = "mix"
    parts = [{ use = "disk-write", rate = "2 MiB/s" }, { use = "memory-intensive", rate = "4 MiB/s" }]
"#;

fn whimbrel(folder: &Path, experiment: &str, more: &[&str]) -> Command {
    let file = folder.join("x.toml");
    fs::write(&file, experiment).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_whimbrel"));
    command.arg("run").arg(&file).arg("--out").arg(folder.join("run")).args(more);
    command
}

fn run(folder: &Path, experiment: &str, more: &[&str]) -> (Output, Vec<Value>) {
    let output = whimbrel(folder, experiment, more).output().unwrap();
    let kept = fs::read_to_string(folder.join("run/trials.jsonl"));
    let kept = kept.unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    (output, kept.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

fn equal(rows: &[Value]) {
    for row in rows {
        let checks = [&row["verify"]["memory"], &row["verify"]["disk"]];
        assert!(row["outcome"] == "completed" && checks.iter().all(|c| *c == "equal"), "{row:#}");
    }
}

#[test]
fn every_schedule_moves_every_disk_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let vary = "[vary]\n\"memory.schedule\" = [\"stop-and-copy\", \"pre-copy\", \"post-copy\", \"hybrid\"]\n\
                \"disk.strategy\" = [\"freeze-and-copy\", \"three-phase\"]";
    let (output, rows) = run(folder.path(), &format!("{SMALL}{PACED}{vary}"), &["--json"]);
    equal(&rows);
    assert_eq!((output.status.code(), rows.len()), (Some(0), 8));
    // Standard output is the rows and nothing else.
    let printed: Vec<Value> =
        output.stdout.split(|b| *b == b'\n').filter_map(|l| serde_json::from_slice(l).ok()).collect();
    assert_eq!(printed, rows);
    for row in &rows {
        let parts: u64 = row["downtime_parts_ns"].as_object().unwrap().values().map(|p| p.as_u64().unwrap()).sum();
        assert_eq!(Some(parts), row["downtime_ns"].as_u64(), "{row:#}");
        let bytes = &row["bytes"];
        let split = ["memory_first", "memory_again", "disk_first", "disk_again", "control"];
        let split: u64 = split.iter().map(|k| bytes[k].as_u64().unwrap()).sum();
        assert_eq!(Some(split), bytes["total"].as_u64(), "{row:#}");
        assert!(row["total_ns"].as_u64() >= row["eviction_ns"].as_u64(), "{row:#}");
    }
}

#[test]
fn a_run_leaves_every_file_and_its_experiment_can_be_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let (output, rows) = run(folder.path(), &format!("{SMALL}{PACED}"), &["--set", "trials=2"]);
    equal(&rows);
    assert_eq!((output.status.code(), rows.len()), (Some(0), 2));
    let read = |name: &str| fs::read_to_string(folder.path().join("run").join(name)).unwrap();
    let summary: Value = serde_json::from_str(&read("summary.json")).unwrap();
    assert_eq!(summary["cells"][0]["metrics"]["downtime_ns"]["n"], 2);
    for name in ["environment.json", "data-dictionary.json"] {
        serde_json::from_str::<Value>(&read(name)).unwrap();
    }
    assert!(read("events.jsonl").lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    assert!(read("report.html").contains("Does everything move?"));
    let again = tempfile::tempdir().unwrap();
    let (_, rows_again) = run(again.path(), &read("experiment.toml"), &[]);
    let names = |rows: &[Value]| rows.iter().map(|r| (r["cell"].clone(), r["seed"].clone())).collect::<Vec<_>>();
    assert_eq!(names(&rows_again), names(&rows));
}

#[test]
fn there_and_back_moves_only_what_is_fresh() {
    let folder = tempfile::tempdir().unwrap();
    let (_, rows) = run(folder.path(), SMALL, &["--set", "guest.trips=2", "--set", "workload.use=idle"]);
    equal(&rows);
    assert_eq!(rows.len(), 2);
    // An idle guest writes no block: on the way back the disk is there already.
    assert_eq!(rows[1]["bytes"]["disk_first"], 0, "{:#}", rows[1]);
}

#[test]
fn the_check_can_be_left_out_and_the_row_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--set", "verify=false", "--set", "workload.use=idle"];
    let (output, rows) = run(folder.path(), SMALL, &more);
    let verify = &rows[0]["verify"];
    assert_eq!(output.status.code(), Some(0), "{:#}", rows[0]);
    assert!(verify["memory"] == "skipped" && verify["disk"] == "skipped", "{verify}");
}

#[test]
fn ctrl_c_keeps_what_is_finished_and_ends_the_children() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = whimbrel(folder.path(), &format!("{SMALL}{PACED}"), &["--json", "--set", "trials=1000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut rows = BufReader::new(child.stdout.take().unwrap()).lines();
    let first: Value = serde_json::from_str(&rows.next().unwrap().unwrap()).unwrap();
    let agents = children(&child);
    assert_eq!(agents.len(), 2, "two hosts");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    let printed = 1 + rows.count();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("interrupted") && message.contains("results: "), "{message}");
    let kept = fs::read_to_string(folder.path().join("run/trials.jsonl")).unwrap();
    assert_eq!((kept.lines().count(), &first["trial"]), (printed, &Value::from(0)));
    assert!(folder.path().join("run/report.html").exists());
    for agent in agents {
        assert!(!Path::new("/proc").join(&agent).join("exe").exists(), "the agent {agent} runs on");
    }
}

/// The processes that a process has started.
fn children(parent: &Child) -> Vec<String> {
    let file = format!("/proc/{0}/task/{0}/children", parent.id());
    fs::read_to_string(file).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

#[test]
fn what_a_guest_cannot_have_is_refused_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let output = whimbrel(folder.path(), SMALL, &["--set", "workload.working_set=64 MiB"]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("workload.working_set"), "{message}");
    assert!(!folder.path().join("run").exists());
}
