//! The disk's lanes: NBD in both directions over the link. The source writes what its schedule pushes to the
//! destination's export; the destination reads what its guest needs from the source's.

use super::DriverError;
use super::offer_lane::OfferLane;
use crate::core::Run;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use whimbrel_disk::{DIGEST_BYTES, Fetch, IncomingExport, OutgoingExport, PulledAs, Volume, digests};
use whimbrel_model::event::Sent;
use whimbrel_model::{ByteRate, Extent};
use whimbrel_nbd::protocol::CONTEXT_ALLOCATION;
use whimbrel_nbd::{Client, ClientOptions, Exports, Shutdown, ZeroMode, serve_connection};
use whimbrel_wire::{AsyncLinkStream, Bucket, Class, clock};

/// The most bytes of one NBD write, so that a demand reply never waits for long behind one.
const PIECE_BYTES: u64 = 256 << 10;

/// Writes in flight: enough to cover a round trip, little enough to bound the memory.
const PIECES_IN_FLIGHT: usize = 16;

/// Runs of blocks to be pushed.
#[derive(Debug)]
pub(super) struct DiskJob {
    pub(super) job: u64,
    pub(super) runs: Vec<Run>,
    pub(super) limit: Option<ByteRate>,
    /// Digests go first.
    pub(super) offered: bool,
}

/// The pushing end.
pub(super) struct DiskSender {
    pub(super) volume: Arc<Volume>,
    /// Where digests are offered; `None`: none ever are.
    pub(super) offers: Option<OfferLane>,
}

impl DiskSender {
    /// Works off jobs until their sender is gone. A job counts as sent once the destination has acknowledged all of it.
    ///
    /// # Errors
    /// The link, the destination's disk or this one's failed.
    pub(super) async fn run(
        self,
        stream: AsyncLinkStream,
        mut jobs: UnboundedReceiver<DiskJob>,
        sent: impl Fn(u64, Sent),
    ) -> Result<(), DriverError> {
        let client = Client::connect(stream, "", ClientOptions::default()).await?;
        let slots = Arc::new(Semaphore::new(PIECES_IN_FLIGHT));
        let limit = Arc::new(Bucket::unlimited());
        let mut limit_set = None;
        let mut working: JoinSet<Result<(u64, Sent), DriverError>> = JoinSet::new();
        loop {
            tokio::select! {
                job = jobs.recv() => match job {
                    None => break,
                    Some(job) => {
                        if limit_set != job.limit {
                            limit_set = job.limit;
                            limit.set_rate(clock::now(), job.limit);
                        }
                        let pusher = Pusher {
                            client: client.clone(),
                            volume: Arc::clone(&self.volume),
                            limit: Arc::clone(&limit),
                            offers: self.offers.clone().filter(|_| job.offered),
                        };
                        working.spawn(push(pusher, Arc::clone(&slots), job));
                    }
                },
                Some(done) = working.join_next() => {
                    let (job, what) = done.map_err(std::io::Error::other)??;
                    sent(job, what);
                }
            }
        }
        client.disconnect().await;
        Ok(())
    }
}

/// What pushes one job.
#[derive(Clone)]
struct Pusher {
    client: Client,
    volume: Arc<Volume>,
    limit: Arc<Bucket>,
    /// Where digests go first; `None`: content goes at once.
    offers: Option<OfferLane>,
}

/// Pushes one job's runs; holes go as zeroes without content.
async fn push(pusher: Pusher, slots: Arc<Semaphore>, job: DiskJob) -> Result<(u64, Sent), DriverError> {
    let mut pieces: JoinSet<Result<Sent, DriverError>> = JoinSet::new();
    for run in &job.runs {
        for (piece, is_data) in pusher.pieces(run.extent)? {
            let slot = Arc::clone(&slots).acquire_owned().await.map_err(std::io::Error::other)?;
            let (pusher, again) = (pusher.clone(), run.again);
            pieces.spawn(async move {
                let mut sent = Sent::default();
                pusher.push_piece(piece, is_data, &mut sent).await?;
                if again {
                    (sent.again_units, sent.first_units) = (sent.first_units, 0);
                    (sent.again_bytes, sent.first_bytes) = (sent.first_bytes, 0);
                }
                drop(slot);
                Ok(sent)
            });
        }
    }
    let mut sent = Sent::default();
    while let Some(piece) = pieces.join_next().await {
        sent.add(&piece.map_err(std::io::Error::other)??);
    }
    Ok((job.job, sent))
}

