//! The seam of memory's schedules: what to push now, in which order, when to be ready, and what becomes of the rest.
//!
//! The trait itself is the model's [`Schedule`], in pages. A schedule is asked again and again, and answers with steps;
//! it must not mind being asked more often than it needs. This page adds what a constructor gets to know.

use whimbrel_model::registry::Kind;
use whimbrel_model::rng::derive;
use whimbrel_model::{Ordered, Page, Parameter, ParameterError, Parameters, Schedule, UnitSet};

/// What is known when a strategy is built for one migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildContext {
    /// Pages of the guest's RAM.
    pub pages: u64,
    /// The trial's seed: a strategy that draws lots draws them from here.
    pub seed: u64,
}

/// How a schedule is made, and which of the other answers it has a use for.
#[derive(Clone, Copy, Debug)]
pub struct Maker {
    /// It pushes while the guest runs at the source. If not, a selection and a throttle would do nothing.
    pub pushes: bool,
    /// It goes by the stop rules' verdict. If not, stop rules would do nothing.
    pub judged: bool,
    /// The constructor. Whether it errs depends on the parameters alone, not on the context.
    pub build: MakeSchedule,
}

/// The constructor of a schedule.
pub type MakeSchedule = fn(&Parameters, &BuildContext) -> Result<Box<dyn Schedule<Page>>, ParameterError>;

/// The parameter that [`Order::read`] reads.
pub const ORDER: Parameter = Parameter {
    name: "order",
    summary: "the order of a push: ascending addresses, or stretches of 16 pages in pseudo-random order",
    kind: Kind::Choice(&["ascending", "scattered"]),
    default: Some("ascending"),
};

/// The parameter that [`follows`] reads.
pub const PREPAGING: Parameter = Parameter {
    name: "prepaging",
    summary: "forward: what is pushed at the destination's guest goes on behind the page that it asked for last",
    kind: Kind::Choice(&["forward", "none"]),
    default: Some("forward"),
};

/// Whether [`PREPAGING`] is asked for.
pub fn follows(parameters: &Parameters) -> bool {
    parameters.word("prepaging") == "forward"
}

/// Pages that stay together in a scattered order: 64 KiB, enough for a write of good size on the link.
const STRETCH: u64 = 16;

/// The order in which a push sends its pages.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    scatter: Option<u64>,
}

impl Order {
    /// Reads the parameter [`ORDER`].
    pub fn read(parameters: &Parameters, context: &BuildContext) -> Self {
        Order { scatter: (parameters.word("order") == "scattered").then_some(context.seed) }
    }

    /// The pages of `set` in this order. Each `round` is scattered anew.
    pub fn of(&self, set: &UnitSet<Page>, round: u64) -> Ordered<Page> {
        match self.scatter {
            None => Ordered::ascending(set),
            Some(seed) => Ordered::scattered(set, STRETCH, derive(seed, round)),
        }
    }
}
