//! What of a copy of a disk is durably here, for another attempt to move only the rest: it outlives the process that fills
//! the copy, and the host's power.
//!
//! The set in the file is what *lacks*. It is a [`BitmapFile`], so its rule turns round: a block is lacking if it was at the
//! last checkpoint, or lies in a region that anything has arrived in since.
//!
//! | step of an arrival                          | what a crash after it leaves                                  |
//! |---------------------------------------------|---------------------------------------------------------------|
//! | its region's intent is durable              | all of the region counts as lacking, whatever the image holds |
//! | the block is in the image                   | the same                                                      |
//! | a checkpoint: the image is flushed, and only then is the block's bit gone from the file | the block is here, durably |
//!
//! An intent for regions of which every block lacks says nothing new, so it is made for a stretch of them at once: what is
//! pushed in order costs a durable record a stretch. Checkpoints are made after every stretch that has arrived.
//!
//! Where the image can't be flushed, what of the host's cache is lost isn't told, and the next flush may succeed as if nothing
//! had been: every block then counts as lacking until it arrives again.
//!
//! A copy stands for a point in its disk's history, of which whoever keeps the copy tells ([`CopyRecord::about`]). That a
//! block is here says that it is as it was sent last; that it has not been written since, only its source knows.

use crate::bitmap::BlockBitmap;
use crate::bitmap_file::{BitmapFile, Found};
use crate::error::DiskError;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};
use whimbrel_model::{Block, Extent, UnitSet};
use whimbrel_nbd::Now;

/// The most that arrives between two checkpoints, and that one intent is made for.
const STRETCH_BYTES: u64 = 64 << 20;
/// Of a small disk a stretch is this part.
const STRETCHES: u64 = 16;

/// The record of a copy, open.
#[derive(Debug)]
pub struct CopyRecord {
    file: BitmapFile,
    lacking: BlockBitmap,
    stretch_blocks: u64,
    /// Blocks that have arrived since the last checkpoint.
    arrived: AtomicU64,
    /// Held by a checkpoint from its first flush on: of a loss one flush is told, and no other may succeed before that is known.
    flushing: Mutex<()>,
}

impl CopyRecord {
    /// Creates the record of a copy that lacks these blocks and has the others durably; it returns when the record is
    /// durable, name and all.
    ///
    /// # Errors
    /// There is a file of that name, or the host's I/O failed.
    pub fn create(path: &Path, block_bytes: u64, about: [u64; 2], lacking: &UnitSet<Block>) -> Result<Self, DiskError> {
        let file = BitmapFile::create(path, block_bytes, about, lacking)?;
        Ok(Self::over(file, block_bytes, lacking))
    }

    /// Opens the record of a copy of a disk of so many blocks; `None` if it is torn, so that nothing is known of the copy.
    ///
    /// # Errors
    /// The file is another disk's or in use, or the host's I/O failed.
    pub fn open(path: &Path, blocks: u64, block_bytes: u64) -> Result<Option<Self>, DiskError> {
        let (file, lacking, found) = BitmapFile::open(path, blocks, block_bytes)?;
        let known = matches!(found, Found::Clean | Found::Crashed);
        Ok(known.then(|| Self::over(file, block_bytes, &lacking)))
    }

    fn over(file: BitmapFile, block_bytes: u64, lacking: &UnitSet<Block>) -> Self {
        let blocks = BlockBitmap::new(lacking.len());
        blocks.merge(lacking);
        let stretch_blocks = (STRETCH_BYTES / block_bytes).min(lacking.len().div_ceil(STRETCHES)).max(1);
        CopyRecord { file, lacking: blocks, stretch_blocks, arrived: AtomicU64::new(0), flushing: Mutex::new(()) }
    }

    /// What a record says that its copy is of, without a change to it; `None` if it is no whole record.
    pub fn about_of(path: &Path) -> Option<[u64; 2]> {
        BitmapFile::about_of(path)
    }

    /// What the copy is of, as it was said when the record was made.
    pub fn about(&self) -> [u64; 2] {
        self.file.about()
    }

    /// The record's file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// What the copy lacks, as far as this process knows; after a crash it may be more.
    pub fn lacking(&self) -> UnitSet<Block> {
        self.lacking.peek()
    }

    /// Stores an arrival by `store`, and makes a checkpoint when one is due, for which `flush` makes the image durable.
    ///
    /// # Errors
    /// Those of `store` and `flush`, after which the blocks count as lacking, and those of the record.
    pub fn storing(
        &self,
        extent: Extent,
        store: impl FnOnce() -> io::Result<()>,
        flush: impl Fn() -> io::Result<()>,
    ) -> io::Result<()> {
        let intent = self.file.intend_also(extent, || self.ahead(extent))?;
        let stored = store();
        self.note(extent, stored.is_ok());
        drop(intent);
        stored?;
        if !self.is_due() {
            return Ok(());
        }
        let _flushing = self.flushing();
        // Who had to wait for another's checkpoint mostly needs none any more.
        if self.is_due() { self.write_down(false, flush) } else { Ok(()) }
    }

    /// As [`CopyRecord::storing`], if that needs no waiting.
    ///
    /// # Errors
    /// Those of `store`.
    pub fn try_storing_now(&self, extent: Extent, store: impl FnOnce() -> io::Result<Now>) -> io::Result<Now> {
        if self.is_due() {
            return Ok(Now::WouldBlock);
        }
        let Some((_intent, 1)) = self.file.try_intend([extent]) else { return Ok(Now::WouldBlock) };
        let stored = store();
        // Of one that would have to wait a part may be in the image.
        self.note(extent, matches!(stored, Ok(Now::Done)));
        stored
    }

    fn note(&self, extent: Extent, stored: bool) {
        if stored {
            self.lacking.clear(extent);
            self.arrived.fetch_add(extent.count, SeqCst);
        } else {
            self.lacking.mark(extent);
        }
    }

    fn is_due(&self) -> bool {
        self.arrived.load(SeqCst) >= self.stretch_blocks
    }

    /// The blocks from `extent` on of which every one lacks, up to a stretch.
    fn ahead(&self, extent: Extent) -> Extent {
        let most = Extent { start: extent.start, count: self.stretch_blocks.max(extent.count) };
        let lacks = self.lacking.run_in(most).filter(|run| run.start == extent.start);
        lacks.filter(|run| run.count > extent.count).unwrap_or(extent)
    }

    /// Writes down what has arrived, once `flush` has made the image durable. `clean`: it is the last.
    ///
    /// # Errors
    /// `flush` failed, after which every block counts as lacking; or the record can't be written, which then stands for less
    /// than is here.
    pub fn checkpoint(&self, clean: bool, flush: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let _flushing = self.flushing();
        self.write_down(clean, flush)
    }

    fn flushing(&self) -> MutexGuard<'_, ()> {
        self.flushing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_down(&self, clean: bool, flush: impl Fn() -> io::Result<()>) -> io::Result<()> {
        // Most of it while others go on storing, up to the next stretch; what comes meanwhile is little.
        self.arrived.store(0, SeqCst);
        let most = flush();
        self.file.checkpoint(clean, || {
            // Only here, while nobody stores: what is being stored would count as here afterwards.
            let flushed = most.and_then(|()| flush());
            flushed.inspect_err(|_| self.lacking.mark(Extent { start: 0, count: self.lacking.len() }))?;
            Ok(self.lacking.peek())
        })
    }
}
