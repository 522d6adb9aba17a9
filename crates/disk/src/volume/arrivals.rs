//! What comes to a volume from the host: its first content, pushed blocks, fetched blocks.
//!
//! | state  | since                                  | `receive` | `arrive`                          |
//! |--------|----------------------------------------|-----------|-----------------------------------|
//! | wanted | the volume's making, `begin_receive`   | stored    | stored, and put on the copy's record if there is one |
//! | merged | `begin_pull`                           | refused   | stored where missing, else dropped |
//! | late   | `begin_visit`: the guest came whole    | refused   | dropped                           |
//! | remote | `begin_remote`: its disk stayed        | refused   | dropped                           |
//!
//! A change of state waits for the arrivals that are being stored: none is stored under the rules of the state before.

use super::image::Content;
use super::pull::{Fetch, Pull};
use super::remote::RemoteDisk;
use super::{A_HOLE_WILL_DO, Volume, invalid};
use crate::copy_record::CopyRecord;
use crate::error::DiskError;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, PoisonError, TryLockError};
use whimbrel_model::{Block, Extent, UnitSet};
use whimbrel_nbd::Now;

/// What becomes of blocks that arrive.
pub(super) enum Arrivals {
    /// All are stored: the guest is not here. What has arrived may be recorded.
    Wanted(Option<Arc<CopyRecord>>),
    /// The guest is here, and blocks are (or were) missing.
    Merged(Arc<Pull>),
    /// The guest is here, and nothing was missing when it came.
    Late,
    /// The guest is here, and its disk at another host.
    Remote(Arc<dyn RemoteDisk>),
}

impl std::fmt::Debug for Arrivals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Arrivals::Wanted(None) => f.write_str("wanted"),
            Arrivals::Wanted(Some(_)) => f.write_str("wanted and recorded"),
            Arrivals::Merged(pull) => write!(f, "merged, {} missing", pull.missing()),
            Arrivals::Late => f.write_str("late"),
            Arrivals::Remote(_) => f.write_str("remote"),
        }
    }
}

impl Volume {
    /// Makes the volume expect a guest: what arrives is stored as it is. The image of an earlier visit is kept and updated.
    /// `record`: where what has arrived is written down.
    ///
    /// # Panics
    /// A guest's request is in flight: the guest is still here.
    pub fn begin_receive(&self, record: Option<Arc<CopyRecord>>) {
        self.change_to(Arrivals::Wanted(record));
    }

    /// Makes the image durable as it is, and then a record of it as a copy that lacks these blocks; `about` is what it is of.
    /// The copy lacks every block if the image [is suspect](Volume::is_suspect).
    ///
    /// # Errors
    /// There is a file of that name, or the host's I/O failed.
    pub fn create_record(
        &self,
        path: &Path,
        about: [u64; 2],
        lacking: &UnitSet<Block>,
    ) -> Result<CopyRecord, DiskError> {
        self.image.flush().map_err(DiskError::io("flush", self.path()))?;
        let every = self.is_suspect().then(|| UnitSet::full(self.blocks()));
        CopyRecord::create(path, self.block_bytes, about, every.as_ref().unwrap_or(lacking))
    }

    /// Whether a flush of the image has failed, be it the guest's: what the host has lost of it nobody knows, and the next
    /// flush may succeed as if nothing had been. No block of such an image can be relied on where the guest isn't.
    pub fn is_suspect(&self) -> bool {
        self.image.is_suspect()
    }

    /// Makes the image durable for whoever asks. Where what arrives is recorded, the record must hear of it if that fails.
    pub(super) fn flush_image(&self) -> io::Result<()> {
        let record = match &*self.arrivals.read().unwrap_or_else(PoisonError::into_inner) {
            Arrivals::Wanted(record) => record.clone(),
            Arrivals::Merged(_) | Arrivals::Late | Arrivals::Remote(_) => None,
        };
        match record {
            Some(record) => record.checkpoint(false, || self.image.flush()),
            None => self.image.flush(),
        }
    }

    /// Ends a record in order: it is exact when it is opened again. Nothing may arrive any more.
    ///
    /// # Errors
    /// The host's I/O failed: the record then stands for less than is here.
    pub fn close_record(&self, record: &CopyRecord) -> io::Result<()> {
        record.checkpoint(true, || self.image.flush())
    }

    /// The guest came and nothing is missing: from now on [`Volume::fresh`] records what it writes, and late arrivals are
    /// dropped.
    ///
    /// # Panics
    /// A guest's request is in flight.
    pub fn begin_visit(&self) {
        self.change_to(Arrivals::Late);
        self.fresh.start();
    }

    /// The guest came and lacks `todo`: as [`Volume::begin_visit`], but each missing block is fetched when the guest needs
    /// it, and stored when it arrives. With an empty `todo` the volume says [`Fetch::whole`] at once.
    ///
    /// # Panics
    /// `todo` is of another universe than this volume's blocks, or a guest's request is in flight.
    pub fn begin_pull(&self, todo: UnitSet<Block>, fetch: Arc<dyn Fetch>) {
        assert_eq!(todo.len(), self.blocks(), "the missing set is not of this volume");
        let pull = Arc::new(Pull::new(self.block_bytes, &todo, fetch));
        self.change_to(Arrivals::Merged(Arc::clone(&pull)));
        self.fresh.start();
        self.pulling.store(pull.missing() > 0, SeqCst);
        pull.say_if_whole();
    }

