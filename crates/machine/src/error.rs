//! Why something about a machine could not be done.

use std::io;
use whimbrel_model::stream::StreamError;

/// Why something about a machine could not be done, by cause.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The parts of a machine don't fit together.
    #[error("the machine can't be built: {0}")]
    Setup(String),
    /// Bytes that were to be a device state are none, or another machine's.
    #[error("the device state can't be taken up: {0}")]
    State(String),
    /// As [`MachineError::State`], found by a workload's generator.
    #[error("the device state can't be taken up")]
    Stream(#[from] StreamError),
    /// A hypervisor, or what it needs, is missing or failed.
    #[error("{0}")]
    Hypervisor(String),
    /// A hypervisor failed after its guest had begun to run elsewhere, or may have: it must not run here again.
    #[error("after the guest had left: {0}")]
    Departed(String),
    /// Guest RAM failed.
    #[error(transparent)]
    Memory(#[from] whimbrel_memory::MemoryError),
    /// The call came while the vCPUs ran.
    #[error("{0} while the vCPUs run; pause and drain first")]
    Running(&'static str),
    /// A file, a socket or the guest's disk failed.
    #[error("the host's I/O failed")]
    Io(#[from] io::Error),
    /// A thread could not be started.
    #[error("no thread for a vCPU")]
    Thread(#[source] io::Error),
}
