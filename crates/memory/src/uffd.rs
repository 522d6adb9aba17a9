//! userfaultfd, as thinly as it can be: open, agree on features, register, protect, continue, wake, read events.
//!
//! Constants and structures come from `linux-raw-sys`. Addresses are those of the process in which the descriptor was
//! made, which need not be this one.

use crate::error::{MemoryError, Result};
use linux_raw_sys::general as raw;
use linux_raw_sys::ioctl as code;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::fs::OFlags;
use std::io;

/// A feature of userfaultfd: its name as the kernel spells it (without `UFFD_FEATURE_`), its bit, and when it came.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// The kernel's name.
    pub name: &'static str,
    /// The bit.
    pub bit: u64,
    /// The first kernel that has it.
    pub since: &'static str,
}

/// What a dirty log needs: asynchronous write-protection of shared memory, pages without an entry included.
pub const LOG_FEATURES: &[Feature] = &[
    Feature { name: "PAGEFAULT_FLAG_WP", bit: raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP as u64, since: "5.7" },
    Feature { name: "WP_HUGETLBFS_SHMEM", bit: raw::UFFD_FEATURE_WP_HUGETLBFS_SHMEM as u64, since: "5.19" },
    Feature { name: "WP_UNPOPULATED", bit: raw::UFFD_FEATURE_WP_UNPOPULATED as u64, since: "6.4" },
    Feature { name: "WP_ASYNC", bit: raw::UFFD_FEATURE_WP_ASYNC as u64, since: "6.7" },
];

/// What post-copy needs: faults on pages of shared memory that are absent, or present but not mapped.
pub const FAULT_FEATURES: &[Feature] = &[
    Feature { name: "MISSING_SHMEM", bit: raw::UFFD_FEATURE_MISSING_SHMEM as u64, since: "4.11" },
    Feature { name: "MINOR_SHMEM", bit: raw::UFFD_FEATURE_MINOR_SHMEM as u64, since: "5.14" },
];

/// `UFFDIO_CONTINUE_MODE_WP`: the page is mapped write-protected. Not among the constants of `linux-raw-sys` 0.12.
const CONTINUE_MODE_WP: u64 = 2;

/// `USERFAULTFD_IOC_NEW`: `_IO(USERFAULTFD_IOC, 0)`.
const IOC_NEW: u32 = raw::USERFAULTFD_IOC << 8;

/// Bytes of one `uffd_msg`, and where its fields lie.
const EVENT_BYTES: usize = size_of::<raw::uffd_msg>();
const EVENT_ADDRESS: std::ops::Range<usize> = 16..24;

/// By which way the kernel gave the descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The system call: the process has CAP_SYS_PTRACE, or `vm.unprivileged_userfaultfd` is 1.
    Call,
    /// The node /dev/userfaultfd.
    Device,
    /// The system call with `UFFD_USER_MODE_ONLY`: needs no permission, can't serve faults raised inside the kernel.
    UserModeOnly,
}

/// What a process needs of a userfaultfd that serves the kernel's accesses too.
pub const FOR_ALL_FAULTS: &str = "CAP_SYS_PTRACE, access to /dev/userfaultfd, or vm.unprivileged_userfaultfd=1";

/// What a range is registered for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modes {
    /// Faults on pages that the memory object lacks.
    pub missing: bool,
    /// Faults on pages that the memory object has and the mapping lacks.
    pub minor: bool,
    /// Write protection.
    pub write_protect: bool,
}

/// A userfaultfd after the handshake.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
    way: Way,
    features: u64,
}

impl Uffd {
    /// Opens a userfaultfd in this process, with those of `wanted` that the kernel has; see [`Uffd::require`].
    ///
    /// # Errors
    /// The kernel has none, or this process may not have one.
    pub fn open(wanted: u64) -> Result<Self> {
        let have = Self::supported()?;
        Self::agree(open_fresh()?, wanted & have)
    }

