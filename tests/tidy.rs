//! The code checks itself: arrows between rooms, registries against files, and the habits that a reader relies on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which rooms a room may know. Arrows point down only.
const ARROWS: [(&str, &[&str]); 12] = [
    ("model", &[]),
    ("wire", &["model"]),
    ("nbd", &[]),
    ("memory", &["model"]),
    ("energy", &["model"]),
    ("workloads", &["model"]),
    ("disk", &["model", "nbd"]),
    ("machine", &["model", "wire", "nbd", "memory", "disk"]),
    ("preload", &[]),
    ("guest", &["model", "memory", "disk", "machine", "workloads"]),
    ("migration", &["model", "wire", "nbd", "memory", "disk", "energy", "machine", "workloads"]),
    ("whimbrel", &["model", "wire", "nbd", "memory", "disk", "energy", "machine", "guest", "workloads", "migration"]),
];

/// A pluggable family whose members do no I/O: the folder of its members, and the modules of its room that are its seam.
const FAMILIES: [(&str, &[&str]); 8] = [
    ("crates/memory/src/schedules", &["schedule"]),
    ("crates/memory/src/selections", &["select"]),
    ("crates/memory/src/encodings", &["encode"]),
    ("crates/memory/src/stop_rules", &["stop"]),
    ("crates/memory/src/throttles", &["throttle"]),
    ("crates/disk/src/strategies", &["strategy", "rounds"]),
    // A mix is made of the other workloads, and so knows the table.
    ("workloads/src/workloads", &["workload", "workloads", "pacer", "pattern", "zipf"]),
    ("crates/migration/src/coordinators", &["coordinator"]),
];

/// Families whose members may do as they must: only their registration is checked.
const OTHER_FAMILIES: [&str; 3] =
    ["crates/machine/src/machines", "crates/memory/src/dirty_logs", "crates/energy/src/meters"];

const LONGEST_FUNCTION: usize = 70;
const LONGEST_FILE: usize = 700;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("harness lies in the workspace").to_owned()
}

/// Every Rust file under a folder, with its path from the root and its text.
fn sources(folder: &str) -> Vec<(String, String)> {
    let (root, mut found, mut folders) = (root(), Vec::new(), vec![PathBuf::from(folder)]);
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(root.join(&folder)) else { continue };
        for entry in entries.map(|e| e.expect("a folder can be listed")) {
            let path = folder.join(entry.file_name());
            if entry.file_type().expect("a file has a type").is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(root.join(&path)).expect("a source is text");
                found.push((path.display().to_string(), text));
            }
        }
    }
    found.sort();
    found
}

fn all_sources() -> Vec<(String, String)> {
    ["crates", "workloads", "harness", "tests"].into_iter().flat_map(sources).collect()
}

/// The part of a file before its unit tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

fn report(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

fn room(package: &str) -> &str {
    package.strip_prefix("whimbrel-").unwrap_or(package)
}

#[test]
fn arrows_between_rooms_point_down() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    let mut complaints = Vec::new();
    let packages = metadata["packages"].as_array().expect("a list of packages");
    for package in packages {
        let name = room(package["name"].as_str().expect("a name"));
        let Some(allowed) = allowed.get(name) else {
            complaints.push(format!("{name} is a room that no rule knows"));
            continue;
        };
        for dependency in package["dependencies"].as_array().expect("a list").iter().filter(|d| d["kind"].is_null()) {
            let other = dependency["name"].as_str().expect("a name");
            if other.starts_with("whimbrel") && !allowed.contains(&room(other)) {
                complaints.push(format!("{name} depends on {other}, which lies above or beside it"));
            }
        }
    }
    assert_eq!(packages.len(), ARROWS.len(), "rooms that no longer exist");
    report(complaints);
}

