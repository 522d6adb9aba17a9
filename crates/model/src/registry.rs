//! How a pluggable family describes its members, and how their parameters are read and checked.
//!
//! Every family is a plain table of [`Entry`]s. From the table come `whimbrel list`, the names that an experiment file
//! may use, the README's table and the contract tests.

use crate::quantity::{self, QuantityError};
use crate::units::{ByteRate, Bytes, Nanos};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// What a parameter's value is, and so how it is written in an experiment file.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A size, `"256 MiB"`.
    Size,
    /// A rate, `"12 MiB/s"` or `"200 Mbit/s"`.
    Rate,
    /// A duration, `"300 ms"`.
    Duration,
    /// A size of which a disk is cut: a power of two from 512 B to 1 GiB.
    Chunk,
    /// A whole number that is not negative.
    Count,
    /// A whole number of at least 1.
    Positive,
    /// A number from 0 to 1.
    Ratio,
    /// Any number that is not negative.
    Number,
    /// `true` or `false`.
    Flag,
    /// One of the given words.
    Choice(&'static [&'static str]),
    /// A content model: one class's name, or a table of classes with shares.
    Content,
    /// Any TOML value; the member checks it itself.
    Any,
}

/// One parameter of a member: its name, what it means, its kind and its default.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Parameter {
    /// The key in an experiment file.
    pub name: &'static str,
    /// One line: what it does.
    pub summary: &'static str,
    /// How its value is written.
    pub kind: Kind,
    /// The default as it would be written; `None` where leaving it out has a meaning of its own, which `summary` says.
    pub default: Option<&'static str>,
}

impl Parameter {
    /// The default as an experiment file would have it.
    pub fn default_value(&self) -> Option<Value> {
        let text = self.default?;
        Some(match self.kind {
            Kind::Count | Kind::Positive | Kind::Ratio | Kind::Number | Kind::Flag | Kind::Any => {
                serde_json::from_str(text).unwrap_or_else(|_| text.into())
            }
            Kind::Size | Kind::Chunk | Kind::Rate | Kind::Duration | Kind::Choice(_) | Kind::Content => text.into(),
        })
    }
}

/// One member of a family: what it is, its parameters, where it comes from, and its constructor.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Entry<C> {
    /// The name in experiment files and in rows.
    pub name: &'static str,
    /// One line that says what it is.
    pub summary: &'static str,
    /// Its parameters with their defaults.
    pub parameters: &'static [Parameter],
    /// The paper or program that it comes from.
    pub source: &'static str,
    /// How one is made.
    #[serde(skip)]
    pub build: C,
}

/// A family's table.
#[derive(Clone, Copy, Debug)]
pub struct Registry<C: 'static> {
    /// What a member is called in messages, for example `schedule`.
    pub family: &'static str,
    /// The members, in the order in which they are listed.
    pub entries: &'static [Entry<C>],
}

impl<C> Registry<C> {
    /// The member of that name.
    ///
    /// # Errors
    /// The name is unknown; the message names the nearest one.
    pub fn find(&self, name: &str) -> Result<&'static Entry<C>, UnknownName> {
        self.entries.iter().find(|e| e.name == name).ok_or_else(|| UnknownName::among(self.family, name, self.names()))
    }

    /// The names of all members.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + use<C> {
        self.entries.iter().map(|e| e.name)
    }
}

/// A name that no member of the family has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {family} {name:?}{}; accepted: {accepted}", nearest.as_ref().map_or(String::new(), |n| format!(", did you mean {n:?}?")))]
pub struct UnknownName {
    family: String,
    name: String,
    nearest: Option<String>,
    accepted: String,
}

impl UnknownName {
    /// Says that `name` is none of `accepted`, and which of them is nearest.
    pub fn among<'a>(family: &str, name: &str, accepted: impl IntoIterator<Item = &'a str>) -> Self {
        let accepted: Vec<&str> = accepted.into_iter().collect();
        let nearest =
            accepted.iter().min_by_key(|a| distance(a, name)).filter(|a| distance(a, name) <= 3.max(name.len() / 3));
        UnknownName {
            family: family.to_owned(),
            name: name.to_owned(),
            nearest: nearest.map(|s| (*s).to_owned()),
            accepted: accepted.join(", "),
        }
    }
}

