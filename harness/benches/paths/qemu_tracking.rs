//! What the dirty log costs a guest under QEMU: nothing where it isn't armed, and a first write to a page where it is,
//! beside QEMU's own logging of its migrations. Work is the guest's own count, by heartbeats that the host stamps.
//!
//! The guest sweeps over more pages than it reaches in a window, so that with a log armed every write is a page's first.

use crate::agents::in_words;
use crate::tally::{Figure, Limit, Tally, interval, median};
use crate::{Options, Outcome};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;
use whimbrel_machine::machines::Kind;
use whimbrel_machine::{Begin, MACHINES, Machine, MachineError, MachineSetup, Operations, OwnMove, Software};
use whimbrel_memory::GuestRam;
use whimbrel_memory::dirty_logs::DIRTY_LOGS;
use whimbrel_model::PAGE_BYTES;
use whimbrel_model::stream::Shape;
use whimbrel_workloads::{BuildContext, WorkloadChoice};

const RAM_BYTES: u64 = 1 << 30;

/// How long a guest runs before it counts as one whose log isn't armed: a page that was protected costs its next write a
/// fault after the log has ended too, and in this time the guest writes all of them several times.
const RECOVERY: Duration = Duration::from_millis(1500);

/// How long a guest runs before its turn counts: what the other has driven out of the caches comes back.
const WARM_UP: Duration = Duration::from_millis(20);

/// How long a turn counts. Short ones, since what a host does changes within a second.
const TURN: Duration = Duration::from_millis(150);

/// Turns of each guest by which two are compared: about 22 s.
const TURNS: usize = 60;

/// The fewest pairs of guests, and the most.
const PAIRS: [usize; 2] = [16, 64];

/// How narrow the interval of the median ratio has to be. Pairs are added by its width alone, never by where it lies.
const NARROW: f64 = 0.03;

/// Both logs begin to be paid for before the window does.
const FIRST_WRITES: Duration = Duration::from_millis(100);

fn kind() -> Result<&'static Kind, String> {
    MACHINES.find("qemu").map(|entry| &entry.build).map_err(|error| in_words(&error))
}

/// A guest that is ready for operation 0.
fn guest() -> Result<Arc<dyn Machine>, String> {
    let table = json!({ "pattern": "sweep", "working_set": "768 MiB", "content": "zero" });
    let choice = serde_json::from_value(table).map_err(|error| in_words(&error))?;
    let choice = WorkloadChoice::read(&choice).map_err(|error| in_words(&error))?;
    let pages = (kind()?.workload_pages)(RAM_BYTES / PAGE_BYTES)?;
    let shape = Shape { pages, sectors: 0, filled_sectors: 0, vcpus: 1 };
    let setup = MachineSetup {
        begin: Begin::New,
        ram: GuestRam::create(RAM_BYTES).map_err(|error| in_words(&error))?,
        disk: None,
        shape,
        seed: 1,
        software: Software::Operations(Operations {
            streams: choice.build(&BuildContext::new(shape, 1)).map_err(|error| in_words(&error))?,
            pacing: choice.pacing(),
            content: choice.content().clone(),
            recipe: serde_json::to_string(&choice).map_err(|error| in_words(&error))?,
        }),
    };
    (kind()?.build)(setup).map_err(|error| in_words(&error))
}

/// Writes a second of a guest that runs.
fn rate(machine: &dyn Machine, span: Duration) -> f64 {
    let read = || (machine.progress().units, machine.silence().last_beats[0]);
    let (from, began) = read();
    std::thread::sleep(span);
    let (to, ended) = read();
    (to - from) as f64 * 1e9 / ended.since(began).0.max(1) as f64
}

/// As [`rate`], for a guest that runs only for this turn.
fn turn(machine: &dyn Machine) -> f64 {
    machine.run();
    std::thread::sleep(WARM_UP);
    let rate = rate(machine, TURN);
    machine.pause();
    rate
}

/// What the first guest writes to what the second does: the median of turns.
fn compare(guests: [&dyn Machine; 2]) -> f64 {
    let one = |at: usize| {
        let mut rates = [0.0; 2];
        [at % 2, 1 - at % 2].into_iter().for_each(|side| rates[side] = turn(guests[side]));
        rates[0] / rates[1]
    };
    median(&(0..TURNS).map(one).collect::<Vec<_>>())
}

/// Runs a guest for as long as this.
fn run_for(machine: &dyn Machine, span: Duration) {
    machine.run();
    std::thread::sleep(span);
    machine.pause();
}

