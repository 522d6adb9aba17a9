//! Every chain of encodings against a destination that holds what it was sent; and decoders against bytes from anyone.

use proptest::prelude::*;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use whimbrel_memory::{BuildContext, ENCODINGS, EncodeChain, Encoding, MemoryChoice, PAGE, PageBytes, decode};
use whimbrel_model::Rng;
use whimbrel_model::content::Content;

fn chain(names: &[&str]) -> EncodeChain {
    let mut keys = BTreeMap::from([("encode".to_owned(), json!(names))]);
    if names.contains(&"delta") {
        // Three places for the eight pages of the test, so that they drive each other out.
        keys.insert("delta_cache".to_owned(), json!("12 KiB"));
    }
    MemoryChoice::read(&keys).unwrap().build(&BuildContext { pages: 8, seed: 1 }).encode
}

/// Content as a guest has it: of some class, with a few words of its own.
fn page_of(seed: u64, class: u64, words: &[(usize, u64)]) -> PageBytes {
    let mut page = [0; PAGE];
    let class = ["zero", "text", "pointers", "random"][class as usize % 4];
    Content::read("content", &json!(class)).unwrap().fill_page(seed, 0, &mut page);
    for (at, word) in words {
        page[at % 512 * 8..][..8].copy_from_slice(&word.to_le_bytes());
    }
    page
}

/// A page that is sent: its number, then what it holds. Few seeds, so that versions often differ by a few words only.
fn a_page() -> impl Strategy<Value = (u64, PageBytes)> {
    let words = prop::collection::vec((0usize..512, any::<u64>()), 0..20);
    (0u64..8, 0u64..3, 0u64..4, words).prop_map(|(page, seed, class, words)| (page, page_of(seed, class, &words)))
}

/// All orders of up to three of the honest encodings.
fn chains() -> Vec<Vec<&'static str>> {
    let honest: Vec<&str> = ENCODINGS.names().filter(|name| !["raw", "faulty"].contains(name)).collect();
    let mut all: Vec<Vec<&str>> = vec![vec![]];
    for _ in &honest {
        let longer = all.iter().flat_map(|c| honest.iter().filter(|n| !c.contains(n)).map(|n| [&c[..], &[n]].concat()));
        all = all.iter().cloned().chain(longer.collect::<Vec<_>>()).collect();
        all.sort();
        all.dedup();
    }
    all.into_iter().map(|c| [&c[..], &["raw"]].concat()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_chain_the_destination_holds_what_was_sent(pages in prop::collection::vec(a_page(), 1..60),
                                                          forget_at in 0usize..60) {
        for names in chains() {
            let mut chain = chain(&names);
            let mut destination: HashMap<u64, PageBytes> = HashMap::new();
            for (at, (page, content)) in pages.iter().enumerate() {
                if at == forget_at {
                    chain.forget();
                    destination.clear();
                }
                let held = destination.entry(*page).or_insert([0xa5; PAGE]);
                let encoded = chain.encode(*page, content);
                prop_assert!(encoded.payload.len() <= PAGE);
                prop_assert!(encoded.kind == Encoding::Raw || encoded.payload.len() < PAGE, "what doesn't pay goes raw");
                let kind = Encoding::try_from(encoded.kind.code()).unwrap();
                decode(kind, encoded.payload, held).unwrap();
                prop_assert!(held == content, "page {page} by {kind:?} in {names:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn no_bytes_make_a_decoder_panic(code in any::<u8>(), payload in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(kind) = Encoding::try_from(code % 6) {
            let _ = decode(kind, &payload, &mut [0; PAGE]);
        }
        prop_assert_eq!(Encoding::try_from(code).map(Encoding::code).ok(), (1..=4).contains(&code).then_some(code));
    }

    #[test]
    fn damaged_pages_never_panic((page, content) in a_page(), older in a_page(), hits in prop::collection::vec((any::<u16>(), any::<u8>()), 1..4),
                                 cut in any::<u16>(), name in prop::sample::select(vec!["delta", "lz4"])) {
        let mut chain = chain(&[name]);
        chain.encode(page, &older.1);
        let encoded = chain.encode(page, &content);
        let (kind, mut payload) = (encoded.kind, encoded.payload.to_vec());
        let len = payload.len().max(1);
        for (at, byte) in hits {
            if let Some(hit) = payload.get_mut(at as usize % len) {
                *hit ^= byte;
            }
        }
        payload.truncate(cut as usize % (2 * len));
        let _ = decode(kind, &payload, &mut [0; PAGE]);
    }
}

#[test]
fn an_lz4_block_of_another_length_is_refused() {
    for length in [0, 1, PAGE - 1, PAGE + 1, 1 << 20] {
        let block = lz4_flex::block::compress(&vec![7; length]);
        assert!(decode(Encoding::Lz4, &block, &mut [0; PAGE]).is_err(), "{length}");
    }
}

#[test]
fn the_first_that_pays_wins() {
    let text = page_of(1, 1, &[]);
    let mut changed = text;
    changed[77] ^= 1;
    let kinds = |names: &[&str], pages: &[&PageBytes]| {
        let mut chain = chain(names);
        pages.iter().map(|content| chain.encode(0, content).kind).collect::<Vec<_>>()
    };
    use Encoding::{Delta, Lz4, Raw, Zero};
    let pages = [&[0; PAGE], &text, &changed, &page_of(1, 3, &[]), &[0; PAGE]];
    assert_eq!(kinds(&["zero", "delta", "lz4"], &pages), [Zero, Lz4, Delta, Raw, Zero]);
    assert_eq!(kinds(&["lz4", "delta", "zero"], &pages), [Lz4, Lz4, Lz4, Raw, Lz4]);
    assert_eq!(kinds(&["raw"], &pages), [Raw; 5]);
}

#[test]
fn only_what_needs_no_stable_copy_may_read_live_memory() {
    for name in ENCODINGS.names() {
        assert_eq!(chain(&[name]).live(), ["raw", "zero"].contains(&name), "{name}");
    }
    assert!(chain(&["zero", "raw"]).live());
    assert!(!chain(&["zero", "lz4"]).live());
}

#[test]
fn the_faulty_member_damages_every_nth_page_and_no_other() {
    let mut chain = chain(&["zero", "faulty"]);
    let mut rng = Rng::new(3);
    let wrong = (0..1000).filter(|page| {
        let content = page_of(rng.next_u64(), 3, &[]);
        let mut held = [0; PAGE];
        let encoded = chain.encode(*page, &content);
        decode(encoded.kind, encoded.payload, &mut held).unwrap();
        held != content
    });
    assert_eq!(wrong.collect::<Vec<_>>(), (0..10).map(|n| n * 100 + 99).collect::<Vec<_>>());
}
