//! The link: TCP connections between two hosts, held to the rate and the delay of each host's network card.
//!
//! ```text
//!   writer ──► bucket ──► TCP ═══════════════════════════► TCP ──► (ingress bucket) ──► reader      without delay
//!              (egress)
//!
//!   writer ──► bucket ──► socketpair ──► relay ──► TCP ══► TCP ──► (ingress bucket) ──► reader      with delay
//!                                        stamps what it reads, holds it in a ring,
//!                                        writes it at stamp + delay
//! ```
//!
//! - *Rate.* Every stream of a host goes through its [`Nic`]'s buckets, whatever it carries. A writer asks for at most
//!   one burst at a time ([`LinkStream::burst_bytes`]), then writes exactly that. Bytes that were read are charged to the
//!   ingress bucket, if there is one, before the reader gets them; the other side feels it by TCP's flow control.
//! - *Delay.* It is added where bytes leave, one way, so a round trip takes at least the sum of both hosts' delays. It
//!   happens above TCP: real for every byte, invisible to TCP's windows and its estimate of the round trip. Without
//!   delay there is no relay, no thread and no copy. The relay's ring holds what the rate carries in twice the delay (at
//!   4 GB/s where there is no rate), at least 4 MiB and at most 256 MiB; a writer that is further ahead waits.
//! - *Order, end and failure.* Bytes arrive in order. An end of writing arrives after all bytes before it. If the
//!   connection fails, reading fails and writing gives `BrokenPipe`, in the relayed form too.
//! - *Sever.* A [`Severer`] cuts the connection for fault tests: what the relay holds is lost.
//! - *Silence.* A link that loses every packet and closes nothing fails after [`SILENCE`].
//!
//! Sockets have `TCP_NODELAY` and keep the kernel's own sizing of their buffers: it grows as far as the machine allows,
//! where a fixed size would be cut to a bound that is smaller.
//!
//! A stream has two forms that turn into each other: [`LinkStream`] blocks, for the memory lanes; [`AsyncLinkStream`] is
//! for tokio, for NBD and control. What a dropped stream had written still arrives, unless the other side doesn't
//! take any of it for two seconds.

mod asynchronous;
mod relay;

pub use asynchronous::{AsyncLinkStream, LinkReadHalf, LinkWriteHalf};

use crate::bucket::Class;
use crate::clock;
use crate::nic::Nic;
use relay::Relay;
use socket2::{SockRef, TcpKeepalive};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// A connection to another host that blocks; see the [module](self).
///
/// Reading and writing need only `&self`, so an `Arc` serves a reader and a writer on two threads.
#[derive(Debug)]
pub struct LinkStream {
    tcp: TcpStream,
    /// The socket once more, for who severs it.
    socket: Arc<OwnedFd>,
    relay: Option<Relay<UnixStream>>,
    nic: Nic,
    class: Class,
}

impl LinkStream {
    /// Connects to another host. `class` is that of [`Read`] and [`Write`].
    ///
    /// # Errors
    /// TCP does not connect, or the relay can't be set up.
    pub fn connect(address: impl ToSocketAddrs, nic: &Nic, class: Class) -> io::Result<Self> {
        Self::over(TcpStream::connect(address)?, nic, class)
    }

    /// The link over a connection that exists.
    ///
    /// # Errors
    /// The socket takes no options, or the relay can't be set up.
    pub fn over(tcp: TcpStream, nic: &Nic, class: Class) -> io::Result<Self> {
        tcp.set_nonblocking(false)?;
        set_options(&tcp)?;
        let relay = Relay::open(&tcp, nic)?;
        let socket = Arc::new(tcp.as_fd().try_clone_to_owned()?);
        Ok(LinkStream { tcp, socket, relay, nic: nic.clone(), class })
    }

    /// The most bytes that may be asked for and written at once.
    pub fn burst_bytes(&self) -> u64 {
        self.nic.egress().burst_bytes()
    }

    /// Waits until `bytes` may be written to [`LinkStream::fd`], and counts them. The caller then writes exactly these.
    ///
    /// At most [`LinkStream::burst_bytes`]; more is admitted too, but then others wait longer than a burst.
    pub fn admit(&self, bytes: u64, class: Class) {
        self.nic.egress().admit(bytes, class);
        self.nic.sent(bytes, clock::now());
    }

    /// Charges `bytes` that the caller has read from [`LinkStream::read_fd`] itself, waits for them, and counts them.
    pub fn received(&self, bytes: u64, class: Class) {
        if let Some(ingress) = self.nic.ingress() {
            ingress.admit(bytes, class);
        }
        self.nic.received(bytes, clock::now());
    }

