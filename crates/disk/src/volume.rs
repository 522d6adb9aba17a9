//! A guest's disk on this host: a raw sparse image, the guest's access to it, and what was written when.
//!
//! # Marks
//!
//! A guest's write marks its blocks *after* the bytes are in the image and *before* the request completes, and without a
//! lock. That is enough for the migration to lose nothing. Let a write store its bytes at `w` and mark at `m > w`, and
//! let the bitmap be taken at `t`; what a take hands over is read from the image after it.
//!
//! - `m < t`: the block is in what was taken, and is read after `t > w`: the write is in what is pushed.
//! - `m > t`: the block is in a later take, whatever a push read meanwhile, even half of the write.
//!
//! (Marking before the write would be wrong: `m < t`, the block read, then `w`.) There is a later take, as the last one
//! follows [`Volume::drain`], and a request counts as in flight until it has marked. Whether the bitmap is armed is looked
//! at after `w` too: a write that finds it unarmed was stored before it was armed, and so before the first push read
//! anything. A write that fails marks as well, for part of it may be in the image.
//!
//! What was written since the guest came is marked first, and whether the bitmap is armed is looked at after that. So where
//! not everything is pushed, but only what is fresh, a write that finds the bitmap unarmed is in what is fresh, if that is
//! looked at once the bitmap is armed.
//!
//! # Visits
//!
//! A volume outlives the guest's stay: the image stays when the guest leaves, and when it returns only what it wrote
//! elsewhere has to come. In the order of a trip:
//!
//! | host        | call                                                   | when                                        |
//! |-------------|--------------------------------------------------------|---------------------------------------------|
//! | destination | [`begin_receive`](Volume::begin_receive)               | setup; the image of an earlier visit is kept |
//! | source      | [`arm`](Volume::arm), then [`fresh`](Volume::fresh)    | setup: what the other host lacks; a write between the two is in one of them at least |
//! | source      | [`take`](Volume::take), [`read_blocks`](Volume::read_blocks) | each round of push                    |
//! | destination | [`arrive`](Volume::arrive)                             | each block that comes, pushed or fetched    |
//! | source      | [`drain`](Volume::drain), `take`, [`disarm`](Volume::disarm) | the guest is paused                   |
//! | source      | [`stand_by`](Volume::stand_by) instead of `disarm`     | the attempt has failed, and another is to come |
//! | destination | [`begin_pull`](Volume::begin_pull), or [`begin_visit`](Volume::begin_visit) with nothing missing, or [`begin_remote`](Volume::begin_remote) | before the guest runs |
//!
//! Outside the pull phase reads and writes take no lock; in it, only those that meet a missing block do (`pull`).

mod arrivals;
mod counts;
mod image;
mod in_flight;
mod mirror;
mod pull;
mod remote;

pub(crate) use image::Content;
pub use mirror::{MirrorSink, Push};
pub use pull::Fetch;
pub use remote::RemoteDisk;

use crate::bitmap::BlockBitmap;
use crate::bitmap_file::{BitmapFile, Found, Intent};
use crate::error::DiskError;
use crate::guest_disk::GuestDisk;
use arrivals::Arrivals;
use counts::Counters;
use image::Image;
use in_flight::InFlight;
use mirror::Mirror;
use pull::Pull;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, PoisonError, RwLock};
use whimbrel_model::{Block, Extent, UnitSet};
use whimbrel_nbd::{Extents, Now, ZeroMode};

/// The block size where none is given: a page, as in Luo et al. 2008.
pub const BLOCK_BYTES: u64 = 4096;

/// Zeroes that may become a hole.
const A_HOLE_WILL_DO: ZeroMode = ZeroMode { may_trim: true, fua: false, fast: false };

/// The smallest block that a volume may have.
pub const BLOCK_BYTES_MIN: u64 = 512;
/// The largest. The message of [`DiskError`] has both in words.
pub const BLOCK_BYTES_MAX: u64 = 1 << 20;

