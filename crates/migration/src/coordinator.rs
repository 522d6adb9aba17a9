//! The seam of the coordinators: which family may push when, and how memory and disk share the link.
//!
//! A coordinator answers and the engine acts, as a [`Schedule`](whimbrel_model::Schedule) does. It is asked whenever
//! something happens while the guest runs; while it is paused everything goes at once. To add one, write a file in
//! `coordinators/` and a line in [`coordinators`](crate::coordinators).

use crate::coordinators::COORDINATORS;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use whimbrel_model::registry::{ParameterError, UnknownName};
use whimbrel_model::{Entry, Parameters};

/// Orders memory and disk. One object a move, at the source; a guest without a disk has none.
pub trait Coordinator: Send {
    /// Who may push now, and with how much of the link.
    fn turns(&mut self, view: &CoordinatorView) -> Turns;
}

/// What a coordinator sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CoordinatorView {
    /// The memory.
    pub memory: FamilyView,
    /// The disk.
    pub disk: FamilyView,
}

/// What a coordinator sees of one family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FamilyView {
    /// Before the hand-over: its schedule is ready for the pause. After it: nothing is left to be sent.
    pub done: bool,
    /// Something of it is on its way or queued.
    pub sending: bool,
}

/// What a coordinator answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turns {
    /// The memory's turn.
    pub memory: Turn,
    /// The disk's turn.
    pub disk: Turn,
}

/// What one family may do now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turn {
    /// Whether its schedule is asked at all.
    pub may_push: bool,
    /// The part of the link's rate that it keeps to, above 0 and at most 1; `None`: what it gets.
    pub share: Option<f64>,
}

impl Turn {
    /// It may push, with what it gets of the link.
    pub const FREE: Turn = Turn { may_push: true, share: None };
    /// It waits.
    pub const WAITS: Turn = Turn { may_push: false, share: None };

    /// It may push with a part of the link.
    pub fn share(share: f64) -> Turn {
        Turn { may_push: true, share: Some(share) }
    }
}

/// How a coordinator is made, and what it needs to know.
pub struct Maker {
    /// Makes one from its checked parameters.
    ///
    /// # Errors
    /// A value that isn't accepted.
    pub build: fn(&Parameters) -> Result<Box<dyn Coordinator>, ParameterError>,
    /// It gives out shares of the link's rate, which must be known.
    pub shares: bool,
}

/// The key that names the coordinator.
const USE: &str = "use";

/// A `[coordinator]` table: `use` and that member's parameters. Checked when it is made; an empty one means `together`.
///
/// Serialised, it is the table as it was written.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, Value>", into = "BTreeMap<String, Value>")]
pub struct CoordinatorChoice {
    entry: &'static Entry<Maker>,
    given: BTreeMap<String, Value>,
    parameters: Parameters,
}

impl Default for CoordinatorChoice {
    fn default() -> Self {
        CoordinatorChoice::try_from(BTreeMap::new()).expect("an empty table is accepted")
    }
}

impl std::fmt::Debug for CoordinatorChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the coordinator {}", self.name())
    }
}

impl TryFrom<BTreeMap<String, Value>> for CoordinatorChoice {
    type Error = ParameterError;

    /// # Errors
    /// An unknown name, or a parameter that the member doesn't have or accept.
    fn try_from(mut given: BTreeMap<String, Value>) -> Result<Self, ParameterError> {
        let entry = match given.remove(USE) {
            None => &COORDINATORS.entries[0],
            Some(Value::String(name)) => COORDINATORS.find(&name).map_err(|e: UnknownName| ParameterError::from(e))?,
            Some(other) => COORDINATORS.find(&other.to_string()).map_err(|e: UnknownName| ParameterError::from(e))?,
        };
        let parameters = Parameters::read(entry.parameters, &given)?;
        (entry.build.build)(&parameters)?;
        Ok(CoordinatorChoice { entry, given, parameters })
    }
}

impl From<CoordinatorChoice> for BTreeMap<String, Value> {
    fn from(choice: CoordinatorChoice) -> Self {
        let mut table = choice.given;
        table.insert(USE.to_owned(), choice.entry.name.into());
        table
    }
}

impl CoordinatorChoice {
    /// The coordinator's name.
    pub fn name(&self) -> &'static str {
        self.entry.name
    }

    /// Whether it gives out shares of the link's rate, so that the link must have one.
    pub fn shares_the_link(&self) -> bool {
        self.entry.build.shares
    }

    /// The table with the name and every parameter, defaults filled in. Read again, it chooses the same.
    pub fn resolved(&self) -> BTreeMap<String, Value> {
        let mut table = BTreeMap::from([(USE.to_owned(), Value::from(self.name()))]);
        for parameter in self.entry.parameters {
            if let Some(value) = parameter.default.and_then(|text| serde_json::from_str(text).ok()) {
                table.insert(parameter.name.to_owned(), value);
            }
        }
        table.extend(self.given.clone());
        table
    }

    /// Makes the coordinator of one move.
    pub fn build(&self) -> Box<dyn Coordinator> {
        (self.entry.build.build)(&self.parameters).expect("the same parameters were built from when they were read")
    }
}
