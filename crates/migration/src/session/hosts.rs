//! The two hosts of a run, and what the coordinator asks their agents.

use super::energy;
use crate::answers::hear;
use crate::commands::{Answer, Command};
use crate::core::Progress;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use whimbrel_energy::HostMeter;
use whimbrel_wire::codec::write_frame;
use whimbrel_wire::hello::offer;
use whimbrel_wire::{Hello, Role, SessionId, Token, WireError};

/// Why a trial could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A host's agent can't be reached or is gone.
    #[error("the agent of the {host} host ({address})")]
    Agent {
        /// Which host.
        host: &'static str,
        /// Its agent's address.
        address: SocketAddr,
        /// What went wrong.
        #[source]
        source: WireError,
    },
    /// An agent refused a command.
    #[error("the {host} host refused: {reason}")]
    Refused {
        /// Which host.
        host: &'static str,
        /// Why.
        reason: String,
    },
}

/// How a coordinator reaches an agent.
pub type Dial = Arc<dyn Fn() -> io::Result<TcpStream> + Send + Sync>;

/// One host.
#[derive(Clone)]
pub struct Host {
    /// Its agent's address, as the other host reaches it.
    pub address: SocketAddr,
    /// How its agent is reached from here.
    pub dial: Dial,
}

impl Host {
    /// A host whose agent is reached from here as from anywhere else.
    pub fn at(address: SocketAddr) -> Self {
        Host { address, dial: Arc::new(move || TcpStream::connect(address)) }
    }
}

/// The two hosts of a run.
#[derive(Clone)]
pub struct Hosts {
    source: Host,
    destination: Host,
    token: Option<Token>,
    /// The connections that are open, so that they can be hung up.
    open: Arc<Mutex<Vec<Weak<TcpStream>>>>,
}

impl Hosts {
    /// These two hosts, whose agents want to know `token`.
    pub fn new(source: Host, destination: Host, token: Option<Token>) -> Self {
        Hosts { source, destination, token, open: Arc::default() }
    }

    /// Whether both agents answer, speak this version and take the token.
    ///
    /// # Errors
    /// One of them doesn't.
    pub fn check(&self) -> Result<(), SessionError> {
        self.call("source")?;
        self.call("destination").map(drop)
    }

    /// Ends every connection: what waits for an agent fails, and the agents discard their guests.
    pub fn hang_up(&self) {
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade) {
            // It fails only if the agent was quicker.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(super) fn call(&self, host: &'static str) -> Result<Agent, SessionError> {
        let Host { address, dial } = if host == "source" { &self.source } else { &self.destination };
        let open = || {
            let mut stream = dial()?;
            stream.set_nodelay(true)?;
            offer(&mut stream, &Hello { role: Role::Coordinator, session: SessionId(0) }, self.token.as_ref())?;
            Ok(stream)
        };
        let stream = open().map_err(|source| SessionError::Agent { host, address: *address, source })?;
        let stream = Arc::new(stream);
        let mut known = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|stream| stream.strong_count() > 0);
        known.push(Arc::downgrade(&stream));
        Ok(Agent { host, address: *address, stream, meter: Err(energy::NOT_ASKED.to_owned()) })
    }
}

/// A connection to a host's agent.
pub(super) struct Agent {
    pub(super) host: &'static str,
    pub(super) address: SocketAddr,
    stream: Arc<TcpStream>,
    /// What reads the host's energy, or why nothing does.
    pub(super) meter: Result<Box<HostMeter>, String>,
}

impl Agent {
    pub(super) fn ask(&mut self, command: &Command) -> Result<Answer, SessionError> {
        self.ask_showing(command, &mut |_| {})
    }

    pub(super) fn ask_showing(
        &mut self,
        command: &Command,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Answer, SessionError> {
        let failed = |source| SessionError::Agent { host: self.host, address: self.address, source };
        let mut stream: &TcpStream = &self.stream;
        write_frame(&mut stream, command, &[]).map_err(failed)?;
        loop {
            match hear(&mut stream).map_err(failed)? {
                Answer::Progress { progress: how_far } => progress(how_far),
                Answer::Refused { reason } => return Err(SessionError::Refused { host: self.host, reason }),
                answer => return Ok(answer),
            }
        }
    }

    /// As [`Agent::ask`], where only one kind of answer makes sense.
    pub(super) fn expect<T>(
        &mut self,
        command: &Command,
        pick: impl FnOnce(Answer) -> Option<T>,
    ) -> Result<T, SessionError> {
        let answer = self.ask(command)?;
        let what = format!("{answer:?}");
        pick(answer).ok_or_else(|| {
            let malformed = io::Error::new(io::ErrorKind::InvalidData, format!("unexpected answer {what:.80}"));
            SessionError::Agent { host: self.host, address: self.address, source: malformed.into() }
        })
    }

    pub(super) fn done(&mut self, command: &Command) -> Result<(), SessionError> {
        self.expect(command, |a| matches!(a, Answer::Done {}).then_some(()))
    }
}
