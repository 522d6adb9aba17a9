//! Sets of pages and blocks as bytes, for the bitmaps that cross in the switchover.
//!
//! ```text
//!   0         1        2                    10
//!   ┌─────────┬────────┬────────────────────┬──────────────────────────────────────────┐
//!   │ format  │ unit   │ universe, u64 BE   │ the members in roaring's portable format │
//!   │ 1       │ p or b │ at most 2^32       │ (arrays, bitmaps or runs of 65,536 each) │
//!   └─────────┴────────┴────────────────────┴──────────────────────────────────────────┘
//! ```
//!
//! A set is written with runs wherever they are shorter; a full set of any size takes a few bytes for 65,536 members,
//! a scattered one never more than a plain bitmap and 2 bytes for each member.

use crate::WireError;
use roaring::RoaringBitmap;
use whimbrel_model::{Extent, Unit, UnitSet};

/// The largest universe that a set may have: 16 TiB in units of 4 KiB.
pub const LARGEST_UNIVERSE: u64 = 1 << 32;

const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 10;
const WHAT: &str = "set";

/// A set as bytes.
///
/// # Errors
/// The universe is larger than [`LARGEST_UNIVERSE`].
pub fn encode<U: Unit>(set: &UnitSet<U>) -> Result<Vec<u8>, WireError> {
    check_universe(set.len(), LARGEST_UNIVERSE)?;
    let mut bitmap = RoaringBitmap::new();
    for extent in set.extents() {
        // The universe is at most 2^32, so the first and last member fit in 32 bits.
        bitmap.insert_range(extent.start as u32..=(extent.end() - 1) as u32);
    }
    bitmap.optimize();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + bitmap.serialized_size());
    bytes.extend_from_slice(&[FORMAT, unit_tag::<U>()]);
    bytes.extend_from_slice(&set.len().to_be_bytes());
    bitmap.serialize_into(&mut bytes)?;
    Ok(bytes)
}

/// The set that `bytes` hold, over a universe that the receiver knows. Memory: the universe's bits and the input's size.
///
/// # Errors
/// The bytes are no set of this unit, or one over another universe. They may come from anyone: nothing panics.
pub fn decode<U: Unit>(bytes: &[u8], universe: u64) -> Result<UnitSet<U>, WireError> {
    let set = decode_within(bytes, universe)?;
    if set.len() != universe {
        let why = format!("it is over {} {}s, {universe} expected", set.len(), U::NAME);
        return Err(WireError::malformed(WHAT, why));
    }
    Ok(set)
}

/// The set that `bytes` hold, over any universe up to `largest`.
///
/// # Errors
/// As for [`decode`].
pub fn decode_within<U: Unit>(bytes: &[u8], largest: u64) -> Result<UnitSet<U>, WireError> {
    let (header, mut members) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(WireError::Truncated { what: WHAT })?;
    let [format, unit, universe @ ..] = *header;
    let universe = u64::from_be_bytes(universe);
    if format != FORMAT {
        return Err(WireError::malformed(WHAT, format!("format {format} is unknown")));
    }
    if unit != unit_tag::<U>() {
        return Err(WireError::malformed(WHAT, format!("it is not a set of {}s", U::NAME)));
    }
    check_universe(universe, largest.min(LARGEST_UNIVERSE))?;
    let bitmap =
        RoaringBitmap::deserialize_from(&mut members).map_err(|error| WireError::malformed(WHAT, error.to_string()))?;
    if !members.is_empty() {
        return Err(WireError::malformed(WHAT, format!("{} bytes follow it", members.len())));
    }
    if bitmap.max().is_some_and(|last| u64::from(last) >= universe) {
        return Err(WireError::malformed(WHAT, "a member lies beyond the universe"));
    }
    Ok(UnitSet::from_extents(universe, runs(&bitmap)))
}

/// The runs of a bitmap, ascending.
fn runs(bitmap: &RoaringBitmap) -> impl Iterator<Item = Extent> + '_ {
    let mut members = bitmap.iter();
    std::iter::from_fn(move || {
        let run = members.next_range()?;
        let (first, last) = (u64::from(*run.start()), u64::from(*run.end()));
        Some(Extent { start: first, count: last - first + 1 })
    })
}

fn check_universe(universe: u64, limit: u64) -> Result<(), WireError> {
    if universe > limit {
        return Err(WireError::TooLarge { what: "a set's universe", found: universe, limit });
    }
    Ok(())
}

fn unit_tag<U: Unit>() -> u8 {
    U::NAME.as_bytes().first().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use whimbrel_model::{Block, Page};

    fn extents() -> impl Strategy<Value = Vec<Extent>> {
        prop::collection::vec((0u64..300_000, 1u64..9_000), 0..40)
            .prop_map(|v| v.into_iter().map(|(start, count)| Extent { start, count }).collect())
    }

    proptest! {
        #[test]
        fn a_set_survives_the_crossing(universe in 1u64..300_000, extents in extents(),
                                       single in prop::collection::vec(0u64..300_000, 0..3000)) {
            let mut set = UnitSet::<Page>::from_extents(universe, extents);
            for index in single {
                set.insert(index);
            }
            let bytes = encode(&set).unwrap();
            prop_assert_eq!(decode::<Page>(&bytes, universe).unwrap(), set);
            prop_assert!(decode::<Page>(&bytes, universe + 1).is_err());
            prop_assert!(decode_within::<Page>(&bytes, universe - 1).is_err());
            prop_assert!(decode::<Block>(&bytes, universe).is_err());
        }

        #[test]
        fn damaged_bytes_are_refused_or_decode_within_the_universe(
            extents in extents(), flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(), truncate in any::<bool>(),
        ) {
            let mut bytes = encode(&UnitSet::<Block>::from_extents(300_000, extents)).unwrap();
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if truncate {
                bytes.truncate(cut.index(bytes.len()));
            }
            if let Ok(set) = decode_within::<Block>(&bytes, 300_000) {
                prop_assert!(set.len() <= 300_000);
            }
        }

        #[test]
        fn noise_is_survived(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_within::<Page>(&noise, 1 << 20);
            let mut dressed = vec![FORMAT, b'p', 0, 0, 0, 0, 0, 0x10, 0, 0, 0x3b, 0x30];
            dressed.extend_from_slice(&noise);
            let _ = decode_within::<Page>(&dressed, 1 << 20);
        }
    }

    #[test]
    fn a_full_set_of_a_terabyte_is_small() {
        let full = UnitSet::<Block>::full(1 << 28);
        let bytes = encode(&full).unwrap();
        assert!(bytes.len() < 1 << 17, "{} bytes", bytes.len());
        assert_eq!(decode::<Block>(&bytes, 1 << 28).unwrap(), full);
    }

    #[test]
    fn a_claimed_universe_is_bounded() {
        let mut bytes = encode(&UnitSet::<Page>::empty(5)).unwrap();
        bytes[2..10].copy_from_slice(&u64::MAX.to_be_bytes());
        assert!(matches!(decode_within::<Page>(&bytes, u64::MAX), Err(WireError::TooLarge { .. })));
    }
}
