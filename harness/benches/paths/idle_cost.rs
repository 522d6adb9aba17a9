//! What the harness costs a guest that nobody moves, in two parts. Its work on a machine, with heartbeats and the readings of
//! its progress that an agent makes, against a bare loop that draws the same operations and executes them on the same pages:
//! in turns until the ratio is known to 1 %. And what the agent's other threads take of a processor meanwhile, beside the
//! vCPU's.

use crate::agents::{Agents, Movement, in_words};
use crate::tally::{Figure, Limit, Tally, interval};
use crate::{Options, Outcome};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};
use whimbrel_machine::execute::Registers;
use whimbrel_machine::{Begin, MACHINES, Machine, MachineSetup, Operations, Software, fill_ram, monotonic};
use whimbrel_memory::GuestRam;
use whimbrel_migration::commands::{GuestSpec, LinkSpec};
use whimbrel_migration::session;
use whimbrel_model::PAGE_BYTES;
use whimbrel_model::op::operation_key;
use whimbrel_model::stream::{Shape, Stream};
use whimbrel_workloads::{BuildContext, WorkloadChoice};

const RAM_BYTES: u64 = 64 << 20;

/// Operations between two looks at the clock.
const STRETCH: u64 = 100;

/// A turn, and how often an agent reads the guest's progress in it.
const TURN: Duration = Duration::from_millis(30);
const SAMPLE_EVERY: Duration = Duration::from_millis(10);

/// The fewest pairs, and the most; and how narrow the interval of the median ratio has to be.
const PAIRS: [usize; 2] = [100, 1_500];
const NARROW: f64 = 0.01;

/// How long an agent's threads are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Both parts.
pub fn idle_cost(options: &Options, tally: &mut Tally) -> Outcome {
    let movement = Movement {
        workload: json!({ "use": "memory-intensive", "pattern": "uniform", "working_set": "16 MiB", "content": "random" }),
        ..Movement::idle(RAM_BYTES, LinkSpec::default())
    };
    let guest = movement.guest();
    let ram = GuestRam::create(guest.ram_bytes).map_err(|e| in_words(&e))?;
    ram.populate().map_err(|e| in_words(&e))?;
    fill_ram(&ram, guest.ram_bytes / PAGE_BYTES, workload(&guest)?.content(), &shape(&guest), guest.seed);
    let (mut bare, machine) = (Bare::new(&guest, &ram)?, machine(&guest, &ram)?);
    let mut pairs: Vec<(f64, f64)> = Vec::new();
    let [fewest, most] = PAIRS.map(|pairs| options.pairs(pairs));
    while pairs.len() < most {
        if pairs.len() >= fewest
            && pairs.len().is_multiple_of(50)
            && interval(&pairs).is_some_and(|(low, high)| high - low <= NARROW)
        {
            break;
        }
        pairs.push(if pairs.len().is_multiple_of(2) {
            let with = with_machine(&*machine);
            (with, bare.rate()?)
        } else {
            let alone = bare.rate()?;
            (with_machine(&*machine), alone)
        });
    }
    machine.stop();
    let name = "work of a guest that nobody moves / bare loop";
    tally.enter(&Figure { name, unit: "M units/s", pairs: &pairs, limit: Limit::Least(0.99) });
    let share = agents_share(&guest, if options.quick { LOOK / 10 } else { LOOK })?;
    let name = "an agent's threads beside the vCPU / a processor";
    tally.enter(&Figure { name, unit: "processors", pairs: &[(share, 1.0)], limit: Limit::Most(0.01) });
    Ok(())
}

fn shape(guest: &GuestSpec) -> Shape {
    Shape { pages: guest.ram_bytes / PAGE_BYTES, sectors: 0, filled_sectors: 0, vcpus: 1 }
}

fn workload(guest: &GuestSpec) -> Result<&WorkloadChoice, String> {
    guest.software.workload().ok_or_else(|| "the guest has no workload".to_owned())
}

fn streams(guest: &GuestSpec) -> Result<Vec<Box<dyn Stream>>, String> {
    workload(guest)?.build(&BuildContext::new(shape(guest), guest.seed)).map_err(|e| in_words(&e))
}

