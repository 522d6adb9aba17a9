//! An engine without I/O, threads or clock: it drives a memory strategy against a synthetic guest in simulated time.
//!
//! Pages are version numbers. The guest writes pages at a pace; the link carries pages at a rate; the log of writes is
//! exact. What the real engine must do too is done in the same order: steps one by one, a push in stretches of 1 MiB,
//! a look at the log, or a question to the guest, before a stretch where the selection asks for one.
//!
//! Half of RAM is free when the move begins; a page that the guest writes is free no longer.

use std::collections::VecDeque;
use whimbrel_memory::{
    BuildContext, MemoryChoice, MemoryStrategy, SelectView, StopView, ThrottleView, predicted_downtime,
};
use whimbrel_model::event::{EndedBy, Round};
use whimbrel_model::strategy::{Stage, Verdict};
use whimbrel_model::{ByteRate, Extent, Family, Nanos, Observe, PAGE_BYTES, Page, Rest, Step, UnitSet, View};

/// Pages of a stretch.
const STRETCH_PAGES: u64 = 256;
/// How often a schedule is asked that has nothing to do.
const ASK_AGAIN_NS: u64 = 20_000_000;
/// How often a schedule may be asked before the engine gives up on it.
const MOST_QUESTIONS: u64 = 50_000;

/// What moves, over what, with what in the way.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Pages of RAM.
    pub pages: u64,
    /// The link.
    pub bandwidth_bytes_per_s: f64,
    /// Pages that the guest sweeps over, from page 0 on.
    pub working_pages: u64,
    /// Pages that it writes in a second when it runs free.
    pub writes_per_s: f64,
    /// When the other family is ready.
    pub other_ready_ns: u64,
    /// How long the engine goes on.
    pub longest_ns: u64,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Completed(EndedBy, Rest),
    Aborted,
    /// Neither, within the time and the questions allowed.
    Endless,
}

/// What it took.
#[derive(Debug)]
pub struct Report {
    pub end: End,
    pub rounds: Vec<Round>,
    pub sent_bytes: u64,
    pub total_ns: u64,
    pub downtime_ns: u64,
    pub predicted_ns: Option<u64>,
    /// Pages that the destination lacked when the guest was paused, and when all was done, but for those left out.
    pub left_at_pause: u64,
    pub left_at_end: u64,
    /// Pages that never went; all of them were free at the pause.
    pub left_out: u64,
    /// Times that readiness was withdrawn.
    pub withdrawn: u64,
}

pub struct Engine {
    setting: Setting,
    strategy: MemoryStrategy,
    now_ns: u64,
    stage: Stage,
    written_total: f64,
    source: Vec<u64>,
    destination: Vec<u64>,
    unsent: UnitSet<Page>,
    log: UnitSet<Page>,
    peeked: Option<UnitSet<Page>>,
    since_peek: Option<u64>,
    /// Pages that are free, and those of them that the guest has told of and no look at the log has shown to be written.
    free: UnitSet<Page>,
    told: Option<UnitSet<Page>>,
    since_ask: Option<u64>,
    sent_before: UnitSet<Page>,
    open: Round,
    rounds: Vec<Round>,
    sent_bytes: u64,
    busy_ns: u64,
    verdict: Verdict,
    throttle: f64,
}

fn fresh_round(start_ns: u64) -> Round {
    Round {
        kind: Family::Memory,
        start_ns,
        ns: 0,
        sent_units: 0,
        dirty_units: 0,
        again_units: 0,
        bytes: 0,
        limit: None,
        predicted_ns: None,
        throttle: 0.0,
    }
}

/// Moves a guest.
pub fn migrate(choice: &MemoryChoice, setting: Setting) -> Report {
    let strategy = choice.build(&BuildContext { pages: setting.pages, seed: 11 });
    Engine {
        setting,
        strategy,
        now_ns: 0,
        stage: Stage::Push,
        written_total: 0.0,
        source: vec![1; setting.pages as usize],
        destination: vec![0; setting.pages as usize],
        unsent: UnitSet::full(setting.pages),
        log: UnitSet::empty(setting.pages),
        peeked: None,
        since_peek: None,
        free: UnitSet::from_extents(
            setting.pages,
            [Extent { start: setting.pages / 2, count: setting.pages - setting.pages / 2 }],
        ),
        told: None,
        since_ask: None,
        sent_before: UnitSet::empty(setting.pages),
        open: fresh_round(0),
        rounds: Vec::new(),
        sent_bytes: 0,
        busy_ns: 0,
        verdict: Verdict::Continue,
        throttle: 0.0,
    }
    .run()
}

