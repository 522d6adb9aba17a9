//! The server's transmission phase: one task owns a connection and does, in a loop, whatever can be done.
//!
//! ```text
//!             +--------- the connection's task ----------+
//!   stream -> | parse -> check -+-> try_*_now --> reply  | -> stream      many requests a read, many replies a write
//!             |                 |                   ^    |
//!             +-----------------|-------------------|----+
//!                               +-> blocking threads +                    whatever would have to wait
//! ```
//!
//! Requests go in rounds of a few: their replies leave in one write, and the client takes them while the next round is
//! under way. Short writes of a round are made in one call where the backend can; long ones as they come, in pieces; long
//! reads of what is at hand are read as they leave, in windows that stay in the processor's cache.
//!
//! What a check refuses is answered with an error (the payload of a refused write is skipped); a request without its magic
//! number ends the connection, after the requests in flight are answered. While the client does not take its replies no
//! further requests are read.

use std::{
    future::{Future, poll_fn},
    io,
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    backend::{Backend, Now},
    buffers::{Input, Recycler, poll_read},
    error::{ErrorCode, NbdError},
    exports::Limits,
    jobs::{Done, Job, Jobs, Outcome},
    linger::Linger,
    negotiate_server::Agreed,
    protocol::{MAX_PAYLOAD_BYTES, Request, command, command_flag},
    replies::Replies,
    server::Ended,
};

/// The longest WRITE tried inline and whole.
const INLINE_BYTES: u32 = 128 << 10;
/// The longest payload of a WRITE that is collected among the requests; longer ones are read into their own buffer.
const SHORT_BYTES: u32 = 16 << 10;
/// Requests are accepted while fewer bytes of replies wait to be written.
const UNSENT_BYTES: usize = 512 << 10;
/// Replies wait for more requests only while they are fewer bytes than this.
const LINGER_BYTES: usize = 64 << 10;
/// The fewest bytes of a long write that are written before all of it came.
const PIECE_BYTES: usize = 128 << 10;
/// The most short writes that are made in one go.
const BATCH: usize = 64;
/// How many requests are carried out before their replies are written: the client takes those while the next are.
const ROUND: u64 = 8;
/// A READ at least this long is sent while it is read; a shorter one is tried at once and whole.
const WINDOWED_BYTES: u32 = 128 << 10;
/// What is kept of used buffers.
const RECYCLED_BYTES: usize = 16 << 20;

/// What the next bytes from the client are.
enum Receiving {
    /// A request's header.
    Header,
    /// The payload of a write, short enough to be used where it lies.
    Short(Request),
    /// What is left of a write that is made in pieces as they come.
    Pieces(Request),
    /// The payload of a write, collected in its own buffer.
    Long { request: Request, buffer: Vec<u8>, filled: usize },
    /// The payload of a refused write.
    Skip { request: Request, left: u32, code: ErrorCode, why: &'static str },
    /// Not wanted: the connection ends, with this result, when what is in flight is done.
    Stopped,
}

struct Transmission<'a, S> {
    stream: &'a mut S,
    input: &'a mut Input,
    agreed: Agreed,
    limits: &'a Limits,
    receiving: Receiving,
    result: Option<Result<Ended, NbdError>>,
    jobs: Jobs,
    replies: Replies,
    recycler: Recycler,
    linger: Linger,
    /// How many requests came.
    received: u64,
    /// Whether a round ended before the input did.
    ahead: bool,
    /// Short writes that came whole and lie in the input.
    batch: Vec<(Request, Range<usize>)>,
}

