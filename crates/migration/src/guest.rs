//! A guest as a host holds it: RAM, disk, machine, and what the twin check needs of it.

use crate::commands::{Answer, DiskSpec, GuestSpec, Software};
use crate::copies::{self, Behind, Held, Point};
use crate::driver::{DriverError, OwnRoles};
use crate::image;
use crate::report::{ControlRun, WorkSample};
use crate::witness::{self, HASHES_AT_ONCE, Witness};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use whimbrel_disk::{BuildContext as BlocksContext, CopyRecord, GuestDisk, Volume};
use whimbrel_machine::machines::{Kind, OwnStream};
use whimbrel_machine::twin::ReadDisk;
use whimbrel_machine::{
    Begin, GuestPages, MACHINES, Machine, MachineError, MachineSetup, Operations, OwnMove, Software as OfMachine, Twin,
    TwinSetup, Verdict, Verification, fill_disk, fill_ram,
};
use whimbrel_memory::dirty_logs::DIRTY_LOGS;
use whimbrel_memory::{DirtyLog, GuestRam};
use whimbrel_model::op::SECTOR_BYTES;
use whimbrel_model::registry::Parameters;
use whimbrel_model::stream::Shape;
use whimbrel_model::{Block, Extent, Family, Nanos, PAGE_BYTES, Page, Unit, UnitSet};
use whimbrel_wire::{Role, clock};
use whimbrel_workloads::{BuildContext, WorkloadChoice};

/// Between two readings of a control run.
const SAMPLE_EVERY: Duration = Duration::from_millis(10);

/// The interval in which a control run's distinct dirty pages are counted.
const DIRTY_INTERVAL: Duration = Duration::from_millis(250);

/// RAM of earlier guests, to be used again: the first touch of fresh memory is slow.
#[derive(Debug, Default)]
pub(crate) struct RamPool(Mutex<Vec<Arc<GuestRam>>>);

impl RamPool {
    fn take(&self, bytes: u64) -> Result<Arc<GuestRam>, DriverError> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = kept.iter().position(|ram| ram.pages() * PAGE_BYTES == bytes) {
            let ram = kept.swap_remove(at);
            drop(kept);
            // Post-copy leaves pages out of the guest's mapping, and a dirty log leaves them protected: the next guest, and
            // above all a control run, would pay for that.
            ram.populate()?;
            return Ok(ram);
        }
        // RAM of another size is of no use to this run of cells.
        kept.clear();
        drop(kept);
        let ram = GuestRam::create(bytes)?;
        ram.populate()?;
        Ok(ram)
    }

    fn give(&self, ram: Arc<GuestRam>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(ram);
    }
}

/// What a host has for its guests.
pub(crate) struct HostParts<'a> {
    /// RAM.
    pub(crate) pool: &'a Arc<RamPool>,
    /// Where disk images are kept.
    pub(crate) directory: &'a Path,
    /// Whether its agent is ending.
    pub(crate) ending: &'a Arc<AtomicBool>,
}

/// A guest on this host.
pub(crate) struct Guest {
    pub(crate) spec: GuestSpec,
    pub(crate) machine: Arc<dyn Machine>,
    pub(crate) volume: Option<Arc<Volume>>,
    ram: Arc<GuestRam>,
    pool: Arc<RamPool>,
    /// The record of its disk's copy here, where there is one.
    record: Option<Arc<CopyRecord>>,
    /// The move by which it left, whole.
    pub(crate) left_by: Option<u64>,
    /// Pages that the destination did not get when it left, for they were nobody's; `None`: it got all.
    pub(crate) left_out: Option<UnitSet<Page>>,
    /// The move by which it came, whole.
    pub(crate) came_by: Option<u64>,
    /// What an attempt to move it away that failed has left at the other host.
    pub(crate) behind: Mutex<Option<Behind>>,
    /// This host's agent is ending: what is recorded stays.
    ending: Arc<AtomicBool>,
    /// It began here, on a base image that every host has, and hasn't been away.
    on_base: bool,
    twin: Option<Twin>,
    /// What was written since the guest arrived, where that is to be asked.
    pub(crate) witness: Option<Witness>,
}

