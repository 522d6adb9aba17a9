//! A raw image file (or block device) as a backend.
//!
//! | request | how | when it goes inline |
//! |---|---|---|
//! | read | preadv2 | RWF_NOWAIT: what the page cache holds; on tmpfs always |
//! | write | pwritev2, FUA by RWF_DSYNC | RWF_NOWAIT where the file system knows it; on ext4 and tmpfs a plain write of a little data |
//! | flush | fdatasync | never |
//! | zeroes | fallocate: punch hole or zero range, else data | never |
//! | status | SEEK_DATA, SEEK_HOLE | never |
//!
//! The plain writes only touch the page cache, but the kernel may make a writer wait when too much is dirty. So each is
//! timed, and one that was slow sends its followers to the blocking pool for a while.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FallocateFlags, SeekFrom},
    io::{Errno, ReadWriteFlags},
};

use crate::{
    backend::{Backend, Extents, Now, ZeroMode, write_zeroes_as_data},
    protocol::{CONTEXT_ALLOCATION, allocation},
};

const TMPFS_MAGIC: u64 = 0x0102_1994;
const EXT_MAGIC: u64 = 0xef53;

/// The longest write made inline where the file system has no RWF_NOWAIT for writes.
const PLAIN_WRITE_BYTES: usize = 128 << 10;
/// A plain write inline that took longer than this was made to wait.
const SLOW: Duration = Duration::from_millis(2);
/// How long plain writes then stay in the pool.
const PENANCE: Duration = Duration::from_secs(1);
/// Reads at least this long are worth a look for a hole.
const HOLE_BYTES: u64 = 64 << 10;

/// Whether to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads only.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// How to act without waiting, as far as the file system allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inline {
    /// RWF_NOWAIT.
    Nowait,
    /// A plain call, which is as good here.
    Plain,
    /// Not at all.
    Never,
}

/// A raw image.
#[derive(Debug)]
pub struct FileBackend {
    file: File,
    size_bytes: u64,
    access: Access,
    inline_read: Inline,
    inline_write: Inline,
    seeks_holes: bool,
    opened: Instant,
    penance_until_ns: AtomicU64,
}

impl FileBackend {
    /// Opens an image that exists.
    pub fn open(path: impl AsRef<Path>, access: Access) -> io::Result<Self> {
        let write = access == Access::ReadWrite;
        let file = File::options().read(true).write(write).open(path)?;
        Self::from_file(file, access)
    }

    /// Takes an open file. Its size is what the file has now.
    pub fn from_file(file: File, access: Access) -> io::Result<Self> {
        let size_bytes = rustix::fs::seek(&file, SeekFrom::End(0))?;
        let kind = rustix::fs::fstatfs(&file)?.f_type as u64;
        let regular = file.metadata()?.is_file();
        let inline_read = match probe_read(&file) {
            true => Inline::Nowait,
            false if regular && kind == TMPFS_MAGIC => Inline::Plain,
            false => Inline::Never,
        };
        let inline_write = match (access, regular) {
            (Access::ReadOnly, _) => Inline::Never,
            (_, true) if kind == TMPFS_MAGIC || kind == EXT_MAGIC => Inline::Plain,
            _ => Inline::Nowait,
        };
        Ok(Self {
            seeks_holes: rustix::fs::seek(&file, SeekFrom::Hole(0)).is_ok(),
            file,
            size_bytes,
            access,
            inline_read,
            inline_write,
            opened: Instant::now(),
            penance_until_ns: AtomicU64::new(0),
        })
    }

    fn now_ns(&self) -> u64 {
        self.opened.elapsed().as_nanos() as u64
    }

    /// A plain write inline, unless one was slow lately.
    fn write_plain_now(&self, offset: u64, data: &[u8]) -> io::Result<Now> {
        let begin_ns = self.now_ns();
        let penance_until_ns = self.penance_until_ns.load(Ordering::Relaxed);
        if data.len() > PLAIN_WRITE_BYTES || begin_ns < penance_until_ns {
            return Ok(Now::WouldBlock);
        }
        self.file.write_all_at(data, offset)?;
        let end_ns = self.now_ns();
        if end_ns - begin_ns > SLOW.as_nanos() as u64 {
            let until_ns = end_ns + PENANCE.as_nanos() as u64;
            self.penance_until_ns.store(until_ns, Ordering::Relaxed);
        }
        Ok(Now::Done)
    }

