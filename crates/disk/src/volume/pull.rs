//! The pull phase: the guest runs here while blocks are missing (Luo et al. 2008, post-copy).
//!
//! | event                                       | missing block                          | block that is here |
//! |---------------------------------------------|----------------------------------------|--------------------|
//! | guest write that covers the whole block     | stored, no longer missing, no fetch    | stored             |
//! | guest write that covers a part of it        | fetched, waited for, then merged       | stored             |
//! | guest read                                  | fetched and waited for                 | served             |
//! | the block arrives, pushed or fetched        | stored, no longer missing, waiters wake | dropped            |
//! | a prefetch of it is about to begin          | on its way: no request is sent for it  | not fetched        |
//!
//! A bit of `todo` is only ever cleared, and only under the lock of the block's stripe, after the block has been stored.
//! So who sees it clear needs no lock: the block is here, and no arrival will overwrite it any more. Who sees it set
//! takes the stripe's lock and looks again.

use super::image::{Content, Image};
use crate::bitmap::BlockBitmap;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;
use whimbrel_model::{Block, Extent, UnitSet};

/// Asks the source for blocks that the guest waits for.
///
/// A closure over the block's number is one.
pub trait Fetch: Send + Sync {
    /// Asks for a block. Must not wait for it: it is to come by [`arrive`](super::Volume::arrive). Called once a block,
    /// from the thread of the guest that wants it.
    fn fetch(&self, block: u64);

    /// Nothing is missing any more. Called once, from the thread that made it so, perhaps the guest's.
    fn whole(&self) {}
}

impl<F: Fn(u64) + Send + Sync> Fetch for F {
    fn fetch(&self, block: u64) {
        self(block);
    }
}

/// Blocks that share a stripe's lock with their neighbors: 64 KiB of the default block size, so that an arrival of many
/// blocks takes few locks and a guest waits for no more than one such write.
const GROUP_BLOCKS: u64 = 16;
const STRIPES: u64 = 64;

#[derive(Default)]
struct Stripe {
    /// The blocks that are on their way because of a request; since when a guest waits, where one does.
    asked: Mutex<BTreeMap<u64, Option<Instant>>>,
    news: Condvar,
}

impl Stripe {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Option<Instant>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the destination lacks, and who waits for what.
pub(crate) struct Pull {
    block_bytes: u64,
    todo: BlockBitmap,
    missing: AtomicU64,
    dropped: AtomicU64,
    stripes: Box<[Stripe]>,
    fetch: Arc<dyn Fetch>,
    failed: OnceLock<String>,
    said_whole: AtomicBool,
}

impl Pull {
    pub(crate) fn new(block_bytes: u64, todo: &UnitSet<Block>, fetch: Arc<dyn Fetch>) -> Self {
        let bitmap = BlockBitmap::new(todo.len());
        bitmap.merge(todo);
        Pull {
            block_bytes,
            todo: bitmap,
            missing: AtomicU64::new(todo.count()),
            dropped: AtomicU64::new(0),
            stripes: (0..STRIPES).map(|_| Stripe::default()).collect(),
            fetch,
            failed: OnceLock::new(),
            said_whole: AtomicBool::new(false),
        }
    }

    pub(crate) fn missing(&self) -> u64 {
        self.missing.load(SeqCst)
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(SeqCst)
    }

    pub(crate) fn todo(&self) -> UnitSet<Block> {
        self.todo.peek()
    }

    /// Says, once, that nothing is missing. It calls out, so no lock may be held.
    pub(crate) fn say_if_whole(&self) {
        if self.missing() == 0 && !self.said_whole.swap(true, SeqCst) {
            self.fetch.whole();
        }
    }

    /// Makes every guest that waits, or comes to wait, for a missing block fail.
    pub(crate) fn fail(&self, reason: &str) {
        // Only the first reason counts; a second failure is the first one's echo.
        let _ = self.failed.set(reason.to_owned());
        for stripe in &self.stripes {
            drop(stripe.lock());
            stripe.news.notify_all();
        }
    }

    /// A guest's read, of a range that is not empty.
    pub(crate) fn read(&self, image: &Image, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let first = offset / self.block_bytes;
        let end = (offset + buffer.len() as u64).div_ceil(self.block_bytes);
        let rest = |from: u64| Extent { start: from, count: end - from };
        // All requests are sent before the first wait: their round trips overlap.
        let mut at = first;
        while let Some(block) = self.todo.next_in(rest(at)) {
            self.request(block);
            at = block + 1;
        }
        at = first;
        while let Some(block) = self.todo.next_in(rest(at)) {
            self.wait(block)?;
            at = block + 1;
        }
        image.read(offset, buffer)
    }