/// The Levenshtein distance of two short words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Why a parameter's value was not taken. The message names the key and what would be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// The text is not the quantity that the key wants.
    #[error("{key}: {source}")]
    Quantity {
        /// The key.
        key: String,
        /// What is wrong with its text.
        source: QuantityError,
    },
    /// The value has the wrong type or lies out of range.
    #[error("{key}: {found} is not accepted; write {accepted}")]
    Value {
        /// The key.
        key: String,
        /// The value as it was written.
        found: String,
        /// What would be accepted.
        accepted: String,
    },
    /// No such parameter.
    #[error(transparent)]
    Unknown(#[from] UnknownName),
}

/// The checked values of a member's parameters, defaults filled in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters {
    values: BTreeMap<&'static str, Checked>,
}

#[derive(Clone, Debug, PartialEq)]
enum Checked {
    Number(f64),
    Flag(bool),
    Word(String),
    Any(Value),
}

impl Parameters {
    /// Reads `given` against `accepted`: every key must be known and every value of its kind; defaults fill the rest.
    ///
    /// # Errors
    /// The first key that is unknown, or whose value is not accepted.
    pub fn read(accepted: &[Parameter], given: &BTreeMap<String, Value>) -> Result<Self, ParameterError> {
        if let Some(key) = given.keys().find(|k| !accepted.iter().any(|p| p.name == k.as_str())) {
            return Err(UnknownName::among("key", key, accepted.iter().map(|p| p.name)).into());
        }
        let mut values = BTreeMap::new();
        for parameter in accepted {
            let given = given.get(parameter.name).cloned();
            let Some(value) = given.or_else(|| parameter.default_value()) else { continue };
            values.insert(parameter.name, check(parameter, &value)?);
        }
        Ok(Parameters { values })
    }

    /// The defaults of every parameter.
    ///
    /// # Panics
    /// A default in the table is not of its own kind, which the contract tests exclude.
    pub fn defaults(accepted: &[Parameter]) -> Self {
        Self::read(accepted, &BTreeMap::new()).expect("defaults are of their own kinds")
    }

    /// Whether a value was given or has a default.
    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// The number of a Count, Ratio or Number (or the raw value of a Size, Rate or Duration).
    ///
    /// # Panics
    /// The member did not declare the parameter with a default, which the contract tests exclude.
    pub fn number(&self, name: &str) -> f64 {
        self.optional_number(name).unwrap_or_else(|| panic!("parameter {name} is declared as a number with a default"))
    }

    /// As [`Parameters::number`], for a parameter without a default.
    pub fn optional_number(&self, name: &str) -> Option<f64> {
        match self.values.get(name)? {
            Checked::Number(n) => Some(*n),
            _ => None,
        }
    }

    /// A Count.
    pub fn count(&self, name: &str) -> u64 {
        self.number(name) as u64
    }

    /// A Size.
    pub fn size(&self, name: &str) -> Bytes {
        Bytes(self.number(name) as u64)
    }

    /// A Rate.
    pub fn rate(&self, name: &str) -> ByteRate {
        ByteRate(self.number(name))
    }

    /// A Duration.
    pub fn duration(&self, name: &str) -> Nanos {
        Nanos(self.number(name) as u64)
    }

    /// A Flag.
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.values.get(name), Some(Checked::Flag(true)))
    }

    /// A Choice.
    ///
    /// # Panics
    /// The member did not declare the parameter as a choice with a default.
    pub fn word(&self, name: &str) -> &str {
        match self.values.get(name) {
            Some(Checked::Word(word)) => word,
            _ => panic!("parameter {name} is declared as a choice with a default"),
        }
    }

    /// The value of a Content or Any parameter as it was written.
    pub fn any(&self, name: &str) -> Option<&Value> {
        match self.values.get(name)? {
            Checked::Any(value) => Some(value),
            _ => None,
        }
    }
}

/// What a [`Kind::Chunk`] is.
const A_CHUNK: &str = "a power of two from \"512 B\" to \"1 GiB\"";

