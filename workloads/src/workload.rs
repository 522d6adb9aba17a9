//! The seam: what a generator is built from, and what a member of the registry says of itself.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ops::Range;
use whimbrel_model::registry::{ParameterError, Parameters};
use whimbrel_model::rng::derive;
use whimbrel_model::stream::{Shape, Stream, StreamError};

/// Sectors to which a vCPU's share of the disk is aligned: 4 KiB.
const ALIGN_SECTORS: u64 = 8;

/// What streams are built for: a guest, or the part of one that a `mix` gives to some of its vCPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildContext {
    /// Size of the guest (or part): pages, sectors and vCPUs that the streams share among them.
    pub shape: Shape,
    /// The seed of all that is drawn.
    pub seed: u64,
    /// The first page of the part; 0 for a whole guest.
    pub first_page: u64,
    /// The first sector of the part; 0 for a whole guest.
    pub first_sector: u64,
}

impl BuildContext {
    /// A whole guest.
    pub fn new(shape: Shape, seed: u64) -> Self {
        BuildContext { shape, seed, first_page: 0, first_sector: 0 }
    }

    /// The share of vCPU `index`: pages and sectors of its own, the same number for each vCPU but for rounding.
    pub fn share(&self, index: u32) -> Share {
        let cut = |count: u64, i: u32, align: u64| {
            let even = u128::from(count) * u128::from(i) / u128::from(self.shape.vcpus.max(1));
            if i == self.shape.vcpus { count } else { even as u64 / align * align }
        };
        let pages = cut(self.shape.pages, index, 1)..cut(self.shape.pages, index + 1, 1);
        let sectors = cut(self.shape.sectors, index, ALIGN_SECTORS)..cut(self.shape.sectors, index + 1, ALIGN_SECTORS);
        Share {
            index,
            filled_sectors: self.shape.filled_sectors.clamp(sectors.start, sectors.end) - sectors.start,
            pages: pages.start + self.first_page..pages.end + self.first_page,
            sectors: sectors.start + self.first_sector..sectors.end + self.first_sector,
            seed: derive(self.seed, u64::from(index)),
        }
    }

    /// The shares of all vCPUs, in order.
    pub fn shares(&self) -> impl Iterator<Item = Share> + '_ {
        (0..self.shape.vcpus).map(|index| self.share(index))
    }
}

/// What one vCPU's stream owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The vCPU's index within the context.
    pub index: u32,
    /// Its pages.
    pub pages: Range<u64>,
    /// Its sectors; empty without a disk.
    pub sectors: Range<u64>,
    /// How many of its sectors, from the first, are filled before operation 0.
    pub filled_sectors: u64,
    /// A seed of its own.
    pub seed: u64,
}

impl Share {
    /// How many pages there are.
    pub fn page_count(&self) -> u64 {
        self.pages.end - self.pages.start
    }

    /// How many sectors there are.
    pub fn sector_count(&self) -> u64 {
        self.sectors.end - self.sectors.start
    }
}

/// The streams of a guest, one a vCPU, in the order of the vCPUs.
pub type Streams = Vec<Box<dyn Stream>>;

/// What a workload asks of the guest by its parameters alone; `None`: as fast as it can, or not known beforehand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Offered {
    /// Pages written x page size, rewrites counted, in bytes a second.
    pub write_bytes_per_s: Option<f64>,
    /// Memory that is written, in bytes.
    pub working_set_bytes: Option<u64>,
    /// Bytes written to the disk, rewrites counted, in bytes a second.
    pub disk_write_bytes_per_s: Option<f64>,
}

/// A member of the registry, besides its name and parameters.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Makes the streams, one a vCPU.
    pub streams: fn(&Parameters, &BuildContext) -> Result<Streams, ParameterError>,
    /// What it asks of the guest.
    pub offered: fn(&Parameters, &BuildContext) -> Offered,
    /// The unit in which its work is counted, in the plural.
    pub unit: &'static str,
    /// The content that the guest holds before operation 0 where the experiment names none.
    pub content: &'static str,
}

/// Says that the value of `key` can't be taken, and what could.
pub fn refuse(key: &str, found: impl std::fmt::Display, accepted: impl Into<String>) -> ParameterError {
    ParameterError::Value { key: key.to_owned(), found: found.to_string(), accepted: accepted.into() }
}

/// Encodes a generator's state.
pub(crate) fn save<S: Serialize>(state: &S) -> Vec<u8> {
    serde_json::to_vec(state).expect("a generator's state is plain numbers")
}

/// Decodes a generator's state and checks it: `check` says what is wrong with a state that decodes but can't be.
pub(crate) fn restore<S: DeserializeOwned>(
    workload: &'static str,
    bytes: &[u8],
    check: impl FnOnce(&S) -> Result<(), &'static str>,
) -> Result<S, StreamError> {
    let state: S = serde_json::from_slice(bytes).map_err(|e| StreamError { workload, why: e.to_string() })?;
    check(&state).map_err(|why| StreamError { workload, why: why.to_owned() })?;
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shares_are_disjoint_and_cover(pages in 8u64..100_000, sectors in 0u64..100_000, vcpus in 1u32..9) {
            let shape = Shape { pages, sectors, filled_sectors: sectors / 3, vcpus };
            let context = BuildContext::new(shape, 1);
            let (mut page, mut sector, mut filled) = (0, 0, 0);
            for share in context.shares() {
                prop_assert_eq!((share.pages.start, share.sectors.start), (page, sector));
                (page, sector) = (share.pages.end, share.sectors.end);
                filled += share.filled_sectors;
            }
            prop_assert_eq!((page, sector, filled), (pages, sectors, sectors / 3));
        }
    }
}
