//! Serving: [`serve_connection`] for one stream from wherever, [`Server`] for a TCP or unix listener.

use std::{future::pending, io, net::SocketAddr, os::fd::OwnedFd, path::Path, sync::Arc};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, watch},
    task::JoinSet,
};

use crate::{
    buffers::Input,
    error::NbdError,
    exports::{Exports, Limits},
    negotiate_server::{Agreed, Negotiated, negotiate},
    socket::{Socket, drive},
    transmission::transmit,
};

/// How a connection ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The client ended the negotiation.
    Aborted,
    /// The client disconnected as the protocol has it.
    Disconnected,
    /// The client closed the stream between two requests.
    Closed,
    /// The server was told to shut down.
    Shutdown,
}

/// Tells servers and connections to shut down. Dropping it tells them nothing.
#[derive(Debug)]
pub struct ShutdownHandle(watch::Sender<bool>);

/// Where servers and connections hear of it.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

impl ShutdownHandle {
    /// A handle and its other end.
    pub fn new() -> (Self, Shutdown) {
        let (sender, receiver) = watch::channel(false);
        (Self(sender), Shutdown(receiver))
    }

    /// Shuts down, at once and for good.
    pub fn shut_down(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// One that never comes.
    pub fn never() -> Self {
        ShutdownHandle::new().1
    }

    /// Completes when the handle says so.
    pub async fn told(mut self) {
        if self.0.wait_for(|told| *told).await.is_err() {
            pending::<()>().await;
        }
    }
}

/// Serves one client on a stream, from the negotiation to the end.
///
/// When it returns, no backend call of this connection is running and every request that was accepted is carried out;
/// `shutdown` ends it after the requests in flight are answered. Memory is bounded by [`crate::Limits`]. Must run on a tokio
/// runtime with time enabled. Dropping the future closes the connection, but calls that already run are carried out.
pub async fn serve_connection<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    exports: Arc<Exports>,
    shutdown: Shutdown,
) -> Result<Ended, NbdError> {
    let mut input = Input::new();
    let limits = exports.limits();
    let negotiated = tokio::select! {
        negotiated = negotiate(&mut stream, &mut input, &exports, None) => negotiated?,
        () = shutdown.clone().told() => return Ok(Ended::Shutdown),
    };
    let (greeted, tls) = match (negotiated, exports.tls()) {
        (Negotiated::Agreed(agreed), _) => {
            return serve_agreed(&mut stream, &mut input, agreed, limits, shutdown).await;
        }
        (Negotiated::Secure(greeted), Some(tls)) => (greeted, tls),
        (Negotiated::Secure(_) | Negotiated::Aborted, _) => return aborted(&mut stream).await,
    };
    let within = async {
        let handshake = tokio::time::timeout(limits.negotiation, tls.accept(stream)).await;
        let mut stream = handshake.map_err(|_| NbdError::NegotiationBound("time"))??;
        let negotiated = negotiate(&mut stream, &mut input, &exports, Some(greeted)).await?;
        Ok::<_, NbdError>((stream, negotiated))
    };
    let (mut stream, negotiated) = tokio::select! {
        within = within => within?,
        () = shutdown.clone().told() => return Ok(Ended::Shutdown),
    };
    match negotiated {
        Negotiated::Agreed(agreed) => serve_agreed(&mut stream, &mut input, agreed, limits, shutdown).await,
        Negotiated::Secure(_) | Negotiated::Aborted => aborted(&mut stream).await,
    }
}

async fn serve_agreed<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    input: &mut Input,
    agreed: Agreed,
    limits: &Limits,
    shutdown: Shutdown,
) -> Result<Ended, NbdError> {
    let ended = transmit(stream, input, agreed, limits, shutdown.told()).await?;
    // The client may have closed its end first, which is its right.
    let _ = stream.shutdown().await;
    Ok(ended)
}

async fn aborted<S: AsyncWrite + Unpin>(stream: &mut S) -> Result<Ended, NbdError> {
    let _ = stream.shutdown().await;
    Ok(Ended::Aborted)
}

/// Hears of connections that failed.
type Report = dyn Fn(NbdError) + Send + Sync;

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Accepts connections and serves each on its own task.
pub struct Server {
    listener: Listener,
    exports: Arc<Exports>,
    report: Arc<Report>,
}

