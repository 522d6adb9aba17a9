//! The run loop: every trial of every cell, each kept on disk before the next begins.
//!
//! Cells take turns: trial 0 of each, then trial 1 of each. So a slow drift of the host falls on all cells alike, and a
//! run that is ended early has something of every cell.

use crate::display::Display;
use crate::experiment::{Cell, Experiment};
use crate::folder::Folder;
use crate::interrupt::Interrupt;
use crate::row::Row;
use crate::trials::{Request, Trials, Trip};
use whimbrel_migration::report::{Facts, Outcome};
use whimbrel_migration::session;
use whimbrel_model::{Event, Mark, Nanos, PAGE_BYTES, Recorded};

/// What a run made.
#[derive(Debug, Default)]
pub struct Finished {
    /// The rows, in the order in which they were made.
    pub rows: Vec<Row>,
    /// Whether it was ended before its last trial.
    pub interrupted: bool,
}

impl Finished {
    /// Whether every row completed and no check found a difference.
    pub fn good(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(Row::good)
    }
}

/// Makes all trials. A trial that fails is a row with its reason, and the run goes on.
///
/// # Errors
/// Only those of the folder: rows that can't be kept are no reason to make more.
pub fn run(
    experiment: &Experiment,
    trials: &mut dyn Trials,
    folder: &mut Folder,
    display: &mut dyn Display,
    interrupt: &Interrupt,
) -> anyhow::Result<Finished> {
    let mut finished = Finished::default();
    let all = experiment.cells.len() * experiment.trials as usize;
    for trial in 0..experiment.trials {
        for (cell_index, cell) in experiment.cells.iter().enumerate() {
            if interrupt.raised() {
                finished.interrupted = true;
                return Ok(finished);
            }
            let number = trial as usize * experiment.cells.len() + cell_index;
            display.begin(number, all, cell, trial);
            let request = Request { cell, trial, seed: experiment.trial_seed(trial), verify: experiment.verify };
            let made = trials.run(&request, &mut |progress| display.progress(&progress));
            if made.is_err() && interrupt.raised() {
                // It did not fail, it was ended: there is nothing to say of it.
                finished.interrupted = true;
                return Ok(finished);
            }
            let made = made.map_err(|e| format!("{e:#}"));
            for trip in complete(cell, made) {
                let row = Row::new(experiment, cell, trial, &trip);
                folder.keep(&row, &trip)?;
                display.row(&row);
                finished.rows.push(row);
            }
        }
    }
    Ok(finished)
}

/// At least one trip for each guest and trip of the cell, in order: those that were made, attempt by attempt, and a failed one
/// for each of the rest.
fn complete(cell: &Cell, made: Result<Vec<Trip>, String>) -> Vec<Trip> {
    let (mut made, why) = match made {
        Ok(made) => (made, "it was not made: the trip before it left the guest elsewhere".to_owned()),
        Err(why) => (Vec::new(), why),
    };
    let guest = &cell.setting.guest;
    let mut trips = Vec::new();
    for (number, trip) in (0..guest.count).flat_map(|g| (0..guest.trips).map(move |t| (g, t))) {
        let mut attempts: Vec<Trip> = made.extract_if(.., |m| (m.guest, m.trip) == (number, trip)).collect();
        attempts.sort_by_key(|attempt| attempt.attempt);
        if attempts.is_empty() {
            attempts.push(failed(cell, number, trip, &why));
        }
        trips.append(&mut attempts);
    }
    trips
}

fn failed(cell: &Cell, guest: u32, trip: u32, why: &str) -> Trip {
    let of = &cell.setting.guest;
    let event = Event::Failed { reason: why.to_owned() };
    let facts = Facts {
        ram_bytes: of.ram.0,
        disk_bytes: of.disk.map_or(0, |d| d.0),
        page_size_bytes: PAGE_BYTES,
        block_size_bytes: of.block_size.0,
        outcome: Some(Outcome::Failed),
        ..Facts::default()
    };
    let unknown = session::UNKNOWN.to_owned();
    let events = vec![Recorded { at_ns: Nanos(0), host: Mark::Source, event }];
    let (accelerator, placement) = (unknown.clone(), unknown);
    Trip { guest, trip, attempt: 0, accelerator, placement, own: None, events, facts }
}

#[cfg(test)]
mod tests;
