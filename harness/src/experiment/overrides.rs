//! `--set KEY=VALUE`: changes to an experiment from the command line.
//!
//! KEY is a key of the experiment file, `workload.rate`. VALUE is TOML if it parses, else a string. A key that the
//! experiment varies is fixed by a single value and varied anew by a list. `vary."workload.rate"=[...]` varies a key
//! that was not varied.

use super::tree::{Mistake, Node, Place};

/// One override, read but not yet applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    text: String,
    path: Vec<String>,
    value: Node,
}

impl Override {
    /// Reads `KEY=VALUE`.
    ///
    /// # Errors
    /// There is no `=`, or KEY is no key.
    pub fn read(text: &str) -> Result<Override, Mistake> {
        let mistake = |message: &str| Mistake {
            origin: "command line".to_owned(),
            place: Place::Override(text.to_owned()),
            message: message.to_owned(),
        };
        let (key, value) = split(text).ok_or_else(|| mistake("write KEY=VALUE, such as workload.rate=\"12 MiB/s\""))?;
        let mut path = key_path(key).ok_or_else(|| mistake("KEY is a key such as workload.rate or trials"))?;
        if path.first().is_some_and(|first| first == "vary") && path.len() > 2 {
            path = vec!["vary".to_owned(), super::tree::dotted(&path[1..])];
        }
        Ok(Override { text: text.to_owned(), path, value: read_value(value) })
    }

    /// Puts it into an experiment.
    pub fn apply(&self, tree: &mut Node) {
        let place = Place::Override(self.text.clone());
        let key = super::tree::dotted(&self.path);
        let list = matches!(&self.value, Node::Tables(_)) || matches!(&self.value, Node::Leaf(v) if v.is_array());
        let varied = vec!["vary".to_owned(), key.clone()];
        if tree.at(&varied).is_some() && list {
            tree.set(&varied, &place, self.value.clone());
            return;
        }
        // What is fixed here is no longer varied: its key goes from [vary] and from every [[zip]] and [[cell]].
        let Node::Table(fields) = &mut *tree else { return };
        for field in fields {
            match (&mut field.node, field.key.as_str()) {
                (node @ Node::Table(_), "vary") => drop(node.remove(&key)),
                (Node::Tables(items), "zip" | "cell") => {
                    items.iter_mut().for_each(|(_, item)| drop(item.remove(&key)));
                }
                _ => {}
            }
        }
        if list && self.path.first().is_none_or(|first| first != "vary") && known_scalar(&self.path) {
            tree.set(&varied, &place, self.value.clone());
        } else {
            tree.set(&self.path, &place, self.value.clone());
        }
    }
}

/// Whether a key of `[guest]`, `[link]` or `[energy]`, none of which takes a list, is set: a list then varies it.
fn known_scalar(path: &[String]) -> bool {
    matches!(path, [table, _] if ["guest", "link", "energy"].contains(&table.as_str()))
}

/// Splits at the first `=` that is not in quotes.
fn split(text: &str) -> Option<(&str, &str)> {
    let mut quoted = None;
    for (at, c) in text.char_indices() {
        match (c, quoted) {
            ('"' | '\'', None) => quoted = Some(c),
            (c, Some(quote)) if c == quote => quoted = None,
            ('=', None) => return Some((&text[..at], &text[at + 1..])),
            _ => {}
        }
    }
    None
}

fn key_path(key: &str) -> Option<Vec<String>> {
    if key.contains('\n') {
        return None;
    }
    let mut node = Node::parse("", &format!("{key} = 0")).ok()?;
    let mut path = Vec::new();
    while let Node::Table(mut fields) = node {
        let field = fields.pop().filter(|_| fields.is_empty())?;
        path.push(field.key);
        node = field.node;
    }
    Some(path)
}

fn read_value(text: &str) -> Node {
    let string = || Node::Leaf(text.trim().into());
    match Node::parse("", &format!("value = {text}")) {
        Ok(Node::Table(mut fields)) if fields.len() == 1 => fields.pop().map_or_else(string, |field| field.node),
        _ => string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(text: &str, overrides: &[&str]) -> Value {
        let mut tree = Node::parse("x", text).unwrap();
        for o in overrides {
            Override::read(o).unwrap().apply(&mut tree);
        }
        tree.plain()
    }

    #[test]
    fn a_value_is_toml_if_it_parses_else_a_string() {
        assert_eq!(set("", &["trials=3"]), json!({"trials": 3}));
        assert_eq!(set("", &["workload.rate=12 MiB/s"]), json!({"workload": {"rate": "12 MiB/s"}}));
        assert_eq!(set("", &["workload.rate=\"12 MiB/s\""]), json!({"workload": {"rate": "12 MiB/s"}}));
        assert_eq!(set("", &["name=a=b"]), json!({"name": "a=b"}));
        assert_eq!(set("", &["name="]), json!({"name": ""}));
        assert_eq!(set("", &["workload.content={zero=0.5, text=0.5}"])["workload"]["content"]["zero"], json!(0.5));
        assert_eq!(set("", &["name=1\nseed=2"]), json!({"name": "1\nseed=2"}));
    }

    #[test]
    fn setting_a_varied_key_fixes_it_or_varies_it_anew() {
        let file = "[vary]\n\"workload.rate\" = [\"1 MiB/s\", \"2 MiB/s\"]";
        assert_eq!(set(file, &["workload.rate=3 MiB/s"]), json!({"vary": {}, "workload": {"rate": "3 MiB/s"}}));
        assert_eq!(set(file, &["workload.rate=[\"3 MiB/s\"]"]), json!({"vary": {"workload.rate": ["3 MiB/s"]}}));
        assert_eq!(
            set(file, &["vary.\"guest.vcpus\"=[1, 2]"])["vary"],
            json!({"workload.rate": ["1 MiB/s", "2 MiB/s"], "guest.vcpus": [1, 2]})
        );
        assert_eq!(set("", &["guest.vcpus=[1, 2]"]), json!({"vary": {"guest.vcpus": [1, 2]}}));
        let zip = "[[zip]]\n\"workload.rate\" = [\"1 MiB/s\"]\n\"guest.ram\" = [\"1 MiB\"]";
        assert_eq!(set(zip, &["workload.rate=1 MiB/s"])["zip"], json!([{"guest.ram": ["1 MiB"]}]));
    }

    #[test]
    fn what_is_no_assignment_is_refused() {
        for text in ["trials", "=3", "a b=3", "[x]=3", "a\nb=3"] {
            let message = Override::read(text).unwrap_err().to_string();
            assert!(message.contains(text) && message.contains("KEY"), "{message}");
        }
    }
}