impl Engine {
    fn run(mut self) -> Report {
        let mut steps = VecDeque::new();
        let (mut questions, mut withdrawn) = (0, 0);
        let mut ready: Option<(Rest, EndedBy)> = None;
        let end = loop {
            if let Some((rest, ended_by)) = ready
                && self.other_ready()
            {
                break End::Completed(ended_by, rest);
            }
            let Some(step) = steps.pop_front() else {
                if self.told.is_none() {
                    self.ask_guest();
                }
                questions += 1;
                if questions > MOST_QUESTIONS || self.now_ns > self.setting.longest_ns {
                    break End::Endless;
                }
                steps.extend(self.ask());
                if steps.is_empty() {
                    self.advance(ASK_AGAIN_NS);
                }
                continue;
            };
            if !matches!(step, Step::Ready { .. } | Step::Observe(Observe::Peek)) && ready.take().is_some() {
                withdrawn += 1;
            }
            match step {
                Step::Push { units, limit } => self.push(units.extents(), limit),
                Step::Observe(observe) => self.observe(observe),
                Step::Wait(until) => self.advance(until.0.saturating_sub(self.now_ns)),
                Step::Ready { rest, ended_by, firm } => {
                    assert!(!firm, "no schedule of this family is firm yet");
                    ready = Some((rest, ended_by));
                    if !self.other_ready() {
                        self.advance(ASK_AGAIN_NS);
                    }
                }
                Step::Mirror(_) => panic!("memory can't be mirrored"),
                Step::Offer { .. } => panic!("memory is not offered by digests"),
                Step::Abort(reason) => {
                    assert!(!reason.is_empty());
                    break End::Aborted;
                }
            }
        };
        self.finish(end, withdrawn)
    }

    /// The switchover and, where pages are left behind, the pull phase.
    fn finish(mut self, end: End, withdrawn: u64) -> Report {
        let predicted_ns = predicted_downtime(&self.stop_view()).map(|p| p.0);
        let paused_ns = self.now_ns;
        let (mut left_at_pause, mut left_out) = (0, UnitSet::empty(self.setting.pages));
        let mut downtime_ns = 0;
        if let End::Completed(_, rest) = end {
            self.stage = Stage::Paused;
            self.observe_last();
            left_out = self.leave_out();
            left_at_pause = self.unsent.count();
            if rest == Rest::CarryOver {
                let all: Vec<Extent> = self.unsent.extents().collect();
                self.push(&all, None);
            }
            downtime_ns = self.now_ns - paused_ns;
            self.stage = Stage::Pull;
            self.pull();
        }
        let lacks = (0..self.setting.pages).filter(|page| {
            let at = *page as usize;
            !left_out.contains(*page) && self.source[at] != self.destination[at]
        });
        let lacks = lacks.count();
        Report {
            end,
            rounds: self.rounds,
            sent_bytes: self.sent_bytes,
            total_ns: self.now_ns,
            downtime_ns,
            predicted_ns,
            left_at_pause,
            left_at_end: lacks as u64,
            left_out: left_out.count(),
            withdrawn,
        }
    }

    /// The guest tells what is free, if the selection goes by it.
    fn ask_guest(&mut self) {
        if self.strategy.select.ask_every().is_some() {
            self.told = Some(self.free.clone());
            self.since_ask = Some(0);
        }
    }

    /// The last take, with the guest paused: it ends no round.
    fn observe_last(&mut self) {
        self.unsent.union(&self.log);
        self.told.iter_mut().for_each(|told| told.subtract(&self.log));
    }

    /// What is free, and the selection doesn't keep in the pause, never goes.
    fn leave_out(&mut self) -> UnitSet<Page> {
        let mut out = self.told.clone().unwrap_or_else(|| UnitSet::empty(self.setting.pages));
        out.intersect(&self.unsent);
        let view = SelectView { stage: self.stage, peeked: self.peeked.as_ref(), free: self.told.as_ref() };
        let mut keep = Vec::new();
        out.extents().for_each(|run| self.strategy.select.choose(run, &view, &mut keep));
        keep.into_iter().for_each(|run| out.remove_extent(run));
        assert!(out.iter().all(|page| self.free.contains(page)), "a page that is in use was left out");
        self.unsent.subtract(&out);
        out
    }

    /// The guest runs at the destination: what was left behind follows.
    fn pull(&mut self) {
        for _ in 0..MOST_QUESTIONS {
            let answer = self.ask();
            if answer.is_empty() {
                return;
            }
            for step in answer {
                match step {
                    Step::Push { units, limit } => self.push(units.extents(), limit),
                    other => panic!("{other:?} makes no sense once the guest runs at the destination"),
                }
            }
        }
        panic!("the pull phase doesn't end");
    }

    fn other_ready(&self) -> bool {
        self.now_ns >= self.setting.other_ready_ns
    }

    fn bandwidth(&self) -> Option<ByteRate> {
        (self.sent_bytes > 0).then(|| ByteRate::over(self.sent_bytes, Nanos(self.busy_ns.max(1)))).flatten()
    }

    fn ask(&mut self) -> Vec<Step<Page>> {
        self.strategy.schedule.source(&View {
            now: Nanos(self.now_ns),
            stage: self.stage,
            unit_bytes: PAGE_BYTES,
            unsent: &self.unsent,
            peeked: self.peeked.as_ref(),
            counts: None,
            rounds: &self.rounds,
            verdict: self.verdict,
            bandwidth: self.bandwidth(),
            other_ready: self.now_ns >= self.setting.other_ready_ns,
        })
    }

