//! The lane by which the guest is asked what it knows of its pages, which are free and which are copies of disk blocks: it
//! may take its time, and nobody else waits for it. It ends with the move, answered or not: a guest that is paused answers
//! nothing.

use crate::core::{SourceInput, Told};
use crate::driver::{DriverError, in_words};
use crate::recorder::Recorder;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use whimbrel_machine::{Asked, Hints, MachineError};
use whimbrel_model::Event;

/// Asks until it is dropped.
pub(super) struct HintLane {
    questions: Option<Sender<u64>>,
    given_up: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl HintLane {
    /// Starts the thread that asks this of a guest of so many pages. `hints` gives up when what it is given says so.
    pub(super) fn start(
        pages: u64,
        asked: Asked,
        hints: impl Fn(&dyn Fn() -> bool) -> Result<Hints, MachineError> + Send + 'static,
        inputs: Sender<SourceInput>,
        recorder: Recorder,
    ) -> Self {
        let (questions, received) = channel();
        let given_up = Arc::<AtomicBool>::default();
        let is_given_up = Arc::clone(&given_up);
        let thread = std::thread::spawn(move || {
            while let Ok(question) = received.recv() {
                let hints = hints(&|| is_given_up.load(Ordering::SeqCst));
                let told = hints.map_err(DriverError::from).and_then(|hints| take(hints, asked, pages, &recorder));
                // Nobody listens once the move has ended.
                let _ = inputs.send(SourceInput::Hinted { question, told: told.map_err(|error| in_words(&error)) });
            }
        });
        HintLane { questions: Some(questions), given_up, thread: Some(thread) }
    }

    /// Asks the question of that number.
    pub(super) fn ask(&self, question: u64) {
        // Where the thread has panicked, its own message has told of it.
        self.questions.iter().for_each(|questions| _ = questions.send(question));
    }
}

impl Drop for HintLane {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::SeqCst);
        self.questions = None;
        if let Some(thread) = self.thread.take() {
            // What panics there has said so.
            let _ = thread.join();
        }
    }
}

fn take(hints: Hints, asked: Asked, pages: u64, recorder: &Recorder) -> Result<Told, DriverError> {
    let Hints { free, types, backed } = hints;
    if free.len() != pages {
        return Err(DriverError::Protocol(format!("the guest tells of {} pages of RAM", free.len())));
    }
    let (free_pages, backed_pages) = match asked {
        Asked::Free => (Some(free.count()), None),
        Asked::Copies => (None, Some(backed.iter().map(|run| run.pages.count).sum())),
    };
    recorder.record(Event::Hinted { free_pages, backed_pages, types });
    Ok(Told { free, backed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use whimbrel_model::Mark;

    #[test]
    fn a_question_that_nobody_answers_ends_with_the_move() {
        let (inputs, received) = channel();
        let (asked, is_asked) = channel();
        let never = move |given_up: &dyn Fn() -> bool| {
            asked.send(()).unwrap();
            while !given_up() {
                std::thread::yield_now();
            }
            Err(MachineError::Hypervisor("given up".to_owned()))
        };
        let lane = HintLane::start(8, Asked::Free, never, inputs, Recorder::new(Mark::Source));
        lane.ask(7);
        is_asked.recv().unwrap();
        drop(lane);
        let told = received.recv().unwrap();
        assert!(matches!(&told, SourceInput::Hinted { question: 7, told: Err(why) } if why == "given up"), "{told:?}");
        assert!(received.recv().is_err(), "the thread is gone, and what it held");
    }
}
