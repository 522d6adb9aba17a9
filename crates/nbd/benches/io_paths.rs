//! By which way a server gets at its image: what a request of 4 KiB costs, alone and 32 at once, of an image in the page cache
//! and of one that isn't.
//!
//! | way | |
//! |---|---|
//! | inline | what the server does first: `preadv2` with RWF_NOWAIT; for writes the batch of [`FileBackend`] |
//! | plain | `pread` and `pwrite` on the same thread, which wait where the page cache has nothing |
//! | pool | tokio's blocking threads, a task a request: what the server does with what inline refuses |
//! | io_uring | one ring, all requests submitted at once and all waited for; buffered, as the server's image is |
//!
//! Ways take turns, so that what else the host does disturbs all alike; printed is the median of each.

use io_uring::{IoUring, opcode, types};
use rustix::fs::Advice;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;
use tokio::task::JoinSet;
use whimbrel_nbd::{Access, Backend, FileBackend, Now};

const FILE_BYTES: u64 = 256 << 20;
const REQUEST_BYTES: usize = 4096;
const DEPTHS: [usize; 2] = [1, 32];
/// Turns, and the requests of each way in one.
const TURNS: usize = 21;
const REQUESTS: usize = 4096;
/// Of an image that isn't in the page cache fewer suffice.
const COLD_REQUESTS: usize = 512;

/// The image, and all ways to it.
struct Ways {
    file: Arc<File>,
    /// Its mapping keeps pages in the page cache: `None` where they are to be forgotten.
    backend: Option<FileBackend>,
    runtime: tokio::runtime::Runtime,
    ring: Option<IoUring>,
    random: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Inline,
    Plain,
    Pool,
    IoUring,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Read,
    Write,
}

impl Ways {
    fn open(folder: &std::path::Path) -> Ways {
        let path = folder.join("disk.raw");
        let chunk: Vec<u8> = (0..1 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a file");
        (0..FILE_BYTES >> 20).for_each(|at| file.write_all_at(&chunk, at << 20).expect("room for it"));
        file.sync_all().expect("it is written");
        let ring = IoUring::new(64).inspect_err(|why| println!("io_uring: SKIPPED: {why}")).ok();
        let backend = FileBackend::open(&path, Access::ReadWrite).expect("the image");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
        Ways { file: Arc::new(file), backend: Some(backend), runtime, ring, random: 1 }
    }

    /// So many offsets, anywhere.
    fn offsets(&mut self, count: usize) -> Vec<u64> {
        let mut next = || {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.random >> 33) % (FILE_BYTES / REQUEST_BYTES as u64) * REQUEST_BYTES as u64
        };
        (0..count).map(|_| next()).collect()
    }

    /// Makes these requests at once; `false` if the way refuses them.
    fn make(&mut self, way: Way, kind: Kind, offsets: &[u64], buffers: &mut [Vec<u8>]) -> bool {
        match way {
            Way::Inline if kind == Kind::Read => offsets.iter().zip(buffers).all(|(offset, buffer)| {
                self.backend.as_ref().expect("it is open").try_read_now(*offset, buffer).expect("a read") == Now::Done
            }),
            Way::Inline => {
                let writes: Vec<(u64, &[u8])> = offsets.iter().zip(&*buffers).map(|(o, b)| (*o, &b[..])).collect();
                self.backend.as_ref().expect("it is open").try_write_many_now(&writes) == writes.len()
            }
            Way::Plain => {
                for (offset, buffer) in offsets.iter().zip(buffers) {
                    plain(&self.file, kind, *offset, buffer);
                }
                true
            }
            Way::Pool => {
                let mut tasks = JoinSet::new();
                let runtime = self.runtime.handle();
                for (at, offset) in offsets.iter().enumerate() {
                    let (file, mut buffer, offset) =
                        (Arc::clone(&self.file), std::mem::take(&mut buffers[at]), *offset);
                    let act = move || {
                        plain(&file, kind, offset, &mut buffer);
                        (at, buffer)
                    };
                    tasks.spawn_blocking_on(act, runtime);
                }
                for (at, buffer) in runtime.block_on(tasks.join_all()) {
                    buffers[at] = buffer;
                }
                true
            }
            Way::IoUring => self.through_ring(kind, offsets, buffers),
        }
    }

