//! What a page differs in from the version that was sent last: XBZRLE, by words of 8 bytes.
//!
//! The payload is a list of runs: how many words stay, how many change, and those words' new bytes. Numbers are LEB128
//! in one or two bytes. Words after the last run stay; a page that didn't change has no runs and no bytes.
//!
//! The versions sent last lie in a bounded cache. Each page has one place in it, which the page sent last holds:
//!
//! | the place of a page holds | encode | sent |
//! |---|---|---|
//! | nothing | doesn't pay | the page takes it |
//! | this page | the difference from it, if that is smaller | the new version replaces the old |
//! | another page | doesn't pay | the page takes it, the other one's base is gone |
//!
//! So a base is always exactly what the other end holds, as long as every page goes through one chain, in order.

use crate::encode::{DecodeError, Encode, Encoding, MakeEncode, PAGE, PageBytes};
use std::collections::HashMap;
use whimbrel_model::registry::Kind;
use whimbrel_model::{Bytes, Entry, PAGE_BYTES, Parameter, ParameterError};

pub(super) const ENTRY: Entry<MakeEncode> = Entry {
    name: "delta",
    summary: "sends what changed in the page since it was last sent, where that is smaller",
    parameters: &[Parameter {
        name: "delta_cache",
        summary: "the memory for versions sent before; pages that share a place in it drive each other out",
        kind: Kind::Size,
        default: Some("32 MiB"),
    }],
    source: "Svard et al., VEE 2011: XBZRLE",
    build: |parameters| match parameters.size("delta_cache") {
        Bytes(bytes) if bytes >= PAGE_BYTES => Ok(Box::new(Delta { places: bytes / PAGE_BYTES, held: HashMap::new() })),
        bytes => Err(ParameterError::Value {
            key: "delta_cache".to_owned(),
            found: bytes.to_string(),
            accepted: "at least \"4 KiB\", one page: without a version to differ from there is no delta".to_owned(),
        }),
    },
};

/// Bytes in a word, the granule of a difference.
const WORD: usize = 8;
/// Words in a page.
const WORDS: usize = PAGE / WORD;

struct Delta {
    /// Places in the cache. Memory is taken only for those that are held.
    places: u64,
    held: HashMap<u64, Version>,
}

struct Version {
    page: u64,
    content: Box<PageBytes>,
}

impl Encode for Delta {
    fn live(&self) -> bool {
        false
    }

    fn encode(&mut self, page: u64, content: &PageBytes, out: &mut Vec<u8>) -> Option<Encoding> {
        let base = self.held.get(&(page % self.places)).filter(|version| version.page == page)?;
        write_runs(&base.content, content, out).then_some(Encoding::Delta)
    }

    fn sent(&mut self, page: u64, content: &PageBytes) {
        let place = page % self.places;
        let version = self.held.entry(place).or_insert_with(|| Version { page, content: Box::new([0; PAGE]) });
        version.page = page;
        version.content.copy_from_slice(content);
    }

    fn forget(&mut self) {
        self.held.clear();
    }
}

/// Writes the runs in which `new` differs from `old`. False where they would not be smaller than the page.
fn write_runs(old: &PageBytes, new: &PageBytes, out: &mut Vec<u8>) -> bool {
    let (old_words, _) = old.as_chunks::<WORD>();
    let (new_words, _) = new.as_chunks::<WORD>();
    let mut at = 0;
    loop {
        let stays = at;
        while at < WORDS && old_words[at] == new_words[at] {
            at += 1;
        }
        if at == WORDS {
            return true;
        }
        let changes = at;
        while at < WORDS && old_words[at] != new_words[at] {
            at += 1;
        }
        put_number(out, changes - stays);
        put_number(out, at - changes);
        out.extend_from_slice(&new[changes * WORD..at * WORD]);
        if out.len() >= PAGE {
            return false;
        }
    }
}

fn put_number(out: &mut Vec<u8>, number: usize) {
    debug_assert!(number <= WORDS, "a run is at most a page, which two bytes hold");
    if number < 0x80 {
        out.push(number as u8);
    } else {
        out.extend([number as u8 | 0x80, (number >> 7) as u8]);
    }
}

fn take_number(rest: &mut &[u8]) -> Option<usize> {
    let (number, taken) = match **rest {
        [low, ..] if low < 0x80 => (usize::from(low), 1),
        [low, high, ..] if high < 0x80 => (usize::from(low & 0x7f) | usize::from(high) << 7, 2),
        _ => return None,
    };
    *rest = &rest[taken..];
    Some(number)
}

