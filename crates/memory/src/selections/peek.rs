//! The peek rule: a page that was already written again needn't go now, it will have to go later anyway.

use crate::select::{MakeSelect, Select, SelectView};
use whimbrel_model::registry::Kind;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{Entry, Extent, Parameter, ParameterError};

pub(super) const ENTRY: Entry<MakeSelect> = Entry {
    name: "peek",
    summary: "lets pages wait that were written again since the last round ended, as a look at the log tells",
    parameters: &[Parameter {
        name: "peek_every",
        summary: "pages offered between two looks at the log of writes",
        kind: Kind::Count,
        default: Some("1024"),
    }],
    source: "Clark et al., NSDI 2005",
    build: |parameters| match parameters.count("peek_every") {
        0 => Err(ParameterError::Value {
            key: "peek_every".to_owned(),
            found: "0".to_owned(),
            accepted: "at least 1 page".to_owned(),
        }),
        every => Ok(Box::new(Peek { every })),
    },
};

struct Peek {
    every: u64,
}

impl Select for Peek {
    fn peek_every(&self) -> Option<u64> {
        Some(self.every)
    }

    fn choose(&mut self, pages: Extent, view: &SelectView<'_>, keep: &mut Vec<Extent>) {
        match (view.stage, view.peeked) {
            (Stage::Push, Some(written)) => keep.extend(written.absent_in(pages)),
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
        fn what_goes_is_what_was_not_written_again(start in 0u64..200, count in 1u64..100,
                                                   written in prop::collection::btree_set(0u64..300, 0..120)) {
            let mut set = UnitSet::<Page>::empty(300);
            written.iter().for_each(|page| { set.insert(*page); });
            let pages = Extent { start, count };
            let chosen = |stage| {
                let mut keep = Vec::new();
                Peek { every: 1 }.choose(pages, &SelectView { stage, peeked: Some(&set), free: Some(&set) }, &mut keep);
                assert!(keep.windows(2).all(|pair| pair[0].end() < pair[1].start), "runs ascend and don't touch");
                keep.into_iter().flat_map(Extent::indices).collect::<BTreeSet<u64>>()
            };
            let all: BTreeSet<u64> = pages.indices().collect();
            prop_assert_eq!(chosen(Stage::Push), all.difference(&written).copied().collect::<BTreeSet<_>>());
            prop_assert_eq!(chosen(Stage::Paused), all.clone(), "nothing may wait while the guest is paused");
            prop_assert_eq!(chosen(Stage::Pull), all);
        }
    }
}
