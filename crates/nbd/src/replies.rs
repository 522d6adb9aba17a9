//! Replies of a connection on their way to the stream: small ones are staged side by side, so that many leave in one write;
//! large payloads queue as they are.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::AsyncWrite;

use crate::{
    backend::{Backend, StatusExtent},
    buffers::Recycler,
    error::ErrorCode,
    protocol::{ChunkHeader, SimpleReply, chunk},
};

/// The size of a staging piece.
const STAGE_BYTES: usize = 256 << 10;
/// Payloads up to this length are copied to the stage rather than queued.
const COPY_BYTES: usize = 16 << 10;
/// What is read at once of a payload that is at hand: little enough to be sent while it is in the processor's cache.
const WINDOW_BYTES: usize = 128 << 10;
/// At most this many pieces go into one vectored write.
const SLICES: usize = 16;

#[derive(Debug)]
struct Piece {
    kind: Kind,
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// Short replies side by side; more may follow.
    Stage,
    /// The payload of one reply.
    Payload,
    /// A part of a payload; what is to follow it in the export.
    Window { rest: Range<u64> },
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Replies {
    queue: VecDeque<Piece>,
    unsent_bytes: usize,
    structured: bool,
}

impl Replies {
    /// An empty one, for simple or structured replies.
    pub(crate) fn new(structured: bool) -> Self {
        Self { queue: VecDeque::new(), unsent_bytes: 0, structured }
    }

    /// What still waits to be written.
    pub(crate) fn unsent_bytes(&self) -> usize {
        self.unsent_bytes
    }

    /// Forgets all of it.
    pub(crate) fn clear(&mut self) {
        self.queue.clear();
        self.unsent_bytes = 0;
    }

    /// Room for `length` bytes at the end of the stage; they count only when committed.
    fn stage(&mut self, recycler: &Recycler, length: usize) -> &mut [u8] {
        let fits = |piece: &Piece| piece.kind == Kind::Stage && piece.bytes.len() - piece.end >= length;
        if !self.queue.back().is_some_and(fits) {
            let bytes = recycler.take(STAGE_BYTES.max(length));
            self.queue.push_back(Piece { kind: Kind::Stage, bytes, start: 0, end: 0 });
        }
        match self.queue.back_mut() {
            Some(piece) => &mut piece.bytes[piece.end..piece.end + length],
            None => &mut [],
        }
    }

    fn commit(&mut self, length: usize) {
        if let Some(piece) = self.queue.back_mut() {
            piece.end += length;
            self.unsent_bytes += length;
        }
    }

    fn append(&mut self, recycler: &Recycler, bytes: &[u8]) {
        self.stage(recycler, bytes.len()).copy_from_slice(bytes);
        self.commit(bytes.len());
    }

    /// Success without data.
    pub(crate) fn success(&mut self, recycler: &Recycler, cookie: u64) {
        self.append(recycler, &SimpleReply { error: 0, cookie }.encode());
    }

    /// An error.
    pub(crate) fn error(&mut self, recycler: &Recycler, cookie: u64, code: ErrorCode, why: &str) {
        let error = code.number();
        if !self.structured {
            return self.append(recycler, &SimpleReply { error, cookie }.encode());
        }
        let why = &why.as_bytes()[..why.len().min(256)];
        let length = 6 + why.len() as u32;
        let header = ChunkHeader { flags: chunk::FLAG_DONE, kind: chunk::ERROR, cookie, length };
        self.append(recycler, &header.encode());
        self.append(recycler, &error.to_be_bytes());
        self.append(recycler, &(why.len() as u16).to_be_bytes());
        self.append(recycler, why);
    }

    /// The header before the data of a read, and its length.
    fn read_header(&self, cookie: u64, offset: u64, length: u32) -> ([u8; 28], usize) {
        let mut bytes = [0; 28];
        if !self.structured {
            bytes[..16].copy_from_slice(&SimpleReply { error: 0, cookie }.encode());
            return (bytes, 16);
        }
        let (flags, kind) = (chunk::FLAG_DONE, chunk::OFFSET_DATA);
        let header = ChunkHeader { flags, kind, cookie, length: length + 8 };
        bytes[..20].copy_from_slice(&header.encode());
        bytes[20..].copy_from_slice(&offset.to_be_bytes());
        (bytes, 28)
    }

    /// The answer to a read whose data `fill` puts in place; nothing is sent when `fill` fails or says no.
    pub(crate) fn read_in_place(
        &mut self,
        recycler: &Recycler,
        (cookie, offset, length): (u64, u64, u32),
        fill: impl FnOnce(&mut [u8]) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let (header, head) = self.read_header(cookie, offset, length);
        let total = head + length as usize;
        let place = self.stage(recycler, total);
        if !fill(&mut place[head..])? {
            return Ok(false);
        }
        place[..head].copy_from_slice(&header[..head]);
        self.commit(total);
        Ok(true)
    }

