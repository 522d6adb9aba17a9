//! The destination's driver: one thread owns the core; lanes and listeners feed it.

use super::control_lane::{begin_as_destination, hear, say};
use super::disk_lane::{Pulled, Puller, connect_to_export, serve_pushes};
use super::memory_lane::{Arrival, LaneReceiver};
use super::offer_lane::serve_offers;
use super::prefetch_lane::{PrefetchJob, prefetch};
use super::remote_lane::RemoteLane;
use super::setup::Connections;
use super::watch::WorkWatch;
use super::{DriverError, FAREWELL, in_words};
use crate::copies::Held;
use crate::core::{DestinationCore, DestinationEffect, DestinationInput, Ending};
use crate::recorder::Recorder;
use crate::witness::Witness;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use whimbrel_disk::{CopyRecord, Volume};
use whimbrel_machine::Machine;
use whimbrel_memory::{MissingPages, Part};
use whimbrel_model::{Block, Event, Extent, Family, Nanos, Needs, Page, Schedule, UnitSet};
use whimbrel_nbd::Client;
use whimbrel_wire::page_frames::Frame;
use whimbrel_wire::{AsyncLinkStream, Class, LinkStream, Severer, clock};

/// How often the guest is asked whether it has failed.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the destination needs to take a guest in.
pub struct DestinationParts {
    /// The machine that waits for the guest.
    pub machine: Arc<dyn Machine>,
    /// Its disk.
    pub volume: Option<Arc<Volume>>,
    /// What it has of the disk.
    pub held: Held,
    /// Where what arrives of the disk is recorded; `None`: nowhere.
    pub record: Option<Arc<CopyRecord>>,
    /// What orders the prefetch of its blocks; `None`: nothing is fetched that the guest did not ask for.
    pub prefetch: Option<Box<dyn Schedule<Block>>>,
    /// What the disk's strategy needs, if there is a disk.
    pub needs: Option<Needs>,
    /// The streams from the source.
    pub connections: Connections,
    /// What sees the guest's writes here, if it is to be asked.
    pub witness: Option<Witness>,
    /// Where events go.
    pub recorder: Recorder,
    /// Where NBD runs.
    pub runtime: tokio::runtime::Handle,
}

/// How a move ended at the destination.
pub struct Arrived {
    /// How.
    pub ending: Ending,
    /// Whether the source had said that the guest runs here.
    pub handed_over: bool,
    /// Reads the guest's progress as long as it is kept.
    pub watch: Option<WorkWatch>,
    /// What has seen every write of the guest here, if it was to be asked.
    pub witness: Option<Witness>,
}

