//! What goes wrong with a QEMU: killed, its monitor closed, a library that isn't preloaded, a sandbox, a device state that
//! can't be taken up. The guest goes on at the source or is lost, is never on both sides, and nothing is left behind.

use super::{SMALL, available, nothing_is_left, run};
use serde_json::Value;
use std::fs;
use std::io::{self, BufRead, BufReader, Lines, Write};
use std::net::Shutdown;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// The numbers of the QEMUs that know `folder`, and whether each waits for a guest to arrive.
fn qemus(folder: &Path) -> Vec<(i32, bool)> {
    let named = folder.display().to_string();
    let numbers = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let found = numbers.filter_map(|number| {
        let line = fs::read_to_string(format!("/proc/{number}/cmdline")).ok()?;
        let words: Vec<&str> = line.split('\0').collect();
        let is_qemu = words[0].ends_with("qemu-system-x86_64") && line.contains(&named);
        is_qemu.then(|| (number, words.contains(&"-incoming")))
    });
    found.collect()
}

/// A run on a slow link that pushes pages by now, and what it says from then on.
fn pushing(folder: &Path, path: Option<&Path>) -> (Child, Lines<BufReader<ChildStderr>>) {
    fs::write(folder.join("x.toml"), format!("{SMALL}[link]\nrate = \"200 Mbit/s\"\n")).unwrap();
    fs::create_dir_all(folder.join("tmp")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_whimbrel"));
    command.arg("run").arg(folder.join("x.toml")).arg("--out").arg(folder.join("run"));
    if let Some(path) = path {
        command.env("PATH", path);
    }
    let mut running: Child = command.env("TMPDIR", folder.join("tmp")).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(running.stderr.take().unwrap()).lines();
    let mut told = Vec::new();
    assert!(
        lines.by_ref().any(|line| {
            told.push(line.unwrap());
            told.last().is_some_and(|line| line.contains("push  round 0"))
        }),
        "{told:#?}"
    );
    (running, lines)
}

/// Such a run, to which `harm` is done while pages are pushed; its row.
fn run_and(folder: &Path, path: Option<&Path>, harm: impl FnOnce()) -> Value {
    let (mut running, lines) = pushing(folder, path);
    harm();
    lines.for_each(drop);
    assert_eq!(running.wait().unwrap().code(), Some(1));
    let kept = fs::read_to_string(folder.join("run/trials.jsonl")).unwrap();
    nothing_is_left(folder);
    serde_json::from_str(kept.lines().next().unwrap()).unwrap()
}

#[test]
fn an_interrupted_run_leaves_nothing_behind() {
    if !available("an_interrupted_run") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (mut running, lines) = pushing(folder.path(), None);
    let pid = rustix::process::Pid::from_child(&running);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    lines.for_each(drop);
    assert_eq!(running.wait().unwrap().code(), Some(130));
    nothing_is_left(folder.path());
}

/// Kills one of the two QEMUs that know `folder`.
fn kill(folder: &Path, arriving: bool) {
    let (number, _) = qemus(folder).into_iter().find(|(_, incoming)| *incoming == arriving).expect("both QEMUs run");
    rustix::process::kill_process(rustix::process::Pid::from_raw(number).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
}

/// A folder of programs in whose `qemu-system-x86_64` the shell's `script` stands before the real one, `$qemu`.
struct Tools {
    folder: TempDir,
    qemu: PathBuf,
    bash: PathBuf,
}

impl Tools {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let found = |name: &str| {
            let output = Command::new("sh").args(["-c", &format!("command -v {name}")]).output().unwrap();
            PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
        };
        for name in ["ldd", "bash", "perl"] {
            symlink(found(name), folder.path().join(name)).unwrap();
        }
        Tools { folder, qemu: found("qemu-system-x86_64"), bash: found("bash") }
    }

    fn wrap(&self, script: &str) -> &Path {
        let (bash, qemu) = (self.bash.display(), self.qemu.display());
        let wrapper = self.folder.path().join("qemu-system-x86_64");
        fs::write(&wrapper, format!("#!{bash}\nqemu={qemu}\n{script}\n")).unwrap();
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        self.folder.path()
    }
}

/// Forbids userfaultfd, as a sandbox would: number 323, and what `/dev/userfaultfd` takes.
const NO_USERFAULTFD: &str =
    "[0x20,0,0,0],[0x15,4,0,323],[0x15,0,2,16],[0x20,0,0,24],[0x15,1,0,0xaa00],[6,0,0,0x7fff0000],[6,0,0,0x50001]";

/// Forbids it but for faults of user code, as a kernel does to who has no rights: the call's first flag.
const USER_MODE_ONLY: &str = "[0x20,0,0,0],[0x15,3,0,323],[0x15,0,4,16],[0x20,0,0,24],[0x15,3,2,0xaa00],\
                              [0x20,0,0,16],[0x45,0,1,1],[6,0,0,0x7fff0000],[6,0,0,0x50001]";

/// Puts the real QEMU under a filter of system calls.
const SANDBOX: &str = r#"exec perl -e '
    my @rules = (RULES);
    my $rules = join "", map { pack "SCCL", @$_ } @rules;
    my $program = pack "Sx6P", scalar(@rules), $rules;
    syscall(157, 38, 1, 0, 0, 0) == 0 or die "no_new_privs: $!";
    syscall(157, 22, 2, $program) == 0 or die "seccomp: $!";
    exec @ARGV or die $!' -- "$qemu" "$@""#;

#[test]
fn a_guest_goes_on_at_the_source_where_the_other_qemu_dies_and_is_lost_with_its_own() {
    if !available("a_guest_goes_on_at_the_source") {
        return;
    }
    for (arriving, outcome, memory) in [(true, "aborted", "equal"), (false, "lost", "skipped")] {
        let folder = tempfile::tempdir().unwrap();
        let row = run_and(folder.path(), None, || kill(folder.path(), arriving));
        assert_eq!((&row["outcome"], &row["verify"]["memory"]), (&outcome.into(), &memory.into()), "{row:#}");
        assert!(row["reason"].as_str().unwrap().contains("QEMU has ended (signal: 9"), "{row:#}");
    }
}

#[test]
fn a_qemu_that_preloads_nothing_or_is_missing_is_told_of() {
    if !available("a_qemu_that_preloads_nothing") {
        return;
    }
    let tools = Tools::new();
    let without = |path: &Path, needle: &str| {
        let folder = tempfile::tempdir().unwrap();
        let (output, rows) = run(folder.path(), SMALL, Some(path));
        let reason = rows[0]["reason"].as_str().unwrap_or_default().to_owned();
        assert!(output.status.code() == Some(1) && reason.contains(needle), "{reason}");
        nothing_is_left(folder.path());
    };
    // This is seen before anything starts.
    let folder = tempfile::tempdir().unwrap();
    let (output, rows) = run(folder.path(), SMALL, Some(tools.folder.path()));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), rows.len()), (Some(2), 0), "{said}");
    assert!(said.contains("x.toml:5") && said.contains("guest.machine: \"qemu\" can't be had on this host"), "{said}");
    without(tools.wrap("unset LD_PRELOAD\nexec $qemu \"$@\""), "preloaded into QEMU did not speak");
    let version = "[ \"$1\" = --version ] && exec $qemu \"$@\"";
    without(tools.wrap(&format!("{version}\nexec $qemu \"$@\" -no-such-option")), "-no-such-option");
    // Of this QEMU learns once its monitor is connected.
    without(tools.wrap("exec $qemu \"$@\" -device nonsense"), "nonsense");
    without(
        tools.wrap(&SANDBOX.replace("RULES", NO_USERFAULTFD)),
        "QEMU may not open a userfaultfd: Operation not permitted",
    );
}

