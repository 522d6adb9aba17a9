//! The source's driver: one thread owns the core; lanes and listeners feed it.

use super::acknowledged::Acknowledged;
use super::control_lane::{begin_as_source, hear, say};
use super::disk_lane::{DiskJob, DiskSender, serve_pulls};
use super::hint_lane::HintLane;
use super::memory_lane::{LaneJob, LaneSender};
use super::mirror_lane::MirrorLane;
use super::offer_lane::OfferLane;
use super::remote_lane::serve_remote;
use super::setup::Connections;
use super::{DriverError, FAREWELL, in_words};
use crate::commands::MoveSpec;
use crate::copies::{Behind, Held, Point};
use crate::core::{DiskPlan, Ending, Limits, Progress, SourceCore, SourceEffect, SourceInput, SourcePlan, Written};
use crate::recorder::Recorder;
use crate::report::ClockOffset;
use std::collections::VecDeque;
use std::io::Read;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use whimbrel_disk::{BuildContext as DiskContext, MirrorSink, PulledAs, Volume};
use whimbrel_machine::{Asked, Machine};
use whimbrel_memory::{BuildContext, DirtyLog, EncodeChain};
use whimbrel_model::{Block, ByteRate, Event, Extent, Family, Moment, Nanos, Needs, Observe, Page, UnitSet};
use whimbrel_wire::page_frames::{Frame, HEADER_BYTES};
use whimbrel_wire::{AsyncLinkStream, Class, LinkStream, Severer, clock};

/// Between two reports of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// What the source needs to move a guest.
pub struct SourceParts<'a> {
    /// The guest that runs here.
    pub machine: Arc<dyn Machine>,
    /// Its disk.
    pub volume: Option<Arc<Volume>>,
    /// The move.
    pub movement: &'a MoveSpec,
    /// What is known of copies of the disk elsewhere.
    pub copies: Copies,
    /// The guest's seed, from which orders are drawn.
    pub seed: u64,
    /// What the disk's strategy needs, if there is a disk.
    pub needs: Option<Needs>,
    /// The streams to the destination.
    pub connections: Connections,
    /// The log of the guest's writes to memory.
    pub log: Box<dyn DirtyLog>,
    /// Where events go.
    pub recorder: Recorder,
    /// When the command was accepted.
    pub requested: Nanos,
    /// Where NBD runs.
    pub runtime: tokio::runtime::Handle,
}

/// What the source knows of copies of the disk at other hosts, by which the destination's is judged.
#[derive(Debug, Default)]
pub struct Copies {
    /// The guest began here, on a base image that every host has.
    pub on_base: bool,
    /// The move by which the guest came here: where it left, it left the disk as it was.
    pub came_by: Option<u64>,
    /// What an attempt that failed left.
    pub behind: Option<Behind>,
}

/// Where progress is reported to; the answer may be a reason to give up.
pub type Report<'a> = dyn FnMut(Progress) -> ControlFlow<String> + 'a;

/// How a move ended at the source.
pub struct Left {
    /// How.
    pub ending: Ending,
    /// The destination's clock less this one.
    pub clock: Option<ClockOffset>,
    /// Blocks that the destination lacked at the start; `None`: no disk.
    pub missing_blocks: Option<u64>,
    /// What the destination's copy of the disk is behind in, where the guest runs on here and another attempt may follow.
    pub behind: Option<Behind>,
    /// Pages that were left out, for they were free when the guest was paused here; `None`: none were.
    pub left_out: Option<UnitSet<Page>>,
    /// What the hypervisor says of a migration of its own.
    pub own: Option<serde_json::Value>,
}

impl Left {
    /// That it ended, and nothing else.
    pub fn without_a_word(ending: Ending) -> Self {
        Left { ending, clock: None, missing_blocks: None, behind: None, left_out: None, own: None }
    }
}

