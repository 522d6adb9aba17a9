//! The table of the encodings, and their common decoder.

mod delta;
mod faulty;
mod lz4;
mod raw;
mod zero;

use crate::encode::{DecodeError, Encoding, MakeEncode, PageBytes};
use whimbrel_model::Registry;

/// Every encoding, the null member first and the faulty one last.
pub const ENCODINGS: Registry<MakeEncode> =
    Registry { family: "encoding", entries: &[raw::ENTRY, zero::ENTRY, delta::ENTRY, lz4::ENTRY, faulty::ENTRY] };

/// The encoding that takes every page: what stands behind it in a chain would do nothing.
pub(crate) const TAKES_ALL: &str = raw::ENTRY.name;

/// The member that tells pages of zeros.
pub(crate) const TELLS_ZERO: &str = zero::ENTRY.name;

/// Turns `payload` into the page that it encodes. `page` holds the version that this end has so far.
///
/// Never panics, whatever the bytes; takes no memory.
///
/// # Errors
/// The bytes are no page in this encoding. What `page` then holds is undefined.
pub fn decode(kind: Encoding, payload: &[u8], page: &mut PageBytes) -> Result<(), DecodeError> {
    match kind {
        Encoding::Raw => raw::decode(payload, page),
        Encoding::Zero => zero::decode(payload, page),
        Encoding::Delta => delta::decode(payload, page),
        Encoding::Lz4 => lz4::decode(payload, page),
    }
}
