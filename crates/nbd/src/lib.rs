//! The NBD protocol, client and server, over any byte stream.
//!
//! [`protocol`] and [`options`] are the numbers and the codecs; [`Backend`] is what a server exports; [`serve_connection`]
//! and [`Server`] serve it; [`Client`] uses what any server exports. Bytes from a peer never panic and never allocate beyond a stated bound.

pub mod backend;
mod buffers;
mod client;
mod client_tasks;
mod error;
mod exports;
mod file_backend;
mod jobs;
mod linger;
mod mapped;
mod memory_backend;
mod negotiate_client;
mod negotiate_server;
pub mod options;
pub mod protocol;
mod replies;
mod server;
mod socket;
mod tls;
mod transmission;
mod vigil;

pub use backend::{Backend, BlockSizes, Extents, Now, StatusExtent, ZeroMode};
pub use client::{Client, ClientOptions};
pub use error::{ErrorCode, NbdError};
pub use exports::{Exports, Limits};
pub use file_backend::{Access, FileBackend};
pub use memory_backend::MemoryBackend;
pub use negotiate_client::{ExportInfo, ListedExport};
pub use server::{Ended, Server, Shutdown, ShutdownHandle, serve_connection};
pub use tls::{ClientTls, ServerTls, TlsError};
