//! The seam of the encodings: how a page becomes bytes, and how bytes become a page again.

use whimbrel_model::{PAGE_BYTES, ParameterError, Parameters};

/// The size of a page as a length.
pub const PAGE: usize = PAGE_BYTES as usize;

/// A page's content.
pub type PageBytes = [u8; PAGE];

/// How a page is encoded, as one byte on the wire. 0 is no encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Encoding {
    /// The page as it is: [`PAGE`] bytes.
    Raw = 1,
    /// A page of zeros: no bytes.
    Zero = 2,
    /// What differs from the version that the other end holds.
    Delta = 3,
    /// One LZ4 block.
    Lz4 = 4,
}

impl Encoding {
    /// Every encoding.
    pub const ALL: [Encoding; 4] = [Encoding::Raw, Encoding::Zero, Encoding::Delta, Encoding::Lz4];

    /// The byte on the wire.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl TryFrom<u8> for Encoding {
    type Error = DecodeError;

    fn try_from(code: u8) -> Result<Self, DecodeError> {
        Encoding::ALL.into_iter().find(|e| e.code() == code).ok_or(DecodeError::Unknown { code })
    }
}

/// Bytes from another host that are no encoded page.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No encoding has this number.
    #[error("{code} is no encoding of a page")]
    Unknown {
        /// The number.
        code: u8,
    },
    /// The encoding has one legal length.
    #[error("a page encoded as {kind:?} takes {wanted} bytes, not {found}")]
    Length {
        /// The encoding.
        kind: Encoding,
        /// The bytes that came.
        found: usize,
        /// The bytes that it takes.
        wanted: usize,
    },
    /// The bytes don't yield exactly one page.
    #[error("bytes that are no page encoded as {kind:?}: {why}")]
    Malformed {
        /// The encoding.
        kind: Encoding,
        /// What is wrong with them.
        why: &'static str,
    },
}

/// One way to turn pages into bytes. One object a guest, trip and ordered stream of pages.
pub trait Encode: Send {
    /// Whether a page may be read while the guest writes it. Else the content must be a stable private copy.
    fn live(&self) -> bool;

    /// Encodes `content`, the page numbered `page`, into `out`, which is empty; or answers `None`, whatever it left in
    /// `out`, where that doesn't pay. [`Encoding::Raw`] with nothing in `out` stands for the content as it is.
    fn encode(&mut self, page: u64, content: &PageBytes, out: &mut Vec<u8>) -> Option<Encoding>;

    /// Told of every page that goes, by whichever encoding: from now on the other end holds `content`.
    fn sent(&mut self, page: u64, content: &PageBytes) {
        let _ = (page, content);
    }

    /// Told that nothing is known any more of what the other end holds.
    fn forget(&mut self) {}
}

/// The constructor of an encoding.
pub type MakeEncode = fn(&Parameters) -> Result<Box<dyn Encode>, ParameterError>;
