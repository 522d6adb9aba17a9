//! What can go wrong: [`NbdError`] for this side, [`ErrorCode`] for what crosses the wire.

use std::{io, sync::Arc};

/// Why a negotiation, a connection or a request failed. Variants are by cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NbdError {
    /// The byte stream below failed.
    #[error("the byte stream failed")]
    Io(#[from] io::Error),
    /// The peer closed the stream, or stopped to use it, where the protocol expects it to go on.
    #[error("the peer left while {during}")]
    Closed {
        /// What was expected at that moment.
        during: &'static str,
    },
    /// A magic number is wrong: the peer does not speak NBD, or the stream lost its framing.
    #[error("bad magic {found:#x} in {what}")]
    BadMagic {
        /// Which structure.
        what: &'static str,
        /// What stood there.
        found: u64,
    },
    /// A length that the peer announced is beyond the bound for it.
    #[error("{what} of {length} bytes is beyond the bound of {bound}")]
    TooLong {
        /// Which item.
        what: &'static str,
        /// The announced length.
        length: u64,
        /// The bound.
        bound: u64,
    },
    /// The peer broke a rule of the protocol.
    #[error("protocol violation: {0}")]
    Protocol(&'static str),
    /// The client spent more options, bytes or time on negotiating than it is given.
    #[error("negotiation ended by its bound on {0}")]
    NegotiationBound(&'static str),
    /// The server has no such export (seen by a server whose client used EXPORT_NAME).
    #[error("no export named {0:?}")]
    UnknownExport(String),
    /// The server refused an option.
    #[error("the server refused {option}: {reply} {message:?}")]
    Refused {
        /// The option.
        option: &'static str,
        /// The name of the NBD_REP_ERR_* reply.
        reply: &'static str,
        /// What the server said about it, if it did.
        message: String,
    },
    /// The server answered a request with an error.
    #[error("the server answered {code} {message:?}")]
    Server {
        /// The error.
        code: ErrorCode,
        /// What the server said about it, if it did.
        message: String,
    },
    /// The caller asked for something that the connection cannot carry.
    #[error("invalid request: {0}")]
    InvalidRequest(&'static str),
    /// The connection was lost, or closed by this side, before the reply came.
    #[error("the connection is lost")]
    Lost(#[source] Arc<NbdError>),
    /// This side disconnected.
    #[error("disconnected")]
    Disconnected,
}

/// An error as NBD numbers it. The numbers are those of Linux, whatever the host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// Operation not permitted, as a write to a read-only export.
    NotPermitted,
    /// Input or output error.
    Io,
    /// Out of memory.
    NoMemory,
    /// Invalid argument.
    Invalid,
    /// No space left, as a write past the end.
    NoSpace,
    /// Value too large, as a reply that cannot be one chunk.
    Overflow,
    /// Not supported, as a fast zero that would not be fast.
    NotSupported,
    /// The server is shutting down.
    Shutdown,
    /// A number that NBD does not define.
    Other(u32),
}

impl ErrorCode {
    /// The number on the wire. Never 0.
    pub fn number(self) -> u32 {
        match self {
            Self::NotPermitted => 1,
            Self::Io => 5,
            Self::NoMemory => 12,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Overflow => 75,
            Self::NotSupported => 95,
            Self::Shutdown => 108,
            Self::Other(number) => number.max(1),
        }
    }

    /// The error behind a number; `None` for 0, which is success.
    pub fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => return None,
            1 => Self::NotPermitted,
            5 => Self::Io,
            12 => Self::NoMemory,
            22 => Self::Invalid,
            28 => Self::NoSpace,
            75 => Self::Overflow,
            95 => Self::NotSupported,
            108 => Self::Shutdown,
            other => Self::Other(other),
        })
    }
}

impl From<&io::Error> for ErrorCode {
    /// What a backend's error is called on the wire; what NBD has no number for is `Io`.
    fn from(error: &io::Error) -> Self {
        if let Some(number) = error.raw_os_error() {
            return match number {
                libc::EPERM | libc::EROFS | libc::EACCES => Self::NotPermitted,
                libc::ENOMEM => Self::NoMemory,
                libc::EINVAL => Self::Invalid,
                libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Self::NoSpace,
                libc::EOVERFLOW => Self::Overflow,
                libc::EOPNOTSUPP => Self::NotSupported,
                libc::ESHUTDOWN => Self::Shutdown,
                _ => Self::Io,
            };
        }
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::NotPermitted,
            io::ErrorKind::OutOfMemory => Self::NoMemory,
            io::ErrorKind::InvalidInput => Self::Invalid,
            io::ErrorKind::StorageFull => Self::NoSpace,
            io::ErrorKind::Unsupported => Self::NotSupported,
            _ => Self::Io,
        }
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self {
            Self::NotPermitted => "EPERM",
            Self::Io => "EIO",
            Self::NoMemory => "ENOMEM",
            Self::Invalid => "EINVAL",
            Self::NoSpace => "ENOSPC",
            Self::Overflow => "EOVERFLOW",
            Self::NotSupported => "ENOTSUP",
            Self::Shutdown => "ESHUTDOWN",
            Self::Other(number) => return write!(f, "error {number}"),
        };
        f.write_str(name)
    }
}
