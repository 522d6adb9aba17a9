//! The resolved experiment as a file that can be run again.
//!
//! Defaults are filled in wherever all cells agree on them. A table that a varied key touches stays as it was given:
//! its other keys may depend on the varied one.

use super::tree::Node;
use super::{Cell, Experiment};
use serde_json::Value;
use std::fmt::Write;

impl Experiment {
    /// The experiment as TOML, overrides applied and defaults filled in. Running it gives the same cells.
    pub fn to_toml(&self) -> String {
        let mut text = String::from("# The experiment as it was resolved and run.\n");
        let top = [
            ("name", Value::from(self.name.clone())),
            ("question", self.question.clone().into()),
            ("trials", self.trials.into()),
            ("seed", self.seed.into()),
            ("verify", self.verify.into()),
        ];
        top.iter().for_each(|(key, value)| line(&mut text, key, value));
        for table in ["guest", "link", "workload", "memory", "disk", "coordinator", "energy"] {
            if let Value::Object(fields) = self.agreed(table) {
                section(&mut text, &format!("[{table}]"), fields);
            }
        }
        for (key, header) in [("vary", "[vary]"), ("zip", "[[zip]]"), ("cell", "[[cell]]")] {
            match self.tree.field(key).map(|f| &f.node) {
                Some(Node::Tables(items)) => {
                    items.iter().for_each(|(_, item)| section(&mut text, header, as_written(item)))
                }
                Some(node) => section(&mut text, header, as_written(node)),
                None => {}
            }
        }
        text
    }

    /// A table as all cells have it, or as it was given where a varied key touches it.
    fn agreed(&self, table: &str) -> Value {
        let given = || self.tree.field(table).map_or(Value::Null, |f| f.node.plain());
        let varied = |cell: &Cell| cell.factors.keys().any(|k| k.split('.').next() == Some(table));
        match self.cells.first() {
            Some(cell) if !self.cells.iter().any(varied) => match &cell.setting.resolved()[table] {
                Value::Null => given(),
                resolved => resolved.clone(),
            },
            _ => given(),
        }
    }
}

/// A table's keys in the order in which they were written: the cells' order depends on it.
fn as_written(table: &Node) -> Vec<(String, Value)> {
    match table {
        Node::Table(fields) => fields.iter().map(|f| (f.key.clone(), f.node.plain())).collect(),
        _ => Vec::new(),
    }
}

fn section(text: &mut String, header: &str, fields: impl IntoIterator<Item = (String, Value)>) {
    let mut fields = fields.into_iter().peekable();
    if fields.peek().is_some() {
        let _ = writeln!(text, "\n{header}");
        fields.for_each(|(key, value)| line(text, &key, &value));
    }
}

fn line(text: &mut String, key: &str, value: &Value) {
    // A value of an experiment came from TOML: it has no null, so it goes back.
    if let Ok(value) = toml::Value::try_from(value) {
        let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        let key = if bare { key.to_owned() } else { toml::Value::from(key).to_string() };
        let _ = writeln!(text, "{key} = {value}");
    }
}