impl Guest {
    /// Reserves a guest's RAM and disk, fills them if it is to begin here, and makes its machine. `found`: the copy of its
    /// disk that is here already.
    ///
    /// # Errors
    /// The host lacks what is needed, or the workload doesn't fit the guest.
    pub(crate) fn make(
        spec: GuestSpec,
        begin: Begin,
        found: Option<copies::Found>,
        host: &HostParts<'_>,
    ) -> Result<Self, DriverError> {
        if let Software::Brought(brought) = &spec.software {
            brought
                .check()
                .and_then(|()| brought.check_files(spec.disk.map_or(0, |disk| disk.bytes)))
                .map_err(other)?;
        }
        let ram = host.pool.take(spec.ram_bytes)?;
        let (is_new, mut record) = (found.is_none(), None);
        let volume = match (spec.disk, found) {
            (Some(_), Some(found)) => {
                record = Some(Arc::new(found.record));
                Some(Arc::new(found.volume))
            }
            (Some(disk), None) => {
                let path = copies::new_image(host.directory, &spec.name);
                Some(Arc::new(make_volume(&spec, disk, begin, &path)?))
            }
            (None, _) => None,
        };
        let on_base = begin == Begin::New && spec.disk.is_some_and(|disk| disk.base_shared);
        let fill = || if is_new { fill(&spec, begin, &ram, &volume) } else { Ok(()) };
        let machine = fill().and_then(|()| {
            if on_base {
                // From here on it is known what was modified since the base image.
                volume.iter().for_each(|volume| volume.begin_visit());
            }
            build_machine(&spec, begin, &ram, &volume)
        });
        // A copy that was here before stays, with its record: another attempt may use it.
        let unused = || volume.iter().filter(|_| is_new).for_each(|volume| remove_image(volume));
        let machine = machine.inspect_err(|_| unused())?;
        Ok(Guest {
            spec,
            machine,
            volume,
            ram,
            pool: Arc::clone(host.pool),
            record,
            left_by: None,
            left_out: None,
            came_by: None,
            behind: Mutex::default(),
            ending: Arc::clone(host.ending),
            on_base,
            twin: None,
            witness: None,
        })
    }

    /// The point that the copy of the guest's disk here stands for, after the guest has left or not come.
    pub(crate) fn point(&self) -> Option<Point> {
        let recorded = self.record.as_ref().and_then(|record| Point::of(record.about()));
        recorded.or(self.left_by.map(|session| Point::Left { session }))
    }

    /// What there is of the guest's disk here before it comes by a move: `is_new`, nothing yet. `recorded`: what arrives is
    /// to be.
    ///
    /// # Errors
    /// The record can't be made.
    pub(crate) fn hold(&mut self, session: u64, is_new: bool, recorded: bool) -> Result<Held, DriverError> {
        let Some(volume) = &self.volume else { return Ok(Held::New(None)) };
        let blocks = volume.blocks();
        let point = if is_new { Point::Attempt { session } } else { self.point().ok_or_else(no_copy)? };
        let based = self.spec.disk.is_some_and(|disk| disk.base_shared);
        let all = volume.is_suspect() || is_new && !based;
        let lacking = if all { UnitSet::full(blocks) } else { UnitSet::empty(blocks) };
        if recorded && self.record.is_none() {
            self.record = Some(Arc::new(record(volume, point, &lacking)?));
        }
        let lacking = self.record.as_ref().map_or(lacking, |record| record.lacking());
        Ok(match is_new {
            true => Held::New(self.record.is_some().then_some(point)),
            false => Held::Copy(point, lacking),
        })
    }

