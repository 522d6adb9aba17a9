//! The client's two tasks and what they share with its callers.

use std::{
    collections::HashMap,
    io::IoSlice,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch},
};

use crate::{
    backend::StatusExtent,
    buffers::{Input, Recycler},
    client::Outgoing,
    error::{ErrorCode, NbdError},
    protocol::{ChunkHeader, Cursor, MAX_STATUS_BYTES, MAX_STRING_BYTES, ReplyHeader, SimpleReply, chunk, command},
};

/// What is kept of used buffers.
const RECYCLED_BYTES: usize = 64 << 20;
/// The most chunks that a client takes for one reply.
const CHUNKS_MAX: u32 = 256 << 10;
/// The most separate ranges that a reply may have come in at any time; servers send them in order, which makes it one.
const RANGES_MAX: usize = 4096;
/// The most requests that go into one write.
const BATCH: usize = 64;

/// What an answer consists of.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) data: Vec<u8>,
    pub(crate) extents: Vec<StatusExtent>,
}

/// What a request's answer is to bring, as far as it came.
#[derive(Debug)]
pub(crate) enum Expected {
    /// Success.
    Nothing,
    /// As many bytes as the buffer is long; `covered` are the ranges of it that came, sorted and merged.
    Data { offset: u64, buffer: Vec<u8>, covered: Vec<(u64, u64)> },
    /// Extents in a context.
    Status { wanted: u32, extents: Vec<StatusExtent> },
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) expected: Expected,
    pub(crate) length: u32,
    pub(crate) answer: oneshot::Sender<Result<Answer, NbdError>>,
    pub(crate) error: Option<NbdError>,
    pub(crate) chunks: u32,
    pub(crate) _slot: OwnedSemaphorePermit,
}

impl Pending {
    /// Hands the answer over. The caller may be gone, and then nobody wants it.
    fn finish(self) {
        let result = match (self.error, self.expected) {
            (Some(error), _) => Err(error),
            (None, Expected::Nothing) => Ok(Answer::default()),
            (None, Expected::Data { buffer, covered, .. }) => match covered[..] == [(0, buffer.len() as u64)] {
                true => Ok(Answer { data: buffer, ..Answer::default() }),
                false => Err(NbdError::Protocol("a read answered with gaps")),
            },
            (None, Expected::Status { extents, .. }) if extents.is_empty() => {
                Err(NbdError::Protocol("a block status without extents"))
            }
            (None, Expected::Status { extents, .. }) => Ok(Answer { extents, ..Answer::default() }),
        };
        let _ = self.answer.send(result);
    }
}

#[derive(Debug, Default)]
struct State {
    pending: HashMap<u64, Pending>,
    next_cookie: u64,
    lost: Option<Arc<NbdError>>,
    disconnecting: bool,
}

/// What callers and tasks share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    structured: bool,
    /// Whether it is lost, so that each task hears when the other ended.
    ended: watch::Sender<bool>,
    pub(crate) recycler: Recycler,
}

