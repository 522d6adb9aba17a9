//! A guest that its user brought, of which nothing is known: it moves whole, a client sees how it fares, and its image
//! stays as it was. What such a guest can't have is refused.

use super::{available, nothing_is_left, run};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use whimbrel_machine::machines::qemu::kernel::Kernel;

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../results/brought")
}

/// The guest of the kept example, in a folder; `None`, said loudly, where it can't be made here.
fn make_guest(test: &str, folder: &Path) -> Option<()> {
    if !available(test) {
        return None;
    }
    let kernel = Kernel::here().expect("it was found or fetched").image;
    let made = Command::new(example().join("make-guest")).arg(folder).arg(kernel).output().unwrap();
    if !made.status.success() {
        drop(writeln!(std::io::stderr(), "SKIPPED: {test}: {}", String::from_utf8_lossy(&made.stderr)));
    }
    made.status.success().then_some(())
}

#[test]
fn a_guest_of_the_users_own_moves_there_and_back_whole_and_its_client_sees_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let guest = folder.path().join("guest");
    if make_guest("a_guest_of_the_users_own", &guest).is_none() {
        return;
    }
    let image = fs::read(guest.join("disk.raw")).unwrap();
    let text = fs::read_to_string(example().join("experiment.toml")).unwrap();
    let text = text.replace("[\"stop-and-copy\", \"pre-copy\", \"post-copy\"]", "[\"pre-copy\", \"post-copy\"]");
    let text = text.replace("[guest.qemu]", "trips = 2\nsettle = \"300 ms\"\n[guest.qemu]");
    let (output, rows) = run(folder.path(), &text, None);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), rows.len()), (Some(0), 4), "{said}\n{rows:#?}");
    for row in &rows {
        let (memory, disk) = (&row["verify"]["memory"], &row["verify"]["disk"]);
        assert_eq!((&row["workload"], memory, disk), (&"brought".into(), &"equal".into(), &"equal".into()), "{row:#}");
        let scope = row["verify"]["scope"].as_str().unwrap();
        assert!(scope.contains("all RAM, source to destination at the switchover: "), "{scope}");
        assert!(scope.contains("all disk, source to destination at the switchover: "), "{scope}");
        // The client lost what was under way when the guest left, and no more than what it asked.
        let (all, lost) = (row["service"]["requests"].as_u64().unwrap(), row["service"]["lost_requests"].as_u64());
        assert!(all > 2 && lost < Some(all), "{row:#}");
        assert!(row["downtime_ns"].as_u64() > Some(0) && row["guest_gap_ns"].is_u64(), "{row:#}");
        assert!(row["work"]["lost_units"].is_null(), "{row:#}");
        assert!(row["reasons"]["work.lost_units"].as_str().unwrap().contains("its user's"), "{row:#}");
    }
    assert!(fs::read(guest.join("disk.raw")).unwrap() == image, "the user's image was written");
    nothing_is_left(folder.path());
}

#[test]
fn a_guest_of_the_users_own_moves_there_and_back_by_qemus_own_means_with_its_disk() {
    let folder = tempfile::tempdir().unwrap();
    let guest = folder.path().join("guest");
    if make_guest("a_guest_of_the_users_own_moves_by_qemus", &guest).is_none() {
        return;
    }
    let image = fs::read(guest.join("disk.raw")).unwrap();
    let text = fs::read_to_string(example().join("experiment.toml")).unwrap();
    // No multiple of 256 KiB: of such a guest QEMU before 9.0 loses pages under TCG.
    let text = text.replace("ram = \"128 MiB\"", "ram = \"131200 KiB\"\ntrips = 2\nsettle = \"300 ms\"");
    let (text, _) = text.split_once("[vary]").unwrap();
    let own = "[memory]\npreset = \"qemu:precopy\"\n[disk]\npreset = \"qemu:blockdev-mirror\"\n";
    let (output, rows) = run(folder.path(), &format!("{text}{own}"), None);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), rows.len()), (Some(0), 2), "{said}\n{rows:#?}");
    for row in &rows {
        assert_eq!((&row["outcome"], &row["disk"]), (&"completed".into(), &"qemu:blockdev-mirror".into()), "{row:#}");
        // Nobody can tell the guest's writes to RAM from QEMU's own; those to its disk are its.
        assert_eq!((&row["verify"]["memory"], &row["verify"]["disk"]), (&"skipped".into(), &"equal".into()), "{row:#}");
        let scope = row["verify"]["scope"].as_str().unwrap();
        assert!(scope.contains("RAM is not compared: "), "{scope}");
        assert!(scope.contains("all disk, source to destination at the switchover: "), "{scope}");
        let (all, lost) = (row["service"]["requests"].as_u64().unwrap(), row["service"]["lost_requests"].as_u64());
        assert!(all > 2 && lost < Some(all), "{row:#}");
        assert!(row["disk_whole_ns"].as_u64() > Some(0) && row["guest_gap_ns"].is_u64(), "{row:#}");
        assert!(row["reasons"]["work.lost_units"].as_str().unwrap().contains("its user's"), "{row:#}");
    }
    assert!(fs::read(guest.join("disk.raw")).unwrap() == image, "the user's image was written");
    nothing_is_left(folder.path());
}

