//! The destination's core: takes up what the source says, resumes once and only once, and knows when it is whole.

use super::Ending;
use super::fetching::{Fetching, Job};
use super::last_word::LastWord;
use whimbrel_model::{Block, ByteRate, Event, Extent, Family, Moment, Nanos, Page, Phase, Schedule, UnitSet};
use whimbrel_wire::Message;

/// What happens to the destination's core.
#[derive(Clone, Debug)]
pub enum DestinationInput {
    /// The source says something.
    Said(Message),
    /// The mark behind everything sent so far has come through the memory lane.
    BarrierArrived,
    /// The device state is taken up and missing pages and blocks are guarded.
    Loaded,
    /// The guest runs.
    Resumed,
    /// A vCPU waits for pages that are missing.
    Fault(Vec<u64>),
    /// So many units of a family are still missing.
    Left {
        /// Which family.
        family: Family,
        /// How many.
        units: u64,
    },
    /// The blocks of a prefetch are here.
    Fetched {
        /// The job's number.
        job: u64,
    },
    /// The instant of a [`DestinationEffect::TimerAt`] has come.
    Timer,
    /// A lane has ended, for this reason. Why it did, the source may be about to say.
    LaneEnded(String),
    /// The control connection has ended: the source says nothing more.
    ControlEnded(String),
    /// The link is gone, or this host can't go on.
    Lost(String),
}

/// What the destination's core wants done.
#[derive(Clone, Debug)]
pub enum DestinationEffect {
    /// Guard what is missing, then take up the device state; [`DestinationInput::Loaded`] answers.
    Load {
        /// The device state.
        device: Vec<u8>,
        /// Pages to be guarded.
        missing_pages: UnitSet<Page>,
        /// Blocks to be guarded.
        missing_blocks: Option<UnitSet<Block>>,
    },
    /// Let the guest run; [`DestinationInput::Resumed`] answers.
    Resume,
    /// Say something to the source.
    Say(Message),
    /// Ask the source for pages that a vCPU waits for.
    Fetch(Vec<u64>),
    /// Fetch what of these blocks is still missing; [`DestinationInput::Fetched`] answers.
    Prefetch {
        /// The job's number.
        job: u64,
        /// The blocks.
        extent: Extent,
        /// The most of the link that it may take.
        limit: Option<ByteRate>,
    },
    /// Call again at this instant.
    TimerAt(Nanos),
    /// Record an event.
    Record(Event),
    /// This was the end.
    Finish(Ending),
}

/// Where the destination is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Units come in.
    Receiving,
    /// The device state is being taken up.
    Loading,
    /// Ready to resume; the word is the source's.
    Loaded,
    /// The guest was told to run.
    Running,
    /// Everything is over.
    Finished,
}

/// The device state, the pages and blocks that the guest will lack, and the note of the disk's schedule.
type DeviceState = (Vec<u8>, UnitSet<Page>, Option<UnitSet<Block>>, Vec<u8>);

/// The destination's core.
pub struct DestinationCore {
    state: State,
    device: Option<DeviceState>,
    fetching: Option<Fetching>,
    barriers: u32,
    pages_left: u64,
    blocks_left: u64,
    whole: (bool, bool),
    said_whole: bool,
    handed_over: bool,
    /// The guest runs here.
    resumed: bool,
    /// What was lost after the hand-over and before that.
    lost_before: Option<String>,
    last_word: LastWord,
}

impl DestinationCore {
    /// A core that receives. `disk`: what orders the prefetch of the disk's blocks, and the block size in bytes.
    pub fn new(disk: Option<(Box<dyn Schedule<Block>>, u64)>) -> Self {
        DestinationCore {
            state: State::Receiving,
            device: None,
            fetching: disk.map(|(schedule, block_bytes)| Fetching::new(schedule, block_bytes)),
            barriers: 0,
            pages_left: 0,
            blocks_left: 0,
            whole: (false, false),
            said_whole: false,
            handed_over: false,
            resumed: false,
            lost_before: None,
            last_word: LastWord::default(),
        }
    }

