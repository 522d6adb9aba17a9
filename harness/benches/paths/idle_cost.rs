//! What the harness costs a guest that nobody moves: its work in an agent, with heartbeats, control connection and
//! sampler, against a bare loop that draws the same operations and executes them on the same kind of memory.

use crate::agents::{Agents, Movement, in_words};
use crate::tally::{Figure, Limit, Tally};
use crate::{Options, Outcome};
use serde_json::json;
use std::time::{Duration, Instant};
use whimbrel_machine::execute::Registers;
use whimbrel_machine::fill_ram;
use whimbrel_memory::GuestRam;
use whimbrel_migration::commands::{GuestSpec, LinkSpec};
use whimbrel_migration::session;
use whimbrel_model::PAGE_BYTES;
use whimbrel_model::op::operation_key;
use whimbrel_model::stream::{Shape, Stream};
use whimbrel_workloads::BuildContext;

const RAM_BYTES: u64 = 64 << 20;

/// Operations between two looks at the clock.
const STRETCH: u64 = 1000;

/// Units a second with all that an agent is, and without.
pub fn idle_cost(options: &Options, tally: &mut Tally) -> Outcome {
    let span = Duration::from_millis(if options.quick { 200 } else { 500 });
    let agents = Agents::start(None)?;
    let movement = Movement {
        workload: json!({ "use": "memory-intensive", "pattern": "uniform", "working_set": "16 MiB", "content": "random" }),
        ..Movement::idle(RAM_BYTES, LinkSpec::default())
    };
    let guest = movement.guest();
    let mut bare = Bare::new(&guest)?;
    let mut pairs = Vec::new();
    for _ in 0..options.pairs(11) {
        let alone = bare.rate(span)?;
        let control = session::control_run(&agents.hosts, &guest, span, None).map_err(|e| in_words(&e))?;
        let work = &control.run.work;
        // The first tenth is the warming up of caches, which the bare loop's long life spares it.
        let (Some(first), Some(last)) = (work.get(work.len() / 10), work.last()) else {
            return Err("the control run took no sample".to_owned());
        };
        let units = (last.units - first.units) as f64 * 1e9 / (last.at_ns - first.at_ns) as f64;
        pairs.push((units / 1e6, alone / 1e6));
    }
    tally.enter(&Figure {
        name: "work of a guest that nobody moves / bare loop",
        unit: "M units/s",
        pairs: &pairs,
        limit: Limit::Least(0.99),
    });
    Ok(())
}

/// The guest's operations without an agent, a machine or a thread of its own.
struct Bare {
    ram: std::sync::Arc<GuestRam>,
    stream: Box<dyn Stream>,
    registers: Registers,
    seed: u64,
}

impl Bare {
    fn new(guest: &GuestSpec) -> Result<Bare, String> {
        let pages = guest.ram_bytes / PAGE_BYTES;
        let shape = Shape { pages, sectors: 0, filled_sectors: 0, vcpus: 1 };
        let ram = GuestRam::create(guest.ram_bytes).map_err(|e| in_words(&e))?;
        ram.populate().map_err(|e| in_words(&e))?;
        fill_ram(&ram, pages, guest.workload.content(), guest.seed);
        let streams = guest.workload.build(&BuildContext::new(shape, guest.seed));
        let stream = streams.map_err(|e| in_words(&e))?.pop().ok_or("the workload has no stream")?;
        Ok(Bare { ram, stream, registers: Registers::new(pages), seed: guest.seed })
    }

    /// Units a second.
    fn rate(&mut self, span: Duration) -> Result<f64, String> {
        let (start, mut units) = (Instant::now(), 0);
        while start.elapsed() < span {
            for _ in 0..STRETCH {
                let paced = self.stream.next();
                let key = operation_key(self.seed, 0, self.registers.state.operations);
                self.registers.execute(&paced, key, &mut &*self.ram, &mut None).map_err(|e| in_words(&e))?;
                units += paced.units;
            }
        }
        Ok(units as f64 / start.elapsed().as_secs_f64())
    }
}