#[test]
fn a_userfaultfd_for_user_code_alone_is_enough_for_pre_copy_and_post_copy_is_refused_before_the_guest_leaves() {
    if !available("a_userfaultfd_for_user_code_alone") {
        return;
    }
    let tools = Tools::new();
    let path = tools.wrap(&SANDBOX.replace("RULES", USER_MODE_ONLY));
    for (schedule, outcome) in [("pre-copy", "completed"), ("post-copy", "aborted")] {
        let folder = tempfile::tempdir().unwrap();
        let (_, rows) = run(folder.path(), &format!("{SMALL}[memory]\nschedule = {schedule:?}\n"), Some(path));
        let row = &rows[0];
        assert_eq!((&row["outcome"], &row["verify"]["memory"]), (&outcome.into(), &"equal".into()), "{row:#}");
        let refused = row["reason"].as_str().is_some_and(|why| why.contains("for faults of user code only"));
        assert_eq!(refused, outcome == "aborted", "{row:#}");
        nothing_is_left(folder.path());
    }
}

#[test]
fn a_guest_that_stands_still_while_it_boots_is_started_again() {
    if !available("a_guest_that_stands_still") {
        return;
    }
    let (tools, folder) = (Tools::new(), tempfile::tempdir().unwrap());
    // The first QEMU with RAM of the experiment's size waits for a word before its guest begins.
    let mark = tools.folder.path().join("stood").display().to_string();
    let once = format!("set -C; {{ : > {mark}; }} 2> /dev/null && exec $qemu \"$@\" -S");
    let first = format!("case \"$*\" in *147456K*) {once};; esac\nexec $qemu \"$@\"");
    let (output, rows) = run(folder.path(), SMALL, Some(tools.wrap(&first)));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), rows.len()), (Some(0), 1), "{said}");
    assert_eq!(rows[0]["verify"]["memory"], "equal", "{:#}", rows[0]);
    assert!(said.contains("the guest stood still for 60 s while it booted; it is started again"), "{said}");
    nothing_is_left(folder.path());
}

