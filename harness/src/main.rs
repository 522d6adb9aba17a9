//! The program `whimbrel`.

use clap::Parser;
use std::process::ExitCode;
use whimbrel::experiment::Mistake;
use whimbrel::{BadInput, cli, commands, status, tell};

fn main() -> ExitCode {
    if whimbrel_guest::is_init() {
        whimbrel_guest::init();
    }
    let ended = commands::dispatch(cli::Cli::parse());
    ExitCode::from(ended.unwrap_or_else(|error| {
        tell(&format!("whimbrel: {error:#}"));
        let bad = error.downcast_ref::<BadInput>().is_some() || error.downcast_ref::<Mistake>().is_some();
        if bad { status::BAD_INPUT } else { status::NOT_SO }
    }))
}
