//! The numbers of NBD and the fixed headers, encoded and decoded by pure functions. All integers are big-endian.
//!
//! ```text
//! request          magic:4 flags:2 command:2 cookie:8 offset:8 length:4   [payload of a WRITE]
//! simple reply     magic:4 error:4 cookie:8                               [data of a READ]
//! structured reply magic:4 flags:2 type:2 cookie:8 length:4               [length bytes]
//! option           magic:8 option:4 length:4                              [length bytes]
//! option reply     magic:8 option:4 type:4 length:4                       [length bytes]
//! ```

use crate::error::NbdError;

/// The longest payload of a READ or WRITE, and what both sides announce and enforce.
pub const MAX_PAYLOAD_BYTES: u32 = 32 << 20;
/// The longest data of an option or of an option's reply.
pub const MAX_OPTION_BYTES: u32 = 64 << 10;
/// The longest string, such as an export's name: the protocol's own bound.
pub const MAX_STRING_BYTES: usize = 4096;
/// The longest status chunk that a client takes: 256 Ki extents.
pub const MAX_STATUS_BYTES: u32 = 4 + (256 << 10) * 8;

/// "NBDMAGIC", the first eight bytes of every server.
pub const MAGIC_SERVER: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT", which makes it the newstyle.
pub const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054;
/// Opens each reply to an option.
pub const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// Opens each request.
pub const MAGIC_REQUEST: u32 = 0x2560_9513;
/// Opens each simple reply.
pub const MAGIC_SIMPLE_REPLY: u32 = 0x6744_6698;
/// Opens each chunk of a structured reply.
pub const MAGIC_STRUCTURED_REPLY: u32 = 0x668e_33ef;

/// Handshake flags, of the server and of the client.
pub mod handshake {
    /// Fixed newstyle: unknown options are answered, not fatal.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// No 124 zeroes after EXPORT_NAME.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Option numbers.
pub mod option {
    /// Choose an export and begin transmission, without a way to fail.
    pub const EXPORT_NAME: u32 = 1;
    /// End the negotiation.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Ask about an export.
    pub const INFO: u32 = 6;
    /// Choose an export and begin transmission.
    pub const GO: u32 = 7;
    /// Agree on structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;

    /// Go on within TLS.
    pub const STARTTLS: u32 = 5;

    /// The option's name, for messages.
    pub fn name(option: u32) -> &'static str {
        match option {
            EXPORT_NAME => "NBD_OPT_EXPORT_NAME",
            ABORT => "NBD_OPT_ABORT",
            LIST => "NBD_OPT_LIST",
            STARTTLS => "NBD_OPT_STARTTLS",
            INFO => "NBD_OPT_INFO",
            GO => "NBD_OPT_GO",
            STRUCTURED_REPLY => "NBD_OPT_STRUCTURED_REPLY",
            LIST_META_CONTEXT => "NBD_OPT_LIST_META_CONTEXT",
            SET_META_CONTEXT => "NBD_OPT_SET_META_CONTEXT",
            _ => "an unknown option",
        }
    }
}

/// Types of an option's reply.
pub mod reply {
    /// Success, and the last reply to this option.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One piece of information on an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Set in every error.
    pub const ERROR_BIT: u32 = 1 << 31;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = ERROR_BIT | 1;
    /// The option is forbidden.
    pub const ERR_POLICY: u32 = ERROR_BIT | 2;
    /// The option's data is malformed, or it comes at the wrong time.
    pub const ERR_INVALID: u32 = ERROR_BIT | 3;
    /// TLS has to come first.
    pub const ERR_TLS_REQD: u32 = ERROR_BIT | 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR_BIT | 6;
    /// The option's data is too long.
    pub const ERR_TOO_BIG: u32 = ERROR_BIT | 9;