/// A guest's disk in a raw image file, with its bitmaps.
#[derive(Debug)]
pub struct Volume {
    image: Image,
    block_bytes: u64,
    in_flight: InFlight,
    dirty: Recorder,
    fresh: Recorder,
    counters: Counters,
    arrivals: RwLock<Arrivals>,
    /// Whether the guest may meet a missing block, or one of another host; what lets it pass without a lock where not.
    pulling: AtomicBool,
    /// The guest has left without its disk.
    lent: AtomicBool,
    dropped: AtomicU64,
    /// Where `dirty` is kept, if it is to outlive this process.
    kept: Option<BitmapFile>,
    mirror: RwLock<Option<Arc<Mirror>>>,
    /// Whether there is a mirror; what lets a write pass without a lock where not.
    mirrored: AtomicBool,
}

/// What the guest's requests meet instead of the bare image.
enum Detour {
    Pull(Arc<Pull>),
    Remote(Arc<dyn RemoteDisk>),
}

/// A bitmap of the guest's writes that can be on or off.
#[derive(Debug)]
struct Recorder {
    on: AtomicBool,
    blocks: BlockBitmap,
}

impl Recorder {
    fn off(blocks: u64) -> Self {
        Recorder { on: AtomicBool::new(false), blocks: BlockBitmap::new(blocks) }
    }

    fn start(&self) {
        self.blocks.clear_all();
        self.on.store(true, SeqCst);
    }

    fn is_on(&self) -> bool {
        self.on.load(SeqCst)
    }

    fn mark(&self, extent: Extent) {
        if self.is_on() {
            self.blocks.mark(extent);
        }
    }
}

impl Volume {
    /// Creates a sparse image of `size_bytes` zeroes.
    ///
    /// # Errors
    /// The file exists (it is left alone), another volume has it open, the size is no multiple of `block_bytes`, `block_bytes` is no power of two from
    /// 512 B to 1 MiB, or the host's I/O failed.
    pub fn create(path: impl AsRef<Path>, size_bytes: u64, block_bytes: u64) -> Result<Self, DiskError> {
        let path = path.as_ref();
        check_sizes(path, size_bytes, block_bytes)?;
        Ok(Self::over(Image::create(path, size_bytes)?, block_bytes))
    }

    /// Opens an image that exists, as it is.
    ///
    /// # Errors
    /// There is no such file, another volume has it open, its size is no multiple of `block_bytes`, `block_bytes` is no power of two from 512 B to
    /// 1 MiB, or the host's I/O failed.
    pub fn open(path: impl AsRef<Path>, block_bytes: u64) -> Result<Self, DiskError> {
        let path = path.as_ref();
        let image = Image::open(path)?;
        check_sizes(path, image.size_bytes(), block_bytes)?;
        Ok(Self::over(image, block_bytes))
    }

    /// As [`Volume::open`], and armed: what the guest writes is recorded from here on, over crashes, in `bitmap`. What it holds
    /// already is what a take would hand over; how that came about is told.
    ///
    /// # Errors
    /// As [`Volume::open`], and as [`BitmapFile::open`].
    pub fn open_with_bitmap(
        path: impl AsRef<Path>,
        block_bytes: u64,
        bitmap: impl AsRef<Path>,
    ) -> Result<(Self, Found), DiskError> {
        let mut volume = Self::open(path, block_bytes)?;
        let (kept, set, found) = BitmapFile::open(bitmap.as_ref(), volume.blocks(), block_bytes)?;
        volume.arm();
        volume.dirty.blocks.merge(&set);
        volume.kept = Some(kept);
        Ok((volume, found))
    }

    /// Ends the recording in a file in order, so that it is exact when it is opened again. There must be no more writes.
    ///
    /// # Errors
    /// The host's I/O failed: the file then stands for more than was written.
    pub fn close_bitmap(&self) -> io::Result<()> {
        self.kept.as_ref().map_or(Ok(()), |kept| kept.checkpoint(true, || Ok(self.dirty.blocks.peek())))
    }

    fn over(image: Image, block_bytes: u64) -> Self {
        let blocks = image.size_bytes() / block_bytes;
        Volume {
            image,
            block_bytes,
            in_flight: InFlight::default(),
            dirty: Recorder::off(blocks),
            fresh: Recorder::off(blocks),
            counters: Counters::default(),
            arrivals: RwLock::new(Arrivals::Wanted(None)),
            pulling: AtomicBool::new(false),
            lent: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            kept: None,
            mirror: RwLock::default(),
            mirrored: AtomicBool::new(false),
        }
    }

    /// The image file.
    pub fn path(&self) -> &Path {
        self.image.path()
    }

