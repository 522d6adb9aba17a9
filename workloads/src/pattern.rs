//! Where: which unit of a set an operation touches next.

use crate::zipf::Zipf;
use serde::{Deserialize, Serialize};
use whimbrel_model::rng::Rng;

/// An odd prime that scatters neighboring ranks over the set; no set is a multiple of it.
const SCATTER: u64 = 2_654_435_761;

/// The order in which units are touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Each with the same probability.
    Uniform,
    /// A small part gets most.
    HotSet,
    /// One after the other, over and over.
    Sweep,
    /// By Zipf's law, the popular ones scattered.
    Zipf,
    /// Each of the others in turn.
    Phased,
}

/// Picks units `0..count` in a pattern.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Picker {
    /// The pattern.
    pub pattern: Pattern,
    /// How many units, at least one.
    pub count: u64,
    /// How many of them, from the first, are hot; at least one.
    pub hot_count: u64,
    /// The share of picks that go to the hot ones.
    pub hot_share: f64,
    /// The law of popularity.
    pub zipf: Zipf,
    /// Picks until a phased pattern changes; at least one.
    pub phase_picks: u64,
}

/// Where a picker is: part of a generator's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    sweep: u64,
    picks: u64,
}

impl Picker {
    /// A picker without hot units or phases.
    pub fn plain(pattern: Pattern, count: u64, exponent: f64) -> Self {
        let count = count.max(1);
        Picker { pattern, count, hot_count: 1, hot_share: 0.0, zipf: Zipf::new(count, exponent), phase_picks: 1 }
    }

    /// The next unit.
    pub fn pick(&self, place: &mut Place, rng: &mut Rng) -> u64 {
        let pattern = match self.pattern {
            Pattern::Phased => {
                const PHASES: [Pattern; 4] = [Pattern::Uniform, Pattern::HotSet, Pattern::Sweep, Pattern::Zipf];
                PHASES[(place.picks / self.phase_picks % 4) as usize]
            }
            fixed => fixed,
        };
        place.picks = place.picks.wrapping_add(1);
        match pattern {
            Pattern::Uniform | Pattern::Phased => rng.below(self.count),
            Pattern::HotSet if rng.chance(self.hot_share) => rng.below(self.hot_count),
            Pattern::HotSet => rng.below(self.count),
            Pattern::Sweep => {
                let at = place.sweep;
                place.sweep = (at + 1) % self.count;
                at
            }
            Pattern::Zipf => ((u128::from(self.zipf.draw(rng)) * u128::from(SCATTER)) % u128::from(self.count)) as u64,
        }
    }

    /// Whether a place from outside can be one of this picker's.
    pub fn accepts(&self, place: &Place) -> bool {
        place.sweep < self.count
    }
}
