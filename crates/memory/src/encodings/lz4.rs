//! Each page as one LZ4 block.

use crate::encode::{DecodeError, Encode, Encoding, MakeEncode, PAGE, PageBytes};
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};
use whimbrel_model::Entry;

pub(super) const ENTRY: Entry<MakeEncode> = Entry {
    name: "lz4",
    summary: "compresses the page by itself, where that makes it smaller",
    parameters: &[],
    source: "QEMU, multifd compression; Jin et al., CLUSTER 2009, of whose classes it is the general one",
    build: |_| Ok(Box::new(Lz4 { table: CompressTable::small() })),
};

struct Lz4 {
    table: CompressTable,
}

impl Encode for Lz4 {
    fn live(&self) -> bool {
        false
    }

    fn encode(&mut self, _: u64, content: &PageBytes, out: &mut Vec<u8>) -> Option<Encoding> {
        out.resize(get_maximum_output_size(PAGE), 0);
        let length = compress_into_with_table(content, out, &mut self.table).ok()?;
        out.truncate(length);
        (length < PAGE).then_some(Encoding::Lz4)
    }
}

pub(super) fn decode(payload: &[u8], page: &mut PageBytes) -> Result<(), DecodeError> {
    let malformed = |why| DecodeError::Malformed { kind: Encoding::Lz4, why };
    match decompress_into(payload, page) {
        Ok(PAGE) => Ok(()),
        Ok(_) => Err(malformed("they yield less than a page")),
        Err(_) => Err(malformed("they are no block, or one of more than a page")),
    }
}