    /// The error's name, for messages.
    pub fn error_name(kind: u32) -> &'static str {
        match kind & !ERROR_BIT {
            1 => "NBD_REP_ERR_UNSUP",
            2 => "NBD_REP_ERR_POLICY",
            3 => "NBD_REP_ERR_INVALID",
            4 => "NBD_REP_ERR_PLATFORM",
            5 => "NBD_REP_ERR_TLS_REQD",
            6 => "NBD_REP_ERR_UNKNOWN",
            7 => "NBD_REP_ERR_SHUTDOWN",
            8 => "NBD_REP_ERR_BLOCK_SIZE_REQD",
            9 => "NBD_REP_ERR_TOO_BIG",
            _ => "an unknown error",
        }
    }
}

/// Types of information on an export.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// The canonical name.
    pub const NAME: u16 = 1;
    /// A text for people.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum block size.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags of an export.
pub mod flag {
    /// The other flags are valid.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is understood.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The FUA command flag is understood.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM is understood.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES is understood.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF command flag is understood.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers what others completed.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// The FAST_ZERO command flag is understood.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands of a request.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write.
    pub const WRITE: u16 = 1;
    /// Disconnect; there is no reply.
    pub const DISC: u16 = 2;
    /// What was completed before becomes durable.
    pub const FLUSH: u16 = 3;
    /// The range's content is no longer needed.
    pub const TRIM: u16 = 4;
    /// The range reads as zeroes from now on.
    pub const WRITE_ZEROES: u16 = 6;
    /// Ask for the status of a range in the chosen contexts.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of a request.
pub mod command_flag {
    /// Durable before the reply.
    pub const FUA: u16 = 1 << 0;
    /// Zeroes, but no hole.
    pub const NO_HOLE: u16 = 1 << 1;
    /// The reply to a read is a single chunk.
    pub const DF: u16 = 1 << 2;
    /// One extent a context is enough.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Zero only where it is faster than writing.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Structured replies: flags and chunk types.
pub mod chunk {
    /// The last chunk of the reply.
    pub const FLAG_DONE: u16 = 1 << 0;
    /// Nothing but the header.
    pub const NONE: u16 = 0;
    /// offset:8, then data.
    pub const OFFSET_DATA: u16 = 1;
    /// offset:8 length:4, all zeroes.
    pub const OFFSET_HOLE: u16 = 2;
    /// context:4, then (length:4 flags:4) for each extent.
    pub const BLOCK_STATUS: u16 = 5;
    /// Set in every error.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// error:4 length:2, then text.
    pub const ERROR: u16 = ERROR_BIT | 1;
    /// As `ERROR`, then offset:8.
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
}

/// Bits of an extent in `base:allocation`.
pub mod allocation {
    /// Not allocated.
    pub const HOLE: u32 = 1 << 0;
    /// Reads as zeroes.
    pub const ZERO: u32 = 1 << 1;
}

/// The context that says what is allocated.
pub const CONTEXT_ALLOCATION: &str = "base:allocation";

/// Reads big-endian integers from the front of a slice; `None` when it is too short.
#[derive(Debug, Clone, Copy)]
pub struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    /// The next integer.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next integer.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next integer.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string behind its 32-bit length, within the protocol's bound.
    pub fn string(&mut self) -> Option<String> {
        let length = self.u32()? as usize;
        if length > MAX_STRING_BYTES {
            return None;
        }
        String::from_utf8(self.take(length)?.to_vec()).ok()
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A request's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// See [`command_flag`].
    pub flags: u16,
    /// See [`command`].
    pub command: u16,
    /// Comes back in the reply, unread.
    pub cookie: u64,
    /// Where the range begins.
    pub offset: u64,
    /// How long it is.
    pub length: u32,
}

impl Request {
    /// Its length on the wire.
    pub const BYTES: usize = 28;

