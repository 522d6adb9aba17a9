//! An encoding that lies: it proves that the twin check finds a page that arrived wrong.

use crate::encode::{Encode, Encoding, MakeEncode, PAGE, PageBytes};
use whimbrel_model::registry::Kind;
use whimbrel_model::{Entry, Parameter, ParameterError};

pub(super) const ENTRY: Entry<MakeEncode> = Entry {
    name: "faulty",
    summary: "for tests: flips one bit of every n-th page that reaches it, or loses one page",
    parameters: &[
        Parameter {
            name: "faulty_every",
            summary: "of how many pages one is damaged",
            kind: Kind::Count,
            default: Some("100"),
        },
        Parameter {
            name: "faulty_page",
            summary: "the one page that is damaged, by its number, each time that it goes; left out: every n-th",
            kind: Kind::Count,
            default: None,
        },
        Parameter {
            name: "faulty_by",
            summary: "what becomes of it: a bit is flipped, or it arrives as zeroes",
            kind: Kind::Choice(&["bit", "loss"]),
            default: Some("bit"),
        },
    ],
    source: "Whimbrel",
    build: |parameters| match parameters.count("faulty_every") {
        0 => Err(ParameterError::Value {
            key: "faulty_every".to_owned(),
            found: "0".to_owned(),
            accepted: "at least 1 page".to_owned(),
        }),
        every => Ok(Box::new(Faulty {
            every,
            page: parameters.optional_number("faulty_page").map(|page| page as u64),
            loses: parameters.word("faulty_by") == "loss",
            seen: 0,
        })),
    },
};

struct Faulty {
    every: u64,
    page: Option<u64>,
    loses: bool,
    seen: u64,
}

impl Encode for Faulty {
    fn live(&self) -> bool {
        false
    }

    fn encode(&mut self, page: u64, content: &PageBytes, out: &mut Vec<u8>) -> Option<Encoding> {
        self.seen += 1;
        if !self.page.map_or(self.seen.is_multiple_of(self.every), |damaged| damaged == page) {
            return None;
        }
        if self.loses {
            return Some(Encoding::Zero);
        }
        out.extend_from_slice(content);
        out[page as usize % PAGE] ^= 1;
        Some(Encoding::Raw)
    }
}
