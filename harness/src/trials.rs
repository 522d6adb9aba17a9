//! The seam to the engine: how the run loop has a trial made.
//!
//! The loop knows experiments and files; whoever implements [`Trials`] knows hosts and migrations. [`open`] gives the
//! real one.

use crate::cli::RunOptions;
use crate::experiment::{Cell, Experiment};
use crate::interrupt::Interrupt;
use whimbrel_migration::report::Facts;
use whimbrel_model::{Phase, Recorded};

/// Makes trials.
pub trait Trials {
    /// Sees that every cell can be run with the hosts at hand, before anything starts.
    ///
    /// # Errors
    /// [`crate::BadInput`] where the experiment asks for what these hosts can't do.
    fn prepare(&mut self, experiment: &Experiment) -> anyhow::Result<()>;

    /// Makes one trial: every guest of the cell, every trip. Blocks until it is over, and calls `progress` at least every
    /// second meanwhile. The order of the trips returned doesn't matter, and those that were not made may be missing.
    ///
    /// # Errors
    /// The trial could not be made at all. That gives failed rows, and the run goes on.
    fn run(&mut self, request: &Request<'_>, progress: &mut dyn FnMut(Progress)) -> anyhow::Result<Vec<Trip>>;
}

/// One trial to make.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The cell.
    pub cell: &'a Cell,
    /// The cell's place among the experiment's cells: the control run of a cell may serve all its trials.
    pub cell_index: usize,
    /// The trial, from 0.
    pub trial: u32,
    /// Its seed.
    pub seed: u64,
}

/// What was recorded of one guest's trip.
#[derive(Clone, Debug, Default)]
pub struct Trip {
    /// The guest, from 0.
    pub guest: u32,
    /// The trip, from 0.
    pub trip: u32,
    /// What executes the guest: `none`, `tcg` or `kvm`.
    pub accelerator: String,
    /// Where the hosts are: `one-host` or `two-hosts`.
    pub placement: String,
    /// What happened, on both hosts.
    pub events: Vec<Recorded>,
    /// What else is known.
    pub facts: Facts,
}

/// How far a trial is, for a display.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// The guest.
    pub guest: u32,
    /// What goes on besides a migration, such as `control run` or `twin check`; empty during a migration.
    pub stage: &'static str,
    /// The migration's phase, if one goes on.
    pub phase: Option<Phase>,
    /// Rounds of memory that have ended.
    pub round: u64,
    /// Payload bytes sent.
    pub sent_bytes: u64,
    /// Bytes that the destination still lacks, as far as is known.
    pub remaining_bytes: u64,
    /// The dirty rate of the last round, in bytes a second.
    pub dirty_bytes_per_s: Option<f64>,
    /// The bandwidth achieved lately, in bytes a second.
    pub bandwidth_bytes_per_s: Option<f64>,
    /// The downtime predicted at the last round's end, in nanoseconds.
    pub predicted_downtime_ns: Option<u64>,
}

/// The real trials: on the hosts that the options name, or on two processes of this host. `interrupt` is raised by
/// Ctrl-C: a trial that goes on then ends with an error, and dropping the trials ends the children.
///
/// # Errors
/// [`crate::BadInput`] where a host can't be reached, is of another version or refuses the token.
pub fn open(options: &RunOptions, interrupt: &Interrupt) -> anyhow::Result<Box<dyn Trials>> {
    let _ = (options, interrupt);
    anyhow::bail!("this build has no engine")
}

/// Serves as a host's agent until interrupted.
///
/// # Errors
/// [`crate::BadInput`] where the address is in use, or is not loopback and no token is given.
pub fn serve_host(
    listen: std::net::SocketAddr,
    token: Option<&std::path::Path>,
    interrupt: &Interrupt,
) -> anyhow::Result<u8> {
    let _ = (listen, token, interrupt);
    anyhow::bail!("this build has no engine")
}
