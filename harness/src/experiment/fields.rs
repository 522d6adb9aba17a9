//! Typed access to the keys of one table, with messages that name the key and what would be accepted.

use super::tree::{Field, Mistake, Node, Place};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use whimbrel_model::quantity::{self, QuantityError};
use whimbrel_model::registry::UnknownName;
use whimbrel_model::{ByteRate, Bytes, Nanos};

/// One table of an experiment.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    origin: &'a str,
    table: &'a str,
    fields: &'a [Field],
}

impl<'a> Fields<'a> {
    /// The table `name` (empty: the top), which may be missing.
    pub fn of(origin: &'a str, name: &'a str, node: Option<&'a Node>) -> Self {
        let fields = match node {
            Some(Node::Table(fields)) => fields.as_slice(),
            _ => &[],
        };
        Fields { origin, table: name, fields }
    }

    /// The table `name` of the document.
    ///
    /// # Errors
    /// There is something else of that name.
    pub fn table(origin: &'a str, name: &'a str, tree: &'a Node) -> Result<Self, Mistake> {
        let top = Fields::of(origin, "", Some(tree));
        match top.get(name) {
            Some(Field { node: Node::Leaf(value), .. }) => {
                Err(top.refuse(name, &value.to_string(), &format!("a table [{name}]")))
            }
            Some(Field { node: Node::Tables(_), .. }) => {
                Err(top.refuse(name, &format!("[[{name}]]"), &format!("a table [{name}]")))
            }
            found => Ok(Fields::of(origin, name, found.map(|f| &f.node))),
        }
    }

    /// The table at a key of this one, by the path that messages name.
    ///
    /// # Errors
    /// There is something else at that key.
    pub fn inner(&self, key: &str, path: &'a str) -> Result<Option<Fields<'a>>, Mistake> {
        match self.get(key).map(|field| &field.node) {
            None => Ok(None),
            Some(node @ Node::Table(_)) => Ok(Some(Fields::of(self.origin, path, Some(node)))),
            Some(other) => Err(self.refuse(key, &other.plain().to_string(), &format!("a table [{path}]"))),
        }
    }

    /// The file, or what stands for it in messages.
    pub fn origin(&self) -> &'a str {
        self.origin
    }

