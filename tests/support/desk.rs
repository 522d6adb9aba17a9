//! A coordinator's connection to an agent, for tests that go where a session doesn't.

use super::PATIENCE;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use whimbrel_machine::Verification;
use whimbrel_migration::CoordinatorChoice;
use whimbrel_migration::commands::{Account, Answer, Command, GuestSpec, LinkSpec, MoveSpec};
use whimbrel_model::{Phase, Recorded};
use whimbrel_wire::codec::{read_frame, write_frame};
use whimbrel_wire::hello::offer;
use whimbrel_wire::{Hello, Role, SessionId};

/// A connection to an agent. Every wait for an answer is bounded.
pub struct Desk {
    stream: TcpStream,
}

impl Desk {
    /// Connects.
    pub fn at(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        offer(&mut stream, &Hello { role: Role::Coordinator, session: SessionId(0) }, None).unwrap();
        Desk { stream }
    }

    /// Sends a command without waiting for its answer.
    pub fn tell(&self, command: &Command) {
        write_frame(&mut &self.stream, command, &[]).unwrap();
    }

    /// The next answer that is no progress.
    pub fn hear(&self) -> Answer {
        loop {
            match read_frame(&mut &self.stream) {
                Ok((Answer::Progress { .. }, _)) => {}
                Ok((answer, _)) => return answer,
                Err(error) => panic!("no answer came: {error:?}"),
            }
        }
    }

    /// Waits until the move that goes on is in that phase.
    pub fn await_phase(&self, wanted: Phase) {
        loop {
            match read_frame(&mut &self.stream) {
                Ok((Answer::Progress { progress }, _)) if progress.phase == wanted => return,
                Ok((Answer::Progress { .. }, _)) => {}
                other => panic!("phase {wanted:?} never came: {other:?}"),
            }
        }
    }

    /// Asks, and waits for the answer.
    pub fn ask(&self, command: &Command) -> Answer {
        self.tell(command);
        self.hear()
    }

    /// Asks for what must be done without further word.
    pub fn done(&self, command: &Command) {
        let answer = self.ask(command);
        assert!(matches!(answer, Answer::Done {}), "{command:?}: {answer:?}");
    }

    /// Asks for what must be refused, and returns why it was.
    pub fn refused(&self, command: &Command) -> String {
        match self.ask(command) {
            Answer::Refused { reason } => reason,
            answer => panic!("{command:?} was not refused: {answer:?}"),
        }
    }

    /// The account of a move that was asked for and has ended.
    pub fn ended(&self) -> Account {
        match self.hear() {
            Answer::Ended { account } => *account,
            answer => panic!("the end of a move was awaited: {answer:?}"),
        }
    }

    /// Makes a guest and lets it run.
    pub fn begin(&self, spec: &GuestSpec) {
        self.done(&Command::Create { spec: spec.clone() });
        self.done(&Command::Run {});
    }

    /// Pauses the guest for good.
    pub fn stop(&self) -> Vec<Recorded> {
        match self.ask(&Command::Stop {}) {
            Answer::Stopped { events } => events,
            answer => panic!("a stopped guest was awaited: {answer:?}"),
        }
    }

    /// The twin's word on the guest, which must be stopped or frozen here.
    pub fn verified(&self) -> Verification {
        match self.ask(&Command::Verify {}) {
            Answer::Verified { verification } => verification,
            answer => panic!("a verdict was awaited: {answer:?}"),
        }
    }

    /// Whether a guest executes here: only one that is paused can be compared.
    pub fn runs(&self) -> bool {
        match self.ask(&Command::Verify {}) {
            Answer::Verified { .. } => false,
            Answer::Refused { reason } => reason.contains("run"),
            answer => panic!("{answer:?}"),
        }
    }
}

/// How a move goes that differs from another only by its strategies.
pub fn movement(memory: serde_json::Value, disk: serde_json::Value) -> MoveSpec {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    MoveSpec {
        session: NEXT.fetch_add(1, Ordering::Relaxed) ^ u64::from(std::process::id()) << 32,
        link: LinkSpec::default(),
        memory: super::choice(memory),
        own: None,
        disk: super::choice(disk),
        coordinator: CoordinatorChoice::default(),
        earlier: Vec::new(),
        recorded: false,
        witness: false,
    }
}

/// Moves the guest from one host to another, and returns both accounts.
pub fn carry(from: &Desk, to: &Desk, address: SocketAddr, spec: &GuestSpec, movement: &MoveSpec) -> (Account, Account) {
    to.done(&Command::Receive { spec: spec.clone(), movement: movement.clone() });
    from.tell(&Command::Migrate { to: address, movement: movement.clone() });
    let left = from.ended();
    to.tell(&Command::Collect {});
    (left, to.ended())
}
