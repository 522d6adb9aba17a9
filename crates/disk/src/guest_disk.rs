//! What a guest does to its disk. A machine knows no more of a disk than this.

use std::io;

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
}