/// Takes a guest in. Returns when the move has ended on this host.
///
/// # Errors
/// Setup failed; nothing has run here.
pub fn run_destination(parts: DestinationParts) -> Result<Arrived, DriverError> {
    let DestinationParts { machine, volume, held, record, prefetch, needs, connections, witness, recorder, runtime } =
        parts;
    let remains = needs.is_some_and(|needs| needs.remains);
    volume.iter().filter(|_| !remains).for_each(|v| v.begin_receive(record.clone()));
    begin_as_destination(&connections.control, &held)?;
    drop(held);
    let Connections { control, push, demand, disk_push, disk_pull, disk_prefetch, disk_mirror, disk_offer } =
        connections;
    let (inputs, received) = channel();
    let missing: Arc<OnceLock<Arc<MissingPages>>> = Arc::default();
    // Of a disk that remains no word is said.
    let blocks = volume.as_ref().filter(|_| !remains).map(|v| v.blocks());
    let pages = machine.ram().pages();
    let sever = [push.severer(), demand.severer()];
    let wants = Arc::clone(&demand);
    let named = volume.clone().filter(|_| !remains);
    for (stream, volume) in [(push, named), (demand, None)] {
        let lane = LaneReceiver { ram: Arc::clone(machine.ram()), volume, stream, missing: Arc::clone(&missing) };
        let (inputs, recorder) = (inputs.clone(), recorder.clone());
        spawn(&inputs.clone(), move || lane.run(&|arrival| hear_arrival(arrival, &inputs, &recorder)));
    }
    let (hearing, to_core) = (Arc::clone(&control), inputs.clone());
    let (alive, heard_all) = channel::<()>();
    spawn(&inputs, move || {
        let _alive = alive;
        match hear(&hearing, pages, blocks, |message| to_core.send(DestinationInput::Said(message)).is_ok()) {
            Err(error) if error.is_end_of_stream() => {
                let _ = to_core.send(DestinationInput::ControlEnded(in_words(&error)));
                Ok(())
            }
            ended => ended,
        }
    });
    if let Some(volume) = &volume {
        let news = DiskNews { inputs: inputs.clone(), recorder: recorder.clone() };
        serve_disk(&runtime, volume, [disk_push, disk_mirror], disk_offer, &news);
    }
    // Now, while it costs no downtime: a guest must not be taken over whose blocks can't be had.
    let connect = |stream: Option<_>| stream.map(|stream| runtime.spawn(connect_to_export(stream)));
    let (disk_pull, disk_prefetch) = (connect(disk_pull), connect(disk_prefetch));
    let block_bytes = volume.as_ref().map_or(0, |v| v.block_bytes());
    let mut destination = Destination {
        core: DestinationCore::new(prefetch.map(|schedule| (schedule, block_bytes))),
        machine,
        volume,
        remains,
        recorder,
        runtime,
        control,
        wants,
        disk_pull,
        disk_prefetch,
        prefetches: None,
        missing,
        inputs,
        timer: None,
        watch: None,
        witness,
        ending: None,
    };
    let ending = destination.run(&received);
    destination.leave(&ending);
    if !matches!(ending, Ending::Completed) {
        sever.iter().for_each(Severer::sever);
        bid_farewell(&destination.control, &heard_all);
    }
    let handed_over = destination.core.was_handed_over();
    Ok(Arrived { ending, handed_over, watch: destination.watch, witness: destination.witness })
}

/// Ends the control connection in order: what was said last, why this host gives up, arrives before the end; the source
/// then ends its side.
fn bid_farewell(control: &LinkStream, heard_all: &Receiver<()>) {
    let _ = control.shutdown_write();
    if heard_all.recv_timeout(FAREWELL) == Err(RecvTimeoutError::Timeout) {
        control.sever();
    }
}

/// Starts a thread whose failure ends the move.
fn spawn(inputs: &Sender<DestinationInput>, work: impl FnOnce() -> Result<(), DriverError> + Send + 'static) {
    let inputs = inputs.clone();
    std::thread::spawn(move || {
        if let Err(error) = work() {
            // Nobody listens once the move has ended.
            let _ = inputs.send(lost(&error));
        }
    });
}

/// What the core hears of a failure on this host.
fn lost(error: &DriverError) -> DestinationInput {
    let reason = in_words(error);
    if error.is_end_of_stream() { DestinationInput::LaneEnded(reason) } else { DestinationInput::Lost(reason) }
}

/// Serves what the source sends of the disk: blocks, and offers of them.
fn serve_disk(
    runtime: &tokio::runtime::Handle,
    volume: &Arc<Volume>,
    pushes: [Option<AsyncLinkStream>; 2],
    offers: Option<AsyncLinkStream>,
    news: &DiskNews,
) {
    let told = |serving: Pin<Box<dyn Future<Output = Result<(), DriverError>> + Send>>| {
        let failed = news.clone();
        runtime.spawn(async move {
            if let Err(error) = serving.await {
                failed.failed(error);
            }
        });
    };
    for stream in pushes.into_iter().flatten() {
        let news = news.clone();
        told(Box::pin(serve_pushes(stream, Arc::clone(volume), move |_, waited| news.arrived(waited, true))));
    }
    if let Some(stream) = offers {
        let news = news.clone();
        told(Box::pin(serve_offers(stream, Arc::clone(volume), move |waited| news.arrived(waited, true))));
    }
}

fn hear_arrival(arrival: Arrival, inputs: &Sender<DestinationInput>, recorder: &Recorder) {
    let input = match arrival {
        Arrival::Barrier => DestinationInput::BarrierArrived,
        Arrival::Completed { waited, demanded, left } => {
            for wait in waited {
                let ns = wait.time.as_nanos() as u64;
                recorder.record(Event::Fault { family: Family::Memory, ns, in_flight: !demanded });
            }
            if left > 0 {
                return;
            }
            DestinationInput::Left { family: Family::Memory, units: left }
        }
    };
    // Nobody listens once the move has ended.
    let _ = inputs.send(input);
}

