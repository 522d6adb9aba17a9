//! Which combinations of members are tried: a seeded sample in which every two members meet, or whole products, of which
//! `WHIMBREL_PART` takes a part: `3/20`, every twentieth from the third on.

use std::collections::HashSet;
use whimbrel_model::rng::Rng;

/// A factor: what it is called, and its values.
pub type Factor = (&'static str, Vec<String>);

/// One combination: a value's number for each factor.
pub type Row = Vec<usize>;

/// Candidates that compete for being the next row.
const CANDIDATES: usize = 40;

/// What `WHIMBREL_PART` asks for of all that is to be tried; all of it without that.
pub fn part<T>(all: impl Iterator<Item = T>) -> Vec<T> {
    match std::env::var("WHIMBREL_PART") {
        Err(_) => all.collect(),
        Ok(text) => {
            let (number, of) =
                part_of(&text).unwrap_or_else(|| panic!("WHIMBREL_PART={text}: write a part such as 3/20"));
            all.skip(number - 1).step_by(of).collect()
        }
    }
}

fn part_of(text: &str) -> Option<(usize, usize)> {
    let (number, of) = text.split_once('/')?;
    let (number, of) = (number.parse().ok()?, of.parse().ok()?);
    (1..=of).contains(&number).then_some((number, of))
}

/// Rows in which every two values of different factors meet at least once.
pub fn pairwise(factors: &[Factor], rng: &mut Rng) -> Vec<Row> {
    let mut open: Vec<[(usize, usize); 2]> = Vec::new();
    for first in 0..factors.len() {
        for second in first + 1..factors.len() {
            for a in 0..factors[first].1.len() {
                open.extend((0..factors[second].1.len()).map(|b| [(first, a), (second, b)]));
            }
        }
    }
    // In a random order, so that each seed tries other triples.
    rng.shuffle(&mut open);
    let mut covered = HashSet::new();
    let mut rows = Vec::new();
    for pair in open {
        if covered.contains(&pair) {
            continue;
        }
        let mut candidate = || {
            let mut row = any(factors, rng);
            pair.iter().for_each(|(factor, value)| row[*factor] = *value);
            row
        };
        let candidates: Vec<Row> = (0..CANDIDATES).map(|_| candidate()).collect();
        let gain = |row: &Row| pairs(row).filter(|p| !covered.contains(p)).count();
        let best = candidates.into_iter().max_by_key(gain).expect("there are candidates");
        covered.extend(pairs(&best));
        rows.push(best);
    }
    rows
}

/// Every combination of the named factors' values; the other factors take any value.
pub fn product(factors: &[Factor], names: &[&str], rng: &mut Rng) -> Vec<Row> {
    let mut rows: Vec<Row> = vec![Vec::new()];
    for (name, values) in factors {
        let of = |row: Row| -> Vec<Row> {
            let all = 0..values.len();
            all.map(|value| row.iter().copied().chain([value]).collect()).collect()
        };
        rows = match names.contains(name) {
            true => rows.into_iter().flat_map(of).collect(),
            false => {
                rows.into_iter().map(|row| [row, vec![rng.below(values.len() as u64) as usize]].concat()).collect()
            }
        };
    }
    rows
}

fn any(factors: &[Factor], rng: &mut Rng) -> Row {
    factors.iter().map(|(_, values)| rng.below(values.len() as u64) as usize).collect()
}

fn pairs(row: &Row) -> impl Iterator<Item = [(usize, usize); 2]> + '_ {
    (0..row.len()).flat_map(move |a| (a + 1..row.len()).map(move |b| [(a, row[a]), (b, row[b])]))
}

#[test]
fn parts_are_all_of_it() {
    let of = |part: &str| {
        let (number, of) = part_of(part).unwrap();
        (0..10).skip(number - 1).step_by(of).collect::<Vec<_>>()
    };
    assert_eq!((of("1/3"), of("2/3"), of("3/3")), (vec![0, 3, 6, 9], vec![1, 4, 7], vec![2, 5, 8]));
    assert!(["0/3", "4/3", "3", "a/b", "1/0"].iter().all(|text| part_of(text).is_none()));
}

#[test]
fn every_two_values_meet_in_a_sample() {
    let values = |n: usize| (0..n).map(|i| i.to_string()).collect();
    let factors: [Factor; 4] = [("a", values(7)), ("b", values(3)), ("c", values(5)), ("d", values(2))];
    let rows = pairwise(&factors, &mut Rng::new(1));
    let met: HashSet<_> = rows.iter().flat_map(pairs).collect();
    assert_eq!(met.len(), 7 * 3 + 7 * 5 + 7 * 2 + 3 * 5 + 3 * 2 + 5 * 2);
    assert!(rows.len() < 60, "{} rows", rows.len());
    let whole: HashSet<Row> = product(&factors, &["a", "c"], &mut Rng::new(1)).into_iter().collect();
    assert_eq!(whole.len(), 35);
}
