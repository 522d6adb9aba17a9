//! The lane of prefetches: the destination fetches blocks before its guest asks for them. What the source's image holds no
//! content of is asked for once, for all of the disk, and then zeroed here and never fetched.

use super::DriverError;
use super::disk_lane::Pulled;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedReceiver;
use whimbrel_disk::Volume;
use whimbrel_model::{Block, ByteRate, Extent, UnitSet};
use whimbrel_nbd::Client;
use whimbrel_nbd::protocol::{CONTEXT_ALLOCATION, allocation};
use whimbrel_wire::{Bucket, Class, clock};

/// Blocks that are zeroed at a time: a guest that comes to need one waits for no more.
const ZEROED_AT_ONCE: u64 = 4096;

/// Blocks to be fetched before the guest asks for them.
#[derive(Debug)]
pub(super) struct PrefetchJob {
    pub(super) job: u64,
    pub(super) extent: Extent,
    pub(super) limit: Option<ByteRate>,
}

/// Fetches what of each job is missing and not on its way already, until the jobs' sender is gone; `fetched` hears of
/// each job that is done. As many go on at once as there are jobs: how many that are is the core's to say.
pub(super) async fn prefetch(
    client: Client,
    volume: Arc<Volume>,
    mut jobs: UnboundedReceiver<PrefetchJob>,
    news: impl Pulled,
    fetched: impl Fn(u64) + Clone + Send + 'static,
) {
    let limit = Arc::new(Bucket::unlimited());
    let mut limit_set = None;
    let mut zeroes: Option<Arc<UnitSet<Block>>> = None;
    while let Some(PrefetchJob { job, extent, limit: wanted }) = jobs.recv().await {
        if limit_set != wanted {
            limit_set = wanted;
            limit.set_rate(clock::now(), wanted);
        }
        // Not before the first job: only once the guest runs here the source's image is sure not to change any more.
        let zeroes = match &zeroes {
            Some(zeroes) => Arc::clone(zeroes),
            None => match zero_blocks(&client, &volume).await {
                Ok(found) => {
                    let found = Arc::clone(zeroes.insert(Arc::new(found)));
                    let (volume, zeroes, news) = (Arc::clone(&volume), Arc::clone(&found), news.clone());
                    tokio::task::spawn_blocking(move || zero(&volume, &zeroes, &news));
                    found
                }
                Err(error) => return news.failed(error),
            },
        };
        let (client, volume, limit) = (client.clone(), Arc::clone(&volume), Arc::clone(&limit));
        let (news, fetched) = (news.clone(), fetched.clone());
        tokio::spawn(async move {
            for part in without(extent, &zeroes) {
                for run in volume.begin_prefetch(part) {
                    match fetch(&client, &volume, &limit, run).await {
                        Ok(waited) => news.arrived(&waited, true),
                        Err(error) => return news.failed(error),
                    }
                }
            }
            fetched(job);
        });
    }
    client.disconnect().await;
}

async fn fetch(
    client: &Client,
    volume: &Volume,
    limit: &Arc<Bucket>,
    run: Extent,
) -> Result<Vec<(u64, u64)>, DriverError> {
    let (offset, bytes) = (run.start * volume.block_bytes(), run.count * volume.block_bytes());
    limit.admit_async(bytes, Class::Bulk).await;
    let data = client.read(offset, bytes as usize).await?;
    let waited = tokio::task::block_in_place(|| volume.arrive(run, &data))?;
    client.give_buffer(data);
    Ok(waited)
}

/// The blocks of which the source says that they are zeroes.
async fn zero_blocks(client: &Client, volume: &Volume) -> Result<UnitSet<Block>, DriverError> {
    let (blocks, bytes) = (volume.blocks(), volume.block_bytes());
    let mut zeroes = UnitSet::empty(blocks);
    let mut at = 0;
    for extent in client.block_status_all(CONTEXT_ALLOCATION, 0, blocks * bytes).await? {
        let end = at + extent.length;
        let (first, past) = (at.div_ceil(bytes), end / bytes);
        if extent.flags & allocation::ZERO != 0 && first < past {
            zeroes.insert_extent(Extent { start: first, count: past - first });
        }
        at = end;
    }
    Ok(zeroes)
}

/// Zeroes those of the blocks that are missing.
fn zero(volume: &Volume, zeroes: &UnitSet<Block>, news: &impl Pulled) {
    for extent in zeroes.extents() {
        for start in extent.indices().step_by(ZEROED_AT_ONCE as usize) {
            let part = Extent { start, count: ZEROED_AT_ONCE.min(extent.end() - start) };
            for run in volume.begin_prefetch(part) {
                match volume.arrive_zeroes(run) {
                    Ok(waited) => news.arrived(&waited, true),
                    Err(error) => return news.failed(error.into()),
                }
            }
        }
    }
}

/// The parts of an extent that are not in a set.
fn without(extent: Extent, set: &UnitSet<Block>) -> Vec<Extent> {
    let mut parts: Vec<Extent> = Vec::new();
    for block in extent.indices().filter(|block| !set.contains(*block)) {
        match parts.last_mut() {
            Some(last) if last.end() == block => last.count += 1,
            _ => parts.push(Extent { start: block, count: 1 }),
        }
    }
    parts
}
