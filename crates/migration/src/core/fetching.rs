//! What the destination fetches before its guest asks for it, in the order of the disk's schedule.

use std::collections::VecDeque;
use whimbrel_model::{Block, ByteRate, Extent, Nanos, Pull, PullView, Schedule, UnitSet};

/// Bytes that one job asks the lane to fetch.
const JOB_BYTES: u64 = 256 << 10;
/// Jobs that the lane has at once: enough to cover a round trip, few enough that their order still means something.
const JOBS_AT_ONCE: usize = 4;

/// One job for the lane.
#[derive(Debug, PartialEq)]
pub(super) struct Job {
    pub(super) number: u64,
    pub(super) extent: Extent,
    pub(super) limit: Option<ByteRate>,
}

/// The prefetch of one disk.
pub(super) struct Fetching {
    schedule: Box<dyn Schedule<Block>>,
    unit_bytes: u64,
    note: Vec<u8>,
    unfetched: UnitSet<Block>,
    queue: VecDeque<Extent>,
    limit: Option<ByteRate>,
    steps: VecDeque<Pull<Block>>,
    under_way: usize,
    next_job: u64,
    /// The guest runs since then.
    resumed: Option<Nanos>,
    asks_at: Option<Nanos>,
    done: bool,
}

impl Fetching {
    pub(super) fn new(schedule: Box<dyn Schedule<Block>>, unit_bytes: u64) -> Self {
        Fetching {
            schedule,
            unit_bytes: unit_bytes.max(1),
            note: Vec::new(),
            unfetched: UnitSet::empty(0),
            queue: VecDeque::new(),
            limit: None,
            steps: VecDeque::new(),
            under_way: 0,
            next_job: 0,
            resumed: None,
            asks_at: None,
            done: false,
        }
    }

    /// What the source says: its schedule's note, and what will be missing.
    pub(super) fn learn(&mut self, note: Vec<u8>, missing: UnitSet<Block>) {
        (self.note, self.unfetched) = (note, missing);
    }

    /// The guest runs.
    pub(super) fn begin(&mut self, now: Nanos) {
        self.resumed = Some(now);
    }

    /// A job's blocks are here, or were.
    pub(super) fn fetched(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// The next jobs.
    pub(super) fn drive(&mut self, now: Nanos, jobs: &mut Vec<Job>) {
        let Some(resumed) = self.resumed else { return };
        while !self.done {
            while self.under_way < JOBS_AT_ONCE
                && let Some(extent) = self.next_extent()
            {
                jobs.push(Job { number: self.next_job, extent, limit: self.limit });
                self.next_job += 1;
                self.under_way += 1;
            }
            if !self.queue.is_empty() || self.under_way > 0 || self.asks_at.is_some_and(|at| now < at) {
                return;
            }
            self.asks_at = None;
            match self.steps.pop_front() {
                Some(Pull::Fetch { units, limit }) => {
                    self.limit = limit;
                    self.queue.extend(units.extents().iter().copied().filter(|e| e.count > 0));
                }
                Some(Pull::Wait(until)) => self.asks_at = Some(resumed.plus(until)),
                None => {
                    let now = now.since(resumed);
                    let view = PullView { now, unit_bytes: self.unit_bytes, unfetched: &self.unfetched };
                    self.steps.extend(self.schedule.destination(&view, &self.note));
                    self.done = self.steps.is_empty();
                }
            }
        }
    }

    /// When to be driven though nothing has happened.
    pub(super) fn wakes_at(&self) -> Option<Nanos> {
        self.asks_at
    }

    /// Up to a job's worth off the queue, of units that are still to be fetched.
    fn next_extent(&mut self) -> Option<Extent> {
        let most = (JOB_BYTES / self.unit_bytes).max(1);
        while let Some(mut front) = self.queue.pop_front() {
            let Some(start) = self.unfetched.next(front.start).filter(|start| *start < front.end()) else { continue };
            let mut end = start + 1;
            while end < front.end() && end - start < most && self.unfetched.contains(end) {
                end += 1;
            }
            front.count = front.end() - end;
            front.start = end;
            if front.count > 0 {
                self.queue.push_front(front);
            }
            let extent = Extent { start, count: end - start };
            self.unfetched.remove_extent(extent);
            return Some(extent);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whimbrel_model::{Ordered, Step, View};

    struct TwoAnswers(u32);

    impl Schedule<Block> for TwoAnswers {
        fn source(&mut self, _: &View<'_, Block>) -> Vec<Step<Block>> {
            Vec::new()
        }

        fn destination(&mut self, view: &PullView<'_, Block>, note: &[u8]) -> Vec<Pull<Block>> {
            self.0 += 1;
            let fetch = |extents| Pull::Fetch { units: Ordered::of(extents), limit: None };
            match self.0 {
                1 => vec![fetch(vec![Extent { start: u64::from(note[0]), count: 100 }]), Pull::Wait(Nanos(1000))],
                2 => vec![fetch(view.unfetched.extents().collect())],
                _ => Vec::new(),
            }
        }
    }

    #[test]
    fn every_missing_block_is_handed_out_once_in_the_order_of_the_schedule() {
        let mut fetching = Fetching::new(Box::new(TwoAnswers(0)), 4096);
        fetching.learn(vec![200], UnitSet::from_extents(400, [Extent { start: 10, count: 290 }]));
        let mut jobs = Vec::new();
        fetching.drive(Nanos(5), &mut jobs);
        assert_eq!(jobs, [], "the guest doesn't run yet");
        fetching.begin(Nanos(5));
        let mut now = Nanos(5);
        let mut handed = Vec::new();
        loop {
            fetching.drive(now, &mut jobs);
            assert!(jobs.len() <= JOBS_AT_ONCE && jobs.iter().all(|job| job.extent.count <= 64), "{jobs:?}");
            if jobs.is_empty() {
                let Some(at) = fetching.wakes_at() else { break };
                now = at;
                continue;
            }
            handed.push(jobs.remove(0).extent);
            fetching.fetched();
            for job in jobs.drain(..) {
                handed.push(job.extent);
                fetching.fetched();
            }
        }
        assert_eq!(handed[0].start, 200);
        let all = UnitSet::<Block>::from_extents(400, handed.iter().copied());
        assert_eq!((all.count(), handed.iter().map(|e| e.count).sum::<u64>()), (290, 290));
        assert_eq!(now, Nanos(1005));
    }
}
