//! The seam: what a server needs from whatever holds the bytes.
//!
//! Calls are synchronous and may block as long as they must (a read that waits for a block to come over the network): the
//! server makes them on threads for blocking work, so a call that waits delays nobody else. The two `try_*_now` calls are
//! the fast path: made on the connection's own task, they answer at once or say that they cannot.

use std::io;

use crate::protocol::MAX_PAYLOAD_BYTES;

/// The block sizes of an export, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// Requests are aligned to this; a power of two. 1 allows anything.
    pub minimum: u32,
    /// The best size; a power of two, at least 512 and the minimum.
    pub preferred: u32,
    /// The longest READ or WRITE; a multiple of the minimum.
    pub maximum: u32,
}

impl Default for BlockSizes {
    fn default() -> Self {
        Self { minimum: 1, preferred: 4096, maximum: MAX_PAYLOAD_BYTES }
    }
}

/// The answer of the fast path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Now {
    /// It is done, entirely.
    Done,
    /// It would have to wait; nothing is promised about what a read left in the buffer, and a write may have been done in
    /// part. The server repeats it whole with the blocking call.
    WouldBlock,
}

/// How zeroes are to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ZeroMode {
    /// A hole will do (the client did not say NO_HOLE).
    pub may_trim: bool,
    /// Durable before the call returns.
    pub fua: bool,
    /// Fail with `ErrorKind::Unsupported`, quickly, rather than write zeroes as data.
    pub fast: bool,
}

/// One run of bytes with the same status in a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusExtent {
    /// Its length.
    pub length: u64,
    /// Its status; what the bits mean is the context's affair. See [`crate::protocol::allocation`].
    pub flags: u32,
}

/// Collects the extents of a range in order, merging equal neighbors, up to the bounds of a reply.
#[derive(Debug)]
pub struct Extents {
    list: Vec<StatusExtent>,
    remaining: u64,
    count_max: usize,
}

impl Extents {
    /// For a range of `length` bytes and at most `count_max` extents.
    pub fn new(length: u64, count_max: usize) -> Self {
        Self { list: Vec::new(), remaining: length, count_max }
    }

    /// Adds the next extent; what lies beyond the range is cut off. Returns whether more are wanted.
    pub fn push(&mut self, length: u64, flags: u32) -> bool {
        let length = length.min(self.remaining);
        if length > 0 {
            let full = self.list.len() >= self.count_max;
            match self.list.last_mut() {
                Some(last) if last.flags == flags => last.length += length,
                _ if full => {
                    self.remaining = 0;
                    return false;
                }
                _ => self.list.push(StatusExtent { length, flags }),
            }
            self.remaining -= length;
        }
        self.remaining > 0
    }

    /// What was collected.
    pub fn list(&self) -> &[StatusExtent] {
        &self.list
    }

    /// What was collected, as it is.
    pub fn into_list(self) -> Vec<StatusExtent> {
        self.list
    }
}

/// Something that can be exported. Offsets and lengths are already checked against `size_bytes` and the block sizes, and no
/// write reaches a backend that is read-only.
///
/// Errors become NBD's by [`crate::ErrorCode`]'s conversion. Requests may overlap in time, and in place: NBD promises a
/// client no order between requests in flight.
pub trait Backend: Send + Sync + 'static {
    /// The size; constant while it is exported.
    fn size_bytes(&self) -> u64;

    /// The block sizes.
    fn block_sizes(&self) -> BlockSizes {
        BlockSizes::default()
    }

    /// A text for people; empty for none.
    fn description(&self) -> String {
        String::new()
    }

    /// Whether writes are refused.
    fn read_only(&self) -> bool {
        false
    }

    /// Whether a flush through one connection makes durable what was completed through others, so that a client may use
    /// several.
    fn multi_conn(&self) -> bool {
        false
    }

    /// The metadata contexts it can answer, such as `base:allocation`.
    fn contexts(&self) -> Vec<String> {
        Vec::new()
    }

    /// Fills `buffer` with the bytes at `offset`.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes `data` at `offset`; with `fua`, durably.
    fn write(&self, offset: u64, data: &[u8], fua: bool) -> io::Result<()>;

    /// Makes every write that was completed before durable.
    fn flush(&self) -> io::Result<()>;

    /// The range's content is no longer needed. A hint: doing nothing is correct.
    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        let _ = (offset, length, fua);
        Ok(())
    }

    /// Makes the range read as zeroes. The default writes them.
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> io::Result<()> {
        if mode.fast {
            return Err(io::ErrorKind::Unsupported.into());
        }
        write_zeroes_as_data(self, offset, length, mode.fua)
    }

    /// Reports the status of a range in one of [`contexts`](Self::contexts) by pushing extents, from `offset` on and without
    /// gaps, until the range ends or `extents` wants no more. At least one extent.
    fn block_status(&self, context: &str, offset: u64, length: u64, extents: &mut Extents) -> io::Result<()> {
        let _ = (context, offset, length, extents);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Reads if that needs no waiting. Called on a connection's task: it must never block.
    fn try_read_now(&self, offset: u64, buffer: &mut [u8]) -> io::Result<Now> {
        let _ = (offset, buffer);
        Ok(Now::WouldBlock)
    }

    /// Writes, without FUA, if that needs no waiting. Called on a connection's task: it must never block.
    fn try_write_now(&self, offset: u64, data: &[u8]) -> io::Result<Now> {
        let _ = (offset, data);
        Ok(Now::WouldBlock)
    }

    /// Makes as many of these writes, from the first on, as need no waiting, in one go where that is cheaper than one by one;
    /// how many. The server tries the others singly. Called on a connection's task: it must never block.
    fn try_write_many_now(&self, writes: &[(u64, &[u8])]) -> usize {
        let _ = writes;
        0
    }

    /// Whether a long write may be made in several pieces, in order, of any length that is a multiple of the minimum block
    /// size.
    fn takes_pieces(&self) -> bool {
        false
    }

    /// Whether the range is at hand, so that reading it needs no waiting. The server then reads it piece by piece, on the
    /// connection's task, while it sends.
    fn is_cached(&self, offset: u64, length: u64) -> bool {
        let _ = (offset, length);
        false
    }

    /// Whether the whole range is known, without reading it, to be zeroes: then a READ is answered by a hole. Asked in the
    /// blocking pool, before a read. `false` is always correct.
    fn is_zero(&self, offset: u64, length: u64) -> bool {
        let _ = (offset, length);
        false
    }
}

/// Zeroes a range by writing zeroes, for backends that have nothing better.
pub fn write_zeroes_as_data<B: Backend + ?Sized>(backend: &B, offset: u64, length: u64, fua: bool) -> io::Result<()> {
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    let mut done = 0;
    while done < length {
        let piece = (length - done).min(ZEROES.len() as u64);
        backend.write(offset + done, &ZEROES[..piece as usize], false)?;
        done += piece;
    }
    if fua { backend.flush() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_merge_and_stop_at_the_bounds() {
        let mut extents = Extents::new(100, 2);
        assert!(extents.push(10, 0));
        assert!(extents.push(10, 0));
        assert!(extents.push(0, 7));
        assert!(extents.push(10, 3));
        assert!(!extents.push(10, 0));
        let lengths: Vec<_> = extents.list().iter().map(|e| (e.length, e.flags)).collect();
        assert_eq!(lengths, [(20, 0), (10, 3)]);

        let mut extents = Extents::new(100, 9);
        assert!(!extents.push(u64::MAX, 1));
        assert_eq!(extents.list(), [StatusExtent { length: 100, flags: 1 }]);
    }
}
