//! Guest RAM: a memfd, mapped twice. The guest runs on one mapping; the host reads and fills the other.
//!
//! ```text
//!   vCPU threads ──► guest mapping ──┐            watched: writes and missing pages are seen here
//!                                    ├──► memfd   may be another process's
//!   engine, link ──► host mapping ───┘            never watched, never faults for the guest's reasons
//! ```
//!
//! Both are seen as atomic words, so that a race between the guest and the host is a torn page and nothing worse. What
//! moves whole pages between a socket and the host mapping without a copy is in [`crate::ram_io`].

use crate::error::{MemoryError, Result};
use crate::marks::HostMarks;
use crate::watch::Watch;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use whimbrel_model::{Extent, PAGE_BYTES};

/// The words of one page, as both the guest and the host see them.
pub type PageWords = [AtomicU64; whimbrel_model::WORDS_PER_PAGE as usize];

/// Pages that one thread populates at a time: 32 MiB, few enough for threads to share the work evenly.
const POPULATE_PAGES: u64 = 8192;

/// The most threads that populate: first touch is bound by the memory's bandwidth beyond that.
const POPULATE_THREADS: usize = 4;

/// One mapping of the whole memfd.
struct Mapping {
    base: NonNull<PageWords>,
    pages: usize,
}

// SAFETY: the mapping is shared memory that is only ever accessed as atomics or by the kernel.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, pages: u64) -> Result<Self> {
        let bytes = (pages * PAGE_BYTES) as usize;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nobody's memory.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, protection, flags, fd, 0) }
            .map_err(MemoryError::kernel("mmap"))?;
        let base = NonNull::new(base.cast()).expect("the kernel maps nothing at address zero unasked");
        let mapping = Mapping { base, pages: pages as usize };
        // Tracking is by small pages. A kernel without huge pages refuses the advice, which is as good.
        let _ = mapping.advise(Extent { start: 0, count: pages }, Advice::LinuxNoHugepage);
        // A forked child would inherit write-protected entries that nobody there answers for.
        mapping
            .advise(Extent { start: 0, count: pages }, Advice::LinuxDontFork)
            .map_err(MemoryError::kernel("madvise(MADV_DONTFORK)"))?;
        Ok(mapping)
    }

    fn words(&self) -> &[PageWords] {
        // SAFETY: the mapping is that long, page-aligned and lives as long as `self`; atomics may be shared with other
        // threads, other mappings and other processes; every bit pattern is a valid word.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.pages) }
    }

    fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// The pages of `extent`, which must lie within.
    fn part(&self, extent: Extent) -> &[PageWords] {
        &self.words()[extent.start as usize..extent.end() as usize]
    }

    fn advise(&self, extent: Extent, advice: Advice) -> rustix::io::Result<()> {
        let part = self.part(extent);
        let start = part.as_ptr().cast_mut().cast();
        // SAFETY: the range lies in this mapping. The advice given here changes how shared memory is mapped, not what
        // it holds: MADV_DONTNEED drops entries of the page table only, since the memfd keeps the pages.
        unsafe { rustix::mm::madvise(start, size_of_val(part), advice) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let bytes = self.pages * PAGE_BYTES as usize;
        // SAFETY: the mapping is ours and no reference into it outlives `self`. It can't fail for a range that mmap gave.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), bytes) };
    }
}

/// The RAM of one guest.
pub struct GuestRam {
    guest: Mapping,
    host: Mapping,
    fd: OwnedFd,
    watch: OnceLock<Arc<Watch>>,
    marks: Arc<HostMarks>,
}

impl std::fmt::Debug for GuestRam {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestRam").field("pages", &self.pages()).finish_non_exhaustive()
    }
}

