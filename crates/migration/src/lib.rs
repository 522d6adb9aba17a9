//! One migration: the core of each host, its drivers, the session and the report.

pub mod metrics;
pub mod report;