fn machine(guest: &GuestSpec, ram: &Arc<GuestRam>) -> Result<Arc<dyn Machine>, String> {
    let setup = MachineSetup {
        begin: Begin::New,
        ram: Arc::clone(ram),
        disk: None,
        shape: shape(guest),
        seed: guest.seed,
        software: Software::Operations(Operations {
            streams: streams(guest)?,
            pacing: workload(guest)?.pacing(),
            content: workload(guest)?.content().clone(),
            recipe: String::new(),
        }),
    };
    let kind = MACHINES.find(&guest.machine).map_err(|e| e.to_string())?;
    (kind.build.build)(setup).map_err(|e| in_words(&e))
}

/// Millions of units a second on the machine, for a turn, until the vCPU has left guest code.
fn with_machine(machine: &dyn Machine) -> f64 {
    let (from, start) = (machine.progress().units, monotonic());
    machine.run();
    let end = Instant::now() + TURN;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        std::thread::sleep(left.min(SAMPLE_EVERY));
        std::hint::black_box(machine.progress());
    }
    let left = machine.pause().left;
    (machine.progress().units - from) as f64 * 1e3 / left.since(start).0 as f64
}

/// The guest's operations without an agent, a machine or a thread of its own.
struct Bare {
    ram: Arc<GuestRam>,
    stream: Box<dyn Stream>,
    registers: Registers,
    seed: u64,
}

impl Bare {
    fn new(guest: &GuestSpec, ram: &Arc<GuestRam>) -> Result<Bare, String> {
        let stream = streams(guest)?.pop().ok_or("the workload has no stream")?;
        let registers = Registers::new(shape(guest).pages);
        Ok(Bare { ram: Arc::clone(ram), stream, registers, seed: guest.seed })
    }

    /// Millions of units a second, for a turn.
    fn rate(&mut self) -> Result<f64, String> {
        let (start, mut units) = (Instant::now(), 0);
        while start.elapsed() < TURN {
            for _ in 0..STRETCH {
                let paced = self.stream.next();
                let key = operation_key(self.seed, 0, self.registers.state.operations);
                self.registers.execute(&paced, key, &mut &*self.ram, &mut None).map_err(|e| in_words(&e))?;
                units += paced.units;
            }
        }
        Ok(units as f64 / 1e6 / start.elapsed().as_secs_f64())
    }
}

/// What of a processor an agent's threads take while its guest runs, but for the vCPU's.
fn agents_share(guest: &GuestSpec, look: Duration) -> Result<f64, String> {
    let agents = Agents::start(None)?;
    let process = agents.children[0].id();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| session::control_run(&agents.hosts, guest, 3 * look, None));
        // The guest is made first, and a vCPU has a thread as soon as it has one: it is looked at once that has run.
        while others_ns(process).is_none_or(|(_, vcpu)| vcpu < look.as_nanos() as u64 / 2) {
            if run.is_finished() {
                break;
            }
            std::thread::sleep(SAMPLE_EVERY);
        }
        let (began, before) = (Instant::now(), others_ns(process));
        std::thread::sleep(look);
        let (took, after) = (began.elapsed(), others_ns(process));
        run.join().map_err(|_| "the control run panicked".to_owned())?.map_err(|e| in_words(&e))?;
        let ((before, _), (after, _)) =
            before.zip(after).ok_or("the agent's threads can't be read, or it had no vCPU")?;
        Ok(after.saturating_sub(before) as f64 / took.as_nanos() as f64)
    })
}

/// Processor time of a process' threads in nanoseconds: of all but vCPUs, and of vCPUs. `None`: it has none.
fn others_ns(process: u32) -> Option<(u64, u64)> {
    let (mut others, mut vcpus) = (0, None);
    for thread in std::fs::read_dir(format!("/proc/{process}/task")).ok()?.flatten() {
        let text = |file: &str| std::fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        let ns = text("schedstat").split_whitespace().next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        if text("comm").starts_with("vcpu") {
            *vcpus.get_or_insert(0) += ns;
        } else {
            others += ns;
        }
    }
    Some((others, vcpus?))
}
