//! The event queue: two cores, four lanes, one guest, and what breaks.

mod copies;
mod living;

use crate::faults::{Fault, Verdict};
use crate::guest::Units;
use crate::happening::{Happening, Lane, Scheduled};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use whimbrel_disk::{BuildContext as DiskContext, DiskChoice};
use whimbrel_memory::{BuildContext, MemoryChoice};
use whimbrel_migration::COORDINATORS;
use whimbrel_migration::coordinator::{Coordinator, CoordinatorChoice};
use whimbrel_migration::core::{
    DestinationCore, DestinationEffect, DestinationInput, DiskPlan, Ending, Limits, Run, SourceCore, SourceEffect,
    SourceInput, SourcePlan, Written,
};
use whimbrel_model::event::Sent;
use whimbrel_model::{
    Backed, Block, ByteRate, Extent, Family, Mirroring, Nanos, Observe, PAGE_BYTES, Page, Rng, UnitSet, WriteCounts,
};
use whimbrel_wire::Message;

const PAGES: u64 = 600;
const BLOCKS: u64 = 400;
const BLOCK_BYTES: u64 = 4096;
const DISK_FULL: &str = "the disk is full";
const LANE_ENDED: &str = "a lane ended";
/// No migration of so small a guest takes longer, whatever stalls.
const END_OF_TIME: Nanos = Nanos(600_000_000_000);

pub struct World {
    rng: Rng,
    now: Nanos,
    order: u64,
    events: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    source: SourceCore,
    destination: DestinationCore,
    pages: Units<Page>,
    blocks: Option<Units<Block>>,
    lane_free: BTreeMap<Lane, Nanos>,
    /// Whether control gets through.
    link_up: bool,
    /// Whether pages and blocks do.
    lanes_up: bool,
    fault: Fault,
    bytes_per_ns: f64,
    delay: Nanos,
    write_every: Nanos,
    runs_at_source: bool,
    runs_at_destination: bool,
    waits_for_page: Option<u64>,
    waits_for_block: Option<u64>,
    load_touches: Option<u64>,
    source_ending: Option<Ending>,
    destination_ending: Option<Ending>,
    source_timer: Option<Nanos>,
    destination_timer: Option<Nanos>,
    counts: Option<(u64, Vec<u32>)>,
    /// Which writes to blocks are mirrored, and the blocks that the destination has.
    mirror: Option<(Mirroring, UnitSet<Block>)>,
    /// The guest's mirrored write is acknowledged then.
    mirrored: Nanos,
    /// What the guest says of pages that are copies of blocks, and how many came by name.
    copies: Vec<Backed>,
    names: u64,
    /// The disk stays at the source, which serves it to the guest.
    remains: bool,
    guarded: bool,
    error: Option<String>,
}

/// Blocks that are told to be holes: a mistake in them may cost time, and must cost nothing else.
fn some_holes(rng: &mut Rng) -> UnitSet<Block> {
    let extents = (0..rng.below(4)).map(|_| {
        let start = rng.below(BLOCKS);
        Extent { start, count: 1 + rng.below(BLOCKS - start) }
    });
    let extents: Vec<Extent> = extents.collect();
    UnitSet::from_extents(BLOCKS, extents)
}

/// Any coordinator: none may lose anything, nor hang.
fn a_coordinator(rng: &mut Rng) -> Box<dyn Coordinator> {
    let names: Vec<&str> = COORDINATORS.names().collect();
    let name = names[rng.below(names.len() as u64) as usize];
    let table = BTreeMap::from([("use".to_owned(), serde_json::json!(name))]);
    CoordinatorChoice::try_from(table).unwrap_or_else(|e| panic!("{name}: {e}")).build()
}

impl World {
    pub fn new(seed: u64, memory: &MemoryChoice, disk: Option<&DiskChoice>, fault: Fault) -> Self {
        Self::planned(seed, memory, disk, fault, |_| {})
    }

