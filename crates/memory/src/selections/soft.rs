//! Soft pages: what is free in the guest is nobody's, and needn't go at all.
//!
//! Of the paper's two kinds of soft pages this leaves out the free ones. The other, clean page cache, a guest would have to drop
//! before it goes on, which takes a change of its kernel.

use crate::select::{MakeSelect, Select, SelectView};
use whimbrel_model::registry::Kind;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{Entry, Extent, Parameter};

pub(super) const ENTRY: Entry<MakeSelect> = Entry {
    name: "soft",
    summary: "leaves out pages that the guest says are free, while pushing and, for good, at the pause",
    parameters: &[Parameter {
        name: "ask_every",
        summary: "pages that go between two questions to the guest; the first comes before any page",
        kind: Kind::Positive,
        default: Some("16384"),
    }],
    source: "Koto et al., SonicMigration, APSys 2012; of its soft pages the free ones",
    build: |parameters| Ok(Box::new(Soft { every: parameters.count("ask_every") })),
};

struct Soft {
    every: u64,
}

impl Select for Soft {
    fn peek_every(&self) -> Option<u64> {
        None
    }

    fn ask_every(&self) -> Option<u64> {
        Some(self.every)
    }

    fn choose(&mut self, pages: Extent, view: &SelectView<'_>, keep: &mut Vec<Extent>) {
        match (view.stage, view.free) {
            (Stage::Push | Stage::Paused, Some(free)) => keep.extend(free.absent_in(pages)),
            // What was left behind is not free: the mask was frozen at the pause.
            _ => keep.push(pages),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use whimbrel_model::{Page, UnitSet};

    proptest! {
        #[test]
        fn what_goes_is_what_is_not_free(start in 0u64..200, count in 1u64..100,
                                         free in prop::collection::btree_set(0u64..300, 0..120)) {
            let mut set = UnitSet::<Page>::empty(300);
            free.iter().for_each(|page| { set.insert(*page); });
            let pages = Extent { start, count };
            let chosen = |stage, free| {
                let mut keep = Vec::new();
                Soft { every: 1 }.choose(pages, &SelectView { stage, peeked: None, free }, &mut keep);
                assert!(keep.windows(2).all(|pair| pair[0].end() < pair[1].start), "runs ascend and don't touch");
                keep.into_iter().flat_map(Extent::indices).collect::<BTreeSet<u64>>()
            };
            let all: BTreeSet<u64> = pages.indices().collect();
            let hard: BTreeSet<u64> = all.difference(&free).copied().collect();
            prop_assert_eq!(&chosen(Stage::Push, Some(&set)), &hard);
            prop_assert_eq!(&chosen(Stage::Paused, Some(&set)), &hard);
            prop_assert_eq!(&chosen(Stage::Pull, Some(&set)), &all);
            prop_assert_eq!(&chosen(Stage::Push, None), &all, "nothing is known to be free before the guest has said so");
            prop_assert_eq!(&chosen(Stage::Paused, None), &all);
        }
    }
}
