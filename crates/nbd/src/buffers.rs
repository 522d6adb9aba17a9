//! Buffers that are filled from a stream, and their recycling: fresh memory is slow to touch, so it is touched once.

use std::{
    io,
    ops::Range,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use crate::error::NbdError;

/// Size of the buffer that a connection reads into: many small requests at once, or a write worth copying.
const INPUT_BYTES: usize = 256 << 10;

/// What was read from a stream and not yet used.
#[derive(Debug)]
pub(crate) struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; INPUT_BYTES], start: 0, end: 0 }
    }

    /// What is there.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Marks the first `count` bytes as used.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Marks the first `count` bytes as used and says where they lie; they stay there until the next fill.
    pub(crate) fn take(&mut self, count: usize) -> Range<usize> {
        let start = self.start;
        self.consume(count);
        start..start + count
    }

    /// Bytes that were taken since the last fill.
    pub(crate) fn taken(&self, range: &Range<usize>) -> &[u8] {
        &self.bytes[range.clone()]
    }

    /// Moves what is there into `place`, as far as it goes; returns how much that was.
    pub(crate) fn move_into(&mut self, place: &mut [u8]) -> usize {
        let count = place.len().min(self.bytes().len());
        place[..count].copy_from_slice(&self.bytes()[..count]);
        self.consume(count);
        count
    }

    fn make_room(&mut self) {
        if self.start > 0 && self.bytes.len() - self.end < INPUT_BYTES / 2 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
    }

    /// Reads once, for more; 0 is the stream's end.
    pub(crate) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.make_room();
        let count = ready!(poll_read(stream, context, &mut self.bytes[self.end..]))?;
        self.end += count;
        Poll::Ready(Ok(count))
    }

    /// Reads until at least `count` bytes are there; `count` is at most half the buffer.
    pub(crate) async fn fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        count: usize,
        during: &'static str,
    ) -> Result<(), NbdError> {
        while self.bytes().len() < count {
            self.make_room();
            let read = stream.read(&mut self.bytes[self.end..]).await?;
            if read == 0 {
                return Err(NbdError::Closed { during });
            }
            self.end += read;
        }
        Ok(())
    }

    /// Fills `place` from what is there and then from the stream.
    pub(crate) async fn read_exact<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        place: &mut [u8],
        during: &'static str,
    ) -> Result<(), NbdError> {
        let have = self.move_into(place);
        match stream.read_exact(&mut place[have..]).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(NbdError::Closed { during }),
            Err(error) => Err(error.into()),
        }
    }
}

/// Reads once into `place`; 0 is the stream's end.
pub(crate) fn poll_read<S: AsyncRead + Unpin>(
    stream: &mut S,
    context: &mut Context<'_>,
    place: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(place);
    ready!(Pin::new(stream).poll_read(context, &mut buffer))?;
    Poll::Ready(Ok(buffer.filled().len()))
}

/// How many buffers are kept at most: few enough to look through.
const COUNT_MAX: usize = 64;

/// Used buffers that wait for their next use, up to a number of bytes.
#[derive(Debug)]
pub(crate) struct Recycler {
    idle: Mutex<(Vec<Vec<u8>>, usize)>,
    bytes_max: usize,
}

impl Recycler {
    /// One that keeps at most `bytes_max`.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { idle: Mutex::new((Vec::new(), 0)), bytes_max }
    }

    /// A buffer of `length` initialized bytes of any value.
    pub(crate) fn take(&self, length: usize) -> Vec<u8> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = idle.0.iter().enumerate().filter(|(_, buffer)| buffer.capacity() >= length);
        if let Some((position, _)) = fitting.min_by_key(|(_, buffer)| buffer.capacity()) {
            let mut buffer = idle.0.swap_remove(position);
            idle.1 -= buffer.capacity();
            drop(idle);
            buffer.resize(length, 0);
            return buffer;
        }
        drop(idle);
        vec![0; length]
    }

    /// Takes a buffer back.
    pub(crate) fn give(&self, buffer: Vec<u8>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let capacity = buffer.capacity();
        if capacity > 0 && idle.1 + capacity <= self.bytes_max && idle.0.len() < COUNT_MAX {
            idle.1 += capacity;
            idle.0.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recycler_keeps_no_more_than_its_bound() {
        let recycler = Recycler::new(100);
        recycler.give(vec![1; 60]);
        recycler.give(vec![2; 60]);
        assert_eq!(recycler.take(10), [1; 10]);
        assert_eq!(recycler.take(10), [0; 10]);
        assert_eq!(recycler.take(0), []);
    }

    #[tokio::test]
    async fn input_keeps_what_was_read_too_far() {
        let mut stream: &[u8] = &[1, 2, 3, 4, 5];
        let mut input = Input::new();
        input.fill(&mut stream, 2, "test").await.unwrap();
        assert_eq!(input.bytes(), [1, 2, 3, 4, 5]);
        let mut place = [0; 4];
        input.read_exact(&mut stream, &mut place, "test").await.unwrap();
        assert_eq!((place, input.bytes()), ([1, 2, 3, 4], &[5][..]));
        let error = input.read_exact(&mut stream, &mut place, "test").await;
        assert!(matches!(error, Err(NbdError::Closed { during: "test" })));
    }
}
