//! The commands, a file each.

mod doctor;
mod energy;
mod explain;
mod guest;
mod host;
mod list;
mod nbd;
mod run;

use crate::cli::{Cli, Command, GuestCommand, NbdCommand};
use crate::interrupt::Interrupt;
use crate::{BadInput, status};
use anyhow::Context;
use clap::CommandFactory;
use std::io::Write;

/// Does what the command line says, and returns the exit status.
///
/// # Errors
/// [`BadInput`] and [`crate::experiment::Mistake`] for what the person gave; anything else for what went wrong.
pub fn dispatch(cli: Cli) -> anyhow::Result<u8> {
    match cli.command {
        None => run::run(None, &cli.options),
        Some(Command::Run { experiment, options }) => run::run(experiment.as_deref(), &options),
        Some(Command::Host { listen, token_file, directory, until_input_ends, meter }) => {
            let place = energy::place(&meter)?;
            host::serve(listen, token_file.as_deref(), directory, place, until_input_ends, &Interrupt::on_signals()?)
        }
        Some(Command::List { kind, json }) => print(&list::list(kind, json)),
        Some(Command::Explain { metric }) => print(&explain::explain(metric.as_deref())?),
        Some(Command::Doctor { json }) => doctor::doctor(json),
        Some(Command::Nbd { command: NbdCommand::Serve(options) }) => nbd::serve(&options),
        Some(Command::Energy { command }) => energy::energy(command),
        Some(Command::Guest { command: GuestCommand::Fetch }) => guest::fetch(),
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "whimbrel", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Some(Command::Man { command }) => man(command.as_deref()),
    }
}

/// Prints on standard output. A reader that has seen enough is no failure.
fn print(text: &str) -> anyhow::Result<u8> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(status::GOOD),
    }
}

fn man(command: Option<&str>) -> anyhow::Result<u8> {
    let mut program = Cli::command();
    program.build();
    let page = match command {
        None => program,
        Some(name) => {
            let names: Vec<String> = program.get_subcommands().map(|c| c.get_name().to_owned()).collect();
            let unknown = || {
                let names = names.iter().map(String::as_str);
                BadInput(whimbrel_model::registry::UnknownName::among("command", name, names).to_string())
            };
            program.find_subcommand(name).cloned().ok_or_else(unknown)?
        }
    };
    let mut roff = Vec::new();
    clap_mangen::Man::new(page).render(&mut roff).context("the man page can't be made")?;
    print(&String::from_utf8_lossy(&roff))
}