    /// As [`World::new`], but with another plan than the choices give.
    pub fn planned(
        seed: u64,
        memory: &MemoryChoice,
        disk: Option<&DiskChoice>,
        fault: Fault,
        change: impl FnOnce(&mut SourcePlan),
    ) -> Self {
        let mut rng = Rng::new(seed);
        let mut pages = Units::new(PAGES, &mut rng);
        (0..rng.below(PAGES)).for_each(|page| pages.free(page));
        let mut blocks = disk.map(|_| Units::new(BLOCKS, &mut rng));
        let base_shared = rng.chance(0.3);
        blocks.iter_mut().filter(|_| base_shared).for_each(|blocks| blocks.destination = blocks.source.clone());
        let copies = blocks.as_ref().map_or_else(Vec::new, |blocks| copies::some_copies(&mut pages, blocks, &mut rng));
        let bytes_per_s = 2e6 + rng.unit() * 50e6;
        let context = DiskContext { blocks: BLOCKS, block_bytes: BLOCK_BYTES, seed };
        let needs = disk.map(|d| d.needs(&context)).unwrap_or_default();
        let fetches = disk.filter(|_| needs.prefetch).map(|d| (d.build(&context).schedule, BLOCK_BYTES));
        let mut plan = SourcePlan {
            requested: Nanos(0),
            missing_pages: UnitSet::full(PAGES),
            memory: memory.build(&BuildContext { pages: PAGES, seed }),
            disk: disk.map(|d| {
                let strategy = d.build(&context);
                let holes = some_holes(&mut rng);
                let nothing = needs.remains || base_shared;
                let missing = if nothing { UnitSet::empty(BLOCKS) } else { UnitSet::full(BLOCKS) };
                DiskPlan { missing, holes, block_bytes: BLOCK_BYTES, strategy }
            }),
            coordinator: a_coordinator(&mut rng),
            limits: Limits { fixed_cost: Nanos(1_000_000), link: Some(ByteRate(bytes_per_s)) },
        };
        change(&mut plan);
        World {
            delay: Nanos(rng.below(2_000_000)),
            // From far slower than the link to far faster.
            write_every: Nanos((PAGE_BYTES as f64 / bytes_per_s * 1e9 * (0.2 + rng.unit() * 10.0)) as u64),
            bytes_per_ns: bytes_per_s / 1e9,
            rng,
            now: Nanos(0),
            order: 0,
            events: 0,
            queue: BinaryHeap::new(),
            source: SourceCore::new(plan),
            destination: DestinationCore::new(fetches),
            pages,
            blocks,
            lane_free: BTreeMap::new(),
            link_up: true,
            lanes_up: true,
            fault,
            runs_at_source: true,
            runs_at_destination: false,
            waits_for_page: None,
            waits_for_block: None,
            load_touches: None,
            source_ending: None,
            destination_ending: None,
            source_timer: None,
            destination_timer: None,
            counts: needs.counts.map(|stretch| (stretch, vec![0; BLOCKS.div_ceil(stretch) as usize])),
            mirror: None,
            copies,
            names: 0,
            mirrored: Nanos(0),
            remains: needs.remains,
            guarded: false,
            error: None,
        }
    }