    pub(super) fn change_to(&self, next: Arrivals) {
        assert_eq!(self.in_flight(), 0, "the guest is running on the disk whose state changes");
        let mut arrivals = self.arrivals.write().unwrap_or_else(PoisonError::into_inner);
        self.pulling.store(false, SeqCst);
        *arrivals = next;
    }

    /// Ends the pull phase if nothing is missing any more: from then on the guest takes no lock. To be called while
    /// nobody can begin another: with a guest's request in flight, or with the arrivals' lock held.
    pub(super) fn note_progress(&self, pull: &Pull) {
        if pull.missing() == 0 {
            self.pulling.store(false, SeqCst);
        }
    }

    /// Stores bytes before the guest is here, at any offset: the disk's first content. Not the guest's write, and not
    /// marked.
    ///
    /// # Errors
    /// The guest has come, the range lies beyond the disk, or the host's I/O failed.
    pub fn receive(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.covering(offset, data.len() as u64)?;
        match &*self.arrivals.read().unwrap_or_else(PoisonError::into_inner) {
            Arrivals::Wanted(_) => self.image.write(offset, Content::Data(data)),
            Arrivals::Merged(_) | Arrivals::Late | Arrivals::Remote(_) => Err(invalid(format!(
                "{} is its guest's: the host writes no more than arriving blocks to it",
                self.path().display()
            ))),
        }
    }

    /// Stores blocks that came from the source, pushed or fetched, by the rules of the phase. Returns the blocks that the
    /// guest had caused to be fetched, each with the nanoseconds from the request to now.
    ///
    /// # Errors
    /// The extent lies beyond the disk, `data` has another length, or the host's I/O failed; what was not stored is still
    /// missing.
    pub fn arrive(&self, extent: Extent, data: &[u8]) -> io::Result<Vec<(u64, u64)>> {
        self.check_extent(extent, data.len() as u64)?;
        self.store(extent, Content::Data(data))
    }

    /// As [`Volume::arrive`], for blocks of zeroes.
    ///
    /// # Errors
    /// As [`Volume::arrive`].
    pub fn arrive_zeroes(&self, extent: Extent) -> io::Result<Vec<(u64, u64)>> {
        let length = extent.count.saturating_mul(self.block_bytes);
        self.check_extent(extent, length)?;
        self.store(extent, Content::Zeroes { length, mode: A_HOLE_WILL_DO })
    }

    /// Stores what came, its length checked, by the rules of the phase.
    pub(crate) fn store(&self, extent: Extent, content: Content<'_>) -> io::Result<Vec<(u64, u64)>> {
        let arrivals = self.arrivals.read().unwrap_or_else(PoisonError::into_inner);
        match &*arrivals {
            Arrivals::Wanted(record) => {
                let write = || self.image.write(extent.start * self.block_bytes, content);
                match record {
                    None => write()?,
                    Some(record) => record.storing(extent, write, || self.image.flush())?,
                }
                Ok(Vec::new())
            }
            Arrivals::Merged(pull) => {
                let result = pull.arrive(&self.image, extent, content);
                self.note_progress(pull);
                let pull = Arc::clone(pull);
                drop(arrivals);
                pull.say_if_whole();
                result
            }
            Arrivals::Late | Arrivals::Remote(_) => {
                self.dropped.fetch_add(extent.count, SeqCst);
                Ok(Vec::new())
            }
        }
    }

    /// As [`Volume::arrive`], if that needs no waiting: before the guest is here.
    pub(crate) fn try_arrive_now(&self, extent: Extent, data: &[u8]) -> io::Result<Now> {
        self.check_extent(extent, data.len() as u64)?;
        let arrivals = match self.arrivals.try_read() {
            Ok(arrivals) => arrivals,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(Now::WouldBlock),
        };
        match &*arrivals {
            Arrivals::Wanted(record) => {
                let write = || self.image.try_write_now(extent.start * self.block_bytes, data);
                match record {
                    None => write(),
                    Some(record) => record.try_storing_now(extent, write),
                }
            }
            Arrivals::Merged(_) | Arrivals::Late | Arrivals::Remote(_) => Ok(Now::WouldBlock),
        }
    }

    /// The runs of an extent that a prefetch is to fetch: missing, and not on their way already. Who asks must fetch them,
    /// or end the pulling ([`Volume::fail_pull`]): a guest that comes to need one waits for that.
    pub fn begin_prefetch(&self, extent: Extent) -> Vec<Extent> {
        self.merging(|pull| pull.begin_prefetch(extent)).unwrap_or_default()
    }

    /// How many blocks are missing; 0 outside the pull phase.
    pub fn missing(&self) -> u64 {
        self.merging(Pull::missing).unwrap_or(0)
    }

    /// The blocks that are missing; empty outside the pull phase.
    pub fn todo(&self) -> UnitSet<Block> {
        self.merging(Pull::todo).unwrap_or_else(|| UnitSet::empty(self.blocks()))
    }

    /// How many blocks arrived in vain: they were here, by an earlier arrival or the guest's own write.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(SeqCst) + self.merging(Pull::dropped).unwrap_or(0)
    }

    /// The missing blocks can't be had any more: guests that wait for one, or come to need one, get an error. Blocks that
    /// are here go on to be served.
    pub fn fail_pull(&self, reason: &str) {
        self.merging(|pull| pull.fail(reason));
    }

    fn merging<T>(&self, look: impl FnOnce(&Pull) -> T) -> Option<T> {
        match &*self.arrivals.read().unwrap_or_else(PoisonError::into_inner) {
            Arrivals::Merged(pull) => Some(look(pull)),
            Arrivals::Wanted(_) | Arrivals::Late | Arrivals::Remote(_) => None,
        }
    }
}