#[test]
fn a_guest_goes_on_at_the_source_where_its_device_state_cannot_be_taken_up() {
    if !available("a_guest_goes_on_where_its_device_state") {
        return;
    }
    // The source's guest has a device that the destination's lacks.
    let more = "case \"$*\" in *-incoming*) exec $qemu \"$@\";; *) exec $qemu \"$@\" -device virtio-rng-pci;; esac";
    let (tools, folder) = (Tools::new(), tempfile::tempdir().unwrap());
    let (output, rows) = run(folder.path(), SMALL, Some(tools.wrap(more)));
    let row = &rows[0];
    assert_eq!(output.status.code(), Some(1));
    assert_eq!((&row["outcome"], &row["verify"]["memory"]), (&"aborted".into(), &"equal".into()), "{row:#}");
    assert!(row["reason"].as_str().unwrap().contains("the device state can't be taken up"), "{row:#}");
    nothing_is_left(folder.path());
}

#[test]
fn a_migration_of_qemus_own_that_takes_too_long_is_given_up_and_the_guest_goes_on() {
    if !available("a_migration_of_qemus_own_that_takes_too_long") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let text = "[memory]\npreset = \"qemu:precopy\"\ngive_up_after = \"1 s\"\n[link]\nrate = \"50 Mbit/s\"\n";
    let (output, rows) = run(folder.path(), &format!("{SMALL}{text}"), None);
    let row = &rows[0];
    assert_eq!((output.status.code(), &row["outcome"]), (Some(1), &"aborted".into()), "{row:#}");
    assert!(row["reason"].as_str().unwrap().contains("not ended after 1 s (memory.give_up_after)"), "{row:#}");
    assert_eq!(row["verify"]["memory"], "equal", "{row:#}");
    nothing_is_left(folder.path());
    for refused in ["999 ms", "100000 s"] {
        let text = text.replace("\"1 s\"", &format!("{refused:?}"));
        let (output, _) = run(folder.path(), &format!("{SMALL}{text}"), None);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(2) && said.contains("give_up_after") && said.contains("1 s to 86400 s"),
            "{said}"
        );
    }
}

#[test]
fn a_qemu_that_offers_its_throttle_to_nobody_is_refused_with_one_and_works_without() {
    if !available("a_qemu_that_offers_its_throttle_to_nobody") {
        return;
    }
    let tools = Tools::new();
    let place = tools.folder.path().join("bin");
    fs::create_dir(&place).unwrap();
    // The name is not found where it is not spelled so. QEMU looks for its firmware beside the folder it runs from.
    let mut program = fs::read(&tools.qemu).unwrap();
    let name = b"\0cpu_throttle_set\0";
    let found: Vec<usize> = (0..program.len() - name.len()).filter(|at| program[*at..].starts_with(name)).collect();
    assert!(!found.is_empty(), "this QEMU has no throttle at all");
    found.into_iter().for_each(|at| program[at + 1] = b'k');
    fs::write(place.join("qemu-system-x86_64"), program).unwrap();
    fs::set_permissions(place.join("qemu-system-x86_64"), fs::Permissions::from_mode(0o755)).unwrap();
    for folder in ["share", "lib"] {
        symlink(Path::new("/usr").join(folder), tools.folder.path().join(folder)).unwrap();
    }
    let path = tools.wrap(&format!("exec {}/qemu-system-x86_64 \"$@\"", place.display()));
    let folder = tempfile::tempdir().unwrap();
    let slowed = format!("{SMALL}[memory]\npreset = \"auto-converge\"\n");
    let (output, rows) = run(folder.path(), &slowed, Some(path));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("cpu_throttle_set") && rows.is_empty(), "{said}");
    let (output, rows) = run(folder.path(), SMALL, Some(path));
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(rows[0]["verify"]["memory"], "equal");
    nothing_is_left(folder.path());
}

/// Stands between QEMUs and whoever has their monitors, until it cuts them. Of one that waits for a guest, a pause may be its
/// end instead.
struct Monitors {
    folder: TempDir,
    cut: Arc<Mutex<Vec<(UnixStream, bool)>>>,
}

