//! The twin check: a never-migrated twin executes the same operations, and everything is compared.
//!
//! The twin skips Idle and pacing, and holds only what operations have touched: pages and sectors that they have not are
//! generated when they are compared. So the twin of a big guest stays small. Streams own disjoint pages and blocks, so each
//! vCPU of the twin has its own, runs in a thread of its own, and two that touch the same one are found out.

mod follow;
pub mod image;
mod verify;

pub use verify::{GuestPages, ReadDisk, Verdict, Verification};

use crate::error::MachineError;
use crate::execute::Registers;
use follow::TwinVcpu;
use image::{TwinDisk, TwinMemory};
use std::sync::{Mutex, PoisonError};
use whimbrel_model::content::Content;
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
    content: Content,
    vcpus: Vec<TwinVcpu>,
}

impl Twin {
    /// A twin before operation 0.
    ///
    /// # Errors
    /// The streams are not one a vCPU.
    pub fn new(setup: TwinSetup) -> Result<Self, MachineError> {
        let TwinSetup { shape, seed, content, streams } = setup;
        let content = content.of_guest(&shape);
        if streams.len() != shape.vcpus as usize {
            return Err(MachineError::Setup(format!("{} streams for {} vCPUs", streams.len(), shape.vcpus)));
        }
        let vcpu = |(index, stream)| TwinVcpu {
            index,
            stream,
            registers: Registers::new(shape.pages),
            memory: TwinMemory::new(shape.pages, content.clone(), seed),
            disk: TwinDisk::new(&shape, content.clone(), seed),
        };
        let vcpus = (0..).zip(streams).map(vcpu).collect();
        Ok(Twin { shape, seed, content, vcpus })
    }

    /// The operations executed, one count a vCPU.
    pub fn operations(&self) -> Vec<u64> {
        self.vcpus.iter().map(|vcpu| vcpu.registers.state.operations).collect()
    }

    /// Executes until each vCPU has completed as many operations as `to` says.
    ///
    /// # Errors
    /// A count lies behind the twin, which can't go back; the workload left its guest; or two of its streams touched the
    /// same page or the same 4 KiB of the disk.
    pub fn advance(&mut self, to: &[u64]) -> Result<(), MachineError> {
        let done = self.operations();
        if to.len() != done.len() || to.iter().zip(&done).any(|(to, done)| to < done) {
            return Err(MachineError::Setup(format!("a twin at operations {done:?} can't go to {to:?}")));
        }
        let (shape, seed) = (self.shape, self.seed);
        let left = Mutex::new(self.vcpus.iter_mut().zip(to));
        let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || -> Result<(), MachineError> {
            while let Some((vcpu, to)) = next() {
                vcpu.follow(*to, &shape, seed)?;
            }
            Ok(())
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(to.len());
        std::thread::scope(|scope| {
            let helpers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            helpers.into_iter().try_for_each(|helper| helper.join().expect("a twin's panic is a bug to be told of"))
        })?;
        self.check_owners()
    }

    /// Whether each page and block is one vCPU's alone: else the order in which the vCPUs ran would matter.
    fn check_owners(&self) -> Result<(), MachineError> {
        for (index, one) in self.vcpus.iter().enumerate() {
            for other in &self.vcpus[..index] {
                let page = one.memory.common(&other.memory).map(|page| format!("page {page}"));
                let common = page.or_else(|| Some(format!("block {} of 4 KiB", one.disk.common(&other.disk)?)));
                if let Some(what) = common {
                    let why = format!("the streams of vCPUs {} and {} share {what}", other.index, one.index);
                    return Err(MachineError::Setup(why));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whimbrel_workloads::{BuildContext, WorkloadChoice};

    #[test]
    fn streams_that_share_a_page_are_refused() {
        let shape = Shape { pages: 256, sectors: 4096, filled_sectors: 0, vcpus: 2 };
        let alone = BuildContext::new(Shape { vcpus: 1, ..shape }, 1);
        for workload in ["memory-intensive", "disk-write"] {
            let choice = WorkloadChoice::read(&[("use".to_owned(), workload.into())].into()).unwrap();
            let build = || choice.build(&alone).unwrap().remove(0);
            let streams = vec![build(), build()];
            let setup = TwinSetup { shape, seed: 1, content: choice.content().clone(), streams };
            let mut twin = Twin::new(setup).unwrap();
            twin.advance(&[100, 0]).expect("one vCPU alone shares nothing");
            let refused = twin.advance(&[100, 100]).unwrap_err().to_string();
            assert!(refused.contains("vCPUs 0 and 1 share") && refused.contains("page"), "{refused}");
            assert!(twin.advance(&[99, 100]).is_err(), "a twin does not go back");
        }
    }
}