    /// Makes the copy of the disk that the guest has left here outlive this process.
    ///
    /// # Errors
    /// The guest has left no disk here, or the host's I/O failed.
    pub(crate) fn keep(&mut self) -> Result<(), DriverError> {
        let (Some(volume), Some(session)) = (&self.volume, self.left_by) else { return Err(no_copy()) };
        if self.record.is_none() && !volume.is_lent() {
            let lacking = UnitSet::empty(volume.blocks());
            self.record = Some(Arc::new(record(volume, Point::Left { session }, &lacking)?));
        }
        Ok(())
    }

    /// Where what arrives of the disk is recorded, if it is.
    pub(crate) fn record(&self) -> Option<Arc<CopyRecord>> {
        self.record.clone()
    }

    /// The guest is, or may have been, here: what was said of a copy isn't so any more.
    pub(crate) fn is_no_copy(&mut self) {
        self.left_by = None;
        if let Some(record) = self.record.take() {
            let _ = std::fs::remove_file(record.path());
        }
    }

    /// Makes ready for the guest's return: RAM and disk stay as they are, the machine starts anew.
    ///
    /// # Errors
    /// As [`Guest::make`].
    pub(crate) fn expect_return(&mut self, begin: Begin) -> Result<(), DriverError> {
        self.machine.stop();
        // What is fresh when it is back is what it has written since, and no longer all that differs from the base image.
        self.on_base = false;
        self.machine = build_machine(&self.spec, begin, &self.ram, &self.volume)?;
        Ok(())
    }

    /// Whether any host has the disk as it was when the guest began here, and what was written since is known.
    pub(crate) fn is_on_base(&self) -> bool {
        self.on_base
    }

    /// What a disk strategy may know of the guest's disk, if it has one.
    pub(crate) fn disk_context(&self) -> Option<BlocksContext> {
        let volume = self.volume.as_ref()?;
        Some(BlocksContext { blocks: volume.blocks(), block_bytes: volume.block_bytes(), seed: self.spec.seed })
    }

    /// The connections that carry the streams of a migration of the hypervisor's own.
    ///
    /// # Errors
    /// The machine has none of that name; or the guest has a disk that it would leave behind, or none that it could move.
    pub(crate) fn own_roles(&self, own: &OwnMove) -> Result<OwnRoles, DriverError> {
        if self.volume.is_some() != own.disk.is_some() {
            let name = own.disk.as_ref().unwrap_or(&own.memory);
            return Err(other(format!("a disk and the way to move it go together: {name}")));
        }
        let kind = kind(&self.spec)?;
        let found = kind.own.find(&own.memory).map_err(other)?;
        let parameters = Parameters::read(found.parameters, &own.parameters).map_err(other)?;
        let streams = (found.build.streams)(&parameters);
        let role = |(lane, stream): (usize, &OwnStream)| match stream {
            OwnStream::Bulk => Role::MemoryPush { lane: lane as u32 },
            OwnStream::Urgent => Role::MemoryDemand,
        };
        let disk = own.disk.as_ref().map(|name| kind.own_disk.find(name).map_err(other)).transpose()?;
        let disk = disk.map(|_| Role::Disk { disk: 0 });
        Ok(OwnRoles { memory: streams.iter().enumerate().map(role).collect(), disk })
    }

    /// Sees from now on what is written here, where the twin can't tell of all RAM.
    ///
    /// # Errors
    /// The kernel lacks what that needs.
    pub(crate) fn begin_witness(&mut self) -> Result<Option<Witness>, DriverError> {
        self.end_witness()?;
        if kind(&self.spec)?.filled_by_host { Ok(None) } else { Witness::begin(self.machine.ram()).map(Some) }
    }

    /// Nobody will ask what was written here.
    ///
    /// # Errors
    /// The kernel fails.
    pub(crate) fn end_witness(&mut self) -> Result<(), DriverError> {
        self.witness.take().map_or(Ok(()), Witness::end)
    }

