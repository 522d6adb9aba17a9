//! The seam to the engine: how the run loop has a trial made.
//!
//! The loop knows experiments and files; whoever implements [`Trials`] knows hosts and migrations. [`open`] gives the
//! real one.

use crate::BadInput;
use crate::cli::RunOptions;
use crate::embedded::Embedded;
use crate::experiment::{Cell, Experiment};
use crate::experiment::{Link, Via};
use crate::interrupt::Interrupt;
use std::collections::HashMap;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;
use whimbrel_migration::commands::{DiskSpec, GuestSpec, LinkSpec};
use whimbrel_migration::core::Progress as EngineProgress;
use whimbrel_migration::report::{Facts, Outcome};
use whimbrel_migration::session::{self, Control, EnergyPlan, Host, Hosts, Prepared, TrialPlan};
use whimbrel_model::{ByteRate, Phase, Recorded};
use whimbrel_wire::Token;

/// Makes trials.
pub trait Trials {
    /// Sees that every cell can be run with the hosts at hand, before anything starts.
    ///
    /// # Errors
    /// [`crate::BadInput`] where the experiment asks for what these hosts can't do.
    fn prepare(&mut self, experiment: &Experiment) -> anyhow::Result<()>;

    /// Makes one trial: every guest of the cell, every trip, every attempt at it. Blocks until it is over, and calls `progress` at least every
    /// second meanwhile. The order of the trips returned doesn't matter, and those that were not made may be missing.
    ///
    /// # Errors
    /// The trial could not be made at all. That gives failed rows, and the run goes on.
    fn run(&mut self, request: &Request<'_>, progress: &mut dyn FnMut(Progress)) -> anyhow::Result<Vec<Trip>>;
}

/// One trial to make.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The cell.
    pub cell: &'a Cell,
    /// The trial, from 0.
    pub trial: u32,
    /// Its seed.
    pub seed: u64,
    /// Whether the twin judges.
    pub verify: bool,
}

/// What was recorded of one guest's trip.
#[derive(Clone, Debug, Default)]
pub struct Trip {
    /// The guest, from 0.
    pub guest: u32,
    /// The trip, from 0.
    pub trip: u32,
    /// The attempt at it, from 0.
    pub attempt: u32,
    /// What executes the guest: `none`, `tcg` or `kvm`.
    pub accelerator: String,
    /// Where the hosts are: `one-host` or `two-hosts`.
    pub placement: String,
    /// What the hypervisor says of a migration of its own, as it says it.
    pub own: Option<serde_json::Value>,
    /// What happened, on both hosts.
    pub events: Vec<Recorded>,
    /// What else is known.
    pub facts: Facts,
}

/// How far a trial is, for a display.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// The guest.
    pub guest: u32,
    /// What goes on besides a migration, such as `control run` or `twin check`; empty during a migration.
    pub stage: &'static str,
    /// The migration's phase, if one goes on.
    pub phase: Option<Phase>,
    /// Rounds of memory that have ended.
    pub round: u64,
    /// Payload bytes sent.
    pub sent_bytes: u64,
    /// Bytes that the destination still lacks, as far as is known.
    pub remaining_bytes: u64,
    /// The dirty rate of the last round, in bytes a second.
    pub dirty_bytes_per_s: Option<f64>,
    /// The bandwidth achieved lately, in bytes a second.
    pub bandwidth_bytes_per_s: Option<f64>,
    /// The downtime predicted at the last round's end, in nanoseconds.
    pub predicted_downtime_ns: Option<u64>,
}

/// The real trials: on the hosts that the options name, or on two processes of this host. `interrupt` is raised by
/// Ctrl-C: a trial that goes on then ends with an error, and dropping the trials ends the children.
///
/// # Errors
/// [`crate::BadInput`] where a host can't be reached, is of another version or refuses the token.
pub fn open(options: &RunOptions, interrupt: &Interrupt) -> anyhow::Result<Box<dyn Trials>> {
    let place = match (options.source, options.destination) {
        (Some(source), Some(destination)) => {
            let token = options.token_file.as_deref().map(Token::from_file).transpose();
            if source == destination {
                let why = "is the agent of both hosts; give the addresses of two";
                return Err(BadInput(format!("--source, --destination: {source} {why}")).into());
            }
            let hosts = Hosts::new(Host::at(source), Host::at(destination), token.map_err(bad)?);
            hosts.check().map_err(bad)?;
            let here = source.ip().is_loopback() && destination.ip().is_loopback();
            Place::Remote(hosts, if here || source.ip() == destination.ip() { "one-host" } else { "two-hosts" })
        }
        _ => Place::Embedded(Embedded::new(options.meter.clone())?),
    };
    Ok(Box::new(RealTrials { place, interrupt: interrupt.clone(), controls: HashMap::new() }))
}