impl Shared {
    /// Nothing pending.
    pub(crate) fn new(structured: bool) -> Self {
        let recycler = Recycler::new(RECYCLED_BYTES);
        let (ended, _) = watch::channel(false);
        Self { state: Mutex::default(), structured, ended, recycler }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the connection is lost, if it is.
    pub(crate) fn lost(&self) -> Option<Arc<NbdError>> {
        self.state().lost.clone()
    }

    /// The error for a call that gets no answer.
    pub(crate) fn lost_error(&self) -> NbdError {
        self.lost().map_or(NbdError::Disconnected, NbdError::Lost)
    }

    /// Enters a request; its cookie.
    pub(crate) fn register(&self, pending: Pending) -> Result<u64, NbdError> {
        let mut state = self.state();
        if let Some(reason) = &state.lost {
            return Err(NbdError::Lost(Arc::clone(reason)));
        }
        if state.disconnecting {
            return Err(NbdError::Disconnected);
        }
        state.next_cookie += 1;
        let cookie = state.next_cookie;
        state.pending.insert(cookie, pending);
        Ok(cookie)
    }

    /// Ends the connection for everybody who waits; the first reason stays.
    pub(crate) fn lose(&self, reason: NbdError) {
        let dropped = {
            let mut state = self.state();
            state.lost.get_or_insert_with(|| Arc::new(reason));
            std::mem::take(&mut state.pending)
        };
        self.ended.send_replace(true);
        drop(dropped);
    }

    /// Completes when the connection is lost.
    async fn ended(&self) {
        // The sender lives in `self`, so waiting does not fail.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    fn take(&self, cookie: u64) -> Result<Pending, NbdError> {
        let pending = self.state().pending.remove(&cookie);
        pending.ok_or(NbdError::Protocol("a reply with an unknown cookie"))
    }
}

/// Sends requests as they come, many in one write, until a disconnect, or until the connection is lost.
pub(crate) async fn write_requests<S: AsyncWrite + Unpin>(
    mut stream: S,
    mut requests: mpsc::UnboundedReceiver<Outgoing>,
    shared: Arc<Shared>,
) {
    tokio::select! {
        () = write_until_disconnect(&mut stream, &mut requests, &shared) => (),
        () = shared.ended() => (),
    }
    let _ = stream.shutdown().await;
}

async fn write_until_disconnect<S: AsyncWrite + Unpin>(
    stream: &mut S,
    requests: &mut mpsc::UnboundedReceiver<Outgoing>,
    shared: &Shared,
) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut disconnect = false;
    while !disconnect && requests.recv_many(&mut batch, BATCH).await > 0 {
        let last = batch.iter().position(|outgoing| outgoing.request.command == command::DISC);
        if let Some(last) = last {
            batch.truncate(last + 1);
            disconnect = true;
            shared.state().disconnecting = true;
        }
        if let Err(error) = write_batch(stream, &batch).await {
            return shared.lose(error.into());
        }
        for outgoing in batch.drain(..) {
            shared.recycler.give(outgoing.payload);
        }
    }
}

async fn write_batch<S: AsyncWrite + Unpin>(stream: &mut S, batch: &[Outgoing]) -> std::io::Result<()> {
    let headers: Vec<_> = batch.iter().map(|outgoing| outgoing.request.encode()).collect();
    let mut slices = Vec::with_capacity(batch.len() * 2);
    for (header, outgoing) in headers.iter().zip(batch) {
        slices.push(IoSlice::new(header));
        if !outgoing.payload.is_empty() {
            slices.push(IoSlice::new(&outgoing.payload));
        }
    }
    let mut left = &mut slices[..];
    while !left.is_empty() {
        let written = stream.write_vectored(left).await?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut left, written);
    }
    stream.flush().await
}

/// Takes replies to those who wait for them, until the stream ends or the server breaks the protocol.
pub(crate) async fn read_replies<S: AsyncRead + Unpin>(stream: S, input: Input, shared: Arc<Shared>) {
    let mut reader = Reader { stream, input, shared: Arc::clone(&shared) };
    let replies = async {
        loop {
            if let Err(error) = reader.reply().await {
                return error;
            }
        }
    };
    let reason = tokio::select! {
        reason = replies => reason,
        () = shared.ended() => return,
    };
    let disconnecting = shared.state().disconnecting;
    shared.lose(if disconnecting { NbdError::Disconnected } else { reason });
}

struct Reader<S> {
    stream: S,
    input: Input,
    shared: Arc<Shared>,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    async fn reply(&mut self) -> Result<(), NbdError> {
        let mut wanted = SimpleReply::BYTES;
        let (header, length) = loop {
            self.input.fill(&mut self.stream, wanted, "sending replies").await?;
            match ReplyHeader::decode(self.input.bytes())? {
                Some(decoded) => break decoded,
                None => wanted = ChunkHeader::BYTES,
            }
        };
        self.input.consume(length);
        match header {
            ReplyHeader::Simple(header) => self.simple(header).await,
            ReplyHeader::Chunk(header) if self.shared.structured => self.chunk(header).await,
            ReplyHeader::Chunk(_) => Err(NbdError::Protocol("a structured reply unasked for")),
        }
    }

