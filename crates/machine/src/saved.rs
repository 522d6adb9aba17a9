//! The device state as bytes: versioned, and checked when it is taken up, since it comes from another host.

use crate::error::MachineError;
use crate::execute::fits;
use serde::{Deserialize, Serialize};
use whimbrel_model::op::{Op, VcpuState};
use whimbrel_model::set::Extent;
use whimbrel_model::stream::{Paced, Shape};
use whimbrel_model::{Nanos, Page, UnitSet};

/// The version of the form.
///
/// 1: the first.
const VERSION: u32 = 1;

/// The largest count that a state may hold, so that counting on can't overflow.
const LARGEST_COUNT: u64 = 1 << 62;

/// The device state of a machine of the thread kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedState {
    version: u32,
    /// The time of day at which the state was saved: how long the guest was away can't be told otherwise.
    pub saved_at: Nanos,
    /// The vCPUs.
    pub vcpus: Vec<SavedVcpu>,
}

/// One vCPU's part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedVcpu {
    /// Operations, digest, work, and what is left of an Idle.
    pub state: VcpuState,
    /// The generator's state.
    pub stream: Vec<u8>,
    /// The mask of freed pages.
    pub free: Vec<Extent>,
    /// How far the next operation's due instant lay back when the state was saved, in nanoseconds; negative: how far
    /// ahead. `None`: nothing was paced yet.
    pub late_ns: Option<i64>,
    /// An operation that the generator gave and whose disk request failed.
    pub failed: Option<SavedOp>,
}

/// An operation that is still to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedOp {
    op: Op,
    interval_ns: u64,
    units: u32,
}

impl From<Paced> for SavedOp {
    fn from(paced: Paced) -> Self {
        SavedOp { op: paced.op, interval_ns: paced.interval_ns, units: paced.units }
    }
}

impl From<SavedOp> for Paced {
    fn from(saved: SavedOp) -> Self {
        Paced { op: saved.op, interval_ns: saved.interval_ns, units: saved.units }
    }
}

impl SavedState {
    /// The state of these vCPUs, saved at this time of day.
    pub fn new(saved_at: Nanos, vcpus: Vec<SavedVcpu>) -> Self {
        SavedState { version: VERSION, saved_at, vcpus }
    }

    /// Encodes it.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a device state is numbers and lists of numbers")
    }

    /// Decodes and checks bytes that may come from anywhere. What the generators' states are worth, only they can say.
    ///
    /// # Errors
    /// The bytes are no device state of a guest of this shape.
    pub fn from_bytes(bytes: &[u8], shape: &Shape) -> Result<Self, MachineError> {
        let refuse = |why: String| Err(MachineError::State(why));
        let state: SavedState = serde_json::from_slice(bytes).map_err(|e| MachineError::State(e.to_string()))?;
        if state.version != VERSION {
            return refuse(format!("its version is {}, this program's {VERSION}", state.version));
        }
        if state.vcpus.len() != shape.vcpus as usize {
            return refuse(format!("it has {} vCPUs, this machine {}", state.vcpus.len(), shape.vcpus));
        }
        for (index, vcpu) in state.vcpus.iter().enumerate() {
            if let Err(why) = vcpu.check(shape) {
                return refuse(format!("vCPU {index}: {why}"));
            }
        }
        Ok(state)
    }

    /// The operations completed, one count a vCPU.
    pub fn operations(&self) -> Vec<u64> {
        self.vcpus.iter().map(|vcpu| vcpu.state.operations).collect()
    }
}

impl SavedVcpu {
    fn check(&self, shape: &Shape) -> Result<(), &'static str> {
        let counts = [self.state.operations, self.state.units, self.state.idle_left];
        if counts.iter().any(|count| *count > LARGEST_COUNT) {
            return Err("a count is too large");
        }
        let inside = |e: &Extent| e.start.checked_add(e.count).is_some_and(|end| end <= shape.pages);
        if !self.free.iter().all(inside) {
            return Err("a freed page lies beyond RAM");
        }
        if self.failed.is_some_and(|saved| !fits(&saved.op, shape) || saved.interval_ns > LARGEST_COUNT) {
            return Err("the operation that failed lies outside the guest");
        }
        Ok(())
    }

    /// The mask of freed pages as a set over `pages` pages.
    pub fn free_set(&self, pages: u64) -> UnitSet<Page> {
        UnitSet::from_extents(pages, self.free.iter().copied())
    }
}