fn check(parameter: &Parameter, value: &Value) -> Result<Checked, ParameterError> {
    let key = || parameter.name.to_owned();
    let refuse = |accepted: &str| {
        Err(ParameterError::Value { key: key(), found: value.to_string(), accepted: accepted.to_owned() })
    };
    let quantity = |source| ParameterError::Quantity { key: key(), source };
    let text = |accepted: &str| value.as_str().map_or_else(|| refuse(accepted).map(|_: Checked| ""), Ok);
    match parameter.kind {
        Kind::Size => {
            Ok(Checked::Number(quantity::size(text("a size such as \"256 MiB\"")?).map_err(quantity)?.0 as f64))
        }
        Kind::Chunk => match quantity::size(text(A_CHUNK)?).map_err(quantity)?.0 {
            bytes @ 512..=0x4000_0000 if bytes.is_power_of_two() => Ok(Checked::Number(bytes as f64)),
            _ => refuse(A_CHUNK),
        },
        Kind::Rate => Ok(Checked::Number(quantity::rate(text("a rate such as \"12 MiB/s\"")?).map_err(quantity)?.0)),
        Kind::Duration => {
            Ok(Checked::Number(quantity::duration(text("a duration such as \"300 ms\"")?).map_err(quantity)?.0 as f64))
        }
        Kind::Count => match value.as_u64() {
            Some(n) if n < 1 << 53 => Ok(Checked::Number(n as f64)),
            _ => refuse("a whole number such as 30"),
        },
        Kind::Positive => match value.as_u64() {
            Some(n @ 1..) if n < 1 << 53 => Ok(Checked::Number(n as f64)),
            _ => refuse("a whole number of at least 1"),
        },
        Kind::Ratio => match value.as_f64() {
            Some(n) if (0.0..=1.0).contains(&n) => Ok(Checked::Number(n)),
            _ => refuse("a number from 0 to 1"),
        },
        Kind::Number => match value.as_f64() {
            Some(n) if n >= 0.0 => Ok(Checked::Number(n)),
            _ => refuse("a number that is not negative"),
        },
        Kind::Flag => value.as_bool().map_or_else(|| refuse("true or false"), |b| Ok(Checked::Flag(b))),
        Kind::Choice(words) => match value.as_str() {
            Some(word) if words.contains(&word) => Ok(Checked::Word(word.to_owned())),
            _ => refuse(&format!("one of {}", words.join(", "))),
        },
        Kind::Content | Kind::Any => Ok(Checked::Any(value.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TABLE: &[Parameter] = &[
        Parameter { name: "rate", summary: "", kind: Kind::Rate, default: None },
        Parameter { name: "working_set", summary: "", kind: Kind::Size, default: Some("64 MiB") },
        Parameter { name: "rounds", summary: "", kind: Kind::Count, default: Some("30") },
        Parameter { name: "every", summary: "", kind: Kind::Positive, default: Some("1") },
        Parameter { name: "chunk", summary: "", kind: Kind::Chunk, default: Some("256 KiB") },
        Parameter { name: "pattern", summary: "", kind: Kind::Choice(&["uniform", "sweep"]), default: Some("uniform") },
    ];

    fn read(pairs: &[(&str, Value)]) -> Result<Parameters, ParameterError> {
        Parameters::read(TABLE, &pairs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect())
    }

    #[test]
    fn defaults_fill_what_is_not_given() {
        let p = read(&[("rounds", json!(4))]).unwrap();
        assert_eq!((p.count("rounds"), p.size("working_set"), p.word("pattern")), (4, Bytes(64 << 20), "uniform"));
        assert!(!p.has("rate"));
    }

    #[test]
    fn a_mistake_names_the_key_and_what_is_accepted() {
        let message = |pairs: &[(&str, Value)]| read(pairs).unwrap_err().to_string();
        assert!(message(&[("round", json!(4))]).contains("did you mean \"rounds\""));
        assert!(message(&[("working_set", json!("64 MB"))]).contains("working_set"));
        assert!(message(&[("pattern", json!("zigzag"))]).contains("uniform, sweep"));
        assert!(message(&[("rounds", json!(-1))]).contains("whole number"));
        assert!(message(&[("every", json!(0))]).contains("at least 1"));
        for chunk in ["0 KiB", "3 KiB", "4096 GiB"] {
            assert!(message(&[("chunk", json!(chunk))]).contains("a power of two"));
        }
    }
}