    /// A guest's write, of a range that is not empty.
    pub(crate) fn write(&self, image: &Image, offset: u64, content: Content<'_>) -> io::Result<()> {
        let bytes = self.block_bytes;
        let end = offset + content.length();
        let in_part = [(offset, offset / bytes), (end, end / bytes)].map(|(edge, block)| {
            let partial = edge % bytes != 0;
            partial.then_some(block)
        });
        in_part.into_iter().flatten().for_each(|block| self.request(block));
        in_part.into_iter().flatten().try_for_each(|block| self.wait(block))?;

        let whole = offset.div_ceil(bytes)..end / bytes;
        if whole.is_empty() {
            return image.write(offset, content);
        }
        let (head_end, tail_start) = (whole.start * bytes, whole.end * bytes);
        if offset < head_end {
            image.write(offset, content.part(0, head_end - offset))?;
        }
        for group in groups(Extent { start: whole.start, count: whole.end - whole.start }) {
            let from = group.start * bytes - offset;
            self.overwrite(image, group, content.part(from, from + group.count * bytes))?;
        }
        if tail_start < end {
            image.write(tail_start, content.part(tail_start - offset, end - offset))?;
        }
        Ok(())
    }

    /// A guest's write of whole blocks, all in one group.
    fn overwrite(&self, image: &Image, group: Extent, content: Content<'_>) -> io::Result<()> {
        let offset = group.start * self.block_bytes;
        if self.todo.next_in(group).is_none() {
            return image.write(offset, content);
        }
        let stripe = self.stripe(group.start);
        let mut asked = stripe.lock();
        image.write(offset, content)?;
        let cleared = self.todo.clear(group);
        asked.retain(|block, _| !group.indices().contains(block));
        drop(asked);
        stripe.news.notify_all();
        self.missing.fetch_sub(cleared, SeqCst);
        Ok(())
    }

    /// Blocks that came from the source: stores those that are missing, drops the others. Returns the blocks that had
    /// been asked for, with the nanoseconds since.
    pub(crate) fn arrive(&self, image: &Image, extent: Extent, content: Content<'_>) -> io::Result<Vec<(u64, u64)>> {
        let mut waited = Vec::new();
        // A block that is missing is written by what makes it no longer missing alone: where all is a hole it stays one.
        let is_here = matches!(content, Content::Zeroes { .. })
            && image.is_zero(extent.start * self.block_bytes, extent.count * self.block_bytes);
        for group in groups(extent) {
            let mut stored = 0;
            let mut result = Ok(());
            if self.todo.next_in(group).is_some() {
                let stripe = self.stripe(group.start);
                let mut asked = stripe.lock();
                while let Some(run) = self.todo.run_in(group) {
                    let from = (run.start - extent.start) * self.block_bytes;
                    let part = content.part(from, from + run.count * self.block_bytes);
                    result = if is_here { Ok(()) } else { image.write(run.start * self.block_bytes, part) };
                    if result.is_err() {
                        break;
                    }
                    stored += self.todo.clear(run);
                    for block in run.indices() {
                        let since = asked.remove(&block).flatten();
                        waited.extend(since.map(|since| (block, since.elapsed().as_nanos() as u64)));
                    }
                }
                drop(asked);
                stripe.news.notify_all();
                self.missing.fetch_sub(stored, SeqCst);
            }
            result?;
            self.dropped.fetch_add(group.count - stored, SeqCst);
        }
        Ok(waited)
    }

    fn stripe(&self, block: u64) -> &Stripe {
        &self.stripes[(block / GROUP_BLOCKS % STRIPES) as usize]
    }

    /// Asks for a block that is missing, unless that was done.
    fn request(&self, block: u64) {
        {
            let mut asked = self.stripe(block).lock();
            if !self.todo.is_set(block) || self.failed.get().is_some() {
                return;
            }
            let on_its_way = asked.contains_key(&block);
            asked.entry(block).or_default().get_or_insert_with(Instant::now);
            if on_its_way {
                return;
            }
        }
        // Without the lock: the answer may come before this returns.
        self.fetch.fetch(block);
    }

    /// The runs of an extent that are to be prefetched: missing, and not on their way. They are on their way from now on.
    pub(crate) fn begin_prefetch(&self, extent: Extent) -> Vec<Extent> {
        let mut runs: Vec<Extent> = Vec::new();
        for group in groups(extent) {
            let mut asked = self.stripe(group.start).lock();
            let mut at = group.start;
            while let Some(block) = self.todo.next_in(Extent { start: at, count: group.end() - at }) {
                at = block + 1;
                if asked.contains_key(&block) {
                    continue;
                }
                asked.insert(block, None);
                match runs.last_mut() {
                    Some(last) if last.end() == block => last.count += 1,
                    _ => runs.push(Extent { start: block, count: 1 }),
                }
            }
        }
        runs
    }

    /// Returns when the block is here.
    fn wait(&self, block: u64) -> io::Result<()> {
        let stripe = self.stripe(block);
        let mut asked = stripe.lock();
        while self.todo.is_set(block) {
            if let Some(reason) = self.failed.get() {
                return Err(io::Error::other(format!("block {block} can't be fetched any more: {reason}")));
            }
            asked = stripe.news.wait(asked).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
}

/// Cuts an extent at the borders of the groups that share a lock.
fn groups(extent: Extent) -> impl Iterator<Item = Extent> {
    let mut start = extent.start;
    std::iter::from_fn(move || {
        let end = ((start / GROUP_BLOCKS + 1) * GROUP_BLOCKS).min(extent.end());
        let group = Extent { start, count: end - start };
        (start < extent.end()).then(|| {
            start = end;
            group
        })
    })
}
