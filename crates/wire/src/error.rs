//! What can go wrong between two hosts, by cause.

use crate::hello::Refusal;
use crate::version::Version;
use std::io;

/// Why something could not be said, heard or set up.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream failed.
    #[error("the link failed")]
    Io(#[from] io::Error),
    /// The other side closed the stream between two messages.
    #[error("the other host closed the connection")]
    Closed,
    /// The stream ended inside something.
    #[error("the connection ended inside {what}")]
    Truncated {
        /// What was being read.
        what: &'static str,
    },
    /// Something is larger than the protocol allows, here or in what the other side claims.
    #[error("{what} of {found} is larger than the {limit} that the protocol allows")]
    TooLarge {
        /// What.
        what: &'static str,
        /// Its size or number.
        found: u64,
        /// The bound.
        limit: u64,
    },
    /// The first bytes are not a hello or an answer to one.
    #[error("the other side does not speak Whimbrel's protocol (its first bytes are {found:02x?})")]
    NotWhimbrel {
        /// What came instead of the magic.
        found: [u8; 8],
    },
    /// The other side speaks another version.
    #[error("this host speaks version {ours} of the protocol, the other one version {theirs}")]
    Version {
        /// The version that this host speaks.
        ours: Version,
        /// The number that the other one gave.
        theirs: u16,
    },
    /// A message broke a rule of the protocol.
    #[error("not a valid {what}: {why}")]
    Malformed {
        /// What was being read.
        what: &'static str,
        /// The broken rule.
        why: String,
    },
    /// The JSON of a control message is not what was expected.
    #[error("a control message does not decode")]
    Json(#[source] serde_json::Error),
    /// The other host refused the connection.
    #[error("the other host refused the connection: {0}")]
    Refused(Refusal),
    /// This host refused a connection.
    #[error("refused a connection: {0}")]
    Turned(Refusal),
    /// A secret could not be read.
    #[error("no usable token in {path}: {why}")]
    Token {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A command that sets up a link in network namespaces failed.
    #[error("{command}: {why}")]
    Command {
        /// The command line.
        command: String,
        /// What it said, or why it could not be run.
        why: String,
    },
    /// This user or machine cannot have network namespaces.
    #[error("network namespaces are not available: {why}")]
    Namespaces {
        /// What is missing.
        why: String,
    },
}

impl WireError {
    /// A broken rule of the protocol.
    pub(crate) fn malformed(what: &'static str, why: impl Into<String>) -> Self {
        WireError::Malformed { what, why: why.into() }
    }

    /// Reading `what` failed: a premature end is told apart from a failure of the stream.
    pub(crate) fn reading(what: &'static str, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => WireError::Truncated { what },
            _ => WireError::Io(error),
        }
    }
}
