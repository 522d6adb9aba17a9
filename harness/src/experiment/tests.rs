//! Experiment files, right and wrong.

use super::*;
use crate::experiment::limits::{HostMemory, check, check_disk};
use whimbrel_model::Bytes;

fn read(text: &str) -> Result<Experiment, Mistake> {
    Experiment::read("x.toml", "x", text, &[])
}

#[test]
fn the_quickstart_is_six_cells() {
    let experiment = Experiment::load(None, &[]).unwrap();
    assert_eq!((experiment.name.as_str(), experiment.cells.len(), experiment.trials), ("quickstart", 6, 1));
    assert!(experiment.cells.iter().all(|c| c.setting.guest.ram == Bytes(128 << 20)));
    let under_qemu = Experiment::load(None, &[Override::read("guest.machine=qemu").unwrap()]).unwrap();
    assert!(under_qemu.cells.iter().all(|c| c.setting.guest.ram == Bytes(256 << 20)));
    let moved = |memory: &str, disk: &str| {
        let by =
            |c: &&Cell| c.setting.memory.name() == memory && c.setting.disk.as_ref().is_some_and(|d| d.name() == disk);
        experiment.cells.iter().filter(by).map(|c| c.setting.software.name()).collect::<Vec<_>>()
    };
    let workloads = ["memory-intensive", "disk-write", "idle-desktop"];
    assert_eq!(moved("stop-and-copy", "freeze-and-copy"), workloads);
    assert_eq!(moved("pre-copy", "three-phase"), workloads);
}

#[test]
fn the_documented_file_is_read() {
    let text = r#"
        name = "knee"
        question = "At which dirty rate does pre-copy stop converging?"
        trials = 5
        seed = 1
        [guest]
        machine = "thread"
        ram = "256 MiB"
        vcpus = 1
        count = 1
        trips = 1
        attempts = 1
        disk = "1 GiB"
        filled = "256 MiB"
        [link]
        rate = "200 Mbit/s"
        delay = "100 us"
        via = "bucket"
        [workload]
        use = "memory-intensive"
        pattern = "sweep"
        working_set = "64 MiB"
        rate = "12 MiB/s"
        content = "random"
        pacing = "closed"
        [memory]
        preset = "qemu"
        downtime_budget = "300 ms"
        [disk]
        strategy = "three-phase"
        [vary]
        "workload.rate" = ["5 MiB/s", "12 MiB/s", "25 MiB/s"]
    "#;
    let experiment = read(text).unwrap();
    let names: Vec<&str> = experiment.cells.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["workload.rate=5 MiB/s", "workload.rate=12 MiB/s", "workload.rate=25 MiB/s"]);
    let cell = &experiment.cells[1];
    assert_eq!(cell.setting.memory.name(), "qemu");
    assert_eq!(cell.setting.link.rate.unwrap().0, 25e6);
    assert_eq!(cell.factors["workload.rate"], "12 MiB/s");
}

#[test]
fn the_cells_are_the_product_of_all_that_is_varied() {
    let text = "[guest]\nram = \"16 MiB\"\n[vary]\nguest.vcpus = [1, 2]\n\"link.delay\" = [\"1 ms\", \"2 ms\"]\n\
                [[zip]]\n\"memory.schedule\" = [\"stop-and-copy\", \"pre-copy\"]\n\"guest.settle\" = [\"1 s\", \"2 s\"]\n\
                [[cell]]\n\"workload.use\" = \"idle-desktop\"\n[[cell]]\nworkload.use = \"memory-intensive\"\n\
                workload.rate = \"1 MiB/s\"";
    let experiment = read(text).unwrap();
    assert_eq!(experiment.cells.len(), 2 * 2 * 2 * 2);
    let last = experiment.cells.last().unwrap();
    assert_eq!(
        last.name,
        "guest.vcpus=2, link.delay=2 ms, memory.schedule=pre-copy, guest.settle=2 s, workload.use=memory-intensive, \
         workload.rate=1 MiB/s"
    );
    assert_eq!(last.factors.len(), 6);
}

