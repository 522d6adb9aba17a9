//! A trial over two hosts, as the coordinator sees it: makes the guest, moves it, decides what is undecided, and has it
//! judged.

mod energy;
mod hosts;
mod judge;

pub use energy::{EnergyPlan, Powers};
pub use hosts::{Dial, Host, Hosts, SessionError};

use crate::commands::{Account, Answer, Command, GuestSpec, LinkSpec, MoveSpec, Software};
use crate::coordinator::CoordinatorChoice;
use crate::core::{Ending, Progress};
use crate::metrics::METRICS;
use crate::report::{Alive, ControlRun, Cpu, Facts, LinkCounters, OfferedFacts, Outcome};
use hosts::Agent;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use whimbrel_disk::{BuildContext as BlocksContext, DiskChoice};
use whimbrel_machine::{MACHINES, OwnMove};
use whimbrel_memory::MemoryChoice;
use whimbrel_model::{Event, Family, Moment, PAGE_BYTES, Recorded};
use whimbrel_workloads::BuildContext;

/// How long an agent that has gone between two moves may take to be back.
const RESTART_PATIENCE: Duration = Duration::from_secs(30);

/// Between two calls of one that isn't back.
const CALL_AGAIN: Duration = Duration::from_millis(100);

/// One trial: a guest, and how it moves.
#[derive(Clone, Debug)]
pub struct TrialPlan {
    /// The guest.
    pub guest: GuestSpec,
    /// How memory moves.
    pub memory: MemoryChoice,
    /// The hypervisor's own migration that moves the guest instead.
    pub own: Option<OwnMove>,
    /// How the disk moves.
    pub disk: DiskChoice,
    /// How memory and disk share the time and the link.
    pub coordinator: CoordinatorChoice,
    /// The source's side of the link.
    pub source_link: LinkSpec,
    /// The destination's side of the link.
    pub destination_link: LinkSpec,
    /// How long the guest runs before it moves.
    pub settle: Duration,
    /// How long it runs after each move, or attempt, before it is looked at.
    pub tail: Duration,
    /// Moves: 2 is there and back.
    pub trips: u32,
    /// How often a move is attempted, until the guest is no longer where it was.
    pub attempts: u32,
    /// Whether the twin judges.
    pub verify: bool,
    /// How energy is measured, or why it isn't.
    pub energy: Result<EnergyPlan, String>,
}

/// What a control run found.
#[derive(Clone, Debug)]
pub struct Control {
    /// The guest's progress.
    pub run: ControlRun,
    /// What the workload asks for and did.
    pub offered: OfferedFacts,
    /// The hosts' powers, with the guest at the source and then with the guest at the destination.
    pub powers: [Powers; 2],
}

/// One trip of one guest, or an attempt at it.
#[derive(Clone, Debug)]
pub struct Trip {
    /// Which trip, from 0.
    pub trip: u32,
    /// Which attempt at it, from 0.
    pub attempt: u32,
    /// Everything that both hosts recorded.
    pub events: Vec<Recorded>,
    /// Everything else that the report is made of.
    pub facts: Facts,
    /// What executes the guest: `none`, `tcg` or `kvm`; [`UNKNOWN`] where the move never began, or no host told.
    pub accelerator: String,
    /// What the hypervisor says of a migration of its own, as it says it.
    pub own: Option<serde_json::Value>,
    /// Blocks that the destination lacked when the move was requested.
    pub missing_blocks: Option<u64>,
}

