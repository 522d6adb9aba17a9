//! A seeded stream of operations: what a workload is to a machine.

use crate::op::Op;
use serde::{Deserialize, Serialize};

/// An operation with its place in time and its worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paced {
    /// The operation.
    pub op: Op,
    /// The time between this operation's due instant and the next one's, in nanoseconds; 0: no pacing.
    pub interval_ns: u64,
    /// The work that its completion counts for, in units that the workload declares.
    pub units: u32,
}

/// What happens to operations that could not start at their due instants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pacing {
    /// The next operation waits for the last: time lost beyond 10 ms is not made up.
    #[default]
    Closed,
    /// Arrivals go on: what was missed is made up as fast as the guest can.
    OpenCatchUp,
    /// Arrivals go on, but what was missed is skipped: due instants start anew at once.
    OpenSkip,
}

/// The generator of one vCPU's operations. Small, deterministic, and it migrates as part of the device state.
///
/// Two generators that were built alike and restored from the same state yield the same operations for ever. Streams of
/// one guest own disjoint pages and sectors.
pub trait Stream: Send {
    /// The next operation. A workload never ends.
    fn next(&mut self) -> Paced;

    /// The next operations, as many as there is room for: the same as so many calls of [`Stream::next`], but cheaper.
    fn fill(&mut self, room: &mut [Paced]) {
        for paced in room {
            *paced = self.next();
        }
    }

    /// The generator's state.
    fn save(&self) -> Vec<u8>;

    /// Takes up the state that [`Stream::save`] gave in a generator built alike.
    ///
    /// # Errors
    /// The bytes are no state of this generator.
    fn restore(&mut self, state: &[u8]) -> Result<(), StreamError>;
}

/// Bytes that are no state of the generator which was asked to take them up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the saved state of the {workload} generator does not decode: {why}")]
pub struct StreamError {
    /// The workload.
    pub workload: &'static str,
    /// What is wrong.
    pub why: String,
}

/// The guest as a workload sees it when its streams are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Pages of RAM that the guest may use.
    pub pages: u64,
    /// Sectors of the disk; 0 without one.
    pub sectors: u64,
    /// Sectors from the start of the disk that are filled before operation 0.
    pub filled_sectors: u64,
    /// vCPUs.
    pub vcpus: u32,
}
