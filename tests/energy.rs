//! The energy commands on trees that look like `/sys`, with counters that move as a test moves them.

#[path = "energy/tree.rs"]
mod tree;

use serde_json::Value;
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
    let steps = moving.stop();
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
fn mistakes_are_named() {
    for (arguments, parts) in [
        (&["--meter", "powercpa"][..], &["--meter", "did you mean \"powercap\""][..]),
        (&["--energy-root", "/no/such/folder"], &["--energy-root /no/such/folder", "class/powercap"]),
        (&["--for", "2 parsecs"], &["2 parsecs", "2 s"]),
    ] {
        let output = whimbrel(&[&["energy", "read"], arguments].concat());
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
}
