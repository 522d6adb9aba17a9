//! Mirroring: the guest's writes reach the other host before they are acknowledged to the guest.
//!
//! A push reads a block and stores it at the other host; a mirrored write stores its own version there. So that neither
//! overtakes the other with what is older, each *claims* its blocks from before it reads or writes the image until the
//! other host has acknowledged: whoever comes second waits, and finds what the first left.
//!
//! | block    | means                                    | a mirrored write                    | a push        |
//! |----------|------------------------------------------|-------------------------------------|---------------|
//! | copied   | the other host has it as it is here      | goes to the other host              | is needless   |
//! | uncopied | it is yet to be pushed                   | goes too, or (single pass) is left to the push | copies it |
//!
//! Blocks are mirrored whole: a write of a part sends the block that it made. A write whose mirror fails is done here and
//! marked as if there were no mirror; so are all that follow, and the guest doesn't notice.

use super::image::{Content, Image};
use super::{Recorder, Volume};
use crate::bitmap::BlockBitmap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use whimbrel_model::{Block, Extent, Mirroring, UnitSet};

/// Sends mirrored blocks to the other host.
pub trait MirrorSink: Send + Sync {
    /// Returns when the other host has stored them. `again`: it had an older version.
    ///
    /// # Errors
    /// It has not, or it isn't known.
    fn store(&self, extent: Extent, data: &[u8], again: bool) -> io::Result<()>;
}

pub(super) struct Mirror {
    mirroring: Mirroring,
    block_bytes: u64,
    copied: BlockBitmap,
    claimed: Mutex<Vec<Extent>>,
    released: Condvar,
    failed: AtomicBool,
    sink: Arc<dyn MirrorSink>,
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mirror").field("mirroring", &self.mirroring).finish_non_exhaustive()
    }
}

/// Blocks that only its holder may change or push.
struct Claim<'a> {
    mirror: &'a Mirror,
    extent: Extent,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.mirror.release(self.extent);
    }
}

/// A push of blocks under a mirror; until it is dropped the guest's writes to them wait.
pub struct Push {
    mirror: Arc<Mirror>,
    extent: Extent,
}

impl std::fmt::Debug for Push {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Push").field("extent", &self.extent).finish_non_exhaustive()
    }
}

impl Push {
    /// The runs that the other host lacks.
    pub fn uncopied(&self) -> Vec<Extent> {
        self.mirror.runs(self.extent, false)
    }

    /// The other host has acknowledged all of it.
    pub fn done(self) {
        self.mirror.copied.mark(self.extent);
    }
}

impl Drop for Push {
    fn drop(&mut self) {
        self.mirror.release(self.extent);
    }
}

impl Mirror {
    /// Waits until nobody else has a claim on any of these blocks.
    fn claim(&self, extent: Extent) {
        let overlaps = |other: &Extent| other.start < extent.end() && extent.start < other.end();
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        while claimed.iter().any(overlaps) {
            claimed = self.released.wait(claimed).unwrap_or_else(PoisonError::into_inner);
        }
        claimed.push(extent);
    }

    fn release(&self, extent: Extent) {
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = claimed.iter().position(|other| *other == extent) {
            claimed.swap_remove(at);
        }
        drop(claimed);
        self.released.notify_all();
    }

    /// The runs of an extent that are copied, or that are not.
    fn runs(&self, extent: Extent, copied: bool) -> Vec<Extent> {
        let mut runs: Vec<Extent> = Vec::new();
        for block in extent.indices().filter(|block| self.copied.is_set(*block) == copied) {
            match runs.last_mut() {
                Some(last) if last.end() == block => last.count += 1,
                _ => runs.push(Extent { start: block, count: 1 }),
            }
        }
        runs
    }

    /// These blocks, on which the caller has a claim or nobody can have one, are to be pushed (again).
    fn uncopy(&self, extent: Extent) {
        self.copied.clear(extent);
    }

    /// A write that knew of no mirror has changed these blocks. A push that is under way may have read them before: it ends first,
    /// or what it then says of them would stand.
    pub(super) fn uncopy_unclaimed(&self, extent: Extent) {
        self.claim(extent);
        let _claim = Claim { mirror: self, extent };
        self.uncopy(extent);
    }

    /// A guest's write that touches `extent`: here first, then at the other host.
    pub(super) fn write(
        &self,
        image: &Image,
        offset: u64,
        content: Content<'_>,
        extent: Extent,
        dirty: &Recorder,
    ) -> io::Result<()> {
        self.claim(extent);
        let _claim = Claim { mirror: self, extent };
        let written = image.write(offset, content);
        if written.is_err() || self.failed.load(SeqCst) || self.send(image, extent).is_err() {
            self.failed.store(true, SeqCst);
            self.uncopy(extent);
            dirty.mark(extent);
        }
        written
    }