    fn get(&self, key: &str) -> Option<&'a Field> {
        self.fields.iter().find(|f| f.key == key)
    }

    fn path(&self, key: &str) -> String {
        if self.table.is_empty() { key.to_owned() } else { format!("{}.{key}", self.table) }
    }

    /// A mistake at a key of this table.
    pub fn mistake(&self, key: &str, message: &str) -> Mistake {
        let place = self.get(key).map_or(Place::Missing, |f| f.place.clone());
        Mistake { origin: self.origin.to_owned(), place, message: format!("{}: {message}", self.path(key)) }
    }

    /// The mistake that a value can't be taken, with what could.
    pub fn refuse(&self, key: &str, found: &str, accepted: &str) -> Mistake {
        self.mistake(key, &format!("{found} is not accepted; write {accepted}"))
    }

    /// Sees that the table has no other keys.
    ///
    /// # Errors
    /// The first unknown key, with the nearest known one.
    pub fn only(&self, accepted: &[&str]) -> Result<(), Mistake> {
        match self.fields.iter().find(|f| !accepted.contains(&f.key.as_str())) {
            None => Ok(()),
            Some(field) => {
                let unknown = UnknownName::among("key", &field.key, accepted.iter().copied());
                Err(self.mistake(&field.key, &unknown.to_string()))
            }
        }
    }

    /// The table as the families read it.
    pub fn plain(&self) -> BTreeMap<String, Value> {
        self.fields.iter().map(|f| (f.key.clone(), f.node.plain())).collect()
    }

    /// Places a family's own message at the key that it is about.
    pub fn blame(&self, error: &dyn std::fmt::Display) -> Mistake {
        let message = error.to_string();
        // A family's messages open with the key, or name it in quotes; the longest key wins over those inside it.
        let named = |f: &&Field| {
            let value = f.node.plain();
            let written = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            message.starts_with(&f.key)
                || message.contains(&format!("{:?}", f.key))
                || message.contains(&format!("{written:?}"))
        };
        let blamed = self.fields.iter().filter(named).max_by_key(|f| (message.starts_with(&f.key), f.key.len()));
        let fallback = self.fields.first().map_or(Place::Missing, |f| f.place.clone());
        let place = blamed.map_or(fallback, |f| f.place.clone());
        let prefix = match blamed {
            Some(field) if message.starts_with(&field.key) => format!("{}.", self.table),
            Some(field) if field.key != message => format!("{}.{}: ", self.table, field.key),
            _ => format!("[{}]: ", self.table),
        };
        Mistake { origin: self.origin.to_owned(), place, message: format!("{prefix}{message}") }
    }

    fn read<T>(&self, key: &str, read: impl FnOnce(&Value) -> Result<T, Mistake>) -> Result<Option<T>, Mistake> {
        self.get(key).map(|field| read(&field.node.plain())).transpose()
    }

    /// A text.
    ///
    /// # Errors
    /// It is something else.
    pub fn text(&self, key: &str) -> Result<Option<String>, Mistake> {
        self.read(key, |value| {
            let text = value.as_str().map(str::to_owned);
            text.ok_or_else(|| self.refuse(key, &value.to_string(), "a text in quotes"))
        })
    }

    /// A list of texts; without it, an empty one.
    ///
    /// # Errors
    /// It is something else.
    pub fn texts(&self, key: &str) -> Result<Vec<String>, Mistake> {
        let texts = self.read(key, |value| {
            let texts =
                value.as_array().and_then(|items| items.iter().map(|i| i.as_str().map(str::to_owned)).collect());
            texts.ok_or_else(|| self.refuse(key, &value.to_string(), "a list of texts in quotes"))
        });
        Ok(texts?.unwrap_or_default())
    }

    /// True or false.
    ///
    /// # Errors
    /// It is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, Mistake> {
        self.read(key, |value| value.as_bool().ok_or_else(|| self.refuse(key, &value.to_string(), "true or false")))
    }

    /// A whole number in a range.
    ///
    /// # Errors
    /// It is something else.
    pub fn count(&self, key: &str, default: u64, range: RangeInclusive<u64>) -> Result<u64, Mistake> {
        let read = |value: &Value| {
            let accepted = if *range.end() == u64::MAX {
                format!("a whole number from {}", range.start())
            } else {
                format!("a whole number from {} to {}", range.start(), range.end())
            };
            let number = value.as_u64().filter(|n| range.contains(n));
            number.ok_or_else(|| self.refuse(key, &value.to_string(), &accepted))
        };
        Ok(self.read(key, read)?.unwrap_or(default))
    }

    /// A number that is not negative.
    ///
    /// # Errors
    /// It is something else.
    pub fn number(&self, key: &str) -> Result<Option<f64>, Mistake> {
        self.read(key, |value| {
            let number = value.as_f64().filter(|n| *n >= 0.0);
            number.ok_or_else(|| self.refuse(key, &value.to_string(), "a number that is not negative"))
        })
    }

    fn quantity<T>(
        &self,
        key: &str,
        parse: fn(&str) -> Result<T, QuantityError>,
        accepted: &str,
    ) -> Result<Option<T>, Mistake> {
        self.read(key, |value| match value.as_str() {
            Some(text) => parse(text).map_err(|e| self.mistake(key, &e.to_string())),
            None => Err(self.refuse(key, &value.to_string(), accepted)),
        })
    }

    /// A size.
    ///
    /// # Errors
    /// It is something else.
    pub fn size(&self, key: &str) -> Result<Option<Bytes>, Mistake> {
        self.quantity(key, quantity::size, "a size such as \"256 MiB\"")
    }

    /// A rate.
    ///
    /// # Errors
    /// It is something else.
    pub fn rate(&self, key: &str) -> Result<Option<ByteRate>, Mistake> {
        self.quantity(key, quantity::rate, "a rate such as \"200 Mbit/s\"")
    }

    /// A duration.
    ///
    /// # Errors
    /// It is something else.
    pub fn duration(&self, key: &str) -> Result<Option<Nanos>, Mistake> {
        self.quantity(key, quantity::duration, "a duration such as \"100 us\"")
    }

    /// One of the given words.
    ///
    /// # Errors
    /// It is another one; the message names the nearest.
    pub fn word<'w>(&self, key: &str, family: &str, words: &[&'w str]) -> Result<Option<&'w str>, Mistake> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let found = words.iter().copied().find(|w| *w == text);
        let unknown = || UnknownName::among(family, &text, words.iter().copied()).to_string();
        found.map(Some).ok_or_else(|| self.mistake(key, &unknown()))
    }
}
