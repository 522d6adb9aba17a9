//! The agent of a host: listens, lets coordinators make, run and move guests, and takes in guests from other hosts.

mod energy;
mod receive;

use crate::answers::tell;
use crate::commands::{Account, Answer, Command, GuestSpec, LinkSpec, MoveSpec};
use crate::copies;
use crate::core::Ending;
use crate::driver::{
    Copies, DriverError, Left, Opening, SourceParts, WorkWatch, connect_own, connect_roles, in_words, leave_own,
    run_source,
};
use crate::guest::{Guest, HostParts, RamPool};
use crate::recorder::Recorder;
use energy::{Listening, Metering, Running};
use receive::Expected;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::UnboundedSender;
use whimbrel_energy::Place;
use whimbrel_machine::Begin;
use whimbrel_model::event::Mark;
use whimbrel_model::{ByteRate, Event, Extent, Moment, Nanos};
use whimbrel_wire::codec::read_frame_async;
use whimbrel_wire::hello::accept_async;
use whimbrel_wire::{Nic, Refusal, RefusalCode, Role, Token, clock};

/// How long a stranger may take to say hello.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);

/// How long an agent that ends waits for what goes on.
const FAREWELL: Duration = Duration::from_secs(5);

/// Connections that haven't said hello yet, at most.
const STRANGERS: usize = 64;

/// What an agent is started with.
#[derive(Debug)]
pub struct AgentSetup {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What others must know; required beyond loopback.
    pub token: Option<Token>,
    /// Where disk images are kept.
    pub directory: PathBuf,
    /// Where the host's counters of energy lie.
    pub energy: Place,
}

/// An agent that listens.
pub struct Agent {
    listener: TcpListener,
    shared: Arc<Shared>,
}

struct Shared {
    token: Option<Token>,
    directory: PathBuf,
    pool: Arc<RamPool>,
    /// The host's network card: all moves with the same settings go through one.
    card: Mutex<Option<(LinkSpec, Nic)>>,
    /// What reads the host's energy.
    metering: Metering,
    /// The agent is ending: what is recorded of disks stays.
    ending: Arc<AtomicBool>,
    /// Moves that this host expects: where to hand their connections.
    expected: Mutex<HashMap<u64, Sender<(Role, std::net::TcpStream)>>>,
}

impl Shared {
    /// This host's card as the move says, with books of the move's own.
    fn nic(&self, link: LinkSpec) -> Nic {
        let mut card = self.card.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((set, nic)) = &*card
            && *set == link
        {
            return nic.for_session();
        }
        let rate = |bytes_per_s: Option<f64>| bytes_per_s.map(ByteRate);
        let delay = Duration::from_nanos(link.delay_ns);
        let nic = Nic::new(rate(link.egress_bytes_per_s), rate(link.ingress_bytes_per_s), delay);
        let own = nic.for_session();
        *card = Some((link, nic));
        own
    }

