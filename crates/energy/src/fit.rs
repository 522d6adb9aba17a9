//! Laws fitted to energies, and how far they can be trusted: R squared, and the errors on cells that the fit hasn't seen.
//!
//! | law | energy | source |
//! |---|---|---|
//! | [`Law::Strunk`] | bytes x (p0 / bandwidth + p1) | Strunk & Dargie, AINA 2013: a power p0 while it lasts, p1 a byte |
//! | [`Law::Liu`] | a x bytes + b | Liu et al., HPDC 2011 |
//! | [`Law::Model`] | core_w x CPU time + byte_nj x bytes + base_w x time | the model of [`crate::model`] |

use std::collections::{BTreeMap, BTreeSet};

/// What one sample knows of a migration.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Samples of one cell have the same settings: a cell is held out as a whole.
    pub cell: String,
    /// What the law explains, in joules.
    pub joules: f64,
    /// What it is explained by, in the law's order.
    pub regressors: Vec<f64>,
}

/// A law that is linear in its coefficients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Law {
    /// Of bytes and the time that they take.
    Strunk,
    /// Of bytes alone.
    Liu,
    /// Of what a host does. No coefficient is negative.
    Model,
}

impl Law {
    /// Its coefficients' names, with their units.
    pub fn coefficients(self) -> &'static [&'static str] {
        match self {
            Law::Strunk => &["p0_w", "p1_j_per_byte"],
            Law::Liu => &["a_j_per_byte", "b_j"],
            Law::Model => &["core_w", "byte_nj", "base_w"],
        }
    }
}

/// A law with its coefficients.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// The law.
    pub law: Law,
    /// The coefficients, by name.
    pub coefficients: BTreeMap<&'static str, f64>,
    /// The share of the energies' variance that the law explains; `None`: they don't vary, or there are no more cells than
    /// coefficients, so that any law fits.
    pub r_squared: Option<f64>,
    /// For each cell: the relative error of its mean where the others made the fit; `None`: they can't.
    pub held_out: BTreeMap<String, Option<f64>>,
}

impl Fit {
    /// What the law says of a point.
    pub fn at(&self, point: &Point) -> f64 {
        self.law.coefficients().iter().zip(&point.regressors).map(|(name, x)| self.coefficients[name] * x).sum()
    }

    /// The mean of the held-out errors, without regard to their sign; `None` where a cell has none.
    pub fn held_out_error(&self) -> Option<f64> {
        let errors: Option<Vec<f64>> = self.held_out.values().map(|error| error.map(f64::abs)).collect();
        let errors = errors.filter(|errors| !errors.is_empty())?;
        Some(errors.iter().sum::<f64>() / errors.len() as f64)
    }
}

/// Fits a law by least squares.
///
/// # Errors
/// The points don't determine its coefficients: fewer cells than those, or all alike. Samples of one cell differ by noise
/// alone, of which no law is made.
pub fn fit(law: Law, points: &[Point]) -> Result<Fit, Undetermined> {
    let names = law.coefficients();
    let all: Vec<&Point> = points.iter().collect();
    let cells = cells_of(&all);
    let undetermined = Undetermined { points: points.len(), cells, coefficients: names.len() };
    let solved = solve(law, &all).filter(|_| determined(law, &all)).ok_or(undetermined)?;
    let mean = all.iter().map(|p| p.joules).sum::<f64>() / all.len() as f64;
    let around: f64 = all.iter().map(|p| (p.joules - mean).powi(2)).sum();
    let left: f64 = all.iter().map(|p| (p.joules - value(&solved, p)).powi(2)).sum();
    let mut held_out = BTreeMap::new();
    for point in points {
        held_out.entry(point.cell.clone()).or_insert_with(|| error_without(law, points, &point.cell));
    }
    Ok(Fit {
        law,
        coefficients: names.iter().copied().zip(solved).collect(),
        r_squared: (around > 0.0 && cells > names.len()).then(|| 1.0 - left / around),
        held_out,
    })
}

fn cells_of(points: &[&Point]) -> usize {
    points.iter().map(|p| &p.cell).collect::<BTreeSet<_>>().len()
}