/// Serves requests until the client disconnects, the stream fails, or `shutdown` completes; then finishes what is in
/// flight.
pub(crate) async fn transmit<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    input: &mut Input,
    agreed: Agreed,
    limits: &Limits,
    shutdown: impl Future<Output = ()>,
) -> Result<Ended, NbdError> {
    let contexts: Arc<[String]> = agreed.contexts.clone().into();
    let mut transmission = Transmission {
        stream,
        input,
        limits,
        receiving: Receiving::Header,
        result: None,
        jobs: Jobs::new(Arc::clone(&agreed.backend), contexts, limits.blocking_calls),
        replies: Replies::new(agreed.structured),
        recycler: Recycler::new(RECYCLED_BYTES),
        agreed,
        linger: Linger::default(),
        received: 0,
        ahead: false,
        batch: Vec::with_capacity(BATCH),
    };
    let mut shutdown = std::pin::pin!(shutdown);
    let mut farewell = None;
    let mut told = false;
    loop {
        let step = poll_fn(|context| {
            if !told && shutdown.as_mut().poll(context).is_ready() {
                told = true;
                transmission.stop(Ok(Ended::Shutdown));
            }
            let polled = transmission.poll(context);
            if polled.is_pending() && transmission.only_waits_for_client() {
                let sleep = farewell.get_or_insert_with(|| Box::pin(tokio::time::sleep(limits.farewell)));
                ready!(sleep.as_mut().poll(context));
                return Poll::Ready(Step::Ended(Err(NbdError::Closed { during: "taking the last replies" })));
            }
            polled
        });
        match step.await {
            Step::Ended(result) => return result,
            // Lets the runtime see to the sockets, and then goes on.
            Step::Look => tokio::task::yield_now().await,
        }
    }
}

