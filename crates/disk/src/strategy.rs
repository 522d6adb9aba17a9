//! The seam of the disk strategies: what one is made from, and which one a `[disk]` table chooses.
//!
//! A strategy answers and the engine acts: see [`Schedule`]. To add one, write a file in `strategies/` and a line in
//! [`strategies`](crate::strategies).

use crate::error::DiskError;
use crate::limited::Limited;
use crate::strategies::{DISK_PRESETS, DISK_STRATEGIES};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use whimbrel_model::registry::Kind;
use whimbrel_model::{Block, ByteRate, Entry, Needs, Parameter, ParameterError, Parameters, Schedule};

/// What a strategy may know of the disk that it is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildContext {
    /// How many blocks the disk has.
    pub blocks: u64,
    /// Bytes in a block.
    pub block_bytes: u64,
    /// The trial's seed, for strategies that draw.
    pub seed: u64,
}

/// How a strategy is made from its checked parameters.
pub type Constructor = fn(&Parameters, &BuildContext) -> Box<dyn Schedule<Block>>;

/// A published system: a strategy's name; the published values are the defaults of the preset's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Preset {
    /// The strategy that it is a setting of.
    pub strategy: &'static str,
}

/// A strategy made for one guest's disk, one trip and one host.
pub struct DiskStrategy {
    /// The preset's name if one was given, else the strategy's.
    pub name: String,
    /// What orders the blocks.
    pub schedule: Box<dyn Schedule<Block>>,
}

impl std::fmt::Debug for DiskStrategy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskStrategy").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The key, of every strategy that pushes or fetches while the guest runs.
pub const RATE_LIMIT: Parameter = Parameter {
    name: "rate_limit",
    summary: "the most that it pushes or fetches while the guest runs; absent: as much as it gets of the link",
    kind: Kind::Rate,
    default: None,
};

/// The strategy of an experiment file that names none.
const DEFAULT: &str = "three-phase";

/// A `[disk]` table: `strategy` or `preset` or neither, then that member's parameters. Checked when it is made.
///
/// An empty table means the strategy `three-phase`. Serialised, it is the table as it was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, Value>", into = "BTreeMap<String, Value>")]
pub struct DiskChoice {
    member: Member,
    /// Whether the table names its member; an absent name stays absent when it is written again.
    named: bool,
    given: BTreeMap<String, Value>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Member {
    Strategy(&'static str),
    Preset(&'static str),
}

impl Default for DiskChoice {
    fn default() -> Self {
        DiskChoice { member: Member::Strategy(DEFAULT), named: false, given: BTreeMap::new() }
    }
}

impl TryFrom<BTreeMap<String, Value>> for DiskChoice {
    type Error = DiskError;

    /// # Errors
    /// `strategy` and `preset` together, an unknown name, or a parameter that the member doesn't have or accept.
    fn try_from(mut given: BTreeMap<String, Value>) -> Result<Self, DiskError> {
        let strategy = take_name(&mut given, "strategy")?;
        let preset = take_name(&mut given, "preset")?;
        let named = strategy.is_some() || preset.is_some();
        let member = match (strategy, preset) {
            (Some(strategy), Some(preset)) => return Err(DiskError::StrategyAndPreset { strategy, preset }),
            (None, Some(preset)) => Member::Preset(DISK_PRESETS.find(&preset)?.name),
            (strategy, None) => Member::Strategy(DISK_STRATEGIES.find(strategy.as_deref().unwrap_or(DEFAULT))?.name),
        };
        let choice = DiskChoice { member, named, given };
        let limit = choice.given.get(RATE_LIMIT.name);
        if limit.is_some() && !choice.declared().iter().any(|parameter| parameter.name == RATE_LIMIT.name) {
            return Err(DiskError::Unlimited { name: choice.name() });
        }
        if choice.parameters()?.optional_number(RATE_LIMIT.name).is_some_and(|rate| rate <= 0.0) {
            let (key, found) = (RATE_LIMIT.name.to_owned(), limit.map_or(String::new(), Value::to_string));
            return Err(
                ParameterError::Value { key, found, accepted: "a rate above 0, \"12 MiB/s\"".to_owned() }.into()
            );
        }
        Ok(choice)
    }
}

impl From<DiskChoice> for BTreeMap<String, Value> {
    fn from(choice: DiskChoice) -> Self {
        let (key, name) = choice.key();
        let mut table = choice.given;
        if choice.named {
            table.insert(key.to_owned(), name.into());
        }
        table
    }
}

impl DiskChoice {
    /// The preset's name if one was given, else the strategy's: the name in rows.
    pub fn name(&self) -> &'static str {
        self.key().1
    }

    /// The table with the member's name and every parameter, defaults filled in. Read again, it chooses the same.
    pub fn resolved(&self) -> BTreeMap<String, Value> {
        let (key, name) = self.key();
        let defaults = self
            .declared()
            .iter()
            .filter_map(|parameter| Some((parameter.name.to_owned(), parameter.default_value()?)));
        let mut table: BTreeMap<String, Value> = defaults.collect();
        table.extend(self.given.clone());
        table.insert(key.to_owned(), name.into());
        table
    }

    /// Makes the strategy for one guest's disk, one trip and one host.
    pub fn build(&self, context: &BuildContext) -> DiskStrategy {
        let parameters = self.parameters().expect("a choice is checked when it is made");
        let schedule = (self.entry().build)(&parameters, context);
        let limit = parameters.optional_number(RATE_LIMIT.name).map(ByteRate);
        let schedule = match limit {
            Some(most) => Box::new(Limited { schedule, most }),
            None => schedule,
        };
        DiskStrategy { name: self.name().to_owned(), schedule }
    }

    /// What the engine has to have ready for it.
    pub fn needs(&self, context: &BuildContext) -> Needs {
        self.build(context).schedule.needs()
    }

    fn key(&self) -> (&'static str, &'static str) {
        match self.member {
            Member::Strategy(name) => ("strategy", name),
            Member::Preset(name) => ("preset", name),
        }
    }

    fn entry(&self) -> &'static Entry<Constructor> {
        let strategy = match self.member {
            Member::Strategy(name) => name,
            Member::Preset(name) => DISK_PRESETS.find(name).expect("a choice holds a known preset").build.strategy,
        };
        DISK_STRATEGIES.find(strategy).expect("a choice and a preset hold a known strategy")
    }

    fn declared(&self) -> &'static [whimbrel_model::Parameter] {
        match self.member {
            Member::Strategy(_) => self.entry().parameters,
            Member::Preset(name) => DISK_PRESETS.find(name).expect("a choice holds a known preset").parameters,
        }
    }