impl GuestRam {
    /// New RAM of `bytes` bytes, all zero, none of it populated.
    ///
    /// # Errors
    /// The size is not a positive multiple of the page size, or the kernel refuses the memfd or its mappings.
    pub fn create(bytes: u64) -> Result<Arc<Self>> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("guest-ram", flags).map_err(MemoryError::kernel("memfd_create"))?;
        check_size(bytes)?;
        rustix::fs::ftruncate(&fd, bytes).map_err(MemoryError::kernel("ftruncate"))?;
        // Whoever is handed the descriptor can't take memory away under the mappings.
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)
            .map_err(MemoryError::kernel("fcntl(F_ADD_SEALS)"))?;
        Self::from_fd(fd, bytes)
    }

    /// RAM that exists already, perhaps another process's: the first `bytes` bytes of the memory object `fd`.
    ///
    /// Where the guest runs in another process, give its mapping to [`GuestRam::watch_by`]; the guest mapping made here
    /// is then only a second view.
    ///
    /// # Errors
    /// The size is not a positive multiple of the page size or exceeds the object; the object can't be mapped.
    pub fn from_fd(fd: OwnedFd, bytes: u64) -> Result<Arc<Self>> {
        check_size(bytes)?;
        let stat = rustix::fs::fstat(&fd).map_err(MemoryError::kernel("fstat"))?;
        if u64::try_from(stat.st_size).unwrap_or(0) < bytes {
            return Err(MemoryError::Size { bytes, why: format!("the memory object has only {} bytes", stat.st_size) });
        }
        let pages = bytes / PAGE_BYTES;
        Ok(Arc::new(GuestRam {
            guest: Mapping::new(fd.as_fd(), pages)?,
            host: Mapping::new(fd.as_fd(), pages)?,
            fd,
            watch: OnceLock::new(),
            marks: Arc::new(HostMarks::new(pages)),
        }))
    }

    /// How many pages there are.
    pub fn pages(&self) -> u64 {
        self.host.pages as u64
    }

    /// All pages.
    pub fn all(&self) -> Extent {
        Extent { start: 0, count: self.pages() }
    }

    /// The memory object.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Where in this process the guest's mapping begins.
    pub fn guest_address(&self) -> u64 {
        self.guest.address()
    }

    /// The marks of what the host wrote into the RAM behind the guest's mapping.
    pub fn marks(&self) -> &Arc<HostMarks> {
        &self.marks
    }

    /// The words of a page as the guest sees them. A write is seen by an armed dirty log; an access to a page that is
    /// missing blocks until it is complete.
    ///
    /// # Panics
    /// The page lies beyond the RAM.
    #[inline]
    pub fn guest_page(&self, page: u64) -> &PageWords {
        &self.guest.words()[page as usize]
    }

    /// The words of a page as the host sees them: no dirty log sees a write, no missing page blocks.
    ///
    /// # Panics
    /// The page lies beyond the RAM.
    #[inline]
    pub fn host_page(&self, page: u64) -> &PageWords {
        &self.host.words()[page as usize]
    }

    /// Copies a page out by the host's mapping. While the guest runs, the copy may be torn between two of its writes,
    /// but it stays what it is: what is compared, hashed or encoded must be such a copy.
    pub fn read_page(&self, page: u64, into: &mut [u8; PAGE_BYTES as usize]) {
        for (bytes, word) in into.as_chunks_mut().0.iter_mut().zip(self.host_page(page)) {
            *bytes = word.load(Ordering::Relaxed).to_ne_bytes();
        }
    }

    /// Copies a page in by the host's mapping.
    pub fn write_page(&self, page: u64, from: &[u8; PAGE_BYTES as usize]) {
        for (bytes, word) in from.as_chunks().0.iter().zip(self.host_page(page)) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
    }

    /// Whether a page holds nothing but zero bytes.
    pub fn is_zero(&self, page: u64) -> bool {
        // 128 bytes at a time: few branches, and an early end for pages that aren't.
        self.host_page(page)
            .as_chunks::<16>()
            .0
            .iter()
            .all(|chunk| chunk.iter().fold(0, |all, word| all | word.load(Ordering::Relaxed)) == 0)
    }

    /// Makes a page zero, without a write where it is zero already.
    pub fn zero_page(&self, page: u64) {
        if !self.is_zero(page) {
            for word in self.host_page(page) {
                word.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Allocates all pages and enters them in both mappings, so that nobody pays for a first touch later. What pages
    /// hold stays as it is. Another process's mapping can't be reached: there, only the pages are allocated.
    ///
    /// # Errors
    /// Memory is short, or pages are missing (see [`crate::faults`]).
    pub fn populate(&self) -> Result<()> {
        let watch = self.watch.get();
        if watch.is_some_and(|w| w.blocks()) {
            return Err(MemoryError::OutOfTurn("RAM is populated before its missing pages are served"));
        }
        self.populate_host(self.all())?;
        if watch.is_some_and(|w| w.is_outside()) {
            return Ok(());
        }
        populate(&self.guest, self.all()).map_err(MemoryError::kernel("madvise(MADV_POPULATE_WRITE)"))
    }

    /// Allocates the pages of `extent` and enters them in the host's mapping only.
    ///
    /// # Errors
    /// Memory is short.
    ///
    /// # Panics
    /// The extent reaches beyond the RAM.
    pub fn populate_host(&self, extent: Extent) -> Result<()> {
        populate(&self.host, extent).map_err(MemoryError::kernel("madvise(MADV_POPULATE_WRITE)"))
    }

    /// Gives the memory of all pages back: they read as zero. For stale pages of an earlier visit.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn drop_all(&self) -> Result<()> {
        self.drop_pages(self.all())
    }

    /// Gives the memory of the pages of `extent` back, in every mapping: they read as zero. To be done before a dirty log
    /// is armed, which doesn't see it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn drop_pages(&self, extent: Extent) -> Result<()> {
        let extent = Extent { count: extent.end().min(self.pages()).saturating_sub(extent.start), ..extent };
        if extent.count == 0 {
            return Ok(());
        }
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.fd, mode, extent.start * PAGE_BYTES, extent.count * PAGE_BYTES)
            .map_err(MemoryError::kernel("fallocate(FALLOC_FL_PUNCH_HOLE)"))
    }

    /// The watch over the guest's mapping, made when it is first asked for.
    ///
    /// # Errors
    /// userfaultfd is not available.
    pub fn watch(&self) -> Result<Arc<Watch>> {
        if let Some(watch) = self.watch.get() {
            return Ok(Arc::clone(watch));
        }
        let made = Watch::inside(self.guest_address(), self.pages())?;
        Ok(Arc::clone(self.watch.get_or_init(|| Arc::new(made))))
    }

    /// Makes `watch` the watch over the guest's mapping, which another process has.
    ///
    /// # Errors
    /// There is a watch already, or this one is over another number of pages.
    pub fn watch_by(&self, watch: Watch) -> Result<()> {
        if watch.pages() != self.pages() {
            let why = format!("the guest's mapping has {} pages", watch.pages());
            return Err(MemoryError::Size { bytes: self.pages() * PAGE_BYTES, why });
        }
        self.watch.set(Arc::new(watch)).map_err(|_| MemoryError::OutOfTurn("the RAM is watched already"))
    }

    /// Drops the entries of the guest's mapping: the next access to any page is a fault. What pages hold stays.
    pub(crate) fn unmap_guest(&self) -> Result<()> {
        self.guest.advise(self.all(), Advice::LinuxDontNeed).map_err(MemoryError::kernel("madvise(MADV_DONTNEED)"))
    }

    /// The host's view of `extent`, for the calls that move it without a copy.
    ///
    /// # Panics
    /// The extent reaches beyond the RAM.
    pub(crate) fn host_part(&self, extent: Extent) -> &[PageWords] {
        self.host.part(extent)
    }
}

