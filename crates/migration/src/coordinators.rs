//! The registry of the coordinators.

mod disk_first;
mod fixed_share;
mod memory_first;
mod together;
mod weighted;

use crate::coordinator::{Maker, Turn};
use whimbrel_model::registry::{Kind, Parameter, ParameterError};
use whimbrel_model::{Parameters, Registry};

/// The coordinators. The first is the default, and the floor: it orders nothing.
pub const COORDINATORS: Registry<Maker> = Registry {
    family: "coordinator",
    entries: &[together::ENTRY, disk_first::ENTRY, memory_first::ENTRY, fixed_share::ENTRY, weighted::ENTRY],
};

/// The memory's part of the link; the disk has the rest.
const MEMORY_SHARE: Parameter = Parameter {
    name: "memory_share",
    summary: "the memory's part of the link's rate, between 0 and 1; the disk has the rest",
    kind: Kind::Ratio,
    default: Some("0.5"),
};

/// The turns of memory and disk that share the link by [`MEMORY_SHARE`].
fn shares(parameters: &Parameters) -> Result<(Turn, Turn), ParameterError> {
    let memory = parameters.number(MEMORY_SHARE.name);
    if memory > 0.0 && memory < 1.0 {
        return Ok((Turn::share(memory), Turn::share(1.0 - memory)));
    }
    Err(ParameterError::Value {
        key: MEMORY_SHARE.name.to_owned(),
        found: memory.to_string(),
        accepted: "a number above 0 and below 1".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::COORDINATORS;
    use crate::coordinator::{CoordinatorChoice, CoordinatorView, FamilyView, Turn};
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    const BUSY: FamilyView = FamilyView { done: false, sending: true };
    const DONE: FamilyView = FamilyView { done: true, sending: false };

    fn read(table: Value) -> Result<CoordinatorChoice, serde_json::Error> {
        serde_json::from_value(table)
    }

    fn view(memory: FamilyView, disk: FamilyView) -> CoordinatorView {
        CoordinatorView { memory, disk }
    }

    #[test]
    fn somebody_may_always_push_until_both_are_done() {
        for name in COORDINATORS.names() {
            let mut coordinator = read(json!({ "use": name })).unwrap().build();
            for (memory, disk) in [(BUSY, BUSY), (DONE, BUSY), (BUSY, DONE), (DONE, DONE), (BUSY, BUSY)] {
                let turns = coordinator.turns(&view(memory, disk));
                let goes = |turn: Turn, family: FamilyView| turn.may_push && !family.done;
                let stuck = !goes(turns.memory, memory) && !goes(turns.disk, disk);
                assert!(!stuck || (memory.done && disk.done), "{name}: nobody may push: {turns:?}");
            }
        }
    }

    #[test]
    fn one_after_the_other_and_then_both() {
        for (name, first_busy, first_done) in
            [("disk-first", view(BUSY, BUSY), view(BUSY, DONE)), ("memory-first", view(BUSY, BUSY), view(DONE, BUSY))]
        {
            let mut coordinator = read(json!({ "use": name })).unwrap().build();
            let before = coordinator.turns(&first_busy);
            assert_ne!(before.memory.may_push, before.disk.may_push, "{name}");
            let after = coordinator.turns(&first_done);
            assert!(after.memory.may_push && after.disk.may_push, "{name}");
            // Ready is withdrawn when more was written: the second isn't stopped in its tracks for that.
            assert_eq!(coordinator.turns(&first_busy), after, "{name}");
        }
    }

    #[test]
    fn a_weight_binds_only_while_both_send() {
        let mut weighted = read(json!({"use": "weighted", "memory_share": 0.25})).unwrap().build();
        let both = weighted.turns(&view(BUSY, BUSY));
        assert_eq!((both.memory.share, both.disk.share), (Some(0.25), Some(0.75)));
        assert_eq!(weighted.turns(&view(BUSY, DONE)).memory, Turn::FREE);
        let mut fixed = read(json!({"use": "fixed-share", "memory_share": 0.25})).unwrap().build();
        assert_eq!(fixed.turns(&view(BUSY, DONE)).memory.share, Some(0.25));
    }

    #[test]
    fn a_table_is_checked_and_resolved() {
        for (table, named) in [
            (json!({"use": "disk-frist"}), "disk-first"),
            (json!({"use": "weighted", "memory_share": 1.0}), "memory_share"),
            (json!({"use": "weighted", "memory_share": 0.0}), "memory_share"),
            (json!({"memory_share": 0.5}), "memory_share"),
            (json!({"use": 3}), "coordinator"),
        ] {
            let message = read(table.clone()).expect_err("refused").to_string();
            assert!(message.contains(named), "{table}: {message}");
        }
        let choice = read(json!({"use": "weighted"})).unwrap();
        let expected: BTreeMap<String, Value> =
            [("use".to_owned(), json!("weighted")), ("memory_share".to_owned(), json!(0.5))].into();
        assert_eq!(choice.resolved(), expected);
        assert_eq!(CoordinatorChoice::default().name(), "together");
    }
}