    /// Time goes by, and the guest writes.
    fn advance(&mut self, ns: u64) {
        self.now_ns += ns;
        if self.stage != Stage::Push || self.setting.working_pages == 0 {
            return;
        }
        let first = self.written_total;
        self.written_total += self.setting.writes_per_s * (1.0 - self.throttle) * ns as f64 / 1e9;
        let (first, last) = (first.floor() as u64, self.written_total.floor() as u64);
        // A sweep that goes round more than once writes each page; how often doesn't matter.
        for write in first.max(last.saturating_sub(self.setting.working_pages))..last {
            let page = write % self.setting.working_pages;
            self.source[page as usize] += 1;
            self.log.insert(page);
            self.free.remove(page);
        }
    }

    fn push(&mut self, extents: &[Extent], limit: Option<ByteRate>) {
        self.since_peek = None;
        self.open.limit = limit.map(|l| l.0);
        let mut seen = UnitSet::<Page>::empty(self.setting.pages);
        for extent in extents {
            assert_eq!(seen.count_in(*extent), 0, "a push names a page twice");
            seen.insert_extent(*extent);
            let mut start = extent.start;
            while start < extent.end() {
                let end = (start + STRETCH_PAGES).min(extent.end());
                self.stretch(Extent { start, count: end - start }, limit);
                start = end;
            }
        }
    }

    fn stretch(&mut self, pages: Extent, limit: Option<ByteRate>) {
        if self.stage == Stage::Push
            && let Some(every) = self.strategy.select.peek_every()
            && self.since_peek.is_none_or(|n| n >= every)
        {
            self.observe(Observe::Peek);
            self.since_peek = Some(0);
        }
        self.since_peek = self.since_peek.map(|n| n + pages.count);
        if self.stage == Stage::Push
            && let Some(every) = self.strategy.select.ask_every()
            && self.since_ask.is_none_or(|n| n >= every)
        {
            self.ask_guest();
        }
        let mut keep = Vec::new();
        let view = SelectView { stage: self.stage, peeked: self.peeked.as_ref(), free: self.told.as_ref() };
        self.strategy.select.choose(pages, &view, &mut keep);
        self.since_ask = self.since_ask.map(|n| n + keep.iter().map(|kept| kept.count).sum::<u64>());
        let mut bytes = 0;
        for page in keep.into_iter().flat_map(Extent::indices) {
            assert!(pages.indices().contains(&page), "a selection answers with what it was offered");
            if self.unsent.remove(page) {
                self.destination[page as usize] = self.source[page as usize];
                self.open.again_units += u64::from(!self.sent_before.insert(page));
                self.open.sent_units += 1;
                bytes += PAGE_BYTES;
            }
        }
        let rate = limit.map_or(self.setting.bandwidth_bytes_per_s, |l| l.0.min(self.setting.bandwidth_bytes_per_s));
        let ns = (bytes as f64 * 1e9 / rate) as u64;
        self.open.bytes += bytes;
        self.sent_bytes += bytes;
        self.busy_ns += ns;
        self.advance(ns);
    }

    fn observe(&mut self, observe: Observe) {
        self.told.iter_mut().for_each(|told| told.subtract(&self.log));
        match observe {
            Observe::Peek => self.peeked = Some(self.log.clone()),
            Observe::Take => {
                self.unsent.union(&self.log);
                let mut round = std::mem::replace(&mut self.open, fresh_round(self.now_ns));
                round.ns = self.now_ns - round.start_ns;
                round.dirty_units = self.log.count();
                round.throttle = self.throttle;
                self.rounds.push(round);
                self.log.clear();
                self.peeked = Some(UnitSet::empty(self.setting.pages));
            }
        }
        let mut rules = std::mem::take(&mut self.strategy.stop);
        self.verdict = rules.judge(&self.stop_view());
        self.strategy.stop = rules;
        if observe == Observe::Take {
            let view = ThrottleView {
                rounds: &self.rounds,
                bandwidth: self.bandwidth(),
                unit_bytes: PAGE_BYTES,
                now: Nanos(self.now_ns),
                current: self.throttle,
            };
            self.throttle = self.strategy.throttle.share(&view);
            assert!((0.0..1.0).contains(&self.throttle), "{} is no share", self.throttle);
        }
    }

    fn stop_view(&self) -> StopView<'_> {
        let free = self.told.as_ref().map_or(0, |told| self.unsent.count_common(told));
        let rest = self.unsent.count() - free + self.log.count() - self.unsent.count_common(&self.log);
        StopView {
            remaining_units: rest,
            remaining_bytes: rest * PAGE_BYTES,
            other_remaining_bytes: 0,
            total_units: self.setting.pages,
            unit_bytes: PAGE_BYTES,
            rounds: &self.rounds,
            sent_bytes: self.sent_bytes,
            bandwidth: self.bandwidth(),
            fixed_cost: Nanos(0),
            now: Nanos(self.now_ns),
        }
    }
}
