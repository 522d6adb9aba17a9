//! What the lanes were asked to send and have not sent.

use super::Run;
use whimbrel_model::Extent;

#[derive(Debug)]
struct Job {
    number: u64,
    units: Vec<Extent>,
    /// Units that hold content, as far as is known.
    content_units: u64,
    /// Some of its units go by name.
    named: bool,
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
        self.jobs.push(Job { number, units, content_units, named: false });
        number
    }

    /// It is sent.
    pub(super) fn close(&mut self, number: u64) {
        self.jobs.retain(|job| job.number != number);
    }

    /// Some of its units go by name, and no more than this by content.
    pub(super) fn go_by_name(&mut self, number: u64, by_content: u64) {
        for job in self.jobs.iter_mut().filter(|job| job.number == number) {
            job.content_units = job.content_units.min(by_content);
            job.named = true;
        }
    }

    pub(super) fn is_named(&self, number: u64) -> bool {
        self.jobs.iter().any(|job| job.number == number && job.named)
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
