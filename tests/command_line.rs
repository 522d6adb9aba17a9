//! The program as scripts use it: exit statuses, messages, and the shapes of what it prints.

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::io::Write as _;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use whimbrel_migration::metrics::METRICS;

fn whimbrel(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_whimbrel"));
    command.args(arguments);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What the program says on standard error before it ends with status 2, having made nothing.
fn refused(arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = whimbrel(arguments).current_dir(folder.path()).assert().code(2).get_output().clone();
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none(), "{arguments:?} left something behind");
    text(&output.stderr)
}

#[test]
fn bad_input_is_one_message_and_status_2() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let size = file("size.toml", "trials = 1\n[guest]\nram = \"256 MB\"\n");
    let none = file("none.toml", "trials = 0\n");
    let huge = file("huge.toml", "[guest]\nram = \"8000000 GiB\"\n");
    for (arguments, parts) in [
        (&["run", "/nowhere/x.toml"][..], &["/nowhere/x.toml", "can't be read"][..]),
        (&["run", &size], &[&size, ":3: guest.ram", "256 MiB"]),
        (&["run", &none], &[&none, ":1: trials", "from 1"]),
        (&["run", &huge], &[&huge, ":2: guest.ram", "this host's memory", "at most"]),
        (&["--set", "guest.ram=0 MiB"], &["quickstart", "guest.ram", "above zero"]),
        (&["--set", "memory.preset=qemo"], &["did you mean \"qemu\""]),
        (&["--set", "guest.machine=thraed"], &["did you mean \"thread\""]),
        (&["--set", "ram"], &["KEY=VALUE"]),
        (&["explain", "downtimens"], &["did you mean \"downtime_ns\""]),
        (&["nbd", "serve", "/nowhere/image", "--listen", "127.0.0.1:0"], &["/nowhere/image", "exists"]),
        (&["man", "rnu"], &["did you mean \"run\""]),
    ] {
        let message = refused(arguments);
        assert_eq!(message.lines().count(), 1, "{message}");
        for part in parts {
            assert!(message.contains(part), "{arguments:?}: {message} lacks {part:?}");
        }
    }
    for arguments in [&["list", "nothing"][..], &["run", "--nope"], &["host"], &["--source", "127.0.0.1:1"], &["rnu"]] {
        assert!(refused(arguments).contains("error"), "{arguments:?}");
    }
}

#[test]
fn a_run_is_not_written_over_another() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("trials.jsonl"), "").unwrap();
    let message = refused(&["--out", &folder.path().display().to_string()]);
    assert!(message.contains("holds a run already"), "{message}");
}

#[test]
fn every_family_is_listed_for_people_and_for_scripts() {
    for (kind, member) in [
        ("workloads", "memory-intensive"),
        ("machines", "thread"),
        ("schedules", "pre-copy"),
        ("selections", "peek"),
        ("encodings", "zero"),
        ("stop-rules", "downtime-budget"),
        ("throttles", "none"),
        ("presets", "qemu"),
        ("disk", "three-phase"),
        ("meters", "null"),
    ] {
        let output = whimbrel(&["list", kind, "--json"]).assert().success().get_output().clone();
        let members: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        assert!(members.iter().any(|m| m["name"] == member), "{kind} lacks {member}");
        for each in &members {
            let keys: Vec<&String> = each.as_object().unwrap().keys().collect();
            assert_eq!(keys, ["name", "parameters", "source", "summary"], "{kind}");
            for parameter in each["parameters"].as_array().unwrap() {
                assert!(parameter["name"].is_string() && parameter["kind"].is_string(), "{parameter}");
            }
        }
        let table = text(&whimbrel(&["list", kind]).assert().success().get_output().stdout);
        assert!(table.contains(member), "{kind}: {table}");
    }
}

