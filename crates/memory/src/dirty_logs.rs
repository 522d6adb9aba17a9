//! The dirty logs that there are.

use crate::dirty_log::DirtyLog;
use crate::error::Result;
use crate::ram::GuestRam;
use std::sync::Arc;
use whimbrel_model::{Entry, Registry};

mod forgetful;
mod null;
mod userfault;

pub use forgetful::ForgetfulLog;
pub use null::NullLog;
pub use userfault::UserfaultLog;

/// How a dirty log is made over a guest's RAM.
pub type Build = fn(&Arc<GuestRam>) -> Result<Box<dyn DirtyLog>>;

/// The table of the dirty logs.
pub const DIRTY_LOGS: Registry<Build> = Registry {
    family: "dirty log",
    entries: &[
        Entry {
            name: "userfault",
            summary: "asynchronous write-protection by userfaultfd, read by the PAGEMAP_SCAN ioctl",
            parameters: &[],
            source: "Linux 6.7",
            build: |ram| Ok(Box::new(UserfaultLog::over(ram)?)),
        },
        Entry {
            name: "null",
            summary: "sees nothing and costs nothing: the floor of the measurement",
            parameters: &[],
            source: "for tests",
            build: |ram| Ok(Box::new(NullLog::over(ram))),
        },
        Entry {
            name: "forgetful",
            summary: "as userfault, but leaves one page out of each take: proves the judge",
            parameters: &[],
            source: "for tests",
            build: |ram| Ok(Box::new(ForgetfulLog::around(Box::new(UserfaultLog::over(ram)?)))),
        },
    ],
};