/// Runs the guest for a time without any migration; where energy is to be measured, both hosts' powers idle and meanwhile.
///
/// # Errors
/// An agent is gone or refuses.
pub fn control_run(
    hosts: &Hosts,
    guest: &GuestSpec,
    time: Duration,
    energy: Option<&EnergyPlan>,
) -> Result<Control, SessionError> {
    let (mut here, mut there) = (hosts.call("source")?, hosts.call("destination")?);
    let (baseline, out) = energy::baseline(&mut here, &mut there, guest, time, energy)?;
    let apart = energy::apart(&here, &there);
    let back = match energy {
        // What the workload costs at the other host, its own control run tells.
        Some(plan) if plan.both_ways && apart => energy::baseline(&mut there, &mut here, guest, time, energy)?.1,
        _ => out.swapped(),
    };
    let (run, dirtied) = baseline;
    let shape = crate::guest::shape(guest);
    let shape = shape.map_err(|e| SessionError::Refused { host: "source", reason: crate::driver::in_words(&e) })?;
    let asked = guest.software.workload().map(|w| w.offered(&BuildContext::new(shape, guest.seed))).unwrap_or_default();
    let offered = OfferedFacts {
        write_bytes_per_s: asked.write_bytes_per_s,
        achieved_bytes_per_s: achieved(&run, guest),
        unique_dirty_bytes_per_s: dirtied.map(|(pages, ns)| pages as f64 * PAGE_BYTES as f64 * 1e9 / ns.max(1) as f64),
        interval_ns: dirtied.map(|(_, ns)| ns),
        working_set_bytes: asked.working_set_bytes,
    };
    Ok(Control { run, offered, powers: [out, back] })
}

/// The rate of page writes in the control run, where the workload's unit of work is a written page.
fn achieved(run: &ControlRun, guest: &GuestSpec) -> Option<f64> {
    let (first, last) = (run.work.first()?, run.work.last()?);
    let ns = last.at_ns.checked_sub(first.at_ns).filter(|ns| *ns > 0)?;
    (guest.software.workload()?.unit() == "pages")
        .then(|| last.units.saturating_sub(first.units) as f64 * PAGE_BYTES as f64 * 1e9 / ns as f64)
}

/// A guest that is made and waits, before operation 0, to be run and moved.
pub struct Prepared<'a> {
    hosts: Hosts,
    plan: &'a TrialPlan,
    here: Agent,
    there: Agent,
}

impl<'a> Prepared<'a> {
    /// Makes the guest at the source.
    ///
    /// # Errors
    /// An agent is gone, or refuses to make the guest.
    pub fn new(hosts: &Hosts, plan: &'a TrialPlan) -> Result<Self, SessionError> {
        let mut here = hosts.call("source")?;
        let mut there = hosts.call("destination")?;
        match &plan.energy {
            Ok(energy) => {
                here.start_meter(&energy.spec)?;
                there.start_meter(&energy.spec)?;
            }
            Err(why) => (here.meter, there.meter) = (Err(why.clone()), Err(why.clone())),
        }
        here.done(&Command::Create { spec: plan.guest.clone() })?;
        Ok(Prepared { hosts: hosts.clone(), plan, here, there })
    }

    /// Runs the guest and makes all its trips, in order, each by as many attempts as it takes and may take. A trip that fails,
    /// or can't begin, is a trip too, and the last.
    pub fn run(self, control: Option<&Control>, progress: &mut dyn FnMut(Progress)) -> Vec<Trip> {
        let Prepared { hosts, plan, mut here, mut there } = self;
        let mut trips: Vec<Trip> = Vec::new();
        let mut earlier = Vec::new();
        let (mut trip, mut attempt) = (0, 0);
        while trip < plan.trips.max(1) {
            let movement = Move { hosts: &hosts, plan, control, trip, attempt, session: session_of(plan) };
            let made = movement.settle(&mut here);
            let made = made.and_then(|()| movement.make(&mut here, &mut there, &earlier, progress));
            trips.push(made.unwrap_or_else(|error| movement.failed(&in_words(&error))));
            earlier.push(movement.session);
            attempt += 1;
            match trips.last().and_then(|last| last.facts.outcome) {
                Some(Outcome::Completed) => {
                    (trip, attempt) = (trip + 1, 0);
                    if trip < plan.trips {
                        // What can't be kept moves again.
                        let _ = here.done(&Command::Keep {});
                    }
                    std::mem::swap(&mut here, &mut there);
                }
                Some(Outcome::Aborted) if attempt < plan.attempts => {}
                _ => break,
            }
        }
        // What the guest took up is free before the next trial begins. A host that is gone has nothing to free.
        for agent in [&mut here, &mut there] {
            let _ = agent.done(&Command::Discard {});
        }
        trips
    }
}

fn session_of(plan: &TrialPlan) -> u64 {
    whimbrel_model::rng::derive(plan.guest.seed ^ u64::from(std::process::id()), nonce())
}

