//! The null encoding: the page as it is.

use crate::encode::{DecodeError, Encode, Encoding, MakeEncode, PAGE, PageBytes};
use whimbrel_model::Entry;

pub(super) const ENTRY: Entry<MakeEncode> = Entry {
    name: "raw",
    summary: "the page as it is, read while the guest runs",
    parameters: &[],
    source: "the null member",
    build: |_| Ok(Box::new(Raw)),
};

struct Raw;

impl Encode for Raw {
    fn live(&self) -> bool {
        true
    }

    fn encode(&mut self, _: u64, _: &PageBytes, _: &mut Vec<u8>) -> Option<Encoding> {
        Some(Encoding::Raw)
    }
}

pub(super) fn decode(payload: &[u8], page: &mut PageBytes) -> Result<(), DecodeError> {
    match payload.try_into() {
        Ok(content) => {
            *page = content;
            Ok(())
        }
        Err(_) => Err(DecodeError::Length { kind: Encoding::Raw, found: payload.len(), wanted: PAGE }),
    }
}
