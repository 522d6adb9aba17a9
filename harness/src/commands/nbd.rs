//! `whimbrel nbd serve`: a raw image as a writable NBD export, for any NBD client.

use crate::interrupt::Interrupt;
use crate::{BadInput, status};
use std::net::ToSocketAddrs;
use std::path::Path;
use std::sync::Arc;
use whimbrel_model::op::SECTOR_BYTES;
use whimbrel_nbd::{Access, Exports, FileBackend, Server, ShutdownHandle};

pub(super) fn serve(image: &Path, listen: &str) -> anyhow::Result<u8> {
    let refuse = |why: &dyn std::fmt::Display| {
        BadInput(format!("nbd serve {}: {why}; give a raw image that exists and may be written", image.display()))
    };
    if image.is_dir() {
        return Err(refuse(&"it is a folder").into());
    }
    let size = std::fs::metadata(image).map_err(|e| refuse(&e))?.len();
    if size == 0 || size % SECTOR_BYTES != 0 {
        let why = format!("its size of {size} bytes is not a multiple of {SECTOR_BYTES}");
        return Err(refuse(&why).into());
    }
    let backend = FileBackend::open(image, Access::ReadWrite).map_err(|e| refuse(&e))?;
    let exports = Arc::new(Exports::single(Arc::new(backend)));
    let interrupt = Interrupt::on_signals()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = bind(listen, exports).await?.on_error(|error| eprintln!("whimbrel: a client failed: {error}"));
        let address = server.local_address().map_or_else(|| listen.to_owned(), |a| a.to_string());
        eprintln!("serving {} on {address}", image.display());
        let (handle, shutdown) = ShutdownHandle::new();
        tokio::spawn(async move {
            interrupt.wait().await;
            handle.shut_down();
        });
        let served = server.run(shutdown).await;
        if let Some(path) = listen.strip_prefix("unix:") {
            // The socket is this server's own: it was bound to a path that did not exist.
            let _ = std::fs::remove_file(path);
        }
        served.map_err(anyhow::Error::from)
    })?;
    Ok(status::GOOD)
}

async fn bind(listen: &str, exports: Arc<Exports>) -> Result<Server, BadInput> {
    let refuse = |why: &dyn std::fmt::Display| {
        BadInput(format!("--listen {listen}: {why}; give a free HOST:PORT, or unix:PATH where nothing is"))
    };
    if let Some(path) = listen.strip_prefix("unix:") {
        return Server::bind_unix(path, exports).map_err(|e| refuse(&e));
    }
    let mut addresses = listen.to_socket_addrs().map_err(|e| refuse(&e))?;
    let address = addresses.next().ok_or_else(|| refuse(&"it names no address"))?;
    Server::bind_tcp(address, exports).await.map_err(|e| refuse(&e))
}