/// Moves the guest away. Returns when the move has ended on this host; the guest then runs here
/// ([`Ending::Aborted`]), or is frozen for good or until the hosts meet ([`Ending::Undecided`]). A reason to give up that
/// comes after the hand-over comes too late: the move is carried through.
///
/// # Errors
/// Setup failed; the guest runs on as if nothing had been.
pub fn run_source(parts: SourceParts<'_>, progress: &mut Report<'_>) -> Result<Left, DriverError> {
    let SourceParts { machine, volume, movement, copies, seed, needs, connections, mut log, recorder, .. } = parts;
    log.arm()?;
    let (clock, held) = begin_as_source(&connections.control, volume.as_ref().map(|v| v.blocks()))?;
    let remains = needs.is_some_and(|needs| needs.remains);
    // A copy that no record is kept of is worth nothing after a failure.
    let point = match &held {
        Held::New(will_be) => *will_be,
        Held::Copy(point @ Point::Attempt { .. }, _) => Some(*point),
        Held::Copy(Point::Left { .. }, _) => None,
    };
    let missing_blocks = volume.as_ref().map(|volume| match remains {
        true => armed(volume, || UnitSet::empty(volume.blocks())),
        false => missing_blocks(volume, &held, movement, copies),
    });
    let acknowledged = point.zip(missing_blocks.clone());
    let acknowledged = acknowledged.map(|(point, missing)| (point, Acknowledged::nothing_of(missing)));
    let missing_count = missing_blocks.as_ref().map(UnitSet::count);
    // The error of the clocks' comparison is half the shortest round trip.
    let round_trip_ns = clock.map_or(2 * movement.link.delay_ns, |c| 2 * c.error_ns);
    let pages = machine.ram().pages();
    let memory = movement.memory.build(&BuildContext { pages, seed });
    let mut plan = SourcePlan {
        requested: parts.requested,
        missing_pages: UnitSet::full(pages),
        memory,
        disk: volume
            .as_ref()
            .zip(missing_blocks)
            .map(|(v, missing)| disk_plan(v, missing, movement, seed))
            .transpose()?,
        coordinator: movement.coordinator.build(),
        limits: Limits {
            fixed_cost: Nanos(machine.switchover().0 + 2 * round_trip_ns),
            link: movement.link.path_bytes_per_s.map(ByteRate),
        },
    };
    let encode = std::mem::take(&mut plan.memory.encode);
    let demand_encode = movement.memory.build(&BuildContext { pages, seed }).encode;
    let (inputs, received) = channel();
    let encodes = [encode, demand_encode];
    let mut lanes = Lanes::start(&machine, &volume, remains, connections, encodes, &inputs, &parts.runtime)?;
    if movement.memory.asks_guest() {
        let guest = Arc::clone(&machine);
        let what = if movement.memory.refers() { Asked::Copies } else { Asked::Free };
        let hints = move |given_up: &dyn Fn() -> bool| guest.hints(what, given_up);
        lanes.hints = Some(HintLane::start(pages, what, hints, inputs.clone(), recorder.clone()));
    }
    let (core, timer, ending) = (SourceCore::new(plan), None, None);
    let mut source = Source { core, machine, volume, remains, acknowledged, log, recorder, lanes, timer, ending };
    source.feed(SourceInput::Start);
    let ending = source.run(&received, progress);
    let behind = source.leave(&ending);
    let left_out = Some(source.core.left_out()).filter(|pages| !pages.is_empty()).cloned();
    Ok(Left { ending, clock, missing_blocks: missing_count, behind, left_out, own: None })
}

/// What the destination lacks, by what both hosts know of its copy; the volume records from before it is looked at.
fn missing_blocks(volume: &Volume, held: &Held, movement: &MoveSpec, copies: Copies) -> UnitSet<Block> {
    let told = |point: &Point| movement.earlier.contains(&point.session());
    // What of such a copy is out of date has been written since the guest came here, or began.
    let stands_for_fresh = |point| match point {
        Point::Left { session } => copies.came_by == Some(session),
        // Made on the base image, and whatever came in the attempts is as that or has been written since, too.
        Point::Attempt { .. } => copies.on_base,
    };
    match (held, copies.behind) {
        (Held::Copy(point, lacking), Some(behind)) if told(point) && behind.point == *point => {
            // It has gone on recording since the attempt.
            let mut missing = behind.blocks;
            volume.take_into(&mut missing);
            missing.union(lacking);
            missing
        }
        (Held::Copy(point, lacking), _) if told(point) && stands_for_fresh(*point) => armed(volume, || {
            let mut missing = volume.fresh();
            missing.union(lacking);
            missing
        }),
        (Held::New(_), _) if copies.on_base => armed(volume, || volume.fresh()),
        _ => armed(volume, || UnitSet::full(volume.blocks())),
    }
}

/// Arms the volume first: a write between this and the look must be in one of the two.
fn armed(volume: &Volume, look: impl FnOnce() -> UnitSet<Block>) -> UnitSet<Block> {
    volume.arm();
    look()
}

fn disk_plan(
    volume: &Volume,
    missing: UnitSet<Block>,
    movement: &MoveSpec,
    seed: u64,
) -> Result<DiskPlan, DriverError> {
    let (blocks, block_bytes) = (volume.blocks(), volume.block_bytes());
    let mut holes = UnitSet::full(blocks);
    for data in volume.data_extents(Extent { start: 0, count: blocks })? {
        holes.remove_extent(data);
    }
    let strategy = movement.disk.build(&DiskContext { blocks, block_bytes, seed });
    strategy.schedule.needs().counts.iter().for_each(|stretch| volume.begin_counts(*stretch));
    Ok(DiskPlan { missing, holes, block_bytes, strategy })
}

