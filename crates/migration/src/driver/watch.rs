//! Reads a running guest's progress at a steady pace, for the books.

use crate::recorder::Recorder;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use whimbrel_machine::Machine;
use whimbrel_wire::clock;

/// Between two readings: short against any phase worth a figure, and 100 readings a second cost the guest nothing.
const EVERY: Duration = Duration::from_millis(10);

/// Records the guest's progress until it is dropped.
pub struct WorkWatch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl WorkWatch {
    /// Starts with a first reading now.
    pub fn start(machine: Arc<dyn Machine>, recorder: Recorder) -> Self {
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || {
            loop {
                recorder.progress(clock::now(), &*machine);
                if stopped.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        WorkWatch { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for WorkWatch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there is a bug that its own message has told of.
            let _ = thread.join();
        }
    }
}
