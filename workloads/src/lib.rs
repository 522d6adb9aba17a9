//! Workload generators: seeded streams of guest operations.
//!
//! [`workload`] is the seam, [`workloads`] the table, `workloads/` has a file for each member. [`choice`] reads the
//! `[workload]` table of an experiment file. [`observe`] counts what a stream offers, without a clock. The parts that
//! generators share: [`pacer`] (when), [`pattern`] and [`zipf`] (where).
//!
//! A generator decides nothing by a clock and nothing by a mathematical library whose last digit depends on the host:
//! two hosts must draw the same operations for ever.

pub mod choice;
pub mod observe;
pub mod pacer;
pub mod pattern;
pub mod workload;
pub mod workloads;
pub mod zipf;

pub use choice::WorkloadChoice;
pub use observe::{Observed, observe};
pub use workload::{BuildContext, Offered, Workload};
pub use workloads::WORKLOADS;