    /// Bytes in a block.
    pub fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> u64 {
        self.image.size_bytes() / self.block_bytes
    }

    /// How many of the guest's requests are in flight.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.count()
    }

    /// Returns when none of the guest's requests is in flight. The guest must be paused: a guest that goes on may keep
    /// this waiting for ever.
    pub fn drain(&self) {
        self.in_flight.drain();
    }

    /// Begins to record the guest's writes for a migration; the record starts empty.
    pub fn arm(&self) {
        self.dirty.start();
    }

    /// Hands over what was written since the last take (or since [`Volume::arm`]); empty while unarmed.
    pub fn take(&self) -> UnitSet<Block> {
        self.dirty.blocks.take()
    }

    /// As [`Volume::take`], but adds to `set`. Returns how many blocks were taken.
    pub fn take_into(&self, set: &mut UnitSet<Block>) -> u64 {
        self.dirty.blocks.take_into(set)
    }

    /// What the next take would hand over.
    pub fn peek(&self) -> UnitSet<Block> {
        self.dirty.blocks.peek()
    }

    /// How many blocks the next take would hand over.
    pub fn dirty_count(&self) -> u64 {
        self.dirty.blocks.count()
    }

    /// Stops recording and counting for a migration and forgets what was recorded.
    pub fn disarm(&self) {
        self.dirty.on.store(false, SeqCst);
        self.dirty.blocks.clear_all();
        self.stand_by();
    }

    /// Stops counting and mirroring for a migration that has failed, but goes on recording: another attempt begins with what
    /// [`Volume::take`] then hands over.
    pub fn stand_by(&self) {
        self.end_counts();
        self.end_mirror();
    }

    /// What the host that the guest came from lacks: every block written since the guest came. All blocks for a guest
    /// that never came from anywhere.
    ///
    /// It is never taken and goes on recording while the guest leaves again, so it is whole after a failed attempt too.
    pub fn fresh(&self) -> UnitSet<Block> {
        if self.fresh.is_on() { self.fresh.blocks.peek() } else { UnitSet::full(self.blocks()) }
    }

    /// Whether the guest came from elsewhere, and [`Volume::fresh`] tells what it wrote here.
    pub fn is_visited(&self) -> bool {
        self.fresh.is_on()
    }

    /// Fills `buffer` with an extent's blocks for a push: not the guest's access, never waits for a missing block.
    ///
    /// # Errors
    /// The extent lies beyond the disk, `buffer` has another length, or the host's I/O failed.
    pub fn read_blocks(&self, extent: Extent, buffer: &mut [u8]) -> io::Result<()> {
        self.check_extent(extent, buffer.len() as u64)?;
        self.image.read(extent.start * self.block_bytes, buffer)
    }

    /// The runs of blocks within `extent` that may hold something else than zeroes; the rest is holes, and need only be
    /// told to be zero. A file system that knows no holes calls all of it data.
    ///
    /// # Errors
    /// The extent lies beyond the disk, or the host's I/O failed.
    pub fn data_extents(&self, extent: Extent) -> io::Result<Vec<Extent>> {
        self.check_extent(extent, extent.count.saturating_mul(self.block_bytes))?;
        let ranges = self.image.data_ranges(extent.start * self.block_bytes, extent.count * self.block_bytes)?;
        let mut runs: Vec<Extent> = Vec::new();
        for range in ranges {
            let (start, end) = (range.start / self.block_bytes, range.end.div_ceil(self.block_bytes));
            match runs.last_mut() {
                // A block may hold the end of one stretch and the start of the next.
                Some(last) if last.end() >= start => last.count = end - last.start,
                _ => runs.push(Extent { start, count: end - start }),
            }
        }
        Ok(runs)
    }

    /// Whether all of `extent` is known to be holes, and so zero.
    ///
    /// # Errors
    /// As [`Volume::data_extents`].
    pub fn is_zero_extent(&self, extent: Extent) -> io::Result<bool> {
        Ok(self.data_extents(extent)?.is_empty())
    }

    pub(crate) fn guest_write(&self, offset: u64, content: Content<'_>) -> io::Result<()> {
        let Some(extent) = self.covering(offset, content.length())? else { return Ok(()) };
        let _request = self.in_flight.enter();
        let _intent = self.kept.as_ref().map(|kept| kept.intend(extent)).transpose()?;
        if let Some(mirror) = self.mirror() {
            // Before the mirror may mark it as written: the module's comment says why. It is not written yet, but a look at
            // what is fresh that comes before it is written belongs to another attempt, and then it is marked once more below.
            self.fresh.mark(extent);
            let result = mirror.write(&self.image, offset, content, extent, &self.dirty);
            match self.mirror() {
                Some(now) if Arc::ptr_eq(&now, &mirror) => self.counters.count(extent),
                // Its attempt ended meanwhile. Of one that followed this mirror knows nothing.
                _ => self.mark(extent),
            }
            return result;
        }
        let detour = self.detour();
        let result = match &detour {
            None => self.image.write(offset, content),
            Some(Detour::Pull(pull)) => pull.write(&self.image, offset, content),
            Some(Detour::Remote(disk)) => remote::write(&**disk, offset, content),
        };
        self.mark(extent);
        if let Some(Detour::Pull(pull)) = detour {
            self.note_progress(&pull);
            pull.say_if_whole();
        }
        result
    }

    /// The guest's read, if that needs no waiting.
    pub(crate) fn try_read_now(&self, offset: u64, buffer: &mut [u8]) -> io::Result<Now> {
        self.covering(offset, buffer.len() as u64)?;
        let _request = self.in_flight.enter();
        if self.pulling.load(SeqCst) {
            return Ok(Now::WouldBlock);
        }
        self.image.try_read_now(offset, buffer)
    }

    /// The guest's write, if that needs no waiting.
    pub(crate) fn try_write_now(&self, offset: u64, data: &[u8]) -> io::Result<Now> {
        let Some(extent) = self.covering(offset, data.len() as u64)? else { return Ok(Now::Done) };
        let _request = self.in_flight.enter();
        if self.pulling.load(SeqCst) || self.mirrored.load(SeqCst) {
            return Ok(Now::WouldBlock);
        }
        let Some((_intent, 1)) = self.try_intend([extent]) else { return Ok(Now::WouldBlock) };
        let result = self.image.try_write_now(offset, data);
        // Marked even where it would have to wait: part of it may be written.
        self.mark(extent);
        result
    }

    /// As many of these writes of the guest, from the first on, as need no waiting and are better made in one go; how many.
    pub(crate) fn try_write_many_now(&self, writes: &[(u64, &[u8])]) -> usize {
        let extent = |(offset, data): &(u64, &[u8])| self.covering(*offset, data.len() as u64).ok().flatten();
        let extents = || writes.iter().map_while(extent);
        let _request = self.in_flight.enter();
        if self.pulling.load(SeqCst) || self.mirrored.load(SeqCst) {
            return 0;
        }
        let Some((_intent, intended)) = self.try_intend(extents()) else { return 0 };
        let done = self.image.try_write_many_now(&writes[..intended]);
        // All that were tried: of one that wasn't made a part may be.
        extents().take(intended).for_each(|extent| self.mark(extent));
        done
    }

    /// How many of these writes need not wait for their intent.
    fn try_intend(&self, writes: impl IntoIterator<Item = Extent>) -> Option<(Option<Intent<'_>>, usize)> {
        match &self.kept {
            Some(kept) => kept.try_intend(writes).map(|(intent, count)| (Some(intent), count)),
            None => Some((None, writes.into_iter().count())),
        }
    }

    /// Whether the guest would find nothing but a hole in the range, as far as that is known without reading it.
    pub(crate) fn is_hole(&self, offset: u64, length: u64) -> bool {
        !self.pulling.load(SeqCst) && self.image.is_zero(offset, length)
    }

    /// Whether the guest's read of the range needs no waiting.
    pub(crate) fn is_cached(&self, offset: u64, length: u64) -> bool {
        !self.pulling.load(SeqCst) && self.image.is_cached(offset, length)
    }

    /// Fills `buffer` with the image as it is, missing blocks or not: the host's access.
    ///
    /// # Errors
    /// What is to be read lies beyond the disk, or the host's I/O failed.
    pub fn read_image(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.covering(offset, buffer.len() as u64)?;
        self.image.read(offset, buffer)
    }

    /// As [`Volume::read_image`], if that needs no waiting.
    pub(crate) fn try_read_image_now(&self, offset: u64, buffer: &mut [u8]) -> io::Result<Now> {
        self.covering(offset, buffer.len() as u64)?;
        self.image.try_read_now(offset, buffer)
    }

    /// The first run of blocks in `extent` that were written since the last take.
    pub(crate) fn dirty_run(&self, extent: Extent) -> Option<Extent> {
        self.dirty.blocks.run_in(extent)
    }

    /// Marks what a guest's write touched, once it is in the image; the module's comment says why then.
    fn mark(&self, extent: Extent) {
        self.fresh.mark(extent);
        self.dirty.mark(extent);
        if let Some(mirror) = self.mirror() {
            // It began while this write was on its way. One that begins only now finds the mark.
            mirror.uncopy_unclaimed(extent);
            self.dirty.mark(extent);
        }
        self.counters.count(extent);
    }

    fn detour(&self) -> Option<Detour> {
        if !self.pulling.load(SeqCst) {
            return None;
        }
        match &*self.arrivals.read().unwrap_or_else(PoisonError::into_inner) {
            Arrivals::Merged(pull) => Some(Detour::Pull(Arc::clone(pull))),
            Arrivals::Remote(disk) => Some(Detour::Remote(Arc::clone(disk))),
            Arrivals::Wanted(_) | Arrivals::Late => None,
        }
    }

    /// The blocks that a range of bytes touches; `None` for an empty range.
    fn covering(&self, offset: u64, length: u64) -> io::Result<Option<Extent>> {
        match offset.checked_add(length) {
            Some(end) if end <= self.image.size_bytes() => {
                let start = offset / self.block_bytes;
                let count = end.div_ceil(self.block_bytes) - start;
                Ok((length > 0).then_some(Extent { start, count }))
            }
            _ => Err(invalid(format!(
                "{length} bytes at {offset} lie beyond the disk's {} bytes",
                self.image.size_bytes()
            ))),
        }
    }

    pub(crate) fn check_extent(&self, extent: Extent, given_bytes: u64) -> io::Result<()> {
        let end = extent.start.checked_add(extent.count).filter(|end| *end <= self.blocks());
        if end.is_none() {
            let Extent { start, count } = extent;
            return Err(invalid(format!("{count} blocks from {start} lie beyond the disk's {} blocks", self.blocks())));
        }
        if given_bytes != extent.count * self.block_bytes {
            return Err(invalid(format!("{given_bytes} bytes are not the length of {} blocks", extent.count)));
        }
        Ok(())
    }
}