fn check_size(bytes: u64) -> Result<()> {
    let refuse = |why: &str| Err(MemoryError::Size { bytes, why: why.to_owned() });
    if rustix::param::page_size() as u64 != PAGE_BYTES {
        return refuse("this kernel's pages are not of 4 KiB, the only size that is supported");
    }
    if bytes == 0 || !bytes.is_multiple_of(PAGE_BYTES) {
        return refuse("the size must be a positive multiple of 4 KiB");
    }
    Ok(())
}

/// Populates a part of a mapping from several threads: a first touch costs as much as seconds a GiB.
fn populate(mapping: &Mapping, extent: Extent) -> io::Result<()> {
    let next = AtomicU64::new(extent.start);
    let work = || -> io::Result<()> {
        loop {
            let start = next.fetch_add(POPULATE_PAGES, Ordering::Relaxed);
            let count = POPULATE_PAGES.min(extent.end().saturating_sub(start));
            if count == 0 {
                return Ok(());
            }
            mapping.advise(Extent { start, count }, Advice::LinuxPopulateWrite)?;
        }
    };
    let chunks = usize::try_from(extent.count.div_ceil(POPULATE_PAGES)).unwrap_or(usize::MAX);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(POPULATE_THREADS).min(chunks);
    if threads <= 1 {
        return work();
    }
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        helpers.into_iter().try_for_each(|helper| helper.join().expect("populating does not panic"))
    })
}