    /// The answer to a read with its data.
    pub(crate) fn read(&mut self, recycler: &Recycler, cookie: u64, offset: u64, data: Vec<u8>) {
        let length = data.len();
        let (header, head) = self.read_header(cookie, offset, length as u32);
        self.append(recycler, &header[..head]);
        if length <= COPY_BYTES {
            self.append(recycler, &data);
            return recycler.give(data);
        }
        self.unsent_bytes += length;
        self.queue.push_back(Piece { kind: Kind::Payload, bytes: data, start: 0, end: length });
    }

    /// The answer to a read whose data `source` has at hand: a window of it now, the rest when that is sent.
    pub(crate) fn read_by_windows(
        &mut self,
        recycler: &Recycler,
        (cookie, offset, length): (u64, u64, u32),
        source: &dyn Backend,
    ) -> io::Result<()> {
        let mut window = recycler.take(WINDOW_BYTES.min(length as usize));
        source.read(offset, &mut window)?;
        let (header, head) = self.read_header(cookie, offset, length);
        self.append(recycler, &header[..head]);
        self.unsent_bytes += length as usize;
        let end = window.len();
        let rest = offset + end as u64..offset + u64::from(length);
        self.queue.push_back(Piece { kind: Kind::Window { rest }, bytes: window, start: 0, end });
        Ok(())
    }

    /// The answer to a read of zeroes; structured only.
    pub(crate) fn hole(&mut self, recycler: &Recycler, cookie: u64, offset: u64, length: u32) {
        let (flags, kind) = (chunk::FLAG_DONE, chunk::OFFSET_HOLE);
        let header = ChunkHeader { flags, kind, cookie, length: 12 };
        self.append(recycler, &header.encode());
        self.append(recycler, &offset.to_be_bytes());
        self.append(recycler, &length.to_be_bytes());
    }

    /// The answer to a block status: one chunk a context; structured only.
    pub(crate) fn status(&mut self, recycler: &Recycler, cookie: u64, contexts: &[(u32, Vec<StatusExtent>)]) {
        for (position, (id, extents)) in contexts.iter().enumerate() {
            let last = position + 1 == contexts.len();
            let flags = if last { chunk::FLAG_DONE } else { 0 };
            let length = 4 + extents.len() as u32 * 8;
            let header = ChunkHeader { flags, kind: chunk::BLOCK_STATUS, cookie, length };
            self.append(recycler, &header.encode());
            self.append(recycler, &id.to_be_bytes());
            for extent in extents {
                // The request's length has 32 bits, so no extent is longer.
                self.append(recycler, &(extent.length as u32).to_be_bytes());
                self.append(recycler, &extent.flags.to_be_bytes());
            }
        }
    }

    /// Writes until all is written; pending while the stream takes no more. `source` is what payloads are still to be read
    /// from.
    pub(crate) fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        recycler: &Recycler,
        stream: &mut S,
        source: &dyn Backend,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unsent_bytes > 0 {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut count = 0;
            for piece in self.queue.iter().filter(|piece| piece.end > piece.start).take(SLICES) {
                slices[count] = IoSlice::new(&piece.bytes[piece.start..piece.end]);
                count += 1;
                if matches!(piece.kind, Kind::Window { .. }) {
                    break;
                }
            }
            let stream = Pin::new(&mut *stream);
            let written = match stream.is_write_vectored() {
                true => ready!(stream.poll_write_vectored(context, &slices[..count]))?,
                false => ready!(stream.poll_write(context, &slices[0]))?,
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent(recycler, source, written)?;
        }
        Poll::Ready(Ok(()))
    }

    fn sent(&mut self, recycler: &Recycler, source: &dyn Backend, mut written: usize) -> io::Result<()> {
        self.unsent_bytes -= written;
        while let Some(piece) = self.queue.front_mut() {
            let part = written.min(piece.end - piece.start);
            piece.start += part;
            written -= part;
            if piece.start < piece.end {
                return Ok(());
            }
            if let Kind::Window { rest } = &mut piece.kind
                && !rest.is_empty()
            {
                let length = piece.bytes.len().min((rest.end - rest.start) as usize);
                // The reply has begun: if this fails there is nothing left to say but goodbye.
                source.read(rest.start, &mut piece.bytes[..length])?;
                rest.start += length as u64;
                (piece.start, piece.end) = (0, length);
                return Ok(());
            }
            // The last stage stays, for the next reply.
            if piece.kind == Kind::Stage && self.queue.len() == 1 {
                if let Some(piece) = self.queue.front_mut() {
                    (piece.start, piece.end) = (0, 0);
                }
                return Ok(());
            }
            if let Some(piece) = self.queue.pop_front() {
                recycler.give(piece.bytes);
            }
        }
        Ok(())
    }
}