impl GuestDisk for Volume {
    fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.covering(offset, buffer.len() as u64)?.is_none() {
            return Ok(());
        }
        let _request = self.in_flight.enter();
        match self.detour() {
            None => self.image.read(offset, buffer),
            Some(Detour::Pull(pull)) => pull.read(&self.image, offset, buffer),
            Some(Detour::Remote(disk)) => disk.read(offset, buffer),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.guest_write(offset, Content::Data(data))
    }

    fn flush(&self) -> io::Result<()> {
        let _request = self.in_flight.enter();
        match self.detour() {
            Some(Detour::Remote(disk)) => disk.flush()?,
            Some(Detour::Pull(_)) | None => self.flush_image()?,
        }
        match &self.kept {
            Some(kept) if kept.wants_checkpoint() => kept.checkpoint(false, || Ok(self.dirty.blocks.peek())),
            _ => Ok(()),
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64, may_trim: bool) -> io::Result<()> {
        self.guest_write(offset, Content::Zeroes { length, mode: ZeroMode { may_trim, ..ZeroMode::default() } })
    }

    fn allocation(&self, offset: u64, length: u64, extents: &mut Extents) -> io::Result<()> {
        if self.pulling.load(SeqCst) {
            // A missing block is a hole in the image and none in the disk.
            extents.push(length, 0);
            return Ok(());
        }
        self.image.allocation(offset, length, extents)
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

fn check_sizes(path: &Path, size_bytes: u64, block_bytes: u64) -> Result<(), DiskError> {
    if !block_bytes.is_power_of_two() || !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_bytes) {
        return Err(DiskError::BlockSize { block_bytes });
    }
    if size_bytes == 0 || !size_bytes.is_multiple_of(block_bytes) {
        return Err(DiskError::Size { path: path.to_owned(), size_bytes, block_bytes });
    }
    Ok(())
}
