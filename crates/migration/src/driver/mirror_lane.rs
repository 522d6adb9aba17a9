//! The mirror's lane: the guest's writes to its disk cross to the destination's export before they are acknowledged.

use super::DriverError;
use super::disk_lane::connect_to_export;
use std::io;
use std::sync::mpsc::SyncSender;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use whimbrel_disk::MirrorSink;
use whimbrel_model::Extent;
use whimbrel_model::event::Sent;
use whimbrel_nbd::Client;
use whimbrel_wire::AsyncLinkStream;

/// One write, and who waits for it.
struct Write {
    offset: u64,
    data: Vec<u8>,
    done: SyncSender<io::Result<()>>,
}

/// Passes the writes of the guest's threads to the connection, and its answers back.
pub(super) struct MirrorLane {
    writes: UnboundedSender<Write>,
    sent: Box<dyn Fn(Sent) + Send + Sync>,
}

impl MirrorLane {
    /// Serves writes until this is dropped; `sent` hears of each that is done.
    pub(super) fn start(
        runtime: &tokio::runtime::Handle,
        stream: AsyncLinkStream,
        sent: impl Fn(Sent) + Send + Sync + 'static,
    ) -> std::sync::Arc<Self> {
        let (writes, to_do) = unbounded_channel();
        runtime.spawn(serve(stream, to_do));
        std::sync::Arc::new(MirrorLane { writes, sent: Box::new(sent) })
    }
}

impl MirrorSink for MirrorLane {
    fn store(&self, extent: Extent, data: &[u8], again: bool) -> io::Result<()> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the mirror's connection has ended");
        let bytes = data.len() as u64;
        let block_bytes = bytes / extent.count.max(1);
        let (done, is_done) = std::sync::mpsc::sync_channel(1);
        let write = Write { offset: extent.start * block_bytes, data: data.to_vec(), done };
        self.writes.send(write).map_err(|_| gone())?;
        is_done.recv().map_err(|_| gone())??;
        let mut sent = Sent { raw_units: extent.count, ..Sent::default() };
        if again {
            (sent.again_units, sent.again_bytes) = (extent.count, bytes);
        } else {
            (sent.first_units, sent.first_bytes) = (extent.count, bytes);
        }
        (self.sent)(sent);
        Ok(())
    }
}

/// A connection that fails fails the writes: that the move has failed is told by the others.
async fn serve(stream: AsyncLinkStream, mut writes: UnboundedReceiver<Write>) {
    let connected: Result<Client, DriverError> = connect_to_export(stream).await;
    let Ok(client) = connected else { return };
    while let Some(Write { offset, data, done }) = writes.recv().await {
        let client = client.clone();
        tokio::spawn(async move {
            let stored = client.write(offset, data, false).await;
            // Whoever waited may have been told to give up.
            let _ = done.send(stored.map_err(io::Error::other));
        });
    }
    client.disconnect().await;
}
