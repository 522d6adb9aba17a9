//! The RAM of a guest that runs in another process: its writes are logged and its missing pages served from here.
//!
//! The other process is this test program again, told by an environment variable to be the guest. Its standard input is
//! a socket: over it go the two descriptors (the RAM and a fresh userfaultfd), then commands.

mod kernel;

use kernel::{or_skip, set};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use whimbrel_memory::dirty_logs::UserfaultLog;
use whimbrel_memory::uffd::{self, Way};
use whimbrel_memory::watch::Watch;
use whimbrel_memory::{DirtyLog, GuestRam};
use whimbrel_model::Extent;

const PAGES: u64 = 256;
const ROLE: &str = "WHIMBREL_TEST_GUEST";

/// The guest's side: hands over its RAM, then writes and reads pages as it is told. A test like the others, that passes
/// at once unless it is told to be the guest.
#[test]
fn guest() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let ram = GuestRam::create(PAGES * 4096).unwrap();
    let fds = match uffd::open_fresh() {
        Ok((fd, _)) => vec![ram.fd().try_clone_to_owned().unwrap(), fd],
        Err(_) => vec![ram.fd().try_clone_to_owned().unwrap()],
    };
    send_descriptors(&socket, &fds, ram.guest_address());
    for line in BufReader::new(&socket).lines() {
        let line = line.unwrap();
        let (verb, page) = line.split_once(' ').unwrap();
        let word = &ram.guest_page(page.parse().unwrap())[0];
        let value = if verb == "write" { word.fetch_add(1, Ordering::Relaxed) } else { word.load(Ordering::Relaxed) };
        writeln!(&socket, "{value}").unwrap();
    }
}

fn send_descriptors(socket: &UnixStream, fds: &[OwnedFd], address: u64) {
    let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
    let bytes = address.to_ne_bytes();
    rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::empty()).unwrap();
}

struct Guest {
    child: Child,
    socket: UnixStream,
    ram: Arc<GuestRam>,
}

impl Guest {
    /// Starts the guest and takes over the watch of its RAM; `None` where it could not open a userfaultfd.
    fn start(test: &str) -> Option<Self> {
        Self::watched(test, Way::Call)
    }

