//! A rate limit of a disk strategy's own: what it pushes and fetches while the guest runs takes no more of the link.
//!
//! Luo et al. (CLUSTER 2008) limit the migration to spare the guest's own I/O. A pause has all of the link, and so has what
//! the guest waits for; writes that are mirrored go as the guest makes them.

use whimbrel_model::{Block, ByteRate, Needs, Pull, PullView, Schedule, Step, View};

/// A schedule that keeps to a limit.
pub struct Limited {
    /// What orders the blocks.
    pub schedule: Box<dyn Schedule<Block>>,
    /// The limit.
    pub most: ByteRate,
}

impl Limited {
    fn least(&self, limit: Option<ByteRate>) -> Option<ByteRate> {
        Some(limit.filter(|limit| limit.0 < self.most.0).unwrap_or(self.most))
    }
}

impl Schedule<Block> for Limited {
    fn source(&mut self, view: &View<'_, Block>) -> Vec<Step<Block>> {
        let steps = self.schedule.source(view);
        let limited = steps.into_iter().map(|step| match step {
            Step::Push { units, limit } => Step::Push { units, limit: self.least(limit) },
            Step::Offer { units, limit } => Step::Offer { units, limit: self.least(limit) },
            other => other,
        });
        limited.collect()
    }

    fn needs(&self) -> Needs {
        self.schedule.needs()
    }

    fn note(&mut self, view: &View<'_, Block>) -> Vec<u8> {
        self.schedule.note(view)
    }

    fn destination(&mut self, view: &PullView<'_, Block>, note: &[u8]) -> Vec<Pull<Block>> {
        let pulls = self.schedule.destination(view, note);
        let limited = pulls.into_iter().map(|pull| match pull {
            Pull::Fetch { units, limit } => Pull::Fetch { units, limit: self.least(limit) },
            other => other,
        });
        limited.collect()
    }
}
