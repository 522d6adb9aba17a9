//! Whole runs of the program with guests under QEMU: a real Linux, moved by our strategies.
//!
//! Without QEMU or the guest's kernel they are skipped, loudly.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use whimbrel_machine::machines::qemu::{self, kernel::Kernel};

/// The smallest guest that leaves the agent some memory.
const SMALL: &str = r#"
    name = "small"
    question = "Does a real guest move?"
    [guest]
    machine = "qemu"
    ram = "144 MiB"
    settle = "200 ms"
"#;

const PACED: &str = r#"
    [workload]
    use = "mix"
    parts = [{ use = "disk-write", rate = "1 MiB/s" }, { use = "memory-intensive", rate = "4 MiB/s" }]
"#;

/// Whether guests can be had; if not, it is said.
fn available(test: &str) -> bool {
    let found = qemu::version().and_then(|_| Kernel::find_or_fetch(&|news| eprintln!("{news}")));
    if let Err(error) = &found {
        eprintln!("SKIPPED: {test}: {error}");
    }
    found.is_ok()
}

fn run(folder: &Path, experiment: &str, path: Option<&Path>) -> (Output, Vec<Value>) {
    let file = folder.join("x.toml");
    fs::write(&file, experiment).unwrap();
    let temporary = folder.join("tmp");
    fs::create_dir_all(&temporary).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_whimbrel"));
    command.arg("run").arg(&file).arg("--out").arg(folder.join("run")).env("TMPDIR", &temporary);
    if let Some(path) = path {
        command.env("PATH", path);
    }
    let output = command.output().unwrap();
    let kept = fs::read_to_string(folder.join("run/trials.jsonl")).unwrap_or_default();
    (output, kept.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// Nothing is left behind: no process that knows the folder, and no file of a guest.
fn nothing_is_left(folder: &Path) {
    let named = folder.display().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("cmdline"));
    let left: Vec<PathBuf> =
        processes.filter(|path| fs::read_to_string(path).is_ok_and(|c| c.contains(&named))).collect();
    assert!(left.is_empty(), "{left:?}");
    let files: Vec<_> = fs::read_dir(folder.join("tmp")).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(files.is_empty(), "{files:?}");
}

#[test]
fn a_linux_guest_with_two_vcpus_and_a_disk_moves_there_and_back_whole() {
    if !available("a_linux_guest") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let guest = "vcpus = 2\ndisk = \"32 MiB\"\nfilled = \"16 MiB\"\ntrips = 2\n";
    let memory = "[memory]\nschedule = \"pre-copy\"\n";
    let (output, rows) = run(folder.path(), &format!("{SMALL}{guest}{PACED}{memory}"), None);
    assert_eq!((output.status.code(), rows.len()), (Some(0), 2), "{}", String::from_utf8_lossy(&output.stderr));
    for row in &rows {
        assert_eq!((&row["verify"]["memory"], &row["verify"]["disk"]), (&"equal".into(), &"equal".into()), "{row:#}");
        assert!(["tcg", "kvm"].contains(&row["accelerator"].as_str().unwrap()), "{row:#}");
        assert!(row["verify"]["operations"].as_array().unwrap().iter().all(|count| count.as_u64() > Some(0)));
        assert!(row["downtime_ns"].as_u64() > Some(0) && row["guest_gap_ns"].is_u64(), "{row:#}");
    }
    nothing_is_left(folder.path());
}

#[test]
fn a_linux_guest_runs_on_while_its_memory_and_disk_follow() {
    if !available("a_linux_guest_runs_on") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let guest = "disk = \"16 MiB\"\nfilled = \"16 MiB\"\n";
    let vary = "[link]\nrate = \"800 Mbit/s\"\n[vary]\n\"memory.schedule\" = [\"post-copy\", \"hybrid\"]\n";
    let (output, rows) = run(folder.path(), &format!("{SMALL}{guest}{PACED}{vary}"), None);
    assert_eq!((output.status.code(), rows.len()), (Some(0), 2), "{}", String::from_utf8_lossy(&output.stderr));
    for row in &rows {
        assert_eq!((&row["verify"]["memory"], &row["verify"]["disk"]), (&"equal".into(), &"equal".into()), "{row:#}");
    }
    assert!(rows[0]["memory_faults"]["count"].as_u64() > Some(10), "{:#}", rows[0]);
    nothing_is_left(folder.path());
}

#[test]
fn what_a_qemu_guest_cannot_have_is_refused_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let small = SMALL.replace("144 MiB", "64 MiB");
    let throttle = format!("{SMALL}[memory]\npreset = \"auto-converge\"\n");
    for (experiment, needle) in [(small, "at least \"128 MiB\""), (throttle, "can't be slowed")] {
        let (output, rows) = run(folder.path(), &experiment, None);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(needle) && rows.is_empty(), "{said}");
    }
}

#[test]
fn a_qemu_that_preloads_nothing_or_is_missing_is_told_of() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    if !available("a_qemu_that_preloads_nothing") {
        return;
    }
    let tools = tempfile::tempdir().unwrap();
    let real =
        Command::new("sh").args(["-c", "command -v qemu-system-x86_64; command -v ldd; command -v bash"]).output();
    let real = String::from_utf8(real.unwrap().stdout).unwrap();
    let [qemu, ldd, bash] = real.lines().collect::<Vec<_>>()[..] else { panic!("{real}") };
    for (name, target) in [("ldd", ldd), ("bash", bash)] {
        symlink(target, tools.path().join(name)).unwrap();
    }
    let without = |folder: &Path, needle: &str| {
        let (output, rows) = run(folder, SMALL, Some(tools.path()));
        let reason = rows[0]["reason"].as_str().unwrap_or_default().to_owned();
        assert!(output.status.code() == Some(1) && reason.contains(needle), "{reason}");
        nothing_is_left(folder);
    };
    without(tempfile::tempdir().unwrap().path(), "qemu-system-x86_64 can't be started");
    let wrapper = tools.path().join("qemu-system-x86_64");
    fs::write(&wrapper, format!("#!{bash}\nunset LD_PRELOAD\nexec {qemu} \"$@\"\n")).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    without(tempfile::tempdir().unwrap().path(), "preloaded into QEMU did not speak");
    fs::write(&wrapper, format!("#!{bash}\nexec {qemu} \"$@\" -no-such-option\n")).unwrap();
    without(tempfile::tempdir().unwrap().path(), "-no-such-option");
}