    /// Where to write what was admitted: the connection, or the way into the delay line.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.relay.as_ref().map_or_else(|| self.tcp.as_fd(), |relay| relay.near().as_fd())
    }

    /// Where to read.
    pub fn read_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }

    /// Writes all of `buffer`, a burst at a time.
    ///
    /// # Errors
    /// The connection failed; how much of the buffer went is unknown.
    pub fn write_shaped(&self, buffer: &[u8], class: Class) -> io::Result<()> {
        let mut rest = buffer;
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(rest.len().min(self.burst_bytes() as usize));
            self.admit(chunk.len() as u64, class);
            match &self.relay {
                None => (&self.tcp).write_all(chunk)?,
                Some(relay) => relay.near().write_all(chunk)?,
            }
            rest = after;
        }
        Ok(())
    }

    /// The class of what [`Read`] and [`Write`] move.
    pub fn class(&self) -> Class {
        self.class
    }

    /// The card that this stream goes through.
    pub fn nic(&self) -> &Nic {
        &self.nic
    }

    /// This end's address.
    ///
    /// # Errors
    /// The socket has none.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// The other end's address.
    ///
    /// # Errors
    /// The socket is not connected.
    pub fn peer_address(&self) -> io::Result<SocketAddr> {
        self.tcp.peer_addr()
    }

    /// Lets reading fail (with `WouldBlock`) after this long without a byte.
    ///
    /// # Errors
    /// The time is zero.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.tcp.set_read_timeout(timeout)
    }

    /// Says that nothing more will be written. What was written arrives first.
    ///
    /// # Errors
    /// The connection has failed already.
    pub fn shutdown_write(&self) -> io::Result<()> {
        match &self.relay {
            None => self.tcp.shutdown(Shutdown::Write),
            Some(relay) => relay.near().shutdown(Shutdown::Write),
        }
    }

    /// Cuts the connection in both directions at once, as a broken link would.
    pub fn sever(&self) {
        self.severer().sever();
    }

    /// A handle that cuts the connection from elsewhere.
    pub fn severer(&self) -> Severer {
        Severer { socket: Arc::downgrade(&self.socket) }
    }

    /// The same connection for tokio, within whose runtime this must be called.
    ///
    /// # Errors
    /// The runtime doesn't take the socket.
    pub fn into_async(self) -> io::Result<AsyncLinkStream> {
        let LinkStream { tcp, socket, relay, nic, class } = self;
        tcp.set_nonblocking(true)?;
        let tcp = tokio::net::TcpStream::from_std(tcp)?;
        let relay = relay.map(|relay| {
            relay.convert(|near| {
                near.set_nonblocking(true)?;
                tokio::net::UnixStream::from_std(near)
            })
        });
        Ok(AsyncLinkStream::of(tcp, socket, relay.transpose()?, nic, class))
    }
}

impl Read for &LinkStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = match self.nic.ingress() {
            Some(ingress) => buffer.len().min(ingress.burst_bytes() as usize),
            None => buffer.len(),
        };
        let bytes = (&self.tcp).read(&mut buffer[..most])?;
        self.received(bytes as u64, self.class);
        Ok(bytes)
    }
}

impl Read for LinkStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for &LinkStream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        // A burst is admitted as a whole, so it is written as a whole: nothing that was paid for is lost.
        let bytes = buffer.len().min(self.burst_bytes() as usize);
        self.write_shaped(&buffer[..bytes], self.class)?;
        Ok(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for LinkStream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        (&*self).write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Cuts a stream's connection, for fault tests. Outlives the stream without keeping it open, and goes on when the
/// stream changes its form.
#[derive(Clone, Debug)]
pub struct Severer {
    socket: Weak<OwnedFd>,
}

impl Severer {
    /// Cuts the connection in both directions; does nothing if it is gone already.
    pub fn sever(&self) {
        if let Some(socket) = self.socket.upgrade() {
            // It fails only if the other side was quicker.
            let _ = SockRef::from(&*socket).shutdown(Shutdown::Both);
        }
    }
}

/// How long a link may be silent: packets lost and nothing closed. A stall of half a minute is lived through; a host that is
/// gone ends a move within twice that.
pub const SILENCE: Duration = Duration::from_secs(60);

/// A silent link is noticed whether or not anything is on its way: what is sent must be acknowledged in [`SILENCE`], and
/// where nothing is sent, after half of it six probes are.
fn set_options(tcp: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(tcp);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(SILENCE))?;
    let probes = TcpKeepalive::new().with_time(SILENCE / 2).with_interval(SILENCE / 12);
    socket.set_tcp_keepalive(&probes.with_retries(6))
}
