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
//! timed, and one that slept long sends its followers to the blocking pool for a while.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    os::{fd::AsRawFd, unix::fs::FileExt},
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
    mapped::Mapped,
    protocol::{CONTEXT_ALLOCATION, allocation},
};

const PAGE_BYTES: u64 = 4096;
/// cachestat(2), Linux 6.5; the number is the same on every architecture that Rust's standard library knows.
const SYS_CACHESTAT: libc::c_long = 451;
const TMPFS_MAGIC: u64 = 0x0102_1994;
const EXT_MAGIC: u64 = 0xef53;

/// The longest write made inline where the file system has no RWF_NOWAIT for writes.
const PLAIN_WRITE_BYTES: usize = 256 << 10;
/// Writes at least this long are better made by the file system than page by page.
const MAPPED_WRITE_BYTES: usize = 32 << 10;
/// A plain write inline that slept and took longer than this was made to wait.
const SLOW: Duration = Duration::from_millis(2);
/// How many times as long as it slept plain writes then stay in the pool.
const PENANCE: u64 = 8;
/// How long that is at most.
const PENANCE_MAX: Duration = Duration::from_secs(1);
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
    mapped: Option<Mapped>,
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
        let mapped = match inline_write == Inline::Plain && kind == EXT_MAGIC {
            true => Mapped::new(&file, size_bytes),
            false => None,
        };
        Ok(Self {
            mapped,
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

    /// Makes a call that touches only the page cache, but may be made to wait there; not if one had to lately.
    fn unless_slow<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        let begin_ns = self.now_ns();
        if begin_ns < self.penance_until_ns.load(Ordering::Relaxed) {
            return None;
        }
        let sleeps = sleeps();
        let result = act();
        let end_ns = self.now_ns();
        // On a busy host a call takes long because others run, too: that is no reason to keep away.
        if end_ns - begin_ns > SLOW.as_nanos() as u64 && sleeps != self::sleeps() {
            let penance_ns = (PENANCE * (end_ns - begin_ns)).min(PENANCE_MAX.as_nanos() as u64);
            self.penance_until_ns.store(end_ns + penance_ns, Ordering::Relaxed);
        }
        Some(result)
    }

    fn punch(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, flags, offset, length)
    }

    fn zero_range(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, flags, offset, length)
    }

    /// Where data begins, from `offset` on; `None`: nowhere before `end`.
    fn next_data(&self, offset: u64, end: u64) -> Result<Option<u64>, Errno> {
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) => Ok(Some(data)),
            // Said too of what is behind the end of a file that somebody has cut short, and that is no hole.
            Err(Errno::NXIO) if rustix::fs::seek(&self.file, SeekFrom::End(0))? < end => Err(Errno::IO),
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// How often this thread had to wait for something, not counting the times when others ran in its place.
fn sleeps() -> i64 {
    // SAFETY: all zeroes are a value of this plain structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure that the pointer names.
    match unsafe { libc::getrusage(libc::RUSAGE_THREAD, &mut usage) } {
        0 => usage.ru_nvcsw,
        _ => 0,
    }
}

/// How many bytes of the pages that a range touches are in the page cache; 0 where the kernel doesn't say.
fn cached_bytes(file: &File, offset: u64, length: u64) -> u64 {
    #[repr(C)]
    struct Cached {
        pages: u64,
        _dirty_writeback_evicted: [u64; 4],
    }
    let range = [offset, length];
    let mut cached = Cached { pages: 0, _dirty_writeback_evicted: [0; 4] };
    // SAFETY: the kernel reads the one structure and fills the other, both of the form that cachestat(2) states.
    let told = unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &range, &mut cached, 0) };
    // Before the first page and behind the last there may be bytes that the range doesn't touch.
    let beyond = offset % PAGE_BYTES + (offset + length).next_multiple_of(PAGE_BYTES) - (offset + length);
    if told == 0 { (cached.pages * PAGE_BYTES).saturating_sub(beyond) } else { 0 }
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
            let data = self.next_data(position, end)?.unwrap_or(end).min(end);
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
            Inline::Plain if data.len() > PLAIN_WRITE_BYTES => return Ok(Now::WouldBlock),
            Inline::Plain => {
                let written = self.unless_slow(|| self.file.write_all_at(data, offset));
                return written.map_or(Ok(Now::WouldBlock), |written| written.map(|()| Now::Done));
            }
            Inline::Nowait => (),
        }
        let buffers = &[IoSlice::new(data)];
        match rustix::io::pwritev2(&self.file, buffers, offset, ReadWriteFlags::NOWAIT) {
            Ok(count) if count == data.len() => Ok(Now::Done),
            Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR) => Ok(Now::WouldBlock),
            Err(error) => Err(error.into()),
        }
    }

    fn try_write_many_now(&self, writes: &[(u64, &[u8])]) -> usize {
        let Some(mapped) = &self.mapped else { return 0 };
        let short = writes.iter().position(|(_, data)| data.len() >= MAPPED_WRITE_BYTES).unwrap_or(writes.len());
        self.unless_slow(|| mapped.write_many(&writes[..short])).unwrap_or(0)
    }

    fn takes_pieces(&self) -> bool {
        true
    }

    fn is_cached(&self, offset: u64, length: u64) -> bool {
        self.inline_read == Inline::Plain || cached_bytes(&self.file, offset, length) >= length
    }

    fn is_zero(&self, offset: u64, length: u64) -> bool {
        if !self.seeks_holes || length < HOLE_BYTES {
            return false;
        }
        let end = offset.saturating_add(length);
        match self.next_data(offset, end) {
            Ok(Some(data)) => data >= end,
            Ok(None) => true,
            Err(_) => false,
        }
    }
}
