//! What reading a host's counters at 100 Hz costs of a core, against the limit of 0.5 %.
//!
//! The counters are those of a server with two sockets (two packages with core, uncore and memory, and the platform): once as
//! files in memory, and once as links to files of the kernel's own, whose reads cost what sysfs costs; the register behind a
//! real counter adds a microsecond or so. perf's events are this host's, where it has some. Each is read by the sampler for ten
//! seconds, all of its counters and, as an agent does it, those alone that are summed; what counts is the processor time of
//! the sampler's thread, kernel and user.
//!
//! Waking up costs too, and most where the processor slept: a virtual machine's leaves its host for that. So each is measured
//! on a processor that is idle otherwise, and on one that computes, where what the sampler takes is somebody's loss. Beside it, as
//! the limit, is a bare loop that sleeps and reads as many files, and does nothing with what it reads.

use criterion::Criterion;
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use whimbrel_energy::meter::counted;
use whimbrel_energy::{Domain, METERS, Meter, Place, Reading, Sampler, Unmeasured};
use whimbrel_model::Nanos;

const EVERY: Duration = Duration::from_millis(10);
const LIMIT: f64 = 0.005;

/// The zones of the server.
const ZONES: [(&str, &str); 9] = [
    ("intel-rapl:0", "package-0"),
    ("intel-rapl:0:0", "core"),
    ("intel-rapl:0:1", "uncore"),
    ("intel-rapl:0:2", "dram"),
    ("intel-rapl:1", "package-1"),
    ("intel-rapl:1:0", "core"),
    ("intel-rapl:1:1", "uncore"),
    ("intel-rapl:1:2", "dram"),
    ("intel-rapl:2", "psys"),
];

/// A number in sysfs.
const OF_THE_KERNEL: &str = "/sys/devices/system/cpu/cpu0/topology/physical_package_id";

fn nanos(clock: ClockId) -> Nanos {
    let now = clock_gettime(clock);
    Nanos(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

fn clock() -> Nanos {
    nanos(ClockId::Monotonic)
}

/// Makes the zones; each counter is a file, or a link to one of the kernel's.
fn powercap(root: &Path, of_the_kernel: bool) -> Box<dyn Meter> {
    for (id, name) in ZONES {
        let zone = root.join("class/powercap").join(id);
        std::fs::create_dir_all(&zone).expect("a folder");
        std::fs::write(zone.join("name"), name).expect("a file");
        std::fs::write(zone.join("max_energy_range_uj"), "262143328850\n").expect("a file");
        if of_the_kernel {
            std::os::unix::fs::symlink(OF_THE_KERNEL, zone.join("energy_uj")).expect("a link");
        } else {
            std::fs::write(zone.join("energy_uj"), "142033121953\n").expect("a file");
        }
    }
    (METERS.find("powercap").expect("it is registered").build)(&Place::under(root)).expect("a meter")
}

/// The processor that it all happens on.
fn on_one_processor() {
    let mut one = CpuSet::new();
    one.set(0);
    // Where that isn't allowed, the kernel chooses.
    let _ = sched_setaffinity(None, &one);
}

/// Calls a measurement with a thread that computes on the same processor, or with none.
fn beside<T>(busy: bool, measure: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        if busy {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let measured = measure();
        done.store(true, Ordering::Relaxed);
        measured
    })
}

/// A reading's instant, and what its thread had used then.
type Used = (Nanos, Nanos);

fn used() -> Used {
    (clock(), nanos(ClockId::ThreadCPUTime))
}

/// The share of a core from the first reading to the last.
fn share_of(used: &[Used]) -> f64 {
    let (Some(first), Some(last)) = (used.first(), used.last()) else { return f64::NAN };
    last.1.since(first.1).0 as f64 / last.0.since(first.0).0 as f64
}

/// The share of a core that the sampler takes.
fn share(meter: Box<dyn Meter>, time: Duration) -> (f64, usize) {
    let (tell, told) = std::sync::mpsc::channel();
    let sampler = Sampler::start(meter, EVERY, clock, move |_| {
        // The listener stays until the sampler has ended.
        let _ = tell.send(used());
    });
    std::thread::sleep(time);
    drop(sampler);
    let told: Vec<Used> = told.iter().collect();
    (share_of(&told), told.len())
}

/// The share of a core that a loop takes which sleeps and reads as many files of sysfs.
fn bare_share(files: usize, time: Duration) -> f64 {
    let files: Vec<File> = (0..files).map(|_| File::open(OF_THE_KERNEL).expect("a file of the kernel's")).collect();
    let (mut told, mut bytes, began) = (Vec::new(), [0; 64], clock());
    for turn in 1.. {
        for file in &files {
            // What it holds is nobody's business here.
            let _ = file.read_at(&mut bytes, 0);
        }
        told.push(used());
        let next = began.plus(Nanos::from(EVERY * turn));
        if clock().since(began) >= Nanos::from(time) {
            break;
        }
        std::thread::sleep(next.since(clock()).into());
    }
    share_of(&told)
}

/// A meter without a counter.
struct Nothing;

impl Meter for Nothing {
    fn domains(&self) -> &[Domain] {
        &[]
    }

    fn read(&mut self, _now: Nanos) -> Vec<Result<Reading, Unmeasured>> {
        Vec::new()
    }
}

/// A meter's name, and what opens it anew.
type Subject<'a> = (&'static str, Box<dyn Fn() -> Box<dyn Meter> + 'a>);

/// What an agent reads of it.
fn summed(mut meter: Box<dyn Meter>) -> Box<dyn Meter> {
    let counted = counted(meter.domains());
    meter.keep(&counted);
    meter
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--test");
    let time = if quick { Duration::from_millis(200) } else { Duration::from_secs(10) };
    let memory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
    let (files, links) = (memory.path().join("files"), memory.path().join("links"));
    drop((powercap(&files, false), powercap(&links, true)));
    let open =
        |root: &Path| (METERS.find("powercap").expect("registered").build)(&Place::under(root)).expect("a meter");
    let mut subjects: Vec<Subject<'_>> = vec![
        ("no counter, waking up alone", Box::new(|| Box::new(Nothing))),
        ("powercap, files in memory", Box::new(|| open(&files))),
        ("powercap, files of sysfs", Box::new(|| open(&links))),
        ("powercap, files of sysfs, packages and memory alone", Box::new(|| summed(open(&links)))),
    ];
    match (METERS.find("perf").expect("registered").build)(&Place::host()) {
        Ok(_) => subjects.push((
            "perf, this host's",
            Box::new(|| (METERS.find("perf").expect("registered").build)(&Place::host()).expect("it opened before")),
        )),
        Err(why) => println!("perf: SKIPPED: {why}"),
    }
    on_one_processor();
    let mut criterion = Criterion::default().configure_from_args();
    for (name, open) in &subjects {
        let mut meter = open();
        criterion.bench_function(&format!("a reading: {name}"), |b| b.iter(|| meter.read(clock())));
        for (busy, what) in [(true, "a core that computes"), (false, "an idle core")] {
            let counters = meter.domains().len();
            let bare = beside(busy, || bare_share(counters, time));
            let (share, readings) = beside(busy, || share(open(), time));
            let verdict = if share < LIMIT { "" } else { ": MISSED" };
            println!(
                "100 Hz: {name}: {:.3} % of {what}, {readings} readings, wanted < 0.5 %{verdict}; a bare loop {:.3} %",
                share * 100.0,
                bare * 100.0
            );
        }
    }
    criterion.final_summary();
}
