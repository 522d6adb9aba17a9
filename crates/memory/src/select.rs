//! The seam of the selections: which of the pages that a push offers go now, and which can wait.

use whimbrel_model::strategy::Stage;
use whimbrel_model::{Extent, Page, ParameterError, Parameters, UnitSet};

/// What a selection sees.
#[derive(Clone, Copy, Debug)]
pub struct SelectView<'a> {
    /// Where the guest is. Nothing can wait while it is paused: of the pages that it hasn't got then, those that are `free` and
    /// not kept are left out for good.
    pub stage: Stage,
    /// What was written since the last `Take`, as of the last look; `None` before the first.
    pub peeked: Option<&'a UnitSet<Page>>,
    /// Pages whose content is nobody's: the guest has said so, and no look at the log since has shown a write. `None` before
    /// the first answer.
    pub free: Option<&'a UnitSet<Page>>,
}

/// Picks from each stretch of a push what goes now. What it doesn't keep waits among the unsent pages.
pub trait Select: Send {
    /// How many offered pages may pass between two looks at the log of writes; `None`: it needs no look.
    fn peek_every(&self) -> Option<u64>;

    /// How many pages may go between two questions to the guest, which pages are free; `None`: it needs no answer. The first
    /// question comes before any page. To answer takes the guest time, and makes it write.
    fn ask_every(&self) -> Option<u64> {
        None
    }

    /// Whether pages that the guest calls copies of its disk go as references to it, where the destination has the blocks.
    fn refers(&self) -> bool {
        false
    }

    /// Appends to `keep` what of `pages` goes now: ascending runs within `pages`.
    fn choose(&mut self, pages: Extent, view: &SelectView<'_>, keep: &mut Vec<Extent>);
}

/// The constructor of a selection.
pub type MakeSelect = fn(&Parameters) -> Result<Box<dyn Select>, ParameterError>;