    /// As [`Guest::start`], with a userfaultfd that is said to have been opened by this way.
    fn watched(test: &str, way: Way) -> Option<Self> {
        let (socket, theirs) = UnixStream::pair().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["guest", "--exact", "--nocapture"])
            .env(ROLE, "1")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut address = [0; 8];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut pieces = [IoSliceMut::new(&mut address)];
        rustix::net::recvmsg(&socket, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
        let mut fds = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
            _ => vec![],
        });
        let ram = GuestRam::from_fd(fds.next().unwrap(), PAGES * 4096).unwrap();
        let uffd = fds.next();
        let guest = Guest { child, socket, ram };
        let Some(uffd) = uffd else {
            drop(writeln!(std::io::stderr(), "SKIPPED: {test}: the other process may not open a userfaultfd"));
            return None;
        };
        let watch = Watch::outside(guest.child.id(), u64::from_ne_bytes(address), PAGES, (uffd, way));
        guest.ram.watch_by(or_skip(test, watch)?).unwrap();
        Some(guest)
    }

    fn tell(&self, verb: &str, page: u64) {
        writeln!(&self.socket, "{verb} {page}").unwrap();
    }

    fn answer(&self) -> u64 {
        let mut line = String::new();
        BufReader::with_capacity(1, &self.socket).read_line(&mut line).unwrap();
        line.trim().parse().unwrap()
    }

    fn ask(&self, verb: &str, page: u64) -> u64 {
        self.tell(verb, page);
        self.answer()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Without its socket the guest ends by itself, unless it waits for a page.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn writes_of_another_process_are_logged() {
    let test = "writes_of_another_process_are_logged";
    let Some(guest) = Guest::start(test) else { return };
    guest.ask("write", 9);
    let Some(mut log) = or_skip(test, UserfaultLog::over(&guest.ram)) else { return };
    if or_skip(test, log.arm()).is_none() {
        return;
    }
    guest.ask("write", 3);
    guest.ask("write", 200);
    guest.ask("read", 4);
    guest.ram.marks().insert(7);
    assert_eq!(log.peek().unwrap(), set(PAGES, [3, 7, 200]));
    assert_eq!(log.take().unwrap(), set(PAGES, [3, 7, 200]));
    guest.ask("write", 3);
    assert_eq!(log.take().unwrap(), set(PAGES, [3]));
    assert_eq!(guest.ram.host_page(3)[0].load(Ordering::Relaxed), 2);
    log.disarm().unwrap();
    assert_eq!(guest.ask("write", 3), 2);
}

#[test]
fn missing_pages_of_another_process_are_served() {
    let test = "missing_pages_of_another_process_are_served";
    let Some(guest) = Guest::start(test) else { return };
    guest.ask("write", 5);
    // Giving the memory back empties the guest's mapping too, which can't be reached from here.
    guest.ram.drop_all().unwrap();
    guest.ram.host_page(6)[0].store(66, Ordering::Relaxed);
    let Some((pages, told)) = or_skip(test, kernel::begin(&guest.ram, set(PAGES, 10..PAGES))) else { return };
    assert_eq!((guest.ask("read", 5), guest.ask("read", 6)), (0, 66));
    for page in [20, 11] {
        guest.tell("read", page);
        assert_eq!(told.recv().unwrap(), page);
        guest.ram.host_page(page)[0].store(page * 3, Ordering::Relaxed);
        assert_eq!(pages.complete(Extent { start: page, count: 1 }).unwrap().len(), 1);
        assert_eq!(guest.answer(), page * 3);
    }
    pages.complete(guest.ram.all()).unwrap();
    pages.finish().unwrap();
    // A trip back from here: what it writes now is logged.
    let mut log = UserfaultLog::over(&guest.ram).unwrap();
    if or_skip(test, log.arm()).is_some() {
        guest.ask("write", 100);
        assert_eq!(log.take().unwrap(), set(PAGES, [100]));
    }
}

#[test]
fn a_log_that_was_armed_before_missing_pages_are_served_sees_what_is_written_and_not_what_comes() {
    let test = "a_log_that_was_armed_before_missing_pages";
    let Some(guest) = Guest::start(test) else { return };
    guest.ram.drop_all().unwrap();
    let mut log = UserfaultLog::over(&guest.ram).unwrap();
    if or_skip(test, log.arm()).is_none() {
        return;
    }
    guest.ram.host_page(6)[0].store(66, Ordering::Relaxed);
    let Some((pages, told)) = or_skip(test, kernel::begin(&guest.ram, set(PAGES, 10..PAGES))) else { return };
    assert_eq!(guest.ask("read", 6), 66);
    guest.ask("write", 7);
    for (verb, page) in [("read", 20), ("write", 30)] {
        guest.tell(verb, page);
        assert_eq!(told.recv().unwrap(), page);
        guest.ram.host_page(page)[0].store(5, Ordering::Relaxed);
        pages.complete(Extent { start: page, count: 1 }).unwrap();
        guest.answer();
    }
    pages.complete(guest.ram.all()).unwrap();
    pages.finish().unwrap();
    guest.ask("write", 20);
    guest.ask("read", 40);
    assert_eq!(log.take().unwrap(), set(PAGES, [7, 20, 30]));
    log.disarm().unwrap();
    guest.ask("write", 50);
}

#[test]
fn a_userfaultfd_that_fails_the_kernels_accesses_serves_no_missing_pages_and_logs_writes() {
    let test = "a_userfaultfd_that_fails_the_kernels_accesses";
    let Some(guest) = Guest::watched(test, Way::UserModeOnly) else { return };
    let refused = kernel::begin(&guest.ram, set(PAGES, 0..PAGES)).unwrap_err();
    assert!(refused.to_string().contains("vm.unprivileged_userfaultfd=1"), "{refused}");
    let mut log = UserfaultLog::over(&guest.ram).unwrap();
    if or_skip(test, log.arm()).is_some() {
        guest.ask("write", 3);
        assert_eq!(log.take().unwrap(), set(PAGES, [3]));
    }
}

#[test]
fn a_guest_that_dies_is_an_error_or_an_empty_log_and_no_hang() {
    let test = "a_guest_that_dies";
    let Some(mut guest) = Guest::start(test) else { return };
    let Some((pages, _told)) = or_skip(test, kernel::begin(&guest.ram, set(PAGES, 0..PAGES))) else { return };
    guest.child.kill().unwrap();
    guest.child.wait().unwrap();
    assert!(pages.complete(guest.ram.all()).is_err(), "there is nothing to map pages into");
    let _ = pages.abandon();
    let mut log = UserfaultLog::over(&guest.ram).unwrap();
    assert!(log.arm().is_err(), "there is nothing to protect");
}
