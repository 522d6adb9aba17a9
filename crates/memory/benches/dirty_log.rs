//! What tracking and serving a guest's memory costs, each beside its limit: the bare ioctl, the kernel's own fault, plain
//! memory.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use linux_raw_sys::general as raw;
use std::hint::black_box;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use whimbrel_memory::dirty_logs::UserfaultLog;
use whimbrel_memory::uffd::{FAULT_FEATURES, Modes, Uffd};
use whimbrel_memory::{DirtyLog, GuestRam, MissingPages};
use whimbrel_model::{Extent, Page, Rng, UnitSet};

const GIB_PAGES: u64 = 1 << 18;
const PAGEMAP_SCAN: u64 = 0xc060_6610;

/// Pairs of the alternating comparison.
const PAIRS: usize = 31;

fn write(ram: &GuestRam, page: u64) {
    ram.guest_page(page)[0].fetch_add(1, Ordering::Relaxed);
}

/// The limit of a take: one ioctl with a buffer that holds every answer.
struct BareScan {
    pagemap: std::fs::File,
    regions: Vec<raw::page_region>,
}

impl BareScan {
    fn new() -> Self {
        let regions = vec![raw::page_region { start: 0, end: 0, categories: 0 }; GIB_PAGES as usize / 2 + 1];
        BareScan { pagemap: std::fs::File::open("/proc/self/pagemap").expect("/proc is mounted"), regions }
    }