impl Server {
    /// Listens on a TCP address.
    pub async fn bind_tcp(address: SocketAddr, exports: Arc<Exports>) -> io::Result<Self> {
        Ok(Self::from_tcp(TcpListener::bind(address).await?, exports))
    }

    /// Listens on a unix socket at `path`, which must not exist.
    pub fn bind_unix(path: impl AsRef<Path>, exports: Arc<Exports>) -> io::Result<Self> {
        Ok(Self::from_unix(UnixListener::bind(path)?, exports))
    }

    /// Takes a TCP listener.
    pub fn from_tcp(listener: TcpListener, exports: Arc<Exports>) -> Self {
        Self { listener: Listener::Tcp(listener), exports, report: Arc::new(|_| ()) }
    }

    /// Takes a unix listener.
    pub fn from_unix(listener: UnixListener, exports: Arc<Exports>) -> Self {
        Self { listener: Listener::Unix(listener), exports, report: Arc::new(|_| ()) }
    }

    /// Has the errors of single connections, which the server survives, told to `report`.
    pub fn on_error(mut self, report: impl Fn(NbdError) + Send + Sync + 'static) -> Self {
        self.report = Arc::new(report);
        self
    }

    /// The TCP address that it listens on.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match &self.listener {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(_) => None,
        }
    }

    /// Serves until it is told to shut down; then accepts nothing more, finishes the requests in flight and flushes the
    /// exports. An error is one of that flush, or of the listener.
    pub async fn run(self, shutdown: Shutdown) -> io::Result<()> {
        let slots = Arc::new(Semaphore::new(self.exports.limits().connections.max(1)));
        let mut connections = JoinSet::new();
        let accepted = loop {
            while connections.try_join_next().is_some() {}
            let slot = tokio::select! {
                slot = Arc::clone(&slots).acquire_owned() => slot,
                () = shutdown.clone().told() => break Ok(()),
            };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = shutdown.clone().told() => break Ok(()),
            };
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) if is_passing(&error) => {
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                    continue;
                }
                Err(error) => break Err(error),
            };
            let (exports, shutdown) = (Arc::clone(&self.exports), shutdown.clone());
            let report = Arc::clone(&self.report);
            connections.spawn(async move {
                let _slot = slot;
                if let Err(error) = on_a_thread(stream, exports, shutdown).await {
                    report(error);
                }
            });
        };
        while connections.join_next().await.is_some() {}
        let exports = Arc::clone(&self.exports);
        let flushed = tokio::task::spawn_blocking(move || exports.flush()).await;
        accepted.and(flushed.unwrap_or_else(|error| Err(io::Error::other(error))))
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Replies are already coalesced; waiting for more would only delay them.
                stream.set_nodelay(true)?;
                Ok(stream.into_std()?.into())
            }
            Self::Unix(listener) => Ok(listener.accept().await?.0.into_std()?.into()),
        }
    }
}

/// Serves a connection on a thread of its own.
async fn on_a_thread(stream: OwnedFd, exports: Arc<Exports>, shutdown: Shutdown) -> Result<Ended, NbdError> {
    let runtime = tokio::runtime::Handle::current();
    let (sender, ended) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("nbd".to_owned()).spawn(move || {
        let _inside = runtime.enter();
        let socket = Socket::new(stream);
        let served = drive(&socket, serve_connection(socket.clone(), exports, shutdown));
        // The server may be gone.
        let _ = sender.send(served.unwrap_or_else(|error| Err(error.into())));
    })?;
    ended.await.unwrap_or_else(|_| Err(io::Error::other("a connection's thread panicked").into()))
}

/// Whether a failed accept says nothing about the next one: the client went away, or descriptors are short for now.
fn is_passing(error: &io::Error) -> bool {
    let number = error.raw_os_error().unwrap_or(0);
    matches!(
        number,
        libc::ECONNABORTED
            | libc::ECONNRESET
            | libc::EINTR
            | libc::EMFILE
            | libc::ENFILE
            | libc::ENOBUFS
            | libc::ENOMEM
            | libc::EPROTO
    )
}
