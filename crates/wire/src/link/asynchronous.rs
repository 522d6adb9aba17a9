//! The link for tokio: the same buckets, cards and delay lines as the form that blocks.

use super::relay::Relay;
use super::{LinkStream, Severer, set_options};
use crate::bucket::{Booking, Class};
use crate::clock;
use crate::nic::Nic;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, ToSocketAddrs, UnixStream};
use tokio::time::Sleep;

/// The most pieces of a vectored write that is cut to what was admitted.
const MOST_PIECES: usize = 16;

/// A connection to another host for tokio; see the [module](super).
#[derive(Debug)]
pub struct AsyncLinkStream {
    read: LinkReadHalf,
    write: LinkWriteHalf,
}

impl AsyncLinkStream {
    /// Connects to another host. `class` is that of everything read and written.
    ///
    /// # Errors
    /// TCP does not connect, or the relay can't be set up.
    pub async fn connect(address: impl ToSocketAddrs, nic: &Nic, class: Class) -> io::Result<Self> {
        Self::over(TcpStream::connect(address).await?, nic, class)
    }

    /// The link over a connection that exists.
    ///
    /// # Errors
    /// The socket takes no options, or the relay can't be set up.
    pub fn over(tcp: TcpStream, nic: &Nic, class: Class) -> io::Result<Self> {
        set_options(&tcp)?;
        let relay = Relay::open(&tcp, nic)?.map(|relay| {
            relay.convert(|near| {
                near.set_nonblocking(true)?;
                UnixStream::from_std(near)
            })
        });
        let socket = Arc::new(tcp.as_fd().try_clone_to_owned()?);
        Ok(Self::of(tcp, socket, relay.transpose()?, nic.clone(), class))
    }

    pub(super) fn of(
        tcp: TcpStream,
        socket: Arc<OwnedFd>,
        relay: Option<Relay<UnixStream>>,
        nic: Nic,
        class: Class,
    ) -> Self {
        let (tcp, write) = tcp.into_split();
        let sink = Some(Sink { tcp: write, relay, _socket: Arc::clone(&socket) });
        let write = LinkWriteHalf { sink, nic: nic.clone(), class, turn: Turn::default(), admitted: 0 };
        AsyncLinkStream { read: LinkReadHalf { tcp, socket, nic, class, turn: Turn::default() }, write }
    }

    /// The two directions apart, for two tasks.
    pub fn into_split(self) -> (LinkReadHalf, LinkWriteHalf) {
        (self.read, self.write)
    }

    /// The same connection in the form that blocks: nothing is read ahead, so nothing is lost.
    ///
    /// # Errors
    /// The socket can't be taken from tokio.
    pub fn into_blocking(mut self) -> io::Result<LinkStream> {
        let sink = self.write.sink.take().ok_or(io::ErrorKind::NotConnected)?;
        let LinkReadHalf { tcp, socket, nic, class, .. } = self.read;
        let tcp = tcp.reunite(sink.tcp).map_err(io::Error::other)?.into_std()?;
        tcp.set_nonblocking(false)?;
        let relay = sink.relay.map(|relay| {
            relay.convert(|near| {
                let near = near.into_std()?;
                near.set_nonblocking(false)?;
                Ok(near)
            })
        });
        Ok(LinkStream { tcp, socket, relay: relay.transpose()?, nic, class })
    }

    /// The class of everything read and written.
    pub fn class(&self) -> Class {
        self.read.class
    }

    /// Changes the class of what is read and written from here on.
    pub fn set_class(&mut self, class: Class) {
        self.read.class = class;
        self.write.class = class;
    }

    /// The card that this stream goes through.
    pub fn nic(&self) -> &Nic {
        &self.read.nic
    }

    /// This end's address.
    ///
    /// # Errors
    /// The socket has none.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.read.tcp.local_addr()
    }

    /// The other end's address.
    ///
    /// # Errors
    /// The socket is not connected.
    pub fn peer_address(&self) -> io::Result<SocketAddr> {
        self.read.tcp.peer_addr()
    }

    /// Cuts the connection in both directions at once, as a broken link would.
    pub fn sever(&self) {
        self.severer().sever();
    }

    /// A handle that cuts the connection from elsewhere.
    pub fn severer(&self) -> Severer {
        self.read.severer()
    }
}

/// The reading direction of an [`AsyncLinkStream`].
#[derive(Debug)]
pub struct LinkReadHalf {
    tcp: OwnedReadHalf,
    /// The socket once more, for who severs it; it closes with the last of the two halves.
    socket: Arc<OwnedFd>,
    nic: Nic,
    class: Class,
    turn: Turn,
}

/// The writing direction of an [`AsyncLinkStream`]. Dropping it ends the writing, as [`AsyncWrite::poll_shutdown`] does.
#[derive(Debug)]
pub struct LinkWriteHalf {
    /// `None` only once the stream was turned into its other form.
    sink: Option<Sink>,
    nic: Nic,
    class: Class,
    turn: Turn,
    /// Bytes that were admitted and are not written yet.
    admitted: u64,
}

#[derive(Debug)]
struct Sink {
    tcp: OwnedWriteHalf,
    relay: Option<Relay<UnixStream>>,
    _socket: Arc<OwnedFd>,
}