/// Whether a law of these points is made of more than the noise of a cell.
fn determined(law: Law, points: &[&Point]) -> bool {
    cells_of(points) >= law.coefficients().len()
}

/// Points that say too little.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{points} points of {cells} cells don't determine {coefficients} coefficients: vary more, or more widely")]
pub struct Undetermined {
    points: usize,
    cells: usize,
    coefficients: usize,
}

/// The relative error of a cell's mean, predicted from the other cells.
fn error_without(law: Law, points: &[Point], cell: &str) -> Option<f64> {
    let (held, rest): (Vec<&Point>, Vec<&Point>) = points.iter().partition(|p| p.cell == cell);
    let solved = determined(law, &rest).then(|| solve(law, &rest))??;
    let predicted: f64 = held.iter().map(|p| value(&solved, p)).sum();
    let actual: f64 = held.iter().map(|p| p.joules).sum();
    (actual != 0.0).then(|| predicted / actual - 1.0)
}

fn value(coefficients: &[f64], point: &Point) -> f64 {
    coefficients.iter().zip(&point.regressors).map(|(c, x)| c * x).sum()
}

fn solve(law: Law, points: &[&Point]) -> Option<Vec<f64>> {
    let all: Vec<usize> = (0..law.coefficients().len()).collect();
    if law != Law::Model {
        return least_squares(points, &all);
    }
    // A model with a negative coefficient would give energy back. With three of them every choice of those that are not 0
    // can be tried; the best that has none below is the answer.
    let subsets =
        (1u32..1 << all.len()).map(|set| all.iter().copied().filter(|n| set >> n & 1 == 1).collect::<Vec<_>>());
    let left = |solved: &Vec<f64>| points.iter().map(|p| (p.joules - value(solved, p)).powi(2)).sum::<f64>();
    let legal = subsets.filter_map(|set| least_squares(points, &set)).filter(|solved| solved.iter().all(|c| *c >= 0.0));
    legal.min_by(|a, b| left(a).total_cmp(&left(b)))
}