    /// Makes all RAM zero, where the guest that comes may be given less than all of it: nobody else's pages may become its.
    pub(crate) fn clear_ram(&self) {
        self.ram.all().indices().for_each(|page| self.ram.zero_page(page));
    }

    /// Hashes of the paused guest's pages or blocks, and which of them were written since it arrived here. A frozen source
    /// has written nothing since, but may have left pages out.
    ///
    /// # Errors
    /// The host fails, or too many are asked for.
    pub(crate) fn hash(&mut self, family: Family, units: Extent, frozen: bool) -> Result<Answer, DriverError> {
        if units.count > HASHES_AT_ONCE {
            return Err(other(format!("at most {HASHES_AT_ONCE} pages or blocks at once")));
        }
        match family {
            Family::Memory => self.hash_ram(units, frozen),
            Family::Disk => self.hash_disk(units, frozen),
        }
    }

    fn hash_ram(&mut self, pages: Extent, frozen: bool) -> Result<Answer, DriverError> {
        let left_out = match &mut self.witness {
            _ if pages.start > self.machine.ram().pages() => {
                return Err(other("pages beyond the guest's RAM".to_owned()));
            }
            _ if frozen => self.left_out.as_ref().map_or_else(Vec::new, |out| runs_within(out, pages)),
            None => {
                let why = "what the guest writes here was not logged".to_owned();
                return Ok(Answer::NoHashes { why });
            }
            Some(witness) => runs_within(witness.written()?, pages),
        };
        Ok(Answer::Hashes { hashes: witness::hashes(self.machine.ram(), pages), left_out })
    }

    fn hash_disk(&self, blocks: Extent, frozen: bool) -> Result<Answer, DriverError> {
        let no = |why: &str| Ok(Answer::NoHashes { why: why.to_owned() });
        let Some(volume) = &self.volume else { return no("the guest has no disk") };
        if blocks.start > volume.blocks() {
            return Err(other("blocks beyond the guest's disk".to_owned()));
        }
        if frozen && volume.is_lent() {
            return no("the disk remains where the guest began");
        }
        if !frozen && !volume.is_visited() {
            return no("what the guest writes here was not recorded");
        }
        let left_out = if frozen { Vec::new() } else { runs_within(&volume.fresh(), blocks) };
        Ok(Answer::Hashes { hashes: witness::block_hashes(volume, blocks)?, left_out })
    }

    /// A dirty log over the guest's RAM.
    ///
    /// # Errors
    /// The kernel lacks what it needs.
    pub(crate) fn dirty_log(&self) -> Result<Box<dyn DirtyLog>, DriverError> {
        Ok((DIRTY_LOGS.entries[0].build)(self.machine.ram())?)
    }

    /// Runs the guest for a time from operation 0 without any migration.
    ///
    /// # Errors
    /// The guest's disk or the dirty log failed.
    pub(crate) fn control(&self, time: Duration) -> Result<(ControlRun, Option<(u64, u64)>), DriverError> {
        let mut work = Vec::new();
        self.machine.reset_silence();
        self.machine.run();
        let start = clock::now();
        let end = start.plus(Nanos::from(time));
        let mut next = start;
        while next <= end {
            clock::sleep_until(next);
            let (at, progress) = (clock::now(), self.machine.progress());
            if !progress.operations.is_empty() {
                let at_ns = at.since(start).0;
                work.push(WorkSample { at_ns, units: progress.units, operations: progress.operations });
            }
            next = next.plus(Nanos::from(SAMPLE_EVERY)).max(at);
        }
        let silence = self.machine.silence();
        // Only now: the log's faults cost the guest time.
        let mut log = self.dirty_log()?;
        log.arm()?;
        let armed = clock::now();
        clock::sleep_until(armed.plus(Nanos::from(DIRTY_INTERVAL)));
        let dirtied = log.take()?.count();
        let interval = clock::now().since(armed).0;
        log.disarm()?;
        self.machine.pause();
        if let Some(reason) = self.machine.failure() {
            return Err(other(std::io::Error::other(reason)));
        }
        let beats = !silence.last_beats.is_empty();
        let control = ControlRun { work, longest_silence_ns: beats.then_some(silence.longest_ns) };
        Ok((control, Some((dirtied, interval))))
    }

