//! An encoding that lies: it proves that the twin check finds a page that arrived wrong.

use crate::encode::{Encode, Encoding, MakeEncode, PAGE, PageBytes};
use whimbrel_model::registry::Kind;
use whimbrel_model::{Entry, Parameter, ParameterError};

pub(super) const ENTRY: Entry<MakeEncode> = Entry {
    name: "faulty",
    summary: "for tests: flips one bit of every n-th page that reaches it",
    parameters: &[Parameter {
        name: "faulty_every",
        summary: "of how many pages one is damaged",
        kind: Kind::Count,
        default: Some("100"),
    }],
    source: "Whimbrel",
    build: |parameters| match parameters.count("faulty_every") {
        0 => Err(ParameterError::Value {
            key: "faulty_every".to_owned(),
            found: "0".to_owned(),
            accepted: "at least 1 page".to_owned(),
        }),
        every => Ok(Box::new(Faulty { every, seen: 0 })),
    },
};

struct Faulty {
    every: u64,
    seen: u64,
}

impl Encode for Faulty {
    fn live(&self) -> bool {
        false
    }

    fn encode(&mut self, page: u64, content: &PageBytes, out: &mut Vec<u8>) -> Option<Encoding> {
        self.seen += 1;
        if !self.seen.is_multiple_of(self.every) {
            return None;
        }
        out.extend_from_slice(content);
        out[page as usize % PAGE] ^= 1;
        Some(Encoding::Raw)
    }
}
