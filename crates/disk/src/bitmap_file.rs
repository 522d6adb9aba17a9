//! A block bitmap in a file, for the set of written blocks to outlive the process that writes them.
//!
//! ```text
//!   0      record A, 4 KiB    magic, version, generation, geometry, which area is the set, its checksum,
//!   4096   record B, 4 KiB      clean or not, what the set is of, the regions with intent, checksum
//!   8192   area A             the set as it was at a checkpoint, a bit a block, in sectors of 4 KiB
//!          area B
//! ```
//!
//! **Write intent comes first.** The disk is cut into at most 16 384 regions. Before the first write to a region is issued its
//! intent bit is durable; all later writes to it cost nothing more. So whatever a crash leaves in the image lies in a region
//! with intent, or is in the set of the last checkpoint, or both:
//!
//! | the file says                         | the set after opening it                                    |
//! |---------------------------------------|-------------------------------------------------------------|
//! | clean                                 | exactly that of the checkpoint                              |
//! | not clean (the process died)          | that of the checkpoint, and all blocks of the regions with intent |
//! | a record or the area is torn, or alien | every block                                                |
//!
//! **Lazily cleared.** A checkpoint writes the set to the area that isn't in use, and then a record that names it and holds
//! fewer intents. First the intents are taken back in memory, so that new writes to those regions wait for theirs to be
//! durable again; then all writes under way are waited for, so that the set holds what they marked; then it is read. One is
//! made when intents have become many, and an orderly end makes the last, which is clean.
//!
//! Of an area only those sectors are written that differ from what it holds, which is kept in memory: a checkpoint costs what
//! was written since the last but one, not what the disk is large. The area's checksum is that of its sectors' checksums,
//! so it follows the same way.
//!
//! Records are written in turns, so the one in force is never overwritten; each is durable before the next step.

use crate::bitmap::BlockBitmap;
use crate::error::DiskError;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use whimbrel_model::{Block, Extent, UnitSet};

const MAGIC: &[u8; 8] = b"WHIMBMAP";
const VERSION: u64 = 2;
const RECORD_BYTES: usize = 4096;
const AREAS_AT: u64 = 2 * RECORD_BYTES as u64;
const SECTOR_BYTES: usize = 4096;
const SECTOR_WORDS: u64 = SECTOR_BYTES as u64 / 8;
/// The most regions, so that their bits fit into a record.
const REGIONS_MAX: u64 = 16 << 10;
/// The smallest region: what a crash costs for a single write.
const REGION_BYTES_MIN: u64 = 1 << 20;
/// Where the intents begin in a record, after the magic and ten numbers.
const INTENTS_AT: usize = 128;
/// So many new intents make the next flush a checkpoint.
const INTENTS_MANY: u64 = 1024;

/// What was found in a bitmap's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// There was none; it is new and the set is empty.
    New,
    /// It was left in order; the set is exact.
    Clean,
    /// The process that had it died; the set holds all that was written, and the rest of the regions written to.
    Crashed,
    /// It can't be relied on; every block is in the set.
    Torn,
}

/// A bitmap's file, open.
#[derive(Debug)]
pub struct BitmapFile {
    path: PathBuf,
    region_blocks: u64,
    /// The regions with a durable intent.
    intents: BlockBitmap,
    /// Held shared while a write is under way.
    writes: RwLock<()>,
    log: Mutex<Log>,
}

#[derive(Debug)]
struct Log {
    file: File,
    record: Record,
    /// What the areas hold, as far as that is known.
    areas: [Option<Area>; 2],
    /// Intents since the last checkpoint.
    fresh: u64,
    /// Whether a record could not be written: which one is in force isn't known any more, so no other may follow.
    broken: bool,
}

/// A write under way; its marks must be made before this is dropped.
pub struct Intent<'a>(#[expect(dead_code, reason = "held, not looked at")] RwLockReadGuard<'a, ()>);

/// A new file is there after a power cut only if its folder says so.
fn flush_folder(path: &Path) -> Result<(), DiskError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(DiskError::io("flush", folder))
}

