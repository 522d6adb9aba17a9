//! The guest's disk as QEMU gets it: an NBD export over a unix socket, served by a thread of this process.
//!
//! So whatever can be a guest's disk can be QEMU's, and every disk strategy works as it does elsewhere.

use crate::error::MachineError;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use whimbrel_disk::GuestDisk;
use whimbrel_nbd::protocol::CONTEXT_ALLOCATION;
use whimbrel_nbd::{Backend, Exports, Extents, Shutdown, ZeroMode, serve_connection};

/// Serves one guest's disk until it is dropped.
pub(super) struct Drive {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drive {
    /// Listens at `path`; QEMU may connect at once.
    ///
    /// # Errors
    /// The path can't be listened at, or there are no more threads.
    pub(super) fn serve(path: &Path, disk: Arc<dyn GuestDisk>) -> Result<Self, MachineError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = {
            let _within = runtime.enter();
            tokio::net::UnixListener::bind(path)?
        };
        let exports = Arc::new(Exports::single(Arc::new(DiskBackend(disk))));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let serve = move || {
            let accepting = async {
                while let Ok((stream, _)) = listener.accept().await {
                    // How it ends is QEMU's affair: a request that failed was answered so.
                    let serving = serve_connection(stream, Arc::clone(&exports), Shutdown::never());
                    tokio::spawn(async move { drop(serving.await) });
                }
            };
            runtime.block_on(async {
                tokio::select! {
                    () = accepting => {}
                    // Its sender is gone, which is as good as a word.
                    _ = stopped => {}
                }
            });
            // A request may wait for a block that never comes.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("drive".to_owned()).spawn(serve).map_err(MachineError::Thread)?;
        Ok(Drive { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // What panics there has said so.
            let _ = thread.join();
        }
    }
}

/// A guest's disk behind the NBD server.
struct DiskBackend(Arc<dyn GuestDisk>);

impl Backend for DiskBackend {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn description(&self) -> String {
        "a guest's disk".to_owned()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, buffer)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        self.0.write(offset, data)?;
        if fua { self.0.flush() } else { Ok(()) }
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> io::Result<()> {
        if mode.fast {
            // They may have to be written.
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.0.write_zeroes(offset, length, mode.may_trim)?;
        if mode.fua { self.0.flush() } else { Ok(()) }
    }

    // QEMU's own copy of the disk passes over holes.
    fn contexts(&self) -> Vec<String> {
        vec![CONTEXT_ALLOCATION.to_owned()]
    }

    fn block_status(&self, _: &str, offset: u64, length: u64, extents: &mut Extents) -> io::Result<()> {
        self.0.allocation(offset, length, extents)
    }
}
