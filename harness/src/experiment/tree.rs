//! A TOML document whose every key and value knows where it was written.
//!
//! Overrides from the command line go into the same tree, so one message names either a line of the file or the
//! override.

use serde_json::Value;
use std::fmt;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where something was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line of the file, from 1.
    Line(usize),
    /// An override, as it was given.
    Override(String),
    /// Nowhere: it is missing.
    Missing,
}

/// One mistake in an experiment: where it is, and a message that names the key and what would be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file, or what stands for it.
    pub origin: String,
    /// Where.
    pub place: Place,
    /// What.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Line(line) => write!(f, "{}:{line}: {}", self.origin, self.message),
            Place::Override(text) => write!(f, "{}: --set {text}: {}", self.origin, self.message),
            Place::Missing => write!(f, "{}: {}", self.origin, self.message),
        }
    }
}

impl std::error::Error for Mistake {}

/// A value of the document.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// A table; its keys in the order in which they were written.
    Table(Vec<Field>),
    /// A list with at least one table in it.
    Tables(Vec<(Place, Node)>),
    /// Anything else: a number, a text, a flag, a list of these.
    Leaf(Value),
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// The key.
    pub key: String,
    /// Where the value was written.
    pub place: Place,
    /// The value.
    pub node: Node,
}

impl Node {
    /// The document in `text`.
    ///
    /// # Errors
    /// It is no TOML; the mistake has the line.
    pub fn parse(origin: &str, text: &str) -> Result<Node, Mistake> {
        let mistake = |line, message| Mistake { origin: origin.to_owned(), place: Place::Line(line), message };
        let table = DeTable::parse(text).map_err(|e| {
            let at = e.span().map_or(0, |span| span.start);
            mistake(line_of(text, at), e.message().to_owned())
        })?;
        read_table(text, table.into_inner()).map_err(|(at, message)| mistake(line_of(text, at), message))
    }

    /// The table's field of that name.
    pub fn field(&self, key: &str) -> Option<&Field> {
        match self {
            Node::Table(fields) => fields.iter().find(|f| f.key == key),
            _ => None,
        }
    }

    /// The field at a path of keys.
    pub fn at(&self, path: &[String]) -> Option<&Field> {
        let (last, parents) = path.split_last()?;
        let table = parents.iter().try_fold(self, |node, key| Some(&node.field(key)?.node))?;
        table.field(last)
    }

    /// Takes a field out of a table.
    pub fn remove(&mut self, key: &str) -> Option<Field> {
        match self {
            Node::Table(fields) => {
                let at = fields.iter().position(|f| f.key == key)?;
                Some(fields.remove(at))
            }
            _ => None,
        }
    }

    /// Sets the field at a path, making the tables on the way. A value that is in the way of a table is replaced.
    pub fn set(&mut self, path: &[String], place: &Place, value: Node) {
        let Some((key, rest)) = path.split_first() else {
            *self = value;
            return;
        };
        if !matches!(self, Node::Table(_)) {
            *self = Node::Table(Vec::new());
        }
        let Node::Table(fields) = self else { unreachable!("made a table above") };
        let at = fields.iter().position(|f| f.key == *key).unwrap_or_else(|| {
            fields.push(Field { key: key.clone(), place: place.clone(), node: Node::Table(Vec::new()) });
            fields.len() - 1
        });
        if rest.is_empty() {
            fields[at].place = place.clone();
        }
        fields[at].node.set(rest, place, value);
    }

    /// The value without its places.
    pub fn plain(&self) -> Value {
        match self {
            Node::Table(fields) => Value::Object(fields.iter().map(|f| (f.key.clone(), f.node.plain())).collect()),
            Node::Tables(items) => Value::Array(items.iter().map(|(_, item)| item.plain()).collect()),
            Node::Leaf(value) => value.clone(),
        }
    }
}

/// A key of several parts as it is written: `workload.rate`.
pub fn dotted(path: &[String]) -> String {
    path.join(".")
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|b| **b == b'\n').count() + 1
}

type At = (usize, String);

