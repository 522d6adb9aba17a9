//! `whimbrel nbd serve`: raw images as NBD exports, for any NBD client.

use crate::cli::NbdServe;
use crate::interrupt::Interrupt;
use crate::{BadInput, status, tell};
use anyhow::Context;
use std::fs::{File, TryLockError};
use std::net::ToSocketAddrs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use whimbrel_disk::{BLOCK_BYTES, Found, Volume, VolumeExport};
use whimbrel_model::op::SECTOR_BYTES;
use whimbrel_nbd::{Access, Backend, Exports, FileBackend, Server, ServerTls, ShutdownHandle};

pub(super) fn serve(options: &NbdServe) -> anyhow::Result<u8> {
    let (exports, volume) = exports(options)?;
    let exports = Arc::new(match tls(options)? {
        Some(tls) => exports.with_tls(tls),
        None => exports,
    });
    let listen = &*options.listen;
    let interrupt = Interrupt::on_signals()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let failed = |error| tell(&format!("whimbrel: a client failed: {:#}", anyhow::Error::from(error)));
        let server = bind(listen, exports).await?.on_error(failed);
        let address = server.local_address().map_or_else(|| listen.to_owned(), |a| a.to_string());
        tell(&format!("serving {} on {address}", options.images.join(", ")));
        let socket = listen.strip_prefix("unix:").map(|path| (path, identity(path)));
        let (handle, shutdown) = ShutdownHandle::new();
        tokio::spawn(async move {
            interrupt.wait().await;
            handle.shut_down();
        });
        let served = server.run(shutdown).await;
        // It was bound to a path that did not exist, but another may have taken that since.
        if let Some((path, _)) = socket.filter(|(path, bound)| bound.is_some() && identity(path) == *bound) {
            let _ = std::fs::remove_file(path);
        }
        served.map_err(anyhow::Error::from)
    })?;
    if let Some(volume) = volume {
        volume.close_bitmap().context("the bitmap's file could not be ended in order")?;
    }
    Ok(status::GOOD)
}

/// What tells a socket from another at the same path.
fn identity(path: &str) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// The exports and, if its writes are recorded, the volume.
fn exports(options: &NbdServe) -> anyhow::Result<(Exports, Option<Arc<Volume>>)> {
    let mut exports = Exports::new();
    let mut names: Vec<&str> = Vec::new();
    let mut tracked = None;
    if options.bitmap.is_some() && options.images.len() > 1 {
        return Err(BadInput("--bitmap is of one image: give a single IMAGE with it".to_owned()).into());
    }
    for text in &options.images {
        let (name, image) = name_and_image(text);
        if names.contains(&name) {
            let which =
                if name.is_empty() { "two images are".to_owned() } else { format!("two exports are named {name:?},") };
            return Err(
                BadInput(format!("nbd serve {text}: {which} the same export; give each its own NAME=IMAGE")).into()
            );
        }
        names.push(name);
        let backend: Arc<dyn Backend> = match &options.bitmap {
            None => Arc::new(plain(image, options.read_only)?),
            Some(bitmap) => {
                let volume = Arc::new(recorded(image, bitmap)?);
                tracked = Some(Arc::clone(&volume));
                Arc::new(VolumeExport::new(volume))
            }
        };
        exports = exports.with(name, backend);
    }
    Ok((exports, tracked))
}

/// NAME=IMAGE, unless that is a file's own name.
fn name_and_image(text: &str) -> (&str, &Path) {
    match text.split_once('=') {
        Some((name, image)) if !name.contains('/') && !Path::new(text).exists() => (name, Path::new(image)),
        _ => ("", Path::new(text)),
    }
}

fn plain(image: &Path, read_only: bool) -> Result<FileBackend, BadInput> {
    let (access, may) = match read_only {
        true => (Access::ReadOnly, "be read"),
        false => (Access::ReadWrite, "be written, or --read-only"),
    };
    let refuse = |why: &dyn std::fmt::Display| {
        BadInput(format!("nbd serve {}: {why}; give a raw image that exists and may {may}", image.display()))
    };
    if image.is_dir() {
        return Err(refuse(&"it is a folder"));
    }
    let file = File::options().read(true).write(!read_only).open(image).map_err(|e| refuse(&e))?;
    // Whoever writes is alone, readers are among themselves. Where the file system knows no locks there is nothing to be known.
    let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
    if let Err(TryLockError::WouldBlock) = locked {
        let why = if read_only { "it is in use by who writes to it" } else { "it is in use" };
        return Err(refuse(&why));
    }
    let backend = FileBackend::from_file(file, access).map_err(|e| refuse(&e))?;
    let size = backend.size_bytes();
    if size == 0 || size % SECTOR_BYTES != 0 {
        return Err(refuse(&format!("its size of {size} bytes is not a multiple of {SECTOR_BYTES}")));
    }
    Ok(backend)
}

fn recorded(image: &Path, bitmap: &Path) -> Result<Volume, BadInput> {
    let opened = Volume::open_with_bitmap(image, BLOCK_BYTES, bitmap);
    let (volume, found) = opened
        .map_err(|e| BadInput(format!("nbd serve {} --bitmap: {:#}", image.display(), anyhow::Error::from(e))))?;
    let said = match found {
        Found::New => "new, nothing is recorded yet",
        Found::Clean => "as it was left",
        Found::Crashed => "left by a crash: all that was written, and the rest of its regions",
        Found::Torn => "torn: every block counts as written",
    };
    tell(&format!("{}: {said}; {} blocks", bitmap.display(), volume.dirty_count()));
    Ok(volume)
}

fn tls(options: &NbdServe) -> Result<Option<ServerTls>, BadInput> {
    let (Some(certificate), Some(key)) = (&options.tls_cert, &options.tls_key) else { return Ok(None) };
    let tls = ServerTls::from_files(certificate, key, options.tls_ca.as_deref());
    let tls = tls.map_err(|error| BadInput(format!("nbd serve: {error}")))?;
    Ok(Some(if options.tls_optional { tls.optional() } else { tls }))
}

async fn bind(listen: &str, exports: Arc<Exports>) -> Result<Server, BadInput> {
    let refuse = |why: &dyn std::fmt::Display| {
        BadInput(format!("--listen {listen}: {why}; give a free HOST:PORT, or unix:PATH where nothing is"))
    };
    if listen == "unix:" {
        return Err(refuse(&"it names no path"));
    }
    if let Some(path) = listen.strip_prefix("unix:") {
        return Server::bind_unix(path, exports).map_err(|e| refuse(&e));
    }
    let mut addresses = listen.to_socket_addrs().map_err(|e| refuse(&e))?;
    let address = addresses.next().ok_or_else(|| refuse(&"it names no address"))?;
    Server::bind_tcp(address, exports).await.map_err(|e| refuse(&e))
}
