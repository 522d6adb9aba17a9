//! Faults for real: links cut, hosts killed, disks full, in every phase. Afterwards the guest is alive at exactly one
//! side and its twin finds it equal, or the row says that it is lost; and nothing hangs.

mod support;

#[path = "faults/breaks.rs"]
mod breaks;
#[path = "faults/disk_full.rs"]
mod disk_full;
#[path = "faults/proxy.rs"]
mod proxy;
#[path = "faults/resumed.rs"]
mod resumed;
#[path = "contract/sample.rs"]
mod sample;