impl BitmapFile {
    /// Opens the bitmap of a disk of so many blocks, or creates it, with the set that it stands for. From then on the file
    /// says that it isn't clean.
    ///
    /// # Errors
    /// The file is another disk's or in use, or the host's I/O failed.
    pub fn open(path: &Path, blocks: u64, block_bytes: u64) -> Result<(BitmapFile, UnitSet<Block>, Found), DiskError> {
        let io = |what| DiskError::io(what, path);
        let options = || File::options().read(true).write(true).clone();
        let (file, is_new) = match options().create_new(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (options().open(path), false),
            made => (made, true),
        };
        let file = file.map_err(io("open"))?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(DiskError::InUse { path: path.to_owned() });
        }
        let virgin = Record::virgin(blocks, block_bytes, [0; 2]);
        let (record, areas, set, found) = match file.metadata().map_err(io("look at"))?.len() {
            0 if is_new => (virgin, empty_areas(blocks), UnitSet::empty(blocks), Found::New),
            // Somebody has emptied it.
            0 => (virgin, [None, None], UnitSet::full(blocks), Found::Torn),
            _ => {
                let there = read(&file, &virgin, region_blocks(blocks, block_bytes)).map_err(|why| match why {
                    Unreadable::Alien => DiskError::AlienBitmap { path: path.to_owned() },
                    Unreadable::Io(error) => io("read")(error),
                })?;
                let mut areas = [None, None];
                areas[there.record.area as usize] = there.area;
                (there.record, areas, there.set, there.found)
            }
        };
        let this = Self::begin(path, file, record, areas, &set)?;
        if is_new {
            flush_folder(path)?;
        }
        Ok((this, set, found))
    }

    /// Creates the bitmap of a disk of so many blocks with a set of them, and says what that set is of.
    ///
    /// # Errors
    /// There is a file of that name, or the host's I/O failed.
    pub fn create(path: &Path, block_bytes: u64, about: [u64; 2], set: &UnitSet<Block>) -> Result<Self, DiskError> {
        let file = File::options().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(DiskError::io("create", path))?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(DiskError::InUse { path: path.to_owned() });
        }
        let record = Record::virgin(set.len(), block_bytes, about);
        let this = Self::begin(path, file, record, empty_areas(set.len()), set)?;
        flush_folder(path)?;
        Ok(this)
    }

    fn begin(
        path: &Path,
        file: File,
        record: Record,
        areas: [Option<Area>; 2],
        set: &UnitSet<Block>,
    ) -> Result<Self, DiskError> {
        let io = |what| DiskError::io(what, path);
        let blocks = set.len();
        file.set_len(AREAS_AT + 2 * area_bytes(blocks)).map_err(io("size"))?;
        let region_blocks = region_blocks(blocks, record.block_bytes);
        let intents = BlockBitmap::new(blocks.div_ceil(region_blocks));
        let log = Mutex::new(Log { file, record, areas, fresh: 0, broken: false });
        let this = BitmapFile { path: path.to_owned(), region_blocks, intents, writes: RwLock::new(()), log };
        // Twice: both records are then of this disk, and a torn one is told from one that never was.
        for _ in 0..2 {
            this.checkpoint(false, || Ok(set.clone())).map_err(io("write"))?;
        }
        Ok(this)
    }

    /// What the set in a file is said to be of, without a change to the file; `None` if it has no whole record.
    pub fn about_of(path: &Path) -> Option<[u64; 2]> {
        let file = File::open(path).ok()?;
        let whole = [0, RECORD_BYTES as u64].into_iter().filter_map(|at| {
            let mut bytes = [0; RECORD_BYTES];
            file.read_exact_at(&mut bytes, at).ok()?;
            Record::decode(&bytes)
        });
        whole.max_by_key(|record| record.generation).map(|record| record.about)
    }

    /// What the set is of, as it was said when the file was made.
    pub fn about(&self) -> [u64; 2] {
        self.log().record.about
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asked before a write to `extent` is issued: returns when its intent is durable. The blocks must be marked before the
    /// intent is dropped.
    ///
    /// # Errors
    /// The host's I/O failed: then the write must not be made.
    pub fn intend(&self, extent: Extent) -> io::Result<Intent<'_>> {
        self.intend_also(extent, || extent)
    }

    /// As [`BitmapFile::intend`]. Where that takes a durable record, all regions within `also` get their intent by it too.
    ///
    /// # Errors
    /// As for [`BitmapFile::intend`].
    pub fn intend_also(&self, extent: Extent, also: impl Fn() -> Extent) -> io::Result<Intent<'_>> {
        let regions = self.regions(extent);
        loop {
            let guard = self.writes.read().unwrap_or_else(PoisonError::into_inner);
            if self.is_intended(regions) {
                return Ok(Intent(guard));
            }
            drop(guard);
            let mut log = self.log();
            // Intents change only under this lock; another may have made these durable meanwhile.
            if self.is_intended(regions) {
                continue;
            }
            let mut intents = self.intents.peek();
            let before = intents.count();
            intents.insert_extent(regions);
            intents.insert_extent(self.regions_within(also()));
            log.append(false, &intents)?;
            log.fresh += intents.count() - before;
            self.intents.merge(&intents);
        }
    }

    /// As [`BitmapFile::intend`], for as many of these writes, from the first on, as need no waiting; how many.
    pub fn try_intend(&self, writes: impl IntoIterator<Item = Extent>) -> Option<(Intent<'_>, usize)> {
        let guard = self.writes.try_read().ok()?;
        let count = writes.into_iter().take_while(|extent| self.is_intended(self.regions(*extent))).count();
        Some((Intent(guard), count))
    }

    fn is_intended(&self, regions: Extent) -> bool {
        self.intents.run_in(regions) == Some(regions)
    }

    /// Whether intents have become many enough for a checkpoint.
    pub fn wants_checkpoint(&self) -> bool {
        self.log.try_lock().is_ok_and(|log| log.fresh >= INTENTS_MANY)
    }

    /// Writes the set down, which `set` reads after all writes that were under way have marked. `clean`: it is the last; there
    /// are no more writes after it.
    ///
    /// # Errors
    /// The set can't be had, or the host's I/O failed. The file then stands for a larger set.
    pub fn checkpoint(&self, clean: bool, set: impl FnOnce() -> io::Result<UnitSet<Block>>) -> io::Result<()> {
        let mut log = self.log();
        let intents = self.intents.peek();
        self.intents.clear_all();
        // Those that saw an intent before have marked when this is to be had; those that come later see none.
        drop(self.writes.write().unwrap_or_else(PoisonError::into_inner));
        if let Err(error) = set().and_then(|set| log.write_set(set)) {
            // The record in force still has them.
            self.intents.merge(&intents);
            return Err(error);
        }
        log.append(clean, &UnitSet::empty(self.intents.len()))?;
        log.fresh = 0;
        Ok(())
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn regions(&self, extent: Extent) -> Extent {
        let start = extent.start / self.region_blocks;
        Extent { start, count: extent.end().div_ceil(self.region_blocks) - start }
    }

    /// The regions of which the extent covers every block.
    fn regions_within(&self, extent: Extent) -> Extent {
        let start = extent.start.div_ceil(self.region_blocks);
        Extent { start, count: (extent.end() / self.region_blocks).saturating_sub(start) }
    }
}