/// Why the loop lets go.
enum Step {
    /// The connection's end.
    Ended(Result<Ended, NbdError>),
    /// To see whether more requests have arrived.
    Look,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Transmission<'_, S> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Step> {
        loop {
            // What is left in the input comes first; the stream is asked after it.
            let mut progress = self.ahead;
            while let Poll::Ready(done) = self.jobs.poll_done(context) {
                self.finish(done);
                progress = true;
            }
            if !self.ahead
                && self.accepts()
                && let Poll::Ready(read) = self.poll_input(context)
            {
                match read {
                    Ok(0) => self.at_end(),
                    Ok(_) => (),
                    Err(error) => self.broken(error),
                }
                progress = true;
            }
            progress |= self.receive_some();
            let unsent = self.replies.unsent_bytes();
            if (1..LINGER_BYTES).contains(&unsent) && !self.ahead && self.accepts() && self.linger.wanted(self.received)
            {
                return Poll::Ready(Step::Look);
            }
            let backend = &*self.agreed.backend;
            let written = self.replies.poll_write(&self.recycler, self.stream, backend, context);
            progress |= self.replies.unsent_bytes() < unsent;
            let mut idle = written.is_ready();
            if let Poll::Ready(Err(error)) = written {
                self.broken(error);
            }
            if progress {
                continue;
            }
            if idle {
                // Nothing is held here, but the stream itself may hold something.
                match Pin::new(&mut *self.stream).poll_flush(context) {
                    Poll::Ready(Ok(())) => (),
                    Poll::Ready(Err(error)) => self.broken(error),
                    Poll::Pending => idle = false,
                }
            }
            if idle
                && self.jobs.in_flight() == 0
                && let Some(result) = self.result.take()
            {
                return Poll::Ready(Step::Ended(result));
            }
            return Poll::Pending;
        }
    }

    /// Acts on what lies in the input, for a round; whether there was anything.
    fn receive_some(&mut self) -> bool {
        let (before, mut progress) = (self.received, false);
        self.ahead = false;
        while self.accepts() && self.receive() {
            progress = true;
            if self.received - before >= ROUND && matches!(self.receiving, Receiving::Header) {
                self.ahead = true;
                break;
            }
        }
        self.write_batch();
        progress
    }

    /// Whether another request may be taken on.
    fn accepts(&self) -> bool {
        let held_bytes = self.jobs.reserved_bytes() + self.replies.unsent_bytes();
        self.result.is_none()
            && self.replies.unsent_bytes() < UNSENT_BYTES
            && held_bytes < self.limits.in_flight_bytes.max(1)
            && self.jobs.in_flight() < self.limits.in_flight_requests.max(1)
    }

    /// Whether all is done but for replies that the client does not take.
    fn only_waits_for_client(&self) -> bool {
        self.result.is_some() && self.jobs.in_flight() == 0
    }

    /// Takes no more requests; the first reason stays.
    fn stop(&mut self, result: Result<Ended, NbdError>) {
        self.receiving = Receiving::Stopped;
        self.result.get_or_insert(result);
    }

    /// The stream failed: nobody will read the replies.
    fn broken(&mut self, error: io::Error) {
        self.replies.clear();
        self.stop(Err(error.into()));
    }

    fn at_end(&mut self) {
        match (&self.receiving, self.input.bytes().is_empty()) {
            (Receiving::Header, true) => self.stop(Ok(Ended::Closed)),
            _ => self.stop(Err(NbdError::Closed { during: "sending a request" })),
        }
    }

    fn poll_input(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Receiving::Long { buffer, filled, .. } = &mut self.receiving {
            let read = poll_read(self.stream, context, &mut buffer[*filled..]);
            if let Poll::Ready(Ok(count)) = &read {
                *filled += count;
            }
            return read;
        }
        self.input.poll_fill(self.stream, context)
    }

    /// Goes one step with the bytes that are there; false if they do not suffice.
    fn receive(&mut self) -> bool {
        match std::mem::replace(&mut self.receiving, Receiving::Header) {
            Receiving::Header => {
                let Some(header) = self.input.bytes().first_chunk() else { return false };
                match Request::decode(header) {
                    Ok(request) => {
                        self.input.consume(Request::BYTES);
                        self.received += 1;
                        self.accept(request);
                    }
                    Err(error) => self.stop(Err(error)),
                }
            }
            Receiving::Short(request) => {
                if self.input.bytes().len() < request.length as usize {
                    self.receiving = Receiving::Short(request);
                    return false;
                }
                let place = self.input.take(request.length as usize);
                self.batch.push((request, place));
                if self.batch.len() == BATCH {
                    self.write_batch();
                }
            }
            Receiving::Pieces(request) => return self.receive_piece(request),
            Receiving::Long { request, mut buffer, mut filled } => {
                filled += self.input.move_into(&mut buffer[filled..]);
                if filled < buffer.len() {
                    self.receiving = Receiving::Long { request, buffer, filled };
                    return false;
                }
                match write_now(&*self.agreed.backend, &request, &buffer) {
                    Ok(Now::Done) => {
                        self.replies.success(&self.recycler, request.cookie);
                        self.recycler.give(buffer);
                    }
                    Ok(Now::WouldBlock) => self.jobs.start(Job { request, buffer, holes: false }),
                    Err(error) => self.fail(request.cookie, &error),
                }
            }
            Receiving::Skip { request, left, code, why } => {
                let here = (left as usize).min(self.input.bytes().len());
                self.input.consume(here);
                let left = left - here as u32;
                if left > 0 {
                    self.receiving = Receiving::Skip { request, left, code, why };
                    return false;
                }
                self.replies.error(&self.recycler, request.cookie, code, why);
            }
            Receiving::Stopped => {
                self.receiving = Receiving::Stopped;
                return false;
            }
        }
        true
    }

    /// Writes what came of a long write, if it is enough.
    fn receive_piece(&mut self, mut request: Request) -> bool {
        let left = request.length as usize;
        let here = left.min(self.input.bytes().len());
        if here < left && here < PIECE_BYTES {
            self.receiving = Receiving::Pieces(request);
            return false;
        }
        match self.agreed.backend.try_write_now(request.offset, &self.input.bytes()[..here]) {
            Ok(Now::Done) if here == left => {
                self.input.consume(here);
                self.replies.success(&self.recycler, request.cookie);
            }
            Ok(Now::Done) => {
                self.input.consume(here);
                request.offset += here as u64;
                request.length -= here as u32;
                self.receiving = Receiving::Pieces(request);
            }
            Ok(Now::WouldBlock) => {
                let buffer = self.recycler.take(left);
                self.receiving = Receiving::Long { request, buffer, filled: 0 };
            }
            Err(error) => {
                let code = ErrorCode::from(&error);
                let left = request.length;
                self.receiving = Receiving::Skip { request, left, code, why: "the write failed" };
            }
        }
        true
    }

    /// Makes the short writes that lie in the input.
    fn write_batch(&mut self) {
        let backend = Arc::clone(&self.agreed.backend);
        let mut writes = [(0, &[][..]); BATCH];
        let mut plain = 0;
        for (write, (request, place)) in writes.iter_mut().zip(&self.batch) {
            if request.flags & command_flag::FUA != 0 {
                break;
            }
            *write = (request.offset, self.input.taken(place));
            plain += 1;
        }
        let done = if plain > 0 { backend.try_write_many_now(&writes[..plain]) } else { 0 };
        for (at, (request, place)) in std::mem::take(&mut self.batch).into_iter().enumerate() {
            let data = self.input.taken(&place);
            let now = if at < done { Ok(Now::Done) } else { write_now(&*backend, &request, data) };
            match now {
                Ok(Now::Done) => self.replies.success(&self.recycler, request.cookie),
                Ok(Now::WouldBlock) => {
                    let mut buffer = self.recycler.take(data.len());
                    buffer.copy_from_slice(data);
                    self.jobs.start(Job { request, buffer, holes: false });
                }
                Err(error) => self.fail(request.cookie, &error),
            }
        }
    }

    /// Acts on a request's header.
    fn accept(&mut self, request: Request) {
        if request.command == command::DISC {
            return self.stop(Ok(Ended::Disconnected));
        }
        if let Err((code, why)) = check(&request, &self.agreed) {
            if request.command == command::WRITE && request.length > 0 {
                let left = request.length;
                self.receiving = Receiving::Skip { request, left, code, why };
            } else {
                self.replies.error(&self.recycler, request.cookie, code, why);
            }
            return;
        }
        match request.command {
            command::READ => self.read(request),
            command::WRITE if request.length <= SHORT_BYTES => {
                self.receiving = Receiving::Short(request);
            }
            command::WRITE if self.agreed.backend.takes_pieces() && request.flags & command_flag::FUA == 0 => {
                self.receiving = Receiving::Pieces(request);
            }
            command::WRITE => {
                let buffer = self.recycler.take(request.length as usize);
                self.receiving = Receiving::Long { request, buffer, filled: 0 };
            }
            _ => self.jobs.start(Job { request, buffer: Vec::new(), holes: false }),
        }
    }

    fn read(&mut self, request: Request) {
        let Request { cookie, offset, length, .. } = request;
        if length < WINDOWED_BYTES {
            let backend = &*self.agreed.backend;
            let fill = |place: &mut [u8]| Ok(backend.try_read_now(offset, place)? == Now::Done);
            let place = (cookie, offset, length);
            match self.replies.read_in_place(&self.recycler, place, fill) {
                Ok(true) => return,
                Ok(false) => (),
                Err(error) => return self.fail(cookie, &error),
            }
        }
        if length >= WINDOWED_BYTES && self.agreed.backend.is_cached(offset, length.into()) {
            let backend = &*self.agreed.backend;
            match self.replies.read_by_windows(&self.recycler, (cookie, offset, length), backend) {
                Ok(()) => return,
                Err(error) => return self.fail(cookie, &error),
            }
        }
        let buffer = self.recycler.take(length as usize);
        self.jobs.start(Job { request, buffer, holes: self.agreed.structured });
    }

    fn fail(&mut self, cookie: u64, error: &io::Error) {
        self.replies.error(&self.recycler, cookie, ErrorCode::from(error), &error.to_string());
    }

    /// Answers a job that is done.
    fn finish(&mut self, done: Done) {
        let Done { request, outcome, buffer } = done;
        let Request { cookie, offset, length, .. } = request;
        if matches!(self.result, Some(Err(NbdError::Io(_)))) {
            return;
        }
        let (replies, recycler) = (&mut self.replies, &self.recycler);
        match outcome {
            Ok(Outcome::Data) => return replies.read(recycler, cookie, offset, buffer),
            Ok(Outcome::Success) => replies.success(recycler, cookie),
            Ok(Outcome::Hole) => replies.hole(recycler, cookie, offset, length),
            Ok(Outcome::Status(contexts)) if contexts.iter().all(|(_, list)| !list.is_empty()) => {
                replies.status(recycler, cookie, &contexts);
            }
            Ok(Outcome::Status(_)) => replies.error(recycler, cookie, ErrorCode::Io, "no extents"),
            Err((code, why)) => replies.error(recycler, cookie, code, &why),
        }
        recycler.give(buffer);
    }
}

