//! The source's core: drives both families' flows through the phases and keeps the books.

mod judging;
mod naming;

use super::backed::BackedPages;
use super::bandwidth::Bandwidth;
use super::flow::Flow;
use super::flow_words::{Around, FlowUnit, Want};
use super::last_word::LastWord;
use super::source_words::{Limits, Progress, SourceEffect, SourceInput, SourcePlan};
use super::{Ending, Written};
use crate::coordinator::{Coordinator, CoordinatorView, FamilyView, Turn, Turns};
use whimbrel_memory::{MemoryStrategy, StopRules, Throttle, predicted_downtime};
use whimbrel_model::event::Sent;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{
    Block, ByteRate, Event, Extent, Family, Moment, Nanos, Observe, PAGE_BYTES, Page, Phase, Rest, UnitSet,
};
use whimbrel_wire::Message;

/// How far the switchover is.
#[derive(Debug, Default)]
struct Switchover {
    paused: bool,
    drained: bool,
    memory_taken: bool,
    disk_taken: bool,
    state: Option<Vec<u8>>,
    barrier: bool,
    disk_carried: bool,
    loaded: bool,
    /// The guest runs on here, and only why is open.
    given_up: bool,
}

/// The source's core.
pub struct SourceCore {
    requested: Nanos,
    phase: Phase,
    stage: Stage,
    memory: Flow<Page>,
    disk: Option<Flow<Block>>,
    /// Pages that may go by name, once the guest has told of them.
    backed: Option<BackedPages>,
    /// The disk stays, whatever is ready when.
    disk_remains: bool,
    coordinator: Box<dyn Coordinator>,
    turns: Turns,
    stop: StopRules,
    throttle: Box<dyn Throttle>,
    throttle_share: f64,
    limits: Limits,
    bandwidth: Bandwidth,
    switchover: Switchover,
    memory_rest: Rest,
    disk_rest: Rest,
    resumed: bool,
    whole: (bool, bool),
    last_barrier: bool,
    demanded_jobs: Vec<u64>,
    last_word: LastWord,
    finished: bool,
}

impl SourceCore {
    /// A core that waits for [`SourceInput::Start`].
    pub fn new(plan: SourcePlan) -> Self {
        let MemoryStrategy { schedule, select, stop, throttle, .. } = plan.memory;
        let all = || Box::new(whimbrel_memory::All) as Box<dyn whimbrel_memory::Select>;
        let no_holes = UnitSet::empty(plan.missing_pages.len());
        let disk_remains = plan.disk.as_ref().is_some_and(|disk| disk.strategy.schedule.needs().remains);
        SourceCore {
            requested: plan.requested,
            phase: Phase::Setup,
            stage: Stage::Push,
            memory: Flow::new(PAGE_BYTES, plan.missing_pages, no_holes, schedule, select),
            disk: plan.disk.map(|d| Flow::new(d.block_bytes, d.missing, d.holes, d.strategy.schedule, all())),
            backed: None,
            disk_remains,
            coordinator: plan.coordinator,
            turns: Turns { memory: Turn::FREE, disk: Turn::FREE },
            stop,
            throttle,
            throttle_share: 0.0,
            limits: plan.limits,
            bandwidth: Bandwidth::default(),
            switchover: Switchover::default(),
            memory_rest: Rest::CarryOver,
            disk_rest: Rest::CarryOver,
            resumed: false,
            whole: (false, false),
            last_barrier: false,
            demanded_jobs: Vec::new(),
            last_word: LastWord::default(),
            finished: false,
        }
    }

    /// The phase.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The pages that the destination never gets, for they were free when the guest was paused.
    pub fn left_out(&self) -> &UnitSet<Page> {
        self.memory.left_out()
    }

    /// What a progress display shows: bytes sent of memory and disk, rounds of memory, bandwidth, predicted downtime.
    pub fn progress(&self) -> Progress {
        Progress {
            phase: self.phase,
            memory_bytes: self.memory.sent_bytes(),
            disk_bytes: self.disk.as_ref().map_or(0, Flow::sent_bytes),
            remaining_bytes: self.memory.remaining_units() * PAGE_BYTES
                + self.disk.as_ref().map_or(0, |d| d.remaining_units() * d.unit_bytes()),
            round: self.memory.rounds().len() as u64,
            dirty_bytes_per_s: self
                .memory
                .rounds()
                .last()
                .filter(|r| r.ns > 0)
                .map(|r| r.dirty_units as f64 * PAGE_BYTES as f64 * 1e9 / r.ns as f64),
            bandwidth_bytes_per_s: self.bandwidth.rate().map(|r| r.0),
            predicted_downtime_ns: self.memory.rounds().last().and_then(|r| r.predicted_ns),
        }
    }

