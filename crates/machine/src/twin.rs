//! The twin check: a never-migrated twin executes the same operations, and everything is compared.
//!
//! The twin skips Idle and pacing, and holds only what operations have touched: pages and sectors that they have not are
//! generated when they are compared. So the twin of a big guest stays small.

pub mod image;
mod verify;

pub use verify::{ReadDisk, Verdict, Verification};

use crate::error::MachineError;
use crate::execute::{Registers, fits};
use image::{TwinDisk, TwinMemory};
use whimbrel_model::content::Content;
use whimbrel_model::op::operation_key;
use whimbrel_model::stream::{Shape, Stream};

/// What a twin is built from: exactly what the guest was built from.
pub struct TwinSetup {
    /// The guest's size.
    pub shape: Shape,
    /// The seed of all that is written, and of what was filled.
    pub seed: u64,
    /// What RAM and disk held before operation 0.
    pub content: Content,
    /// Streams built like the guest's.
    pub streams: Vec<Box<dyn Stream>>,
}

/// The never-migrated twin of a guest.
pub struct Twin {
    shape: Shape,
    seed: u64,
    memory: TwinMemory,
    disk: TwinDisk,
    vcpus: Vec<TwinVcpu>,
}

struct TwinVcpu {
    stream: Box<dyn Stream>,
    registers: Registers,
}

impl Twin {
    /// A twin before operation 0.
    ///
    /// # Errors
    /// The streams are not one a vCPU.
    pub fn new(setup: TwinSetup) -> Result<Self, MachineError> {
        let TwinSetup { shape, seed, content, streams } = setup;
        if streams.len() != shape.vcpus as usize {
            return Err(MachineError::Setup(format!("{} streams for {} vCPUs", streams.len(), shape.vcpus)));
        }
        let vcpu = |stream| TwinVcpu { stream, registers: Registers::new(shape.pages) };
        Ok(Twin {
            shape,
            seed,
            memory: TwinMemory::new(shape.pages, content.clone(), seed),
            disk: TwinDisk::new(&shape, content, seed),
            vcpus: streams.into_iter().map(vcpu).collect(),
        })
    }

    /// The operations executed, one count a vCPU.
    pub fn operations(&self) -> Vec<u64> {
        self.vcpus.iter().map(|vcpu| vcpu.registers.state.operations).collect()
    }

    /// Executes until each vCPU has completed as many operations as `to` says.
    ///
    /// # Errors
    /// A count lies behind the twin, which can't go back; or the workload left its guest.
    pub fn advance(&mut self, to: &[u64]) -> Result<(), MachineError> {
        let done = self.operations();
        if to.len() != done.len() || to.iter().zip(&done).any(|(to, done)| to < done) {
            return Err(MachineError::Setup(format!("a twin at operations {done:?} can't go to {to:?}")));
        }
        // Streams own disjoint words and blocks, so the order of the vCPUs doesn't matter.
        for (index, (vcpu, to)) in (0..).zip(self.vcpus.iter_mut().zip(to)) {
            while vcpu.registers.state.operations < *to {
                let paced = vcpu.stream.next();
                if !fits(&paced.op, &self.shape) {
                    return Err(MachineError::Setup(format!("the workload left its guest: {:?}", paced.op)));
                }
                let key = operation_key(self.seed, index, vcpu.registers.state.operations);
                vcpu.registers.execute(&paced, key, &mut self.memory, &mut self.disk)?;
            }
        }
        Ok(())
    }
}
