//! How memory moves, as an experiment says it: one flat `[memory]` table of answers and their parameters.
//!
//! | key | value | left out |
//! |---|---|---|
//! | `preset` | a preset's name; every other key overrides what it sets | none |
//! | `schedule` | a schedule's name | `pre-copy` |
//! | `select` | a selection's name | `all` |
//! | `encode` | an encoding's name, or several, tried in their order | `["zero"]` |
//! | `stop` | a stop rule's name, or several, the first that says stop wins | `["downtime-budget", "round-bound", "byte-bound"]` |
//! | `throttle` | a throttle's name | `none` |
//!
//! All other keys are parameters of the members so chosen. The default stop rules' bounds keep a move finite whose guest
//! writes faster than the link carries; who names stop rules gets exactly those, and `stop = "pages"` alone may push for
//! ever. What a preset sets and the keys given make pointless falls away; what is given and pointless is refused.

use crate::encode::MakeEncode;
use crate::encode_chain::EncodeChain;
use crate::encodings::ENCODINGS;
use crate::presets::{PRESETS, values};
use crate::schedule::{BuildContext, Maker};
use crate::schedules::SCHEDULES;
use crate::select::{MakeSelect, Select};
use crate::selections::SELECTIONS;
use crate::stop::{MakeStopRule, StopRules};
use crate::stop_rules::STOP_RULES;
use crate::throttle::{MakeThrottle, Throttle};
use crate::throttles::THROTTLES;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use whimbrel_model::registry::UnknownName;
use whimbrel_model::{Entry, Page, Parameter, ParameterError, Parameters, Registry, Schedule};

/// The keys that choose members.
const ANSWERS: [&str; 6] = ["preset", "schedule", "select", "encode", "stop", "throttle"];
const DEFAULT_SCHEDULE: &str = "pre-copy";
const DEFAULT_SELECT: &str = "all";
const DEFAULT_ENCODE: &str = "zero";
const DEFAULT_STOP: [&str; 3] = ["downtime-budget", "round-bound", "byte-bound"];
const DEFAULT_THROTTLE: &str = "none";

/// Why a `[memory]` table is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    /// A key, name or value that isn't accepted.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// A parameter of members none of which is chosen.
    #[error("{key} belongs to the {owners}, which isn't chosen{why}")]
    NotChosen {
        /// The parameter.
        key: String,
        /// The members that have it, with their family.
        owners: String,
        /// Why none of them can be, where that is so.
        why: String,
    },
    /// An answer that could do nothing.
    #[error("{key} = {found} would do nothing: {why}")]
    Pointless {
        /// The answer's key.
        key: &'static str,
        /// What was given.
        found: String,
        /// Why it would do nothing.
        why: String,
    },
}

impl From<UnknownName> for ChoiceError {
    fn from(unknown: UnknownName) -> Self {
        ParameterError::from(unknown).into()
    }
}

/// The five answers, ready for one migration.
pub struct MemoryStrategy {
    /// The preset's name if one was given, else the schedule's.
    pub name: String,
    /// What to push when, and what becomes of the rest.
    pub schedule: Box<dyn Schedule<Page>>,
    /// What of it can wait.
    pub select: Box<dyn Select>,
    /// How a page becomes bytes.
    pub encode: EncodeChain,
    /// When the rest is small enough.
    pub stop: StopRules,
    /// How the guest is slowed.
    pub throttle: Box<dyn Throttle>,
}

impl std::fmt::Debug for MemoryStrategy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the memory strategy {}", self.name)
    }
}

/// A checked choice of the five answers with their parameters.
///
/// Its serialised form is [`MemoryChoice::resolved`], as text where a format can't describe itself.
#[derive(Clone)]
pub struct MemoryChoice {
    preset: Option<&'static str>,
    members: Members,
    /// The members' parameters as they are written, defaults filled in.
    written: BTreeMap<String, Value>,
    parameters: Parameters,
}

/// The chosen entries.
#[derive(Clone)]
struct Members {
    schedule: &'static Entry<Maker>,
    select: &'static Entry<MakeSelect>,
    encode: Vec<&'static Entry<MakeEncode>>,
    stop: Vec<&'static Entry<MakeStopRule>>,
    throttle: &'static Entry<MakeThrottle>,
}

impl MemoryChoice {
    /// Reads and checks a `[memory]` table, given as JSON values.
    ///
    /// # Errors
    /// A key, name or value isn't accepted, or an answer could do nothing; the message says what would be accepted.
    pub fn read(given: &BTreeMap<String, Value>) -> Result<Self, ChoiceError> {
        let preset = given.get("preset").map(|value| PRESETS.find(&word("preset", value)?).map_err(ChoiceError::from));
        let preset = preset.transpose()?;
        let set = preset.map_or_else(BTreeMap::new, |entry| values(entry.build));
        let members = Members::choose(given, &set)?;
        let accepted = members.parameters();
        for key in given.keys().filter(|key| !ANSWERS.contains(&key.as_str())) {
            if !accepted.iter().any(|parameter| parameter.name == key) {
                return Err(members.stray(key, &accepted));
            }
        }
        let mut written = BTreeMap::new();
        for parameter in &accepted {
            let value = given.get(parameter.name).or_else(|| set.get(parameter.name)).cloned();
            if let Some(value) = value.or_else(|| parameter.default_value()) {
                written.insert(parameter.name.to_owned(), value);
            }
        }
        let parameters = Parameters::read(&accepted, &written)?;
        let choice = MemoryChoice { preset: preset.map(|entry| entry.name), members, written, parameters };
        // What the constructors check doesn't depend on the migration, so that building can't fail later.
        choice.try_build(&BuildContext { pages: 1, seed: 0 })?;
        Ok(choice)
    }