    fn schedule(&mut self, at: Nanos, what: Happening) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled { at, order: self.order, what }));
    }

    fn after(&mut self, ns: u64, what: Happening) {
        self.schedule(self.now.plus(Nanos(ns)), what);
    }

    /// When `bytes` that enter a lane now have left it; a lane is in order.
    fn through(&mut self, lane: Lane, bytes: u64, limit: Option<ByteRate>) -> Nanos {
        let rate = limit.map_or(self.bytes_per_ns, |l| (l.0 / 1e9).clamp(1e-6, self.bytes_per_ns));
        let start = self.now.max(self.lane_free.get(&lane).copied().unwrap_or_default());
        let jitter = self.rng.below(20_000);
        let free = start.plus(Nanos((bytes as f64 / rate) as u64 + jitter));
        self.lane_free.insert(lane, free);
        free
    }

    pub fn run(&mut self) -> Result<Verdict, String> {
        self.schedule(Nanos(0), Happening::Source(SourceInput::Start));
        self.schedule(Nanos(0), Happening::Guest);
        while let Some(Reverse(Scheduled { at, what, .. })) = self.queue.pop() {
            self.now = at;
            self.events += 1;
            if at > END_OF_TIME {
                return Err("it doesn't end".to_owned());
            }
            self.break_something();
            self.happen(what);
            if self.runs_at_source && self.runs_at_destination {
                return Err(format!("the guest runs on both hosts at {at:?}"));
            }
            if let Some(error) = self.error.take() {
                return Err(error);
            }
            if self.source_ending.is_some() && self.destination_ending.is_some() {
                return Ok(self.resolve());
            }
        }
        Err(format!("nothing happens any more in phase {:?}", self.source.phase()))
    }

    /// What a coordinator does that can ask both hosts once they meet again.
    fn resolve(&mut self) -> Verdict {
        let (source, destination) = (self.source_ending.clone(), self.destination_ending.clone());
        match (source.expect("the source has ended"), destination.expect("the destination has ended")) {
            (Ending::Completed, _) => Verdict::Completed,
            (Ending::Aborted { .. }, _) => Verdict::Aborted,
            (Ending::Lost { .. }, Ending::Completed) => Verdict::Completed,
            (Ending::Lost { .. }, _) => Verdict::Lost,
            (Ending::Undecided { .. }, Ending::Completed) => Verdict::Completed,
            (Ending::Undecided { .. }, _) if self.destination.was_handed_over() => Verdict::Lost,
            (Ending::Undecided { .. }, _) => {
                self.runs_at_source = true;
                Verdict::Undecided
            }
        }
    }

    fn break_something(&mut self) {
        match self.fault {
            Fault::Cut(at, later) if at == self.events => {
                self.after(0, Happening::Break { control: false });
                self.after(later, Happening::Break { control: true });
            }
            Fault::CutLanes(at) if at == self.events => self.after(0, Happening::Break { control: false }),
            Fault::Stall(at, ns) if at == self.events => {
                for lane in [Lane::Push, Lane::Demand, Lane::Disk, Lane::Prefetch, Lane::ToDestination, Lane::ToSource]
                {
                    let free = self.lane_free.entry(lane).or_default();
                    *free = (*free).max(self.now).plus(Nanos(ns));
                }
            }
            Fault::Cancel(at) if at == self.events => {
                self.tell_source(SourceInput::Cancelled("nobody waits for it".to_owned()));
            }
            Fault::DestinationFails(at) if at == self.events => {
                self.tell_destination(DestinationInput::Lost(DISK_FULL.to_owned()));
                self.after(0, Happening::Break { control: false });
            }
            _ => {}
        }
    }

    fn happen(&mut self, what: Happening) {
        if !self.gets_through(&what) {
            return;
        }
        match what {
            Happening::Source(SourceInput::Timer) => {
                if self.source_timer.is_some_and(|at| at <= self.now) {
                    self.source_timer = None;
                    self.tell_source(SourceInput::Timer);
                }
            }
            Happening::Destination(DestinationInput::Timer) => {
                if self.destination_timer.is_some_and(|at| at <= self.now) {
                    self.destination_timer = None;
                    self.tell_destination(DestinationInput::Timer);
                }
            }
            Happening::Source(input) => self.tell_source(input),
            Happening::Destination(DestinationInput::Loaded) if self.load_waits() => {
                self.after(20_000, Happening::Destination(DestinationInput::Loaded));
            }
            Happening::Destination(input) => self.tell_destination(input),
            Happening::Departs { family, job, runs, lane, limit } => self.depart(family, job, &runs, lane, limit),
            Happening::Arrives { family, units, acknowledge } => self.arrive(family, &units, acknowledge),
            Happening::Named { names } => self.named(&names),
            Happening::Pulls { block } => self.pulled(block),
            Happening::PullAnswered { block, version } => self.arrive(Family::Disk, &[(block, version)], None),
            Happening::Prefetches { job, blocks, limit } => self.prefetched(job, &blocks, limit),
            Happening::PrefetchAnswered { job, units } => {
                self.arrive(Family::Disk, &units, None);
                if self.lanes_up {
                    self.tell_destination(DestinationInput::Fetched { job });
                }
            }
            Happening::Guest => self.guest(),
            Happening::Looks { question, seen } => self.look(question, seen),
            Happening::Break { control } => self.link_breaks(control),
        }
    }

    /// Whether the device state can't be taken up before a page has come.
    fn load_waits(&self) -> bool {
        self.lanes_up && self.load_touches.is_some_and(|page| self.pages.missing.contains(page))
    }

    fn link_breaks(&mut self, control: bool) {
        self.lanes_up = false;
        self.tell_source(SourceInput::LaneEnded(LANE_ENDED.to_owned()));
        self.tell_destination(DestinationInput::LaneEnded(LANE_ENDED.to_owned()));
        if control {
            self.link_up = false;
            self.tell_source(SourceInput::ControlEnded("the link broke".to_owned()));
            self.tell_destination(DestinationInput::ControlEnded("the link broke".to_owned()));
        }
    }

    fn depart(&mut self, family: Family, job: u64, runs: &[Run], lane: Lane, limit: Option<ByteRate>) {
        if !self.lanes_up {
            return;
        }
        let mut sent = Sent::default();
        let mut units = Vec::new();
        for run in runs {
            for unit in run.extent.indices() {
                if let (Family::Disk, Some((_, copied))) = (family, &mut self.mirror) {
                    // Read now: a write that comes later goes behind it in the lane. As the real pusher does, what the
                    // destination has is passed over.
                    if !copied.insert(unit) {
                        continue;
                    }
                }
                let version = match (family, &self.blocks) {
                    (Family::Memory, _) => self.pages.source[unit as usize],
                    (Family::Disk, Some(blocks)) => blocks.source[unit as usize],
                    (Family::Disk, None) => unreachable!("no disk, no blocks"),
                };
                units.push((unit, version));
                sent.raw_units += 1;
                let (count, bytes) = if run.again {
                    (&mut sent.again_units, &mut sent.again_bytes)
                } else {
                    (&mut sent.first_units, &mut sent.first_bytes)
                };
                *count += 1;
                *bytes += PAGE_BYTES;
            }
        }
        let names = if family == Family::Memory { self.by_name(runs, &mut units) } else { Vec::new() };
        let free = self.through(lane, units.len() as u64 * PAGE_BYTES + names.len() as u64 * 8, limit);
        if self.fault == Fault::DropOneUnit && family == Family::Memory && units.len() > 3 {
            units.pop();
            self.fault = Fault::None;
        }
        let arrival = free.plus(self.delay);
        // Memory counts as sent when it is on the link, a disk's blocks when they are acknowledged.
        let acknowledge = (family == Family::Disk).then_some((job, sent));
        if !names.is_empty() {
            self.schedule(arrival, Happening::Named { names });
        }
        self.schedule(arrival, Happening::Arrives { family, units, acknowledge });
        if family == Family::Memory {
            self.schedule(free, Happening::Source(SourceInput::Sent { family, job, sent }));
        }
    }

    fn arrive(&mut self, family: Family, units: &[(u64, u32)], acknowledge: Option<(u64, Sent)>) {
        if !self.lanes_up {
            return;
        }
        // As the real volume does: once the guest is expected, only what is missing is stored.
        let pulling = self.guarded;
        let left = match (family, &mut self.blocks) {
            (Family::Memory, _) => Self::store(&mut self.pages, units, pulling),
            (Family::Disk, Some(blocks)) => Self::store(blocks, units, pulling),
            (Family::Disk, None) => 0,
        };
        if pulling {
            self.tell_destination(DestinationInput::Left { family, units: left });
            self.wake();
        }
        if let Some((job, sent)) = acknowledge {
            let ns = self.delay.0;
            self.after(ns, Happening::Source(SourceInput::Sent { family, job, sent }));
        }
    }

    fn store<U: whimbrel_model::Unit>(held: &mut Units<U>, units: &[(u64, u32)], pulling: bool) -> u64 {
        for &(unit, version) in units {
            if !pulling || held.missing.remove(unit) {
                held.destination[unit as usize] = version;
            }
        }
        held.missing.count()
    }

    fn pulled(&mut self, block: u64) {
        if !self.lanes_up {
            return;
        }
        let extent = Extent { start: block, count: 1 };
        self.tell_source(SourceInput::Pulled { extent, demanded: true, zero: false });
        let version = self.blocks.as_ref().map_or(0, |b| b.source[block as usize]);
        let free = self.through(Lane::Disk, BLOCK_BYTES, None).plus(self.delay);
        self.schedule(free, Happening::PullAnswered { block, version });
    }

    /// Blocks are read for a prefetch: all at once, and not in the order of the guest's own requests.
    fn prefetched(&mut self, job: u64, blocks: &[u64], limit: Option<ByteRate>) {
        let mut units = Vec::new();
        if !self.lanes_up {
            return;
        }
        for &block in blocks {
            let extent = Extent { start: block, count: 1 };
            self.tell_source(SourceInput::Pulled { extent, demanded: false, zero: false });
            units.push((block, self.blocks.as_ref().map_or(0, |b| b.source[block as usize])));
        }
        let free = self.through(Lane::Prefetch, units.len() as u64 * BLOCK_BYTES, limit).plus(self.delay);
        self.schedule(free, Happening::PrefetchAnswered { job, units });
    }

    /// The pages that are never sent.
    pub fn left_out(&self) -> u64 {
        self.source.left_out().count()
    }

    fn tell_source(&mut self, input: SourceInput) {
        let mut effects = Vec::new();
        self.source.on(self.now, input, &mut effects);
        for effect in effects {
            self.source_effect(effect);
        }
    }

    fn source_effect(&mut self, effect: SourceEffect) {
        match effect {
            SourceEffect::Send { family, job, runs, limit, demanded, .. } => {
                let lane = match family {
                    Family::Disk => Lane::Disk,
                    Family::Memory if demanded => Lane::Demand,
                    Family::Memory => Lane::Push,
                };
                // Page bytes are read when they leave, a moment after the core asked.
                let wait = self.rng.below(50_000);
                let at = self.now.plus(Nanos(wait)).max(self.lane_free.get(&lane).copied().unwrap_or_default());
                self.schedule(at, Happening::Departs { family, job, runs, lane, limit });
            }
            SourceEffect::Barrier => {
                // Behind all that was handed to the lane before, even what has not left yet.
                let at = self.through(Lane::Push, 32, None).plus(Nanos(50_000)).plus(self.delay);
                self.deliver(at, Happening::Destination(DestinationInput::BarrierArrived));
            }
            SourceEffect::Observe { family, observe } => {
                let written = self.observe(family, observe);
                let ns = self.rng.below(100_000);
                self.after(ns, Happening::Source(SourceInput::Observed { observe, written }));
            }
            SourceEffect::Ask { question } => {
                let ns = self.rng.below(200_000);
                self.after(ns, Happening::Looks { question, seen: None });
            }
            SourceEffect::Pause => {
                self.runs_at_source = false;
                let at = self.now;
                self.after(1000, Happening::Source(SourceInput::Paused { at }));
            }
            SourceEffect::Drain => {
                let at = self.now.plus(Nanos(1000)).max(self.mirrored);
                self.schedule(at, Happening::Source(SourceInput::Drained));
            }
            SourceEffect::Mirror { mirroring, mut missing } => {
                missing.union(&self.blocks.as_ref().expect("a disk is mirrored").written);
                let mut copied = UnitSet::full(BLOCKS);
                copied.subtract(&missing);
                self.mirror = Some((mirroring, copied));
            }
            SourceEffect::SaveState => self.after(1000, Happening::Source(SourceInput::StateSaved(vec![1, 2, 3]))),
            SourceEffect::Resume => self.runs_at_source = true,
            SourceEffect::Say(message) => {
                let at = self.through(Lane::ToDestination, 100, None).plus(self.delay);
                self.deliver(at, Happening::Destination(DestinationInput::Said(message)));
            }
            SourceEffect::TimerAt(at) => {
                self.source_timer = Some(at);
                self.schedule(at.max(self.now), Happening::Source(SourceInput::Timer));
            }
            SourceEffect::Finish(ending) => self.source_ending = Some(ending),
            SourceEffect::Throttle(_) | SourceEffect::Record(_) => {}
        }
    }

    fn deliver(&mut self, at: Nanos, what: Happening) {
        if self.gets_through(&what) {
            self.schedule(at, what);
        }
    }

    /// What is on the link when it breaks never arrives.
    fn gets_through(&self, what: &Happening) -> bool {
        match what {
            Happening::Source(SourceInput::Said(_)) | Happening::Destination(DestinationInput::Said(_)) => self.link_up,
            Happening::Source(SourceInput::Fetch(_) | SourceInput::Sent { family: Family::Disk, .. })
            | Happening::Destination(DestinationInput::BarrierArrived) => self.lanes_up,
            _ => true,
        }
    }

    fn observe(&mut self, family: Family, observe: Observe) -> Written {
        let counts = self.counts.as_ref().map(|(stretch, counts)| WriteCounts::new(*stretch, counts.clone()));
        match (family, &mut self.blocks, observe) {
            (Family::Memory, _, Observe::Take) => Written::Pages(self.pages.take()),
            (Family::Memory, _, Observe::Peek) => Written::Pages(self.pages.written.clone()),
            (Family::Disk, Some(blocks), Observe::Take) => Written::Blocks(blocks.take(), counts),
            (Family::Disk, Some(blocks), Observe::Peek) => Written::Blocks(blocks.written.clone(), counts),
            (Family::Disk, None, _) => unreachable!("no disk is observed where there is none"),
        }
    }

    fn tell_destination(&mut self, input: DestinationInput) {
        let mut effects = Vec::new();
        self.destination.on(self.now, input, &mut effects);
        for effect in effects {
            match effect {
                DestinationEffect::Load { missing_pages, missing_blocks, .. } => {
                    self.guarded = true;
                    self.pages.missing = missing_pages;
                    if let (Some(blocks), Some(missing)) = (&mut self.blocks, missing_blocks) {
                        blocks.missing = missing;
                    }
                    // A machine may touch memory while it takes its state up.
                    let page = self.rng.below(PAGES);
                    if self.pages.missing.contains(page) && self.rng.chance(0.5) {
                        self.load_touches = Some(page);
                        self.after(5_000, Happening::Destination(DestinationInput::Fault(vec![page])));
                    }
                    self.after(20_000, Happening::Destination(DestinationInput::Loaded));
                }
                DestinationEffect::Resume => {
                    self.runs_at_destination = true;
                    self.after(1000, Happening::Destination(DestinationInput::Resumed));
                }
                DestinationEffect::Say(message) => self.say_to_source(message),
                DestinationEffect::Fetch(pages) => {
                    let at = self.through(Lane::ToSource, 16, None).plus(self.delay);
                    self.deliver(at, Happening::Source(SourceInput::Fetch(pages)));
                }
                DestinationEffect::Prefetch { job, extent, limit } => {
                    // As the real volume does: what is here, or asked for by the guest, is not fetched.
                    let asked = self.waits_for_block;
                    let blocks = self.blocks.as_ref().map_or_else(Vec::new, |held| {
                        extent.indices().filter(|b| held.missing.contains(*b) && asked != Some(*b)).collect()
                    });
                    let at = self.through(Lane::ToSource, 28, None).plus(self.delay);
                    self.deliver(at, Happening::Prefetches { job, blocks, limit });
                }
                DestinationEffect::TimerAt(at) => {
                    self.destination_timer = Some(at);
                    self.schedule(at.max(self.now), Happening::Destination(DestinationInput::Timer));
                }
                DestinationEffect::Record(_) => {}
                DestinationEffect::Finish(ending) => self.destination_ending = Some(ending),
            }
        }
    }

    fn say_to_source(&mut self, message: Message) {
        let at = self.through(Lane::ToSource, 100, None).plus(self.delay);
        self.deliver(at, Happening::Source(SourceInput::Said(message)));
    }

    pub fn check(&self, verdict: Verdict) -> Result<(), String> {
        if let (Fault::DestinationFails(_), Some(Ending::Aborted { reason })) = (self.fault, &self.source_ending)
            && reason == LANE_ENDED
        {
            return Err("the source did not learn why the destination gave up".to_owned());
        }
        let at_destination = match verdict {
            Verdict::Completed => true,
            Verdict::Aborted | Verdict::Undecided => false,
            Verdict::Lost if matches!(self.fault, Fault::Cancel(_)) => return Err("given up, and lost".to_owned()),
            Verdict::Lost => return Ok(()),
        };
        if at_destination != self.runs_at_destination || at_destination == self.runs_at_source {
            return Err(format!(
                "{verdict:?}, but the guest runs at the source: {}, at the destination: {}",
                self.runs_at_source, self.runs_at_destination
            ));
        }
        let difference = self.pages.first_difference(at_destination);
        let disk_there = at_destination && !self.remains;
        match difference.or_else(|| self.blocks.as_ref().and_then(|b| b.first_difference(disk_there))) {
            Some(difference) => Err(format!("{verdict:?}, but {difference}")),
            None => Ok(()),
        }
    }
}