    /// Compares the paused guest with its twin, which executes the same operations.
    ///
    /// # Errors
    /// The guest isn't paused, or its disk can't be read.
    pub(crate) fn verify(&mut self, frozen: bool) -> Result<Verification, DriverError> {
        let of = if frozen { "frozen source at the pause" } else { "guest at the end" };
        let Some(workload) = self.spec.software.workload() else {
            return Ok(Verification::skipped(format!("{of}: its user brought it, and it has no twin")));
        };
        let testimony = match self.machine.testimony(frozen) {
            // A guest that runs and can't answer has lost something, whatever the hypervisor says of its move.
            Err(error @ MachineError::Hypervisor(_)) => {
                let mut verification = Verification::skipped(format!("{of}: not compared, it does not answer"));
                verification.memory = Verdict::Different;
                verification.first_difference = Some(format!("no page was compared, {of} does not answer: {error}"));
                return Ok(verification);
            }
            answer => answer?,
        };
        let Some(testimony) = testimony else {
            return Ok(Verification::skipped(format!("{of}: not compared, it can't be asked where it doesn't run")));
        };
        let mut twin = match self.twin.take() {
            Some(twin) => twin,
            None => Twin::new(twin_setup(&self.spec, workload)?)?,
        };
        let read = |offset: u64, buffer: &mut [u8]| match &self.volume {
            Some(volume) => volume.read(offset, buffer),
            None => Ok(()),
        };
        // A disk that the guest has left without holds what the guest wrote since, wherever it is now.
        let stayed = frozen && self.volume.as_ref().is_some_and(|volume| volume.is_lent());
        let disk = (self.volume.is_some() && !stayed).then_some(&read as ReadDisk<'_>);
        let pages = GuestPages { ram: self.machine.ram(), frames: testimony.frames.as_deref() };
        let mut verification = twin.check(&testimony.state, pages, disk)?;
        let stayed = if stayed { ", which goes on elsewhere" } else { "" };
        verification.scope = format!("{of}: {}{stayed}", verification.scope);
        self.twin = Some(twin);
        Ok(verification)
    }
}

fn twin_setup(spec: &GuestSpec, workload: &WorkloadChoice) -> Result<TwinSetup, DriverError> {
    let shape = shape(spec)?;
    Ok(TwinSetup {
        seed: spec.seed,
        content: workload.content().clone(),
        shape,
        streams: streams(workload, spec, shape)?,
    })
}

/// The runs of `set` within `units`: the first and how many.
fn runs_within<U: Unit>(set: &UnitSet<U>, units: Extent) -> Vec<(u64, u64)> {
    let here = |run: Extent| (run.start.max(units.start), run.end().min(units.end()));
    set.extents().map(here).filter(|(start, end)| start < end).map(|(start, end)| (start, end - start)).collect()
}

/// The guest's disk: empty, or a copy of what its user brought where it begins, or every host has that.
fn make_volume(spec: &GuestSpec, disk: DiskSpec, begin: Begin, path: &Path) -> Result<Volume, DriverError> {
    match &spec.software {
        Software::Brought(brought) if begin == Begin::New || disk.base_shared => {
            if let Some(from) = &brought.image {
                image::copy(&brought.place(from), path)?;
                return Volume::open(path, disk.block_bytes).map_err(|error| {
                    // It was made here, and nobody will use it.
                    let _ = std::fs::remove_file(path);
                    other(error)
                });
            }
        }
        _ => {}
    }
    Volume::create(path, disk.bytes, disk.block_bytes).map_err(other)
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.machine.stop();
        self.pool.give(Arc::clone(&self.ram));
        let Some(volume) = &self.volume else { return };
        match &self.record {
            Some(record) if self.ending.load(Ordering::SeqCst) => {
                // Where it fails the record stands for less: it was never closed.
                let _ = volume.close_record(record);
            }
            record => {
                record.iter().for_each(|record| _ = std::fs::remove_file(record.path()));
                remove_image(volume);
            }
        }
    }
}

