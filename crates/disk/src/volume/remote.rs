//! A disk that stays at another host: the guest is here, and its requests go there.
//!
//! | volume     | is                                               | its image          |
//! |------------|--------------------------------------------------|--------------------|
//! | at home    | where the image is; the guest is here            | the guest's disk   |
//! | lent       | where the image is; the guest is elsewhere       | the guest's disk   |
//! | remote     | where the guest is, or was last, without an image | nothing of it      |
//!
//! A guest that leaves a remote volume leaves it lent too: neither is fit to take in a disk that moves.

use super::arrivals::Arrivals;
use super::image::Content;
use super::{Volume, ZeroMode};
use std::io;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, PoisonError};

/// The disk at the other host. Calls may come from several threads at once, and block.
pub trait RemoteDisk: Send + Sync {
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// The other host's I/O failed, or it can't be reached any more.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// As [`RemoteDisk::read`].
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Writes zeroes.
    ///
    /// # Errors
    /// As [`RemoteDisk::read`].
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> io::Result<()>;

    /// Returns when all that was written before is durable.
    ///
    /// # Errors
    /// As [`RemoteDisk::read`].
    fn flush(&self) -> io::Result<()>;
}

pub(super) fn write(disk: &dyn RemoteDisk, offset: u64, content: Content<'_>) -> io::Result<()> {
    match content {
        Content::Data(data) => disk.write(offset, data),
        Content::Zeroes { length, mode } => disk.write_zeroes(offset, length, mode),
    }
}

impl Volume {
    /// The guest comes, and its disk stays where it is: its requests go to `disk`.
    ///
    /// # Panics
    /// A guest's request is in flight.
    pub fn begin_remote(&self, disk: Arc<dyn RemoteDisk>) {
        self.change_to(Arrivals::Remote(disk));
        self.fresh.start();
        // Not a pull, but no request may pass by the look at the state either.
        self.pulling.store(true, SeqCst);
    }

    /// The guest has left, and not its disk.
    pub fn lend(&self) {
        self.lent.store(true, SeqCst);
    }

    /// The guest runs here (again).
    pub fn come_home(&self) {
        self.lent.store(false, SeqCst);
    }

    /// Whether the guest has left without its disk.
    pub fn is_lent(&self) -> bool {
        self.lent.load(SeqCst)
    }

    /// Whether the guest is here, or was last, and its disk is elsewhere.
    pub fn is_remote(&self) -> bool {
        matches!(&*self.arrivals.read().unwrap_or_else(PoisonError::into_inner), Arrivals::Remote(_))
    }

    /// Whether this is the image of a guest that has left without its disk.
    pub fn is_home(&self) -> bool {
        self.is_lent() && !self.is_remote()
    }
}
