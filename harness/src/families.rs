//! The pluggable families as the program sees them: what an experiment may name, and what `whimbrel list` shows.

use serde::Serialize;
use serde_json::{Value, json};
use whimbrel_model::Registry;
use whimbrel_model::registry::{Entry, Kind, Parameter, ParameterError};
use whimbrel_model::stream::Shape;

pub use whimbrel_disk::DiskChoice;
pub use whimbrel_memory::MemoryChoice;
pub use whimbrel_migration::CoordinatorChoice;
pub use whimbrel_workloads::WorkloadChoice;

/// What `whimbrel list` lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Family {
    /// What runs in a guest.
    Workloads,
    /// Kinds of virtual machine.
    Machines,
    /// What memory to push when.
    Schedules,
    /// Which pages can wait.
    Selections,
    /// How a page becomes bytes.
    Encodings,
    /// When the rest is small enough.
    StopRules,
    /// How a guest is slowed.
    Throttles,
    /// Named combinations for memory and disk with published parameters.
    Presets,
    /// How a disk moves.
    Disk,
    /// How memory and disk share the time and the link.
    Coordinators,
    /// What reads a host's energy.
    Meters,
}

/// One member as it is listed.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// The name that an experiment uses.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// The parameters: name, summary, kind, default.
    pub parameters: Vec<Value>,
    /// Where it comes from.
    pub source: &'static str,
}

impl Family {
    /// The family's members.
    pub fn members(self) -> Vec<Listed> {
        match self {
            Family::Workloads => listed(&whimbrel_workloads::WORKLOADS),
            Family::Machines => listed(&whimbrel_machine::MACHINES),
            Family::Schedules => listed(&whimbrel_memory::SCHEDULES),
            Family::Selections => listed(&whimbrel_memory::SELECTIONS),
            Family::Encodings => listed(&whimbrel_memory::ENCODINGS),
            Family::StopRules => listed(&whimbrel_memory::STOP_RULES),
            Family::Throttles => listed(&whimbrel_memory::THROTTLES),
            Family::Presets => {
                let mut all = listed(&whimbrel_memory::PRESETS);
                whimbrel_machine::MACHINES.entries.iter().for_each(|machine| all.extend(listed(machine.build.own)));
                all.extend(listed(&whimbrel_disk::DISK_PRESETS));
                whimbrel_machine::MACHINES
                    .entries
                    .iter()
                    .for_each(|machine| all.extend(listed(machine.build.own_disk)));
                all
            }
            Family::Disk => listed(&whimbrel_disk::DISK_STRATEGIES),
            Family::Coordinators => listed(&whimbrel_migration::COORDINATORS),
            Family::Meters => listed(&whimbrel_energy::METERS),
        }
    }
}

fn listed<C>(registry: &Registry<C>) -> Vec<Listed> {
    let member = |entry: &Entry<C>| Listed {
        name: entry.name,
        summary: entry.summary,
        parameters: entry.parameters.iter().map(parameter).collect(),
        source: entry.source,
    };
    registry.entries.iter().map(member).collect()
}

fn parameter(parameter: &Parameter) -> Value {
    json!({
        "name": parameter.name,
        "summary": parameter.summary,
        "kind": written_as(parameter.kind),
        "default": parameter.default,
    })
}

/// How a value of this kind is written, in words.
fn written_as(kind: Kind) -> String {
    match kind {
        Kind::Size => "size".to_owned(),
        Kind::Rate => "rate".to_owned(),
        Kind::Duration => "duration".to_owned(),
        Kind::Chunk => "size, a power of two".to_owned(),
        Kind::Count => "count".to_owned(),
        Kind::Positive => "count, at least 1".to_owned(),
        Kind::Ratio => "ratio".to_owned(),
        Kind::Number => "number".to_owned(),
        Kind::Flag => "flag".to_owned(),
        Kind::Choice(words) => format!("one of {}", words.join(", ")),
        Kind::Content => "content".to_owned(),
        Kind::Any => "any".to_owned(),
    }
}

/// The names of the machines.
pub fn machine_names() -> Vec<&'static str> {
    whimbrel_machine::MACHINES.names().collect()
}

/// Sees that a workload can run in a guest of this shape.
///
/// # Errors
/// The parameter that asks for more than the guest has.
pub fn fits(workload: &WorkloadChoice, shape: Shape) -> Result<(), ParameterError> {
    workload.build(&whimbrel_workloads::BuildContext::new(shape, 0)).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn every_family_has_members_that_say_what_they_are() {
        for family in Family::value_variants() {
            let members = family.members();
            assert!(!members.is_empty(), "{family:?} is empty");
            for member in members {
                assert!(!member.summary.is_empty() && !member.source.is_empty(), "{family:?} {}", member.name);
            }
        }
    }
}