    async fn simple(&mut self, header: SimpleReply) -> Result<(), NbdError> {
        let mut pending = self.shared.take(header.cookie)?;
        if pending.chunks > 0 {
            return Err(NbdError::Protocol("a simple reply within a structured one"));
        }
        match (ErrorCode::from_number(header.error), &mut pending.expected) {
            (Some(code), _) => {
                pending.error = Some(NbdError::Server { code, message: String::new() });
            }
            (None, Expected::Nothing) => (),
            (None, _) if self.shared.structured => {
                return Err(NbdError::Protocol("a simple reply with data"));
            }
            (None, Expected::Data { buffer, covered, .. }) => {
                self.input.read_exact(&mut self.stream, buffer, "sending data").await?;
                covered.push((0, buffer.len() as u64));
            }
            (None, Expected::Status { .. }) => {
                return Err(NbdError::Protocol("a simple reply to a block status"));
            }
        }
        pending.finish();
        Ok(())
    }

    async fn chunk(&mut self, header: ChunkHeader) -> Result<(), NbdError> {
        let mut pending = self.shared.take(header.cookie)?;
        pending.chunks += 1;
        if pending.chunks > CHUNKS_MAX {
            return Err(NbdError::Protocol("a reply of too many chunks"));
        }
        match header.kind {
            chunk::NONE => check_length(header.length, 0, 0)?,
            chunk::OFFSET_DATA => self.data(header, &mut pending).await?,
            chunk::OFFSET_HOLE => self.hole(header, &mut pending).await?,
            chunk::BLOCK_STATUS => self.status(header, &mut pending).await?,
            kind if kind & chunk::ERROR_BIT != 0 => self.error(header, &mut pending).await?,
            _ => return Err(NbdError::Protocol("a chunk of an unknown type")),
        }
        if header.flags & chunk::FLAG_DONE != 0 {
            pending.finish();
        } else if header.kind == chunk::NONE {
            return Err(NbdError::Protocol("an empty chunk that is not the last"));
        } else {
            self.shared.state().pending.insert(header.cookie, pending);
        }
        Ok(())
    }

    async fn data(&mut self, header: ChunkHeader, pending: &mut Pending) -> Result<(), NbdError> {
        check_length(header.length, 9, pending.length.saturating_add(8))?;
        let offset = self.u64().await?;
        let place = place(&mut pending.expected, offset, u64::from(header.length) - 8)?;
        self.input.read_exact(&mut self.stream, place, "sending data").await
    }

    async fn hole(&mut self, header: ChunkHeader, pending: &mut Pending) -> Result<(), NbdError> {
        check_length(header.length, 12, 12)?;
        let offset = self.u64().await?;
        let length = self.u32().await?;
        if length == 0 {
            return Err(NbdError::Protocol("an empty hole"));
        }
        place(&mut pending.expected, offset, length.into())?.fill(0);
        Ok(())
    }

    async fn status(&mut self, header: ChunkHeader, pending: &mut Pending) -> Result<(), NbdError> {
        check_length(header.length, 12, MAX_STATUS_BYTES)?;
        let Expected::Status { wanted, extents } = &mut pending.expected else {
            return Err(NbdError::Protocol("a status chunk unasked for"));
        };
        let mut bytes = vec![0; header.length as usize];
        self.input.read_exact(&mut self.stream, &mut bytes, "sending a status").await?;
        let mut cursor = Cursor(&bytes);
        if cursor.u32() != Some(*wanted) {
            // Another of the agreed contexts, which the server sends as well.
            return Ok(());
        }
        if !extents.is_empty() || !cursor.0.len().is_multiple_of(8) {
            return Err(NbdError::Protocol("a malformed block status"));
        }
        while let (Some(length), Some(flags)) = (cursor.u32(), cursor.u32()) {
            if length == 0 {
                return Err(NbdError::Protocol("an empty extent"));
            }
            extents.push(StatusExtent { length: length.into(), flags });
        }
        Ok(())
    }

