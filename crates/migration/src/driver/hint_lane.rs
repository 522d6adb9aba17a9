//! The lane by which the guest is asked which of its pages are free: it may take its time, and nobody else waits for it.

use crate::core::SourceInput;
use crate::driver::{DriverError, in_words};
use crate::recorder::Recorder;
use std::sync::mpsc::{Receiver, Sender};
use whimbrel_machine::{Hints, Machine};
use whimbrel_model::{Event, Page, UnitSet};

/// Answers questions, by their numbers, until their sender is gone.
pub(super) fn serve_questions(
    machine: &dyn Machine,
    questions: &Receiver<u64>,
    inputs: &Sender<SourceInput>,
    recorder: &Recorder,
) {
    while let Ok(question) = questions.recv() {
        let free = ask(machine, recorder).map_err(|error| in_words(&error));
        // Nobody listens once the move has ended.
        let _ = inputs.send(SourceInput::Hinted { question, free });
    }
}

fn ask(machine: &dyn Machine, recorder: &Recorder) -> Result<UnitSet<Page>, DriverError> {
    let Hints { free, types } = machine.hints()?;
    if free.len() != machine.ram().pages() {
        return Err(DriverError::Protocol(format!("the guest tells of {} pages of RAM", free.len())));
    }
    recorder.record(Event::Hinted { free_pages: free.count(), types });
    Ok(free)
}
