//! The client: any number of requests in flight on one connection, from any number of tasks.
//!
//! ```text
//!   read, write, ... --(request)--> writing task ==stream==> server
//!         ^                                                     |
//!         +------(answer, by its cookie)---- reading task <=====+
//! ```
//!
//! A call that is dropped before its answer leaves the connection in order. When the connection is lost every call that
//! waits, and every later one, gets [`NbdError::Lost`] with the reason.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
};

use crate::{
    backend::{StatusExtent, ZeroMode},
    buffers::Input,
    client_tasks::{Answer, Expected, Pending, Shared, read_replies, write_requests},
    error::NbdError,
    negotiate_client::{ExportInfo, ListedExport, Negotiation},
    protocol::{Request, command, command_flag, flag, option},
    tls::ClientTls,
};

/// What a client asks for, beyond the export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientOptions {
    /// Ask for structured replies.
    pub structured: bool,
    /// Ask for these metadata contexts; those that the server lacks are missing from [`ExportInfo::contexts`].
    pub contexts: Vec<String>,
    /// The most requests in flight; further calls wait.
    pub in_flight_requests: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self { structured: true, contexts: Vec::new(), in_flight_requests: 256 }
    }
}

/// What goes to the writing task.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) request: Request,
    pub(crate) payload: Vec<u8>,
}

#[derive(Debug)]
struct Inner {
    info: ExportInfo,
    shared: Arc<Shared>,
    outgoing: mpsc::UnboundedSender<Outgoing>,
    slots: Arc<Semaphore>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// A connection to an export. Clones share it; when the last is dropped the connection is closed.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

impl Client {
    /// Negotiates on a stream and enters an export. Must run on a tokio runtime, which carries the connection's two tasks.
    pub async fn connect<S>(mut stream: S, export: &str, options: ClientOptions) -> Result<Self, NbdError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut input = Input::new();
        let negotiation = Negotiation::begin(&mut stream, &mut input).await?;
        let info = negotiation.enter(export, &options).await?;
        Ok(Self::over(stream, input, info, &options))
    }