    async fn error(&mut self, header: ChunkHeader, pending: &mut Pending) -> Result<(), NbdError> {
        check_length(header.length, 6, 6 + 8 + MAX_STRING_BYTES as u32)?;
        let mut bytes = vec![0; header.length as usize];
        self.input.read_exact(&mut self.stream, &mut bytes, "sending an error").await?;
        let mut cursor = Cursor(&bytes);
        let number = cursor.u32().unwrap_or(0);
        let message = cursor.u16().and_then(|length| cursor.take(length.into()));
        let message = message.ok_or(NbdError::Protocol("a malformed error"))?;
        let message = String::from_utf8_lossy(message).into_owned();
        let code = ErrorCode::from_number(number).ok_or(NbdError::Protocol("error number 0"))?;
        pending.error.get_or_insert(NbdError::Server { code, message });
        Ok(())
    }

    async fn u64(&mut self) -> Result<u64, NbdError> {
        let mut bytes = [0; 8];
        self.input.read_exact(&mut self.stream, &mut bytes, "sending a chunk").await?;
        Ok(u64::from_be_bytes(bytes))
    }

    async fn u32(&mut self) -> Result<u32, NbdError> {
        let mut bytes = [0; 4];
        self.input.read_exact(&mut self.stream, &mut bytes, "sending a chunk").await?;
        Ok(u32::from_be_bytes(bytes))
    }
}

fn check_length(length: u32, minimum: u32, maximum: u32) -> Result<(), NbdError> {
    if length < minimum {
        return Err(NbdError::Protocol("a chunk that is too short"));
    }
    if length > maximum {
        let (length, bound) = (length.into(), maximum.into());
        return Err(NbdError::TooLong { what: "a chunk", length, bound });
    }
    Ok(())
}

/// The part of the buffer that a chunk fills; each byte comes once.
fn place(expected: &mut Expected, offset: u64, length: u64) -> Result<&mut [u8], NbdError> {
    let Expected::Data { offset: begin, buffer, covered } = expected else {
        return Err(NbdError::Protocol("a data chunk unasked for"));
    };
    let start = offset.checked_sub(*begin).ok_or(NbdError::Protocol("data before the range"))?;
    let end = start.checked_add(length).filter(|end| *end <= buffer.len() as u64);
    let end = end.ok_or(NbdError::Protocol("data beyond the range"))?;
    cover(covered, start, end)?;
    Ok(&mut buffer[start as usize..end as usize])
}

/// Adds a range to sorted, merged ranges that it must not touch upon.
fn cover(covered: &mut Vec<(u64, u64)>, start: u64, end: u64) -> Result<(), NbdError> {
    let after = covered.partition_point(|range| range.1 <= start);
    if covered.get(after).is_some_and(|range| range.0 < end) {
        return Err(NbdError::Protocol("the same bytes twice in a reply"));
    }
    let joins_left = after > 0 && covered[after - 1].1 == start;
    let joins_right = covered.get(after).is_some_and(|range| range.0 == end);
    match (joins_left, joins_right) {
        (true, true) => {
            covered[after - 1].1 = covered[after].1;
            covered.remove(after);
        }
        (true, false) => covered[after - 1].1 = end,
        (false, true) => covered[after].0 = start,
        (false, false) if covered.len() >= RANGES_MAX => {
            return Err(NbdError::Protocol("a reply in too many scattered chunks"));
        }
        (false, false) => covered.insert(after, (start, end)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn covering_every_byte_once_leaves_one_range(order in Just((0..32_u64).collect::<Vec<_>>()).prop_shuffle()) {
            let mut covered = Vec::new();
            for byte in &order {
                cover(&mut covered, *byte, byte + 1).unwrap();
                prop_assert!(cover(&mut covered, *byte, byte + 1).is_err());
            }
            prop_assert_eq!(covered, [(0, 32)]);
        }
    }
}
