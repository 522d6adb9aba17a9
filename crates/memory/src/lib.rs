//! Guest RAM, dirty logs, missing-page faults, and the strategies that move memory.

pub mod dirty_log;
pub mod dirty_logs;
pub mod error;
pub mod faults;
pub mod marks;
pub mod pagemap;
pub mod ram;
pub mod ram_io;
pub mod uffd;
pub mod watch;

pub use dirty_log::DirtyLog;
pub use error::MemoryError;
pub use faults::{MissingPages, Waited};
pub use marks::HostMarks;
pub use ram::GuestRam;
pub use ram_io::Part;