    /// Takes one input in, and lets out what is to be done about it.
    pub fn on(&mut self, now: Nanos, input: SourceInput, effects: &mut Vec<SourceEffect>) {
        if self.finished {
            return;
        }
        if let Some(reason) = self.last_word.due(now) {
            return self.lost(reason, effects);
        }
        if let Some(until) = self.last_word.until().filter(|_| !self.may_act_on(&input)) {
            return effects.push(SourceEffect::TimerAt(until));
        }
        match input {
            SourceInput::Start => {
                effects.push(record(Moment::SetupDone));
                self.enter(Phase::Push, effects);
            }
            SourceInput::Sent { family, job, sent } => self.sent(now, family, job, &sent, effects),
            SourceInput::Observed { observe, written } => self.observed(now, observe, written, effects),
            SourceInput::Hinted { question, told: Ok(told) } => self.hinted(question, told),
            SourceInput::Hinted { question, told: Err(why) } if self.memory.awaits_hints(question) => {
                return self.lost(format!("the guest does not tell what its pages are: {why}"), effects);
            }
            // The guest was paused before it answered.
            SourceInput::Hinted { .. } => {}
            SourceInput::Paused { .. } => {
                self.switchover.paused = true;
                effects.push(SourceEffect::Drain);
            }
            SourceInput::Drained => self.drained(effects),
            SourceInput::StateSaved(state) => {
                effects.push(record(Moment::StateSaved));
                self.switchover.state = Some(state);
            }
            SourceInput::Said(message) => self.said(now, message, effects),
            SourceInput::Fetch(pages) => {
                if self.may_demand()
                    && let Some((job, runs)) = self.memory.demand(&pages)
                {
                    self.bandwidth.begin(now);
                    self.demanded_jobs.push(job);
                    let family = Family::Memory;
                    effects.push(SourceEffect::Send { family, job, runs, limit: None, demanded: true, offered: false });
                }
            }
            // Before the hand-over the guest here may write to them yet.
            SourceInput::Pulled { zero: true, .. } if self.stage != Stage::Pull => {}
            SourceInput::Pulled { extent, demanded, zero } => self.pulled(extent, demanded, zero, effects),
            SourceInput::Mirrored(sent) => {
                let (family, stage) = (Family::Disk, self.stage);
                effects.push(SourceEffect::Record(Event::Sent { family, stage, demanded: false, sent }));
            }
            SourceInput::Timer => {}
            SourceInput::LaneEnded(reason) => self.lane_ended(now, reason, effects),
            SourceInput::ControlEnded(reason) => {
                let reason = self.last_word.first(reason);
                return self.lost(reason, effects);
            }
            SourceInput::Lost(reason) => return self.lost(reason, effects),
            SourceInput::Cancelled(reason) => match self.phase {
                Phase::Setup | Phase::Push | Phase::Switchover => return self.lost(reason, effects),
                // The guest is no longer here: giving up now would lose what was left behind.
                Phase::Pull | Phase::Complete | Phase::Aborted => {}
            },
        }
        if self.last_word.until().is_none() || self.phase == Phase::Pull {
            self.advance(now, effects);
        }
        effects.extend(self.last_word.until().filter(|_| !self.finished).map(SourceEffect::TimerAt));
    }

    fn drained(&mut self, effects: &mut Vec<SourceEffect>) {
        effects.push(record(Moment::Drained));
        self.switchover.drained = true;
        self.memory.last_take();
        self.disk.iter_mut().for_each(Flow::last_take);
        effects.push(SourceEffect::Observe { family: Family::Memory, observe: Observe::Take });
        if self.disk.is_some() {
            effects.push(SourceEffect::Observe { family: Family::Disk, observe: Observe::Take });
        }
        effects.push(SourceEffect::SaveState);
    }

    fn lane_ended(&mut self, now: Nanos, reason: String, effects: &mut Vec<SourceEffect>) {
        self.last_word.lane_ended(now, reason);
        if self.phase == Phase::Switchover {
            // The guest needn't stand still while only the reason is waited for.
            self.switchover.given_up = true;
            effects.push(SourceEffect::Resume);
        }
    }

