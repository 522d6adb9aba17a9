//! Why something about guest memory could not be done.

use std::io;

/// What a function of this crate answers.
pub type Result<T> = std::result::Result<T, MemoryError>;

/// Why something about guest memory could not be done, by cause.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The kernel, or what it allows this process, lacks what is needed. `whimbrel doctor` tries all of it.
    #[error("{what} is not available: {remedy}")]
    Unavailable {
        /// What is needed.
        what: &'static str,
        /// Which kernel version, configuration or permission would make it available.
        remedy: String,
        /// What the kernel answered, where it was asked.
        #[source]
        source: Option<io::Error>,
    },
    /// A call that should work on this kernel failed.
    #[error("{call} failed")]
    Kernel {
        /// The call.
        call: &'static str,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The size of guest RAM is not what it has to be.
    #[error("guest RAM of {bytes} bytes: {why}")]
    Size {
        /// The size that was given.
        bytes: u64,
        /// What it has to be.
        why: String,
    },
    /// The call came at a moment when it has no meaning.
    #[error("{0}")]
    OutOfTurn(&'static str),
}

impl MemoryError {
    /// Wraps the failure of `call`, for `map_err`.
    pub(crate) fn kernel<E: Into<io::Error>>(call: &'static str) -> impl FnOnce(E) -> MemoryError {
        move |source| MemoryError::Kernel { call, source: source.into() }
    }
}
