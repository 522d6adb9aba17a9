//! `whimbrel list KIND`: a family's members, as a table or as JSON.

use crate::families::Family;
use crate::folder::json;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

/// The table's width where there is no terminal to fill.
const WIDTH: u16 = 140;

pub(super) fn list(family: Family, as_json: bool) -> String {
    let members = family.members();
    if as_json {
        return json(&members);
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    if !table.is_tty() {
        table.set_width(WIDTH);
    }
    table.set_header(["name", "what it is", "parameters", "source"]);
    for member in members {
        let parameters: Vec<String> = member.parameters.iter().map(parameter).collect();
        table.add_row([member.name, member.summary, &parameters.join("\n"), member.source]);
    }
    format!("{table}\n")
}

fn parameter(parameter: &Value) -> String {
    let text = |key: &str| parameter[key].as_str().unwrap_or_default();
    match parameter["default"].as_str() {
        Some(default) => format!("{} = {default}", text("name")),
        None => format!("{} ({})", text("name"), text("kind")),
    }
}