    /// Whether an input counts after a lane has ended. Before the hand-over the move has failed already, and only why is
    /// open: the guest must not be handed over on half a link.
    fn may_act_on(&self, input: &SourceInput) -> bool {
        use SourceInput::{Cancelled, ControlEnded, Lost, Said};
        matches!(input, Said(Message::Abort { .. }) | ControlEnded(_) | Lost(_) | Cancelled(_))
            || matches!(self.phase, Phase::Pull | Phase::Complete)
    }

    /// Whether the destination may ask for pages: once the guest runs there, and while its device state is taken up, which
    /// may touch memory.
    fn may_demand(&self) -> bool {
        let left_behind = self.phase == Phase::Switchover && self.memory_rest == Rest::LeaveBehind;
        self.stage == Stage::Pull || (left_behind && self.switchover.barrier)
    }

    fn enter(&mut self, phase: Phase, effects: &mut Vec<SourceEffect>) {
        debug_assert!(self.phase.may_become(phase), "{:?} may not become {phase:?}", self.phase);
        self.phase = phase;
        effects.push(SourceEffect::Record(Event::Phase { phase }));
    }

    fn sent(&mut self, now: Nanos, family: Family, job: u64, sent: &Sent, effects: &mut Vec<SourceEffect>) {
        let has_content = match family {
            Family::Memory => self.memory.has_content(job),
            Family::Disk => self.disk.as_ref().is_some_and(|d| d.has_content(job)),
        };
        if family == Family::Memory && self.memory.is_named(job) {
            self.bandwidth.end_named();
        } else if has_content {
            self.bandwidth.end(now, sent.bytes());
        }
        let demanded = family == Family::Memory && self.demanded_jobs.contains(&job);
        self.demanded_jobs.retain(|j| !demanded || *j != job);
        match family {
            Family::Memory => self.memory.sent(job, sent),
            Family::Disk => self.disk.iter_mut().for_each(|d| d.sent(job, sent)),
        }
        effects.push(SourceEffect::Record(Event::Sent { family, stage: self.stage, demanded, sent: *sent }));
    }

    fn pulled(&mut self, extent: Extent, demanded: bool, zero: bool, effects: &mut Vec<SourceEffect>) {
        let Some(disk) = &mut self.disk else { return };
        let sent = disk.forget(extent, zero);
        if sent.units() > 0 {
            let stage = self.stage;
            effects.push(SourceEffect::Record(Event::Sent { family: Family::Disk, stage, demanded, sent }));
        }
    }

    fn observed(&mut self, now: Nanos, observe: Observe, written: Written, effects: &mut Vec<SourceEffect>) {
        let switching = self.switchover.drained && observe == Observe::Take;
        match written {
            Written::Pages(_) => {
                let Some(set) = Page::of(written) else { return };
                self.backed.iter_mut().for_each(|backed| backed.pages_written(&set.0));
                let closed = self.memory.observed(observe, set, self.stage, now, self.requested).is_some();
                self.judge(now, closed, effects);
                if closed && let Some(round) = self.memory.finish_round() {
                    effects.push(SourceEffect::Record(Event::Round { round }));
                }
                if switching && self.memory.is_taken() {
                    self.switchover.memory_taken = true;
                    let pages = self.memory.leave_out();
                    if pages > 0 {
                        effects.push(SourceEffect::Record(Event::LeftOut { pages }));
                    }
                    match self.memory_rest {
                        Rest::CarryOver => self.memory.carry_over(),
                        Rest::LeaveBehind | Rest::Remain => self.memory.begin_stage(),
                    }
                }
            }
            Written::Blocks(..) => {
                let Some(set) = Block::of(written) else { return };
                self.unname(&set.0);
                let Some(disk) = &mut self.disk else { return };
                if let Some(round) = disk.observed(observe, set, self.stage, now, self.requested) {
                    effects.push(SourceEffect::Record(Event::Round { round }));
                }
                if switching && disk.is_taken() {
                    self.switchover.disk_taken = true;
                    match self.disk_rest {
                        Rest::CarryOver => disk.carry_over(),
                        Rest::LeaveBehind => disk.begin_stage(),
                        Rest::Remain => disk.remain(),
                    }
                }
            }
        }
    }

