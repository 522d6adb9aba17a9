//! Whole paths, each beside its limit: the built program with two agents as processes, its NBD server under fio, a guest
//! that nobody migrates. `cargo bench -p whimbrel --bench paths [-- FILTER [JOB]...] [--quick] [--big] [--check]`.
//!
//! Both rivals of a line run in the same minute, in alternating pairs, so that what else the host does disturbs both
//! alike. Printed are the median ratio, the 95 % interval of that median, the range, the best of one against the best of the
//! other, and what is wanted of the median (in brackets: of the interval's lower end); every pair is kept as a line of JSON under the build's folder. Memory is populated before anything is
//! timed, on both sides of every line: the first touch of fresh pages costs ten times a copy.
//!
//! | option | meaning |
//! |---|---|
//! | `FILTER` | only lines whose name contains it |
//! | `JOB` | of `nbd`, only these of its jobs, such as `randread-1` |
//! | `--quick` | fewer pairs, shorter ones: whether it works, not how fast |
//! | `--big` | the lines that take 8 GiB of memory and minutes too |
//! | `--check` | status 1 if a line misses its limit |
//!
//! Lines that concern one room are that room's own: the dirty log in `memory`, the block bitmap in `disk`, the vCPU loop
//! in `machine`, the link alone in `wire`.

mod agents;
mod bare_nbd;
mod idle_cost;
mod lines;
mod memory;
mod nbd;
mod qemu_tracking;
mod rival;
mod tally;
mod tracking;

use std::process::ExitCode;
use tally::Tally;

/// What the person asked for.
pub struct Options {
    filter: Option<String>,
    jobs: Vec<String>,
    quick: bool,
    big: bool,
    check: bool,
}

impl Options {
    /// Pairs of a line that has `most` of them by default.
    pub fn pairs(&self, most: usize) -> usize {
        if self.quick { most.min(2) } else { most }
    }
}

/// Why a line has no figure.
pub type Outcome = Result<(), String>;

type Line = fn(&Options, &mut Tally) -> Outcome;

/// Every line that this program measures, in order.
const LINES: [(&str, Line); 11] = [
    ("bulk-tcp", lines::bulk_tcp),
    ("bulk-iperf3", lines::bulk_iperf3),
    ("limited", lines::limited),
    ("netns", lines::netns),
    ("downtime", lines::downtime),
    ("predicted", lines::predicted),
    ("tracking", tracking::tracking),
    ("nbd", nbd::nbd),
    ("idle-cost", idle_cost::idle_cost),
    ("own-memory", memory::own_memory),
    ("qemu-tracking", qemu_tracking::qemu_tracking),
];

/// What is wrong with the arguments: a line takes minutes, so none is measured for want of a word.
fn wrong(arguments: &[String]) -> Option<String> {
    let lines = LINES.map(|(name, _)| name).join(", ");
    // The first is what the build tool says to each benchmark.
    let is_option = |a: &String| ["--bench", "--quick", "--big", "--check"].contains(&a.as_str());
    if let Some(unknown) = arguments.iter().find(|a| a.starts_with('-') && !is_option(a)) {
        return Some(format!("no option is called {unknown}; accepted: --quick, --big, --check; lines: {lines}"));
    }
    let filter = arguments.iter().find(|a| !a.starts_with('-'))?;
    let none = !LINES.iter().any(|(name, _)| name.contains(filter.as_str()));
    none.then(|| format!("no line's name contains {filter}; lines: {lines}"))
}

fn main() -> ExitCode {
    // In a guest under QEMU this program is the agent, as the program itself would be.
    if whimbrel_guest::is_init() {
        whimbrel_guest::init();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|a| a == rival::FLAG) {
        rival::serve(&arguments[1..]).expect("the other half of the rival lives");
        return ExitCode::SUCCESS;
    }
    if arguments.first().is_some_and(|a| a == bare_nbd::FLAG) {
        bare_nbd::serve(&arguments[1..]).expect("the bare server can listen");
        return ExitCode::SUCCESS;
    }
    // The test runner builds and runs benchmarks too: there they only have to start.
    if arguments.iter().any(|a| a == "--test") {
        return ExitCode::SUCCESS;
    }
    if let Some(wrong) = wrong(&arguments) {
        eprintln!("paths: {wrong}");
        return ExitCode::from(2);
    }
    let given = |flag: &str| arguments.iter().any(|a| a == flag);
    let mut words = arguments.iter().filter(|a| !a.starts_with('-')).cloned();
    let options = Options {
        filter: words.next(),
        jobs: words.collect(),
        quick: given("--quick"),
        big: given("--big"),
        check: given("--check"),
    };
    let mut tally = Tally::open().expect("the build's folder can be written");
    for (name, line) in LINES {
        if options.filter.as_ref().is_some_and(|wanted| !name.contains(wanted.as_str())) {
            continue;
        }
        if !options.jobs.is_empty() && name != "nbd" {
            tally.skip(name, "it has no jobs to choose from");
            continue;
        }
        if let Err(why) = line(&options, &mut tally) {
            tally.skip(name, &why);
        }
    }
    let missed = tally.close();
    ExitCode::from(u8::from(options.check && missed))
}