    fn take(&mut self, ram: &GuestRam) -> usize {
        let start = ram.guest_address();
        let mut argument = raw::pm_scan_arg {
            size: size_of::<raw::pm_scan_arg>() as u64,
            flags: u64::from(raw::PM_SCAN_CHECK_WPASYNC | raw::PM_SCAN_WP_MATCHING),
            start,
            end: start + ram.pages() * 4096,
            walk_end: 0,
            vec: self.regions.as_mut_ptr() as u64,
            vec_len: self.regions.len() as u64,
            max_pages: 0,
            category_inverted: 0,
            category_mask: u64::from(raw::PAGE_IS_WRITTEN),
            category_anyof_mask: 0,
            return_mask: u64::from(raw::PAGE_IS_WRITTEN),
        };
        // SAFETY: the kernel fills at most `vec_len` regions of a buffer that is exclusively borrowed.
        let found = unsafe { libc::ioctl(self.pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
        usize::try_from(found).expect("the scan works")
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e6
}

fn take(criterion: &mut Criterion) {
    let ram = GuestRam::create(GIB_PAGES * 4096).expect("1 GiB of memory");
    ram.populate().expect("1 GiB of memory");
    let mut log = UserfaultLog::over(&ram).expect("userfaultfd");
    log.arm().expect("a dirty log");
    let mut bare = BareScan::new();
    let mut rng = Rng::new(1);
    let mut group = criterion.benchmark_group("take 1 GiB");
    group.sample_size(10).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(200));
    for written in [0, 16_384, GIB_PAGES] {
        let mut pages: Vec<u64> = (0..GIB_PAGES).collect();
        rng.shuffle(&mut pages);
        pages.truncate(written as usize);
        let mut timed = |bare_one: bool| {
            pages.iter().for_each(|page| write(&ram, *page));
            let start = Instant::now();
            if bare_one {
                black_box(bare.take(&ram));
            } else {
                black_box(log.take().expect("a take"));
            }
            start.elapsed()
        };
        // Alternating, since neighbours on a shared machine disturb both alike that way.
        let pairs: Vec<_> = (0..PAIRS).map(|_| (timed(false), timed(true))).collect();
        let (ours, theirs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let (ours, theirs) = (median(ours), median(theirs));
        println!("{written} pages written: take {ours:.0} us, bare ioctl {theirs:.0} us, ratio {:.2}", ours / theirs);
        for (name, bare_one) in [("take", false), ("bare ioctl", true)] {
            group.bench_function(BenchmarkId::new(name, written), |b| {
                b.iter_custom(|rounds| (0..rounds).map(|_| timed(bare_one)).sum());
            });
        }
    }
    group.bench_function("arm", |b| b.iter(|| log.arm().expect("a dirty log")));
    group.finish();
}

fn first_write(criterion: &mut Criterion) {
    const SWEEP: u64 = 16_384;
    let ram = GuestRam::create(SWEEP * 4096).expect("64 MiB of memory");
    ram.populate().expect("64 MiB of memory");
    let mut log = UserfaultLog::over(&ram).expect("userfaultfd");
    log.arm().expect("a dirty log");
    let base = ram.guest_address() as *mut u64;
    let mut group = criterion.benchmark_group("first write to a page");
    group.throughput(Throughput::Elements(SWEEP)).sample_size(20);
    let sweep = |log: Option<&mut UserfaultLog>, write: &dyn Fn(u64)| {
        if let Some(log) = log {
            log.take().expect("a take");
        }
        let start = Instant::now();
        (0..SWEEP).for_each(write);
        start.elapsed()
    };
    let ours = |page| write(&ram, page);
    // SAFETY: the pages lie in the guest's mapping, and nobody else writes them.
    let bare = |page: u64| unsafe { base.add(page as usize * 512).write_volatile(page) };
    group.bench_function("not protected", |b| b.iter_custom(|n| (0..n).map(|_| sweep(None, &ours)).sum()));
    group.bench_function("protected", |b| b.iter_custom(|n| (0..n).map(|_| sweep(Some(&mut log), &ours)).sum()));
    group.bench_function("protected, bare store", |b| {
        b.iter_custom(|n| (0..n).map(|_| sweep(Some(&mut log), &bare)).sum());
    });
    group.finish();
}

fn zero(criterion: &mut Criterion) {
    const CACHED: u64 = 256;
    let ram = GuestRam::create(CACHED * 4096).expect("1 MiB of memory");
    ram.populate().expect("1 MiB of memory");
    let plain = vec![0u8; CACHED as usize * 4096];
    let mut group = criterion.benchmark_group("is zero");
    group.throughput(Throughput::Bytes(CACHED * 4096)).sample_size(20);
    group.bench_function("is_zero", |b| b.iter(|| (0..CACHED).all(|page| ram.is_zero(page))));
    group.bench_function("naive over plain memory", |b| b.iter(|| black_box(&plain).iter().all(|byte| *byte == 0)));
    group.bench_function("vectors over plain memory", |b| {
        let zero = |chunk: &[u8]| chunk.iter().fold(0, |all, byte| all | byte) == 0;
        b.iter(|| black_box(&plain).chunks_exact(128).all(zero));
    });
    let mut copy = [0; 4096];
    group.bench_function("read_page", |b| {
        b.iter(|| (0..CACHED).for_each(|page| ram.read_page(page, black_box(&mut copy))))
    });
    group.bench_function("write_page", |b| {
        b.iter(|| (0..CACHED).for_each(|page| ram.write_page(page, black_box(&copy))))
    });
    group.finish();
}

/// 250 MiB of pages, of which post-copy is measured.
const PAGES: u64 = 64_000;

fn bare_continue(group: &mut BenchmarkGroup<'_, WallTime>, ram: &GuestRam) {
    group.bench_function("bare CONTINUE of 250 MiB", |b| {
        let wanted = FAULT_FEATURES.iter().fold(0, |all, f| all | f.bit);
        let uffd = Uffd::open(wanted).expect("userfaultfd");
        b.iter_custom(|rounds| {
            let one = |_| {
                // A mapping of its own each time: nothing of it is entered yet.
                let fd = ram.fd().try_clone_to_owned().expect("a descriptor");
                let view = GuestRam::from_fd(fd, PAGES * 4096).expect("another mapping");
                let modes = Modes { missing: true, minor: true, write_protect: false };
                uffd.register(view.guest_address(), PAGES * 4096, modes).expect("minor faults");
                let start = Instant::now();
                let mapped = uffd.continue_range(view.guest_address(), PAGES * 4096, false);
                let time = start.elapsed();
                assert_eq!(mapped.expect("pages are there"), PAGES * 4096);
                time
            };
            (0..rounds).map(one).sum()
        });
    });
}

fn missing(criterion: &mut Criterion) {
    let ram = GuestRam::create(PAGES * 4096).expect("250 MiB of memory");
    ram.populate_host(ram.all()).expect("250 MiB of memory");
    let mut group = criterion.benchmark_group("missing pages");
    group.sample_size(10).measurement_time(Duration::from_secs(2));
    let begin = |set: UnitSet<Page>, told: Box<dyn Fn(u64, Instant) + Send + Sync>| {
        MissingPages::begin(Arc::clone(&ram), set, told).expect("post-copy")
    };
    group.bench_function("begin, 250 MiB present", |b| {
        b.iter_custom(|rounds| {
            let one = |_| {
                let start = Instant::now();
                let pages = begin(UnitSet::empty(PAGES), Box::new(|_, _| ()));
                let time = start.elapsed();
                pages.finish().expect("nothing is missing");
                time
            };
            (0..rounds).map(one).sum()
        });
    });
    bare_continue(&mut group, &ram);
    for run in [1, 64, PAGES] {
        group.bench_function(BenchmarkId::new("complete 250 MiB in runs of", run), |b| {
            b.iter_custom(|rounds| {
                let one = |_| {
                    let pages = begin(UnitSet::full(PAGES), Box::new(|_, _| ()));
                    let start = Instant::now();
                    for start in (0..PAGES).step_by(run as usize) {
                        pages.complete(Extent { start, count: run }).expect("pages are there");
                    }
                    start.elapsed()
                };
                (0..rounds).map(one).sum()
            });
        });
    }
    group.bench_function("one fault, answered at once", |b| {
        b.iter_custom(|rounds| {
            let service: Arc<OnceLock<Arc<MissingPages>>> = Arc::default();
            let theirs = Arc::clone(&service);
            let answer = move |page, _| {
                let pages = theirs.get().expect("no vCPU runs before it is set");
                pages.complete(Extent { start: page, count: 1 }).expect("the page is there");
            };
            let pages = service.get_or_init(|| begin(UnitSet::full(PAGES), Box::new(answer)));
            let rounds = rounds.min(PAGES);
            let start = Instant::now();
            (0..rounds).for_each(|page| _ = black_box(ram.guest_page(page)[0].load(Ordering::Relaxed)));
            let time = start.elapsed();
            pages.abandon().expect("the service ends");
            time
        });
    });
    group.finish();
}

criterion_group!(benches, take, first_write, zero, missing);
criterion_main!(benches);
