//! The `[workload]` table of an experiment file: which workload, with which parameters, pacing and content.

use crate::workload::{BuildContext, Offered, Streams, Workload};
use crate::workloads::WORKLOADS;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use whimbrel_model::content::Content;
use whimbrel_model::registry::{Entry, Kind, Parameter, ParameterError, Parameters};
use whimbrel_model::stream::Pacing;

/// The keys that every workload has. `use` is read before them.
const COMMON: [Parameter; 3] = [
    Parameter { name: "use", summary: "the workload", kind: Kind::Any, default: Some("memory-intensive") },
    Parameter {
        name: "pacing",
        summary: "what becomes of operations that could not start when they were due",
        kind: Kind::Choice(&["closed", "open-catch-up", "open-skip"]),
        default: Some("closed"),
    },
    Parameter {
        name: "content",
        summary: "what RAM and disk hold before operation 0: zero, text, pointers, random, desktop, or shares of classes; \
                  left out: the workload's own",
        kind: Kind::Content,
        default: None,
    },
];

type Table = BTreeMap<String, Value>;

/// A workload with its parameters, checked. It serialises as the table that it was read from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "Table", into = "Table")]
pub struct WorkloadChoice {
    entry: &'static Entry<Workload>,
    given: Table,
    parameters: Parameters,
    content: Content,
    pacing: Pacing,
}

impl WorkloadChoice {
    /// Reads the flat table: `use`, `pacing`, `content` and the workload's own keys. Without `use` it is
    /// `memory-intensive`.
    ///
    /// # Errors
    /// The first key or value that is not accepted. What depends on the guest's size is checked by
    /// [`WorkloadChoice::build`].
    pub fn read(table: &Table) -> Result<Self, ParameterError> {
        let accepted = "a workload's name";
        let name = match table.get("use") {
            None => WORKLOADS.entries[0].name,
            Some(value) => value.as_str().ok_or_else(|| crate::workload::refuse("use", value, accepted))?,
        };
        let entry = WORKLOADS.find(name)?;
        let parameters = Parameters::read(&keys(entry), table)?;
        let content = parameters.any("content").cloned().unwrap_or_else(|| Value::from(entry.build.content));
        let pacing = match parameters.word("pacing") {
            "open-catch-up" => Pacing::OpenCatchUp,
            "open-skip" => Pacing::OpenSkip,
            _ => Pacing::Closed,
        };
        let content = Content::read("content", &content)?;
        Ok(WorkloadChoice { entry, given: table.clone(), parameters, content, pacing })
    }

    /// Makes the streams, one a vCPU.
    ///
    /// # Errors
    /// A parameter that this guest can't satisfy, such as a working set larger than its RAM.
    pub fn build(&self, context: &BuildContext) -> Result<Streams, ParameterError> {
        (self.entry.build.streams)(&self.parameters, context)
    }

    /// What the workload asks of this guest, by its parameters alone.
    pub fn offered(&self, context: &BuildContext) -> Offered {
        (self.entry.build.offered)(&self.parameters, context)
    }

    /// The workload's name.
    pub fn name(&self) -> &'static str {
        self.entry.name
    }

    /// The unit in which its work is counted, in the plural.
    pub fn unit(&self) -> &'static str {
        self.entry.build.unit
    }

    /// What becomes of operations that could not start when they were due.
    pub fn pacing(&self) -> Pacing {
        self.pacing
    }

    /// What RAM and disk hold before operation 0.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The table with all defaults filled in, as it may be read again. Keys without a default stay out.
    pub fn resolved(&self) -> Table {
        let mut table = self.given.clone();
        table.insert("use".to_owned(), Value::from(self.name()));
        table.entry("content".to_owned()).or_insert_with(|| Value::from(self.entry.build.content));
        for parameter in keys(self.entry) {
            if let Some(default) = parameter.default {
                table.entry(parameter.name.to_owned()).or_insert_with(|| written(&parameter, default));
            }
        }
        table
    }
}

fn keys(entry: &Entry<Workload>) -> Vec<Parameter> {
    COMMON.iter().chain(entry.parameters).copied().collect()
}

/// A default as it would stand in a file.
fn written(parameter: &Parameter, default: &str) -> Value {
    match parameter.kind {
        Kind::Count | Kind::Ratio | Kind::Number | Kind::Flag | Kind::Any => {
            serde_json::from_str(default).unwrap_or_else(|_| Value::from(default))
        }
        _ => Value::from(default),
    }
}

impl TryFrom<Table> for WorkloadChoice {
    type Error = ParameterError;

    fn try_from(table: Table) -> Result<Self, ParameterError> {
        WorkloadChoice::read(&table)
    }
}

impl From<WorkloadChoice> for Table {
    fn from(choice: WorkloadChoice) -> Table {
        choice.given
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<WorkloadChoice, ParameterError> {
        WorkloadChoice::read(&serde_json::from_value::<Table>(value).unwrap())
    }

    #[test]
    fn a_choice_survives_the_wire_and_its_resolved_form_reads_the_same() {
        for entry in WORKLOADS.entries {
            let choice = read(json!({ "use": entry.name })).unwrap();
            let text = serde_json::to_string(&choice).unwrap();
            let again: WorkloadChoice = serde_json::from_str(&text).unwrap();
            let resolved = WorkloadChoice::read(&choice.resolved()).unwrap();
            assert_eq!((again.name(), resolved.name()), (entry.name, entry.name));
            assert_eq!(resolved.resolved(), choice.resolved());
            assert_eq!((resolved.content(), resolved.pacing()), (choice.content(), choice.pacing()));
            assert_eq!(resolved.parameters, {
                let mut expected = again.parameters.clone();
                // The resolved form names the content that the other one leaves to the workload.
                if !expected.has("content") {
                    expected = Parameters::read(&keys(entry), &choice.resolved()).unwrap();
                }
                expected
            });
        }
    }

    #[test]
    fn a_mistake_names_the_key() {
        for (table, part) in [
            (json!({ "use": "memory-intense" }), "memory-intensive"),
            (json!({ "pacing": "open" }), "open-catch-up"),
            (json!({ "content": "txet" }), "content"),
            (json!({ "workingset": "1 MiB" }), "working_set"),
            (json!({ "rate": "12 MB/s" }), "rate"),
            (json!({ "use": "idle", "rate": "1 MiB/s" }), "rate"),
            (json!({ "use": 3 }), "use"),
        ] {
            let message = read(table.clone()).unwrap_err().to_string();
            assert!(message.contains(part), "{table}: {message}");
        }
        assert!(serde_json::from_str::<WorkloadChoice>(r#"{"use":"nothing-like-it"}"#).is_err());
    }
}
