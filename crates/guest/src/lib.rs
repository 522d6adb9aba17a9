//! The agent in a qemu machine's guest: the program's other life, as init of a Linux that has nothing else.
//!
//! It mounts what it needs and loads the modules ([`boot`]), takes memory and locks it, fills it with the workload's
//! content, and then is a machine of the thread kind over that memory and `/dev/vda` ([`block_device`]). So a guest
//! under QEMU executes the very operations that a thread machine does, by the same code, and the same twin judges it.
//! Over its port it gives heartbeats and is told what to do ([`agent`]), and asked which pages are free ([`page_flags`]) or
//! copies of the disk's blocks, or to tell QEMU itself ([`balloon`]).

#![forbid(unsafe_code)]

mod agent;
mod balloon;
mod block_device;
mod boot;
mod page_flags;

use std::io;
use whimbrel_machine::MachineError;

/// Why the agent can't go on.
#[derive(Debug, thiserror::Error)]
enum GuestError {
    #[error("{what}: {error}")]
    Host { what: String, error: io::Error },
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Memory(#[from] whimbrel_memory::MemoryError),
    #[error("the task: {0}")]
    Task(String),
}

/// Whether this process is the init of a guest: the first one, and under init's name.
pub fn is_init() -> bool {
    std::process::id() == 1
        && std::env::args_os().next().is_some_and(|name| name == whimbrel_machine::machines::qemu::INIT)
}

/// The agent's life. A kernel whose init ends panics, and QEMU then ends: so it never returns.
pub fn init() -> ! {
    let ended = boot::boot().and_then(|port| agent::serve(&port));
    // The console is the host's to show when the guest doesn't come up.
    println!("whimbrel: {}", ended.map_or_else(|error| error.to_string(), |()| "the host has ended it".to_owned()));
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    loop {
        std::thread::park();
    }
}