/// Ordinary least squares over some of the regressors, the others at 0; `None` where they are not determined.
fn least_squares(points: &[&Point], used: &[usize]) -> Option<Vec<f64>> {
    let n = used.len();
    if points.len() < n {
        return None;
    }
    // Bytes and seconds differ by ten orders of magnitude: each column is scaled to its largest value.
    let scale: Vec<f64> =
        used.iter().map(|c| points.iter().map(|p| p.regressors[*c].abs()).fold(0.0, f64::max)).collect();
    if scale.iter().any(|s| *s <= 0.0 || !s.is_finite()) {
        return None;
    }
    let x = |p: &Point, i: usize| p.regressors[used[i]] / scale[i];
    let mut rows: Vec<Vec<f64>> = (0..n)
        .map(|i| {
            let products = (0..n).map(|j| points.iter().map(|p| x(p, i) * x(p, j)).sum());
            products.chain([points.iter().map(|p| x(p, i) * p.joules).sum()]).collect()
        })
        .collect();
    // Gauss and Jordan, the largest pivot first.
    for column in 0..n {
        let pivot = (column..n).max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs()))?;
        rows.swap(column, pivot);
        let row = rows[column].clone();
        if row[column].abs() < 1e-9 * points.len() as f64 {
            return None;
        }
        for (_, other) in rows.iter_mut().enumerate().filter(|(at, _)| *at != column) {
            let share = other[column] / row[column];
            other.iter_mut().zip(&row).for_each(|(a, b)| *a -= share * b);
        }
    }
    let mut solved = vec![0.0; points.first()?.regressors.len()];
    for (i, column) in used.iter().enumerate() {
        solved[*column] = rows[i][n] / rows[i][i] / scale[i];
    }
    Some(solved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn strunk(mib: f64, mib_per_s: f64, p0: f64, p1: f64) -> Point {
        let (bytes, rate) = (mib * 1048576.0, mib_per_s * 1048576.0);
        let joules = bytes * (p0 / rate + p1);
        Point { cell: format!("{mib}/{mib_per_s}"), joules, regressors: vec![bytes / rate, bytes] }
    }

    proptest! {
        #[test]
        fn a_law_without_noise_is_found_again(p0 in 0.1f64..50.0, p1_uj in 0.001f64..10.0) {
            let p1 = p1_uj / 1e6;
            let points: Vec<Point> = [(128.0, 10.0), (256.0, 20.0), (512.0, 20.0), (1024.0, 50.0)]
                .iter().flat_map(|(m, b)| (0..3).map(move |_| strunk(*m, *b, p0, p1))).collect();
            let fit = fit(Law::Strunk, &points).unwrap();
            prop_assert!((fit.coefficients["p0_w"] / p0 - 1.0).abs() < 1e-6);
            prop_assert!((fit.coefficients["p1_j_per_byte"] / p1 - 1.0).abs() < 1e-6);
            prop_assert!(fit.r_squared.unwrap() > 0.999_999 && fit.held_out_error().unwrap() < 1e-6);
            prop_assert_eq!(fit.held_out.len(), 4);
        }
    }

    #[test]
    fn a_cell_that_breaks_the_law_shows_in_its_held_out_error() {
        let mut points: Vec<Point> = [100.0, 200.0, 300.0, 400.0]
            .iter()
            .map(|bytes| Point { cell: bytes.to_string(), joules: 2.0 * bytes + 7.0, regressors: vec![*bytes, 1.0] })
            .collect();
        let exact = fit(Law::Liu, &points).unwrap();
        assert!(
            (exact.coefficients["a_j_per_byte"] - 2.0).abs() < 1e-9 && (exact.coefficients["b_j"] - 7.0).abs() < 1e-6
        );
        points[3].joules *= 2.0;
        let broken = fit(Law::Liu, &points).unwrap();
        assert!((broken.held_out["400"].unwrap() + 0.5).abs() < 1e-9 && broken.r_squared.unwrap() < 0.95);
    }

    #[test]
    fn points_that_are_all_alike_determine_nothing() {
        let points: Vec<Point> = (0..5).map(|_| strunk(256.0, 20.0, 3.0, 1e-6)).collect();
        let why = fit(Law::Strunk, &points).unwrap_err().to_string();
        assert!(why.contains("5 points") && why.contains("2 coefficients"), "{why}");
        assert!(fit(Law::Liu, &[]).is_err());
        // Noise of one cell is no dependence.
        let noise = [1.0, 1.1, 0.9].map(|x| Point { regressors: vec![x, 1.0], ..strunk(256.0, 20.0 * x, 3.0, 1e-6) });
        let noise: Vec<Point> = noise.into_iter().map(|p| Point { cell: "all".to_owned(), ..p }).collect();
        assert!(fit(Law::Liu, &noise).unwrap_err().to_string().contains("of 1 cells"));
        // Two cells fit two coefficients, and neither predicts the other.
        let of = |rate: f64| {
            [1.0, 1.1, 0.9].map(|x| Point { joules: x, regressors: vec![x, 1.0], ..strunk(256.0, rate, 3.0, 1e-6) })
        };
        let two = [of(20.0), of(40.0)].concat();
        let fit = fit(Law::Strunk, &two).unwrap();
        assert_eq!((fit.held_out_error(), fit.r_squared), (None, None));
    }

    #[test]
    fn the_model_has_no_negative_coefficient() {
        let point = |cpu: f64, giga: f64, s: f64| Point {
            cell: format!("{cpu}/{giga}/{s}"),
            joules: 3.0 * cpu - 0.2 * giga + 10.0 * s,
            regressors: vec![cpu, giga, s],
        };
        let points = [point(1.0, 1.0, 2.0), point(2.0, 1.0, 2.5), point(1.0, 3.0, 2.2), point(5.0, 0.5, 9.0)];
        let fit = fit(Law::Model, &points).unwrap();
        assert!(fit.coefficients.values().all(|c| *c >= 0.0) && fit.coefficients["byte_nj"] == 0.0);
        assert!(fit.r_squared.unwrap() > 0.99);
    }
}