impl Monitors {
    /// Each QEMU, before it starts, tells its folder and whether it waits for a guest, and is told when its monitor's new
    /// place can be connected to. `ends`: which pause, counted from 1, is the end of each that waits for a guest, in order.
    fn new(ends: &'static [usize]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["asked", "answered"] {
            let made = Command::new("mkfifo").arg(folder.path().join(name)).status().unwrap();
            assert!(made.success());
        }
        let cut: Arc<Mutex<Vec<(UnixStream, bool)>>> = Arc::default();
        let (known, at) = (Arc::clone(&cut), folder.path().to_owned());
        std::thread::spawn(move || {
            let mut ends = ends.iter();
            while let Ok(asked) = fs::read_to_string(at.join("asked")) {
                let Some((place, arriving)) = asked.trim().split_once(' ') else { return };
                let place = PathBuf::from(place);
                let listener = UnixListener::bind(place.join("qmp.cut")).unwrap();
                fs::write(at.join("answered"), "go\n").unwrap();
                let (theirs, ours) = (listener.accept().unwrap().0, UnixStream::connect(place.join("qmp")).unwrap());
                known.lock().unwrap().push((ours.try_clone().unwrap(), arriving == "yes"));
                let (mut from, mut to) = (theirs.try_clone().unwrap(), ours.try_clone().unwrap());
                std::thread::spawn(move || {
                    // Cut or ended, both are what is to be seen.
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
                let end_at = if arriving == "yes" { ends.next() } else { None };
                std::thread::spawn(move || {
                    let mut pauses = 0;
                    for line in BufReader::new(ours).lines().map_while(Result::ok) {
                        pauses += usize::from(line.contains("\"stop\""));
                        let ends = line.contains("\"stop\"") && Some(&pauses) == end_at;
                        let line = if ends { line.replace("stop", "quit") } else { line };
                        if writeln!(&theirs, "{line}").is_err() {
                            break;
                        }
                    }
                    let _ = theirs.shutdown(Shutdown::Both);
                });
            }
        });
        Monitors { folder, cut }
    }

    fn script(&self) -> String {
        let at = self.folder.path().display();
        format!(
            "case \"$*\" in --version) exec $qemu --version;; *-incoming*) arriving=yes;; *) arriving=no;; esac\n\
             echo \"$PWD $arriving\" > {at}/asked\nread answer < {at}/answered\n\
             exec $qemu \"${{@//\\/qmp,server/\\/qmp.cut,server}}\""
        )
    }

    fn cut(&self, arriving: bool) {
        let known = self.cut.lock().unwrap();
        let (stream, _) = known.iter().rfind(|(_, is)| *is == arriving).expect("both QEMUs run");
        stream.shutdown(Shutdown::Both).unwrap();
    }
}

impl Drop for Monitors {
    fn drop(&mut self) {
        // The thread that listens reads an empty question, and ends.
        let _ = fs::OpenOptions::new().write(true).open(self.folder.path().join("asked")).map(|mut f| f.write(b"\n"));
    }
}

#[test]
fn a_guest_whose_monitor_closes_is_on_one_side_at_most() {
    if !available("a_guest_whose_monitor_closes") {
        return;
    }
    let tools = Tools::new();
    for (arriving, outcome, memory) in [(true, "aborted", "equal"), (false, "lost", "skipped")] {
        let (folder, monitors) = (tempfile::tempdir().unwrap(), Monitors::new(&[]));
        let row = run_and(folder.path(), Some(tools.wrap(&monitors.script())), || monitors.cut(arriving));
        assert_eq!((&row["outcome"], &row["verify"]["memory"]), (&outcome.into(), &memory.into()), "{row:#}");
        assert!(row["reason"].as_str().unwrap().contains("QEMU's monitor has closed"), "{row:#}");
    }
}

#[test]
fn a_guest_that_ends_after_qemus_own_move_is_different_and_the_row_says_why_no_page_was_compared() {
    if !available("a_guest_that_ends_after_qemus_own_move") {
        return;
    }
    // The first pause there is the judge's, the second the end of the agent's word to it.
    let (tools, folder, monitors) = (Tools::new(), tempfile::tempdir().unwrap(), Monitors::new(&[1, 2]));
    // No multiple of 256 KiB: of such a guest QEMU before 9.0 loses pages under TCG.
    let small = SMALL.replace("144 MiB", "147328 KiB").replace("[guest]", "trials = 2\n[guest]");
    let own = format!("{small}[workload]\nuse = \"idle\"\n[memory]\npreset = \"qemu:precopy\"\n");
    let (output, rows) = run(folder.path(), &own, Some(tools.wrap(&monitors.script())));
    assert_eq!((output.status.code(), rows.len()), (Some(1), 2), "{}", String::from_utf8_lossy(&output.stderr));
    for (row, outcome) in rows.iter().zip(["lost", "completed"]) {
        assert_eq!((&row["outcome"], &row["own"]["status"]), (&outcome.into(), &"completed".into()), "{row:#}");
        let verify = &row["verify"];
        assert_eq!((&verify["memory"], &verify["compared"]), (&"different".into(), &0.into()), "{row:#}");
        let why = verify["first_difference"].as_str().unwrap();
        assert!(why.starts_with("no page was compared, ") && why.contains("QEMU has ended (exit status: 0)"), "{why}");
    }
    nothing_is_left(folder.path());
}
