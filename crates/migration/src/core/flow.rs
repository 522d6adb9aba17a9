//! The transfer of one family's units at the source: what is unsent, what is on its way, and the schedule's answers.

use super::Run;
use super::flow_words::{Around, FlowUnit, Known, Readiness, Want};
use super::jobs::Jobs;
use super::queue::Queue;
use super::runs::{head_of, split_by, still_unsent};
use std::collections::VecDeque;
use whimbrel_memory::Select;
use whimbrel_model::event::{Round, Sent};
use whimbrel_model::strategy::{Stage, Verdict};
use whimbrel_model::{
    ByteRate, Event, Extent, Family, Nanos, Needs, Observe, Ordered, Rest, Schedule, Step, UnitSet, View, WriteCounts,
};

/// Bytes that one job asks a lane to send.
const JOB_BYTES: u64 = 1 << 20;
/// Holes carry no content: a job takes them along, up to this many bytes of them.
const JOB_HOLE_BYTES: u64 = 256 << 20;
/// Jobs that a lane has at once, so that it never waits for the core.
const JOBS_AT_ONCE: usize = 2;
/// How often a schedule that has nothing to do is asked again.
pub(super) const ASK_AGAIN: Nanos = Nanos(20_000_000);

/// What the flow is waiting for before it takes its next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaiting {
    Nothing,
    /// An observation that the schedule asked for.
    Observation,
    /// A look at the log before the next stretch of a push.
    PeekToSelect,
    /// The guest's first answer.
    Hints,
    /// The schedule has nothing to do, or is ready: asked again at an instant.
    Instant(Nanos),
}

/// The round that is going on.
#[derive(Debug, Default)]
struct OpenRound {
    start: Option<Nanos>,
    sent: Sent,
    limit: Option<ByteRate>,
}

/// One family's transfer.
pub(super) struct Flow<U: FlowUnit> {
    unit_bytes: u64,
    schedule: Box<dyn Schedule<U>>,
    select: Box<dyn Select>,
    unsent: UnitSet<U>,
    /// Units that were holes when the trip began and have not been written since.
    holes: UnitSet<U>,
    sent_before: UnitSet<U>,
    peeked: Option<UnitSet<U>>,
    counts: Option<WriteCounts<U>>,
    /// Units that the guest said are free, less those that a look at the log has shown to be written since; `None`: it has
    /// not said anything.
    free: Option<UnitSet<U>>,
    /// Units that are never sent: they were free when the guest was paused.
    left_out: UnitSet<U>,
    queue: Queue,
    limit: Option<ByteRate>,
    /// What is queued goes by its digests first.
    offered: bool,
    steps: VecDeque<Step<U>>,
    awaiting: Awaiting,
    since_peek: Option<u64>,
    /// Units that went since the last question; `None` before the first.
    since_ask: Option<u64>,
    /// The guest was asked so often.
    asked: u64,
    /// The last question, while its answer would count.
    open_question: Option<u64>,
    jobs: Jobs,
    open: OpenRound,
    rounds: Vec<Round>,
    sent_bytes: u64,
    ready: Option<Readiness>,
    /// The answer that is being worked off opened with `Ready`: its other steps don't withdraw it.
    ready_holds: bool,
    /// Takes that were asked for and are not answered.
    takes: u32,
    verdict: Verdict,
    throttle: f64,
    predicted: Option<Nanos>,
}

impl<U: FlowUnit> Flow<U> {
    pub(super) fn new(
        unit_bytes: u64,
        missing: UnitSet<U>,
        holes: UnitSet<U>,
        schedule: Box<dyn Schedule<U>>,
        select: Box<dyn Select>,
    ) -> Self {
        let len = missing.len();
        Flow {
            unit_bytes,
            schedule,
            select,
            unsent: missing,
            holes,
            sent_before: UnitSet::empty(len),
            peeked: None,
            counts: None,
            free: None,
            left_out: UnitSet::empty(len),
            queue: Queue::default(),
            limit: None,
            offered: false,
            steps: VecDeque::new(),
            awaiting: Awaiting::Nothing,
            since_peek: None,
            since_ask: None,
            asked: 0,
            open_question: None,
            jobs: Jobs::default(),
            open: OpenRound::default(),
            rounds: Vec::new(),
            sent_bytes: 0,
            ready: None,
            ready_holds: false,
            takes: 0,
            verdict: Verdict::Continue,
            throttle: 0.0,
            predicted: None,
        }
    }

    pub(super) fn readiness(&self) -> Option<Readiness> {
        self.ready
    }