fn read_table(text: &str, table: DeTable<'_>) -> Result<Node, At> {
    let mut fields = Vec::new();
    for (key, value) in table {
        let at = key.span().start;
        fields.push((at, key.into_inner().into_owned(), value));
    }
    fields.sort_by_key(|(at, _, _)| *at);
    let fields = fields.into_iter().map(|(at, key, value)| {
        Ok(Field { key, place: Place::Line(line_of(text, at)), node: read_value(text, value)? })
    });
    Ok(Node::Table(fields.collect::<Result<_, At>>()?))
}

fn read_value(text: &str, value: Spanned<DeValue<'_>>) -> Result<Node, At> {
    let at = value.span().start;
    let scalar = match value.into_inner() {
        DeValue::Table(table) => return read_table(text, table),
        DeValue::Array(array) => {
            let items = array.into_iter().map(|item| {
                let at = item.span().start;
                Ok((Place::Line(line_of(text, at)), read_value(text, item)?))
            });
            let items = items.collect::<Result<Vec<_>, At>>()?;
            if items.iter().any(|(_, item)| matches!(item, Node::Table(_))) {
                return Ok(Node::Tables(items));
            }
            Value::Array(items.iter().map(|(_, item)| item.plain()).collect())
        }
        DeValue::String(string) => Value::from(string.into_owned()),
        DeValue::Boolean(flag) => Value::from(flag),
        DeValue::Integer(number) => {
            let digits = number.as_str();
            let signed = i64::from_str_radix(digits, number.radix()).map(Value::from);
            let number = signed.or_else(|_| u64::from_str_radix(digits, number.radix()).map(Value::from));
            number.map_err(|_| (at, "the number is too large".to_owned()))?
        }
        DeValue::Float(number) => {
            let parsed: Option<f64> = number.as_str().parse().ok();
            let finite = parsed.and_then(serde_json::Number::from_f64);
            Value::Number(finite.ok_or_else(|| (at, "write a finite number".to_owned()))?)
        }
        DeValue::Datetime(_) => return Err((at, "no key takes a date or a time of day".to_owned())),
    };
    Ok(Node::Leaf(scalar))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn path(keys: &[&str]) -> Vec<String> {
        keys.iter().map(|k| (*k).to_owned()).collect()
    }

    #[test]
    fn every_value_knows_its_line() {
        let text = "name = \"x\"\n[workload]\nrate = \"1 MiB/s\"\n\n[vary]\n\"memory.preset\" = [\"a\",\n  \"b\"]\n";
        let tree = Node::parse("x.toml", text).unwrap();
        assert_eq!(tree.at(&path(&["workload", "rate"])).unwrap().place, Place::Line(3));
        let varied = tree.at(&path(&["vary", "memory.preset"])).unwrap();
        assert_eq!((&varied.place, varied.node.plain()), (&Place::Line(6), json!(["a", "b"])));
    }

    #[test]
    fn what_is_no_toml_is_a_mistake_with_its_line() {
        for (text, line) in [("a = 1\nb = = 2\n", 2), ("a = 1\na = 2\n", 2), ("x = 1979-05-27\n", 1), ("a = nan", 1)] {
            let mistake = Node::parse("x.toml", text).unwrap_err();
            assert!(mistake.to_string().starts_with(&format!("x.toml:{line}: ")), "{mistake}");
        }
    }

    #[test]
    fn a_path_is_set_through_tables_that_are_made() {
        let mut tree = Node::parse("x", "[guest]\nram = \"1 MiB\"").unwrap();
        let place = Place::Override("o".into());
        tree.set(&path(&["guest", "ram"]), &place, Node::Leaf(json!("2 MiB")));
        tree.set(&path(&["link", "rate"]), &place, Node::Leaf(json!("1 Gbit/s")));
        assert_eq!(tree.plain(), json!({"guest": {"ram": "2 MiB"}, "link": {"rate": "1 Gbit/s"}}));
        assert_eq!(tree.at(&path(&["guest", "ram"])).unwrap().place, place);
        assert_eq!(tree.remove("guest").unwrap().place, Place::Line(1));
    }
}