impl Pusher {
    /// The extent in order, cut into pieces of data and into holes.
    fn pieces(&self, extent: Extent) -> Result<Vec<(Extent, bool)>, DriverError> {
        let most = (PIECE_BYTES / self.volume.block_bytes()).max(1);
        let parts = with_holes(extent, &self.volume.data_extents(extent)?).into_iter();
        Ok(parts
            .flat_map(|(part, is_data)| cut(part, if is_data { most } else { u64::MAX }).map(move |p| (p, is_data)))
            .collect())
    }

    /// Sends a piece, and counts it as sent for the first time.
    async fn push_piece(&self, piece: Extent, is_data: bool, sent: &mut Sent) -> Result<(), DriverError> {
        // The guest may hold it, whose write then has to reach the destination first.
        let claim = tokio::task::block_in_place(|| self.volume.begin_push(piece));
        match (claim, &self.offers) {
            (None, Some(offers)) if is_data => self.offer_part(offers, piece, sent).await,
            (None, _) => self.push_part(piece, is_data, sent).await,
            (Some(claim), _) => {
                for run in claim.uncopied() {
                    // What was a hole may have been written until the claim.
                    for (part, is_data) in self.pieces(run)? {
                        self.push_part(part, is_data, sent).await?;
                    }
                }
                claim.done();
                Ok(())
            }
        }
    }

    /// Sends one stretch of data, or of zeroes, and counts it.
    async fn push_part(&self, extent: Extent, is_data: bool, sent: &mut Sent) -> Result<(), DriverError> {
        sent.first_units += extent.count;
        if is_data {
            sent.raw_units += extent.count;
            return self.write(extent, self.read(extent)?, sent).await;
        }
        sent.zero_units += extent.count;
        let (offset, length) = (extent.start * self.volume.block_bytes(), extent.count * self.volume.block_bytes());
        let mode = ZeroMode { may_trim: true, ..ZeroMode::default() };
        Ok(self.client.write_zeroes(offset, length, mode).await?)
    }

    /// Offers the digests of one stretch of data, sends what the destination lacks of it, and counts both.
    async fn offer_part(&self, offers: &OfferLane, extent: Extent, sent: &mut Sent) -> Result<(), DriverError> {
        let bytes = self.volume.block_bytes();
        let data = self.read(extent)?;
        let names = tokio::task::block_in_place(|| digests(&data, bytes));
        let lacking = offers.lacking(extent, names).await?;
        let lacks: u64 = lacking.iter().map(|run| run.count).sum();
        let held = extent.count - lacks;
        sent.first_units += extent.count;
        sent.raw_units += lacks;
        sent.reference_units += held;
        sent.reference_bytes += held * DIGEST_BYTES as u64;
        sent.offer_bytes += lacks * DIGEST_BYTES as u64;
        sent.first_bytes += extent.count * DIGEST_BYTES as u64;
        for run in lacking {
            let (from, to) = ((run.start - extent.start) * bytes, (run.end() - extent.start) * bytes);
            let mut content = self.client.take_buffer((to - from) as usize);
            content.copy_from_slice(&data[from as usize..to as usize]);
            self.write(run, content, sent).await?;
        }
        self.client.give_buffer(data);
        Ok(())
    }

    fn read(&self, extent: Extent) -> Result<Vec<u8>, DriverError> {
        let mut buffer = self.client.take_buffer((extent.count * self.volume.block_bytes()) as usize);
        // From the page cache as a rule; where the disk must be waited for, so must the push.
        tokio::task::block_in_place(|| self.volume.read_blocks(extent, &mut buffer))?;
        Ok(buffer)
    }

    async fn write(&self, extent: Extent, content: Vec<u8>, sent: &mut Sent) -> Result<(), DriverError> {
        self.limit.admit_async(content.len() as u64, Class::Bulk).await;
        sent.first_bytes += content.len() as u64;
        Ok(self.client.write(extent.start * self.volume.block_bytes(), content, false).await?)
    }
}

/// The extent in order, cut into data and holes.
fn with_holes(extent: Extent, data: &[Extent]) -> Vec<(Extent, bool)> {
    let mut parts = Vec::new();
    let mut at = extent.start;
    let hole = |from: u64, to: u64, parts: &mut Vec<(Extent, bool)>| {
        if from < to {
            parts.push((Extent { start: from, count: to - from }, false));
        }
    };
    for part in data {
        hole(at, part.start, &mut parts);
        parts.push((*part, true));
        at = part.end();
    }
    hole(at, extent.end(), &mut parts);
    parts
}

