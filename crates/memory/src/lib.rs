//! Guest RAM, dirty logs, missing-page faults, and the strategies that move memory.

pub mod dirty_log;
pub mod dirty_logs;
pub mod error;
pub mod faults;
pub mod marks;
pub mod pagemap;
pub mod probe;
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

pub mod choice;
pub mod encode;
pub mod encode_chain;
pub mod encodings;
pub mod presets;
pub mod schedule;
pub mod schedules;
pub mod select;
pub mod selections;
pub mod stop;
pub mod stop_rules;
pub mod throttle;
pub mod throttles;

pub use choice::{ChoiceError, MemoryChoice, MemoryStrategy};
pub use encode::{DecodeError, Encode, Encoding, PAGE, PageBytes};
pub use encode_chain::{EncodeChain, Encoded};
pub use encodings::{ENCODINGS, decode};
pub use presets::PRESETS;
pub use schedule::BuildContext;
pub use schedules::SCHEDULES;
pub use select::{Select, SelectView};
pub use selections::{All, SELECTIONS};
pub use stop::{StopRule, StopRules, StopView, predicted_downtime};
pub use stop_rules::STOP_RULES;
pub use throttle::{Throttle, ThrottleView};
pub use throttles::THROTTLES;
