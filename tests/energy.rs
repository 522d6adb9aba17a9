//! The energy commands on trees that look like `/sys`, with counters that move as a test moves them.

#[path = "energy/commands.rs"]
mod commands;
#[path = "energy/hosts.rs"]
mod hosts;
mod support;
#[path = "energy/tree.rs"]
mod tree;

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use tree::{Tree, whimbrel};

fn read(arguments: &[&str]) -> Value {
    let output = whimbrel(&[&["energy", "read", "--json", "--for", "300 ms"], arguments].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_counter_that_moves_and_wraps_is_read_in_whole_steps() {
    let tree = Tree::new();
    // It wraps within a few steps of the test's.
    tree.package(0, 262_143_328_850 - 300_000, 262_143_328_850);
    let moving = tree.keep_moving(100_000);
    let reading = read(&["--energy-root", tree.path()]);
    let steps = moving.stop().steps;
    assert_eq!(
        (&reading["kind"], &reading["why"], &reading["meter"]),
        (&"measured".into(), &Value::Null, &"powercap".into())
    );
    let uj = reading["domains"]["package-0"].as_u64().unwrap();
    assert!(uj > 0 && uj.is_multiple_of(100_000) && uj <= steps * 100_000, "{uj} uJ of {steps} steps");
    assert!(reading["window_ns"].as_u64().unwrap() >= 300_000_000);
}

#[test]
fn what_never_moves_is_null_with_its_reason() {
    let tree = Tree::new();
    tree.package(0, 12_345, 262_143_328_850);
    let reading = read(&["--energy-root", tree.path()]);
    assert_eq!((&reading["kind"], &reading["domains"]), (&Value::Null, &serde_json::json!({})));
    let why = reading["why"].as_str().unwrap();
    assert!(why.contains("package-0: it never moved") && why.contains("12345"), "{why}");
    let empty = Tree::new();
    let why = read(&["--energy-root", empty.path()])["why"].as_str().unwrap().to_owned();
    assert!(why.contains("class/powercap"), "{why}");
}

#[test]
fn a_wall_meter_is_a_program() {
    let line = "n=0; while :; do n=$((n+1)); echo $n.5; sleep 0.01; done";
    let reading = read(&["--meter", "command", "--meter-command", line]);
    let uj = reading["domains"]["wall"].as_u64().unwrap();
    assert!(uj > 0 && uj.is_multiple_of(1_000_000), "{uj}");
}

#[test]
fn a_program_and_another_meter_are_not_both_the_meter() {
    let reading = read(&["--meter", "powercap", "--meter-command", "echo 1"]);
    assert!(reading["why"].as_str().unwrap().contains("give one of them"), "{reading}");
}

#[test]
fn a_program_that_fails_is_not_replaced_by_another_meter() {
    let tree = Tree::new();
    tree.package(0, 0, 262_143_328_850);
    let moving = tree.keep_moving(100_000);
    let reading = read(&["--energy-root", tree.path(), "--meter-command", "exit 1"]);
    moving.stop();
    assert_eq!(reading["kind"], Value::Null, "{reading}");
    let why = reading["why"].as_str().unwrap();
    assert!(why.starts_with("command: ") && !why.contains("powercap"), "{why}");
}

#[test]
fn guests_that_move_at_once_have_no_energy_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("two.toml"), folder.path().join("out"));
    let text = "[guest]\nram = \"16 MiB\"\ncount = 2\n[workload]\nuse = \"idle\"\n[energy]\nmodel = \"defaults\"\n";
    std::fs::write(&file, text).unwrap();
    let output = whimbrel(&["run", file.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows = std::fs::read_to_string(out.join("trials.jsonl")).unwrap();
    let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 2);
    for row in rows {
        let energy = &row["energy"];
        assert_eq!((&energy["kind"], &energy["gross_uj"]), (&Value::Null, &Value::Null), "{energy}");
        assert!(energy["why"].as_str().unwrap().contains("2 guests move at once"), "{energy}");
    }
}

#[test]
fn watching_shows_power_or_says_why_not() {
    let tree = Tree::new();
    tree.package(0, 0, 262_143_328_850);
    let moving = tree.keep_moving(100_000);
    let watch = ["energy", "watch", "--every", "20 ms", "--for", "200 ms", "--energy-root", tree.path()];
    let output = whimbrel(&watch);
    moving.stop();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && shown.lines().any(|l| l.starts_with("package-0 ") && l.ends_with(" W")),
        "{shown}"
    );
    let output = whimbrel(&watch);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stdout).unwrap().contains("never moved"));
}

