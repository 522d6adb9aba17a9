//! Two hosts with counters of their own, read by two agents: everything that a run says of energy, from end to end.
//!
//! The counters are files, and a thread moves them as a processor's would: by a base power, and by the processor time of the
//! host's agent and its guest.

use crate::support::Agent;
use crate::tree::{Moving, Tree, whimbrel};
use serde_json::Value;
use std::process::Command;

/// An agent beside the tree that it reads.
struct Metered {
    agent: Agent,
    tree: Tree,
    moving: Moving,
}

/// Microjoules of a host each time that its counter moves, and of a tick of its agent's processor time.
const BASE_UJ: u64 = 20_000;
const TICK_UJ: u64 = 500_000;

impl Metered {
    /// Starts both; the counter begins just below the top of its range, so that it wraps.
    fn start(folder: &tempfile::TempDir, khz: u64) -> Metered {
        let tree = Tree::new();
        tree.package(0, 262_143_328_850 - 2_000_000, 262_143_328_850);
        tree.conditions(khz, 51_000);
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$0\" \"$@\" --energy-root \"$ROOT\"", env!("CARGO_BIN_EXE_whimbrel")]);
        let agent = Agent::spawn(
            {
                command.env("ROOT", tree.path());
                command
            },
            folder.path(),
        );
        let stat = format!("/proc/{}/stat", agent.pid().as_raw_nonzero());
        let mut before = ticks(&stat);
        let moving = tree.keep_moving_with(move || {
            let now = ticks(&stat).max(before);
            let used = now - std::mem::replace(&mut before, now);
            BASE_UJ + used * TICK_UJ
        });
        Metered { agent, tree, moving }
    }
}

/// The processor time of a process, in ticks of the kernel's.
fn ticks(stat: &str) -> u64 {
    let text = std::fs::read_to_string(stat).unwrap_or_default();
    // The name, in brackets, may hold anything; user and system time are the 12th and 13th field after it.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    fields.get(11..13).map_or(0, |times| times.iter().filter_map(|time| time.parse::<u64>().ok()).sum())
}

/// Memory at one rate, and rates at one memory, as in results/strunk2013, of guests that work.
const SWEEP: &str = r#"
trials = 1
[guest]
settle = "50 ms"
[workload]
use = "memory-intensive"
rate = "4 MiB/s"
[memory]
schedule = "pre-copy"
encode = "raw"
[energy]
idle = "100 ms"
control = "500 ms"
after = "150 ms"
[[cell]]
"guest.ram" = "16 MiB"
"link.rate" = "100 MiB/s"
[[cell]]
"guest.ram" = "32 MiB"
"link.rate" = "100 MiB/s"
[[cell]]
"guest.ram" = "64 MiB"
"link.rate" = "100 MiB/s"
[[cell]]
"guest.ram" = "32 MiB"
"link.rate" = "25 MiB/s"
[[cell]]
"guest.ram" = "32 MiB"
"link.rate" = "50 MiB/s"
"#;

/// Fields of `energy` that two hosts with a meter each must have.
const NUMBERS: [&str; 18] = [
    "source_uj",
    "destination_uj",
    "gross_uj",
    "overhead_uj",
    "source_overhead_uj",
    "destination_overhead_uj",
    "same_work_overhead_uj",
    "overhead_per_gib_uj",
    "work_unit_uj",
    "control_work_unit_uj",
    "idle_w",
    "workload_w",
    "after_w",
    "window_ns",
    "source_frequency_hz",
    "destination_frequency_hz",
    "source_temperature_c",
    "destination_temperature_c",
];

#[test]
fn hosts_with_counters_give_measured_rows_with_laws() {
    let folder = tempfile::tempdir().unwrap();
    let (source, destination) = (Metered::start(&folder, 2_000_000), Metered::start(&folder, 3_000_000));
    let (file, out) = (folder.path().join("sweep.toml"), folder.path().join("out"));
    std::fs::write(&file, SWEEP).unwrap();
    let addresses = [&source, &destination].map(|host| host.agent.address.to_string());
    let [file, out] = [file, out].map(|path| path.to_str().unwrap().to_owned());
    let output = whimbrel(&["run", &file, "--out", &out, "--source", &addresses[0], "--destination", &addresses[1]]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |name: &str| std::fs::read_to_string(format!("{out}/{name}")).unwrap();
    let rows: Vec<Value> = read("trials.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 5);
    for row in &rows {
        let energy = &row["energy"];
        assert_eq!((&energy["kind"], &energy["shared_package"]), (&"measured".into(), &false.into()), "{energy}");
        for field in NUMBERS {
            assert!(energy[field].is_number(), "{field} of {energy}: {}", row["reasons"]);
        }
        let [one, other, both] = ["source_uj", "destination_uj", "gross_uj"].map(|f| energy[f].as_u64().unwrap());
        assert!(one > 0 && other > 0 && both.abs_diff(one + other) <= 1, "{energy}");
        assert_eq!((&energy["source_frequency_hz"], &energy["source_temperature_c"]), (&2e9.into(), &51.0.into()));
        assert_eq!(
            energy["domains"],
            serde_json::json!(["source:powercap/package-0", "destination:powercap/package-0"])
        );
        assert_eq!((&energy["window_ns"], &energy["why"]), (&row["total_ns"], &Value::Null));
    }
    // No energy is there twice: all rows together have at most what the counters moved.
    let gross = |field: &str| rows.iter().map(|row| row["energy"][field].as_u64().unwrap()).sum::<u64>();
    let moved = [source.moving, destination.moving].map(|moving| moving.stop().uj);
    assert!(gross("source_uj") <= moved[0] && gross("destination_uj") <= moved[1], "{moved:?}");
    drop((source.tree, destination.tree));
    let summary: Value = serde_json::from_str(&read("summary.json")).unwrap();
    assert_eq!(summary["energy_kind"], "measured");
    let laws = summary["energy_laws"].as_array().unwrap();
    let over: Vec<&Value> = laws.iter().map(|law| &law["over"]).collect();
    assert_eq!(over, [&Value::Null, &Value::Null, &"guest.ram".into(), &"link.rate".into()]);
    for law in laws {
        assert!(law["r_squared"].as_f64().is_some_and(|r| r <= 1.0), "{law}");
    }
    let report = read("report.html");
    for part in
        ["<title>sweep</title>", "Energy (measured)", "over guest.ram at link.rate=100 MiB/s", "R squared", "p0_w"]
    {
        assert!(report.contains(part), "the report lacks {part}");
    }
    // The same laws again from the run's folder, and the model's coefficients.
    let fitted = whimbrel(&["energy", "fit", &out, "--json"]);
    let fitted: Value = serde_json::from_slice(&fitted.stdout).unwrap();
    assert_eq!((&fitted["kind"], &fitted["laws"]), (&"measured".into(), &summary["energy_laws"]));
    let calibrated = String::from_utf8(whimbrel(&["energy", "calibrate", &out]).stdout).unwrap();
    assert!(calibrated.contains("[energy]\nmodel = { base_w = ") && calibrated.contains("core_w = "), "{calibrated}");
}
