//! Preloaded into QEMU: when QEMU maps the guest's RAM, a userfaultfd is opened for QEMU's memory, and whoever started
//! QEMU is told its number and where the RAM lies.
//!
//! With that a program outside can log the guest's writes and serve its missing pages, and QEMU is as its distribution
//! built it. Nothing else is changed: every call goes on to the kernel as it came.
//!
//! | variable | what |
//! |---|---|
//! | `WHIMBREL_RAM` | device and inode of the memory object, as `DEV:INODE` |
//! | `WHIMBREL_SOCKET` | the path of a listening socket |
//! | `WHIMBREL_ASK` | anything: say `throttles 0` or `throttles 1` on standard output, and nothing else changes |
//!
//! Said over the socket, one line: `ram ADDRESS BYTES DESCRIPTOR KERNEL THROTTLES`, in decimal, or `error WHY`. The other side
//! takes a copy of the descriptor by pidfd_getfd. KERNEL is 1 where the kernel's own accesses to a missing page wait for it too, and
//! fail otherwise. THROTTLES is 1 where QEMU's program offers its own throttle, that of its
//! auto-converge, to its modules; then each line that comes back, `throttle PERCENT`, sets it, and 0 ends it. Only QEMU can
//! stop a vCPU between two pieces of guest code: held elsewhere it might hold locks that the rest of QEMU waits for.
//!
//! This file depends on nothing but the standard library: the machine's build script compiles it, and the program
//! carries the result along.

use std::ffi::{CStr, c_char, c_int, c_long, c_ulong, c_void};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

const SYS_MMAP: c_long = 9;
const SYS_USERFAULTFD: c_long = 323;
const MAP_SHARED: c_int = 1;
const MAP_FAILED: *mut c_void = -1isize as *mut c_void;
const CLOEXEC_NONBLOCK: c_int = 0o2000000 | 0o4000;
const USER_MODE_ONLY: c_int = 1;
/// `USERFAULTFD_IOC_NEW`.
const IOC_NEW: c_ulong = 0xaa00;
const PR_SET_PDEATHSIG: c_int = 1;
const SIGKILL: c_ulong = 9;
const SIG_SETMASK: c_int = 2;
/// A set of signals, as the C library has it.
type Signals = [u64; 16];
const ALL_SIGNALS: Signals = [u64::MAX; 16];

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn prctl(option: c_int, ...) -> c_int;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn pthread_sigmask(how: c_int, set: *const Signals, old: *mut Signals) -> c_int;
}

/// Run when the library is loaded.
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

/// A guest whose host is gone must not run on.
extern "C" fn begin() {
    if std::env::var_os("WHIMBREL_ASK").is_some() {
        // Whoever asks has an answer or none, and then says so.
        let _ = writeln!(io::stdout(), "throttles {}", u8::from(Throttle::find().is_some()));
        return;
    }
    // SAFETY: the option takes one number, and changes nothing but what happens when the parent ends.
    unsafe { prctl(PR_SET_PDEATHSIG, SIGKILL) };
}

/// As the C library's.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    address: *mut c_void,
    length: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: the caller's promise, passed on.
    let mapped = unsafe { syscall(SYS_MMAP, address, length, protection, flags, fd, offset) } as *mut c_void;
    if mapped != MAP_FAILED && fd >= 0 && flags & MAP_SHARED != 0 && offset == 0 && is_ram(fd) {
        tell(mapped as usize, length);
    }
    mapped
}

/// As the C library's, which on this processor is the same call.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap64(
    address: *mut c_void,
    length: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: the caller's promise, passed on.
    unsafe { mmap(address, length, protection, flags, fd, offset) }
}

/// Whether the descriptor is of the guest's RAM.
fn is_ram(fd: c_int) -> bool {
    let Ok(ram) = std::env::var("WHIMBREL_RAM") else { return false };
    let found = std::fs::metadata(format!("/proc/self/fd/{fd}"));
    found.is_ok_and(|found| format!("{}:{}", found.dev(), found.ino()) == ram)
}

