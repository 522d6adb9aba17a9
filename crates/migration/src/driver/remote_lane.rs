//! The lane of a disk that stays: the guest's requests cross to the host that keeps the image, and answers come back.
//!
//! It outlives the move: it is there for as long as the guest is away from its disk.

use super::DriverError;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use whimbrel_disk::{RemoteDisk, Volume, VolumeExport};
use whimbrel_nbd::{Client, Exports, NbdError, Shutdown, ZeroMode, serve_connection};
use whimbrel_wire::AsyncLinkStream;

/// What a guest wants of its disk.
enum What {
    Read { offset: u64, length: usize },
    Write { offset: u64, data: Vec<u8> },
    Zeroes { offset: u64, length: u64, mode: ZeroMode },
    Flush,
}

/// One request, and who waits for its answer.
struct Request {
    what: What,
    done: SyncSender<io::Result<Vec<u8>>>,
}

/// Passes the requests of the guest's threads to the connection, and its answers back.
pub(super) struct RemoteLane {
    requests: UnboundedSender<Request>,
}

impl RemoteLane {
    /// Serves requests until this is dropped.
    pub(super) fn start(runtime: &tokio::runtime::Handle, client: Client) -> Arc<Self> {
        let (requests, to_do) = unbounded_channel();
        runtime.spawn(pass_on(client, to_do));
        Arc::new(RemoteLane { requests })
    }

    fn ask(&self, what: What) -> io::Result<Vec<u8>> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the host that keeps the disk can't be reached");
        let (done, is_done) = std::sync::mpsc::sync_channel(1);
        self.requests.send(Request { what, done }).map_err(|_| gone())?;
        is_done.recv().map_err(|_| gone())?
    }
}

impl RemoteDisk for RemoteLane {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let data = self.ask(What::Read { offset, length: buffer.len() })?;
        buffer.copy_from_slice(&data);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.ask(What::Write { offset, data: data.to_vec() }).map(drop)
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> io::Result<()> {
        self.ask(What::Zeroes { offset, length, mode }).map(drop)
    }

    fn flush(&self) -> io::Result<()> {
        self.ask(What::Flush).map(drop)
    }
}

async fn pass_on(client: Client, mut requests: UnboundedReceiver<Request>) {
    while let Some(Request { what, done }) = requests.recv().await {
        let client = client.clone();
        tokio::spawn(async move {
            let answer = answer(&client, what).await;
            // Whoever waited may have been told to give up.
            let _ = done.send(answer.map_err(io::Error::other));
        });
    }
    client.disconnect().await;
}

async fn answer(client: &Client, what: What) -> Result<Vec<u8>, NbdError> {
    let none = |()| Vec::new();
    match what {
        What::Read { offset, length } => client.read(offset, length).await,
        What::Write { offset, data } => client.write(offset, data, false).await.map(none),
        What::Zeroes { offset, length, mode } => client.write_zeroes(offset, length, mode).await.map(none),
        What::Flush => client.flush().await.map(none),
    }
}

/// Serves the disk to the guest that has left without it, until its host ends the connection.
pub(super) async fn serve_remote(stream: AsyncLinkStream, volume: Arc<Volume>) -> Result<(), DriverError> {
    let exports = Arc::new(Exports::single(Arc::new(VolumeExport::new(volume))));
    serve_connection(stream, exports, Shutdown::never()).await?;
    Ok(())
}