    /// The preset's name if one was given, else the schedule's: what a row says under `memory`.
    pub fn name(&self) -> &str {
        self.preset.unwrap_or(self.members.schedule.name)
    }

    /// Whether the guest may be slowed.
    pub fn throttles(&self) -> bool {
        self.members.throttle.name != DEFAULT_THROTTLE
    }

    /// Whether the guest must tell what it knows of its pages: which are free or, where they [go as references](Self::refers), which
    /// are copies of its disk's blocks.
    pub fn asks_guest(&self) -> bool {
        self.members.asks_guest()
    }

    /// Whether pages that are free may stay out for good.
    pub fn leaves_out(&self) -> bool {
        self.members.leaves_out()
    }

    /// Whether pages may go as references to the disk.
    pub fn refers(&self) -> bool {
        self.members.selects(|select| select.refers())
    }

    /// Every key in effect, parameters with their defaults: a table that reads as this choice again.
    pub fn resolved(&self) -> BTreeMap<String, Value> {
        fn names<C>(entries: &[&'static Entry<C>]) -> Value {
            entries.iter().map(|entry| entry.name).collect()
        }
        let Members { schedule, select, encode, stop, throttle } = &self.members;
        let mut keys = self.written.clone();
        let mut put = |key: &str, value: Value| keys.insert(key.to_owned(), value);
        if let Some(preset) = self.preset {
            put("preset", preset.into());
        }
        put("schedule", schedule.name.into());
        put("select", select.name.into());
        put("encode", names(encode));
        if !stop.is_empty() {
            put("stop", names(stop));
        }
        put("throttle", throttle.name.into());
        keys
    }

    /// The answers for one migration.
    pub fn build(&self, context: &BuildContext) -> MemoryStrategy {
        self.try_build(context).expect("the same parameters were built from when they were read")
    }

    fn try_build(&self, context: &BuildContext) -> Result<MemoryStrategy, ParameterError> {
        let Members { schedule, select, encode, stop, throttle } = &self.members;
        let encode: Vec<&str> = encode.iter().map(|entry| entry.name).collect();
        let rules = stop.iter().map(|entry| (entry.build)(&self.parameters)).collect::<Result<_, _>>()?;
        Ok(MemoryStrategy {
            name: self.name().to_owned(),
            schedule: (schedule.build.build)(&self.parameters, context)?,
            select: (select.build)(&self.parameters)?,
            encode: EncodeChain::build(&encode, &self.parameters)?,
            stop: StopRules::new(rules),
            throttle: (throttle.build)(&self.parameters)?,
        })
    }
}

impl Members {
    /// The members that the keys given choose, then what the preset sets, then the defaults.
    fn choose(given: &BTreeMap<String, Value>, set: &BTreeMap<String, Value>) -> Result<Self, ChoiceError> {
        let one = |key, default: &str| match given.get(key).or_else(|| set.get(key)) {
            Some(value) => word(key, value),
            None => Ok(default.to_owned()),
        };
        let several = |key, default: &[&str]| match given.get(key).or_else(|| set.get(key)) {
            Some(value) => words(key, value),
            None => Ok(default.iter().map(|name| (*name).to_owned()).collect()),
        };
        let mut members = Members {
            schedule: SCHEDULES.find(&one("schedule", DEFAULT_SCHEDULE)?)?,
            select: SELECTIONS.find(&one("select", DEFAULT_SELECT)?)?,
            encode: find_all(&ENCODINGS, &several("encode", &[DEFAULT_ENCODE])?)?,
            stop: find_all(&STOP_RULES, &several("stop", &DEFAULT_STOP)?)?,
            throttle: THROTTLES.find(&one("throttle", DEFAULT_THROTTLE)?)?,
        };
        members.drop_pointless(given)?;
        Ok(members)
    }