impl Log {
    /// Makes the area that isn't in use durably hold the set, for the next record to name it.
    fn write_set(&mut self, set: UnitSet<Block>) -> io::Result<()> {
        let area = 1 - self.record.area;
        let at = AREAS_AT + u64::from(area) * area_bytes(self.record.blocks);
        // Until it is durable nobody knows what is there.
        let (mut sums, changed) = match self.areas[area as usize].take() {
            Some(held) => {
                let mut changed = set.clone();
                changed.differ(&held.set);
                (held.sums, sectors_of(&changed))
            }
            None => (empty_sums(self.record.blocks), (0..area_sectors(self.record.blocks)).collect()),
        };
        for sector in changed {
            let bytes = sector_of(&set, sector);
            self.file.write_all_at(&bytes, at + sector * SECTOR_BYTES as u64)?;
            sums[sector as usize] = crc32fast::hash(&bytes);
        }
        self.file.sync_data()?;
        let held = Area { set, sums };
        (self.record.area, self.record.checksum) = (area, held.checksum());
        self.areas[area as usize] = Some(held);
        Ok(())
    }

    /// Makes a record with these intents durable.
    fn append(&mut self, clean: bool, intents: &UnitSet<Block>) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("the bitmap's file failed before, and can't be relied on"));
        }
        self.record.generation += 1;
        self.record.clean = clean;
        self.record.intents = bytes_of(intents);
        let at = self.record.generation % 2 * RECORD_BYTES as u64;
        let written = self.file.write_all_at(&self.record.encode(), at).and_then(|()| self.file.sync_data());
        self.broken = written.is_err();
        written
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    generation: u64,
    blocks: u64,
    block_bytes: u64,
    area: u32,
    checksum: u32,
    clean: bool,
    about: [u64; 2],
    intents: Vec<u8>,
}