    /// As bytes.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..4].copy_from_slice(&MAGIC_REQUEST.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// From bytes.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, NbdError> {
        let mut cursor = Cursor(bytes);
        let magic = cursor.u32().unwrap_or(0);
        if magic != MAGIC_REQUEST {
            return Err(NbdError::BadMagic { what: "a request", found: magic.into() });
        }
        let decode = |cursor: &mut Cursor<'_>| {
            Some(Self {
                flags: cursor.u16()?,
                command: cursor.u16()?,
                cookie: cursor.u64()?,
                offset: cursor.u64()?,
                length: cursor.u32()?,
            })
        };
        decode(&mut cursor).ok_or(NbdError::Protocol("a short request header"))
    }
}

/// A simple reply's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimpleReply {
    /// 0 or an error's number.
    pub error: u32,
    /// The request's.
    pub cookie: u64,
}

impl SimpleReply {
    /// Its length on the wire.
    pub const BYTES: usize = 16;

    /// As bytes.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..4].copy_from_slice(&MAGIC_SIMPLE_REPLY.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.error.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes
    }
}

/// The header of one chunk of a structured reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// [`chunk::FLAG_DONE`] or 0.
    pub flags: u16,
    /// See [`chunk`].
    pub kind: u16,
    /// The request's.
    pub cookie: u64,
    /// Bytes that follow.
    pub length: u32,
}

impl ChunkHeader {
    /// Its length on the wire.
    pub const BYTES: usize = 20;

    /// As bytes.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..4].copy_from_slice(&MAGIC_STRUCTURED_REPLY.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

/// The header of a reply, of either style.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyHeader {
    /// A simple reply.
    Simple(SimpleReply),
    /// A chunk of a structured reply.
    Chunk(ChunkHeader),
}

impl ReplyHeader {
    /// Decodes the header at the front of `bytes` and says how long it was; `None` when more bytes are needed.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, NbdError> {
        let mut cursor = Cursor(bytes);
        let Some(magic) = cursor.u32() else { return Ok(None) };
        Ok(match magic {
            MAGIC_SIMPLE_REPLY => Self::simple(&mut cursor).map(|header| (header, SimpleReply::BYTES)),
            MAGIC_STRUCTURED_REPLY => Self::chunk(&mut cursor).map(|header| (header, ChunkHeader::BYTES)),
            other => return Err(NbdError::BadMagic { what: "a reply", found: other.into() }),
        })
    }

    fn simple(cursor: &mut Cursor<'_>) -> Option<Self> {
        Some(Self::Simple(SimpleReply { error: cursor.u32()?, cookie: cursor.u64()? }))
    }

    fn chunk(cursor: &mut Cursor<'_>) -> Option<Self> {
        Some(Self::Chunk(ChunkHeader {
            flags: cursor.u16()?,
            kind: cursor.u16()?,
            cookie: cursor.u64()?,
            length: cursor.u32()?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn requests_round_trip(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) {
            let request = Request { flags, command, cookie, offset, length };
            prop_assert_eq!(Request::decode(&request.encode()).unwrap(), request);
        }

        #[test]
        fn replies_round_trip(flags: u16, kind: u16, cookie: u64, length: u32, error: u32) {
            let chunk = ChunkHeader { flags, kind, cookie, length };
            let decoded = ReplyHeader::decode(&chunk.encode()).unwrap();
            prop_assert_eq!(decoded, Some((ReplyHeader::Chunk(chunk), ChunkHeader::BYTES)));
            let simple = SimpleReply { error, cookie };
            let decoded = ReplyHeader::decode(&simple.encode()).unwrap();
            prop_assert_eq!(decoded, Some((ReplyHeader::Simple(simple), SimpleReply::BYTES)));
        }

        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = ReplyHeader::decode(&bytes);
            if let Some((head, _)) = bytes.split_first_chunk() {
                let _ = Request::decode(head);
            }
            let _ = Cursor(&bytes).string();
        }
    }

    #[test]
    fn a_truncated_reply_asks_for_more() {
        let bytes = ChunkHeader { flags: 1, kind: 1, cookie: 7, length: 9 }.encode();
        for end in 0..bytes.len() {
            assert_eq!(ReplyHeader::decode(&bytes[..end]).unwrap(), None);
        }
    }
}