    /// Whether the source has said that this host runs the guest: what decides an undecided hand-over.
    pub fn was_handed_over(&self) -> bool {
        self.handed_over
    }

    /// Takes one input in, and lets out what is to be done about it.
    pub fn on(&mut self, now: Nanos, input: DestinationInput, effects: &mut Vec<DestinationEffect>) {
        if self.state == State::Finished {
            return;
        }
        // A guest that has begun to run has done so at its instant, whatever ended meanwhile.
        let resumed = matches!(input, DestinationInput::Resumed);
        if let Some(reason) = self.last_word.due(now).filter(|_| !resumed) {
            return self.lost(reason, effects);
        }
        if let Some(until) = self.last_word.until().filter(|_| !self.may_act_on(&input)) {
            return effects.push(DestinationEffect::TimerAt(until));
        }
        match input {
            DestinationInput::Said(message) => self.said(message, effects),
            DestinationInput::BarrierArrived => self.barrier(effects),
            DestinationInput::Loaded => {
                effects.push(record(Moment::StateLoaded));
                effects.push(DestinationEffect::Say(Message::Loaded));
                self.state = State::Loaded;
            }
            DestinationInput::Resumed => {
                self.resumed = true;
                effects.push(record(Moment::Resumed));
                effects.push(DestinationEffect::Say(Message::Resumed));
                self.fetching.iter_mut().for_each(|fetching| fetching.begin(now));
                self.check_whole(effects);
                if let Some(reason) = self.lost_before.take() {
                    self.lost(reason, effects);
                }
            }
            DestinationInput::Fault(pages) => effects.push(DestinationEffect::Fetch(pages)),
            DestinationInput::Left { family: Family::Memory, units } => {
                self.pages_left = units;
                self.check_whole(effects);
            }
            DestinationInput::Left { family: Family::Disk, units } => {
                self.blocks_left = units;
                self.check_whole(effects);
            }
            DestinationInput::Fetched { .. } => self.fetching.iter_mut().for_each(Fetching::fetched),
            DestinationInput::Timer => {}
            DestinationInput::LaneEnded(reason) => self.last_word.lane_ended(now, reason),
            DestinationInput::ControlEnded(reason) => {
                let reason = self.last_word.first(reason);
                self.lost(reason, effects);
            }
            DestinationInput::Lost(reason) => self.lost(reason, effects),
        }
        self.prefetch(now, effects);
        effects.extend(self.last_word.until().map(DestinationEffect::TimerAt));
    }

    /// Whether an input counts after a lane has ended. A guest is not taken over on half a link, for it may lack what can't
    /// come any more: the source still has it. One that lacks nothing may come.
    fn may_act_on(&self, input: &DestinationInput) -> bool {
        use DestinationInput::{ControlEnded, Lost, Said};
        match input {
            Said(Message::Abort { .. }) | ControlEnded(_) | Lost(_) => true,
            Said(Message::HandOver) => self.lacks_nothing(),
            _ => self.state == State::Running,
        }
    }

    fn lacks_nothing(&self) -> bool {
        self.pages_left == 0 && self.blocks_left == 0
    }

    /// Keeps the prefetching lane busy as long as blocks are missing.
    fn prefetch(&mut self, now: Nanos, effects: &mut Vec<DestinationEffect>) {
        let Some(fetching) = self.fetching.as_mut().filter(|_| self.state == State::Running && !self.whole.1) else {
            return;
        };
        let mut jobs = Vec::new();
        fetching.drive(now, &mut jobs);
        effects.extend(jobs.into_iter().map(|Job { number, extent, limit }| DestinationEffect::Prefetch {
            job: number,
            extent,
            limit,
        }));
        effects.extend(fetching.wakes_at().map(DestinationEffect::TimerAt));
    }