    fn punch(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, flags, offset, length)
    }

    fn zero_range(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, flags, offset, length)
    }

    fn next_data(&self, offset: u64) -> Result<Option<u64>, Errno> {
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) => Ok(Some(data)),
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether RWF_NOWAIT reads are known to the file system.
fn probe_read(file: &File) -> bool {
    let mut byte = [0];
    let buffers = &mut [IoSliceMut::new(&mut byte)];
    match rustix::io::preadv2(file, buffers, 0, ReadWriteFlags::NOWAIT) {
        Ok(_) | Err(Errno::AGAIN) => true,
        Err(_) => false,
    }
}

impl Backend for FileBackend {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    fn multi_conn(&self) -> bool {
        true
    }

    fn contexts(&self) -> Vec<String> {
        vec![CONTEXT_ALLOCATION.into()]
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        if !fua {
            return self.file.write_all_at(data, offset);
        }
        let buffers = &[IoSlice::new(data)];
        match rustix::io::pwritev2(&self.file, buffers, offset, ReadWriteFlags::DSYNC) {
            Ok(count) if count == data.len() => Ok(()),
            Ok(_) | Err(Errno::OPNOTSUPP) => {
                self.file.write_all_at(data, offset)?;
                self.flush()
            }
            Err(error) => Err(error.into()),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        match self.punch(offset, length) {
            Ok(()) if fua => self.flush(),
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> io::Result<()> {
        let punched = match mode.may_trim {
            true => self.punch(offset, length),
            false => Err(Errno::OPNOTSUPP),
        };
        let zeroed = match punched {
            Err(Errno::OPNOTSUPP) => self.zero_range(offset, length),
            other => other,
        };
        match zeroed {
            Ok(()) if mode.fua => self.flush(),
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP) if mode.fast => Err(io::ErrorKind::Unsupported.into()),
            Err(Errno::OPNOTSUPP) => write_zeroes_as_data(self, offset, length, mode.fua),
            Err(error) => Err(error.into()),
        }
    }

    fn block_status(&self, _context: &str, offset: u64, length: u64, extents: &mut Extents) -> io::Result<()> {
        if !self.seeks_holes {
            extents.push(length, 0);
            return Ok(());
        }
        let end = offset + length;
        let mut position = offset;
        while position < end {
            let data = self.next_data(position)?.unwrap_or(end).min(end);
            if data > position && !extents.push(data - position, allocation::HOLE | allocation::ZERO) {
                return Ok(());
            }
            if data == end {
                return Ok(());
            }
            let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(data))?.min(end);
            // A concurrent punch may move the hole to where the data was; then go on from there.
            if hole > data && !extents.push(hole - data, 0) {
                return Ok(());
            }
            position = hole;
        }
        Ok(())
    }

    fn try_read_now(&self, offset: u64, buffer: &mut [u8]) -> io::Result<Now> {
        match self.inline_read {
            Inline::Never => return Ok(Now::WouldBlock),
            Inline::Plain => return self.read(offset, buffer).map(|()| Now::Done),
            Inline::Nowait => (),
        }
        let wanted = buffer.len();
        let buffers = &mut [IoSliceMut::new(buffer)];
        match rustix::io::preadv2(&self.file, buffers, offset, ReadWriteFlags::NOWAIT) {
            Ok(count) if count == wanted => Ok(Now::Done),
            Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR) => Ok(Now::WouldBlock),
            Err(error) => Err(error.into()),
        }
    }

    fn try_write_now(&self, offset: u64, data: &[u8]) -> io::Result<Now> {
        match self.inline_write {
            Inline::Never => return Ok(Now::WouldBlock),
            Inline::Plain => return self.write_plain_now(offset, data),
            Inline::Nowait => (),
        }
        let buffers = &[IoSlice::new(data)];
        match rustix::io::pwritev2(&self.file, buffers, offset, ReadWriteFlags::NOWAIT) {
            Ok(count) if count == data.len() => Ok(Now::Done),
            Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR) => Ok(Now::WouldBlock),
            Err(error) => Err(error.into()),
        }
    }

    fn is_zero(&self, offset: u64, length: u64) -> bool {
        if !self.seeks_holes || length < HOLE_BYTES {
            return false;
        }
        match self.next_data(offset) {
            Ok(Some(data)) => data >= offset.saturating_add(length),
            Ok(None) => true,
            Err(_) => false,
        }
    }
}