/// Tells the core and the books of what becomes of missing blocks.
#[derive(Clone)]
struct DiskNews {
    inputs: Sender<DestinationInput>,
    recorder: Recorder,
}

impl Pulled for DiskNews {
    fn arrived(&self, waited: &[(u64, u64)], in_flight: bool) {
        for (_, ns) in waited {
            self.recorder.record(Event::Fault { family: Family::Disk, ns: *ns, in_flight });
        }
    }

    fn whole(&self) {
        let _ = self.inputs.send(DestinationInput::Left { family: Family::Disk, units: 0 });
    }

    fn failed(&self, error: DriverError) {
        let _ = self.inputs.send(lost(&error));
    }
}

/// The core with all that it acts on.
struct Destination {
    core: DestinationCore,
    machine: Arc<dyn Machine>,
    volume: Option<Arc<Volume>>,
    /// The disk stays where it is.
    remains: bool,
    recorder: Recorder,
    runtime: tokio::runtime::Handle,
    control: Arc<LinkStream>,
    wants: Arc<LinkStream>,
    disk_pull: Option<JoinHandle<Result<Client, DriverError>>>,
    disk_prefetch: Option<JoinHandle<Result<Client, DriverError>>>,
    prefetches: Option<UnboundedSender<PrefetchJob>>,
    missing: Arc<OnceLock<Arc<MissingPages>>>,
    inputs: Sender<DestinationInput>,
    timer: Option<Nanos>,
    watch: Option<WorkWatch>,
    witness: Option<Witness>,
    ending: Option<Ending>,
}