#[test]
fn watching_ends_with_who_looks_or_when_interrupted() {
    let tree = Tree::new();
    tree.package(0, 0, 262_143_328_850);
    let moving = tree.keep_moving(100_000);
    let start = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_whimbrel"));
        command.args(["energy", "watch", "--every", "20 ms", "--energy-root", tree.path()]);
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert!(line.starts_with("package-0 ") && line.ends_with(" W\n"), "{line}");
        (child, output)
    };
    let (mut child, output) = start();
    drop(output);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let (mut child, mut output) = start();
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    std::io::copy(&mut output, &mut std::io::sink()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    moving.stop();
}

#[test]
fn an_interrupted_reading_leaves_no_program_behind() {
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("told");
    rustix::fs::mkfifoat(rustix::fs::CWD, &told, rustix::fs::Mode::RWXU).unwrap();
    // It says who it is, and then a figure that it never changes.
    let program = format!("echo $$ > '{}'; echo 1; exec sleep 1000", told.display());
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_whimbrel"));
    command.args(["energy", "read", "--for", "1000 s", "--meter-command", &program]);
    let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    let of_program: i32 = std::fs::read_to_string(&told).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let program = rustix::process::Pid::from_raw(of_program).unwrap();
    assert_eq!(rustix::process::test_kill_process(program), Err(rustix::io::Errno::SRCH));
}

/// Who may not read the counters is told which file, how, and why. Root may read all, so this becomes nobody for it.
#[test]
fn who_may_not_read_is_told_how_and_why() {
    let tree = Tree::new();
    tree.package(0, 0, 262_143_328_850);
    let (folder, zone) = (std::path::Path::new(tree.path()), "class/powercap/intel-rapl:0/energy_uj");
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(folder, 0o755);
    mode(&folder.join(zone), 0o400);
    // Where the program lies, nobody may not come: a copy beside the counters.
    let program = folder.join("whimbrel");
    std::fs::copy(env!("CARGO_BIN_EXE_whimbrel"), &program).unwrap();
    let mut command = std::process::Command::new(program);
    command.args(["energy", "read", "--for", "20 ms", "--json", "--energy-root", tree.path()]);
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    } else {
        mode(&folder.join(zone), 0o000);
    }
    let output = command.output().unwrap();
    let reading: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(reading["kind"], Value::Null);
    for part in [zone, "permission denied", "CVE-2020-8694", "run the agent as root"] {
        assert!(reading["why"].as_str().unwrap().contains(part), "{reading} lacks {part}");
    }
}