#[test]
fn the_resolved_file_gives_the_same_cells() {
    let sweep = "[guest]\nram = \"16 MiB\"\n[memory]\npreset = \"qemu\"\n[vary]\n\"workload.rate\" = [\"5 MiB/s\", \"6 MiB/s\"]\n\
                 \"workload.content\" = [\"zero\", { zero = 0.5, text = 0.5 }]";
    for (origin, text) in [("quickstart", QUICKSTART), ("sweep", sweep)] {
        let experiment = Experiment::read(origin, "x", text, &[Override::read("trials=2").unwrap()]).unwrap();
        let again = Experiment::read("resolved", "y", &experiment.to_toml(), &[]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((&again.name, again.trials, again.seed), (&experiment.name, 2, experiment.seed));
        let settings =
            |e: &Experiment| e.cells.iter().map(|c| (c.name.clone(), c.setting.resolved())).collect::<Vec<_>>();
        assert_eq!(settings(&again), settings(&experiment));
        assert_eq!(again.to_toml(), experiment.to_toml());
    }
}

#[test]
fn every_mistake_names_file_line_key_and_what_is_accepted() {
    for (text, line, parts) in [
        ("trails = 3", 1, &["trails", "did you mean \"trials\""][..]),
        ("trials = 0", 1, &["trials", "from 1"]),
        ("trials = \"3\"", 1, &["trials", "whole number"]),
        ("\nname = \"a/b\"", 2, &["name", "letters"]),
        ("seed = -1", 1, &["seed", "whole number"]),
        ("verify = 1", 1, &["verify", "true or false"]),
        ("a = = 1", 1, &[]),
        ("guest = 3", 1, &["guest", "[guest]"]),
        ("[guest]\nram = \"0 MiB\"", 2, &["guest.ram", "above zero"]),
        ("[guest]\nram = \"256 MB\"", 2, &["guest.ram", "256 MB", "\"256 MiB\""]),
        ("[guest]\nram = 256", 2, &["guest.ram", "a size"]),
        (
            "[guest]\nmachine = \"qemu\"\nram = \"100 MiB\"",
            3,
            &["guest.ram", "at least \"128 MiB\" for machine \"qemu\""],
        ),
        (
            "[guest]\nmachine = \"qemu\"\nram = \"4 GiB\"",
            3,
            &["guest.ram", "at most \"3072 MiB\" for machine \"qemu\""],
        ),
        ("[guest]\nram = \"5 KiB\"", 2, &["guest.ram", "multiple"]),
        ("[guest]\nrams = \"5 KiB\"", 2, &["guest.rams", "did you mean \"ram\""]),
        ("[guest]\nmachine = \"thraed\"", 2, &["guest.machine", "did you mean \"thread\""]),
        ("[guest]\nvcpus = 0", 2, &["guest.vcpus", "from 1 to 8"]),
        ("[guest]\nram = \"16 MiB\"\ndisk = \"1000 B\"", 3, &["guest.disk", "multiple of the block size"]),
        ("[guest]\ndisk = \"1 MiB\"\nfilled = \"2 MiB\"", 3, &["guest.filled", "at most"]),
        ("[guest]\nfilled = \"2 MiB\"", 2, &["guest.filled", "guest.disk"]),
        ("[guest]\ndisk = \"1 MiB\"\nblock_size = \"5 KiB\"", 3, &["guest.block_size", "power of two"]),
        ("[link]\nrate = \"200 mbps\"", 2, &["link.rate", "Mbit/s"]),
        ("[link]\nrate = \"0 Mbit/s\"", 2, &["link.rate", "unlimited"]),
        ("[link]\ndelay = \"1 MiB\"", 2, &["link.delay", "100 us"]),
        ("[link]\nvia = \"nets\"", 2, &["link.via", "did you mean \"netns\""]),
        ("[workload]\nuse = \"memory-intense\"", 2, &["workload.use", "memory-intensive"]),
        ("[workload]\npattern = \"sweep\"\nrate = \"12 MB/s\"", 3, &["workload.rate", "MiB/s"]),
        ("[workload]\nworkingset = \"1 MiB\"", 2, &["workingset", "did you mean \"working_set\""]),
        ("[guest]\nram = \"16 MiB\"\n[workload]\nworking_set = \"64 MiB\"", 4, &["working_set"]),
        ("[memory]\nschedule = \"precopy\"", 2, &["schedule", "did you mean \"pre-copy\""]),
        ("[memory]\npreset = \"luo2008\"", 2, &["memory.preset", "[disk]", "preset = \"luo2008\""]),
        ("[guest]\ndisk = \"64 MiB\"\n[disk]\nstrategy = \"pre-copy\"", 4, &["disk.strategy", "[memory]", "schedule"]),
        ("[memory]\npreset = \"qemo\"", 2, &["preset", "did you mean \"qemu\""]),
        ("[disk]\nstrategy = \"threephase\"", 2, &["strategy", "three-phase"]),
        ("[energy]\nmeter = \"powercpa\"", 2, &["energy.meter", "did you mean \"powercap\""]),
        ("[energy]\nmodle = \"defaults\"", 2, &["energy.modle", "did you mean \"model\""]),
        ("[energy]\nmodel = \"default\"", 2, &["energy.model", "\"defaults\"", "core_w"]),
        (
            "[energy]\nmodel = { core_w = 3.0, byte_nj = 1.0, base = 2 }",
            2,
            &["energy.model.base", "did you mean \"base_w\""],
        ),
        ("[energy]\nmodel = { core_w = 3.0, byte_nj = 1.0 }", 2, &["energy.model", "base_w is missing"]),
        ("[energy]\nmodel = { core_w = -3.0, byte_nj = 1.0, base_w = 1 }", 2, &["energy.model.core_w", "not negative"]),
        ("[energy]\nsample_every = \"1 us\"", 2, &["energy.sample_every", "\"1 ms\" to \"1 s\""]),
        ("[energy]\ncontrol = \"1 ms\"", 2, &["energy.control", "\"500 ms\""]),
        ("[energy]\nidle = 3", 2, &["energy.idle", "a duration"]),
        ("[vary]\n\"workload.rate\" = []", 2, &["workload.rate", "at least one"]),
        ("[vary]\n\"workload.rate\" = \"1 MiB/s\"", 2, &["workload.rate", "a list"]),
        ("[vary]\n\"workload.rate\" = [\"1 MB/s\"]", 2, &["workload.rate", "MiB/s"]),
        ("[vary]\n\"trials\" = [1, 2]", 2, &["trials", "it can't vary"]),
        ("[[vary]]\n\"guest.vcpus\" = [1]", 1, &["vary", "a table [vary]"]),
        ("[[zip]]\n\"guest.vcpus\" = [1, 2]\n\"guest.ram\" = [\"1 MiB\"]", 3, &["guest.ram", "write 2"]),
        ("[vary]\n\"guest.vcpus\" = [1]\n[[cell]]\n\"guest.vcpus\" = 2", 4, &["guest.vcpus", "varied already"]),
    ] {
        says(text, line, parts);
    }
}

#[test]
fn a_mistake_in_a_guest_of_the_users_own_names_its_key_too() {
    for (text, line, parts) in [
        ("[guest]\n[guest.qemu]\nready = \"x\"", 2, &["guest.qemu", "machine = \"qemu\""][..]),
        ("[guest]\nmachine = \"qemu\"\nqemu = 3", 3, &["guest.qemu", "a table [guest.qemu]"]),
        (
            "[guest]\nmachine = \"qemu\"\n[guest.qemu]\nkernel = \"k\"\nraedy = \"x\"",
            5,
            &["guest.qemu.raedy", "did you mean \"ready\""],
        ),
        (
            "[guest]\nmachine = \"qemu\"\n[guest.qemu]\nkernel = \"k\"\nready = \"x\"\nprobe_send = \"x\"",
            6,
            &["guest.qemu.probe_send", "probe_port"],
        ),
        (
            "[guest]\nmachine = \"qemu\"\n[guest.qemu]\nkernel = \"k\"\nprobe_port = 70000",
            5,
            &["guest.qemu.probe_port", "from 1 to 65535"],
        ),
        (
            "[guest]\nmachine = \"qemu\"\n[guest.qemu]\nkernel = \"k\"\nready = \"x\"\narguments = \"-S\"",
            6,
            &["guest.qemu.arguments", "a list of texts"],
        ),
    ] {
        says(text, line, parts);
    }
}

/// Sees that the one mistake in an experiment is told with its line and these words.
fn says(text: &str, line: usize, parts: &[&str]) {
    let mistake = read(text).map(|e| panic!("{text:?} was read as {e:?}")).unwrap_err().to_string();
    assert!(mistake.starts_with(&format!("x.toml:{line}: ")), "{text:?}: {mistake}");
    for part in parts {
        assert!(mistake.contains(part), "{text:?}: {mistake} lacks {part:?}");
    }
    assert!(!mistake.contains('\n') || parts.is_empty(), "{mistake}");
}

#[test]
fn a_mistake_in_an_override_names_it() {
    let set = |text: &str| Experiment::load(None, &[Override::read(text).unwrap()]).unwrap_err().to_string();
    let message = set("guest.ram=1 MB");
    assert!(message.starts_with("quickstart (built in): --set guest.ram=1 MB: guest.ram:"), "{message}");
    assert!(set("workload.us=idle").contains("workload.us"), "{}", set("workload.us=idle"));
    let message = Experiment::load(Some(Path::new("/nowhere/x.toml")), &[]).unwrap_err().to_string();
    assert!(message.starts_with("/nowhere/x.toml: can't be read"), "{message}");
}

#[test]
fn a_guest_of_the_users_own_is_read_where_it_lies_and_again_from_elsewhere() {
    let text = "[guest]\nmachine = \"qemu\"\nram = \"32 MiB\"\ndisk = \"1 MiB\"\n[guest.qemu]\nimage = \"x.raw\"\n\
                arguments = [\"-cpu\", \"max\"]\nprobe_port = 22\nprobe_every = \"20 ms\"\n[vary]\n\
                \"guest.qemu.probe_expect\" = [\"SSH\", \"OpenSSH\"]\n";
    let experiment = Experiment::read("/elsewhere/x.toml", "x", text, &[]).unwrap();
    let brought = |e: &Experiment, cell: usize| e.cells[cell].setting.guest.brought.clone().unwrap();
    let first = brought(&experiment, 0);
    assert_eq!(first.place(first.image.as_ref().unwrap()), Path::new("/elsewhere/x.raw"));
    assert_eq!(brought(&experiment, 1).probe.unwrap().expect, "OpenSSH");
    assert_eq!(experiment.cells[0].setting.software.name(), "brought");
    let again = Experiment::read("resolved", "y", &experiment.to_toml(), &[]).unwrap();
    assert_eq!((brought(&again, 0), brought(&again, 1)), (first, brought(&experiment, 1)));
    let fixed = [Override::read("guest.qemu.probe_expect=SSH").unwrap()];
    let fixed = Experiment::read("/elsewhere/x.toml", "x", text, &fixed).unwrap();
    let again = Experiment::read("resolved", "y", &fixed.to_toml(), &[]).unwrap();
    assert_eq!((brought(&again, 0), again.cells.len()), (brought(&fixed, 0), 1));
    let message = limits::check_brought(&experiment).unwrap_err().to_string();
    assert!(message.starts_with("/elsewhere/x.toml: guest.qemu.folder: "), "{message}");
}

#[test]
fn a_guest_larger_than_the_host_is_refused() {
    let host = HostMemory { total: Bytes(4 << 30), available: Bytes(4 << 30) };
    let guest = |ram: &str, count: u32| read(&format!("[guest]\nram = {ram:?}\ncount = {count}")).unwrap();
    assert_eq!(check(&guest("2 GiB", 1), host, true), Ok(()));
    let message = check(&guest("3 GiB", 1), host, true).unwrap_err().to_string();
    assert!(message.starts_with("x.toml:2: guest.ram: 3 GiB") && message.contains("\"2048 MiB\""), "{message}");
    assert_eq!(check(&guest("3 GiB", 1), host, false), Ok(()));
    assert!(check(&guest("1 GiB", 5), host, false).is_err());
}

#[test]
fn disks_that_hold_more_than_is_free_are_refused() {
    let guest = |count: u32| {
        let text = format!("[guest]\ncount = {count}\ndisk = \"64 GiB\"\nfilled = \"1 GiB\"");
        read(&text).unwrap()
    };
    assert_eq!(check_disk(&guest(1), Bytes(2 << 30)), Ok(()));
    let message = check_disk(&guest(2), Bytes(2 << 30)).unwrap_err().to_string();
    assert!(message.starts_with("x.toml:4: guest.filled: 1 GiB") && message.contains("\"512 MiB\""), "{message}");
}

#[test]
fn what_would_do_nothing_without_a_disk_is_refused() {
    for table in ["[disk]\nstrategy = \"three-phase\"", "[coordinator]\nuse = \"disk-first\""] {
        let message = read(table).unwrap_err().to_string();
        assert!(message.starts_with("x.toml:2:") && message.contains("guest.disk"), "{message}");
    }
    let message = read("[guest]\ndisk = \"8 MiB\"\n[coordinator]\nuse = \"weighted\"").unwrap_err().to_string();
    assert!(message.contains("link.rate"), "{message}");
}

#[test]
fn pages_that_could_never_go_by_name_are_refused() {
    let disk = "[guest]\ndisk = \"8 MiB\"\nfilled = \"8 MiB\"\n[memory]\npreset = \"jo2013\"\n";
    let mirrored = format!("{disk}[disk]\npreset = \"mirror\"");
    let shared = format!("{disk}[disk]\npreset = \"shared\"");
    for (text, parts) in [
        ("[memory]\npreset = \"jo2013\"", ["memory.select", "guest.disk"]),
        (&mirrored, ["memory.select", "mirrored"]),
        (&shared, ["memory.select", "stay where they are"]),
        ("[workload]\ncontent = { cached = 0.5, zero = 0.5 }", ["workload.content", "guest.filled"]),
        ("[memory]\nschedule = \"post-copy\"\nselect = \"disk-backed\"", ["select", "would do nothing"]),
    ] {
        let message = read(text).unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{text}: {message}");
    }
    read(&format!("{disk}[disk]\npreset = \"luo2008\"")).unwrap();
}

#[test]
fn trials_have_seeds_of_their_own_that_json_keeps() {
    let experiment = read("seed = 7").unwrap();
    assert_eq!(experiment.trial_seed(0), 7);
    assert_ne!(experiment.trial_seed(1), experiment.trial_seed(2));
    assert!((0..100).all(|t| experiment.trial_seed(t) < 1 << 53));
}