    /// Takes over a userfaultfd that another process opened for its own memory, by that way, and has not yet shaken hands on, with
    /// those of `wanted` that the kernel has.
    ///
    /// # Errors
    /// The descriptor is none, or the handshake was made already.
    pub fn adopt((fd, way): (OwnedFd, Way), wanted: u64) -> Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(MemoryError::kernel("fcntl"))?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(MemoryError::kernel("fcntl"))?;
        Self::agree((fd, way), wanted & Self::supported()?)
    }

    /// The features that the kernel has.
    ///
    /// # Errors
    /// As [`Uffd::open`].
    pub fn supported() -> Result<u64> {
        // The handshake can be made once a descriptor: asking costs one of its own.
        Ok(Self::agree(open_fresh()?, 0)?.features)
    }

    fn agree((fd, way): (OwnedFd, Way), features: u64) -> Result<Self> {
        let mut api = raw::uffdio_api { api: u64::from(raw::UFFD_API), features, ioctls: 0 };
        control(fd.as_fd(), code::UFFDIO_API, &mut api).map_err(MemoryError::kernel("UFFDIO_API"))?;
        Ok(Uffd { fd, way, features: api.features })
    }

    /// By which way the kernel gave it.
    pub fn way(&self) -> Way {
        self.way
    }

    /// Whether every feature of `needed` was agreed on.
    ///
    /// # Errors
    /// One wasn't; the message says from which kernel on it is there.
    pub fn require(&self, what: &'static str, needed: &[Feature]) -> Result<()> {
        match needed.iter().find(|f| self.features & f.bit == 0) {
            None => Ok(()),
            Some(f) => Err(MemoryError::Unavailable {
                what,
                remedy: format!("userfaultfd lacks UFFD_FEATURE_{}, which needs Linux {} or newer", f.name, f.since),
                source: None,
            }),
        }
    }

    /// Whether the feature was agreed on.
    pub fn has(&self, feature: u32) -> bool {
        self.features & u64::from(feature) != 0
    }

    /// Registers `bytes` from `address` on, or adds modes to what is registered. Modes can't be taken away but by
    /// [`Uffd::unregister`].
    pub fn register(&self, address: u64, bytes: u64, modes: Modes) -> io::Result<()> {
        let bit = |on: bool, bit: u32| if on { bit } else { 0 };
        let mode = bit(modes.missing, raw::UFFDIO_REGISTER_MODE_MISSING)
            | bit(modes.minor, raw::UFFDIO_REGISTER_MODE_MINOR)
            | bit(modes.write_protect, raw::UFFDIO_REGISTER_MODE_WP);
        let mut argument = raw::uffdio_register { range: range(address, bytes), mode: u64::from(mode), ioctls: 0 };
        control(self.as_fd(), code::UFFDIO_REGISTER, &mut argument)
    }

    /// Undoes a registration: protection is lifted, who waits for a page wakes up and tries again.
    pub fn unregister(&self, address: u64, bytes: u64) -> io::Result<()> {
        control(self.as_fd(), code::UFFDIO_UNREGISTER, &mut range(address, bytes))
    }

    /// Protects the range against writes. With WP_UNPOPULATED, pages without an entry too.
    pub fn write_protect(&self, address: u64, bytes: u64) -> io::Result<()> {
        // UFFDIO_WRITEPROTECT_MODE_WP, which `linux-raw-sys` lacks, is bit 0.
        let mut argument = raw::uffdio_writeprotect { range: range(address, bytes), mode: 1 };
        retry(|| control(self.as_fd(), code::UFFDIO_WRITEPROTECT, &mut argument))
    }

    /// Maps pages that the memory object holds, and wakes who waits for them. Answers how many bytes were mapped before
    /// the first page for which it was not possible; an error is that of the first page.
    pub fn continue_range(&self, address: u64, bytes: u64, write_protect: bool) -> io::Result<u64> {
        let mode = if write_protect { CONTINUE_MODE_WP } else { 0 };
        let mut argument = raw::uffdio_continue { range: range(address, bytes), mode, mapped: 0 };
        let answer = control(self.as_fd(), code::UFFDIO_CONTINUE, &mut argument);
        match (answer, u64::try_from(argument.mapped)) {
            (Ok(()), _) => Ok(bytes),
            (Err(_), Ok(mapped)) if mapped > 0 => Ok(mapped),
            (Err(error), _) => Err(error),
        }
    }

    /// Wakes who waits for a page of the range; they try again.
    pub fn wake(&self, address: u64, bytes: u64) -> io::Result<()> {
        control(self.as_fd(), code::UFFDIO_WAKE, &mut range(address, bytes))
    }

    /// The addresses of the faults that are pending, as many as fit; empty when there are none.
    pub fn read_faults(&self, into: &mut Vec<u64>) -> io::Result<()> {
        let mut buffer = [0u8; 32 * EVENT_BYTES];
        into.clear();
        let bytes = match rustix::io::read(&self.fd, &mut buffer) {
            Ok(bytes) => bytes,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in buffer[..bytes].chunks_exact(EVENT_BYTES) {
            if u32::from(event[0]) == raw::UFFD_EVENT_PAGEFAULT {
                let address = event[EVENT_ADDRESS].try_into().expect("the field has eight bytes");
                into.push(u64::from_ne_bytes(address));
            }
        }
        Ok(())
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn range(start: u64, len: u64) -> raw::uffdio_range {
    raw::uffdio_range { start, len }
}

fn retry(mut call: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    loop {
        match call() {
            // EAGAIN: the address space was changing (a fork, a remap).
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {}
            done => return done,
        }
    }
}

/// One ioctl on `fd`. Private, because `code` and `T` must belong together.
fn control<T>(fd: BorrowedFd<'_>, code: u32, argument: &mut T) -> io::Result<()> {
    // SAFETY: every caller in this file passes the structure that the kernel reads and writes for `code`, exclusively
    // borrowed. None of the codes changes what memory holds; they change how it is mapped and protected.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), code as libc::Ioctl, std::ptr::from_mut(argument)) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Opens a userfaultfd for this process's memory, by the way that can do most, and shakes no hands: for
/// [`Uffd::adopt`], perhaps in another process.
///
/// # Errors
/// The kernel has none, or this process may not have one; the message says what would help.
pub fn open_fresh() -> Result<(OwnedFd, Way)> {
    let refused = match open_call(0) {
        Ok(fd) => return Ok((fd, Way::Call)),
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            let remedy = "it needs a kernel built with CONFIG_USERFAULTFD, and no seccomp filter against it";
            return Err(unavailable(remedy, error));
        }
        Err(error) => error,
    };
    if let Ok(fd) = open_device() {
        return Ok((fd, Way::Device));
    }
    match open_call(raw::UFFD_USER_MODE_ONLY) {
        Ok(fd) => Ok((fd, Way::UserModeOnly)),
        Err(_) => Err(unavailable(
            "give the process CAP_SYS_PTRACE, or access to /dev/userfaultfd, or set vm.unprivileged_userfaultfd=1; \
             a container's seccomp profile may forbid it as well",
            refused,
        )),
    }
}

fn unavailable(remedy: &str, source: io::Error) -> MemoryError {
    MemoryError::Unavailable { what: "userfaultfd", remedy: remedy.to_owned(), source: Some(source) }
}

fn open_call(flags: u32) -> io::Result<OwnedFd> {
    let flags = flags | (libc::O_CLOEXEC | libc::O_NONBLOCK) as u32;
    // SAFETY: the call takes a number and answers a new descriptor or -1.
    owned(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) })
}

fn open_device() -> io::Result<OwnedFd> {
    let node = std::fs::File::options().read(true).write(true).open("/dev/userfaultfd")?;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: USERFAULTFD_IOC_NEW takes a number and answers a new descriptor or -1.
    owned(unsafe { libc::ioctl(node.as_raw_fd(), IOC_NEW as libc::Ioctl, flags) }.into())
}

fn owned(answer: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(answer) {
        // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
