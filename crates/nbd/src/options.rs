//! The data of options and of their replies, encoded and decoded by pure functions.
//!
//! ```text
//! INFO, GO                 name count:2 (information:2)*           a name is length:4 and that many bytes of UTF-8
//! LIST/SET_META_CONTEXT    name count:4 (query)*                   a query is written like a name
//! reply SERVER             name [text to the end]
//! reply META_CONTEXT       id:4, the context's name to the end
//! reply INFO               EXPORT:2 size:8 flags:2 | NAME:2 text | DESCRIPTION:2 text | BLOCK_SIZE:2 min:4 preferred:4 max:4
//! ```

use crate::{
    backend::BlockSizes,
    protocol::{Cursor, MAGIC_OPTION, MAGIC_OPTION_REPLY, info},
};

/// An option's header and data as bytes.
pub fn encode_option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + data.len());
    bytes.extend_from_slice(&MAGIC_OPTION.to_be_bytes());
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// Appends an option's reply.
pub fn encode_option_reply(bytes: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    bytes.extend_from_slice(&MAGIC_OPTION_REPLY.to_be_bytes());
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
}

/// Appends a string behind its length.
pub fn encode_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(&(text.len() as u32).to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

/// The data of INFO and GO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Go {
    /// The export's name.
    pub name: String,
    /// The information wanted, see [`info`].
    pub wanted: Vec<u16>,
}

impl Go {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_string(&mut bytes, &self.name);
        bytes.extend_from_slice(&(self.wanted.len() as u16).to_be_bytes());
        for wanted in &self.wanted {
            bytes.extend_from_slice(&wanted.to_be_bytes());
        }
        bytes
    }

    /// From bytes; `None` when they are not exactly that.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor(bytes);
        let name = cursor.string()?;
        let count = cursor.u16()? as usize;
        if cursor.0.len() != count * 2 {
            return None;
        }
        let wanted = (0..count).map(|_| cursor.u16()).collect::<Option<_>>()?;
        Some(Self { name, wanted })
    }
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaContext {
    /// The export's name.
    pub name: String,
    /// The contexts asked for.
    pub queries: Vec<String>,
}

impl MetaContext {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_string(&mut bytes, &self.name);
        bytes.extend_from_slice(&(self.queries.len() as u32).to_be_bytes());
        for query in &self.queries {
            encode_string(&mut bytes, query);
        }
        bytes
    }

    /// From bytes; `None` when they are not exactly that. What is collected is bounded by the bytes that are there.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor(bytes);
        let name = cursor.string()?;
        let count = cursor.u32()? as usize;
        if cursor.0.len() / 4 < count {
            return None;
        }
        let queries = (0..count).map(|_| cursor.string()).collect::<Option<_>>()?;
        cursor.is_empty().then_some(Self { name, queries })
    }
}

/// One piece of information on an export, as a reply to INFO or GO carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Information {
    /// Size and transmission flags.
    Export {
        /// The size.
        size_bytes: u64,
        /// See [`crate::protocol::flag`].
        flags: u16,
    },
    /// The canonical name.
    Name(String),
    /// A text for people.
    Description(String),
    /// The block sizes.
    BlockSize(BlockSizes),
    /// A kind that this side does not know, to be ignored.
    Unknown(u16),
}

impl Information {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Export { size_bytes, flags } => {
                bytes.extend_from_slice(&info::EXPORT.to_be_bytes());
                bytes.extend_from_slice(&size_bytes.to_be_bytes());
                bytes.extend_from_slice(&flags.to_be_bytes());
            }
            Self::Name(name) => {
                bytes.extend_from_slice(&info::NAME.to_be_bytes());
                bytes.extend_from_slice(name.as_bytes());
            }
            Self::Description(text) => {
                bytes.extend_from_slice(&info::DESCRIPTION.to_be_bytes());
                bytes.extend_from_slice(text.as_bytes());
            }
            Self::BlockSize(sizes) => {
                bytes.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
                for size in [sizes.minimum, sizes.preferred, sizes.maximum] {
                    bytes.extend_from_slice(&size.to_be_bytes());
                }
            }
            Self::Unknown(kind) => bytes.extend_from_slice(&kind.to_be_bytes()),
        }
        bytes
    }

    /// From bytes; `None` when they are malformed.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor(bytes);
        let text = |cursor: &Cursor<'_>| String::from_utf8(cursor.0.to_vec()).ok();
        let found = match cursor.u16()? {
            info::EXPORT => Self::Export { size_bytes: cursor.u64()?, flags: cursor.u16()? },
            info::NAME => return text(&cursor).map(Self::Name),
            info::DESCRIPTION => return text(&cursor).map(Self::Description),
            info::BLOCK_SIZE => {
                Self::BlockSize(BlockSizes { minimum: cursor.u32()?, preferred: cursor.u32()?, maximum: cursor.u32()? })
            }
            kind => return Some(Self::Unknown(kind)),
        };
        cursor.is_empty().then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn go_round_trips(name in ".{0,40}", wanted: Vec<u16>) {
            let go = Go { name, wanted };
            prop_assert_eq!(Go::decode(&go.encode()), Some(go));
        }

        #[test]
        fn meta_context_round_trips(name in ".{0,40}", queries in prop::collection::vec(".{0,20}", 0..8)) {
            let meta = MetaContext { name, queries };
            prop_assert_eq!(MetaContext::decode(&meta.encode()), Some(meta));
        }

        #[test]
        fn information_round_trips(size_bytes: u64, flags: u16, text in ".{0,40}", minimum: u32) {
            for information in [
                Information::Export { size_bytes, flags },
                Information::Name(text.clone()),
                Information::Description(text),
                Information::BlockSize(BlockSizes { minimum, preferred: 1, maximum: 2 }),
            ] {
                prop_assert_eq!(Information::decode(&information.encode()), Some(information));
            }
        }

        #[test]
        fn any_bytes_decode_without_panic(bytes: Vec<u8>) {
            let _ = (Go::decode(&bytes), MetaContext::decode(&bytes), Information::decode(&bytes));
        }
    }

    #[test]
    fn a_count_beyond_the_bytes_is_refused() {
        let mut bytes = MetaContext { name: "x".into(), queries: vec![] }.encode();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(MetaContext::decode(&bytes), None);
    }
}