#[test]
fn a_guest_that_does_not_come_up_says_what_its_console_said() {
    let folder = tempfile::tempdir().unwrap();
    if make_guest("a_guest_that_does_not_come_up", &folder.path().join("guest")).is_none() {
        return;
    }
    let text = fs::read_to_string(example().join("experiment.toml")).unwrap();
    // A kernel that finds no init says so, and reboots, which ends QEMU.
    let text = text.replace("append = \"", "append = \"rdinit=/nowhere root=/dev/none ");
    let text = text.replace("[\"stop-and-copy\", \"pre-copy\", \"post-copy\"]", "[\"pre-copy\"]");
    let (output, rows) = run(folder.path(), &text, None);
    let reason = rows[0]["reason"].as_str().unwrap_or_default();
    assert_eq!((output.status.code(), &rows[0]["outcome"]), (Some(1), &"failed".into()));
    assert!(reason.contains("QEMU has ended") && reason.contains("Kernel panic"), "{reason}");
    nothing_is_left(folder.path());
}

#[test]
fn what_a_guest_of_the_users_own_cannot_have_is_one_message_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("odd.raw"), [1; 5000]).unwrap();
    fs::write(folder.path().join("x.qcow2"), b"QFI\xfb and so on").unwrap();
    fs::write(folder.path().join("good.raw"), [1; 8192]).unwrap();
    let head = "[guest]\nmachine = \"qemu\"\n";
    for (text, needle) in [
        ("[guest.qemu]\nimage = \"none.raw\"\nready = \"x\"", "x.toml:4: guest.qemu.image: "),
        ("[guest.qemu]\nimage = \"odd.raw\"\nready = \"x\"", "5000 bytes, which is no multiple of the block size"),
        ("[guest.qemu]\nimage = \"x.qcow2\"\nready = \"x\"", "qemu-img convert -O raw"),
        ("disk = \"4 KiB\"\n[guest.qemu]\nimage = \"good.raw\"\nready = \"x\"", "guest.qemu.image: it has 8192 bytes"),
        ("[guest.qemu]\nkernel = \"none\"\nready = \"x\"", "x.toml:4: guest.qemu.kernel: "),
        ("[guest.qemu]\nimage = \"good.raw\"", "guest.qemu.ready: nothing says when the guest is up"),
        (
            "[guest.qemu]\nimage = \"good.raw\"\nready = \"x\"\narguments = [\"-m\", \"1G\"]",
            "x.toml:6: guest.qemu.arguments: -m is not accepted: write guest.ram",
        ),
        ("[guest.qemu]\nimage = \"good.raw\"\nready = \"x\"\n[workload]\nuse = \"idle\"", "leave [workload] out"),
        (
            "[guest.qemu]\nimage = \"good.raw\"\nready = \"x\"\n[memory]\nselect = \"soft\"",
            "memory.select: nothing in the guest of [guest.qemu] tells what its pages are",
        ),
        (
            "[guest.qemu]\nkernel = \"good.raw\"\nready = \"x\"\n[memory]\npreset = \"qemu:xbzrle\"\nfree_page_hints = true",
            "x.toml:8: memory.free_page_hints: nothing in the guest of [guest.qemu] takes the question",
        ),
    ] {
        let (output, rows) = run(folder.path(), &format!("{head}{text}\n"), None);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(needle) && rows.is_empty(), "{needle}: {said}");
    }
}