    fn expected(&self) -> MutexGuard<'_, HashMap<u64, Sender<(Role, std::net::TcpStream)>>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Agent {
    /// Begins to listen.
    ///
    /// # Errors
    /// The address is in use or not this host's; or it lies beyond loopback and there is no token.
    pub async fn bind(setup: AgentSetup) -> io::Result<Self> {
        if !setup.listen.ip().is_loopback() && setup.token.is_none() {
            let what = format!("{} is reachable from other hosts: a token is required", setup.listen);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
        }
        let listener = TcpListener::bind(setup.listen).await?;
        copies::remove_stale(&setup.directory);
        let shared = Shared {
            token: setup.token,
            directory: setup.directory,
            pool: Arc::default(),
            card: Mutex::default(),
            metering: Metering::new(setup.energy),
            ending: Arc::default(),
            expected: Mutex::default(),
        };
        Ok(Agent { listener, shared: Arc::new(shared) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The socket has no address.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `end`; then ends what goes on, keeps what is recorded of disks, and removes the other images.
    pub async fn run(self, end: impl Future<Output = ()>) {
        let (desks, mut all_done) = tokio::sync::mpsc::channel::<()>(1);
        let (ended, is_ended) = tokio::sync::watch::channel(());
        tokio::select! {
            () = self.serve(desks, is_ended) => {}
            () = end => {}
        }
        self.shared.ending.store(true, Ordering::SeqCst);
        drop(ended);
        // One that is in the middle of something is not waited for without end; nor is what it holds then removed.
        let _ = tokio::time::timeout(FAREWELL, all_done.recv()).await;
    }

    /// Serves for ever. Each coordinator's connection holds `desk` as long as it has a guest, and ends with `ended`.
    async fn serve(&self, desk: tokio::sync::mpsc::Sender<()>, ended: tokio::sync::watch::Receiver<()>) {
        let strangers = Arc::new(tokio::sync::Semaphore::new(STRANGERS));
        loop {
            let Ok(place) = Arc::clone(&strangers).acquire_owned().await else { return };
            let Ok((stream, _)) = self.listener.accept().await else {
                // Out of descriptors, as a rule: others must end before the next can come.
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let shared = Arc::clone(&self.shared);
            let (desk, mut ended) = (desk.clone(), ended.clone());
            tokio::spawn(async move {
                let greeted = tokio::select! {
                    greeted = tokio::time::timeout(HELLO_PATIENCE, greet(stream, &shared)) => greeted,
                    _ = ended.changed() => return,
                };
                drop(place);
                if let Ok(Some(stream)) = greeted {
                    coordinate(stream, shared, ended).await;
                }
                drop(desk);
            });
        }
    }
}

/// Hears a hello. A connection of a move is handed to that move; a coordinator's is returned.
async fn greet(mut stream: TcpStream, shared: &Arc<Shared>) -> Option<TcpStream> {
    let judge = |hello: &whimbrel_wire::Hello| match hello.role {
        Role::Coordinator => Ok(()),
        _ if shared.expected().contains_key(&hello.session.0) => Ok(()),
        _ => Err(Refusal::new(RefusalCode::Session, format!("no move {} is expected here", hello.session))),
    };
    // A stranger that doesn't speak the protocol has been told so; there is nobody else to tell.
    let hello = accept_async(&mut stream, shared.token.as_ref(), judge).await.ok()?;
    if hello.role == Role::Coordinator {
        return Some(stream);
    }
    let stream = stream.into_std().ok()?;
    if let Some(expecting) = shared.expected().get(&hello.session.0) {
        // A move that has ended meanwhile needs no more connections.
        let _ = expecting.send((hello.role, stream));
    }
    None
}

/// Carries out a coordinator's commands until its connection ends, or the agent (`ended`); then its guest is discarded.
async fn coordinate(mut stream: TcpStream, shared: Arc<Shared>, mut ended: tokio::sync::watch::Receiver<()>) {
    // Latency of commands is not measured, but it adds up over thousands of trials.
    let _ = stream.set_nodelay(true);
    let mut desk = Desk::new(shared);
    loop {
        let command = tokio::select! {
            command = read_frame_async::<Command>(&mut stream) => command,
            // Nothing is ever sent: the sender is gone.
            _ = ended.changed() => break,
        };
        let Ok((command, _)) = command else { break };
        let (answers, mut given) = tokio::sync::mpsc::unbounded_channel();
        let working = tokio::task::spawn_blocking(move || {
            let last = desk.carry_out(command, &answers);
            let _ = answers.send(last);
            desk
        });
        let heard = loop {
            tokio::select! {
                answer = given.recv() => match answer {
                    Some(answer) if tell(&mut stream, &answer).await.is_ok() => {}
                    answer => break answer.is_none(),
                },
                () = hung_up(&stream) => break false,
                _ = ended.changed() => break false,
            }
        };
        // Nobody listens any more: a move that goes on learns of it by its next report, and ends.
        drop(given);
        match working.await {
            Ok(back) => desk = back,
            Err(_) => return,
        }
        // Who asked and was not answered must not wait: the connection ends.
        if !heard {
            break;
        }
    }
    // Threads end and files go: not on the runtime's own threads.
    let _ = tokio::task::spawn_blocking(move || drop(desk)).await;
}

/// Returns when the other side has closed the connection or it broke; not while a further command waits in it.
async fn hung_up(stream: &TcpStream) {
    if matches!(stream.peek(&mut [0]).await, Ok(1..)) {
        std::future::pending::<()>().await;
    }
}

/// One coordinator's guest on this host.
struct Desk {
    shared: Arc<Shared>,
    runtime: tokio::runtime::Handle,
    guest: Option<Guest>,
    /// The guest has left, or is on its way: it must not run here.
    away: bool,
    expected: Option<Expected>,
    watch: Option<WorkWatch>,
    recorder: Recorder,
    /// What reads the host's energy, once the coordinator wants that.
    meter: Option<Arc<Running>>,
    /// Its readings since the last move began.
    listening: Option<Listening>,
}

impl Desk {
    fn new(shared: Arc<Shared>) -> Self {
        Desk {
            shared,
            runtime: tokio::runtime::Handle::current(),
            guest: None,
            away: false,
            expected: None,
            watch: None,
            recorder: Recorder::new(Mark::Source),
            meter: None,
            listening: None,
        }
    }

    fn carry_out(&mut self, command: Command, answers: &UnboundedSender<Answer>) -> Answer {
        self.try_to(command, answers).unwrap_or_else(|error| Answer::Refused { reason: in_words(&error) })
    }

    fn try_to(&mut self, command: Command, answers: &UnboundedSender<Answer>) -> Result<Answer, DriverError> {
        if self.expected.is_some() && command.needs_the_guest() {
            return Err(DriverError::Protocol("the guest is on its way here".to_owned()));
        }
        match command {
            Command::Create { spec } => {
                self.serves_nobody()?;
                self.discard();
                self.guest = Some(self.make(spec, Begin::New, None)?);
                self.shared.metering.counts(&self.guest()?.machine);
            }
            Command::Run {} => self.run()?,
            Command::Control { for_ns } => {
                let time = Duration::from_nanos(for_ns);
                let measured = energy::during(self.meter.as_ref(), time, || self.guest()?.control(time));
                let ((control, dirtied), power_w) = measured?;
                self.discard();
                return Ok(Answer::Baseline { control: Box::new(control), dirtied, power_w });
            }
            Command::Meter { spec } => return Ok(Answer::Metered { meter: self.start_meter(&spec) }),
            Command::Idle { for_ns } => {
                let time = Duration::from_nanos(for_ns);
                let idle = || {
                    std::thread::sleep(time);
                    Ok(())
                };
                return energy::during(self.meter.as_ref(), time, idle).map(|((), power_w)| Answer::Idled { power_w });
            }
            Command::Energies {} => {
                let (events, conditions) = self.listening.take().map(Listening::end).unwrap_or_default();
                return Ok(Answer::Energies { events, conditions });
            }
            Command::Keep {} => self.keep()?,
            Command::Receive { spec, movement } => self.receive(spec, &movement)?,
            Command::Accelerator {} => {
                return Ok(Answer::Accelerator { accelerator: self.guest()?.machine.accelerator().to_owned() });
            }
            Command::Migrate { to, movement } => return self.migrate(to, &movement, answers),
            Command::Collect {} => return self.collect(),
            Command::Resolve { run } => {
                self.away = !run;
                if run {
                    let guest = self.guest.as_mut().ok_or_else(no_guest)?;
                    guest.is_no_copy();
                    guest.volume.iter().for_each(|volume| volume.come_home());
                    if guest.machine.throttled_ns() > 0 {
                        guest.machine.throttle(0.0);
                    }
                    guest.machine.run();
                }
            }
            Command::Stop {} => return self.stop(),
            Command::Verify {} => {
                let away = self.away;
                let guest = self.guest.as_mut().ok_or_else(no_guest)?;
                return Ok(Answer::Verified { verification: guest.verify(away)? });
            }
            Command::Hash { family, first, count } => {
                let away = self.away;
                let guest = self.guest.as_mut().ok_or_else(no_guest)?;
                return guest.hash(family, Extent { start: first, count }, away);
            }
            Command::Discard {} => self.discard(),
        }
        Ok(Answer::Done {})
    }

    fn make(&self, spec: GuestSpec, begin: Begin, found: Option<copies::Found>) -> Result<Guest, DriverError> {
        let Shared { pool, directory, ending, .. } = &*self.shared;
        Guest::make(spec, begin, found, &HostParts { pool, directory, ending })
    }

    fn guest(&self) -> Result<&Guest, DriverError> {
        self.guest.as_ref().ok_or_else(no_guest)
    }

    fn discard(&mut self) {
        self.watch = None;
        self.guest = None;
        self.away = false;
        self.forget_expected();
    }

    fn forget_expected(&mut self) {
        if let Some(expected) = self.expected.take() {
            // Without its connections the move ends by itself.
            self.shared.expected().remove(&expected.session);
            let _ = expected.thread.join();
        }
    }

    fn run(&mut self) -> Result<(), DriverError> {
        if self.away {
            return Err(DriverError::Protocol("the guest has left this host".to_owned()));
        }
        self.guest()?.machine.run();
        Ok(())
    }

    fn migrate(
        &mut self,
        to: SocketAddr,
        movement: &MoveSpec,
        answers: &UnboundedSender<Answer>,
    ) -> Result<Answer, DriverError> {
        // A reading lies before the request, so that its energy is known, and the end of an earlier check too.
        self.listen(Mark::Source);
        self.guest.iter_mut().try_for_each(Guest::end_witness)?;
        let (requested, began) = (clock::now(), self.cpu_ns());
        if self.away {
            return Err(DriverError::Protocol("the guest has left this host".to_owned()));
        }
        self.watch = None;
        self.recorder = Recorder::new(Mark::Source);
        self.recorder.record_at(requested, Event::Moment { moment: Moment::Requested });
        let nic = self.shared.nic(movement.link);
        let guest = self.guest.as_ref().ok_or_else(no_guest)?;
        guest.machine.reset_silence();
        let watch = WorkWatch::start(Arc::clone(&guest.machine), self.recorder.clone());
        let moved = self.move_away(guest, to, movement, &nic, requested, answers);
        drop(watch);
        let mut left = moved.unwrap_or_else(|error| {
            let reason = in_words(&error);
            self.recorder.record(Event::Failed { reason: reason.clone() });
            Left::without_a_word(Ending::Aborted { reason })
        });
        self.away = !matches!(left.ending, Ending::Aborted { .. });
        if let Some(guest) = self.guest.as_mut().filter(|_| self.away) {
            let seen = movement.own.is_none();
            (guest.left_by, guest.came_by) = (seen.then_some(movement.session), None);
            guest.left_out = left.left_out.take();
        }
        Ok(Answer::Ended { account: Box::new(self.account(left, false, &nic, began)) })
    }

    fn move_away(
        &self,
        guest: &Guest,
        to: SocketAddr,
        movement: &MoveSpec,
        nic: &Nic,
        requested: Nanos,
        answers: &UnboundedSender<Answer>,
    ) -> Result<Left, DriverError> {
        let _within = self.runtime.enter();
        let token = self.shared.token.as_ref();
        let opening = Opening { to, nic, session: movement.session, token };
        if let Some(own) = &movement.own {
            let connections = connect_own(&opening, &guest.own_roles(own)?)?;
            return leave_own(&guest.machine, own, connections, &self.recorder);
        }
        if movement.memory.throttles() {
            guest.machine.can_throttle()?;
        }
        let needs = guest.disk_context().map(|context| movement.disk.needs(&context));
        if guest.volume.as_ref().is_some_and(|volume| volume.is_remote()) && !needs.is_some_and(|needs| needs.remains) {
            let why = "this guest's disk is at another host: it moves on by a strategy that leaves its disk there, or goes \
                       home first";
            return Err(DriverError::Unfit(why.to_owned()));
        }
        let connections = connect_roles(&opening, needs)?;
        let behind = guest.behind.lock().unwrap_or_else(PoisonError::into_inner).take();
        let parts = SourceParts {
            machine: Arc::clone(&guest.machine),
            volume: guest.volume.clone(),
            movement,
            copies: Copies { on_base: guest.is_on_base(), came_by: guest.came_by, behind },
            seed: guest.spec.seed,
            needs,
            connections,
            log: guest.dirty_log()?,
            recorder: self.recorder.clone(),
            requested,
            runtime: self.runtime.clone(),
        };
        let mut left = run_source(parts, &mut |progress| match answers.send(Answer::Progress { progress }) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break("the coordinator hung up".to_owned()),
        });
        match &mut left {
            Ok(left) => *guest.behind.lock().unwrap_or_else(PoisonError::into_inner) = left.behind.take(),
            // What was recorded may have been taken already: nothing is known of the other host's copy.
            Err(_) => guest.volume.iter().for_each(|volume| volume.disarm()),
        }
        left
    }

    /// CPU time of this process and of the guest, in nanoseconds.
    fn cpu_ns(&self) -> u64 {
        cpu_ns() + self.guest.as_ref().map_or(0, |guest| guest.machine.cpu_ns())
    }

    fn account(&self, left: Left, handed_over: bool, nic: &Nic, began_cpu_ns: u64) -> Account {
        let Left { ending, clock, missing_blocks, own, .. } = left;
        Account {
            ending,
            handed_over,
            events: self.recorder.take(),
            clock,
            sent: nic.traffic().sent(),
            own,
            accelerator: self.guest.as_ref().map(|guest| guest.machine.accelerator().to_owned()),
            cpu_ns: self.cpu_ns().saturating_sub(began_cpu_ns),
            missing_blocks,
        }
    }

    fn stop(&mut self) -> Result<Answer, DriverError> {
        self.watch = None;
        let guest = self.guest()?;
        if !self.away {
            guest.machine.pause();
            guest.machine.drain()?;
            guest.volume.iter().for_each(|v| v.drain());
            self.recorder.arrival(&*guest.machine);
        }
        Ok(Answer::Stopped { events: self.recorder.take() })
    }
}

fn no_guest() -> DriverError {
    DriverError::Protocol("there is no guest here".to_owned())
}

/// CPU time of this process, in nanoseconds.
fn cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}
