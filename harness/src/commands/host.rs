//! `whimbrel host`: the agent of a host.

use crate::interrupt::Interrupt;
use crate::{BadInput, status};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use whimbrel_machine::machines::qemu;
use whimbrel_migration::agent::{Agent, AgentSetup};
use whimbrel_wire::Token;

/// Serves until interrupted, or until standard input ends where that is asked for. The first line on standard output
/// says where it listens.
pub(super) fn serve(
    listen: SocketAddr,
    token: Option<&Path>,
    directory: Option<PathBuf>,
    energy: whimbrel_energy::Place,
    until_input_ends: bool,
    interrupt: &Interrupt,
) -> anyhow::Result<u8> {
    let bad = |error: &dyn std::fmt::Display| BadInput(error.to_string());
    let token = token.map(Token::from_file).transpose().map_err(|e| bad(&e))?;
    let directory = directory.unwrap_or_else(std::env::temp_dir);
    if !directory.is_dir() {
        return Err(bad(&format!("--directory {}: there is no such folder", directory.display())).into());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let agent = runtime
        .block_on(Agent::bind(AgentSetup { listen, token, directory, energy }))
        .map_err(|e| bad(&format!("--listen {listen}: {e}; give another address, or --token-file where it says so")))?;
    println!("listening on {}", agent.address()?);
    std::io::stdout().flush()?;
    if until_input_ends {
        let interrupt = interrupt.clone();
        std::thread::spawn(move || {
            let mut rest = [0; 64];
            while std::io::stdin().read(&mut rest).is_ok_and(|n| n > 0) {}
            interrupt.raise();
        });
    }
    runtime.block_on(agent.run(interrupt.wait()));
    // What is still in the middle of something is not waited for.
    runtime.shutdown_background();
    qemu::remove_all();
    Ok(status::GOOD)
}
