//! A page of zeros is told, not sent.

use crate::encode::{DecodeError, Encode, Encoding, MakeEncode, PAGE, PageBytes};
use whimbrel_model::Entry;

pub(super) const ENTRY: Entry<MakeEncode> = Entry {
    name: "zero",
    summary: "tells of a page of zeros instead of sending it",
    parameters: &[],
    source: "QEMU, zero page detection",
    build: |_| Ok(Box::new(Zero)),
};

struct Zero;

impl Encode for Zero {
    fn live(&self) -> bool {
        // A page that was zero when it was looked at and is written after is in the log of writes.
        true
    }

    fn encode(&mut self, _: u64, content: &PageBytes, _: &mut Vec<u8>) -> Option<Encoding> {
        (content == &[0; PAGE]).then_some(Encoding::Zero)
    }
}

pub(super) fn decode(payload: &[u8], page: &mut PageBytes) -> Result<(), DecodeError> {
    if !payload.is_empty() {
        return Err(DecodeError::Length { kind: Encoding::Zero, found: payload.len(), wanted: 0 });
    }
    page.fill(0);
    Ok(())
}
