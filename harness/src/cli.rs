//! The command line. Help, completions and the man page are made of these definitions.

use crate::families::Family;
use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use whimbrel_model::quantity::{self, QuantityError};
use whimbrel_model::{ByteRate, Bytes};

/// A testbed for live migration of virtual machines, memory and disk together.
///
/// Without a command, the built-in experiment `quickstart` runs.
#[derive(Debug, Parser)]
#[command(name = "whimbrel", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to run the quickstart.
    #[command(flatten)]
    pub options: RunOptions,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run an experiment: every trial of every cell
    Run {
        /// The experiment file; without one, the built-in quickstart
        experiment: Option<PathBuf>,
        /// How.
        #[command(flatten)]
        options: RunOptions,
    },
    /// Be the agent of a host, to which guests move or from which they leave
    Host {
        /// The address to listen on
        #[arg(long, value_name = "ADDR")]
        listen: SocketAddr,
        /// A file with the secret that a coordinator and the other host must know; required beyond loopback
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// The folder for disk images; otherwise the system's folder for temporary files
        #[arg(long, value_name = "DIR")]
        directory: Option<PathBuf>,
        /// End when standard input does: for a program that starts agents and may itself be killed
        #[arg(long)]
        until_input_ends: bool,
        /// Where its meters are.
        #[command(flatten)]
        meter: MeterPlace,
    },
    /// List what an experiment may name
    List {
        /// Which family
        #[arg(value_enum)]
        kind: Family,
        /// As an array of {name, summary, parameters, source}
        #[arg(long)]
        json: bool,
    },
    /// Explain a field of a row: unit, interval, clock, definition
    Explain {
        /// The field, such as downtime_ns or bytes.memory_first; without one, all
        metric: Option<String>,
    },
    /// Say what of this host's kernel and programs can be used, and what would help
    Doctor {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Use the NBD code on its own
    Nbd {
        /// What to do with it.
        #[command(subcommand)]
        command: NbdCommand,
    },
    /// Read this host's meters, and compute with energies
    Energy {
        /// What to do.
        #[command(subcommand)]
        command: EnergyCommand,
    },
    /// Prepare guests of machine qemu
    Guest {
        /// What to prepare.
        #[command(subcommand)]
        command: GuestCommand,
    },
    /// Print a completion script
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the man page, in roff
    Man {
        /// Of which command; without one, of the program
        command: Option<String>,
    },
}

/// What `whimbrel nbd` can do.
#[derive(Debug, Subcommand)]
pub enum NbdCommand {
    /// Serve raw images as NBD exports until interrupted
    Serve(NbdServe),
}

/// What `whimbrel nbd serve` serves, and how.
#[derive(Debug, Args)]
pub struct NbdServe {
    /// An image file, as the default export, or NAME=IMAGE, as the export NAME; may be repeated
    #[arg(required = true, value_name = "[NAME=]IMAGE")]
    pub images: Vec<String>,
    /// Where to listen: HOST:PORT, or unix:PATH
    #[arg(long, value_name = "ADDR")]
    pub listen: String,
    /// Refuse writes
    #[arg(long)]
    pub read_only: bool,
    /// Record in FILE which blocks are written, over crashes, and show them as whimbrel:dirty; of a single image
    #[arg(long, value_name = "FILE", conflicts_with = "read_only")]
    pub bitmap: Option<PathBuf>,
    /// Require TLS, with this certificate, and the chain above it (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The key of that certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Require a certificate of clients, from these authorities (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_ca: Option<PathBuf>,
    /// Let clients do without TLS
    #[arg(long, requires = "tls_cert")]
    pub tls_optional: bool,
}