/// Writes if that needs no waiting.
fn write_now(backend: &dyn Backend, request: &Request, data: &[u8]) -> io::Result<Now> {
    if request.length > INLINE_BYTES || request.flags & command_flag::FUA != 0 {
        return Ok(Now::WouldBlock);
    }
    backend.try_write_now(request.offset, data)
}

/// The flags that a command may carry.
fn allowed_flags(number: u16, structured: bool) -> u16 {
    match number {
        command::READ if structured => command_flag::DF | command_flag::FUA,
        command::READ | command::WRITE | command::TRIM | command::FLUSH => command_flag::FUA,
        command::WRITE_ZEROES => command_flag::FUA | command_flag::NO_HOLE | command_flag::FAST_ZERO,
        command::BLOCK_STATUS => command_flag::REQ_ONE | command_flag::FUA,
        _ => 0,
    }
}

/// Whether a request may be carried out, and otherwise the error that answers it.
fn check(request: &Request, agreed: &Agreed) -> Result<(), (ErrorCode, &'static str)> {
    let length = u64::from(request.length);
    let backend = &*agreed.backend;
    let changes = matches!(request.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
    match request.command {
        command::READ | command::WRITE | command::TRIM | command::WRITE_ZEROES => (),
        command::FLUSH | command::BLOCK_STATUS => (),
        _ => return Err((ErrorCode::Invalid, "unknown command")),
    }
    if request.flags & !allowed_flags(request.command, agreed.structured) != 0 {
        return Err((ErrorCode::Invalid, "unknown command flags"));
    }
    if changes && backend.read_only() {
        return Err((ErrorCode::NotPermitted, "the export is read-only"));
    }
    if request.command == command::FLUSH {
        return match (request.offset, request.length) {
            (0, 0) => Ok(()),
            _ => Err((ErrorCode::Invalid, "a flush has no range")),
        };
    }
    if length == 0 {
        return Err((ErrorCode::Invalid, "an empty range"));
    }
    let end = request.offset.checked_add(length);
    if end.is_none_or(|end| end > agreed.size_bytes) {
        let grows = matches!(request.command, command::WRITE | command::WRITE_ZEROES);
        let code = if grows { ErrorCode::NoSpace } else { ErrorCode::Invalid };
        return Err((code, "the range is beyond the end"));
    }
    let minimum = u64::from(agreed.block_sizes.minimum);
    if !request.offset.is_multiple_of(minimum) || !length.is_multiple_of(minimum) {
        return Err((ErrorCode::Invalid, "the range is not aligned to the minimum block size"));
    }
    match request.command {
        command::READ | command::WRITE if request.length > agreed.block_sizes.maximum.min(MAX_PAYLOAD_BYTES) => {
            Err((ErrorCode::Invalid, "longer than the maximum block size"))
        }
        command::BLOCK_STATUS if agreed.contexts.is_empty() => {
            Err((ErrorCode::Invalid, "no metadata context was chosen"))
        }
        _ => Ok(()),
    }
}