    /// Lets fall what the schedule has no use for, and refuses it if it was given.
    fn drop_pointless(&mut self, given: &BTreeMap<String, Value>) -> Result<(), ChoiceError> {
        let Maker { pushes, judged, .. } = self.schedule.build;
        let pointless = |key, why| match given.get(key) {
            Some(found) => Err(ChoiceError::Pointless { key, found: found.to_string(), why }),
            None => Ok(()),
        };
        if !judged {
            pointless("stop", self.unjudged())?;
            self.stop.clear();
        }
        let why = format!("the schedule {} pushes nothing while the guest runs at the source", self.schedule.name);
        // What is free stays out of a pause too, and of what is left behind.
        if !pushes && self.select.name != DEFAULT_SELECT && !self.leaves_out() {
            pointless("select", why.clone())?;
            self.select = SELECTIONS.find(DEFAULT_SELECT)?;
        }
        if !pushes && self.throttle.name != DEFAULT_THROTTLE {
            pointless("throttle", why)?;
            self.throttle = THROTTLES.find(DEFAULT_THROTTLE)?;
        }
        Ok(())
    }

    fn leaves_out(&self) -> bool {
        self.asks_guest() && !self.selects(|select| select.refers())
    }

    fn asks_guest(&self) -> bool {
        self.selects(|select| select.ask_every().is_some())
    }

    /// What the selection says of itself with its defaults.
    fn selects(&self, which: impl FnOnce(&dyn Select) -> bool) -> bool {
        let Entry { parameters, build, .. } = self.select;
        build(&Parameters::defaults(parameters)).is_ok_and(|select| which(select.as_ref()))
    }

    fn unjudged(&self) -> String {
        format!("the schedule {} doesn't go by stop rules", self.schedule.name)
    }

    /// The parameters of all members.
    fn parameters(&self) -> Vec<Parameter> {
        let tables = [self.schedule.parameters, self.select.parameters, self.throttle.parameters].into_iter();
        let tables =
            tables.chain(self.encode.iter().map(|e| e.parameters)).chain(self.stop.iter().map(|e| e.parameters));
        tables.flatten().copied().collect()
    }

    /// The error of a key that no chosen member has.
    fn stray(&self, key: &str, accepted: &[Parameter]) -> ChoiceError {
        let owners = owners_of(key);
        if owners.is_empty() {
            let accepted = ANSWERS.into_iter().chain(accepted.iter().map(|parameter| parameter.name));
            return UnknownName::among("key", key, accepted).into();
        }
        let stop_rule = owners.iter().any(|owner| owner.starts_with(STOP_RULES.family));
        let why =
            if stop_rule && !self.schedule.build.judged { format!(": {}", self.unjudged()) } else { String::new() };
        ChoiceError::NotChosen { key: key.to_owned(), owners: owners.join(", the "), why }
    }
}

/// The members, as `family name`, that have a parameter of this name.
fn owners_of(key: &str) -> Vec<String> {
    fn having<C>(registry: &Registry<C>, key: &str) -> Vec<String> {
        let has = |entry: &&Entry<C>| entry.parameters.iter().any(|parameter| parameter.name == key);
        registry.entries.iter().filter(has).map(|entry| format!("{} {}", registry.family, entry.name)).collect()
    }
    let families = [
        having(&SCHEDULES, key),
        having(&SELECTIONS, key),
        having(&ENCODINGS, key),
        having(&STOP_RULES, key),
        having(&THROTTLES, key),
    ];
    families.concat()
}

fn find_all<C>(registry: &Registry<C>, names: &[String]) -> Result<Vec<&'static Entry<C>>, UnknownName> {
    names.iter().map(|name| registry.find(name)).collect()
}

fn refused(key: &str, value: &Value, accepted: &str) -> ParameterError {
    ParameterError::Value { key: key.to_owned(), found: value.to_string(), accepted: accepted.to_owned() }
}

fn word(key: &str, value: &Value) -> Result<String, ParameterError> {
    value.as_str().map(str::to_owned).ok_or_else(|| refused(key, value, "one name"))
}

/// One name or a list of names, each once.
fn words(key: &str, value: &Value) -> Result<Vec<String>, ParameterError> {
    let names: Option<Vec<String>> = match value {
        Value::String(name) => Some(vec![name.clone()]),
        Value::Array(names) => names.iter().map(|name| name.as_str().map(str::to_owned)).collect(),
        _ => None,
    };
    names
        .filter(|names| !names.is_empty() && names.iter().collect::<BTreeSet<_>>().len() == names.len())
        .ok_or_else(|| refused(key, value, "a name or a list of names, each once"))
}

impl Default for MemoryChoice {
    fn default() -> Self {
        MemoryChoice::read(&BTreeMap::new()).expect("the defaults are tested to be accepted")
    }
}

impl PartialEq for MemoryChoice {
    fn eq(&self, other: &Self) -> bool {
        self.resolved() == other.resolved()
    }
}

impl std::fmt::Debug for MemoryChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("MemoryChoice").field(&self.resolved()).finish()
    }
}

impl Serialize for MemoryChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let keys = self.resolved();
        if serializer.is_human_readable() {
            return keys.serialize(serializer);
        }
        serde_json::to_string(&keys).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for MemoryChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let keys = if deserializer.is_human_readable() {
            BTreeMap::deserialize(deserializer)?
        } else {
            serde_json::from_str(&String::deserialize(deserializer)?).map_err(D::Error::custom)?
        };
        MemoryChoice::read(&keys).map_err(D::Error::custom)
    }
}

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;