/// What a row's `accelerator` says where the move never began, or no host told what executed the guest.
pub const UNKNOWN: &str = "unknown";

/// One move of a trial.
struct Move<'a> {
    hosts: &'a Hosts,
    plan: &'a TrialPlan,
    control: Option<&'a Control>,
    trip: u32,
    attempt: u32,
    session: u64,
}

impl Move<'_> {
    /// Lets the guest run where it is, for as long as it is to run before it moves.
    fn settle(&self, here: &mut Agent) -> Result<(), SessionError> {
        here.done(&Command::Run {})?;
        std::thread::sleep(self.plan.settle);
        Ok(())
    }

    /// The trip that could not begin, or of which nothing is known.
    fn failed(&self, why: &str) -> Trip {
        let event = Event::Failed { reason: why.to_owned() };
        let events = vec![Recorded { at_ns: whimbrel_model::Nanos(0), host: whimbrel_model::Mark::Source, event }];
        let facts = Facts { outcome: Some(Outcome::Failed), ..self.sizes() };
        self.trip(events, facts, UNKNOWN.to_owned(), None)
    }

    fn trip(&self, events: Vec<Recorded>, facts: Facts, accelerator: String, own: Option<serde_json::Value>) -> Trip {
        Trip { trip: self.trip, attempt: self.attempt, events, facts, accelerator, own, missing_blocks: None }
    }

    fn sizes(&self) -> Facts {
        let guest = &self.plan.guest;
        Facts {
            ram_bytes: guest.ram_bytes,
            disk_bytes: guest.disk.map_or(0, |d| d.bytes),
            page_size_bytes: PAGE_BYTES,
            block_size_bytes: guest.disk.map_or(whimbrel_disk::BLOCK_BYTES, |d| d.block_bytes),
            ..Facts::default()
        }
    }

    fn make(
        &self,
        here: &mut Agent,
        there: &mut Agent,
        earlier: &[u64],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Trip, SessionError> {
        let links = [self.plan.source_link, self.plan.destination_link];
        let (out, back) = if self.trip.is_multiple_of(2) { (links[0], links[1]) } else { (links[1], links[0]) };
        let movement = |link| MoveSpec {
            session: self.session,
            link,
            memory: self.plan.memory.clone(),
            own: self.plan.own.clone(),
            disk: self.plan.disk.clone(),
            coordinator: self.plan.coordinator.clone(),
            earlier: earlier.to_vec(),
            recorded: self.plan.attempts > 1,
            witness: self.plan.verify && self.plan.own.is_none(),
        };
        self.announce(there, &Command::Receive { spec: self.plan.guest.clone(), movement: movement(back) })?;
        same_accelerator(here, there)?;
        let migrate = Command::Migrate { to: there.address, movement: movement(out) };
        let ended = |answer| match answer {
            Answer::Ended { account } => Ok(account),
            other => Err(format!("{other:?}")),
        };
        let left = here.ask_showing(&migrate, progress).map(ended);
        let left: Result<Box<Account>, String> = left.map_err(|e| in_words(&e)).and_then(|a| a);
        // A move that didn't get through its setup has nobody at the other end to be waited for.
        let met = left.as_ref().map_or(true, |a| instant(&a.events, Moment::SetupDone).is_some());
        let came: Result<Box<Account>, String> = match met {
            true => there.ask(&Command::Collect {}).map(ended).map_err(|e| in_words(&e)).and_then(|a| a),
            false => Err("the move never began".to_owned()),
        };
        let outcome = self.settle_outcome(here, there, &left, &came);
        // Wherever it is alive, it shows it.
        if matches!(outcome.0, Outcome::Completed | Outcome::Aborted) {
            std::thread::sleep(self.plan.tail);
        }
        let mut trip = self.gather(here, there, &left, &came, outcome, (out, back));
        if !met && earlier.is_empty() {
            // Nothing was there yet: what another attempt begins with is new again, and so on the base image, if there is one.
            // What earlier moves have left there it needs.
            let _ = there.done(&Command::Discard {});
        }
        trip.missing_blocks = left.as_ref().ok().and_then(|a| a.missing_blocks);
        Ok(trip)
    }

    /// Has the destination expect the guest. Where its agent was started anew since the move before, it is called again.
    fn announce(&self, there: &mut Agent, receive: &Command) -> Result<(), SessionError> {
        match there.done(receive) {
            Err(SessionError::Agent { .. }) if self.trip + self.attempt > 0 => {}
            said => return said,
        }
        let until = Instant::now() + RESTART_PATIENCE;
        *there = loop {
            match self.hosts.call(there.host) {
                Err(SessionError::Agent { .. }) if Instant::now() < until => std::thread::sleep(CALL_AGAIN),
                called => break called?,
            }
        };
        match &self.plan.energy {
            Ok(energy) => there.start_meter(&energy.spec)?,
            Err(why) => there.meter = Err(why.clone()),
        }
        there.done(receive)
    }

    /// What became of the guest, and why it isn't whole at the destination. Decides what the hosts could not.
    fn settle_outcome(
        &self,
        here: &mut Agent,
        there: &mut Agent,
        left: &Result<Box<Account>, String>,
        came: &Result<Box<Account>, String>,
    ) -> (Outcome, Option<String>) {
        let completed = || (Outcome::Completed, None);
        match (left.as_ref().map(|a| &a.ending), came.as_ref().map(|a| (&a.ending, a.handed_over))) {
            (Ok(Ending::Completed), Ok((Ending::Completed, _))) => completed(),
            (Ok(Ending::Aborted { reason }), Ok((_, true))) if self.plan.own.is_some() => {
                (Outcome::Lost, Some(format!("{reason}; but the guest ran at the destination")))
            }
            (Ok(Ending::Aborted { reason }), there) => {
                // Where the other end's failure cut the link, the source knows only the cut.
                let theirs = match there {
                    Ok((Ending::Aborted { reason: theirs }, _)) if !theirs.contains("the source gave up") => {
                        Some(theirs)
                    }
                    _ => None,
                };
                let theirs = theirs.map_or(String::new(), |theirs| format!("; the destination says: {theirs}"));
                (Outcome::Aborted, Some(format!("{reason}{theirs}")))
            }
            (Ok(Ending::Lost { .. } | Ending::Undecided { .. }), Ok((Ending::Completed, _))) => completed(),
            (Ok(Ending::Undecided { reason }), Ok((_, false))) => {
                // The destination was never told to run the guest, and now never will be.
                let voided = there.done(&Command::Resolve { run: false });
                match voided.and_then(|()| here.done(&Command::Resolve { run: true })) {
                    Ok(()) => (Outcome::Aborted, Some(reason.clone())),
                    Err(error) => (Outcome::Undecided, Some(format!("{reason}; then {}", in_words(&error)))),
                }
            }
            (Ok(Ending::Undecided { reason }), Err(gone)) => {
                (Outcome::Undecided, Some(format!("{reason}; the destination doesn't answer: {gone}")))
            }
            (Ok(Ending::Completed), Err(gone)) => (Outcome::Lost, Some(format!("after the move: {gone}"))),
            (Ok(Ending::Completed), Ok((ending, _))) => (Outcome::Lost, Some(format!("{ending:?} at the destination"))),
            (Ok(Ending::Lost { reason } | Ending::Undecided { reason }), _) => (Outcome::Lost, Some(reason.clone())),
            (Err(gone), Ok((Ending::Completed, _))) => {
                (Outcome::Completed, Some(format!("the source is gone: {gone}")))
            }
            (Err(gone), _) => (Outcome::Lost, Some(gone.clone())),
        }
    }

    fn gather(
        &self,
        here: &mut Agent,
        there: &mut Agent,
        left: &Result<Box<Account>, String>,
        came: &Result<Box<Account>, String>,
        (outcome, reason): (Outcome, Option<String>),
        (out, back): (LinkSpec, LinkSpec),
    ) -> Trip {
        let mut events: Vec<Recorded> = Vec::new();
        events.extend(left.iter().chain(came).flat_map(|a| a.events.iter().cloned()));
        let at_destination = outcome == Outcome::Completed;
        let powers = self.control.map(|c| &c.powers[self.trip as usize % 2]);
        let (energies, energy) = energy::gather(here, there, powers);
        events.extend(energies);
        let (mut outcome, mut reason, mut alive, mut ended_there) = (outcome, reason, None, false);
        if matches!(outcome, Outcome::Completed | Outcome::Aborted) {
            match stop(if at_destination { there } else { here }) {
                Ok(stopped) => {
                    alive = Some(Alive { source: !at_destination, destination: at_destination });
                    events.extend(stopped);
                }
                // It should have run, and does not: its disk failed, or its host is gone.
                Err(error) => {
                    ended_there = at_destination && matches!(error, SessionError::Refused { .. });
                    outcome = Outcome::Lost;
                    let before = reason.map_or(String::new(), |reason| format!("{reason}; then "));
                    reason = Some(format!("{before}{}", in_words(&error)));
                }
            }
        }
        if let Some(reason) = &reason {
            let at_ns = events.iter().map(|e| e.at_ns).max().unwrap_or_default();
            let host = whimbrel_model::Mark::Source;
            let event = Event::Failed { reason: reason.clone() };
            if !events.iter().any(|e| e.event == event) {
                events.push(Recorded { at_ns, host, event });
            }
        }
        let source = left.as_ref().ok();
        let destination = came.as_ref().ok();
        let payload = payload_bytes(&events);
        let sent = |account: Option<&Box<Account>>| account.map(|a| a.sent);
        // Where a host is gone, what it sent is not known; the other one's is.
        let wire = sent(source).map(|a| a.wire_bytes + sent(destination).map_or(0, |b| b.wire_bytes));
        let names = if self.trip.is_multiple_of(2) { ["source", "destination"] } else { ["destination", "source"] };
        let facts = Facts {
            clock: source.and_then(|a| a.clock),
            control_bytes: wire.map(|wire| wire.saturating_sub(payload)),
            links: vec![
                link(names[0], names[1], out, sent(source), payload),
                link(names[1], names[0], back, sent(destination), 0),
            ],
            cpu: Cpu { source_ns: source.map(|a| a.cpu_ns), destination_ns: destination.map(|a| a.cpu_ns) },
            energy,
            verify: self.verify(here, there, outcome, ended_there),
            control: self.control.map(|c| c.run.clone()),
            offered: self.control.map(|c| c.offered).unwrap_or_default(),
            alive,
            outcome: Some(outcome),
            unmeasured: self.unmeasured(),
            ..self.sizes()
        };
        let own = source.and_then(|account| account.own.clone());
        // Both hosts' are the same, or it would not have moved.
        let accelerator = [source, destination].into_iter().flatten().find_map(|a| a.accelerator.clone());
        self.trip(events, facts, accelerator.unwrap_or_else(|| UNKNOWN.to_owned()), own)
    }

    /// What a row can't say of this move by design, and why.
    fn unmeasured(&self) -> BTreeMap<String, String> {
        let mut reasons = match &self.plan.own {
            Some(own) => self.uncounted(own),
            None => self.never_whole(),
        };
        if let Software::Brought(brought) = &self.plan.guest.software {
            let offered = ["write_bytes_per_s", "achieved_bytes_per_s", "working_set_bytes"];
            let of_its_own = METRICS.iter().map(|metric| metric.name).filter(|name| match name.split_once('.') {
                Some(("work", _)) => true,
                Some(("offered", field)) => offered.contains(&field),
                _ => false,
            });
            let why = "the guest is its user's: nothing tells of the work that it does";
            reasons.extend(of_its_own.map(|name| (name.to_owned(), why.to_owned())));
            reasons.insert(
                "guest_clock_lag_ns".to_owned(),
                "the guest is its user's: nothing tells of its clock".to_owned(),
            );
            if brought.probe.is_none() {
                let why = "nothing asks the guest: guest.qemu.probe_port is not set";
                reasons.insert("guest_gap_ns".to_owned(), why.to_owned());
            }
        }
        reasons
    }

    /// What the hypervisor doesn't count.
    fn uncounted(&self, own: &OwnMove) -> BTreeMap<String, String> {
        let why = "the hypervisor counts the bytes of its copy, as the row's `own` says, and no blocks".to_owned();
        let blocks = own.disk.iter().map(|_| ("blocks".to_owned(), why.clone()));
        let kind = MACHINES.find(&self.plan.guest.machine).ok();
        let memory = kind.and_then(|kind| kind.build.own.find(&own.memory).ok());
        let why = "the hypervisor fetches what a vCPU waits for, and says how often at most, in the row's `own`";
        let faults =
            memory.filter(|memory| memory.build.postcopy).map(|_| ("memory_faults".to_owned(), why.to_owned()));
        let why = "the hypervisor doesn't tell what it sends for the first time from what it sends again: all counts as first";
        let again = ["bytes.memory_again", "bytes.disk_again"].map(|field| (field.to_owned(), why.to_owned()));
        let why = "how much of the vCPUs' time the hypervisor takes, it doesn't say";
        let throttle = ("work.throttle_ns".to_owned(), why.to_owned());
        let why = "the hypervisor doesn't tell the parts of its guest's downtime apart";
        let parts = METRICS.iter().filter(|metric| metric.name.starts_with("downtime_parts_ns."));
        let parts = parts.map(|metric| (metric.name.to_owned(), why.to_owned()));
        blocks.chain(faults).chain(again).chain([throttle]).chain(parts).collect()
    }

    /// What never comes to its end where the disk stays behind.
    fn never_whole(&self) -> BTreeMap<String, String> {
        let disk = self.plan.guest.disk.map(|disk| {
            let (blocks, block_bytes) = (disk.bytes / disk.block_bytes, disk.block_bytes);
            self.plan.disk.needs(&BlocksContext { blocks, block_bytes, seed: self.plan.guest.seed })
        });
        let why = "the disk remains where the guest began".to_owned();
        disk.filter(|needs| needs.remains).map(|_| ("disk_whole_ns".to_owned(), why)).into_iter().collect()
    }
}

