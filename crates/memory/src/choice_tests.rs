//! The tests of [`super`].

use super::*;
use serde_json::json;

fn table(value: Value) -> BTreeMap<String, Value> {
    serde_json::from_value(value).unwrap()
}

fn read(value: Value) -> Result<MemoryChoice, ChoiceError> {
    MemoryChoice::read(&table(value))
}

#[track_caller]
fn refusal(value: Value, parts: &[&str]) {
    let message = read(value.clone()).expect_err(&format!("{value} is to be refused")).to_string();
    for part in parts {
        assert!(message.contains(part), "{value}: {message:?} doesn't say {part:?}");
    }
}

#[test]
fn an_empty_table_is_pre_copy_with_bounds() {
    let choice = MemoryChoice::default();
    assert_eq!(choice.name(), "pre-copy");
    let expected = json!({
        "schedule": "pre-copy", "order": "ascending", "select": "all", "encode": ["zero"], "throttle": "none",
        "stop": ["downtime-budget", "round-bound", "byte-bound"],
        "downtime_budget": "300 ms", "max_rounds": 30, "max_bytes_ratio": 3.0,
    });
    assert_eq!(choice.resolved(), table(expected));
}

#[test]
fn given_keys_override_the_presets() {
    let choice = read(json!({"preset": "qemu", "downtime_budget": "30 ms"})).unwrap();
    assert_eq!((choice.name(), &choice.resolved()["downtime_budget"]), ("qemu", &json!("30 ms")));
    let choice = read(json!({"preset": "qemu", "stop": "pages"})).unwrap();
    assert_eq!(choice.resolved()["stop"], json!(["pages"]), "exactly the rules that are named");
    assert!(!choice.resolved().contains_key("downtime_budget"), "the preset's parameters of other rules fall away");
    let choice = read(json!({"preset": "clark2005", "schedule": "post-copy"})).unwrap();
    let expected = json!({"preset": "clark2005", "schedule": "post-copy", "order": "scattered", "prepaging": "forward",
                          "select": "all", "encode": ["raw"], "throttle": "none"});
    assert_eq!(choice.resolved(), table(expected), "what post-copy has no use for falls away");
}

#[test]
fn one_name_and_a_list_of_one_are_the_same() {
    assert_eq!(read(json!({"encode": "lz4"})), read(json!({"encode": ["lz4"]})));
}

#[test]
fn mistakes_are_named() {
    refusal(json!({"schedule": "pre-cpoy"}), &["schedule", "did you mean \"pre-copy\""]);
    refusal(json!({"preset": "qmeu"}), &["preset", "did you mean \"qemu\""]);
    refusal(json!({"downtime_bugdet": "1 s"}), &["downtime_bugdet", "did you mean \"downtime_budget\""]);
    refusal(json!({"selekt": "all"}), &["did you mean \"select\""]);
    refusal(json!({"downtime_budget": 300}), &["downtime_budget", "300 ms"]);
    refusal(json!({"encode": ["zero", "zero"]}), &["encode", "each once"]);
    refusal(json!({"encode": []}), &["encode"]);
    refusal(json!({"stop": []}), &["stop"]);
    refusal(json!({"stop": [1]}), &["stop"]);
    refusal(json!({"schedule": ["pre-copy"]}), &["schedule", "one name"]);
    refusal(json!({"encode": ["raw", "zero"]}), &["encode", "raw", "last"]);
}

#[test]
fn a_parameter_of_a_member_that_is_not_chosen_names_the_member() {
    refusal(json!({"stop": "pages", "max_rounds": 3}), &["max_rounds", "stop rule round-bound", "isn't chosen"]);
    refusal(json!({"delta_cache": "1 MiB"}), &["delta_cache", "encoding delta"]);
    refusal(json!({"throttle_initial": 0.5}), &["throttle stepped"]);
    refusal(json!({"peek_every": 5}), &["selection peek"]);
    refusal(json!({"rounds": 5}), &["schedule hybrid"]);
    refusal(
        json!({"schedule": "post-copy", "downtime_budget": "1 s"}),
        &["downtime-budget", "doesn't go by stop rules"],
    );
}

#[test]
fn what_could_do_nothing_is_refused() {
    for schedule in ["stop-and-copy", "post-copy"] {
        refusal(json!({"schedule": schedule, "stop": "pages"}), &[schedule, "stop rules"]);
        refusal(json!({"schedule": schedule, "select": "peek"}), &["select", schedule, "pushes nothing"]);
        refusal(json!({"schedule": schedule, "throttle": "stepped"}), &["throttle", schedule]);
        assert!(
            read(json!({"schedule": schedule, "select": "all", "throttle": "none"})).is_ok(),
            "which do nothing anyway"
        );
    }
    refusal(json!({"schedule": "hybrid", "stop": ["downtime-budget"]}), &["hybrid"]);
    refusal(json!({"encode": "delta", "delta_cache": "0 KiB"}), &["delta_cache"]);
    refusal(json!({"stop": "round-bound", "max_rounds": 0}), &["max_rounds"]);
    refusal(json!({"stop": "byte-bound", "max_bytes_ratio": 0}), &["max_bytes_ratio"]);
    refusal(json!({"stop": "time-bound", "max_time": "0 s"}), &["max_time"]);
    refusal(json!({"select": "peek", "peek_every": 0}), &["peek_every"]);
    refusal(json!({"select": "soft", "ask_every": 0}), &["ask_every"]);
    refusal(json!({"rate_step": "1 MiB/s"}), &["rate_step", "min_rate"]);
    refusal(json!({"clamp_once": false}), &["clamp_once", "min_rate"]);
    refusal(json!({"min_rate": "1 MiB/s"}), &["min_rate", "max_rate"]);
    refusal(json!({"min_rate": "2 MiB/s", "max_rate": "1 MiB/s"}), &["min_rate", "max_rate"]);
    refusal(json!({"max_rate": "0 MiB/s"}), &["max_rate"]);
    refusal(json!({"throttle": "stepped", "throttle_most": 1.0}), &["throttle_most"]);
}

#[test]
fn a_choice_survives_being_told() {
    let choices = PRESETS.names().map(|name| json!({"preset": name}));
    let others =
        [json!({"encode": ["zero", "delta", "lz4"], "select": "peek"}), json!({"schedule": "hybrid", "rounds": 2})];
    for value in choices.chain(others) {
        let choice = read(value).unwrap();
        let text = serde_json::to_string(&choice).unwrap();
        let back: MemoryChoice = serde_json::from_str(&text).unwrap();
        assert_eq!((&back, back.name()), (&choice, choice.name()));
    }
    assert!(
        serde_json::from_str::<MemoryChoice>(r#"{"schedule": "nonsense"}"#).is_err(),
        "what comes is checked again"
    );
}

#[test]
fn what_the_guest_says_is_free_may_stay_out_of_any_move() {
    for schedule in ["pre-copy", "hybrid", "stop-and-copy", "post-copy"] {
        assert!(read(json!({"schedule": schedule, "select": "soft"})).unwrap().asks_guest(), "{schedule}");
        assert!(!read(json!({"schedule": schedule})).unwrap().asks_guest(), "{schedule}");
    }
    assert!(!read(json!({"select": "peek"})).unwrap().asks_guest());
}