/// Writes a second under our log.
fn logged_by_us(machine: &dyn Machine) -> Result<f64, String> {
    let mut log = (DIRTY_LOGS.entries[0].build)(machine.ram()).map_err(|error| in_words(&error))?;
    log.arm().map_err(|error| in_words(&error))?;
    std::thread::sleep(Duration::from_millis(10));
    let logged = rate(machine, FIRST_WRITES);
    log.disarm().map_err(|error| in_words(&error))?;
    Ok(logged)
}

/// Writes a second under QEMU's log: its own migration, to somebody who reads nothing of it.
fn logged_by_qemu(machine: &Arc<dyn Machine>) -> Result<f64, String> {
    let own = OwnMove { memory: "qemu:precopy".to_owned(), parameters: BTreeMap::new(), disk: None };
    let ends = machine.prepare_to_leave(&own).map_err(|error| in_words(&error))?;
    let leaver = Arc::clone(machine);
    let leaving = std::thread::spawn(move || leaver.leave_by_itself(&own).map(drop));
    let begun = ends.memory.accept().and_then(|(mut stream, _)| {
        // The log is armed before the first byte.
        stream.read_exact(&mut [0; 4096])?;
        Ok(stream)
    });
    let stream = begun.map_err(|error| in_words(&error))?;
    std::thread::sleep(Duration::from_millis(10));
    let logged = rate(&**machine, FIRST_WRITES);
    drop(stream);
    match leaving.join() {
        Ok(Err(MachineError::Hypervisor(_))) => Ok(logged),
        other => Err(format!("a migration that nobody read ended as {other:?}")),
    }
}

/// How a guest compares with one whose log never is armed, after its own was armed and ended, and before.
///
/// Two guests never write equally fast, wherever their pages and their code happen to lie, and turn by turn each differs from itself
/// by a tenth. So they are compared before either log was armed too; and in turns both times, so that what the host does strikes
/// both. The one is started before the other by turns.
fn once_armed(at: usize) -> Result<(f64, f64), String> {
    let both = [guest()?, guest()?];
    let (tracked, untouched) = (&both[at % 2], &both[1 - at % 2]);
    let guests: [&dyn Machine; 2] = [&**tracked, &**untouched];
    guests.iter().for_each(|guest| run_for(*guest, RECOVERY));
    let before = compare(guests);
    let mut log = (DIRTY_LOGS.entries[0].build)(tracked.ram()).map_err(|error| in_words(&error))?;
    log.arm().map_err(|error| in_words(&error))?;
    run_for(&**tracked, FIRST_WRITES);
    log.disarm().map_err(|error| in_words(&error))?;
    guests.iter().for_each(|guest| run_for(*guest, RECOVERY));
    let after = compare(guests);
    guests.iter().find_map(|guest| guest.failure()).map_or(Ok((after, before)), Err)
}

/// A guest whose log was armed and is not, against one whose log never was; and the cost of a first write.
///
/// A pair of the first is two fresh guests: where pages and code lie is drawn anew, and is in the interval.
pub fn qemu_tracking(options: &Options, tally: &mut Tally) -> Outcome {
    let span = Duration::from_millis(if options.quick { 200 } else { 600 });
    let [fewest, most] = PAIRS.map(|pairs| options.pairs(pairs));
    let mut pairs = Vec::new();
    while pairs.len() < fewest || pairs.len() < most && interval(&pairs).is_none_or(|(low, high)| high - low > NARROW) {
        pairs.push(once_armed(pairs.len())?);
    }
    tally.enter(&Figure {
        name: "qemu guest's writes to another's, its log disarmed / never armed",
        unit: "",
        pairs: &pairs,
        limit: Limit::Surely { least: 0.98, low: 0.98 },
    });
    let huge = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
    tally.note("qemu guest", &format!("huge pages of shared memory: {}", huge.trim()));
    let tracked = guest()?;
    tracked.run();
    let mut costs = Vec::new();
    for _ in 0..options.pairs(25) {
        std::thread::sleep(RECOVERY);
        let before = rate(&*tracked, span / 2);
        let ours = logged_by_us(&*tracked)?;
        std::thread::sleep(RECOVERY);
        let between = rate(&*tracked, span / 2);
        let qemus = logged_by_qemu(&tracked)?;
        let free = (before + between) / 2.0;
        costs.push((1e6 / ours - 1e6 / free, 1e6 / qemus - 1e6 / free));
    }
    tally.enter(&Figure {
        name: "first write to a page: our log / QEMU's own",
        unit: "us",
        pairs: &costs,
        limit: Limit::Most(2.0),
    });
    match tracked.failure() {
        None => Ok(()),
        Some(why) => Err(why),
    }
}
