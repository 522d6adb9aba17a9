//! What is made of energies once they are rows: laws, the model's coefficients, and a host that sleeps.

use crate::tree::whimbrel;
use serde_json::Value;
use std::path::Path;

const HOST: [&str; 18] = [
    "--on-w",
    "100",
    "--asleep-w",
    "3",
    "--suspending-w",
    "90",
    "--suspending",
    "3 s",
    "--resuming-w",
    "100",
    "--resuming",
    "2 s",
    "--full",
    "4 GiB",
    "--descriptor",
    "8 MiB",
    "--rate",
    "1 Gbit/s",
];

/// The kept runs.
fn kept() -> Vec<String> {
    let latest = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("results/strunk2013/latest");
    let runs = std::fs::read_dir(latest).unwrap().map(|entry| entry.unwrap().path().display().to_string());
    let runs: Vec<String> = runs.collect();
    assert!(!runs.is_empty());
    runs
}

fn of_kept<'a>(command: &[&'a str], runs: &'a [String], options: &[&'a str]) -> Vec<&'a str> {
    command.iter().copied().chain(runs.iter().map(String::as_str)).chain(options.iter().copied()).collect()
}

fn jettison(trace: &str) -> std::process::Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace.csv");
    std::fs::write(&file, trace).unwrap();
    whimbrel(&[&["energy", "jettison", file.to_str().unwrap(), "--idle", "600 s", "--json"], &HOST[..]].concat())
}

#[test]
fn a_law_is_fitted_and_says_of_what() {
    let runs = kept();
    let output = whimbrel(&of_kept(&["energy", "fit"], &runs, &["--json"]));
    let fit: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = |run: &String| std::fs::read_to_string(format!("{run}/trials.jsonl")).unwrap().lines().count();
    assert_eq!(fit["rows"], runs.iter().map(rows).sum::<usize>());
    assert_eq!(fit["kind"], "modelled");
    let laws = fit["laws"].as_array().unwrap();
    let over = |law: &Value| law["over"].as_str().map(str::to_owned);
    assert_eq!(
        laws.iter().map(over).collect::<Vec<_>>(),
        [None, None, Some("guest.ram".to_owned()), Some("link.rate".to_owned())]
    );
    for (law, cells) in laws.iter().zip([7, 7, 4, 4]) {
        assert!((0.0..=1.0).contains(&law["r_squared"].as_f64().unwrap()), "{law}");
        assert_eq!(law["held_out"].as_object().unwrap().len(), cells, "each cell is held out once: {law}");
    }
}

#[test]
fn a_model_is_not_calibrated_on_itself() {
    let output = whimbrel(&of_kept(&["energy", "calibrate"], &kept(), &[]));
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(message.contains("latest") && message.contains("every row is modelled"), "{message}");
}

#[test]
fn a_host_that_is_woken_more_saves_less() {
    let saving = |faults: u64| {
        let lines: String = (1..=faults).map(|n| format!("{},4096\n", n * 20_000_000_000)).collect();
        let output = jettison(&format!("at_ns,bytes\n{lines}"));
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&found["kind"], &found["partial"]["wakes"]), (&"modelled".into(), &(faults + 1).into()));
        found["partial"]["saving_ratio"].as_f64().unwrap()
    };
    let (seldom, often) = (saving(1), saving(20));
    assert!(0.0 < often && often < seldom && seldom < 1.0, "{often}, {seldom}");
}

#[test]
fn a_trace_that_is_none_is_refused_with_its_line() {
    for (trace, line) in [("at_ns,bytes\n5,x\n", ":2:"), ("time,bytes\n", ":1:")] {
        let output = jettison(trace);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(&format!("trace.csv{line}")), "{message}");
    }
}

/// A guest that moves by post-copy fetches what it left behind: its recorded faults are a trace that jettison reads.
#[test]
fn a_run_gives_the_trace_that_jettison_reads() {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("pull.toml"), folder.path().join("out"));
    let experiment = "trials = 1\nverify = false\n[guest]\nram = \"16 MiB\"\n[link]\nrate = \"20 MiB/s\"\n[workload]\n\
        use = \"memory-intensive\"\npattern = \"uniform\"\nrate = \"8 MiB/s\"\n[memory]\nschedule = \"post-copy\"\n";
    std::fs::write(&file, experiment).unwrap();
    let [file, out] = [file, out].map(|path| path.to_str().unwrap().to_owned());
    let run = whimbrel(&["run", &file, "--out", &out]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let row: Value = serde_json::from_str(&std::fs::read_to_string(format!("{out}/trials.jsonl")).unwrap()).unwrap();
    assert!(row["memory_faults"]["count"].as_u64().unwrap() > 0, "the guest fetched nothing: {row}");
    let trace = String::from_utf8(whimbrel(&["energy", "trace", &out]).stdout).unwrap();
    let faults = whimbrel_energy::power_states::read_trace(&trace).unwrap();
    assert!(!faults.is_empty() && faults.iter().all(|fault| fault.bytes > 0), "{trace}");
    assert!(faults.iter().all(|fault| fault.at.as_nanos() <= u128::from(row["total_ns"].as_u64().unwrap())));
    assert_eq!(jettison(&trace).status.code(), Some(0));
    let output = whimbrel(&["energy", "trace", &kept()[0]]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && message.contains("events.jsonl"), "{message}");
}
