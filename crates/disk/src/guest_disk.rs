//! What a guest does to its disk. A machine knows no more of a disk than this.

use std::io;
use whimbrel_nbd::Extents;

/// A disk as the guest sees it. Calls may come from several vCPUs at once, and may block: on the file, on a flush, on a
/// block that has yet to come from another host.
pub trait GuestDisk: Send + Sync {
    /// The size in bytes.
    fn size_bytes(&self) -> u64;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// The host's I/O failed, or a missing block can't be had any more.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// As [`GuestDisk::read`].
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Returns when all that was written before is durable.
    ///
    /// # Errors
    /// As [`GuestDisk::read`].
    fn flush(&self) -> io::Result<()>;

    /// Makes a range read as zeroes; `may_trim`: a hole will do. The default writes them.
    ///
    /// # Errors
    /// As [`GuestDisk::read`].
    fn write_zeroes(&self, offset: u64, length: u64, may_trim: bool) -> io::Result<()> {
        const PIECE_BYTES: u64 = 64 << 10;
        let _ = may_trim;
        let end = offset.saturating_add(length);
        let mut at = offset;
        while at < end {
            let bytes = (end - at).min(PIECE_BYTES);
            self.write(at, &[0; PIECE_BYTES as usize][..bytes as usize])?;
            at += bytes;
        }
        Ok(())
    }

    /// Says which parts of a range are holes, in the terms of NBD's `base:allocation`. The default knows of none.
    ///
    /// # Errors
    /// As [`GuestDisk::read`].
    fn allocation(&self, offset: u64, length: u64, extents: &mut Extents) -> io::Result<()> {
        let _ = offset;
        extents.push(length, 0);
        Ok(())
    }
}
