//! A socket on a thread of its own: what a server's connections run on.
//!
//! A connection is one future, whoever polls it. On tokio's runtime each turn of it costs an epoll and often a hop to
//! another thread; here the thread that reads also acts and answers, and sleeps in one `poll`:
//!
//! ```text
//!   poll the future -> recv, backend, sendmsg (none of them waits)
//!        ^                 | pending
//!        |                 v
//!        +---------------- look for a while, where that is faster (vigil.rs); sleep in poll(socket, eventfd)
//! ```
//!
//! Timers and blocking calls are still tokio's: the thread has entered a runtime, and a waker writes to the eventfd.

use std::{
    cell::Cell,
    future::Future,
    io::{self, IoSlice},
    num::NonZero,
    os::fd::{AsFd, OwnedFd},
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Instant,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd},
    io::Errno,
    net::{RecvFlags, SendFlags},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::vigil::{Turn, Vigil};

/// A connected socket and what its owner waits for on it.
#[derive(Debug, Clone)]
pub(crate) struct Socket(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    socket: OwnedFd,
    waits_for: Cell<PollFlags>,
    /// Both ways, since it was last asked.
    moved_bytes: Cell<u64>,
}

impl Socket {
    /// Takes a connected stream socket.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(Rc::new(Shared { socket, waits_for: Cell::new(PollFlags::empty()), moved_bytes: Cell::new(0) }))
    }

    fn wait_for(&self, flags: PollFlags) {
        self.0.waits_for.set(self.0.waits_for.get() | flags);
    }

    fn checked(&self, moved: Result<usize, Errno>, flags: PollFlags) -> Poll<io::Result<usize>> {
        match moved {
            Ok(count) => {
                self.0.moved_bytes.set(self.0.moved_bytes.get() + count as u64);
                Poll::Ready(Ok(count))
            }
            Err(Errno::AGAIN) => {
                self.wait_for(flags);
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    fn send(&self, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut control = rustix::net::SendAncillaryBuffer::default();
        let sent = rustix::io::retry_on_intr(|| rustix::net::sendmsg(&self.0.socket, slices, &mut control, flags));
        self.checked(sent, PollFlags::OUT)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let place = buffer.initialize_unfilled();
        let received =
            rustix::io::retry_on_intr(|| rustix::net::recv(&self.0.socket, &mut *place, RecvFlags::DONTWAIT));
        self.checked(received.map(|(count, _)| count), PollFlags::IN).map_ok(|count| buffer.advance(count))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: std::pin::Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.send(&[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.send(slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(&self.0.socket, rustix::net::Shutdown::Write).map_err(io::Error::from))
    }
}

/// Wakes the thread from its sleep.
struct Bell {
    rung: AtomicBool,
    asleep: AtomicBool,
    event: OwnedFd,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // The sleeper says that it sleeps, then looks; we ring, then look whether it sleeps.
        if !self.rung.swap(true, SeqCst) && self.asleep.load(SeqCst) {
            // A full counter has woken it already.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }
}

/// Runs a future that uses the socket to its end, on this thread. The thread must have entered a tokio runtime.
pub(crate) fn drive<F: Future>(socket: &Socket, future: F) -> io::Result<F::Output> {
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let bell = Arc::new(Bell { rung: AtomicBool::new(false), asleep: AtomicBool::new(false), event });
    let waker = Waker::from(Arc::clone(&bell));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    let mut vigil = Vigil::new(std::thread::available_parallelism().map_or(1, NonZero::get));
    let mut woken = Instant::now();
    loop {
        socket.0.waits_for.set(PollFlags::empty());
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Ok(output);
        }
        if bell.rung.swap(false, SeqCst) {
            std::thread::yield_now();
            continue;
        }
        let begin = Instant::now();
        if !look(socket, &bell, &mut vigil, begin)? {
            sleep(socket, &bell)?;
        }
        let end = Instant::now();
        let (busy, waited) = (begin - woken, end - begin);
        vigil.turned(Turn { busy, waited, moved_bytes: socket.0.moved_bytes.take() });
        woken = end;
    }
}

/// Looks for what the thread waits for, as long as the rule has it; whether it came.
fn look(socket: &Socket, bell: &Bell, vigil: &mut Vigil, begin: Instant) -> io::Result<bool> {
    let end = begin + vigil.look();
    let mut now = begin;
    while now < end {
        let mut place = [PollFd::new(&socket.0.socket, socket.0.waits_for.get())];
        let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut place, Some(&Timespec::default())))?;
        if ready > 0 || bell.rung.swap(false, SeqCst) {
            return Ok(true);
        }
        std::thread::yield_now();
        let before = std::mem::replace(&mut now, Instant::now());
        if !vigil.let_others_run(now - before) {
            break;
        }
    }
    Ok(false)
}

/// Sleeps until what the thread waits for comes.
fn sleep(socket: &Socket, bell: &Bell) -> io::Result<()> {
    bell.asleep.store(true, SeqCst);
    if !bell.rung.load(SeqCst) {
        let mut places = [
            PollFd::new(&socket.0.socket, socket.0.waits_for.get()),
            PollFd::from_borrowed_fd(bell.event.as_fd(), PollFlags::IN),
        ];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut places, None))?;
    }
    bell.asleep.store(false, SeqCst);
    if bell.rung.swap(false, SeqCst) {
        // Empty if it was rung before the sleep.
        let _ = rustix::io::read(&bell.event, &mut [0; 8]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A vigil that looks.
    fn looking() -> Vigil {
        let mut vigil = Vigil::new(2);
        while vigil.look().is_zero() {
            let instant = std::time::Duration::from_micros(1);
            vigil.turned(Turn { busy: instant, waited: instant, moved_bytes: 1 });
        }
        vigil
    }

    fn bell() -> Arc<Bell> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        Arc::new(Bell { rung: AtomicBool::new(false), asleep: AtomicBool::new(false), event })
    }

    #[test]
    fn a_look_sees_bytes_and_the_bell_and_ends_without_either() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (socket, bell) = (Socket::new(ours.into()), bell());
        socket.wait_for(PollFlags::IN);
        assert!(!look(&socket, &bell, &mut looking(), Instant::now()).unwrap());
        bell.wake_by_ref();
        assert!(look(&socket, &bell, &mut looking(), Instant::now()).unwrap());
        // What was seen is not seen again.
        assert!(!look(&socket, &bell, &mut looking(), Instant::now()).unwrap());
        theirs.write_all(&[1]).unwrap();
        assert!(look(&socket, &bell, &mut looking(), Instant::now()).unwrap());
        let mut sleeps = Vigil::new(1);
        assert!(!look(&socket, &bell, &mut sleeps, Instant::now()).unwrap());
    }

    #[test]
    fn every_byte_of_many_round_trips_arrives_whether_it_was_slept_for_or_looked_for() {
        const ROUND_TRIPS: usize = 20_000;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let client = std::thread::spawn(move || {
            for round in 0..ROUND_TRIPS {
                let said = round.to_be_bytes();
                theirs.write_all(&said).unwrap();
                let mut heard = [0; 8];
                theirs.read_exact(&mut heard).unwrap();
                assert_eq!(heard, said);
            }
        });
        let socket = Socket::new(ours.into());
        let mut stream = socket.clone();
        let echoed = drive(&socket, async move {
            let mut echoed = 0;
            let mut said = [0; 8];
            while stream.read_exact(&mut said).await.is_ok() {
                stream.write_all(&said).await.unwrap();
                echoed += 1;
            }
            echoed
        });
        assert_eq!(echoed.unwrap(), ROUND_TRIPS);
        client.join().unwrap();
    }
}
