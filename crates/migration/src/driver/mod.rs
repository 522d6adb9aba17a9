//! The driver of threads and sockets: carries out what the cores want, on real machines and over real links.
//!
//! These connections make one move, all opened by the source and all through its link:
//!
//! | role | carries | by |
//! |---|---|---|
//! | control | [`whimbrel_wire::Message`] both ways | a thread each way |
//! | push | pages, in the order of the schedule | a thread at each end |
//! | demand | requests for pages one way, pages the other | a thread at each end and way |
//! | disk push | NBD: the source writes to the destination's export | tokio |
//! | disk pull | NBD: the destination reads from the source's export what its guest waits for | tokio |
//! | disk prefetch | the same, for what its guest has not asked for; where the strategy needs it | tokio |
//! | disk mirror | NBD: the guest's writes, before they are acknowledged; where the strategy needs it | tokio |
//! | disk offer | digests of blocks one way, what of them is lacking the other; where the strategy needs it | tokio |
//!
//! Where the disk remains at the source, the lane of pulls carries all of the guest's requests to it, writes too, and lives
//! on after the move. Its bytes are the guest's and not the migration's: no row counts them.
//!
//! The memory lanes run on threads of their own because they read and write guest RAM by vectored calls on blocking
//! sockets: no copy in user space, which an asynchronous stream can't offer.

mod acknowledged;
mod by_name;
mod control_lane;
mod destination;
mod disk_lane;
mod hint_lane;
mod memory_lane;
mod mirror_lane;
mod offer_lane;
mod own;
mod prefetch_lane;
mod remote_lane;
mod setup;
mod source;
mod watch;

pub use destination::{Arrived, DestinationParts, run_destination};
pub use own::{OwnConnections, OwnRoles, accept_own, arrive_own, connect_own, leave_own};
pub use setup::{Connections, Opening, accept_roles, connect_roles};
pub use source::{Copies, Left, SourceParts, run_source};
pub use watch::WorkWatch;

/// How long listeners may take to see the other side's end before the link is cut.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(5);

/// Why a host can't go on with a move.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The link failed or the other side broke the protocol.
    #[error(transparent)]
    Wire(#[from] whimbrel_wire::WireError),
    /// The link or a file failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The disk's connection failed.
    #[error(transparent)]
    Nbd(#[from] whimbrel_nbd::NbdError),
    /// Guest RAM, its dirty log or its faults failed.
    #[error(transparent)]
    Memory(#[from] whimbrel_memory::MemoryError),
    /// An encoded page does not decode.
    #[error(transparent)]
    Decode(#[from] whimbrel_memory::DecodeError),
    /// The device state is not one of this machine.
    #[error(transparent)]
    Machine(#[from] whimbrel_machine::MachineError),
    /// What is asked can't be done with the guest as it is.
    #[error("{0}")]
    Unfit(String),
    /// The other side did what the protocol excludes.
    #[error("the other host broke the protocol: {0}")]
    Protocol(String),
}

impl DriverError {
    /// Whether a connection has ended, by a cut or because the other side closed it: the cause lies elsewhere.
    fn is_end_of_stream(&self) -> bool {
        use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
        use whimbrel_memory::MemoryError;
        use whimbrel_nbd::NbdError;
        use whimbrel_wire::WireError;
        match self {
            DriverError::Io(error)
            | DriverError::Wire(WireError::Io(error))
            | DriverError::Nbd(NbdError::Io(error))
            | DriverError::Memory(MemoryError::Kernel { source: error, .. }) => {
                matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof)
            }
            DriverError::Wire(error) => matches!(error, WireError::Closed | WireError::Truncated { .. }),
            DriverError::Nbd(error) => matches!(error, NbdError::Closed { .. }),
            DriverError::Memory(_)
            | DriverError::Decode(_)
            | DriverError::Machine(_)
            | DriverError::Unfit(_)
            | DriverError::Protocol(_) => false,
        }
    }
}

/// The chain of an error's causes in one line.
pub(crate) fn in_words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}