    fn said(&mut self, now: Nanos, message: Message, effects: &mut Vec<SourceEffect>) {
        match message {
            Message::Loaded if self.phase == Phase::Switchover => self.switchover.loaded = true,
            Message::Resumed if self.phase == Phase::Pull => self.resumed = true,
            Message::Whole { family: Family::Memory } if self.phase == Phase::Pull => self.whole.0 = true,
            Message::Whole { family: Family::Disk } if self.phase == Phase::Pull => self.whole.1 = true,
            Message::Abort { reason } => self.lost(format!("the destination gave up: {reason}"), effects),
            other => {
                let reason = format!("the destination said {} in phase {:?} ({now:?})", other.name(), self.phase);
                self.lost(reason, effects);
            }
        }
    }

    /// Does whatever can be done now.
    fn advance(&mut self, now: Nanos, effects: &mut Vec<SourceEffect>) {
        if self.finished {
            return;
        }
        match self.phase {
            Phase::Push => {
                self.drive(now, effects);
                if !self.finished && self.may_switch() {
                    self.begin_switchover(now, effects);
                }
            }
            Phase::Switchover => self.switch(now, effects),
            Phase::Pull => self.pull(now, effects),
            Phase::Setup | Phase::Complete | Phase::Aborted => {}
        }
        // A flow that isn't driven any more must not be woken: its instant would lie in the past for ever.
        let driven = !self.finished && (self.phase == Phase::Push || self.has_unsent());
        let wakes = [self.memory.wakes_at(), self.disk.as_ref().and_then(Flow::wakes_at)];
        if let Some(at) = wakes.into_iter().flatten().min().filter(|_| driven) {
            effects.push(SourceEffect::TimerAt(at));
        }
    }

    fn has_unsent(&self) -> bool {
        !self.memory.is_empty() || self.disk.as_ref().is_some_and(|d| !d.is_empty())
    }

    /// Drives whose turn it is. One family's readiness may be the other's turn, hence again.
    fn drive(&mut self, now: Nanos, effects: &mut Vec<SourceEffect>) {
        self.turns = self.ask_coordinator();
        if self.turns.memory.may_push {
            self.drive_memory(now, effects);
        }
        if self.turns.disk.may_push && !self.finished {
            self.drive_disk(now, effects);
        }
        let held_memory = !self.turns.memory.may_push;
        self.turns = self.ask_coordinator();
        if held_memory && self.turns.memory.may_push && !self.finished {
            self.drive_memory(now, effects);
        }
    }

    fn drive_memory(&mut self, now: Nanos, effects: &mut Vec<SourceEffect>) {
        let other_ready = self.disk.as_ref().is_none_or(|d| d.readiness().is_some());
        let around =
            Around { now, stage: self.stage, bandwidth: self.bandwidth.rate(), link: self.limits.link, other_ready };
        let before = self.memory.readiness();
        let mut wants = Vec::new();
        self.memory.drive(&around, self.requested, &mut wants);
        effects.extend(self.memory.readiness_event(before).map(SourceEffect::Record));
        self.want(now, Family::Memory, wants, effects);
    }

    fn drive_disk(&mut self, now: Nanos, effects: &mut Vec<SourceEffect>) {
        let Some(disk) = &mut self.disk else { return };
        let other_ready = self.memory.readiness().is_some();
        let around =
            Around { now, stage: self.stage, bandwidth: self.bandwidth.rate(), link: self.limits.link, other_ready };
        let before = disk.readiness();
        let mut wants = Vec::new();
        disk.drive(&around, self.requested, &mut wants);
        effects.extend(disk.readiness_event(before).map(SourceEffect::Record));
        self.want(now, Family::Disk, wants, effects);
    }

    /// Whose turn it is. A pause is no time to wait for one's turn, and a guest without a disk has nothing to order.
    fn ask_coordinator(&mut self) -> Turns {
        fn seen<U: FlowUnit>(flow: &Flow<U>, stage: Stage) -> FamilyView {
            let done = if stage == Stage::Push { flow.readiness().is_some() } else { flow.is_empty() };
            FamilyView { done, sending: !flow.is_quiet() }
        }
        match &self.disk {
            Some(disk) if self.stage != Stage::Paused => {
                let view = CoordinatorView { memory: seen(&self.memory, self.stage), disk: seen(disk, self.stage) };
                self.coordinator.turns(&view)
            }
            _ => Turns { memory: Turn::FREE, disk: Turn::FREE },
        }
    }

