//! Zipf-distributed ranks: rejection-inversion (Hoermann and Derflinger, ACM TOMACS 1996), in constant space.
//!
//! Its logarithm and exponential are computed here from additions, multiplications and divisions alone, which every
//! processor rounds alike. A mathematical library's last digit differs between hosts, and a rank that differs once makes
//! a guest's later life another one.

use whimbrel_model::rng::Rng;

/// Draws ranks `0..count`, rank k with a probability proportional to `1 / (k + 1)^exponent`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Zipf {
    count: u64,
    exponent: f64,
    first: f64,
    last: f64,
    shortcut: f64,
}

impl Zipf {
    /// The largest exponent that is accepted; beyond, all draws are the first rank.
    pub const LARGEST_EXPONENT: f64 = 8.0;

    /// Ranks `0..count`, at least one, for an exponent from 0 to [`Zipf::LARGEST_EXPONENT`].
    pub fn new(count: u64, exponent: f64) -> Self {
        let mut zipf = Zipf { count: count.max(1), exponent, first: 0.0, last: 0.0, shortcut: 0.0 };
        zipf.first = zipf.integral(1.5) - 1.0;
        zipf.last = zipf.integral(zipf.count as f64 + 0.5);
        zipf.shortcut = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.density(2.0));
        zipf
    }

    /// Draws a rank.
    pub fn draw(&self, rng: &mut Rng) -> u64 {
        loop {
            let at = self.last + rng.unit() * (self.first - self.last);
            let x = self.inverse(at);
            let rank = (x + 0.5).clamp(1.0, self.count as f64).floor();
            if rank - x <= self.shortcut || at >= self.integral(rank + 0.5) - self.density(rank) {
                return rank as u64 - 1;
            }
        }
    }

    fn density(&self, x: f64) -> f64 {
        exp(-self.exponent * ln(x))
    }

    /// The integral of the density from 1 to `x`.
    fn integral(&self, x: f64) -> f64 {
        let log = ln(x);
        let scaled = (1.0 - self.exponent) * log;
        let ratio = if scaled.abs() > 1e-6 { (exp(scaled) - 1.0) / scaled } else { 1.0 + scaled / 2.0 };
        ratio * log
    }

    fn inverse(&self, y: f64) -> f64 {
        let scaled = (y * (1.0 - self.exponent)).max(-1.0 + 1e-15);
        let ratio = if scaled.abs() > 1e-6 { ln(1.0 + scaled) / scaled } else { 1.0 - scaled / 2.0 };
        exp(ratio * y)
    }
}

/// The natural logarithm of a positive, normal number, to about 1e-15.
fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut power = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mut mantissa = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa /= 2.0;
        power += 1;
    }
    // 2 artanh(t), a series in t squared, which is below 0.0295.
    let t = (mantissa - 1.0) / (mantissa + 1.0);
    let square = t * t;
    let series = (0..11).rev().fold(0.0, |sum, k| sum * square + 1.0 / f64::from(2 * k + 1));
    2.0 * t * series + power as f64 * std::f64::consts::LN_2
}

/// e to the power of `x`, which is brought into -700..700.
fn exp(x: f64) -> f64 {
    let x = x.clamp(-700.0, 700.0);
    let power = (x * std::f64::consts::LOG2_E + 0.5).floor();
    let rest = x - power * std::f64::consts::LN_2;
    let series = (1..=14).rev().fold(1.0, |sum, k| 1.0 + sum * rest / f64::from(k));
    series * f64::from_bits(((power as i64 + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::{Rng, Zipf, exp, ln};
    use proptest::{prelude::any, prop_assert, proptest};

    proptest! {
        #[test]
        fn the_functions_are_the_functions(x in -600.0f64..600.0) {
            prop_assert!((exp(x) / x.exp() - 1.0).abs() < 1e-12);
            let y = x.exp();
            prop_assert!((ln(y) - y.ln()).abs() < 1e-12);
        }

        #[test]
        fn ranks_stay_inside(count in 1u64..1 << 40, exponent in 0.0f64..8.0, seed in any::<u64>()) {
            let (zipf, mut rng) = (Zipf::new(count, exponent), Rng::new(seed));
            for _ in 0..20 {
                prop_assert!(zipf.draw(&mut rng) < count);
            }
        }
    }

    #[test]
    fn shares_of_the_ranks_follow_the_law() {
        for exponent in [0.0, 0.5, 0.99, 1.0, 1.2, 2.0] {
            let (zipf, mut rng) = (Zipf::new(100, exponent), Rng::new(7));
            let draws = 200_000;
            let mut counts = [0u32; 100];
            for _ in 0..draws {
                counts[zipf.draw(&mut rng) as usize] += 1;
            }
            let sum: f64 = (1..=100).map(|k| f64::from(k).powf(-exponent)).sum();
            for rank in [0, 1, 4, 20, 99] {
                let expected = f64::from(rank as u32 + 1).powf(-exponent) / sum * f64::from(draws);
                let error = (f64::from(counts[rank]) - expected).abs();
                assert!(
                    error < 5.0 * expected.sqrt() + 5.0,
                    "exponent {exponent}, rank {rank}: {} of {expected}",
                    counts[rank]
                );
            }
        }
    }
}
