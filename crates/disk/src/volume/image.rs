//! The raw image file under a volume: bytes in, bytes out, and which parts of it are holes.

use crate::error::DiskError;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use whimbrel_nbd::protocol::{CONTEXT_ALLOCATION, allocation};
use whimbrel_nbd::{Access, Backend, Extents, FileBackend, Now, ZeroMode};

/// What is written: bytes, or a stretch of zeroes that need not be there to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content<'a> {
    /// These bytes.
    Data(&'a [u8]),
    /// So many zero bytes.
    Zeroes {
        /// How many.
        length: u64,
        /// How.
        mode: ZeroMode,
    },
}

impl<'a> Content<'a> {
    /// How many bytes it stands for.
    pub(crate) fn length(self) -> u64 {
        match self {
            Content::Data(data) => data.len() as u64,
            Content::Zeroes { length, .. } => length,
        }
    }

    /// The bytes `from..to` of it.
    pub(crate) fn part(self, from: u64, to: u64) -> Content<'a> {
        match self {
            Content::Data(data) => Content::Data(&data[from as usize..to as usize]),
            Content::Zeroes { mode, .. } => Content::Zeroes { length: to - from, mode },
        }
    }
}

/// An open raw image.
#[derive(Debug)]
pub(crate) struct Image {
    file: FileBackend,
    path: PathBuf,
    /// A flush has failed. The host tells of what it lost once, and not which part of the image that is.
    suspect: AtomicBool,
}

impl Image {
    /// Creates a sparse image; an existing file is never touched.
    pub(crate) fn create(path: &Path, size_bytes: u64) -> Result<Self, DiskError> {
        let file =
            File::options().read(true).write(true).create_new(true).open(path).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => DiskError::Exists { path: path.to_owned() },
                _ => DiskError::io("create", path)(error),
            })?;
        file.set_len(size_bytes).map_err(DiskError::io("size", path))?;
        Self::over(file, path)
    }

    /// Opens an image for reading and writing, as it is.
    pub(crate) fn open(path: &Path) -> Result<Self, DiskError> {
        let file = File::options().read(true).write(true).open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => DiskError::Missing { path: path.to_owned() },
            _ => DiskError::io("open", path)(error),
        })?;
        Self::over(file, path)
    }

    fn over(file: File, path: &Path) -> Result<Self, DiskError> {
        // Two guests on one image, or a disk that migrates onto itself, would ruin it. Where the file system knows no
        // locks there is nothing to be known.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(DiskError::InUse { path: path.to_owned() });
        }
        let file = FileBackend::from_file(file, Access::ReadWrite).map_err(DiskError::io("open", path))?;
        Ok(Image { file, path: path.to_owned(), suspect: AtomicBool::new(false) })
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.file.size_bytes()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, buffer)
    }

    pub(crate) fn try_read_now(&self, offset: u64, buffer: &mut [u8]) -> io::Result<Now> {
        self.file.try_read_now(offset, buffer)
    }

    pub(crate) fn write(&self, offset: u64, content: Content<'_>) -> io::Result<()> {
        match content {
            Content::Data(data) => self.file.write(offset, data, false),
            Content::Zeroes { length: 0, .. } => Ok(()),
            Content::Zeroes { length, mode } => self.file.write_zeroes(offset, length, mode),
        }
    }

    pub(crate) fn try_write_now(&self, offset: u64, data: &[u8]) -> io::Result<Now> {
        self.file.try_write_now(offset, data)
    }

    pub(crate) fn try_write_many_now(&self, writes: &[(u64, &[u8])]) -> usize {
        self.file.try_write_many_now(writes)
    }

    pub(crate) fn flush(&self) -> io::Result<()> {
        self.file.flush().inspect_err(|_| self.suspect.store(true, SeqCst))
    }

    /// Whether a flush has ever failed, so that something of what was written may be gone.
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.load(SeqCst)
    }

    /// What the file system says of a range, in the terms of NBD's `base:allocation`.
    pub(crate) fn allocation(&self, offset: u64, length: u64, extents: &mut Extents) -> io::Result<()> {
        self.file.block_status(CONTEXT_ALLOCATION, offset, length, extents)
    }

    /// Whether a range is at hand, so that reading it needs no waiting.
    pub(crate) fn is_cached(&self, offset: u64, length: u64) -> bool {
        self.file.is_cached(offset, length)
    }

    /// Whether a range is known, without reading it, to be zeroes.
    pub(crate) fn is_zero(&self, offset: u64, length: u64) -> bool {
        self.file.is_zero(offset, length)
    }

    /// The stretches of a range that may hold something else than zeroes, as byte ranges, ascending.
    pub(crate) fn data_ranges(&self, offset: u64, length: u64) -> io::Result<Vec<std::ops::Range<u64>>> {
        let mut extents = Extents::new(length, usize::MAX);
        self.allocation(offset, length, &mut extents)?;
        let mut at = offset;
        let ranges = extents.list().iter().filter_map(|extent| {
            let range = at..at + extent.length;
            at = range.end;
            (extent.flags & allocation::ZERO == 0).then_some(range)
        });
        Ok(ranges.collect())
    }
}
