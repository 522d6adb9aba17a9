//! The loop in which the twin executes one vCPU's operations, built for what the processor has.
//!
//! A twin's time goes into waiting for words of a working set that no cache holds, and into mixing them. So operations are
//! drawn in batches and their words loaded before the first of them is executed: those loads don't wait for each other.
//! And a write mixes its words all alike, which vectors do at once where they can multiply 64-bit words. It is all
//! arithmetic on integers: every build of the loop gives the same words.

#![expect(unsafe_code, reason = "what a loop is built for is a promise about the processor")]

use super::image::{TwinDisk, TwinMemory};
use crate::error::MachineError;
use crate::execute::{Registers, fits};
use std::hint::black_box;
use whimbrel_model::op::{Op, operation_key};
use whimbrel_model::stream::{Paced, Shape, Stream};

/// Operations that are drawn at a time.
const BATCH: usize = 32;

/// One vCPU of a twin, with the pages and blocks that it has touched. Nothing in it is another vCPU's.
pub(super) struct TwinVcpu {
    pub(super) index: u32,
    pub(super) stream: Box<dyn Stream>,
    pub(super) registers: Registers,
    pub(super) memory: TwinMemory,
    pub(super) disk: TwinDisk,
}

impl TwinVcpu {
    /// Executes until `to` operations are completed.
    ///
    /// # Errors
    /// The workload left its guest.
    pub(super) fn follow(&mut self, to: u64, shape: &Shape, seed: u64) -> Result<(), MachineError> {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx512f") && has!("avx512dq") && has!("avx512vl") {
                // SAFETY: the processor has what this build of the loop needs.
                return unsafe { follow_by_512_bits(self, to, shape, seed) };
            }
            if has!("avx2") {
                // SAFETY: as above.
                return unsafe { follow_by_256_bits(self, to, shape, seed) };
            }
        }
        steps(self, to, shape, seed)
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn follow_by_512_bits(vcpu: &mut TwinVcpu, to: u64, shape: &Shape, seed: u64) -> Result<(), MachineError> {
    steps(vcpu, to, shape, seed)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn follow_by_256_bits(vcpu: &mut TwinVcpu, to: u64, shape: &Shape, seed: u64) -> Result<(), MachineError> {
    steps(vcpu, to, shape, seed)
}

#[inline(always)]
fn steps(vcpu: &mut TwinVcpu, to: u64, shape: &Shape, seed: u64) -> Result<(), MachineError> {
    let TwinVcpu { index, stream, registers, memory, disk } = vcpu;
    let mut batch = [Paced { op: Op::Flush, interval_ns: 0, units: 0 }; BATCH];
    while registers.state.operations < to {
        let count = (to - registers.state.operations).min(BATCH as u64) as usize;
        let batch = &mut batch[..count];
        stream.fill(batch);
        let mut loaded = 0;
        for paced in &*batch {
            if !fits(&paced.op, shape) {
                return Err(MachineError::Setup(format!("the workload left its guest: {:?}", paced.op)));
            }
            if let Op::Write { page, first, words } | Op::Read { page, first, words } = paced.op {
                loaded ^= memory.load_ends(page, first, words);
            }
        }
        // Else the loads, whose values nobody needs, would be left out.
        black_box(loaded);
        for paced in &*batch {
            let key = operation_key(seed, *index, registers.state.operations);
            registers.execute(paced, key, memory, disk)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use whimbrel_model::content::Content;
    use whimbrel_workloads::{BuildContext, WORKLOADS, WorkloadChoice};

    const SHAPE: Shape = Shape { pages: 1024, sectors: 4096, filled_sectors: 1000, vcpus: 2 };

    fn vcpu(workload: &str) -> TwinVcpu {
        let table = [("use".to_owned(), workload.into())].into();
        let choice = WorkloadChoice::read(&table).unwrap();
        let stream = choice.build(&BuildContext::new(SHAPE, 3)).unwrap().remove(0);
        TwinVcpu {
            index: 0,
            stream,
            registers: Registers::new(SHAPE.pages),
            memory: TwinMemory::new(SHAPE.pages, Content::default(), 3),
            disk: TwinDisk::new(&SHAPE, Content::default(), 3),
        }
    }

    fn assert_same(one: &TwinVcpu, other: &TwinVcpu) {
        assert_eq!(one.registers.state, other.registers.state);
        assert_eq!(one.registers.free, other.registers.free);
        assert_eq!(one.stream.save(), other.stream.save());
        assert!((0..SHAPE.pages).all(|page| one.memory.page(page) == other.memory.page(page)), "a page differs");
        assert!((0..SHAPE.sectors / 8).all(|unit| one.disk.unit(unit) == other.disk.unit(unit)), "a block differs");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn neither_the_build_nor_where_it_stops_matters(stops in prop::collection::vec(0u64..3000, 1..6),
                                                        workload in 0..WORKLOADS.entries.len()) {
            let name = WORKLOADS.entries[workload].name;
            let (mut plain, mut built) = (vcpu(name), vcpu(name));
            let end = stops.iter().sum();
            steps(&mut plain, end, &SHAPE, 3).unwrap();
            let mut to = 0;
            for stop in &stops {
                to += stop;
                built.follow(to, &SHAPE, 3).unwrap();
                prop_assert_eq!(built.registers.state.operations, to);
            }
            assert_same(&plain, &built);
            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2") {
                let mut other = vcpu(name);
                // SAFETY: the processor has what this build of the loop needs.
                unsafe { follow_by_256_bits(&mut other, end, &SHAPE, 3) }.unwrap();
                assert_same(&plain, &other);
            }
        }
    }
}
