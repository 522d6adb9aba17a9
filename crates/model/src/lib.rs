//! The words of Whimbrel: units, sets, operations, steps, events. No I/O, no threads.
//!
//! Everything that two rooms say to each other is defined here, so that `memory` and `disk`, which don't know each
//! other, speak the same language, and `migration` can drive both. Reading order: [`units`] and [`quantity`] (numbers
//! and how a person writes them), [`set`] and [`counts`] (pages and blocks), [`backed`] (which pages are blocks),
//! [`op`], [`stream`] and [`content`] (what a guest does and
//! what it holds), [`registry`] (how a pluggable family describes its members), [`strategy`] (what a schedule sees and
//! answers), [`phase`] and [`event`] (what is recorded).

pub mod backed;
pub mod content;
pub mod counts;
pub mod event;
pub mod op;
pub mod phase;
pub mod quantity;
pub mod registry;
pub mod rng;
pub mod set;
pub mod strategy;
pub mod stream;
pub mod units;

pub use backed::Backed;
pub use counts::WriteCounts;
pub use event::{Event, Family, Mark, Moment, PageTypes, Recorded};
pub use op::{Op, VcpuState, WORDS_PER_PAGE};
pub use phase::Phase;
pub use registry::{Entry, Parameter, ParameterError, Parameters, Registry};
pub use rng::Rng;
pub use set::{Extent, Ordered, UnitSet};
pub use strategy::{Mirroring, Needs, Observe, Pull, PullView, Rest, Schedule, Step, View};
pub use stream::{Paced, Pacing, Stream};
pub use units::{Block, ByteRate, Bytes, Nanos, PAGE_BYTES, Page, Unit};
