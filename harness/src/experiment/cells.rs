//! The cells of an experiment: every combination of what is varied.
//!
//! `[vary]` gives each key a list; each `[[zip]]` table gives several keys lists of the same length that go together;
//! the `[[cell]]` tables are one list of combinations. The cells are the product of all of these, the last varying
//! fastest. A key is written with its table: `"workload.rate"`.

use super::setting::Setting;
use super::tree::{Field, Mistake, Node, Place};
use serde_json::{Map, Value};

/// The tables whose keys may vary.
const TABLES: [&str; 6] = ["guest", "link", "workload", "memory", "disk", "coordinator"];
/// The most cells.
const MOST_CELLS: usize = 10_000;

/// One combination of varied parameters.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Its name: `key=value` joined by a comma and a space, or `all` where nothing is varied.
    pub name: String,
    /// The varied keys and their values.
    pub factors: Map<String, Value>,
    /// What it fixes.
    pub setting: Setting,
}

/// Makes the keys of `[vary]`, `[[zip]]` and `[[cell]]` flat: `workload.rate = ..` becomes `"workload.rate" = ..`.
pub fn flatten(tree: &mut Node) {
    let Node::Table(fields) = tree else { return };
    for field in fields {
        match (field.key.as_str(), &mut field.node) {
            ("vary", table @ Node::Table(_)) => flatten_table(table),
            ("zip" | "cell", Node::Tables(items)) => items.iter_mut().for_each(|(_, item)| flatten_table(item)),
            _ => {}
        }
    }
}

fn flatten_table(table: &mut Node) {
    let Node::Table(fields) = table else { return };
    let mut flat = Vec::new();
    for field in std::mem::take(fields) {
        match field.node {
            Node::Table(inner) if TABLES.contains(&field.key.as_str()) => {
                flat.extend(inner.into_iter().map(|f| Field { key: format!("{}.{}", field.key, f.key), ..f }));
            }
            node => flat.push(Field { node, ..field }),
        }
    }
    *fields = flat;
}

/// One value of one varied key.
#[derive(Clone, Debug)]
struct Factor {
    key: String,
    place: Place,
    value: Node,
}

/// Alternatives, each of which sets some keys.
type Axis = Vec<Vec<Factor>>;

/// The checked cells, in order.
///
/// # Errors
/// The first mistake in what is varied or in any cell.
pub fn expand(origin: &str, tree: &Node) -> Result<Vec<Cell>, Mistake> {
    let axes = axes(origin, tree)?;
    let combinations = axes.iter().map(Vec::len).fold(1usize, usize::saturating_mul);
    if combinations > MOST_CELLS {
        let message = format!("vary: {combinations} cells are not accepted; vary at most {MOST_CELLS}");
        return Err(Mistake { origin: origin.to_owned(), place: Place::Missing, message });
    }
    let mut base = tree.clone();
    for key in ["vary", "zip", "cell"] {
        base.remove(key);
    }
    (0..combinations).map(|index| cell(origin, &base, &axes, index)).collect()
}