/// An image that can't be removed is the directory owner's to clear.
fn remove_image(volume: &Volume) {
    let _ = std::fs::remove_file(volume.path());
}

fn record(volume: &Volume, point: Point, lacking: &UnitSet<Block>) -> Result<CopyRecord, DriverError> {
    volume.create_record(&copies::record_of(volume.path()), point.about(), lacking).map_err(other)
}

fn no_copy() -> DriverError {
    other("no guest has left its disk here".to_owned())
}

/// Fills RAM and disk with what the guest holds before operation 0. Where the guest is to arrive, that is no more than the
/// disk's base image, if every host has it.
fn fill(spec: &GuestSpec, begin: Begin, ram: &GuestRam, volume: &Option<Arc<Volume>>) -> Result<(), DriverError> {
    let Some(workload) = spec.software.workload() else { return Ok(()) };
    let (content, seed) = (workload.content(), spec.seed);
    if begin == Begin::New && kind(spec)?.filled_by_host {
        fill_ram(ram, ram.pages(), content, &shape(spec)?, seed);
    }
    let holds = |disk: &DiskSpec| begin == Begin::New || disk.base_shared;
    if let (Some(volume), Some(disk)) = (volume, spec.disk.filter(holds)) {
        fill_disk(disk.filled_bytes, content, seed, |offset, data| volume.receive(offset, data))?;
    }
    Ok(())
}

fn kind(spec: &GuestSpec) -> Result<&'static Kind, DriverError> {
    Ok(&MACHINES.find(&spec.machine).map_err(other)?.build)
}

/// The guest as its workload sees it.
pub(crate) fn shape(spec: &GuestSpec) -> Result<Shape, DriverError> {
    let sectors = |pick: fn(&DiskSpec) -> u64| spec.disk.as_ref().map_or(0, pick) / SECTOR_BYTES;
    let unfit = |accepted: String| other(format!("a {} guest with a workload has {accepted} of RAM", spec.machine));
    let pages = spec.ram_bytes / PAGE_BYTES;
    Ok(Shape {
        pages: match spec.software {
            Software::Workload(_) => (kind(spec)?.workload_pages)(pages).map_err(unfit)?,
            Software::Brought(_) => pages,
        },
        sectors: sectors(|d| d.bytes),
        filled_sectors: sectors(|d| d.filled_bytes),
        vcpus: spec.vcpus,
    })
}

fn streams(
    workload: &WorkloadChoice,
    spec: &GuestSpec,
    shape: Shape,
) -> Result<Vec<Box<dyn whimbrel_model::Stream>>, DriverError> {
    workload.build(&BuildContext::new(shape, spec.seed)).map_err(other)
}

fn build_machine(
    spec: &GuestSpec,
    begin: Begin,
    ram: &Arc<GuestRam>,
    volume: &Option<Arc<Volume>>,
) -> Result<Arc<dyn Machine>, DriverError> {
    let shape = shape(spec)?;
    let software = match &spec.software {
        Software::Brought(brought) => OfMachine::Brought(brought.clone()),
        Software::Workload(workload) => OfMachine::Operations(Operations {
            streams: streams(workload, spec, shape)?,
            pacing: workload.pacing(),
            content: workload.content().clone(),
            recipe: serde_json::to_string(workload).map_err(other)?,
        }),
    };
    let setup = MachineSetup {
        begin,
        ram: Arc::clone(ram),
        disk: volume.clone().map(|v| v as Arc<dyn GuestDisk>),
        shape,
        seed: spec.seed,
        software,
    };
    Ok((kind(spec)?.build)(setup)?)
}

fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> DriverError {
    DriverError::Io(std::io::Error::other(error))
}