    /// As [`connect`](Self::connect), but within TLS; a server that has none is an error.
    pub async fn connect_secure<S>(
        mut stream: S,
        export: &str,
        options: ClientOptions,
        tls: &ClientTls,
    ) -> Result<Self, NbdError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut input = Input::new();
        let greeted = Negotiation::begin(&mut stream, &mut input).await?.secure().await?;
        let mut stream = tls.connect(stream).await?;
        let info = Negotiation::within(&mut stream, &mut input, greeted).enter(export, &options).await?;
        Ok(Self::over(stream, input, info, &options))
    }

    fn over<S>(stream: S, input: Input, info: ExportInfo, options: &ClientOptions) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (reader, writer) = tokio::io::split(stream);
        let shared = Arc::new(Shared::new(info.structured));
        let (outgoing, requests) = mpsc::unbounded_channel();
        let reading = tokio::spawn(read_replies(reader, input, Arc::clone(&shared)));
        let writing = tokio::spawn(write_requests(writer, requests, Arc::clone(&shared)));
        let slots = Arc::new(Semaphore::new(options.in_flight_requests.max(1)));
        let tasks = Mutex::new(vec![reading, writing]);
        Self(Arc::new(Inner { info, shared, outgoing, slots, tasks }))
    }

    /// The exports that a server lists; ends the negotiation.
    pub async fn list<S>(mut stream: S) -> Result<Vec<ListedExport>, NbdError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut input = Input::new();
        let mut negotiation = Negotiation::begin(&mut stream, &mut input).await?;
        let list = negotiation.list().await?;
        negotiation.abort().await?;
        Ok(list)
    }

    /// What a server says about an export, with all contexts that it offers there (numbered 0); ends the negotiation.
    pub async fn query<S>(mut stream: S, export: &str) -> Result<ExportInfo, NbdError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut input = Input::new();
        let mut negotiation = Negotiation::begin(&mut stream, &mut input).await?;
        let structured = negotiation.structured().await?;
        let mut info = negotiation.info(export).await?;
        if structured {
            let all = option::LIST_META_CONTEXT;
            info.contexts = negotiation.meta_contexts(all, export, &[]).await?;
        }
        negotiation.abort().await?;
        Ok(ExportInfo { structured, ..info })
    }

    /// What the server said about the export.
    pub fn info(&self) -> &ExportInfo {
        &self.0.info
    }

    /// The export's size.
    pub fn size_bytes(&self) -> u64 {
        self.0.info.size_bytes
    }

    /// Whether the connection is lost or closed: every call will fail.
    pub fn is_lost(&self) -> bool {
        self.0.shared.lost().is_some()
    }

    /// A buffer of this length with any content, from those that are used up: cheaper than fresh memory.
    pub fn take_buffer(&self, length: usize) -> Vec<u8> {
        self.0.shared.recycler.take(length)
    }

    /// Gives a buffer back for later use.
    pub fn give_buffer(&self, buffer: Vec<u8>) {
        self.0.shared.recycler.give(buffer);
    }

    /// Reads `length` bytes at `offset`; longer reads than the server takes are split.
    pub async fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, NbdError> {
        self.read_into(offset, self.take_buffer(length)).await
    }

    /// Reads as many bytes at `offset` as the buffer is long, into it.
    pub async fn read_into(&self, offset: u64, buffer: Vec<u8>) -> Result<Vec<u8>, NbdError> {
        if buffer.is_empty() {
            return Ok(buffer);
        }
        if buffer.len() <= self.maximum() {
            let length = buffer.len() as u32;
            let expected = Expected::Data { offset, buffer, covered: Vec::new() };
            let submitted = self.submit(command::READ, 0, offset, length, Vec::new(), expected);
            return Ok(submitted.await?.data);
        }
        let mut buffer = buffer;
        let mut position = offset;
        for part in buffer.chunks_mut(self.maximum()) {
            let piece = Box::pin(self.read(position, part.len())).await?;
            part.copy_from_slice(&piece);
            self.give_buffer(piece);
            position += part.len() as u64;
        }
        Ok(buffer)
    }

    /// Reads into a slice at `offset`.
    pub async fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), NbdError> {
        let data = self.read(offset, buffer.len()).await?;
        buffer.copy_from_slice(&data);
        self.give_buffer(data);
        Ok(())
    }

    /// Writes `data` at `offset`; with `fua`, durably. Longer writes than the server takes are split.
    pub async fn write_at(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), NbdError> {
        let mut position = offset;
        for part in data.chunks(self.maximum()) {
            let mut payload = self.take_buffer(part.len());
            payload.copy_from_slice(part);
            self.write_one(position, payload, fua).await?;
            position += part.len() as u64;
        }
        Ok(())
    }

    /// Writes a buffer at `offset`, without a copy; the buffer goes back to [`take_buffer`](Self::take_buffer).
    pub async fn write(&self, offset: u64, data: Vec<u8>, fua: bool) -> Result<(), NbdError> {
        if data.len() > self.maximum() {
            let written = self.write_at(offset, &data, fua).await;
            self.give_buffer(data);
            return written;
        }
        if data.is_empty() {
            return Ok(());
        }
        self.write_one(offset, data, fua).await
    }

    async fn write_one(&self, offset: u64, payload: Vec<u8>, fua: bool) -> Result<(), NbdError> {
        let flags = self.fua_flag(fua);
        let length = payload.len() as u32;
        let expected = Expected::Nothing;
        self.submit(command::WRITE, flags, offset, length, payload, expected).await?;
        if fua && flags == 0 { self.flush().await } else { Ok(()) }
    }

    /// The flag for a durable command; 0 where the server lacks it, and a flush has to follow.
    fn fua_flag(&self, fua: bool) -> u16 {
        if fua && self.0.info.has(flag::SEND_FUA) { command_flag::FUA } else { 0 }
    }

    /// Makes durable what was answered before.
    pub async fn flush(&self) -> Result<(), NbdError> {
        if !self.0.info.has(flag::SEND_FLUSH) {
            return Err(NbdError::InvalidRequest("the server cannot flush"));
        }
        self.submit(command::FLUSH, 0, 0, 0, Vec::new(), Expected::Nothing).await?;
        Ok(())
    }

    /// Tells that a range's content is no longer needed. A hint: a server that does not take it is not told.
    pub async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), NbdError> {
        // A read-only server is asked nevertheless, to hear its error.
        if !self.0.info.has(flag::SEND_TRIM) && !self.0.info.read_only() {
            return Ok(());
        }
        let flags = self.fua_flag(fua);
        self.over_range(command::TRIM, flags, offset, length).await?;
        if fua && flags == 0 { self.flush().await } else { Ok(()) }
    }

    /// Makes a range read as zeroes; where the server lacks the command, by writing them.
    pub async fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), NbdError> {
        let info = &self.0.info;
        if mode.fast && !info.has(flag::SEND_FAST_ZERO | flag::SEND_WRITE_ZEROES) {
            return Err(NbdError::InvalidRequest("the server has no fast zeroes"));
        }
        let fua = self.fua_flag(mode.fua);
        if info.has(flag::SEND_WRITE_ZEROES) || info.read_only() {
            let no_hole = if mode.may_trim { 0 } else { command_flag::NO_HOLE };
            let fast = if mode.fast { command_flag::FAST_ZERO } else { 0 };
            self.over_range(command::WRITE_ZEROES, fua | no_hole | fast, offset, length).await?;
        } else {
            let zeroes = vec![0; length.min(MIB) as usize];
            let mut done = 0;
            while done < length {
                let part = (length - done).min(MIB);
                self.write_at(offset + done, &zeroes[..part as usize], fua != 0).await?;
                done += part;
            }
        }
        if mode.fua && fua == 0 { self.flush().await } else { Ok(()) }
    }

    async fn over_range(&self, number: u16, flags: u16, offset: u64, length: u64) -> Result<(), NbdError> {
        let (mut position, mut left) = (offset, length);
        while left > 0 {
            let part = left.min(RANGE_BYTES_MAX);
            let expected = Expected::Nothing;
            self.submit(number, flags, position, part as u32, Vec::new(), expected).await?;
            position += part;
            left -= part;
        }
        Ok(())
    }

    /// The status of a range in one of the agreed contexts: extents from `offset` on, at least one. The server may stop
    /// before the range ends, and the last extent may reach beyond it.
    pub async fn block_status(&self, context: &str, offset: u64, length: u64) -> Result<Vec<StatusExtent>, NbdError> {
        let contexts = &self.0.info.contexts;
        let Some((id, _)) = contexts.iter().find(|(_, name)| name == context) else {
            return Err(NbdError::InvalidRequest("the context was not agreed on"));
        };
        let length = length.min(RANGE_BYTES_MAX) as u32;
        let expected = Expected::Status { wanted: *id, extents: Vec::new() };
        let (number, flags) = (command::BLOCK_STATUS, 0);
        let answer = self.submit(number, flags, offset, length, Vec::new(), expected).await?;
        Ok(answer.extents)
    }

    /// The status of a whole range: as many requests as that takes. Equal neighbors are merged.
    pub async fn block_status_all(
        &self,
        context: &str,
        offset: u64,
        length: u64,
    ) -> Result<Vec<StatusExtent>, NbdError> {
        let mut all = crate::backend::Extents::new(length, usize::MAX);
        let (mut position, end) = (offset, offset.saturating_add(length));
        while position < end {
            let extents = self.block_status(context, position, end - position).await?;
            let reached: u64 = extents.iter().map(|extent| extent.length).sum();
            for extent in extents {
                all.push(extent.length, extent.flags);
            }
            position = position.saturating_add(reached);
        }
        Ok(all.into_list())
    }

    /// Disconnects as the protocol has it, after what was already submitted, and waits for the connection's end. Calls that
    /// wait for an answer get theirs, or `Lost`. A server that does not close its end is waited for a few seconds.
    pub async fn disconnect(self) {
        self.0.send_disconnect();
        let tasks = {
            let mut tasks = self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *tasks)
        };
        for mut task in tasks {
            // A task that panicked has ended, too; one that outlasts the bound is ended.
            if tokio::time::timeout(PATIENCE, &mut task).await.is_err() {
                task.abort();
            }
        }
        self.0.shared.lose(NbdError::Disconnected);
    }

    fn maximum(&self) -> usize {
        self.0.info.block_sizes.maximum as usize
    }

    async fn submit(
        &self,
        number: u16,
        flags: u16,
        offset: u64,
        length: u32,
        payload: Vec<u8>,
        expected: Expected,
    ) -> Result<Answer, NbdError> {
        let inner = &*self.0;
        let slot = Arc::clone(&inner.slots).acquire_owned().await;
        let slot = slot.map_err(|_| NbdError::Disconnected)?;
        let (answer, answered) = oneshot::channel();
        let pending = Pending { expected, length, answer, error: None, chunks: 0, _slot: slot };
        let cookie = inner.shared.register(pending)?;
        let request = Request { flags, command: number, cookie, offset, length };
        // If the writing task is gone the reason is in `shared`, and the sender of `answered` with it.
        let _ = inner.outgoing.send(Outgoing { request, payload });
        match answered.await {
            Ok(result) => result,
            Err(_) => Err(inner.shared.lost_error()),
        }
    }
}