    fn send(&self, image: &Image, extent: Extent) -> io::Result<()> {
        for (again, runs) in [(true, self.runs(extent, true)), (false, self.runs(extent, false))] {
            if !again && self.mirroring == Mirroring::Copied {
                // The pass comes by here yet.
                continue;
            }
            for run in runs {
                let mut data = vec![0; (run.count * self.block_bytes) as usize];
                image.read(run.start * self.block_bytes, &mut data)?;
                self.sink.store(run, &data, again)?;
                self.copied.mark(run);
            }
        }
        Ok(())
    }
}

impl Volume {
    /// Mirrors the guest's writes from now on. `missing`: what the other host lacks, and is yet to be pushed; the guest may
    /// be writing.
    pub fn begin_mirror(&self, mirroring: Mirroring, missing: &UnitSet<Block>, sink: Arc<dyn MirrorSink>) {
        let copied = BlockBitmap::new(self.blocks());
        let mut here = UnitSet::full(self.blocks());
        here.subtract(missing);
        copied.merge(&here);
        let mirror = Mirror {
            mirroring,
            block_bytes: self.block_bytes,
            copied,
            claimed: Mutex::default(),
            released: Condvar::new(),
            failed: AtomicBool::new(false),
            sink,
        };
        let mirror = Arc::new(mirror);
        *self.mirror.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&mirror));
        self.mirrored.store(true, SeqCst);
        // What was written before it began, and is marked, is to be pushed.
        self.dirty.blocks.peek().extents().for_each(|extent| mirror.uncopy(extent));
    }

    /// Mirrors no more. A write that waits for the other host goes on waiting for it: its sink has to fail.
    pub fn end_mirror(&self) {
        self.mirrored.store(false, SeqCst);
        *self.mirror.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A push of these blocks begins; it may have to wait for the guest's mirrored writes. `None`: there is no mirror, and
    /// nothing to be seen to.
    pub fn begin_push(&self, extent: Extent) -> Option<Push> {
        let mirror = self.mirror()?;
        mirror.claim(extent);
        Some(Push { mirror, extent })
    }

    pub(super) fn mirror(&self) -> Option<Arc<Mirror>> {
        if !self.mirrored.load(SeqCst) {
            return None;
        }
        self.mirror.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Deaf;

    impl MirrorSink for Deaf {
        fn store(&self, _: Extent, _: &[u8], _: bool) -> io::Result<()> {
            Ok(())
        }
    }

    struct Gone;

    impl MirrorSink for Gone {
        fn store(&self, _: Extent, _: &[u8], _: bool) -> io::Result<()> {
            Err(io::ErrorKind::NotConnected.into())
        }
    }

    #[test]
    fn a_write_that_outlives_its_attempt_is_pushed_in_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let volume = Volume::create(folder.path().join("disk.raw"), 16 * 4096, 4096).unwrap();
        let (block, all) = (Extent { start: 3, count: 1 }, Extent { start: 0, count: 16 });
        volume.arm();
        volume.begin_mirror(Mirroring::All, &UnitSet::full(16), Arc::new(Gone));
        let first = volume.mirror().unwrap();
        let of_the_first = volume.begin_push(block).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| volume.guest_write(3 * 4096, Content::Data(&[9; 4096])));
            // It waits for the push, and for that has this mirror in its hands too.
            while Arc::strong_count(&first) < 4 {
                std::thread::yield_now();
            }
            volume.stand_by();
            let mut missing = UnitSet::full(16);
            volume.take_into(&mut missing);
            volume.begin_mirror(Mirroring::All, &missing, Arc::new(Deaf));
            volume.begin_push(all).unwrap().done();
            drop(of_the_first);
            writer.join().unwrap().unwrap();
        });
        assert!(volume.take().contains(3));
        assert_eq!(volume.begin_push(block).unwrap().uncopied(), [block]);
    }

    #[test]
    fn what_a_write_on_its_way_has_changed_is_not_copied_by_the_push_that_read_it_before() {
        let folder = tempfile::tempdir().unwrap();
        let volume = Volume::create(folder.path().join("disk.raw"), 16 * 4096, 4096).unwrap();
        let blocks = Extent { start: 3, count: 4 };
        volume.begin_mirror(Mirroring::All, &UnitSet::full(16), Arc::new(Deaf));
        let push = volume.begin_push(Extent { start: 0, count: 8 }).unwrap();
        std::thread::scope(|scope| {
            let (begins, begun) = std::sync::mpsc::channel();
            // The end of a write that began before there was a mirror.
            let volume = &volume;
            let late = scope.spawn(move || {
                begins.send(()).unwrap();
                volume.mark(blocks);
            });
            begun.recv().unwrap();
            // It must wait for the push. If it didn't, it would be over by one of these looks, most likely.
            let over = (0..1000).any(|_| {
                std::thread::yield_now();
                late.is_finished()
            });
            assert!(!over, "it has not waited");
            push.done();
        });
        let again = volume.begin_push(Extent { start: 0, count: 8 }).unwrap();
        assert_eq!(again.uncopied(), [blocks]);
    }
}
