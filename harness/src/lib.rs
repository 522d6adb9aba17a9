//! The program `whimbrel`: experiments, trials, rows, statistics, reports. Only this room knows files and flags.
//!
//! - [`cli`]: the command line; help, completions and man page come from it
//! - [`commands`]: one file a command
//! - [`experiment`]: the experiment file, checked
//! - [`families`]: what an experiment may name
//! - [`trials`]: the seam to the engine; [`run_loop`]: every trial of every cell, each kept before the next begins
//! - [`row`], [`folder`], [`environment`]: what a run leaves on disk
//! - [`summary`], [`closing_table`], [`html`]: what a person reads
//! - [`display`]: progress; [`interrupt`]: Ctrl-C

pub mod cli;
pub mod closing_table;
pub mod commands;
pub mod display;
mod embedded;
pub mod environment;
pub mod experiment;
pub mod families;
pub mod folder;
pub mod html;
pub mod interrupt;
pub mod laws;
pub mod row;
pub mod run_loop;
pub mod summary;
pub mod trials;

use std::io::Write;

/// What the person gave can't be used; the program ends with status 2. The message names it and what would be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadInput(pub String);

/// A line on standard error for whoever looks. Where nobody does any more, what goes on goes on.
pub fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The exit statuses of the program.
pub mod status {
    /// All rows completed and their check is equal or skipped.
    pub const GOOD: u8 = 0;
    /// They are not.
    pub const NOT_SO: u8 = 1;
    /// The input can't be used.
    pub const BAD_INPUT: u8 = 2;
    /// Ctrl-C.
    pub const INTERRUPTED: u8 = 130;
}
