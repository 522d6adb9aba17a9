//! One migration: the core of each host, its drivers, the session and the report.
//!
//! Reading order: [`core`] (the state machines), [`driver`] (threads and sockets), [`copies`] (what of a disk needn't move),
//! [`commands`] and [`agent`] (what a coordinator may ask of a host), [`session`] (a trial over two hosts), [`metrics`] and
//! [`report`] (what it cost).

#![forbid(unsafe_code)]

pub mod agent;
mod answers;
pub mod commands;
pub mod coordinator;
mod coordinators;
pub mod copies;
pub mod core;
pub mod driver;
mod guest;
mod image;
pub mod metrics;
mod recorder;
pub mod report;
pub mod session;
mod witness;

pub use coordinator::CoordinatorChoice;
pub use coordinators::COORDINATORS;
pub use recorder::Recorder;
