//! Both hosts as child processes of this one: the default, and the same program as with real hosts.

use crate::cli::MeterPlace;
use crate::experiment::setting::{Link, Via};
use anyhow::Context;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use whimbrel_migration::session::{Host, Hosts};
use whimbrel_model::ByteRate;
use whimbrel_wire::Token;
use whimbrel_wire::netns::{End, Namespaces, connect_in, remove_stale};

/// What the namespaces of this program are called.
const PREFIX: &str = "whimbrel";

/// The children, and the folder for their disk images.
pub(crate) struct Embedded {
    directory: tempfile::TempDir,
    meter: MeterPlace,
    running: Option<Running>,
}

/// Two agents, and the link that they were started for.
struct Running {
    via: Via,
    rate: Option<ByteRate>,
    hosts: Hosts,
    // The agents end before their namespaces go.
    _agents: [Agent; 2],
    _namespaces: Option<Arc<Namespaces>>,
}

/// A child that is ended when it is dropped.
struct Agent(Child);

/// How long a child may take to end by itself, and how often it is looked at.
const ENDING: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(2);

impl Drop for Agent {
    fn drop(&mut self) {
        // With its input it ends in order, and removes what it has made.
        drop(self.0.stdin.take());
        let end = Instant::now() + ENDING;
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(LOOK_EVERY);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Embedded {
    pub(crate) fn new(meter: MeterPlace) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("whimbrel-").tempdir().context("no folder for disk images")?;
        Ok(Embedded { directory, meter, running: None })
    }

    /// Two agents whose link is as asked for.
    pub(crate) fn hosts(&mut self, link: &Link) -> anyhow::Result<Hosts> {
        // Buckets are set for each move; what the kernel limits is fixed when the namespaces are made.
        let rate = link.rate.filter(|_| link.via == Via::Netns);
        if !self.running.as_ref().is_some_and(|r| r.via == link.via && r.rate == rate) {
            self.running = None;
            self.running = Some(start(link.via, rate, self.directory.path(), &self.meter)?);
        }
        self.running.as_ref().map(|r| r.hosts.clone()).context("the agents run")
    }

    /// Ends the children.
    pub(crate) fn end(&mut self) {
        self.running = None;
    }
}

fn start(via: Via, rate: Option<ByteRate>, directory: &Path, meter: &MeterPlace) -> anyhow::Result<Running> {
    let namespaces = match via {
        Via::Bucket => None,
        Via::Netns => {
            remove_stale(PREFIX)?;
            Some(Arc::new(Namespaces::create(rate, PREFIX)?))
        }
    };
    let secret = format!(
        "{:016x}{:016x}",
        std::process::id(),
        rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_nsec
    );
    let token_file = directory.join("token");
    std::fs::write(&token_file, &secret).context("the agents' token")?;
    let begin = |end| start_agent(namespaces.as_deref().map(|n| (n, end)), directory, &token_file, meter);
    let (source, source_address) = begin(End::Source)?;
    let (destination, destination_address) = begin(End::Destination)?;
    let host = |end, address: SocketAddr| match &namespaces {
        None => Host::at(address),
        Some(namespaces) => {
            let namespaces = Arc::clone(namespaces);
            let dial = move || connect_in(&namespaces.name(end), address).map_err(std::io::Error::other);
            Host { address, dial: Arc::new(dial) }
        }
    };
    let (from, to) = (host(End::Source, source_address), host(End::Destination, destination_address));
    let hosts = Hosts::new(from, to, Some(Token::of(secret.as_bytes())));
    Ok(Running { via, rate, hosts, _agents: [source, destination], _namespaces: namespaces })
}

fn start_agent(
    inside: Option<(&Namespaces, End)>,
    directory: &Path,
    token_file: &Path,
    meter: &MeterPlace,
) -> anyhow::Result<(Agent, SocketAddr)> {
    let program = std::env::current_exe().context("the path of this program")?;
    let mut command = match inside {
        None => Command::new(&program),
        Some((namespaces, end)) => {
            let prefix = namespaces.command_prefix(end);
            let mut command = Command::new(&prefix[0]);
            command.args(&prefix[1..]).arg(&program);
            command
        }
    };
    let listen = inside.map_or_else(|| "127.0.0.1:0".to_owned(), |(_, end)| format!("{}:0", end.address()));
    command.args(["host", "--until-input-ends", "--listen", &listen]);
    command.arg("--token-file").arg(token_file).arg("--directory").arg(directory);
    if let Some(root) = &meter.energy_root {
        command.arg("--energy-root").arg(root);
    }
    if let Some(line) = &meter.meter_command {
        command.arg("--meter-command").arg(line);
    }
    // Standard input is held open as long as this program lives: a child ends with it, however it ends.
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut agent = Agent(command.spawn().context("an agent can't be started")?);
    let output = agent.0.stdout.take().context("an agent's output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).context("an agent's first line")?;
    let address = line.trim().strip_prefix("listening on ").and_then(|a| a.parse().ok());
    Ok((agent, address.with_context(|| format!("an agent said {line:?} instead of where it listens"))?))
}