    fn parameters(&self) -> Result<Parameters, DiskError> {
        Ok(Parameters::read(self.declared(), &self.given)?)
    }
}

fn take_name(given: &mut BTreeMap<String, Value>, key: &'static str) -> Result<Option<String>, DiskError> {
    match given.remove(key) {
        None => Ok(None),
        Some(Value::String(name)) => Ok(Some(name)),
        Some(other) => Err(DiskError::NotAName { key, found: other.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<DiskChoice, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn an_empty_table_is_three_phase() {
        let choice = read("{}").unwrap();
        assert_eq!(choice, DiskChoice::default());
        assert_eq!(choice.name(), "three-phase");
        assert_eq!(serde_json::to_string(&choice).unwrap(), "{}");
    }

    #[test]
    fn a_resolved_table_is_complete_and_chooses_the_same() {
        for text in [
            "{}",
            r#"{"max_rounds": 2}"#,
            r#"{"strategy": "freeze-and-copy"}"#,
            r#"{"preset": "luo2008", "max_rounds": 7}"#,
            r#"{"strategy": "faulty", "rounds": 3}"#,
            r#"{"preset": "nicolae2012", "rate_limit": "100 Mbit/s"}"#,
        ] {
            let choice = read(text).unwrap();
            let resolved = choice.resolved();
            let again = DiskChoice::try_from(resolved.clone()).unwrap();
            assert_eq!((again.name(), again.resolved()), (choice.name(), resolved.clone()));
            for parameter in choice.declared() {
                let resolved = resolved.contains_key(parameter.name) || parameter.default.is_none();
                assert!(resolved, "{text}: {} is not resolved", parameter.name);
            }
            assert_eq!(again.parameters().unwrap(), choice.parameters().unwrap());
        }
    }

    #[test]
    fn a_table_is_written_as_it_was_read() {
        for text in [r#"{"preset":"luo2008","stop_blocks":7}"#, r#"{"strategy":"three-phase"}"#, r#"{"max_rounds":1}"#]
        {
            assert_eq!(serde_json::to_string(&read(text).unwrap()).unwrap(), text);
        }
    }

    #[test]
    fn mistakes_name_the_key_and_what_is_accepted() {
        for (text, expected) in [
            (r#"{"strategy": "three-phase", "preset": "luo2008"}"#, "write one of them"),
            (r#"{"strategy": "tree-phase"}"#, "did you mean \"three-phase\""),
            (r#"{"preset": "luo"}"#, "luo2008"),
            (r#"{"strategy": 3}"#, "strategy: 3"),
            (r#"{"max_round": 3}"#, "did you mean \"max_rounds\""),
            (r#"{"strategy": "freeze-and-copy", "max_rounds": 3}"#, "max_rounds"),
            (r#"{"max_rounds": -3}"#, "max_rounds: -3"),
            (r#"{"strategy": "freeze-and-copy", "rate_limit": "12 MiB/s"}"#, "freeze-and-copy takes no rate_limit"),
            (r#"{"preset": "shared", "rate_limit": "12 MiB/s"}"#, "shared takes no rate_limit"),
            (r#"{"rate_limit": "0 MiB/s"}"#, "write a rate above 0"),
            (r#"{"rate_limit": 12}"#, "rate_limit"),
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
            assert!(message.contains("[disk]"), "{message}");
        }
    }
}