    fn want(&mut self, now: Nanos, family: Family, wants: Vec<Want>, effects: &mut Vec<SourceEffect>) {
        let turn = if family == Family::Memory { self.turns.memory } else { self.turns.disk };
        let share = turn.share.zip(self.limits.link).map(|(share, link)| link.0 * share);
        for want in wants {
            match want {
                Want::Send { job, mut runs, limit, content, offered } => {
                    if family == Family::Memory {
                        runs = self.name(job, runs);
                    }
                    if family == Family::Memory && self.memory.is_named(job) {
                        self.bandwidth.begin_named();
                    } else if content {
                        self.bandwidth.begin(now);
                    }
                    let least = limit.map(|l| l.0).into_iter().chain(share).reduce(f64::min);
                    let limit = least.map(ByteRate);
                    effects.push(SourceEffect::Send { family, job, runs, limit, demanded: false, offered });
                }
                Want::Observe(observe) => effects.push(SourceEffect::Observe { family, observe }),
                Want::Ask(question) => effects.push(SourceEffect::Ask { question }),
                Want::Deferred(pages) => effects.push(SourceEffect::Record(Event::Deferred { pages })),
                Want::Mirror(mirroring, missing) => match &self.disk {
                    Some(disk) if family == Family::Disk => {
                        let missing = UnitSet::from_extents(disk.total_units(), missing);
                        effects.push(SourceEffect::Mirror { mirroring, missing });
                    }
                    _ => self.lost("memory can't be mirrored".to_owned(), effects),
                },
                Want::Abort(reason) => self.lost(reason, effects),
            }
        }
    }

    /// Both are ready, or one of them doesn't wait.
    fn may_switch(&self) -> bool {
        let memory = self.memory.readiness();
        let disk = self.disk.as_ref().map(Flow::readiness);
        let firm = memory.is_some_and(|r| r.firm) || disk.flatten().is_some_and(|r| r.firm);
        firm || (memory.is_some() && disk.is_none_or(|d| d.is_some()))
    }

    fn begin_switchover(&mut self, now: Nanos, effects: &mut Vec<SourceEffect>) {
        self.memory_rest = self.memory.readiness().map_or(Rest::CarryOver, |r| r.rest);
        // Memory that doesn't wait may be ready before the disk was ever asked.
        let unasked = if self.disk_remains { Rest::Remain } else { Rest::CarryOver };
        self.disk_rest = self.disk.as_ref().and_then(Flow::readiness).map_or(unasked, |r| r.rest);
        self.enter(Phase::Switchover, effects);
        let mut view = self.stop_view(now);
        if self.memory_rest == Rest::LeaveBehind {
            view.remaining_bytes = 0;
        }
        if let Some(predicted) = predicted_downtime(&view) {
            effects.push(SourceEffect::Record(Event::Predicted { ns: predicted.0 }));
        }
        effects.push(record(Moment::PauseRequested));
        effects.push(SourceEffect::Pause);
        self.stage = Stage::Paused;
        self.memory.begin_stage();
        if let Some(disk) = &mut self.disk {
            disk.begin_stage();
        }
    }

    fn switch(&mut self, now: Nanos, effects: &mut Vec<SourceEffect>) {
        let disk_taken = self.switchover.disk_taken || self.disk.is_none();
        self.drive(now, effects);
        if !self.switchover.memory_taken || !disk_taken {
            return;
        }
        let carried = self.memory.is_quiet() && (self.memory_rest == Rest::LeaveBehind || self.memory.is_empty());
        if carried && !self.switchover.barrier {
            self.switchover.barrier = true;
            let round = self.memory.close_paused_round(now, self.requested);
            effects.extend(round.map(|round| SourceEffect::Record(Event::Round { round })));
            effects.push(SourceEffect::Barrier);
        }
        let disk_carried =
            self.disk.as_ref().is_none_or(|d| d.is_quiet() && (self.disk_rest != Rest::CarryOver || d.is_empty()));
        if disk_carried && !self.switchover.disk_carried {
            self.switchover.disk_carried = true;
            let round = self.disk.as_mut().and_then(|d| d.close_paused_round(now, self.requested));
            effects.extend(round.map(|round| SourceEffect::Record(Event::Round { round })));
            effects.push(record(Moment::DiskCarried));
        }
        // Only now: with the state the destination begins to keep what its guest has, and would drop what comes late.
        if disk_carried && let Some(device) = self.switchover.state.take() {
            let missing_pages = self.left_behind_pages();
            let missing_blocks = self.left_behind_blocks();
            let around = Around {
                now,
                stage: self.stage,
                bandwidth: self.bandwidth.rate(),
                link: self.limits.link,
                other_ready: true,
            };
            let disk_note = self.disk.as_mut().map_or_else(Vec::new, |d| d.note(&around, self.requested));
            effects.push(SourceEffect::Say(Message::State { device, missing_pages, missing_blocks, disk_note }));
        }
        if self.switchover.loaded && self.switchover.barrier && disk_carried {
            self.hand_over(now, effects);
        }
    }