    fn said(&mut self, message: Message, effects: &mut Vec<DestinationEffect>) {
        match (message, self.state) {
            (Message::State { device, missing_pages, missing_blocks, disk_note }, State::Receiving)
                if self.device.is_none() =>
            {
                self.device = Some((device, missing_pages, missing_blocks, disk_note));
                self.load_if_complete(effects);
            }
            (Message::HandOver, State::Loaded) => {
                self.state = State::Running;
                self.handed_over = true;
                effects.push(DestinationEffect::Record(Event::Phase { phase: Phase::Pull }));
                effects.push(DestinationEffect::Resume);
            }
            (Message::Released, State::Running) if self.whole == (true, true) => {
                effects.push(DestinationEffect::Record(Event::Phase { phase: Phase::Complete }));
                self.finish(Ending::Completed, effects);
            }
            (Message::Abort { reason }, _) => self.lost(format!("the source gave up: {reason}"), effects),
            (other, state) => {
                self.lost(format!("the source said {} while {state:?}", other.name()), effects);
            }
        }
    }

    fn barrier(&mut self, effects: &mut Vec<DestinationEffect>) {
        self.barriers += 1;
        if self.barriers == 1 {
            effects.push(record(Moment::MemoryCarried));
            self.load_if_complete(effects);
        }
    }

    fn load_if_complete(&mut self, effects: &mut Vec<DestinationEffect>) {
        if self.barriers == 0 {
            return;
        }
        if let Some((device, missing_pages, missing_blocks, note)) = self.device.take() {
            if let (Some(fetching), Some(missing)) = (&mut self.fetching, &missing_blocks) {
                fetching.learn(note, missing.clone());
            }
            self.pages_left = missing_pages.count();
            self.blocks_left = missing_blocks.as_ref().map_or(0, UnitSet::count);
            self.state = State::Loading;
            // Without a disk there is nothing of it to wait for.
            self.whole.1 = missing_blocks.is_none();
            if self.pages_left == 0 {
                // Nothing is left behind: memory was whole when the barrier came, which is now or a moment ago.
                self.whole.0 = true;
                effects.push(record(Moment::MemoryWhole));
            }
            effects.push(DestinationEffect::Load { device, missing_pages, missing_blocks });
        }
    }

    /// Tells the source, once the guest runs, of each family that has become whole.
    fn check_whole(&mut self, effects: &mut Vec<DestinationEffect>) {
        // Until it runs, it isn't whole: the guest had to touch what came meanwhile.
        if !self.resumed || self.state != State::Running || self.said_whole {
            return;
        }
        if self.pages_left == 0 && !self.whole.0 {
            self.whole.0 = true;
            effects.push(record(Moment::MemoryWhole));
        }
        if self.blocks_left == 0 && !self.whole.1 {
            self.whole.1 = true;
            effects.push(record(Moment::DiskWhole));
        }
        if self.whole == (true, true) {
            self.said_whole = true;
            effects.push(record(Moment::Whole));
            effects.push(DestinationEffect::Say(Message::Whole { family: Family::Memory }));
            effects.push(DestinationEffect::Say(Message::Whole { family: Family::Disk }));
        }
    }

    fn lost(&mut self, reason: String, effects: &mut Vec<DestinationEffect>) {
        // The guest is about to run, and needs nobody for it.
        if self.state == State::Running && !self.resumed && self.lacks_nothing() {
            self.lost_before.get_or_insert(reason);
            return;
        }
        let ending = match self.state {
            State::Running if self.lacks_nothing() => Ending::Completed,
            State::Running => Ending::Lost { reason },
            State::Loaded => Ending::Undecided { reason },
            State::Receiving | State::Loading | State::Finished => Ending::Aborted { reason },
        };
        if let Ending::Lost { reason } | Ending::Undecided { reason } | Ending::Aborted { reason } = &ending {
            effects.push(DestinationEffect::Record(Event::Failed { reason: reason.clone() }));
            // The source may not know yet; where the link is gone, nobody hears it.
            effects.push(DestinationEffect::Say(Message::Abort { reason: reason.clone() }));
        }
        self.finish(ending, effects);
    }

    fn finish(&mut self, ending: Ending, effects: &mut Vec<DestinationEffect>) {
        self.state = State::Finished;
        effects.push(DestinationEffect::Finish(ending));
    }
}

fn record(moment: Moment) -> DestinationEffect {
    DestinationEffect::Record(Event::Moment { moment })
}
