//! QEMU's monitor: commands and their answers, events and when they came.

use crate::clock::monotonic;
use crate::error::MachineError;
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use whimbrel_model::Nanos;

/// How long QEMU may take to answer. A command waits for I/O in flight, and that for blocks that come from elsewhere.
const PATIENCE: Duration = Duration::from_secs(60);

/// The longest line that is taken.
const LONGEST_LINE: u64 = 16 << 20;

/// Something that QEMU told by itself.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// When it was heard, by this host's monotonic clock.
    pub(super) at: Nanos,
    /// Its name.
    pub(super) name: String,
    /// All of it, as it came.
    pub(super) raw: Value,
}

#[derive(Default)]
struct Heard {
    events: Vec<Event>,
    answer: Option<Value>,
    closed: Option<String>,
}

#[derive(Default)]
struct Shared {
    heard: Mutex<Heard>,
    changed: Condvar,
}

impl Shared {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `pick` picks something, the monitor is closed, or the time is up.
    fn wait<T>(&self, patience: Duration, mut pick: impl FnMut(&mut Heard) -> Option<T>) -> Result<T, MachineError> {
        let end = Instant::now() + patience;
        let mut heard = self.heard();
        loop {
            if let Some(picked) = pick(&mut heard) {
                return Ok(picked);
            }
            if let Some(why) = &heard.closed {
                return Err(MachineError::Hypervisor(format!("QEMU's monitor has closed: {why}")));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(MachineError::Hypervisor(format!(
                    "QEMU did not tell what was waited for within {} s",
                    patience.as_secs()
                )));
            }
            heard = self.changed.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A connection to a QEMU's monitor. One command at a time.
pub(super) struct Qmp {
    stream: UnixStream,
    shared: Arc<Shared>,
    turn: Mutex<()>,
    version: String,
}

impl Qmp {
    /// Greets.
    ///
    /// # Errors
    /// The other side is no monitor.
    pub(super) fn over(stream: UnixStream) -> Result<Self, MachineError> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let greeting = next(&mut reader)?.unwrap_or_default();
        let version = &greeting["QMP"]["version"]["qemu"];
        if version.is_null() {
            return Err(MachineError::Hypervisor("what answers is no QEMU monitor".to_owned()));
        }
        let version = ["major", "minor", "micro"].map(|part| version[part].to_string()).join(".");
        let shared = Arc::new(Shared::default());
        let told = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("qmp".to_owned())
            .spawn(move || listen(&mut reader, &told))
            .map_err(MachineError::Thread)?;
        let qmp = Qmp { stream, shared, turn: Mutex::new(()), version };
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command.
    ///
    /// # Errors
    /// QEMU refuses, and says why; or it is gone.
    pub(super) fn execute(&self, command: &str, arguments: Value) -> Result<Value, MachineError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut words = json!({ "execute": command });
        if arguments.as_object().is_some_and(|a| !a.is_empty()) {
            words["arguments"] = arguments;
        }
        self.shared.heard().answer = None;
        let gone = |error| MachineError::Hypervisor(format!("QEMU can't be told to {command}: {error}"));
        (&self.stream).write_all(format!("{words}\n").as_bytes()).map_err(gone)?;
        let answer = self.shared.wait(PATIENCE, |heard| heard.answer.take()).inspect_err(|_| {
            // An answer that comes later would be taken for that to the next command.
            let _ = self.stream.shutdown(Shutdown::Both);
        })?;
        match answer.get("error") {
            None => Ok(answer["return"].clone()),
            Some(error) => {
                let why = error["desc"].as_str().unwrap_or("it doesn't say why");
                Err(MachineError::Hypervisor(format!("QEMU refuses {command}: {why}")))
            }
        }
    }

    /// The version of this QEMU.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// How many events have come so far: from where to wait for the next.
    pub(super) fn mark(&self) -> usize {
        self.shared.heard().events.len()
    }

    /// Waits for the first event since `mark` that is wanted.
    ///
    /// # Errors
    /// It doesn't come in time, or QEMU is gone.
    pub(super) fn wait(
        &self,
        mark: usize,
        patience: Duration,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<Event, MachineError> {
        self.shared.wait(patience, |heard| heard.events[mark..].iter().find(|event| wanted(event)).cloned())
    }

    /// Why nothing can be heard any more, if so.
    pub(super) fn closed(&self) -> Option<String> {
        self.shared.heard().closed.clone()
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        // The listener ends at this; QEMU may have ended it already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn next(reader: &mut impl BufRead) -> io::Result<Option<Value>> {
    let mut line = Vec::new();
    if reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

fn listen(reader: &mut impl BufRead, shared: &Shared) {
    loop {
        let heard = next(reader);
        let at = monotonic();
        let mut shared_now = shared.heard();
        match heard {
            Ok(Some(raw)) => match raw["event"].as_str() {
                Some(name) => shared_now.events.push(Event { at, name: name.to_owned(), raw }),
                None => shared_now.answer = Some(raw),
            },
            Ok(None) => shared_now.closed = Some("QEMU has ended it".to_owned()),
            Err(error) => shared_now.closed = Some(error.to_string()),
        }
        let over = shared_now.closed.is_some();
        drop(shared_now);
        shared.changed.notify_all();
        if over {
            return;
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A monitor that says these lines, one after each line that it hears but the first.
    pub(crate) fn monitor(lines: &'static [&'static str]) -> Result<Qmp, MachineError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut heard = BufReader::new(theirs.try_clone().unwrap());
            for line in lines {
                writeln!(&theirs, "{line}").unwrap();
                if heard.read_line(&mut String::new()).unwrap_or(0) == 0 {
                    return;
                }
            }
        });
        Qmp::over(ours)
    }

    pub(crate) const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 1}}}}"#;

    #[test]
    fn answers_events_and_the_end_are_told_apart() {
        let event = "{\"event\": \"STOP\"}\n{\"return\": 5}";
        let qmp = monitor(Box::leak(Box::new([GREETING, "{\"return\": {}}", event]))).unwrap();
        let mark = qmp.mark();
        assert_eq!(qmp.execute("stop", json!({})).unwrap(), 5);
        let stop = qmp.wait(mark, PATIENCE, |event| event.name == "STOP").unwrap();
        assert_eq!(stop.raw["event"], "STOP");
        let error = qmp.execute("cont", json!({})).unwrap_err().to_string();
        assert!(error.contains("monitor has closed") || error.contains("can't be told"), "{error}");
        assert!(qmp.closed().is_some());
    }

    #[test]
    fn refusals_say_why_and_strangers_are_refused() {
        let refusal = r#"{"error": {"class": "GenericError", "desc": "no such thing"}}"#;
        let qmp = monitor(Box::leak(Box::new([GREETING, "{\"return\": {}}", refusal]))).unwrap();
        let error = qmp.execute("cont", json!({})).unwrap_err().to_string();
        assert_eq!(error, "QEMU refuses cont: no such thing");
        assert!(monitor(&["{\"hello\": 1}"]).is_err());
        assert!(monitor(&["hello"]).is_err());
    }
}