/// Bytes that wait for a bucket, and the timer that they wait with.
#[derive(Debug, Default)]
struct Turn {
    waiting: Option<(u64, Booking)>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Turn {
    /// Ready with the bytes of the booking once they may go; with none if nothing is booked.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<u64> {
        let Some((bytes, booking)) = &mut self.waiting else { return Poll::Ready(0) };
        let bytes = *bytes;
        loop {
            let now = clock::now();
            let Some(instant) = booking.due(now) else {
                self.waiting = None;
                return Poll::Ready(bytes);
            };
            let until = tokio::time::Instant::now() + Duration::from(instant.since(now));
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
            timer.as_mut().reset(until);
            ready!(timer.as_mut().poll(cx));
        }
    }
}

impl LinkWriteHalf {
    /// Ready with how many of `bytes` bytes may be written now, at least one.
    fn poll_admit(&mut self, cx: &mut Context<'_>, bytes: usize) -> Poll<usize> {
        if self.admitted == 0 {
            self.admitted = ready!(self.turn.poll(cx));
        }
        if self.admitted == 0 {
            let bucket = self.nic.egress();
            let burst = bucket.burst_bytes().min(bytes as u64);
            if let Some(booking) = bucket.book(clock::now(), burst, self.class) {
                self.turn.waiting = Some((burst, booking));
                self.admitted = ready!(self.turn.poll(cx));
            } else {
                self.admitted = burst;
            }
        }
        Poll::Ready(bytes.min(self.admitted as usize))
    }

    fn written(&mut self, bytes: usize) {
        self.admitted = self.admitted.saturating_sub(bytes as u64);
        self.nic.sent(bytes as u64, clock::now());
    }

    fn sink(&mut self) -> io::Result<&mut Sink> {
        self.sink.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Sink {
    fn poll_write(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match &mut self.relay {
            None => Pin::new(&mut self.tcp).poll_write_vectored(cx, pieces),
            Some(relay) => Pin::new(relay.near_mut()).poll_write_vectored(cx, pieces),
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.relay {
            None => Pin::new(&mut self.tcp).poll_shutdown(cx),
            Some(relay) => Pin::new(relay.near_mut()).poll_shutdown(cx),
        }
    }
}

impl AsyncWrite for LinkWriteHalf {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buffer)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let total: usize = pieces.iter().map(|piece| piece.len()).sum();
        if total == 0 {
            return Poll::Ready(Ok(0));
        }
        let most = ready!(self.poll_admit(cx, total));
        let bytes = if most >= total {
            ready!(self.sink()?.poll_write(cx, pieces))?
        } else {
            let mut cut = [IoSlice::new(&[]); MOST_PIECES];
            let count = cut_to(pieces, most, &mut cut);
            ready!(self.sink()?.poll_write(cx, &cut[..count]))?
        };
        self.written(bytes);
        Poll::Ready(Ok(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sink()?.poll_shutdown(cx)
    }
}

/// Fills `cut` with the first `most` bytes of `pieces`, or fewer if that takes too many pieces; returns how many it took.
fn cut_to<'a>(pieces: &'a [IoSlice<'a>], most: usize, cut: &mut [IoSlice<'a>]) -> usize {
    let (mut rest, mut count) = (most, 0);
    for (place, piece) in cut.iter_mut().zip(pieces.iter().filter(|piece| !piece.is_empty())) {
        let bytes = piece.len().min(rest);
        if bytes == 0 {
            break;
        }
        *place = IoSlice::new(&piece[..bytes]);
        rest -= bytes;
        count += 1;
    }
    count
}

impl Drop for LinkWriteHalf {
    fn drop(&mut self) {
        if let Some(Sink { tcp, relay: Some(relay), .. }) = self.sink.take() {
            // With a delay line it is the relay that ends the writing, once everything is sent.
            drop(relay);
            tcp.forget();
        }
    }
}

impl AsyncRead for LinkReadHalf {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // What was read last is paid for before more is read: bytes can't be taken back out of the caller's buffer.
        ready!(self.turn.poll(cx));
        let before = buffer.filled().len();
        let most = self.nic.ingress().map(|ingress| buffer.remaining().min(ingress.burst_bytes() as usize));
        match most {
            None => ready!(Pin::new(&mut self.tcp).poll_read(cx, buffer))?,
            Some(most) => {
                let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
                ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut part))?;
                let bytes = part.filled().len();
                buffer.advance(bytes);
            }
        }
        self.read((buffer.filled().len() - before) as u64);
        Poll::Ready(Ok(()))
    }
}

impl LinkReadHalf {
    /// A handle that cuts the connection, both directions of it.
    pub fn severer(&self) -> Severer {
        Severer { socket: Arc::downgrade(&self.socket) }
    }

    fn read(&mut self, bytes: u64) {
        let now = clock::now();
        self.nic.received(bytes, now);
        if let Some(ingress) = self.nic.ingress() {
            self.turn.waiting = ingress.book(now, bytes, self.class).map(|booking| (bytes, booking));
        }
    }
}

impl AsyncRead for AsyncLinkStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(cx, buffer)
    }
}

impl AsyncWrite for AsyncLinkStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.write.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_shutdown(cx)
    }
}