/// The extent in pieces of at most `most` blocks.
fn cut(extent: Extent, most: u64) -> impl Iterator<Item = Extent> {
    let mut start = extent.start;
    std::iter::from_fn(move || {
        let count = (extent.end() - start).min(most);
        let piece = Extent { start, count };
        start += count;
        (count > 0).then_some(piece)
    })
}

/// Serves the source's disk to the destination's pulls; `pulled` hears of what was read.
pub(super) async fn serve_pulls(
    stream: AsyncLinkStream,
    volume: Arc<Volume>,
    pulled: impl Fn(Extent, PulledAs) + Send + Sync + 'static,
) {
    let export = OutgoingExport::new(volume, pulled);
    let exports = Arc::new(Exports::single(Arc::new(export)));
    // How the connection ends is told by the control connection.
    let _ = serve_connection(stream, exports, Shutdown::never()).await;
}

/// Serves the destination's disk to the source's pushes; `arrived` hears of what the guest had waited for.
///
/// # Errors
/// The connection ended with an error of the protocol or the link.
pub(super) async fn serve_pushes(
    stream: AsyncLinkStream,
    volume: Arc<Volume>,
    arrived: impl Fn(Extent, &[(u64, u64)]) + Send + Sync + 'static,
) -> Result<(), DriverError> {
    let export = IncomingExport::new(volume, arrived);
    let exports = Arc::new(Exports::single(Arc::new(export)));
    serve_connection(stream, exports, Shutdown::never()).await?;
    Ok(())
}

/// The destination's pulls: requests of the guest go out over NBD, answers go into the volume.
pub(super) struct Puller {
    requests: UnboundedSender<u64>,
    whole: Box<dyn Fn() + Send + Sync>,
}

/// What is heard of pulls.
pub(super) trait Pulled: Clone + Send + Sync + 'static {
    /// Blocks that the guest had waited for were stored, with the nanoseconds that each wait took; `in_flight`: by a push
    /// that overtook the fetch.
    fn arrived(&self, waited: &[(u64, u64)], in_flight: bool);
    /// Nothing is missing any more.
    fn whole(&self);
    /// A pull failed: the guest can't have its block.
    fn failed(&self, error: DriverError);
}

impl Puller {
    /// Answers requests until this is dropped.
    pub(super) fn start(
        runtime: &tokio::runtime::Handle,
        client: Client,
        volume: Arc<Volume>,
        news: impl Pulled,
    ) -> Arc<Self> {
        let (requests, wanted) = unbounded_channel();
        let told = news.clone();
        runtime.spawn(pull(client, volume, wanted, news));
        Arc::new(Puller { requests, whole: Box::new(move || told.whole()) })
    }
}

impl Fetch for Puller {
    fn fetch(&self, block: u64) {
        // Whoever ended the pulling has failed the volume's waits too.
        let _ = self.requests.send(block);
    }

    fn whole(&self) {
        (self.whole)();
    }
}

/// Connects to the other host's export.
///
/// # Errors
/// The link failed, or the source broke the protocol.
pub(super) async fn connect_to_export(stream: AsyncLinkStream) -> Result<Client, DriverError> {
    let contexts = vec![CONTEXT_ALLOCATION.to_owned()];
    Ok(Client::connect(stream, "", ClientOptions { contexts, ..ClientOptions::default() }).await?)
}

async fn pull(client: Client, volume: Arc<Volume>, mut wanted: UnboundedReceiver<u64>, news: impl Pulled) {
    let block_bytes = volume.block_bytes();
    while let Some(block) = wanted.recv().await {
        let (client, volume, news) = (client.clone(), Arc::clone(&volume), news.clone());
        tokio::spawn(async move {
            let arrival = async {
                let data = client.read(block * block_bytes, block_bytes as usize).await?;
                let extent = Extent { start: block, count: 1 };
                let waited = tokio::task::block_in_place(|| volume.arrive(extent, &data))?;
                client.give_buffer(data);
                Ok::<_, DriverError>(waited)
            };
            match arrival.await {
                Ok(waited) => news.arrived(&waited, false),
                Err(error) => news.failed(error),
            }
        });
    }
    client.disconnect().await;
}