/// Sees that a guest meets at the destination what executes it at the source: its processor would be another one, and so what it has
/// found out about it.
fn same_accelerator(here: &mut Agent, there: &mut Agent) -> Result<(), SessionError> {
    let ask = |agent: &mut Agent| {
        agent.expect(&Command::Accelerator {}, |answer| match answer {
            Answer::Accelerator { accelerator } => Some(accelerator),
            _ => None,
        })
    };
    // What becomes of a move whose host is gone, the move itself tells.
    let (Ok(ours), Ok(theirs)) = (ask(here), ask(there)) else { return Ok(()) };
    if ours == theirs {
        return Ok(());
    }
    let reason = format!(
        "its guests are executed by {theirs}, and the guest is by {ours} where it is; `whimbrel doctor` on both hosts says why"
    );
    Err(SessionError::Refused { host: there.host, reason })
}

/// Pauses the guest before it is judged: it would run on meanwhile, and the twin would have all of that to do too.
fn stop(holder: &mut Agent) -> Result<Vec<Recorded>, SessionError> {
    holder.expect(&Command::Stop {}, |a| match a {
        Answer::Stopped { events } => Some(events),
        _ => None,
    })
}

fn payload_bytes(events: &[Recorded]) -> u64 {
    let sent = events.iter().map(|e| match &e.event {
        Event::Sent { sent, family: Family::Memory | Family::Disk, .. } => sent.bytes(),
        _ => 0,
    });
    sent.sum()
}

fn instant(events: &[Recorded], wanted: Moment) -> Option<whimbrel_model::Nanos> {
    events.iter().find(|e| e.event == Event::Moment { moment: wanted }).map(|e| e.at_ns)
}

fn link(
    from: &str,
    to: &str,
    spec: LinkSpec,
    sent: Option<whimbrel_wire::nic::FlowReading>,
    payload_bytes: u64,
) -> LinkCounters {
    LinkCounters {
        from: from.to_owned(),
        to: to.to_owned(),
        limit_bytes_per_s: spec.egress_bytes_per_s,
        payload_bytes,
        wire_bytes: sent.map(|s| s.wire_bytes),
        in_use_ns: sent.and_then(|s| Some(s.last?.since(s.first?).0)),
    }
}

/// A number that no other call of this process gets.
fn nonce() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    number ^ whimbrel_wire::clock::now().0.rotate_left(20)
}

fn in_words(error: &SessionError) -> String {
    crate::driver::in_words(error)
}