pub(super) fn decode(payload: &[u8], page: &mut PageBytes) -> Result<(), DecodeError> {
    let malformed = |why| DecodeError::Malformed { kind: Encoding::Delta, why };
    let (mut rest, mut at) = (payload, 0);
    while !rest.is_empty() {
        let stay = take_number(&mut rest).ok_or(malformed("a number doesn't end"))?;
        let change = take_number(&mut rest).ok_or(malformed("a number doesn't end"))?;
        let (from, to) = (at + stay, at + stay + change);
        if change == 0 || to > WORDS {
            return Err(malformed("a run is empty or goes beyond the page"));
        }
        let (bytes, after) = rest.split_at_checked(change * WORD).ok_or(malformed("a run's bytes are cut off"))?;
        page[from * WORD..to * WORD].copy_from_slice(bytes);
        (rest, at) = (after, to);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use whimbrel_model::Parameters;

    fn page_of(words: &[(usize, u64)]) -> PageBytes {
        let mut page = [0; PAGE];
        for (at, word) in words {
            page[at * WORD..][..WORD].copy_from_slice(&word.to_le_bytes());
        }
        page
    }

    fn delta(cache: &str) -> Box<dyn Encode> {
        let given = [("delta_cache".to_owned(), cache.into())].into();
        (ENTRY.build)(&Parameters::read(ENTRY.parameters, &given).unwrap()).unwrap()
    }

    proptest! {
        #[test]
        fn runs_turn_the_old_version_into_the_new(old in prop::collection::vec((0..WORDS, any::<u64>()), 0..300),
                                                  new in prop::collection::vec((0..WORDS, any::<u64>()), 0..300)) {
            let (old, new) = (page_of(&old), page_of(&new));
            let mut out = Vec::new();
            if write_runs(&old, &new, &mut out) {
                prop_assert!(out.len() < PAGE);
                let mut page = old;
                decode(&out, &mut page).unwrap();
                prop_assert!(page == new);
            }
        }
    }

    #[test]
    fn one_changed_word_takes_its_bytes_and_two_numbers() {
        let mut out = Vec::new();
        assert!(write_runs(&page_of(&[]), &page_of(&[(300, 7)]), &mut out));
        assert_eq!(out, [0xac, 0x02, 1, 7, 0, 0, 0, 0, 0, 0, 0]);
        out.clear();
        assert!(write_runs(&page_of(&[(3, 7)]), &page_of(&[(3, 7)]), &mut out));
        assert!(out.is_empty(), "nothing changed, nothing sent");
        assert!(!write_runs(&[0; PAGE], &[1; PAGE], &mut out), "a page that changed throughout doesn't pay");
    }

    #[test]
    fn pages_that_share_a_place_drive_each_other_out() {
        let mut encode = delta("8 KiB");
        let (a, b) = (page_of(&[(0, 1)]), page_of(&[(0, 2)]));
        let try_page = |encode: &mut Box<dyn Encode>, page, content| {
            let mut out = Vec::new();
            encode.encode(page, content, &mut out)
        };
        encode.sent(4, &a);
        assert_eq!(try_page(&mut encode, 4, &b), Some(Encoding::Delta));
        assert_eq!(try_page(&mut encode, 6, &b), None, "page 6 was never sent, though page 4 holds its place");
        encode.sent(6, &a);
        assert_eq!(try_page(&mut encode, 4, &b), None);
        assert_eq!(try_page(&mut encode, 6, &b), Some(Encoding::Delta));
        encode.forget();
        assert_eq!(try_page(&mut encode, 6, &b), None);
    }

    #[test]
    fn hostile_runs_are_refused() {
        for payload in [&[0x80][..], &[0], &[0, 0], &[0, 1, 9], &[0xff, 0x7f, 1, 0, 0, 0, 0, 0, 0, 0, 0], &[0, 0x80]] {
            assert!(decode(payload, &mut [0; PAGE]).is_err(), "{payload:?}");
        }
    }

    #[test]
    fn a_cache_without_a_place_is_refused() {
        let given = [("delta_cache".to_owned(), "4095 B".into())].into();
        let refused = (ENTRY.build)(&Parameters::read(ENTRY.parameters, &given).unwrap()).map(|_| ()).unwrap_err();
        assert!(refused.to_string().contains("delta_cache"), "{refused}");
    }
}
