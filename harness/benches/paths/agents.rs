//! Two agents of the built program as processes of their own, and the moves that they make.

use crate::tally::median;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use whimbrel_disk::DiskChoice;
use whimbrel_memory::MemoryChoice;
use whimbrel_migration::CoordinatorChoice;
use whimbrel_migration::commands::{GuestSpec, LinkSpec, Software};
use whimbrel_migration::report::{Outcome, Report};
use whimbrel_migration::session::{Host, Hosts, Prepared, TrialPlan, Trip};
use whimbrel_model::{Event, Moment};
use whimbrel_wire::Token;
use whimbrel_wire::netns::{End, Namespaces, connect_in};
use whimbrel_workloads::WorkloadChoice;

/// What both agents want to know.
const SECRET: &[u8] = b"the benchmark's own";

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_whimbrel");

/// Two agents, ended when they are dropped.
pub struct Agents {
    /// How they are reached.
    pub hosts: Hosts,
    /// The source and the destination.
    pub children: [Child; 2],
    _directory: tempfile::TempDir,
}

impl Drop for Agents {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Agents {
    /// Starts both, in namespaces if there are any.
    pub fn start(namespaces: Option<&Arc<Namespaces>>) -> Result<Agents, String> {
        let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
        let token = directory.path().join("token");
        std::fs::write(&token, SECRET).map_err(|e| e.to_string())?;
        let mut children = Vec::new();
        let mut hosts = Vec::new();
        for end in [End::Source, End::Destination] {
            let prefix = namespaces.map(|n| n.command_prefix(end));
            let listen = namespaces.map_or_else(|| "127.0.0.1:0".to_owned(), |_| format!("{}:0", end.address()));
            let mut line: Vec<&str> = prefix.iter().flatten().map(String::as_str).collect();
            line.push(PROGRAM);
            let mut command = Command::new(line[0]);
            command.args(&line[1..]).args(["host", "--until-input-ends", "--listen", &listen]);
            command.arg("--token-file").arg(&token).arg("--directory").arg(directory.path());
            let (child, address) = begin(&mut command)?;
            children.push(child);
            hosts.push(match namespaces {
                None => Host::at(address),
                Some(namespaces) => {
                    let namespaces = Arc::clone(namespaces);
                    let dial = move || connect_in(&namespaces.name(end), address).map_err(std::io::Error::other);
                    Host { address, dial: Arc::new(dial) }
                }
            });
        }
        let [source, destination]: [Host; 2] = hosts.try_into().map_err(|_| "two agents were started")?;
        let children = children.try_into().map_err(|_| "two agents were started")?;
        let hosts = Hosts::new(source, destination, Some(Token::of(SECRET)));
        Ok(Agents { hosts, children, _directory: directory })
    }

    /// Makes one guest and moves it, there and back, so many times: only the first time needs filling.
    pub fn moved(&self, movement: &Movement, trips: u32) -> Result<Vec<Moved>, String> {
        let plan = movement.plan(trips);
        let prepared = Prepared::new(&self.hosts, &plan).map_err(|e| in_words(&e))?;
        prepared.run(None, &mut |_| {}).into_iter().map(Moved::new).collect()
    }

    /// The median of what each of so many trips gives.
    pub fn median_of(
        &self,
        movement: &Movement,
        trips: u32,
        figure: impl Fn(&Moved) -> Result<f64, String>,
    ) -> Result<f64, String> {
        let figures: Result<Vec<f64>, String> = self.moved(movement, trips)?.iter().map(figure).collect();
        Ok(median(&figures?))
    }
}

fn begin(command: &mut Command) -> Result<(Child, SocketAddr), String> {
    // Standard input is held open as long as this program lives: a child ends with it, however it ends.
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("an agent can't be started: {e}"))?;
    let output = child.stdout.take().ok_or("an agent has no output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).map_err(|e| e.to_string())?;
    let address = line.trim().strip_prefix("listening on ").and_then(|a| a.parse().ok());
    match address {
        Some(address) => Ok((child, address)),
        None => {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
            Err(format!("an agent said {line:?} instead of where it listens"))
        }
    }
}

/// A guest without a disk, and how it moves.
pub struct Movement {
    /// Bytes of RAM.
    pub ram_bytes: u64,
    /// The `[workload]` table.
    pub workload: Value,
    /// The `[memory]` table.
    pub memory: Value,
    /// Both hosts' side of the link.
    pub link: LinkSpec,
    /// How long the guest runs before it moves.
    pub settle: Duration,
}

impl Movement {
    /// An idle guest of random content that is paused, copied, and run again.
    pub fn idle(ram_bytes: u64, link: LinkSpec) -> Movement {
        Movement {
            ram_bytes,
            workload: serde_json::json!({ "use": "idle", "content": "random" }),
            memory: serde_json::json!({ "schedule": "stop-and-copy" }),
            link,
            settle: Duration::from_millis(20),
        }
    }

    /// The guest as the agents know it.
    pub fn guest(&self) -> GuestSpec {
        let table = serde_json::from_value(self.workload.clone()).expect("a table");
        GuestSpec {
            name: "bench".to_owned(),
            machine: "thread".to_owned(),
            seed: 1,
            ram_bytes: self.ram_bytes,
            vcpus: 1,
            disk: None,
            software: Software::Workload(WorkloadChoice::read(&table).expect("a workload")),
        }
    }

    fn plan(&self, trips: u32) -> TrialPlan {
        let table = serde_json::from_value(self.memory.clone()).expect("a table");
        TrialPlan {
            guest: self.guest(),
            memory: MemoryChoice::read(&table).expect("a memory strategy"),
            own: None,
            disk: DiskChoice::default(),
            coordinator: CoordinatorChoice::default(),
            source_link: self.link,
            destination_link: self.link,
            settle: self.settle,
            tail: Duration::ZERO,
            trips,
            attempts: 1,
            verify: false,
            energy: Err("no energy is wanted here".to_owned()),
        }
    }
}

/// A completed move.
pub struct Moved {
    trip: Trip,
    /// Its report.
    pub report: Report,
}

impl Moved {
    fn new(trip: Trip) -> Result<Moved, String> {
        let report = Report::from_events(&trip.events, &trip.facts);
        match (report.outcome, &report.reason) {
            (Outcome::Completed, _) => Ok(Moved { trip, report }),
            (outcome, reason) => Err(format!("the move ended {outcome:?}: {reason:?}")),
        }
    }

    /// Seconds from one instant to another. The agents share this host's clock, so no offset comes in.
    pub fn seconds(&self, from: Moment, to: Moment) -> Result<f64, String> {
        let at = |wanted| {
            let event = Event::Moment { moment: wanted };
            let found = self.trip.events.iter().find(|e| e.event == event).map(|e| e.at_ns.0 as f64 / 1e9);
            found.ok_or_else(|| format!("{wanted:?} was not reached"))
        };
        Ok(at(to)? - at(from)?)
    }

    /// RAM over the time from both ends being ready to the last page being there, in bytes a second.
    pub fn copy_rate(&self) -> Result<f64, String> {
        Ok(self.report.ram_bytes as f64 / self.seconds(Moment::SetupDone, Moment::MemoryCarried)?)
    }
}

/// An error with its causes.
pub fn in_words(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