#[test]
fn every_field_of_a_row_is_explained() {
    let all = text(&whimbrel(&["explain"]).assert().success().get_output().stdout);
    for metric in METRICS {
        assert!(all.contains(metric.name), "{}", metric.name);
    }
    // One process a field would take long: objects explain all that is inside them.
    let objects: Vec<&str> = METRICS.iter().filter_map(|m| m.name.split('.').next()).collect();
    let explained = |name: &str| text(&whimbrel(&["explain", name]).assert().success().get_output().stdout);
    for name in ["downtime_ns", "bytes", "rounds", "memory_faults", "energy.why"] {
        let entry = explained(name);
        assert!(entry.starts_with(name) && entry.contains("unit:") && entry.contains("clock:"), "{entry}");
    }
    assert!(objects.contains(&"verify"));
    assert!(explained("downtime_ns").contains("paused to resumed"));
    assert!(explained("downtime_parts_ns").contains("downtime_parts_ns.hand_over"));
}

#[test]
fn completions_and_the_man_page_know_every_command() {
    let commands = ["run", "host", "list", "explain", "doctor", "nbd", "energy", "completions", "man"];
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&whimbrel(&["completions", shell]).assert().success().get_output().stdout);
        assert!(commands.iter().all(|c| script.contains(c)), "{shell}");
    }
    let page = text(&whimbrel(&["man"]).assert().success().get_output().stdout);
    assert!(page.starts_with(".ie") || page.contains(".TH"), "{page}");
    assert!(commands.iter().all(|c| page.contains(c)));
    assert!(text(&whimbrel(&["man", "run"]).assert().success().get_output().stdout).contains("KEY=VALUE"));
}

#[test]
fn the_doctor_says_whether_a_guest_can_migrate() {
    let output = whimbrel(&["doctor", "--json"]).assert().get_output().clone();
    let diagnosis: Value = serde_json::from_slice(&output.stdout).unwrap();
    let can = diagnosis["can_migrate"].as_bool().unwrap();
    assert_eq!(output.status.code(), Some(if can { 0 } else { 1 }));
    for finding in diagnosis["findings"].as_array().unwrap() {
        assert!(finding["ok"] == true || finding["remedy"] != "", "{finding} has no remedy");
    }
}

/// A server that has said that it serves.
struct Serving {
    child: Child,
    address: String,
}

fn serve(image: &Path, listen: &str) -> Serving {
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_whimbrel"))
        .args(["nbd", "serve", &image.display().to_string(), "--listen", listen])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim_end().rsplit(' ').next().unwrap().to_owned();
    Serving { child, address }
}

impl Serving {
    fn end(mut self, signal: rustix::process::Signal) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
        self.child.wait().unwrap().code()
    }
}

#[test]
fn an_image_is_served_until_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.raw");
    fs::write(&image, vec![7; 1 << 20]).unwrap();
    let over_tcp = serve(&image, "127.0.0.1:0");
    let client =
        std::process::Command::new("nbdinfo").arg("--size").arg(format!("nbd://{}", over_tcp.address)).output();
    match client {
        Ok(output) => assert_eq!(text(&output.stdout).trim(), (1 << 20).to_string(), "{}", text(&output.stderr)),
        Err(error) => {
            drop(writeln!(std::io::stderr(), "SKIPPED: an NBD client's view of the export: nbdinfo: {error}"))
        }
    }
    assert_eq!(over_tcp.end(rustix::process::Signal::TERM), Some(0));
    let socket = folder.path().join("socket");
    let over_unix = serve(&image, &format!("unix:{}", socket.display()));
    assert!(socket.exists());
    assert_eq!(over_unix.end(rustix::process::Signal::INT), Some(0));
    assert!(!socket.exists(), "the socket is gone with its server");
}

#[test]
fn an_address_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.raw");
    fs::write(&image, [0; 512]).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let image = image.display().to_string();
    let message = refused(&["nbd", "serve", &image, "--listen", &address]);
    assert!(message.contains(&address) && message.contains("in use"), "{message}");
    let message = refused(&["nbd", "serve", &image, "--listen", "nonsense"]);
    assert!(message.contains("nonsense") && message.contains("HOST:PORT"), "{message}");
}