/// Zeroes are written in pieces of this size where the server has no command for it.
const MIB: u64 = 1 << 20;
/// How long a disconnect waits for the server.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest TRIM, WRITE_ZEROES and BLOCK_STATUS that is sent at once: below 32 bits, and aligned to any block size.
const RANGE_BYTES_MAX: u64 = 1 << 31;

impl Inner {
    fn send_disconnect(&self) {
        let request = Request { flags: 0, command: command::DISC, cookie: 0, offset: 0, length: 0 };
        let _ = self.outgoing.send(Outgoing { request, payload: Vec::new() });
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // No call is waiting any more, so there is nothing left to read; the writing task ends by itself.
        self.send_disconnect();
        let tasks = self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(reading) = tasks.first() {
            reading.abort();
        }
    }
}

impl Client {
    /// Connects to a unix socket.
    pub async fn connect_unix(
        path: impl AsRef<std::path::Path>,
        export: &str,
        options: ClientOptions,
    ) -> Result<Self, NbdError> {
        let stream = tokio::net::UnixStream::connect(path).await?;
        Self::connect(stream, export, options).await
    }

    /// Connects over TCP.
    pub async fn connect_tcp(
        address: impl tokio::net::ToSocketAddrs,
        export: &str,
        options: ClientOptions,
    ) -> Result<Self, NbdError> {
        let stream = tokio::net::TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Self::connect(stream, export, options).await
    }
}
