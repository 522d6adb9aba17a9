//! What the lanes were asked to send and have not sent.

use super::Run;
use whimbrel_model::Extent;

#[derive(Debug)]
struct Job {
    number: u64,
    units: Vec<Extent>,
    /// Units that hold content, as far as is known.
    content_units: u64,
}

/// The jobs that are on their way.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    jobs: Vec<Job>,
    next: u64,
}

impl Jobs {
    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Begins one; its number.
    pub(super) fn open(&mut self, runs: &[Run], content_units: u64) -> u64 {
        let number = self.next;
        self.next += 1;
        let units = runs.iter().map(|run| run.extent).collect();
        self.jobs.push(Job { number, units, content_units });
        number
    }

    /// It is sent.
    pub(super) fn close(&mut self, number: u64) {
        self.jobs.retain(|job| job.number != number);
    }

    /// No more of its units than this go by content.
    pub(super) fn holds_content(&mut self, number: u64, most_units: u64) {
        let job = self.jobs.iter_mut().filter(|job| job.number == number);
        job.for_each(|job| job.content_units = job.content_units.min(most_units));
    }

    pub(super) fn has_content(&self, number: u64) -> bool {
        self.jobs.iter().any(|job| job.number == number && job.content_units > 0)
    }

    /// Units with content that are on their way.
    pub(super) fn content_units(&self) -> u64 {
        self.jobs.iter().map(|job| job.content_units).sum()
    }

    /// Whether any of these is on its way.
    pub(super) fn touch(&self, units: Extent) -> bool {
        let touches = |run: &Extent| run.start < units.end() && units.start < run.end();
        self.jobs.iter().any(|job| job.units.iter().any(touches))
    }
}