#[test]
fn a_member_knows_only_the_model_and_its_familys_seam() {
    // A strategy answers, the engine acts: no I/O, no clock, no sockets, no threads.
    let acting =
        ["std::fs", "std::net", "std::io", "std::time", "std::thread", "std::process", "tokio", "rustix", "libc"];
    let mut complaints = Vec::new();
    for (folder, seam) in FAMILIES {
        for (path, text) in sources(folder) {
            let code = without_tests(&text);
            for line in code.lines().map(str::trim).filter(|l| !l.starts_with("//")) {
                for module in line.split("crate::").skip(1) {
                    let module = module.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
                    if !seam.contains(&module) {
                        complaints.push(format!("{path} uses crate::{module}, which is not its seam"));
                    }
                }
                if let Some(word) = acting.iter().find(|word| line.contains(&format!("{word}::"))) {
                    complaints.push(format!("{path} uses {word}: a strategy answers, the engine acts"));
                }
                if line.contains("whimbrel_") && !line.contains("whimbrel_model") {
                    complaints.push(format!("{path} uses another room than model: {line}"));
                }
            }
        }
    }
    report(complaints);
}

#[test]
fn every_file_of_a_family_is_registered() {
    let mut complaints = Vec::new();
    for folder in FAMILIES.iter().map(|(folder, _)| *folder).chain(OTHER_FAMILIES) {
        let table = fs::read_to_string(root().join(format!("{folder}.rs"))).expect("a family has its table");
        let members: BTreeSet<String> = fs::read_dir(root().join(folder))
            .expect("a family has its folder")
            .filter_map(|entry| {
                entry.expect("a folder can be listed").path().file_stem().map(|s| s.to_string_lossy().into_owned())
            })
            .collect();
        for member in members {
            // An entry lies in the member's file, or, where the member is one expression, in the table itself.
            let entry = [format!("{member}::ENTRY"), format!("name: \"{}\"", member.replace('_', "-"))];
            if !table.contains(&format!("mod {member};")) || !entry.iter().any(|e| table.contains(e)) {
                complaints.push(format!("{folder}/{member}.rs is not in {folder}.rs"));
            }
        }
    }
    report(complaints);
}

#[test]
fn migration_names_no_strategy() {
    let names = || {
        let schedules = whimbrel_memory::SCHEDULES.names().chain(whimbrel_memory::PRESETS.names());
        schedules.chain(whimbrel_disk::DISK_STRATEGIES.names()).chain(whimbrel_disk::DISK_PRESETS.names())
    };
    let mut complaints = Vec::new();
    for (path, text) in sources("crates/migration/src") {
        let code = without_tests(&text);
        for name in names().filter(|name| code.contains(&format!("\"{name}\""))) {
            complaints.push(format!("{path} names the strategy {name}"));
        }
    }
    report(complaints);
}

#[test]
fn every_file_says_what_it_is() {
    let silent = all_sources().into_iter().filter(|(_, text)| !text.starts_with("//! "));
    report(silent.map(|(path, _)| format!("{path} does not open with //!")).collect());
}

#[test]
fn nothing_is_left_for_later() {
    // Written in two parts, or this file would find itself.
    let words = [["to", "do!("], ["unimple", "mented!("], ["TO", "DO"], ["FIX", "ME"], ["#[ig", "nore"], ["db", "g!("]];
    let mut complaints = Vec::new();
    for (path, text) in all_sources() {
        for (number, line) in text.lines().enumerate() {
            if let Some(word) = words.map(|w| w.concat()).iter().find(|word| line.contains(word.as_str())) {
                complaints.push(format!("{path}:{}: {word}", number + 1));
            }
        }
    }
    report(complaints);
}

