//! A wall meter by command: a program of the user's that prints the host's joules.
//!
//! The program is started once, as a line for the shell, and prints a line whenever its meter has a new figure: the joules
//! used so far, as a decimal number that never falls. The instant of a figure is when it was first seen: a program may say again
//! what it has said, and that is no new figure. When the meter is no longer needed the program, with all that it started, is ended.

use crate::meter::{Domain, DomainKind, Meter, Open, Place, Reading, Unmeasured};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use whimbrel_model::{Entry, Nanos};

pub(super) const ENTRY: Entry<Open> = Entry {
    name: "command",
    summary: "a program, given to the agent, that prints the joules of a wall meter, a number a line",
    parameters: &[],
    source: "Whimbrel",
    build: open,
};

/// How long the program has for its first figure.
const PATIENCE: Duration = Duration::from_secs(10);

/// A longer line holds no number.
const LONGEST_LINE: u64 = 256;

/// What the last line said.
type Said = Option<Result<u64, Unmeasured>>;

struct Wall {
    domains: [Domain; 1],
    program: Child,
    said: Arc<(Mutex<Said>, Condvar)>,
    /// The figure last seen, and when first.
    seen: Option<Reading>,
}

impl Meter for Wall {
    fn domains(&self) -> &[Domain] {
        &self.domains
    }

    fn read(&mut self, now: Nanos) -> Vec<Result<Reading, Unmeasured>> {
        let said = self.said.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = said.clone().unwrap_or_else(|| Err(Unmeasured::because("the program has printed nothing yet")));
        vec![last.map(|uj| match self.seen {
            Some(seen) if seen.uj == uj => seen,
            _ => *self.seen.insert(Reading { at: now, uj }),
        })]
    }
}

impl Drop for Wall {
    fn drop(&mut self) {
        // The program leads a group of its own, so that what the shell started ends with it. Either may have ended already.
        if let Some(group) = rustix::process::Pid::from_raw(self.program.id() as i32) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.program.wait();
    }
}

fn open(place: &Place) -> Result<Box<dyn Meter>, Unmeasured> {
    let line = place.command.as_deref().ok_or_else(|| Unmeasured::because("no program was given (--meter-command)"))?;
    let failed = |e: std::io::Error| Unmeasured::because(format!("the meter's command {line:?}: {e}"));
    let mut command = Command::new("sh");
    command.args(["-c", line]).stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
    let mut program = command.spawn().map_err(failed)?;
    let output = program.stdout.take().ok_or_else(|| failed(std::io::ErrorKind::BrokenPipe.into()))?;
    let said = Arc::new((Mutex::new(Said::None), Condvar::new()));
    let listener = Arc::clone(&said);
    std::thread::spawn(move || listen(output, &listener));
    let domain = Domain { name: "wall".to_owned(), kind: DomainKind::Host, package: None, range_uj: None };
    let wall = Wall { domains: [domain], program, said: Arc::clone(&said), seen: None };
    let waiting = said.0.lock().unwrap_or_else(PoisonError::into_inner);
    let (waited, _) =
        said.1.wait_timeout_while(waiting, PATIENCE, |said| said.is_none()).unwrap_or_else(PoisonError::into_inner);
    match &*waited {
        Some(Ok(_)) => {}
        Some(Err(why)) => return Err(why.clone()),
        None => {
            return Err(Unmeasured::because(format!("the meter's command {line:?} printed nothing in {PATIENCE:?}")));
        }
    }
    drop(waited);
    Ok(Box::new(wall))
}

/// Hears the program until it ends.
fn listen(output: ChildStdout, said: &(Mutex<Said>, Condvar)) {
    let mut output = BufReader::new(output);
    loop {
        let mut line = Vec::new();
        let heard = output.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line);
        let ended = !matches!(heard, Ok(n) if n > 0);
        let figure = if ended {
            Err(Unmeasured::because("the meter's command has ended"))
        } else {
            joules(&String::from_utf8_lossy(&line))
        };
        let mut said_now = said.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What it said before it ended stays the reason, if that was no figure.
        if !(ended && matches!(*said_now, Some(Err(_)))) {
            *said_now = Some(figure);
        }
        said.1.notify_all();
        if ended {
            return;
        }
    }
}

fn joules(line: &str) -> Result<u64, Unmeasured> {
    let number = line.trim().parse::<f64>().ok().map(|joules| joules * 1e6);
    let number = number.filter(|uj| (0.0..1.8e19).contains(uj)).map(|uj| uj.round() as u64);
    number.ok_or_else(|| {
        Unmeasured::because(format!("the meter's command printed {:.40?}, not a number of joules", line.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_that_is_said_again_is_no_new_one() {
        let said = Arc::new((Mutex::new(Some(Ok(5))), Condvar::new()));
        let domain = Domain { name: "wall".to_owned(), kind: DomainKind::Host, package: None, range_uj: None };
        let program = Command::new("true").spawn().unwrap();
        let mut wall = Wall { domains: [domain], program, said: Arc::clone(&said), seen: None };
        let mut read = |now: u64| wall.read(Nanos(now)).remove(0).map(|reading| (reading.at.0, reading.uj));
        assert_eq!((read(10), read(20)), (Ok((10, 5)), Ok((10, 5))));
        *said.0.lock().unwrap() = Some(Ok(7));
        assert_eq!((read(30), read(40)), (Ok((30, 7)), Ok((30, 7))));
        *said.0.lock().unwrap() = Some(Err(Unmeasured::because("gone")));
        assert!(read(50).is_err());
    }
}