fn bad(error: impl std::error::Error + Send + Sync + 'static) -> anyhow::Error {
    BadInput(format!("{:#}", anyhow::Error::from(error))).into()
}

enum Place {
    /// And whether they are one host or two, as far as their addresses tell.
    Remote(Hosts, &'static str),
    Embedded(Embedded),
}

struct RealTrials {
    place: Place,
    interrupt: Interrupt,
    /// Control runs by what they depend on: the guest, its workload and its seed.
    controls: HashMap<String, Control>,
}

impl Trials for RealTrials {
    fn prepare(&mut self, experiment: &Experiment) -> anyhow::Result<()> {
        let netns = experiment.cells.iter().any(|c| c.setting.link.via == Via::Netns);
        match &self.place {
            Place::Remote(..) if netns => {
                let why = "link.via = \"netns\" needs both hosts on this one; leave --source and --destination out";
                Err(BadInput(format!("{}: {why}", experiment.origin)).into())
            }
            Place::Embedded(_) if netns => {
                let two_rates =
                    |c: &Cell| c.setting.link.via == Via::Netns && c.setting.link.destination_rate.is_some();
                if experiment.cells.iter().any(two_rates) {
                    let why =
                        "link.destination_rate: the namespaces' link has one rate; leave it out, or via = \"bucket\"";
                    return Err(BadInput(format!("{}: {why}", experiment.origin)).into());
                }
                whimbrel_wire::netns::available().map_err(bad)
            }
            _ => Ok(()),
        }
    }

