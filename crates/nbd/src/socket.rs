//! A socket on a thread of its own: what a server's connections run on.
//!
//! A connection is one future, whoever polls it. On tokio's runtime each turn of it costs an epoll and often a hop to
//! another thread; here the thread that reads also acts and answers, and sleeps in one `poll`:
//!
//! ```text
//!   poll the future -> recv, backend, sendmsg (none of them waits)
//!        ^                 | pending
//!        |                 v
//!        +---------------- sleep in poll(socket, eventfd)
//! ```
//!
//! Timers and blocking calls are still tokio's: the thread has entered a runtime, and a waker writes to the eventfd.
//!
//! (Looking again for 20 to 100 us instead of sleeping won nothing with a processor to spare, and cost half the rate with
//! none.)

use std::{
    cell::Cell,
    future::Future,
    io::{self, IoSlice},
    os::fd::{AsFd, OwnedFd},
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd},
    io::Errno,
    net::{RecvFlags, SendFlags},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connected socket and what its owner waits for on it.
#[derive(Debug, Clone)]
pub(crate) struct Socket(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    socket: OwnedFd,
    waits_for: Cell<PollFlags>,
}

impl Socket {
    /// Takes a connected stream socket.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(Rc::new(Shared { socket, waits_for: Cell::new(PollFlags::empty()) }))
    }

    fn wait_for(&self, flags: PollFlags) {
        self.0.waits_for.set(self.0.waits_for.get() | flags);
    }

    fn checked<T>(&self, result: Result<T, Errno>, flags: PollFlags) -> Poll<io::Result<T>> {
        match result {
            Ok(value) => Poll::Ready(Ok(value)),
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
        self.checked(received, PollFlags::IN).map_ok(|(count, _)| buffer.advance(count))
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
    loop {
        socket.0.waits_for.set(PollFlags::empty());
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Ok(output);
        }
        if bell.rung.swap(false, SeqCst) {
            std::thread::yield_now();
            continue;
        }
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
    }
}
