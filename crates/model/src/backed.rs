//! A reference from pages to the disk: the one word that memory and disk have in common.

use crate::set::Extent;
use crate::units::PAGE_BYTES;
use serde::{Deserialize, Serialize};

/// Pages that hold what the guest's disk holds from a byte on, as pages of a page cache do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backed {
    /// The pages.
    pub pages: Extent,
    /// Where on the disk the first of them lies; the others follow it.
    pub offset_bytes: u64,
}

impl Backed {
    /// The runs of pairs, a page and where it lies on the disk, that follow each other.
    pub fn runs(pairs: impl IntoIterator<Item = (u64, u64)>) -> Vec<Backed> {
        let mut runs: Vec<Backed> = Vec::new();
        for (page, offset_bytes) in pairs {
            match runs.last_mut() {
                Some(last) if last.pages.end() == page && last.end_bytes() == Some(offset_bytes) => {
                    last.pages.count += 1
                }
                _ => runs.push(Backed { pages: Extent { start: page, count: 1 }, offset_bytes }),
            }
        }
        runs
    }

    /// The byte of the disk behind the last; `None` where no number says it.
    pub fn end_bytes(self) -> Option<u64> {
        self.offset_bytes.checked_add(self.pages.count.checked_mul(PAGE_BYTES)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_each_other_is_one_run() {
        let run = |start, count, offset_bytes| Backed { pages: Extent { start, count }, offset_bytes };
        assert_eq!(
            Backed::runs([(3, 0), (4, 4096), (5, 4096), (7, 8192), (6, 12288)]),
            [run(3, 2, 0), run(5, 1, 4096), run(7, 1, 8192), run(6, 1, 12288)]
        );
        assert_eq!(run(0, u64::MAX, 1).end_bytes(), None);
    }
}