/// What `whimbrel energy` can do.
#[derive(Debug, Subcommand)]
pub enum EnergyCommand {
    /// Read this host's energy over a time
    Read {
        /// How long
        #[arg(long = "for", value_name = "TIME", default_value = "2 s", value_parser = some_time)]
        time: Duration,
        /// Which meter.
        #[command(flatten)]
        meter: MeterOptions,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show this host's power, a line each time, until interrupted
    Watch {
        /// How often
        #[arg(long, value_name = "TIME", default_value = "1 s", value_parser = some_time)]
        every: Duration,
        /// For how long; otherwise until interrupted
        #[arg(long = "for", value_name = "TIME", value_parser = some_time)]
        time: Option<Duration>,
        /// Which meter.
        #[command(flatten)]
        meter: MeterOptions,
    },
    /// Fit laws of a migration's energy overhead to the rows of runs: Strunk's and Liu's
    Fit {
        /// The runs' folders
        #[arg(required = true)]
        runs: Vec<PathBuf>,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Find the model's coefficients from the rows of measured runs
    Calibrate {
        /// The runs' folders
        #[arg(required = true)]
        runs: Vec<PathBuf>,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write what a guest fetched from the host it had left, out of a run's events, as a fault trace for jettison
    Trace(TraceOptions),
    /// Compute what a host saves that sleeps while its idle guest is elsewhere: a partial migration against a full one
    ///
    /// The trace is a CSV file, as `whimbrel energy trace` writes it: the line `at_ns,bytes`, then a line for each time that
    /// the guest asked for what it had left behind: nanoseconds since it left (whole, never falling), and bytes sent for it
    /// (whole). Empty lines, and those that begin with #, say nothing. The powers and times are those of your host: no default
    /// would be anyone's. The result is modelled, not measured; it says from which gap on sleeping saves energy.
    Jettison(Box<JettisonOptions>),
}

/// Of which trip the trace is.
#[derive(Clone, Debug, Args)]
pub struct TraceOptions {
    /// The run's folder
    pub run: PathBuf,
    /// The cell; otherwise the first whose guest fetched something
    #[arg(long)]
    pub cell: Option<String>,
    /// The trial; otherwise the first, likewise
    #[arg(long)]
    pub trial: Option<u32>,
}

/// A home host's states, what is moved, and the trace.
#[derive(Clone, Debug, Args)]
pub struct JettisonOptions {
    /// The fault trace: the line at_ns,bytes, then a line a fault, in order of time since the guest left
    pub trace: PathBuf,
    /// Watts of a host that is on and idle
    #[arg(long, value_name = "W")]
    pub on_w: f64,
    /// Watts above that while it sends or receives
    #[arg(long, value_name = "W", default_value_t = 0.0)]
    pub transfer_w: f64,
    /// Watts while it sleeps
    #[arg(long, value_name = "W")]
    pub asleep_w: f64,
    /// Watts while it suspends
    #[arg(long, value_name = "W")]
    pub suspending_w: f64,
    /// How long it suspends
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub suspending: Duration,
    /// Watts while it resumes
    #[arg(long, value_name = "W")]
    pub resuming_w: f64,
    /// How long it resumes
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub resuming: Duration,
    /// The guest's whole state
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub full: Bytes,
    /// What a partial migration sends at first
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub descriptor: Bytes,
    /// What comes back when the user returns
    #[arg(long, value_name = "SIZE", default_value = "0 MiB", value_parser = size)]
    pub returned: Bytes,
    /// The link's rate
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub rate: ByteRate,
    /// How long the user is away
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub idle: Duration,
    /// As one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Which meter is read, and where.
#[derive(Clone, Debug, Default, Args)]
pub struct MeterOptions {
    /// The meter, one of `whimbrel list meters`; otherwise the first that works
    #[arg(long, value_name = "NAME")]
    pub meter: Option<String>,
    /// Where the counters lie.
    #[command(flatten)]
    pub place: MeterPlace,
}

/// Where a host's counters lie.
#[derive(Clone, Debug, Default, Args)]
pub struct MeterPlace {
    /// Look for counters in this tree instead of in /sys: class/powercap, class/hwmon and bus/event_source below it
    #[arg(long, value_name = "DIR")]
    pub energy_root: Option<PathBuf>,
    /// A program, as a line for the shell, that prints the joules of a wall meter so far, a number a line
    #[arg(long, value_name = "LINE")]
    pub meter_command: Option<String>,
}

/// A size as an experiment file has it: `4 GiB`.
fn size(text: &str) -> Result<Bytes, QuantityError> {
    quantity::size(text)
}

/// A rate as an experiment file has it: `1000 Mbit/s`.
fn rate(text: &str) -> Result<ByteRate, QuantityError> {
    quantity::rate(text)
}

/// A duration as an experiment file has it: `2 s`, `300 ms`.
fn duration(text: &str) -> Result<Duration, QuantityError> {
    quantity::duration(text).map(Duration::from)
}

/// A duration in which something can be read.
fn some_time(text: &str) -> Result<Duration, String> {
    match duration(text) {
        Ok(time) if time.is_zero() => {
            Err("nothing can be read in no time; write one above zero, such as 2 s".to_owned())
        }
        Ok(time) => Ok(time),
        Err(error) => Err(error.to_string()),
    }
}

/// What `whimbrel guest` can do.
#[derive(Debug, Subcommand)]
pub enum GuestCommand {
    /// Find the guest's kernel, or fetch its package into the cache; a run does it by itself
    Fetch,
}

/// How to run an experiment.
#[derive(Clone, Debug, Default, Args)]
pub struct RunOptions {
    /// The run's own folder, created; otherwise results/NAME/RUN
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Change a key of the experiment; VALUE is TOML if it parses, else a string. May be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The agent of the host that guests leave; otherwise both hosts are processes on this one
    #[arg(long, value_name = "ADDR", requires = "destination")]
    pub source: Option<SocketAddr>,
    /// The agent of the host that guests move to
    #[arg(long, value_name = "ADDR", requires = "source")]
    pub destination: Option<SocketAddr>,
    /// Print rows as JSON lines on standard output, and everything else on standard error
    #[arg(long)]
    pub json: bool,
    /// A file with the secret that the agents were given
    #[arg(long, value_name = "FILE", requires = "source")]
    pub token_file: Option<PathBuf>,
    /// Where this host's meters are; agents that run already have been told.
    #[command(flatten)]
    pub meter: MeterPlace,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_a_command_the_options_are_those_of_the_quickstart() {
        let cli = Cli::try_parse_from(["whimbrel", "--set", "trials=2", "--json"]).unwrap();
        assert!(cli.command.is_none() && cli.options.json && cli.options.set == ["trials=2"]);
        assert!(Cli::try_parse_from(["whimbrel", "run", "--source", "127.0.0.1:1"]).is_err());
    }
}