impl Destination {
    fn run(&mut self, inputs: &Receiver<DestinationInput>) -> Ending {
        loop {
            if let Some(ending) = self.ending.take() {
                return ending;
            }
            let wait = self.timer.map_or(LOOK_EVERY, |at| Duration::from(at.since(clock::now())).min(LOOK_EVERY));
            match inputs.recv_timeout(wait) {
                Ok(input) => self.feed(input),
                Err(RecvTimeoutError::Timeout) if self.timer.is_some_and(|at| at <= clock::now()) => {
                    self.timer = None;
                    self.feed(DestinationInput::Timer);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.feed(DestinationInput::Lost("all lanes have ended".into())),
            }
            if let Some(reason) = self.machine.failure() {
                self.feed(DestinationInput::Lost(format!("the guest failed: {reason}")));
            }
        }
    }

    /// Feeds the core, carries out its wishes, and feeds back what they give at once.
    fn feed(&mut self, input: DestinationInput) {
        let mut inputs = VecDeque::from([input]);
        let mut effects = Vec::new();
        while let Some(input) = inputs.pop_front() {
            if matches!(input, DestinationInput::Resumed) {
                self.watch = Some(WorkWatch::start(Arc::clone(&self.machine), self.recorder.clone()));
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

    fn act(&mut self, effect: DestinationEffect) -> Result<Option<DestinationInput>, DriverError> {
        match effect {
            DestinationEffect::Load { device, missing_pages, missing_blocks } => {
                self.guard(missing_pages, missing_blocks)?;
                // A machine may touch pages that are missing while it takes its state up: they are fetched meanwhile.
                let (machine, inputs) = (Arc::clone(&self.machine), self.inputs.clone());
                spawn(&self.inputs, move || {
                    machine.load_state(&device)?;
                    // Nobody listens once the move has ended.
                    let _ = inputs.send(DestinationInput::Loaded);
                    Ok(())
                });
            }
            DestinationEffect::Resume => {
                self.machine.reset_silence();
                self.volume.iter().for_each(|volume| volume.come_home());
                // As when it takes its state up, a machine may touch missing pages before it says that it runs.
                let (machine, inputs) = (Arc::clone(&self.machine), self.inputs.clone());
                spawn(&self.inputs, move || {
                    machine.run();
                    // Nobody listens once the move has ended.
                    let _ = inputs.send(DestinationInput::Resumed);
                    Ok(())
                });
            }
            DestinationEffect::Say(message) => say(&self.control, &message)?,
            DestinationEffect::Fetch(pages) => self.fetch(&pages)?,
            // A lane that is gone has told of it itself.
            DestinationEffect::Prefetch { job, extent, limit } => {
                self.prefetches.iter().for_each(|lane| _ = lane.send(PrefetchJob { job, extent, limit }));
            }
            DestinationEffect::TimerAt(at) => self.timer = Some(at),
            DestinationEffect::Record(event) => self.recorder.record(event),
            DestinationEffect::Finish(ending) => self.ending = Some(ending),
        }
        Ok(None)
    }

    /// Sees to it that nobody touches what is missing.
    fn guard(&mut self, pages: UnitSet<Page>, blocks: Option<UnitSet<Block>>) -> Result<(), DriverError> {
        if !pages.is_empty() {
            let inputs = self.inputs.clone();
            let on_fault = move |page, _| drop(inputs.send(DestinationInput::Fault(vec![page])));
            let guarded = MissingPages::begin(Arc::clone(self.machine.ram()), pages, Box::new(on_fault))?;
            if self.missing.set(guarded).is_err() {
                return Err(DriverError::Protocol("the device state came twice".to_owned()));
            }
        }
        match (self.volume.clone(), blocks) {
            (Some(volume), _) if self.remains && volume.is_home() => volume.begin_visit(),
            (Some(volume), _) if self.remains => {
                let client = self.puller()?;
                volume.begin_remote(RemoteLane::start(&self.runtime, client));
            }
            (Some(volume), Some(blocks)) if blocks.is_empty() => volume.begin_visit(),
            (Some(volume), Some(blocks)) => {
                let (client, ahead) = (self.puller()?, self.disk_prefetch.take());
                let news = DiskNews { inputs: self.inputs.clone(), recorder: self.recorder.clone() };
                if let Some(client) = self.connected(ahead)? {
                    let (jobs, to_do) = unbounded_channel();
                    self.prefetches = Some(jobs);
                    let inputs = self.inputs.clone();
                    let fetched = move |job| drop(inputs.send(DestinationInput::Fetched { job }));
                    self.runtime.spawn(prefetch(client, Arc::clone(&volume), to_do, news.clone(), fetched));
                }
                volume.begin_pull(blocks, Puller::start(&self.runtime, client, Arc::clone(&volume), news));
            }
            _ => {}
        }
        Ok(())
    }

    /// The connection for what the guest asks for.
    fn puller(&mut self) -> Result<Client, DriverError> {
        let pull = self.disk_pull.take();
        self.connected(pull)?.ok_or_else(|| DriverError::Protocol("there is no stream for pulls".to_owned()))
    }

    /// A connection to the source's export that was begun in setup and works.
    fn connected(
        &self,
        connecting: Option<JoinHandle<Result<Client, DriverError>>>,
    ) -> Result<Option<Client>, DriverError> {
        let Some(connecting) = connecting else { return Ok(None) };
        let client = self.runtime.block_on(connecting).map_err(std::io::Error::other)??;
        if client.is_lost() {
            return Err(DriverError::Protocol("the connection for pulls has ended".to_owned()));
        }
        Ok(Some(client))
    }

    /// Asks for pages on the demand lane.
    fn fetch(&mut self, pages: &[u64]) -> Result<(), DriverError> {
        for &page in pages {
            let want = Frame::Want { pages: Extent { start: page, count: 1 } }.encode();
            self.wants.admit(want.len() as u64, Class::Urgent);
            self.machine.ram().send_frames(self.wants.fd(), &[Part::Bytes(&want)])?;
        }
        Ok(())
    }

    /// Ends what serves missing units: in good order, or so that nobody waits for ever.
    fn leave(&mut self, ending: &Ending) {
        self.prefetches = None;
        let is_lost = matches!(ending, Ending::Lost { .. });
        if is_lost {
            // What is left of the guest must not run on pages that never came.
            self.machine.give_up();
        }
        if let Some(missing) = self.missing.get() {
            let ended = match ending {
                Ending::Completed => missing.finish(),
                _ => missing.abandon().map(drop),
            };
            // Of a guest that was given up there may be no process any more in which to end it.
            if let (Err(error), false) = (ended, is_lost) {
                self.recorder.record(Event::Failed { reason: in_words(&error) });
            }
        }
        if let (Some(volume), Ending::Lost { reason }) = (&self.volume, ending) {
            volume.fail_pull(reason);
        }
        if is_lost {
            self.machine.pause();
        }
    }
}