    #[allow(unsafe_code, reason = "a ring is given addresses")]
    fn through_ring(&mut self, kind: Kind, offsets: &[u64], buffers: &mut [Vec<u8>]) -> bool {
        let Some(ring) = &mut self.ring else { return false };
        let file = types::Fd(self.file.as_raw_fd());
        for (offset, buffer) in offsets.iter().zip(buffers) {
            let (place, length) = (buffer.as_mut_ptr(), REQUEST_BYTES as u32);
            let entry = match kind {
                Kind::Read => opcode::Read::new(file, place, length).offset(*offset).build(),
                Kind::Write => opcode::Write::new(file, place, length).offset(*offset).build(),
            };
            // SAFETY: the buffer lives, and nobody else uses it, until all of these have completed below; the file is open.
            unsafe { ring.submission().push(&entry) }.expect("room for all");
        }
        ring.submit_and_wait(offsets.len()).expect("all complete");
        let lengths: Vec<i32> = ring.completion().map(|done| done.result()).collect();
        assert_eq!(lengths, vec![REQUEST_BYTES as i32; offsets.len()], "whole requests");
        true
    }

    /// Nanoseconds a request; `None` if the way refuses.
    fn turn(&mut self, way: Way, kind: Kind, depth: usize, requests: usize) -> Option<f64> {
        let mut buffers = vec![vec![7; REQUEST_BYTES]; depth];
        let offsets = self.offsets(requests);
        let start = Instant::now();
        for offsets in offsets.chunks_exact(depth) {
            if !self.make(way, kind, offsets, &mut buffers) {
                return None;
            }
        }
        Some(start.elapsed().as_nanos() as f64 / requests as f64)
    }

    /// Leaves nothing of the image in the page cache.
    fn forget(&mut self) {
        self.backend = None;
        self.file.sync_all().expect("it is written");
        rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed).expect("the kernel takes advice");
        // Else it reads ahead, and what is asked for next is there.
        rustix::fs::fadvise(&self.file, 0, None, Advice::Random).expect("the kernel takes advice");
    }
}

fn plain(file: &File, kind: Kind, offset: u64, buffer: &mut [u8]) {
    match kind {
        Kind::Read => file.read_exact_at(buffer, offset).expect("a read"),
        Kind::Write => file.write_all_at(buffer, offset).expect("a write"),
    }
}

fn main() {
    // The test runner builds and runs benchmarks too: there they only have to work.
    let (turns, share) = if std::env::args().any(|argument| argument == "--test") { (1, 16) } else { (TURNS, 1) };
    let folder = tempfile::tempdir().expect("a folder");
    let mut ways = Ways::open(folder.path());
    for (title, kind, cold) in [
        ("read, cached", Kind::Read, false),
        ("write, cached", Kind::Write, false),
        ("read, not cached", Kind::Read, true),
    ] {
        let (list, requests) = match cold {
            true => (vec![Way::Plain, Way::Pool, Way::IoUring], COLD_REQUESTS / share),
            false => (vec![Way::Inline, Way::Plain, Way::Pool, Way::IoUring], REQUESTS / share),
        };
        for depth in DEPTHS {
            let mut found = vec![Vec::new(); list.len()];
            for turn in 0..turns {
                for at in (0..list.len()).map(|at| (at + turn) % list.len()) {
                    if cold {
                        ways.forget();
                    }
                    found[at].extend(ways.turn(list[at], kind, depth, requests));
                }
            }
            for (way, mut found) in list.iter().zip(found) {
                found.sort_by(f64::total_cmp);
                match found.get(found.len() / 2) {
                    Some(ns) => println!(
                        "{title}, {depth} at once, {way:?}: {:.2} us a request ({:.2} to {:.2})",
                        ns / 1e3,
                        found[0] / 1e3,
                        found[found.len() - 1] / 1e3
                    ),
                    None => println!("{title}, {depth} at once, {way:?}: SKIPPED: not to be had here"),
                }
            }
        }
    }
}