fn cell(origin: &str, base: &Node, axes: &[Axis], mut index: usize) -> Result<Cell, Mistake> {
    let mut chosen: Vec<&[Factor]> = Vec::new();
    for axis in axes.iter().rev() {
        chosen.push(&axis[index % axis.len()]);
        index /= axis.len();
    }
    let mut tree = base.clone();
    let (mut names, mut factors) = (Vec::new(), Map::new());
    for factor in chosen.into_iter().rev().flatten() {
        let path: Vec<String> = factor.key.split('.').map(str::to_owned).collect();
        tree.set(&path, &factor.place, factor.value.clone());
        let value = factor.value.plain();
        names.push(format!("{}={}", factor.key, value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
        factors.insert(factor.key.clone(), value);
    }
    let name = if names.is_empty() { "all".to_owned() } else { names.join(", ") };
    let setting = Setting::read(origin, &tree)?;
    Ok(Cell { name, factors, setting })
}

fn axes(origin: &str, tree: &Node) -> Result<Vec<Axis>, Mistake> {
    let mistake = |place: &Place, message: String| Mistake { origin: origin.to_owned(), place: place.clone(), message };
    let mut axes: Vec<Axis> = Vec::new();
    for section in ["vary", "zip", "cell"] {
        let Some(field) = tree.field(section) else { continue };
        let tables: Vec<&Node> = match (&field.node, section) {
            (table @ Node::Table(_), "vary") => vec![table],
            (Node::Tables(items), "zip" | "cell") => items.iter().map(|(_, item)| item).collect(),
            _ => {
                let accepted = if section == "vary" { "a table [vary]" } else { &format!("tables [[{section}]]") };
                return Err(mistake(&field.place, format!("{section}: write {accepted}")));
            }
        };
        match section {
            "vary" => {
                for key in fields(tables[0]) {
                    axes.push(values(origin, key)?.into_iter().map(|factor| vec![factor]).collect());
                }
            }
            "zip" => {
                for table in tables {
                    axes.extend(zipped(origin, table)?);
                }
            }
            _ => axes.push(tables.iter().map(|table| listed(table)).collect()),
        }
    }
    let mut keys: Vec<&str> = Vec::new();
    for axis in &axes {
        let first = axis.len();
        for factor in axis.iter().flatten() {
            allowed(&factor.key).map_err(|message| mistake(&factor.place, message))?;
            if keys.contains(&factor.key.as_str()) {
                let message = format!("{}: it is varied already; vary it in one place", factor.key);
                return Err(mistake(&factor.place, message));
            }
        }
        keys.extend(axis.iter().take(first).flatten().map(|f| f.key.as_str()));
    }
    Ok(axes)
}

fn fields(node: &Node) -> &[Field] {
    match node {
        Node::Table(fields) => fields,
        _ => &[],
    }
}

fn allowed(key: &str) -> Result<(), String> {
    match key.split_once('.') {
        Some((table, rest)) if TABLES.contains(&table) && !rest.is_empty() => Ok(()),
        _ => Err(format!("{key}: it can't vary; vary a key of {}, such as \"workload.rate\"", TABLES.join(", "))),
    }
}

/// The values that a list gives to a key.
fn values(origin: &str, field: &Field) -> Result<Vec<Factor>, Mistake> {
    let factor = |place: &Place, value: Node| Factor { key: field.key.clone(), place: place.clone(), value };
    let values: Vec<Factor> = match &field.node {
        Node::Tables(items) => items.iter().map(|(place, item)| factor(place, item.clone())).collect(),
        Node::Leaf(Value::Array(items)) => {
            items.iter().map(|item| factor(&field.place, Node::Leaf(item.clone()))).collect()
        }
        _ => Vec::new(),
    };
    if values.is_empty() {
        let found = field.node.plain();
        let message = format!("{}: {found} is not accepted; write a list of at least one value", field.key);
        return Err(Mistake { origin: origin.to_owned(), place: field.place.clone(), message });
    }
    Ok(values)
}

fn zipped(origin: &str, table: &Node) -> Result<Option<Axis>, Mistake> {
    let mut axis: Axis = Vec::new();
    for (nth, field) in fields(table).iter().enumerate() {
        let column = values(origin, field)?;
        if nth == 0 {
            axis.resize(column.len(), Vec::new());
        }
        if column.len() != axis.len() {
            let message = format!(
                "{}: {} values are not accepted; write {} as for the key before it",
                field.key,
                column.len(),
                axis.len()
            );
            return Err(Mistake { origin: origin.to_owned(), place: field.place.clone(), message });
        }
        axis.iter_mut().zip(column).for_each(|(row, factor)| row.push(factor));
    }
    // An override may have fixed every key of a [[zip]] table.
    Ok((!axis.is_empty()).then_some(axis))
}

fn listed(table: &Node) -> Vec<Factor> {
    let factor = |f: &Field| Factor { key: f.key.clone(), place: f.place.clone(), value: f.node.clone() };
    fields(table).iter().map(factor).collect()
}