#[test]
fn mistakes_are_named() {
    for (arguments, parts) in [
        (&["--meter", "powercpa"][..], &["--meter", "did you mean \"powercap\""][..]),
        (&["--energy-root", "/no/such/folder"], &["--energy-root /no/such/folder", "class/powercap"]),
        (&["--for", "2 parsecs"], &["2 parsecs", "2 s"]),
        (&["--for", "0 s"], &["--for", "above zero"]),
    ] {
        let output = whimbrel(&[&["energy", "read"], arguments].concat());
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
}

/// A migration of a small guest, its power measured in all four stretches.
const MOVE: &str = "trials = 1\nverify = false\n[guest]\nram = \"16 MiB\"\ntrips = 2\nsettle = \"50 ms\"\n[workload]\nuse = \"memory-intensive\"\n\
    rate = \"4 MiB/s\"\n[energy]\nidle = \"100 ms\"\ncontrol = \"500 ms\"\nafter = \"150 ms\"\n";

fn rows(arguments: &[&str]) -> (Vec<Value>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("move.toml");
    std::fs::write(&file, MOVE).unwrap();
    let out = folder.path().join("out");
    let run = ["run", file.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let output = whimbrel(&[&run, arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows = std::fs::read_to_string(out.join("trials.jsonl")).unwrap();
    (rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), folder)
}

fn report(folder: &tempfile::TempDir) -> String {
    std::fs::read_to_string(folder.path().join("out/report.html")).unwrap()
}

#[test]
fn both_hosts_of_one_package_are_measured_as_a_sum() {
    let tree = Tree::new();
    tree.package(0, 262_143_328_850 - 3_000_000, 262_143_328_850);
    let moving = tree.keep_moving(100_000);
    let (rows, folder) = rows(&["--energy-root", tree.path()]);
    moving.stop();
    assert_eq!(rows.len(), 2);
    for row in &rows {
        let energy = &row["energy"];
        assert_eq!((&energy["kind"], &energy["shared_package"]), (&"measured".into(), &true.into()), "{energy}");
        assert_eq!((&energy["source_uj"], &energy["destination_uj"]), (&Value::Null, &Value::Null));
        assert!(row["reasons"]["energy.source_uj"].as_str().unwrap().contains("one package"));
        assert_eq!(energy["window_ns"], row["total_ns"]);
        for field in ["gross_uj", "idle_w", "workload_w", "after_w", "overhead_per_gib_uj"] {
            assert!(energy[field].is_number(), "{field} of {energy}: {}", row["reasons"]);
        }
        assert_eq!(energy["domains"], serde_json::json!(["source:powercap/package-0"]));
    }
    let report = report(&folder);
    assert!(report.contains("Energy: measured in 2 of 2 rows") && report.contains("<title>move</title>"));
}

#[test]
fn a_model_is_called_one_in_every_row_and_in_the_title() {
    let empty = Tree::new();
    let root = ["--energy-root", empty.path()];
    let (none, folder) = rows(&root);
    assert_eq!((&none[0]["energy"]["kind"], &none[0]["energy"]["gross_uj"]), (&Value::Null, &Value::Null));
    assert!(none[0]["energy"]["why"].as_str().unwrap().contains("class/powercap"));
    assert!(report(&folder).contains("No energy in any row: command: "));
    // A batch of ten moves, there and back, is one sample.
    let batch = ["--set", "energy.model=defaults", "--set", "guest.trips=10", "--set", "energy.after=100 ms"];
    let (modelled, folder) = rows(&[&root[..], &batch].concat());
    assert_eq!(modelled.len(), 10);
    for row in &modelled {
        let energy = &row["energy"];
        assert_eq!((&energy["kind"], &energy["shared_package"]), (&"modelled".into(), &false.into()));
        assert!(energy["why"].as_str().unwrap().starts_with("modelled at 2.76 W a core"), "{energy}");
        let sum = energy["source_uj"].as_u64().unwrap() + energy["destination_uj"].as_u64().unwrap();
        assert!(energy["gross_uj"].as_u64().unwrap().abs_diff(sum) <= 1);
    }
    assert!(report(&folder).contains("<title>move (energy modelled, not measured)</title>"));
    let summary: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.path().join("out/summary.json")).unwrap()).unwrap();
    assert_eq!(summary["energy_kind"], "modelled");
    // All trips of the trial are one sample.
    assert_eq!(summary["cells"][0]["metrics"]["energy.gross_uj"]["n"], 1);
    assert_eq!(summary["cells"][0]["metrics"]["total_ns"]["n"], 10);
}
