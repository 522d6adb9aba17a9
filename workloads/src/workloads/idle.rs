//! `idle`: does nothing. The null member, the floor of every measurement.

use crate::workload::{BuildContext, Offered, Streams, Workload, restore, save};
use serde::{Deserialize, Serialize};
use whimbrel_model::op::Op;
use whimbrel_model::registry::{Entry, ParameterError, Parameters};
use whimbrel_model::stream::{Paced, Stream, StreamError};

const NAME: &str = "idle";

/// How long one operation idles: a tick of 1 kHz.
const TICK_NS: u64 = 1_000_000;

/// The member's entry.
pub const ENTRY: Entry<Workload> = Entry {
    name: NAME,
    summary: "does nothing: the floor of every measurement",
    parameters: &[],
    source: "Whimbrel",
    build: Workload { streams, offered, unit: "ticks", content: "random" },
};

fn offered(_: &Parameters, _: &BuildContext) -> Offered {
    Offered { write_bytes_per_s: Some(0.0), working_set_bytes: Some(0), disk_write_bytes_per_s: Some(0.0) }
}

fn streams(_: &Parameters, context: &BuildContext) -> Result<Streams, ParameterError> {
    Ok(context.shares().map(|_| Box::new(Idle { state: State { ticks: 0 } }) as Box<dyn Stream>).collect())
}

struct Idle {
    state: State,
}

#[derive(Serialize, Deserialize)]
struct State {
    ticks: u64,
}

impl Stream for Idle {
    fn next(&mut self) -> Paced {
        self.state.ticks = self.state.ticks.wrapping_add(1);
        Paced { op: Op::Idle { nanos: TICK_NS }, interval_ns: 0, units: 1 }
    }

    fn save(&self) -> Vec<u8> {
        save(&self.state)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StreamError> {
        self.state = restore(NAME, state, |_| Ok(()))?;
        Ok(())
    }
}