#[test]
fn files_and_functions_hold_one_idea() {
    let mut complaints = Vec::new();
    for (path, text) in all_sources() {
        let lines: Vec<&str> = text.lines().collect();
        if lines.len() > LONGEST_FILE {
            complaints.push(format!("{path} has {} lines, at most {LONGEST_FILE} are allowed", lines.len()));
        }
        for (first, name) in lines.iter().enumerate().filter_map(|(at, line)| Some((at, function_name(line)?))) {
            // The formatter puts a function's closing brace at its own indentation.
            let indentation = lines[first].len() - lines[first].trim_start().len();
            let end = format!("{}}}", " ".repeat(indentation));
            let length = lines[first..].iter().position(|line| *line == end).map_or(1, |n| n + 1);
            let body = lines[first..].iter().position(|line| line.trim_end().ends_with(['{', ';', '}']));
            let declared_only = body.is_some_and(|at| lines[first + at].trim_end().ends_with(';'));
            if length > LONGEST_FUNCTION && !declared_only {
                complaints.push(format!("{path}: {name} has {length} lines, at most {LONGEST_FUNCTION} are allowed"));
            }
        }
    }
    report(complaints);
}

/// The name of the function that begins on this line.
fn function_name(line: &str) -> Option<&str> {
    let mut words = line.trim_start();
    loop {
        let (word, rest) = words.split_once(' ')?;
        words = rest;
        match word {
            "fn" => return rest.split(['(', '<']).next(),
            "pub" | "pub(crate)" | "pub(super)" | "const" | "async" | "unsafe" => {}
            _ => return None,
        }
    }
}

#[test]
fn sides_are_source_and_destination() {
    let mut complaints = Vec::new();
    for (path, text) in all_sources() {
        for (number, line) in text.lines().enumerate() {
            let words = line.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '/');
            let bad = |word: &&str| {
                word.split('_').any(|part| part == ["d", "st"].concat() || part == ["s", "rc"].concat())
                    && !word.contains('/')
            };
            if let Some(word) = words.into_iter().find(bad) {
                complaints.push(format!("{path}:{}: {word}", number + 1));
            }
        }
    }
    report(complaints);
}

#[test]
fn every_kept_experiment_is_read() {
    let mut complaints = Vec::new();
    for entry in fs::read_dir(root().join("results")).expect("results is a folder") {
        let folder = fs::read_dir(entry.expect("a folder can be listed").path()).expect("each result is a folder");
        let files = folder.map(|file| file.expect("a folder can be listed").path());
        let experiments =
            files.filter(|file| file.extension().is_some_and(|e| e == "toml") && !file.ends_with("published.toml"));
        for file in experiments {
            if let Err(mistake) = whimbrel::experiment::Experiment::load(Some(&file), &[]) {
                complaints.push(mistake.to_string());
            }
        }
    }
    report(complaints);
}

#[test]
fn the_strategies_kept_of_qemu_are_all_there_are() {
    use clap::ValueEnum;
    use whimbrel::families::Family;
    let kept = fs::read_to_string(root().join("results/qemu-moves/strategies.toml")).expect("it is kept");
    let kept = &kept[kept.find("[[cell]]").expect("it has cells")..];
    // What never ends, what fails for tests, and what QEMU does by itself.
    let ours = |name: &str| !["never", "faulty"].contains(&name) && !name.starts_with("qemu:");
    let mut complaints = Vec::new();
    for family in Family::value_variants() {
        if matches!(family, Family::Workloads | Family::Machines | Family::Meters) {
            continue;
        }
        for member in family.members().into_iter().filter(|member| ours(member.name)) {
            if !kept.contains(&format!("{:?}", member.name)) {
                complaints.push(format!("results/qemu-moves/strategies.toml lacks {:?} of {family:?}", member.name));
            }
        }
    }
    report(complaints);
}

#[test]
fn the_readme_names_every_member() {
    use clap::ValueEnum;
    let readme = fs::read_to_string(root().join("README.md")).expect("there is a README");
    let mut complaints = Vec::new();
    for family in whimbrel::families::Family::value_variants() {
        for member in family.members() {
            if !readme.contains(&format!("`{}`", member.name)) {
                complaints.push(format!("README.md lacks `{}` of {family:?}", member.name));
            }
        }
    }
    report(complaints);
}