    fn left_behind_pages(&self) -> UnitSet<Page> {
        match self.memory_rest {
            Rest::LeaveBehind => self.memory.unsent().clone(),
            Rest::CarryOver | Rest::Remain => UnitSet::empty(self.memory.total_units()),
        }
    }

    /// `None` without a disk, and for one that remains: the destination has nothing of it to become whole.
    fn left_behind_blocks(&self) -> Option<UnitSet<Block>> {
        let disk = self.disk.as_ref()?;
        match self.disk_rest {
            Rest::LeaveBehind => Some(disk.unsent().clone()),
            Rest::CarryOver => Some(UnitSet::empty(disk.total_units())),
            Rest::Remain => None,
        }
    }

    fn hand_over(&mut self, now: Nanos, effects: &mut Vec<SourceEffect>) {
        effects.push(record(Moment::HandedOver));
        effects.push(SourceEffect::Say(Message::HandOver));
        self.enter(Phase::Pull, effects);
        self.stage = Stage::Pull;
        self.memory.begin_stage();
        if let Some(disk) = &mut self.disk {
            disk.begin_stage();
            self.whole.1 = false;
        } else {
            self.whole.1 = true;
        }
        self.pull(now, effects);
    }

    fn pull(&mut self, now: Nanos, effects: &mut Vec<SourceEffect>) {
        if self.has_unsent() {
            self.drive(now, effects);
        }
        if self.memory.is_empty() && !self.last_barrier {
            self.last_barrier = true;
            effects.push(SourceEffect::Barrier);
        }
        // What was acknowledged last belongs in the books too: the word that all is whole may overtake it.
        let quiet = self.memory.is_quiet() && self.disk.as_ref().is_none_or(Flow::is_quiet);
        if self.whole == (true, true) && self.resumed && quiet {
            effects.push(record(Moment::Released));
            effects.push(SourceEffect::Say(Message::Released));
            self.enter(Phase::Complete, effects);
            self.finish(Ending::Completed, effects);
        }
    }

    fn lost(&mut self, reason: String, effects: &mut Vec<SourceEffect>) {
        if self.finished {
            return;
        }
        effects.push(SourceEffect::Record(Event::Failed { reason: reason.clone() }));
        match self.phase {
            Phase::Setup | Phase::Push | Phase::Switchover => self.abort(reason, effects),
            Phase::Pull if !self.resumed => self.finish(Ending::Undecided { reason }, effects),
            Phase::Pull | Phase::Complete | Phase::Aborted => {
                let nothing_left = self.memory_rest == Rest::CarryOver && self.disk_rest != Rest::LeaveBehind;
                self.finish(if nothing_left { Ending::Completed } else { Ending::Lost { reason } }, effects);
            }
        }
    }

    fn abort(&mut self, reason: String, effects: &mut Vec<SourceEffect>) {
        if self.phase == Phase::Switchover && !self.switchover.given_up {
            effects.push(SourceEffect::Resume);
        }
        if self.throttle_share > 0.0 {
            effects.push(SourceEffect::Throttle(0.0));
        }
        effects.push(SourceEffect::Say(Message::Abort { reason: reason.clone() }));
        self.enter(Phase::Aborted, effects);
        self.finish(Ending::Aborted { reason }, effects);
    }

    fn finish(&mut self, ending: Ending, effects: &mut Vec<SourceEffect>) {
        self.finished = true;
        effects.push(SourceEffect::Finish(ending));
    }
}

fn record(moment: Moment) -> SourceEffect {
    SourceEffect::Record(Event::Moment { moment })
}