/// The threads and tasks that move bytes, and how to reach them.
struct Lanes {
    control: Arc<LinkStream>,
    push: Option<Sender<LaneJob>>,
    demand: Option<Sender<LaneJob>>,
    disk: Option<UnboundedSender<DiskJob>>,
    mirror: Option<Arc<MirrorLane>>,
    /// To the guest, where the selection goes by what it says.
    hints: Option<HintLane>,
    sever: Vec<Severer>,
    running: Receiver<()>,
    barriers: u64,
}

impl Lanes {
    fn start(
        machine: &Arc<dyn Machine>,
        volume: &Option<Arc<Volume>>,
        remains: bool,
        connections: Connections,
        [encode, demand_encode]: [EncodeChain; 2],
        inputs: &Sender<SourceInput>,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Self, DriverError> {
        let Connections { control, push, demand, disk_push, disk_pull, disk_prefetch, disk_mirror, disk_offer } =
            connections;
        let ram = machine.ram();
        let (pages, blocks) = (ram.pages(), volume.as_ref().map(|v| v.blocks()));
        let mut sever = vec![push.severer(), demand.severer()];
        // The guest may wait for it: it must not wait for a host that is gone.
        sever.extend(disk_mirror.iter().map(AsyncLinkStream::severer));
        let told = inputs.clone();
        let mirror = disk_mirror
            .map(|stream| MirrorLane::start(runtime, stream, move |sent| drop(told.send(SourceInput::Mirrored(sent)))));
        let (alive, running) = channel();
        let (push_jobs, jobs) = channel();
        let sender = LaneSender::new(Arc::clone(ram), push, encode, Class::Bulk).with_disk(volume.clone());
        spawn(inputs, &alive, move |sent| sender.run(&jobs, sent));
        let (demand_jobs, jobs) = channel();
        let wants = Arc::clone(&demand);
        let sender = LaneSender::new(Arc::clone(ram), demand, demand_encode, Class::Urgent);
        spawn(inputs, &alive, move |sent| sender.run(&jobs, sent));
        let to_core = inputs.clone();
        spawn(inputs, &alive, move |_| hear_wants(&wants, pages, &to_core));
        let (hearing, to_core) = (Arc::clone(&control), inputs.clone());
        spawn(inputs, &alive, move |_| {
            match hear(&hearing, pages, blocks, |message| to_core.send(SourceInput::Said(message)).is_ok()) {
                Err(error) if error.is_end_of_stream() => {
                    let _ = to_core.send(SourceInput::ControlEnded(in_words(&error)));
                    Ok(())
                }
                ended => ended,
            }
        });
        let mut disk = None;
        if let (Some(volume), Some(to_push), Some(to_pull)) = (volume, disk_push, disk_pull) {
            let (jobs, to_do) = tokio::sync::mpsc::unbounded_channel();
            disk = Some(jobs);
            let (to_core, told) = (inputs.clone(), inputs.clone());
            let offers = disk_offer.map(|stream| OfferLane::start(runtime, stream));
            let sender = DiskSender { volume: Arc::clone(volume), offers };
            runtime.spawn(async move {
                let sent = |job, sent| drop(told.send(SourceInput::Sent { family: Family::Disk, job, sent }));
                if let Err(error) = sender.run(to_push, to_do, sent).await {
                    let _ = to_core.send(lost(&error));
                }
            });
            let (to_pull, to_remain) = if remains { (None, Some(to_pull)) } else { (Some(to_pull), None) };
            // How the connection ends is the guest's to learn.
            to_remain.map(|stream| runtime.spawn(serve_remote(stream, Arc::clone(volume))));
            for (stream, demanded) in [(to_pull, true), (disk_prefetch, false)] {
                let told = inputs.clone();
                let pulled = move |extent, pulled_as| {
                    let zero = pulled_as == PulledAs::Zero;
                    drop(told.send(SourceInput::Pulled { extent, demanded, zero }));
                };
                stream.map(|stream| runtime.spawn(serve_pulls(stream, Arc::clone(volume), pulled)));
            }
        }
        let (push, demand) = (Some(push_jobs), Some(demand_jobs));
        Ok(Lanes { control, push, demand, disk, mirror, hints: None, sever, running, barriers: 0 })
    }

    /// Lets every thread end: by the ends of their work, or, if the other side doesn't see to it, by force.
    fn end(&mut self, by_force: bool) {
        self.push = None;
        self.demand = None;
        self.disk = None;
        if by_force {
            self.sever.iter().for_each(Severer::sever);
        }
        // The other side's listener ends at this, and with it its side of the connection, at which ours ends. What was
        // said last, why this host gives up, arrives before.
        let _ = self.control.shutdown_write();
        if self.running.recv_timeout(FAREWELL) == Err(RecvTimeoutError::Timeout) {
            self.sever.iter().for_each(Severer::sever);
            self.control.sever();
        }
        self.hints = None;
    }
}

/// Starts a thread whose failure ends the move. It holds `alive` as long as it runs.
fn spawn(
    inputs: &Sender<SourceInput>,
    alive: &Sender<()>,
    work: impl FnOnce(&dyn Fn(u64, whimbrel_model::event::Sent)) -> Result<(), DriverError> + Send + 'static,
) {
    let (inputs, alive) = (inputs.clone(), alive.clone());
    std::thread::spawn(move || {
        let sent = |job, sent| drop(inputs.send(SourceInput::Sent { family: Family::Memory, job, sent }));
        if let Err(error) = work(&sent) {
            // Nobody listens once the move has ended.
            let _ = inputs.send(lost(&error));
        }
        drop(alive);
    });
}

/// Hears requests for pages until the lane ends.
fn hear_wants(mut stream: &LinkStream, pages: u64, inputs: &Sender<SourceInput>) -> Result<(), DriverError> {
    let mut header = [0; HEADER_BYTES];
    loop {
        stream.read_exact(&mut header)?;
        match Frame::decode(&header, pages)? {
            Frame::Want { pages } => drop(inputs.send(SourceInput::Fetch(pages.indices().collect()))),
            Frame::End => return Ok(()),
            other => return Err(DriverError::Protocol(format!("{other:?} where requests for pages are expected"))),
        }
    }
}

/// What the core hears of a failure on this host.
fn lost(error: &DriverError) -> SourceInput {
    let reason = in_words(error);
    if error.is_end_of_stream() { SourceInput::LaneEnded(reason) } else { SourceInput::Lost(reason) }
}

/// The core with all that it acts on.
struct Source {
    core: SourceCore,
    machine: Arc<dyn Machine>,
    volume: Option<Arc<Volume>>,
    /// The disk stays here when the guest leaves.
    remains: bool,
    /// What of the disk the destination's copy of that point has acknowledged, where it is one that lasts.
    acknowledged: Option<(Point, Acknowledged)>,
    log: Box<dyn DirtyLog>,
    recorder: Recorder,
    lanes: Lanes,
    timer: Option<Nanos>,
    ending: Option<Ending>,
}

impl Source {
    fn run(&mut self, inputs: &Receiver<SourceInput>, progress: &mut Report<'_>) -> Ending {
        let mut shown = clock::now();
        loop {
            if let Some(ending) = self.ending.take() {
                return ending;
            }
            let wait = match self.timer {
                Some(at) => Duration::from(at.since(clock::now())).min(PROGRESS_EVERY),
                None => PROGRESS_EVERY,
            };
            match inputs.recv_timeout(wait) {
                Ok(input) => self.feed(input),
                Err(RecvTimeoutError::Timeout) => {
                    if self.timer.is_some_and(|at| at <= clock::now()) {
                        self.timer = None;
                        self.feed(SourceInput::Timer);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => self.feed(SourceInput::Lost("all lanes have ended".to_owned())),
            }
            if let Some(reason) = self.machine.failure() {
                self.feed(SourceInput::Lost(format!("the guest failed: {reason}")));
            }
            if clock::now().since(shown) >= Nanos::from(PROGRESS_EVERY) {
                shown = clock::now();
                if let ControlFlow::Break(reason) = progress(self.core.progress()) {
                    self.feed(SourceInput::Cancelled(reason));
                }
            }
        }
    }

    /// Feeds the core, carries out its wishes, and feeds back what they give at once.
    fn feed(&mut self, input: SourceInput) {
        let mut inputs = VecDeque::from([input]);
        let mut effects = Vec::new();
        while let Some(input) = inputs.pop_front() {
            if let (SourceInput::Sent { family: Family::Disk, job, .. }, Some((_, acknowledged))) =
                (&input, &mut self.acknowledged)
            {
                acknowledged.sent(*job);
            }
            self.core.on(clock::now(), input, &mut effects);
            for effect in effects.drain(..) {
                match self.act(effect) {
                    Ok(answer) => inputs.extend(answer),
                    Err(error) => inputs.push_back(lost(&error)),
                }
            }
        }
    }

    fn act(&mut self, effect: SourceEffect) -> Result<Option<SourceInput>, DriverError> {
        match effect {
            SourceEffect::Send { family: Family::Memory, job, runs, limit, demanded, .. } => {
                let lane = if demanded { &self.lanes.demand } else { &self.lanes.push };
                // A lane that is gone has told of it itself.
                lane.iter().for_each(|l| _ = l.send(LaneJob::Send { job, runs: runs.clone(), limit, demanded }));
            }
            SourceEffect::Send { family: Family::Disk, job, runs, limit, offered, .. } => {
                self.acknowledged.iter_mut().for_each(|(_, acknowledged)| acknowledged.send(job, &runs));
                self.lanes.disk.iter().for_each(|l| _ = l.send(DiskJob { job, runs: runs.clone(), limit, offered }));
            }
            SourceEffect::Barrier => {
                self.lanes.barriers += 1;
                let barrier = LaneJob::Barrier(self.lanes.barriers);
                if let Some(push) = &self.lanes.push {
                    let _ = push.send(barrier);
                }
            }
            SourceEffect::Observe { family, observe } => {
                let written = self.observe(family, observe)?;
                return Ok(Some(SourceInput::Observed { observe, written }));
            }
            SourceEffect::Ask { question } => {
                // The log is armed and was not taken since the core asked.
                self.lanes.hints.iter().for_each(|lane| lane.ask(question));
            }
            SourceEffect::Mirror { mirroring, missing } => {
                if let (Some(volume), Some(mirror)) = (&self.volume, &self.lanes.mirror) {
                    let lane = Arc::clone(mirror) as Arc<dyn MirrorSink>;
                    volume.begin_mirror(mirroring, &missing, lane);
                }
            }
            SourceEffect::Pause => {
                let paused = self.machine.pause();
                self.recorder.record_at(paused.left, Event::Moment { moment: Moment::Paused });
                self.recorder.progress(paused.left, &*self.machine);
                return Ok(Some(SourceInput::Paused { at: paused.left }));
            }
            SourceEffect::Drain => {
                self.machine.drain()?;
                self.volume.iter().for_each(|v| v.drain());
                return Ok(Some(SourceInput::Drained));
            }
            SourceEffect::SaveState => return Ok(Some(SourceInput::StateSaved(self.machine.save_state()?))),
            SourceEffect::Resume => self.machine.run(),
            SourceEffect::Throttle(share) => self.machine.throttle(share),
            SourceEffect::Say(message) => say(&self.lanes.control, &message)?,
            SourceEffect::TimerAt(at) => self.timer = Some(at),
            SourceEffect::Record(event) => self.recorder.record(event),
            SourceEffect::Finish(ending) => self.ending = Some(ending),
        }
        Ok(None)
    }

    fn observe(&mut self, family: Family, observe: Observe) -> Result<Written, DriverError> {
        Ok(match (family, &self.volume, observe) {
            (Family::Memory, _, Observe::Take) => Written::Pages(self.log.take()?),
            (Family::Memory, _, Observe::Peek) => Written::Pages(self.log.peek()?),
            (Family::Disk, Some(volume), Observe::Take) => {
                let written = volume.take();
                self.acknowledged.iter_mut().for_each(|(_, acknowledged)| acknowledged.take(&written));
                Written::Blocks(written, volume.write_counts())
            }
            (Family::Disk, Some(volume), Observe::Peek) => Written::Blocks(volume.peek(), volume.write_counts()),
            (Family::Disk, None, _) => Written::Blocks(UnitSet::empty(0), None),
        })
    }

    /// Ends the lanes and the logs. Returns what another attempt begins with.
    fn leave(&mut self, ending: &Ending) -> Option<Behind> {
        self.lanes.end(!matches!(ending, Ending::Completed));
        // The guest's speed matters again where it runs on; a log that can't be disarmed costs only that.
        if let Err(error) = self.log.disarm() {
            self.recorder.record(Event::Failed { reason: in_words(&error) });
        }
        let runs_on = matches!(ending, Ending::Aborted { .. });
        let behind = self.acknowledged.take().filter(|_| runs_on && !self.remains);
        let behind = behind.map(|(point, acknowledged)| Behind { point, blocks: acknowledged.rest() });
        if let Some(volume) = &self.volume {
            if behind.is_some() {
                volume.stand_by()
            } else {
                volume.disarm()
            }
            if self.remains && !runs_on {
                volume.lend();
            }
        }
        self.recorder.departure(&*self.machine);
        behind
    }
}
