//! The lane of offers: digests of blocks cross to the destination, which answers with what it holds nowhere.
//!
//! Answers come in the order of the offers, of which many are on their way: none waits for another's round trip.

use super::DriverError;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use whimbrel_disk::{ContentIndex, Volume};
use whimbrel_model::Extent;
use whimbrel_wire::codec::{read_frame_async, write_frame_async};
use whimbrel_wire::{AsyncLinkStream, WireError};

/// Blocks whose digests are attached.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Offered {
    start: u64,
    count: u64,
}

/// The runs of them whose content must follow: their starts and lengths.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lacking {
    runs: Vec<(u64, u64)>,
}

struct Offer {
    extent: Extent,
    digests: Vec<u8>,
    answer: oneshot::Sender<Vec<Extent>>,
}

type Awaited = (Extent, oneshot::Sender<Vec<Extent>>);

/// The source's end. Clones share it.
#[derive(Clone)]
pub(super) struct OfferLane {
    offers: UnboundedSender<Offer>,
}

impl OfferLane {
    /// Passes offers on until the last clone is dropped.
    pub(super) fn start(runtime: &tokio::runtime::Handle, stream: AsyncLinkStream) -> Self {
        let (offers, to_do) = unbounded_channel();
        runtime.spawn(pass_on(stream, to_do));
        OfferLane { offers }
    }

    /// What the destination lacks of these blocks; the others it has taken over from what it holds.
    ///
    /// # Errors
    /// The lane has ended.
    pub(super) async fn lacking(&self, extent: Extent, digests: Vec<u8>) -> Result<Vec<Extent>, DriverError> {
        let gone = || {
            let why = std::io::Error::new(std::io::ErrorKind::BrokenPipe, "the lane of offers has ended");
            DriverError::Io(why)
        };
        let (answer, answered) = oneshot::channel();
        self.offers.send(Offer { extent, digests, answer }).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }
}

/// How it ends, those who wait for answers learn by their not coming.
async fn pass_on(stream: AsyncLinkStream, mut offers: UnboundedReceiver<Offer>) {
    let (mut read, mut write) = stream.into_split();
    let (awaited, to_come) = unbounded_channel();
    let hearing = tokio::spawn(async move { hear(&mut read, to_come).await });
    while let Some(Offer { extent, digests, answer }) = offers.recv().await {
        let offered = Offered { start: extent.start, count: extent.count };
        if awaited.send((extent, answer)).is_err() || write_frame_async(&mut write, &offered, &[digests]).await.is_err()
        {
            break;
        }
    }
    // The destination ends its side at this, and with it the hearing.
    drop((awaited, write));
    let _ = hearing.await;
}

async fn hear(
    stream: &mut whimbrel_wire::LinkReadHalf,
    mut to_come: UnboundedReceiver<Awaited>,
) -> Result<(), DriverError> {
    while let Some((extent, answer)) = to_come.recv().await {
        let (Lacking { runs }, _) = read_frame_async(stream).await?;
        let runs: Vec<Extent> = runs.into_iter().map(|(start, count)| Extent { start, count }).collect();
        let mut at = extent.start;
        for run in &runs {
            let ends = run.start.checked_add(run.count).filter(|end| run.start >= at && *end <= extent.end());
            let beyond = || DriverError::Protocol(format!("{run:?} is lacking of {extent:?}"));
            at = ends.ok_or_else(beyond)?;
        }
        // A job that was given up waits no more.
        let _ = answer.send(runs);
    }
    Ok(())
}

/// The destination's end, until the source ends the lane: takes over what it holds; `arrived` hears of what the guest had
/// waited for.
///
/// # Errors
/// The link or the disk failed, or the source broke the protocol.
pub(super) async fn serve_offers(
    mut stream: AsyncLinkStream,
    volume: Arc<Volume>,
    arrived: impl Fn(&[(u64, u64)]),
) -> Result<(), DriverError> {
    let of = Arc::clone(&volume);
    let index = tokio::task::spawn_blocking(move || ContentIndex::of(&of)).await;
    let mut index = index.map_err(std::io::Error::other)??;
    loop {
        let (Offered { start, count }, attached) = match read_frame_async(&mut stream).await {
            Err(WireError::Closed) => return Ok(()),
            offer => offer?,
        };
        let [digests] = &attached[..] else {
            return Err(DriverError::Protocol(format!("an offer with {} attachments", attached.len())));
        };
        let extent = Extent { start, count };
        let taken = tokio::task::block_in_place(|| index.take_over(&volume, extent, digests))?;
        arrived(&taken.waited);
        let runs = taken.lacking.into_iter().map(|run| (run.start, run.count)).collect();
        write_frame_async(&mut stream, &Lacking { runs }, &[]).await?;
    }
}
