//! What two hosts say to each other, and the link that carries it.
//!
//! ```text
//!   source                                                          destination
//!     │  hello: control of a migration ──────────────────────────────► │  [`hello`], [`version`]
//!     │ ◄──────────────────────────────────────── welcome or refusal   │
//!     │ ◄═══ frames of JSON and attachments, both ways ══════════════► │  [`codec`], [`sets`]
//!     │  hello: memory lane ─────────────────────────────────────────► │
//!     │ ════ page headers and pages ══════════════════════════════════►│  [`page_frames`]
//!     │  hello: disk ────────────────────────────────────────────────► │
//!     │ ◄═══ NBD, of the room `nbd` ═════════════════════════════════► │
//! ```
//!
//! Every connection is a stream of the [`link`]: all of them together are held to the rate and the delay of their
//! host's card ([`nic`], [`bucket`]). [`clock`] is the host's clock and its offset from the other host's; [`netns`] is
//! the link for who would rather have the kernel limit the rate.

pub mod bucket;
pub mod clock;
pub mod codec;
pub mod error;
pub mod hello;
pub mod link;
pub mod message;
pub mod netns;
pub mod nic;
pub mod page_frames;
pub mod sets;
pub mod version;

pub use bucket::{Bucket, Class};
pub use error::WireError;
pub use hello::{Hello, Refusal, RefusalCode, Role, SessionId, Token};
pub use link::{AsyncLinkStream, LinkReadHalf, LinkStream, LinkWriteHalf, SILENCE, Severer};
pub use message::Message;
pub use nic::{LinkUse, Nic};
pub use page_frames::Frame;
pub use version::Version;
