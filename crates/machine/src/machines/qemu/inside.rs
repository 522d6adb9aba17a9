//! What is in the guest, as the host hears of it: our agent, or what the user brought, which says nothing of itself.

use super::command::CONSOLE;
use super::port::Port;
use super::service::{Service, forwarded_port};
use crate::brought::Brought;
use crate::error::MachineError;
use crate::machine::{Progress, Silence};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often a console is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What is in the guest.
pub(super) enum Inside {
    /// Our agent, over its port.
    Agent(Port),
    /// What the user brought, and the client that asks it, if there is one.
    Brought(Box<Brought>, Option<Service>),
}

impl Inside {
    /// What the user brought. `networks` is what QEMU says of its user-mode networks.
    ///
    /// # Errors
    /// QEMU names no port by which the guest is reached, or there are no more threads.
    pub(super) fn brought(brought: Box<Brought>, networks: &str) -> Result<Self, MachineError> {
        let client = |probe| {
            let unknown = || format!("QEMU doesn't say by which port the guest is reached: {networks}");
            let port = forwarded_port(networks).ok_or_else(|| MachineError::Hypervisor(unknown()))?;
            Service::behind(port, probe)
        };
        let service = brought.probe.clone().map(client).transpose()?;
        Ok(Inside::Brought(brought, service))
    }

    /// The agent's port.
    ///
    /// # Errors
    /// There is no agent.
    pub(super) fn agent(&self) -> Result<&Port, MachineError> {
        match self {
            Inside::Agent(port) => Ok(port),
            Inside::Brought(..) => Err(MachineError::Setup("there is no agent in the guest".to_owned())),
        }
    }

    /// Hears whether the guest runs from now on.
    pub(super) fn note(&self, runs: bool) {
        match self {
            Inside::Agent(port) if runs => port.may_ask(),
            Inside::Agent(port) => drop(port.hush()),
            Inside::Brought(_, service) => service.iter().for_each(|service| service.ask(runs)),
        }
    }

    /// The guest is about to be stopped: it is asked nothing from now on. Whether a question is unanswered.
    pub(super) fn hush(&self) -> bool {
        self.agent().is_ok_and(Port::hush)
    }

    pub(super) fn progress(&self) -> Progress {
        match self {
            Inside::Agent(port) => port.progress(),
            Inside::Brought(..) => Progress::default(),
        }
    }

    pub(super) fn silence(&self) -> Silence {
        match self {
            Inside::Agent(port) => port.silence(),
            Inside::Brought(_, service) => service.as_ref().map(Service::silence).unwrap_or_default(),
        }
    }

    pub(super) fn reset_silence(&self) {
        match self {
            Inside::Agent(port) => port.reset_silence(),
            Inside::Brought(_, service) => service.iter().for_each(Service::reset_silence),
        }
    }

    /// Why the guest can't go on, as far as it says.
    pub(super) fn failed(&self) -> Option<String> {
        self.agent().ok().and_then(Port::failed)
    }

    /// Why the guest can't be heard any more, if so.
    pub(super) fn closed(&self) -> Option<String> {
        self.agent().ok().and_then(Port::closed)
    }
}

/// Waits until what the user brought is up: its console says so, and its service answers.
///
/// # Errors
/// It isn't in time, or `ended` says why it won't be.
pub(super) fn wait_up(
    brought: &Brought,
    service: Option<&Service>,
    folder: &Path,
    ended: &dyn Fn() -> Option<String>,
) -> Result<(), MachineError> {
    let end = Instant::now() + brought.ready_within;
    if let Some(text) = &brought.ready {
        wait_console(&folder.join(CONSOLE), text, end, brought.ready_within, ended)?;
    }
    service.map_or(Ok(()), |service| service.wait_answer(end.saturating_duration_since(Instant::now()), ended))
}

fn wait_console(
    console: &Path,
    text: &str,
    end: Instant,
    within: Duration,
    ended: &dyn Fn() -> Option<String>,
) -> Result<(), MachineError> {
    let mut console = File::open(console)?;
    let mut shown = Vec::new();
    loop {
        // Asked before the console is read: what it said last is looked at too.
        let over = ended();
        console.read_to_end(&mut shown)?;
        if shown.windows(text.len()).any(|window| window == text.as_bytes()) {
            return Ok(());
        }
        // A text may have come by half.
        shown.drain(..shown.len().saturating_sub(text.len()));
        if let Some(why) = over {
            return Err(MachineError::Hypervisor(why));
        }
        if Instant::now() >= end {
            let why = format!("the guest's console did not say {text:?} within {} s", within.as_secs());
            return Err(MachineError::Hypervisor(why));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_console_is_read_until_it_says_the_text_however_it_comes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CONSOLE);
        let mut file = File::create(&path).unwrap();
        file.write_all(b"booting\ndebian log").unwrap();
        let wait = |within, ended: &dyn Fn() -> Option<String>| {
            wait_console(&path, "login:", Instant::now() + within, within, ended)
        };
        let never = || None;
        let error = wait(Duration::ZERO, &never).unwrap_err().to_string();
        assert!(error.contains("did not say \"login:\""), "{error}");
        let error = wait(Duration::from_secs(60), &|| Some("QEMU has ended".to_owned())).unwrap_err().to_string();
        assert_eq!(error, "QEMU has ended");
        // The rest comes once the console has been looked at.
        let rest = std::cell::Cell::new(0);
        let more = || {
            if rest.replace(rest.get() + 1) == 1 {
                (&file).write_all(b"in: ").unwrap();
            }
            None
        };
        wait(Duration::from_secs(60), &more).unwrap();
    }
}