    fn run(&mut self, request: &Request<'_>, progress: &mut dyn FnMut(Progress)) -> anyhow::Result<Vec<Trip>> {
        let setting = &request.cell.setting;
        let (hosts, placement) = match &mut self.place {
            Place::Remote(hosts, placement) => (hosts.clone(), *placement),
            Place::Embedded(embedded) => (embedded.hosts(&setting.link)?, "one-host"),
        };
        let made = {
            let _watch = HangUp::watch(&self.interrupt, &hosts);
            make(request, &hosts, &mut self.controls, progress)
        };
        let failed = |(_, trip): &(u32, session::Trip)| trip.facts.outcome == Some(Outcome::Failed);
        if made.as_ref().map_or(true, |made| made.iter().any(failed))
            && let Place::Embedded(embedded) = &mut self.place
        {
            // Whatever state the children are in, the next trial begins with new ones.
            embedded.end();
        }
        let named = |(guest, made): (u32, session::Trip)| Trip {
            guest,
            trip: made.trip,
            attempt: made.attempt,
            accelerator: made.accelerator,
            own: made.own,
            placement: placement.to_owned(),
            events: made.events,
            facts: with_limit(made.facts, &setting.link),
        };
        let made: Vec<Trip> = made?.into_iter().map(named).collect();
        if self.interrupt.raised() && made.iter().any(|trip| trip.facts.outcome != Some(Outcome::Completed)) {
            anyhow::bail!("the trial was interrupted");
        }
        Ok(made)
    }
}

/// What the kernel limits, the hosts' own books don't know.
fn with_limit(mut facts: Facts, link: &Link) -> Facts {
    if link.via == Via::Netns {
        facts.links.iter_mut().for_each(|l| l.limit_bytes_per_s = link.rate.map(|r| r.0));
    }
    facts
}

/// Makes the control run, if there is none yet, and then the trial: all guests at the same time.
fn make(
    request: &Request<'_>,
    hosts: &Hosts,
    controls: &mut HashMap<String, Control>,
    progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<Vec<(u32, session::Trip)>> {
    let setting = &request.cell.setting;
    let plans: Vec<TrialPlan> = (0..setting.guest.count).map(|guest| plan(request, guest)).collect();
    let stage = |stage| Progress { stage, ..Progress::default() };
    let mut baselines = Vec::new();
    for plan in &plans {
        let control_time = setting.energy.control.into();
        // What a user brought knows no seed.
        let workload = setting.software.workload().map(|workload| (plan.guest.seed, workload.resolved()));
        let key = format!("{:?}", (workload, &setting.guest, &setting.energy));
        if !controls.contains_key(&key) {
            progress(stage("control run"));
            controls.insert(
                key.clone(),
                session::control_run(hosts, &plan.guest, control_time, plan.energy.as_ref().ok())?,
            );
        }
        baselines.push(controls[&key].clone());
    }
    progress(stage("filling"));
    let prepared = plans.iter().map(|plan| Prepared::new(hosts, plan)).collect::<Result<Vec<_>, _>>()?;
    progress(stage("settling"));
    std::thread::scope(|scope| {
        let (news, heard) = std::sync::mpsc::channel();
        let moving: Vec<_> = (0..)
            .zip(prepared.into_iter().zip(&baselines))
            .map(|(guest, (prepared, control))| {
                let news = news.clone();
                scope.spawn(move || prepared.run(Some(control), &mut |p| drop(news.send(shown(guest, &p)))))
            })
            .collect();
        drop(news);
        heard.iter().for_each(&mut *progress);
        let mut trips = Vec::new();
        for (guest, moved) in (0..).zip(moving) {
            let moved = moved.join().map_err(|_| anyhow::anyhow!("the trial of guest {guest} panicked"))?;
            trips.extend(moved.into_iter().map(|made| (guest, made)));
        }
        Ok(trips)
    })
}

fn shown(guest: u32, progress: &EngineProgress) -> Progress {
    Progress {
        guest,
        stage: "",
        phase: Some(progress.phase),
        round: progress.round,
        sent_bytes: progress.memory_bytes + progress.disk_bytes,
        remaining_bytes: progress.remaining_bytes,
        dirty_bytes_per_s: progress.dirty_bytes_per_s,
        bandwidth_bytes_per_s: progress.bandwidth_bytes_per_s,
        predicted_downtime_ns: progress.predicted_downtime_ns,
    }
}

/// A cell's setting as the engine wants it. Each guest of a trial has a seed of its own.
fn plan(request: &Request<'_>, guest: u32) -> TrialPlan {
    let (setting, seed) = (&request.cell.setting, request.seed);
    let link = &setting.link;
    let in_kernel = link.via == Via::Netns;
    let rate = |rate: Option<ByteRate>| rate.filter(|_| !in_kernel).map(|r| r.0);
    let slower = match (link.rate, link.destination_rate) {
        (Some(one), Some(other)) if other.0 < one.0 => Some(other),
        (one, other) => one.or(other),
    };
    let side = |egress, ingress| LinkSpec {
        egress_bytes_per_s: rate(egress),
        ingress_bytes_per_s: rate(ingress),
        delay_ns: link.delay.0,
        path_bytes_per_s: slower.map(|r| r.0),
    };
    let of = &setting.guest;
    let disk = |bytes: whimbrel_model::Bytes| DiskSpec {
        bytes: bytes.0,
        filled_bytes: of.filled.0,
        block_bytes: of.block_size.0,
        base_shared: of.base_shared,
    };
    TrialPlan {
        guest: GuestSpec {
            name: format!("guest-{guest}"),
            machine: of.machine.to_owned(),
            seed: if guest == 0 { seed } else { whimbrel_model::rng::derive(seed, u64::from(guest)) >> 11 },
            ram_bytes: of.ram.0,
            vcpus: of.vcpus,
            disk: of.disk.map(disk),
            software: setting.software.clone(),
        },
        memory: setting.memory.clone(),
        own: setting.own.clone(),
        disk: setting.disk.clone().unwrap_or_default(),
        coordinator: setting.coordinator.clone(),
        // What leaves one host must fit into the other's card: else it would queue in front of it, demand replies too.
        source_link: side(slower, None),
        destination_link: side(slower, link.destination_rate),
        settle: of.settle.into(),
        tail: setting.energy.after.into(),
        trips: of.trips,
        attempts: of.attempts,
        verify: request.verify,
        energy: match of.count {
            1 => Ok(EnergyPlan {
                spec: setting.energy.spec(),
                idle: setting.energy.idle.into(),
                both_ways: of.trips > 1,
            }),
            guests => {
                Err(format!("{guests} guests move at once, and a host's counters don't tell whose the energy is"))
            }
        },
    }
}

/// Hangs up on the agents once the person wants the program to end.
struct HangUp {
    over: Option<std::sync::mpsc::Sender<()>>,
}

impl HangUp {
    fn watch(interrupt: &Interrupt, hosts: &Hosts) -> Self {
        let (over, is_over) = std::sync::mpsc::channel::<()>();
        let (interrupt, hosts) = (interrupt.clone(), hosts.clone());
        std::thread::spawn(move || {
            while is_over.recv_timeout(Duration::from_millis(50)) == Err(RecvTimeoutError::Timeout) {
                if interrupt.raised() {
                    hosts.hang_up();
                }
            }
        });
        HangUp { over: Some(over) }
    }
}

impl Drop for HangUp {
    fn drop(&mut self) {
        drop(self.over.take());
    }
}