    pub(super) fn rounds(&self) -> &[Round] {
        &self.rounds
    }

    pub(super) fn unsent(&self) -> &UnitSet<U> {
        &self.unsent
    }

    pub(super) fn left_out(&self) -> &UnitSet<U> {
        &self.left_out
    }

    /// Units with content that the destination would lack if the guest were paused now, as far as is known.
    pub(super) fn remaining_units(&self) -> u64 {
        let queued = self.jobs.content_units();
        let written = self.peeked.as_ref().map_or(0, |p| p.count() - p.count_common(&self.unsent));
        // Blocks may be holes and pages may be free: no unit is both.
        let empty = [Some(&self.holes), self.free.as_ref()].into_iter().flatten();
        self.unsent.count() - empty.map(|empty| self.unsent.count_common(empty)).sum::<u64>() + queued + written
    }

    pub(super) fn unit_bytes(&self) -> u64 {
        self.unit_bytes
    }

    pub(super) fn total_units(&self) -> u64 {
        self.unsent.len()
    }

    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Whether what was pushed last kept to a limit of its own.
    pub(super) fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// Everything that was asked to be sent is sent.
    pub(super) fn is_quiet(&self) -> bool {
        self.jobs.is_empty() && self.queue.is_empty()
    }

    /// Nothing is unsent nor on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.is_quiet() && self.unsent.is_empty()
    }

    pub(super) fn judged(&mut self, verdict: Verdict, predicted: Option<Nanos>, throttle: f64) {
        self.verdict = verdict;
        self.predicted = predicted;
        self.throttle = throttle;
    }

    /// The instant at which the flow wants to be driven again, if it waits for one.
    pub(super) fn wakes_at(&self) -> Option<Nanos> {
        match self.awaiting {
            Awaiting::Instant(at) => Some(at),
            _ => None,
        }
    }

    /// Forgets what the schedule last said, for a new stage. What is queued but not sent stays unsent.
    pub(super) fn begin_stage(&mut self) {
        self.queue.clear();
        self.steps.clear();
        self.awaiting = Awaiting::Nothing;
        self.open_question = None;
        self.since_peek = None;
        (self.limit, self.offered) = (None, false);
    }

    /// The engine takes the log for the last time. A strategy's own take may still be under way.
    pub(super) fn last_take(&mut self) {
        self.takes += 1;
    }

    /// Every take that was asked for is answered.
    pub(super) fn is_taken(&self) -> bool {
        self.takes == 0
    }

    /// Queues everything unsent, for the engine's own carrying over.
    pub(super) fn carry_over(&mut self) {
        self.begin_stage();
        self.queue.extend(self.unsent.extents());
    }

    /// The guest has answered. What it says counts only where the log was not taken since the question: then all that is written
    /// to a page that it names will show in the next look. Returns whether it counts.
    pub(super) fn hinted(&mut self, question: u64, free: UnitSet<U>) -> bool {
        let counts = self.awaits_hints(question);
        if counts {
            self.open_question = None;
            if self.awaiting == Awaiting::Hints {
                self.awaiting = Awaiting::Nothing;
            }
            // Where units go by name nobody asks which are free.
            self.free = (!self.select.refers()).then_some(free);
        }
        counts
    }

    /// Whether units may go by name.
    pub(super) fn refers(&self) -> bool {
        self.select.refers()
    }

    /// Whether the answer to that question would count.
    pub(super) fn awaits_hints(&self, question: u64) -> bool {
        self.open_question == Some(question)
    }

    /// The guest is paused and the log taken for the last time: what is free now is nobody's for good, and what of it the
    /// selection doesn't keep is not sent. Returns how many units that are.
    pub(super) fn leave_out(&mut self) -> u64 {
        let Some(free) = &self.free else { return 0 };
        let mut out = self.unsent.clone();
        out.intersect(free);
        let known = Known { stage: Stage::Paused, peeked: self.peeked.as_ref(), free: Some(free) };
        let mut keep = Vec::new();
        out.extents().for_each(|run| U::choose(self.select.as_mut(), run, &known, &mut keep));
        keep.into_iter().for_each(|kept| out.remove_extent(kept));
        self.unsent.subtract(&out);
        self.left_out = out;
        self.left_out.count()
    }

    /// What was written needn't be sent: it never leaves its place.
    pub(super) fn remain(&mut self) {
        self.begin_stage();
        self.unsent.clear();
    }

    /// A set of units was taken up by the destination by itself (a pull): what of it was unsent needn't be sent. `zero`: it was
    /// told that they are zeroes.
    pub(super) fn forget(&mut self, extent: Extent, zero: bool) -> Sent {
        let mut runs = Vec::new();
        for part in still_unsent(&self.unsent, extent) {
            self.unsent.remove_extent(part);
            split_by(&mut self.sent_before, part, &mut runs);
        }
        let mut sent = Sent::default();
        for run in runs {
            let (units, bytes) = if run.again {
                (&mut sent.again_units, &mut sent.again_bytes)
            } else {
                (&mut sent.first_units, &mut sent.first_bytes)
            };
            *units += run.extent.count;
            if zero {
                sent.zero_units += run.extent.count;
            } else {
                *bytes += run.extent.count * self.unit_bytes;
                sent.raw_units += run.extent.count;
            }
        }
        sent
    }

    /// Units that the destination asks for: those unsent leave the push order and are returned to be sent at once.
    pub(super) fn demand(&mut self, units: &[u64]) -> Option<(u64, Vec<Run>)> {
        let mut runs: Vec<Run> = Vec::new();
        for &unit in units {
            if self.unsent.remove(unit) {
                let again = !self.sent_before.insert(unit);
                runs.push(Run { extent: Extent { start: unit, count: 1 }, again, place: None });
            }
        }
        if let Some(last) = units.last().filter(|_| self.needs().follows) {
            self.queue.turn_to(last + 1, self.unsent.len());
        }
        (!runs.is_empty()).then(|| (self.jobs.open(&runs, runs.len() as u64), runs))
    }

    /// Of a job that is on its way some units go by name, and no more than this by content.
    pub(super) fn go_by_name(&mut self, job: u64, by_content: u64) {
        self.jobs.go_by_name(job, by_content);
    }

    /// Whether units of a job that is on its way go by name.
    pub(super) fn is_named(&self, job: u64) -> bool {
        self.jobs.is_named(job)
    }

    /// The destination has these units, but for what was written since the last look at the log.
    pub(super) fn has_arrived(&self, units: Extent) -> bool {
        self.unsent.count_in(units) == 0 && !self.jobs.touch(units)
    }

    /// The destination must have these anew.
    pub(super) fn send_again(&mut self, units: &UnitSet<U>) {
        self.unsent.union(units);
    }

    /// What the engine has to have ready for the schedule.
    pub(super) fn needs(&self) -> Needs {
        self.schedule.needs()
    }

    /// Whether a job that is on its way has content.
    pub(super) fn has_content(&self, job: u64) -> bool {
        self.jobs.has_content(job)
    }

    /// A job's units are sent.
    pub(super) fn sent(&mut self, job: u64, sent: &Sent) {
        self.jobs.close(job);
        self.open.sent.add(sent);
        self.sent_bytes += sent.bytes();
    }

    /// An observation came in. Returns the round that a `Take` closed; the last look, with the guest paused, closes one only
    /// if something was sent since the look before.
    pub(super) fn observed(
        &mut self,
        observe: Observe,
        (written, counts): (UnitSet<U>, Option<WriteCounts<U>>),
        stage: Stage,
        now: Nanos,
        requested: Nanos,
    ) -> Option<Round> {
        let was = std::mem::replace(&mut self.awaiting, Awaiting::Nothing);
        self.counts = counts;
        if was == Awaiting::PeekToSelect {
            self.since_peek = Some(0);
        }
        self.holes.subtract(&written);
        self.free.iter_mut().for_each(|free| free.subtract(&written));
        match observe {
            Observe::Peek => {
                self.peeked = Some(written);
                None
            }
            Observe::Take => {
                self.takes -= 1;
                self.unsent.union(&written);
                let dirty_units = written.count();
                self.peeked = Some(UnitSet::empty(written.len()));
                let closes = stage == Stage::Push || self.open.sent.units() > 0;
                if !closes {
                    self.open = OpenRound::default();
                }
                closes.then(|| self.close_round(dirty_units, now, requested))
            }
        }
    }

    fn close_round(&mut self, dirty_units: u64, now: Nanos, requested: Nanos) -> Round {
        let open = std::mem::take(&mut self.open);
        let start = open.start.unwrap_or(now);
        let round = Round {
            kind: U::FAMILY,
            start_ns: start.since(requested).0,
            ns: now.since(start).0,
            sent_units: open.sent.units(),
            dirty_units,
            again_units: open.sent.again_units,
            bytes: open.sent.bytes(),
            limit: open.limit.map(|r| r.0),
            predicted_ns: None,
            throttle: self.throttle,
        };
        self.rounds.push(round.clone());
        round
    }

    /// Closes the round that was carried over while the guest was paused, if anything was.
    pub(super) fn close_paused_round(&mut self, now: Nanos, requested: Nanos) -> Option<Round> {
        (self.open.sent.units() > 0).then(|| self.close_round(0, now, requested))
    }

    /// Puts the prediction that followed a round into it; returns the finished round.
    pub(super) fn finish_round(&mut self) -> Option<Round> {
        let predicted = self.predicted;
        let round = self.rounds.last_mut()?;
        round.predicted_ns = predicted.map(|p| p.0);
        Some(round.clone())
    }

    /// Goes on until the flow waits for something: lanes are kept busy, steps taken, the schedule asked.
    pub(super) fn drive(&mut self, around: &Around, requested: Nanos, wants: &mut Vec<Want>) {
        // A schedule that answers without end would hang the host; each answer that moves nothing ends the loop.
        for _ in 0..64 {
            if let Awaiting::Instant(at) = self.awaiting {
                if around.now < at {
                    return;
                }
                self.awaiting = Awaiting::Nothing;
            }
            if self.awaiting != Awaiting::Nothing || !self.fill_lanes(around, wants) {
                return;
            }
            if around.stage == Stage::Paused {
                return;
            }
            match self.steps.pop_front() {
                Some(step) => self.take_step(step, around, requested, wants),
                // A schedule that pushes nothing is ready at once, and then it is too late to ask.
                None if around.stage == Stage::Push && self.asked == 0 && self.select.ask_every().is_some() => {
                    self.ask_guest(wants);
                }
                None => {
                    let answer = self.ask(around, requested);
                    if answer.is_empty() {
                        self.awaiting = Awaiting::Instant(around.now.plus(ASK_AGAIN));
                        return;
                    }
                    self.ready_holds = matches!(answer[0], Step::Ready { .. });
                    self.steps.extend(answer);
                }
            }
        }
        self.awaiting = Awaiting::Instant(around.now.plus(ASK_AGAIN));
    }

    /// Hands queued units to the lane. True once the queue is empty and everything handed over is sent.
    fn fill_lanes(&mut self, around: &Around, wants: &mut Vec<Want>) -> bool {
        while !self.queue.is_empty() && self.jobs.len() < JOBS_AT_ONCE {
            if around.stage == Stage::Push && self.looks_first(wants) {
                return false;
            }
            let (runs, content_units) = self.next_runs(around, wants);
            if !runs.is_empty() {
                self.open.start.get_or_insert(around.now);
                self.open.limit = self.limit;
                let job = self.jobs.open(&runs, content_units);
                let (limit, offered) = (self.limit, self.offered);
                wants.push(Want::Send { job, runs, limit, content: content_units > 0, offered });
            }
        }
        self.is_quiet()
    }

    /// Whether the selection must know more before the next stretch of a push; then that is asked for.
    fn looks_first(&mut self, wants: &mut Vec<Want>) -> bool {
        let due = |every: Option<u64>, since: Option<u64>| every.is_some_and(|every| since.is_none_or(|n| n >= every));
        if self.open_question.is_none() && due(self.select.ask_every(), self.since_ask) {
            self.ask_guest(wants);
        } else if due(self.select.peek_every(), self.since_peek) {
            self.awaiting = Awaiting::PeekToSelect;
            wants.push(Want::Observe(Observe::Peek));
        }
        self.awaiting != Awaiting::Nothing
    }

    /// The first answer is waited for: without it all would be pushed. Later ones come while pushing goes on by the last.
    fn ask_guest(&mut self, wants: &mut Vec<Want>) {
        if self.asked == 0 {
            self.awaiting = Awaiting::Hints;
        }
        self.asked += 1;
        self.open_question = Some(self.asked);
        self.since_ask = Some(0);
        wants.push(Want::Ask(self.asked));
    }

    /// Takes up to a job's worth of unsent units off the queue; also how many of them hold content.
    fn next_runs(&mut self, around: &Around, wants: &mut Vec<Want>) -> (Vec<Run>, u64) {
        let stage = around.stage;
        let bytes = if stage == Stage::Pull { U::pull_job_bytes(around).min(JOB_BYTES) } else { JOB_BYTES };
        let most = (bytes / self.unit_bytes).max(1);
        let most_holes = JOB_HOLE_BYTES / self.unit_bytes;
        let (mut runs, mut content, mut empty, mut deferred) = (Vec::new(), 0, 0, 0);
        let mut keep = Vec::new();
        while content < most
            && empty < most_holes
            && let Some((head, hole)) = {
                let head_of = |front| head_of(&self.holes, front, most - content, most_holes - empty);
                self.queue.next(&self.unsent, head_of)
            }
        {
            if let Some(n) = &mut self.since_peek {
                *n += head.count;
            }
            for part in still_unsent(&self.unsent, head) {
                keep.clear();
                let known = Known { stage, peeked: self.peeked.as_ref(), free: self.free.as_ref() };
                U::choose(self.select.as_mut(), part, &known, &mut keep);
                // What is free doesn't wait: it goes never, or once it is written.
                let hard = |run: Extent| run.count - self.free.as_ref().map_or(0, |free| free.count_in(run));
                deferred += hard(part) - keep.iter().map(|kept| hard(*kept)).sum::<u64>();
                for kept in &keep {
                    if let Some(n) = &mut self.since_ask {
                        *n += kept.count;
                    }
                    self.unsent.remove_extent(*kept);
                    *(if hole { &mut empty } else { &mut content }) += kept.count;
                    split_by(&mut self.sent_before, *kept, &mut runs);
                }
            }
        }
        if deferred > 0 {
            wants.push(Want::Deferred(deferred));
        }
        (runs, content)
    }

    fn take_step(&mut self, step: Step<U>, around: &Around, requested: Nanos, wants: &mut Vec<Want>) {
        if !self.ready_holds && !matches!(step, Step::Ready { .. } | Step::Observe(Observe::Peek)) {
            self.ready = None;
        }
        match step {
            Step::Push { units, limit } => self.enqueue(&units, limit, false),
            Step::Offer { units, limit } if U::FAMILY == Family::Disk => self.enqueue(&units, limit, true),
            Step::Offer { .. } => wants.push(Want::Abort("memory can't be offered by digests".to_owned())),
            Step::Observe(observe) => {
                self.open.start.get_or_insert(around.now);
                self.awaiting = Awaiting::Observation;
                if observe == Observe::Take {
                    self.takes += 1;
                    self.open_question = None;
                }
                wants.push(Want::Observe(observe));
            }
            Step::Mirror(mirroring) => wants.push(Want::Mirror(mirroring, self.unsent.extents().collect())),
            Step::Wait(until) => self.awaiting = Awaiting::Instant(requested.plus(until)),
            Step::Ready { rest: Rest::Remain, .. } if U::FAMILY == Family::Memory => {
                wants.push(Want::Abort("memory can't remain at the source".to_owned()));
            }
            Step::Ready { rest, firm, ended_by } => {
                self.ready = Some(Readiness { rest, firm, ended_by });
                if self.steps.is_empty() {
                    self.awaiting = Awaiting::Instant(around.now.plus(ASK_AGAIN));
                }
            }
            Step::Abort(reason) => wants.push(Want::Abort(reason)),
        }
    }

    fn enqueue(&mut self, units: &Ordered<U>, limit: Option<ByteRate>, offered: bool) {
        (self.limit, self.offered) = (limit, offered);
        self.since_peek = None;
        self.queue.push(units);
    }

    fn ask(&mut self, around: &Around, requested: Nanos) -> Vec<Step<U>> {
        self.show(around, requested, |schedule, view| schedule.source(view))
    }

    /// What the schedule tells its twin at the destination.
    pub(super) fn note(&mut self, around: &Around, requested: Nanos) -> Vec<u8> {
        self.show(around, requested, |schedule, view| schedule.note(view))
    }

    fn show<T>(
        &mut self,
        around: &Around,
        requested: Nanos,
        ask: impl FnOnce(&mut dyn Schedule<U>, &View<'_, U>) -> T,
    ) -> T {
        let view = View {
            now: around.now.since(requested),
            stage: around.stage,
            unit_bytes: self.unit_bytes,
            unsent: &self.unsent,
            peeked: self.peeked.as_ref(),
            counts: self.counts.as_ref(),
            rounds: &self.rounds,
            verdict: self.verdict,
            bandwidth: around.bandwidth,
            other_ready: around.other_ready,
        };
        ask(self.schedule.as_mut(), &view)
    }

    /// The event that tells of a change of readiness, if there was one.
    pub(super) fn readiness_event(&self, before: Option<Readiness>) -> Option<Event> {
        (before.map(|r| r.ended_by) != self.ready.map(|r| r.ended_by))
            .then(|| Event::Ready { family: U::FAMILY, ended_by: self.ready.map(|r| r.ended_by) })
    }
}