/// Tells where the RAM is mapped. Whoever isn't told, or can't listen, will not let the guest run.
fn tell(address: usize, length: usize) {
    let Some(mut socket) = std::env::var_os("WHIMBREL_SOCKET").and_then(|path| UnixStream::connect(path).ok()) else {
        return;
    };
    let throttle = Throttle::find();
    let line = match open_userfaultfd() {
        Ok((fd, kernel)) => {
            format!("ram {address} {length} {fd} {} {}\n", u8::from(kernel), u8::from(throttle.is_some()))
        }
        Err(error) => format!("error {error}\n"),
    };
    // Whoever has gone away needs no word.
    if socket.write_all(line.as_bytes()).is_ok()
        && let Some(throttle) = throttle
    {
        without_signals(|| drop(std::thread::Builder::new().spawn(move || throttle.obey(socket))));
    }
}

/// Calls `start` with all signals blocked: a thread that it starts leaves them to QEMU's own threads, which expect them.
fn without_signals(start: impl FnOnce()) {
    let mut before: Signals = [0; 16];
    // SAFETY: both sets are as long as the C library's, and live through the call.
    unsafe { pthread_sigmask(SIG_SETMASK, &ALL_SIGNALS, &mut before) };
    start();
    // SAFETY: as above.
    unsafe { pthread_sigmask(SIG_SETMASK, &before, std::ptr::null_mut()) };
}

/// QEMU's own throttle: `cpu_throttle_set(int)` and `cpu_throttle_stop(void)`, from 2.5 on.
struct Throttle {
    set: extern "C" fn(c_int),
    stop: extern "C" fn(),
}

impl Throttle {
    fn find() -> Option<Throttle> {
        let look = |name: &CStr| {
            // SAFETY: the name ends in a zero; a null handle asks for any symbol of the program.
            let found = unsafe { dlsym(std::ptr::null_mut(), name.as_ptr()) };
            (!found.is_null()).then_some(found)
        };
        let (set, stop) = (look(c"cpu_throttle_set")?, look(c"cpu_throttle_stop")?);
        // SAFETY: QEMU has had functions of these names with these signatures since it has throttled, and calls them from
        // its migration's thread, which like this one holds none of its locks.
        let set = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(c_int)>(set) };
        // SAFETY: as above.
        let stop = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn()>(stop) };
        Some(Throttle { set, stop })
    }

    /// Does as it is told until nobody tells any more.
    fn obey(&self, socket: UnixStream) {
        for line in BufReader::new(socket).lines().map_while(Result::ok) {
            match line.strip_prefix("throttle ").and_then(|percent| percent.parse::<c_int>().ok()) {
                Some(percent @ 1..=99) => (self.set)(percent),
                Some(0) => (self.stop)(),
                _ => return,
            }
        }
    }
}

/// Opens a userfaultfd by the way that can do most, and tells whether that serves the kernel's accesses. It stays open as long
/// as QEMU runs.
fn open_userfaultfd() -> io::Result<(c_int, bool)> {
    let call = |flags: c_int| {
        // SAFETY: the call takes a number and answers a new descriptor or -1.
        let answer = unsafe { syscall(SYS_USERFAULTFD, flags) } as c_int;
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
    };
    let device = || {
        let node: File = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd")?;
        // SAFETY: the request takes a number and answers a new descriptor or -1.
        let answer = unsafe { ioctl(node.as_raw_fd(), IOC_NEW, CLOEXEC_NONBLOCK) };
        drop(node);
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
    };
    let for_all = |refused| device().map_err(|_: io::Error| refused);
    match call(CLOEXEC_NONBLOCK).or_else(for_all) {
        Ok(fd) => Ok((fd, true)),
        Err(refused) => call(CLOEXEC_NONBLOCK | USER_MODE_ONLY).map(|fd| (fd, false)).map_err(|_| refused),
    }
}