impl Record {
    fn virgin(blocks: u64, block_bytes: u64, about: [u64; 2]) -> Self {
        Record { generation: 0, blocks, block_bytes, area: 0, checksum: 0, clean: false, about, intents: Vec::new() }
    }

    fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        let numbers = [
            VERSION,
            self.generation,
            self.blocks,
            self.block_bytes,
            self.area.into(),
            self.checksum.into(),
            self.clean.into(),
            self.intents.len() as u64,
            self.about[0],
            self.about[1],
        ];
        for (place, number) in bytes[8..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes[INTENTS_AT..INTENTS_AT + self.intents.len()].copy_from_slice(&self.intents);
        let checksum = crc32fast::hash(&bytes[..RECORD_BYTES - 4]);
        bytes[RECORD_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// `None` for bytes that are no whole record.
    fn decode(bytes: &[u8; RECORD_BYTES]) -> Option<Self> {
        let (body, checksum) = bytes.split_last_chunk::<4>()?;
        if crc32fast::hash(body) != u32::from_le_bytes(*checksum) || body[..8] != *MAGIC {
            return None;
        }
        let number = |at: usize| {
            let bytes: [u8; 8] = body[8 + at * 8..16 + at * 8].try_into().ok()?;
            Some(u64::from_le_bytes(bytes))
        };
        let intents = body.get(INTENTS_AT..INTENTS_AT.checked_add(usize::try_from(number(7)?).ok()?)?)?;
        Some(Record {
            generation: number(1).filter(|_| number(0) == Some(VERSION))?,
            blocks: number(2)?,
            block_bytes: number(3)?,
            area: u32::try_from(number(4)?).ok().filter(|area| *area < 2)?,
            checksum: u32::try_from(number(5)?).ok()?,
            clean: number(6)? == 1,
            about: [number(8)?, number(9)?],
            intents: intents.to_vec(),
        })
    }
}

/// What an area holds, and the checksum of each of its sectors.
#[derive(Debug)]
struct Area {
    set: UnitSet<Block>,
    sums: Box<[u32]>,
}

impl Area {
    fn empty(blocks: u64) -> Self {
        Area { set: UnitSet::empty(blocks), sums: empty_sums(blocks) }
    }

    /// Reads an area; `None` if the file ends before it does.
    fn read(file: &File, blocks: u64, area: u32) -> io::Result<Option<Self>> {
        let mut bytes = vec![0; area_bytes(blocks) as usize];
        match file.read_exact_at(&mut bytes, AREAS_AT + u64::from(area) * area_bytes(blocks)) {
            Ok(()) => (),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let mut set = UnitSet::empty(blocks);
        insert_bytes(&mut set, &bytes);
        let sums = bytes.chunks_exact(SECTOR_BYTES).map(crc32fast::hash).collect();
        Ok(Some(Area { set, sums }))
    }

    fn checksum(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        self.sums.iter().for_each(|sum| hasher.update(&sum.to_le_bytes()));
        hasher.finalize()
    }
}

/// What an existing file is.
struct There {
    record: Record,
    /// What the record's area holds, if it is whole.
    area: Option<Area>,
    set: UnitSet<Block>,
    found: Found,
}

enum Unreadable {
    Alien,
    Io(io::Error),
}

/// What an existing file stands for.
fn read(file: &File, virgin: &Record, region_blocks: u64) -> Result<There, Unreadable> {
    let torn = |generation| {
        // Whatever it was of, it is not that any more.
        let record = Record { generation, ..virgin.clone() };
        Ok(There { record, area: None, set: UnitSet::full(virgin.blocks), found: Found::Torn })
    };
    let mut records = Vec::new();
    let (mut alien_bytes, mut known_bytes) = (false, false);
    for at in [0, RECORD_BYTES as u64] {
        let mut bytes = [0; RECORD_BYTES];
        match file.read_exact_at(&mut bytes, at) {
            Ok(()) => (),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => (),
            Err(error) => return Err(Unreadable::Io(error)),
        }
        // Zeroes: it died before its first record, or was cut off within it.
        let known = bytes.iter().zip(MAGIC).take_while(|(byte, known)| byte == known).count();
        alien_bytes |= bytes[known..MAGIC.len()].iter().any(|byte| *byte != 0);
        known_bytes |= known > 0;
        records.extend(Record::decode(&bytes));
    }
    // Many a file begins with zeroes, but is not as long as this one was made before its first record.
    let sized = || file.metadata().map(|there| there.len() == AREAS_AT + 2 * area_bytes(virgin.blocks));
    if records.is_empty() && (alien_bytes || !(known_bytes || sized().map_err(Unreadable::Io)?)) {
        return Err(Unreadable::Alien);
    }
    let alien = |record: &Record| (record.blocks, record.block_bytes) != (virgin.blocks, virgin.block_bytes);
    if records.iter().any(alien) {
        return Err(Unreadable::Alien);
    }
    records.sort_by_key(|record| record.generation);
    let [older, record] = &records[..] else {
        return torn(records.first().map_or(0, |record| record.generation + 1));
    };
    if older.generation + 1 != record.generation {
        return torn(record.generation + 1);
    }
    let Some(area) = Area::read(file, record.blocks, record.area).map_err(Unreadable::Io)? else {
        return torn(record.generation + 1);
    };
    if area.checksum() != record.checksum {
        return torn(record.generation + 1);
    }
    let mut set = area.set.clone();
    let mut regions = UnitSet::<Block>::empty(record.blocks.div_ceil(region_blocks));
    insert_bytes(&mut regions, &record.intents);
    for run in regions.extents().filter(|_| !record.clean) {
        let start = run.start * region_blocks;
        set.insert_extent(Extent { start, count: run.count * region_blocks });
    }
    let found = if record.clean { Found::Clean } else { Found::Crashed };
    Ok(There { record: record.clone(), area: Some(area), set, found })
}

fn region_blocks(blocks: u64, block_bytes: u64) -> u64 {
    let bytes = (blocks * block_bytes).div_ceil(REGIONS_MAX).max(REGION_BYTES_MIN).max(block_bytes);
    (bytes / block_bytes).next_power_of_two()
}

fn area_sectors(blocks: u64) -> u64 {
    blocks.div_ceil(SECTOR_WORDS * 64)
}

/// A bit a block, in whole sectors.
fn area_bytes(blocks: u64) -> u64 {
    area_sectors(blocks) * SECTOR_BYTES as u64
}

fn empty_areas(blocks: u64) -> [Option<Area>; 2] {
    [(); 2].map(|()| Some(Area::empty(blocks)))
}

/// The sectors' checksums of an area without a bit.
fn empty_sums(blocks: u64) -> Box<[u32]> {
    vec![crc32fast::hash(&[0; SECTOR_BYTES]); area_sectors(blocks) as usize].into()
}

/// The sectors that hold a set's bits, ascending.
fn sectors_of(set: &UnitSet<Block>) -> Vec<u64> {
    let mut sectors: Vec<u64> = set.words().map(|(index, _)| index / SECTOR_WORDS).collect();
    sectors.dedup();
    sectors
}

fn sector_of(set: &UnitSet<Block>, sector: u64) -> [u8; SECTOR_BYTES] {
    let mut bytes = [0; SECTOR_BYTES];
    for (place, index) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(sector * SECTOR_WORDS..) {
        *place = set.word(index).to_le_bytes();
    }
    bytes
}

/// The bits of a small set.
fn bytes_of(set: &UnitSet<Block>) -> Vec<u8> {
    (0..set.len().div_ceil(64)).flat_map(|index| set.word(index).to_le_bytes()).collect()
}

fn insert_bytes(set: &mut UnitSet<Block>, bytes: &[u8]) {
    for (index, word) in (0..).zip(bytes.as_chunks::<8>().0) {
        set.insert_word(index, u64::from_le_bytes(*word));
    }
}
