//! The book of figures: a table for a person, and every pair as a line of JSON.

use serde_json::json;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

/// Which side of the limit a ratio has to lie on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// At least this.
    Least(f64),
    /// At least this, and the lower end of the median's interval at least that. Without an interval it is not met.
    Surely { least: f64, low: f64 },
    /// At most this.
    Most(f64),
}

impl Limit {
    fn met(self, ratio: f64, interval: Option<(f64, f64)>) -> bool {
        match self {
            Limit::Least(least) => ratio >= least,
            Limit::Surely { least, low } => ratio >= least && interval.is_some_and(|(lower, _)| lower >= low),
            Limit::Most(most) => ratio <= most,
        }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Limit::Least(least) => write!(f, ">= {least:.2}"),
            Limit::Surely { least, low } => write!(f, ">= {least:.2} ({low:.2})"),
            Limit::Most(most) => write!(f, "<= {most:.2}"),
        }
    }
}

/// One figure: pairs of what this program did and what its limit did in the same turn.
pub struct Figure<'a> {
    /// What was compared.
    pub name: &'a str,
    /// The unit of both.
    pub unit: &'a str,
    /// (ours, limit) of each turn. A ratio is ours / limit.
    pub pairs: &'a [(f64, f64)],
    /// Where the median of the ratios has to lie.
    pub limit: Limit,
}

/// The figures so far.
pub struct Tally {
    file: File,
    path: PathBuf,
    missed: Vec<String>,
    skipped: Vec<String>,
}

impl Tally {
    /// A new book in the build's folder.
    pub fn open() -> io::Result<Self> {
        // The program lies in FOLDER/release/deps.
        let program = std::env::current_exe()?;
        let folder = program.ancestors().nth(3).ok_or(io::ErrorKind::NotFound)?.join("whimbrel-bench");
        std::fs::create_dir_all(&folder)?;
        let path = folder.join("paths.jsonl");
        let file = File::create(&path)?;
        let [ratio, median, range, best, wanted] = ["ratio", "95 %", "range", "best", "wanted"];
        let row = format!("{ratio:>7} {median:>17} {range:>17} {best:>7} {wanted:>14}");
        println!("{:<56} {row}  median of ours and of the limit", "path");
        Ok(Tally { file, path, missed: Vec::new(), skipped: Vec::new() })
    }

    /// Enters a figure.
    pub fn enter(&mut self, figure: &Figure<'_>) {
        let Figure { name, unit, pairs, limit } = figure;
        let mut ratios: Vec<f64> = pairs.iter().map(|(ours, bare)| ours / bare).collect();
        ratios.sort_by(f64::total_cmp);
        let (Some(low), Some(high)) = (ratios.first(), ratios.last()) else {
            return self.skip(name, "no pair was completed");
        };
        let ratio = median(&ratios);
        let ours = median(&pairs.iter().map(|p| p.0).collect::<Vec<_>>());
        let bare = median(&pairs.iter().map(|p| p.1).collect::<Vec<_>>());
        // Other programs only ever make either side worse: on a busy host the best of each says more.
        let best_of = |side: fn(&(f64, f64)) -> f64| match limit {
            Limit::Least(_) | Limit::Surely { .. } => pairs.iter().map(side).fold(f64::MIN, f64::max),
            Limit::Most(_) => pairs.iter().map(side).fold(f64::MAX, f64::min),
        };
        let best = best_of(|pair| pair.0) / best_of(|pair| pair.1);
        let interval = interval(pairs);
        let met = limit.met(ratio, interval);
        let word = if met { "" } else { "  MISSED" };
        let ends = |(low, high): (f64, f64)| format!("{low:.3} to {high:.3}");
        let median = interval.map_or_else(|| "too few pairs".to_owned(), ends);
        let range = ends((*low, *high));
        println!(
            "{name:<56} {ratio:>7.3} {median:>17} {range:>17} {best:>7.3} {:>14}  {} of {} {unit}, {} pairs{word}",
            limit.to_string(),
            short(ours),
            short(bare),
            pairs.len()
        );
        if !met {
            self.missed.push((*name).to_owned());
        }
        let wanted = limit.to_string();
        self.keep(&json!({
            "path": name, "ratio": ratio, "interval": interval, "low": low, "high": high, "best_ratio": best, "wanted": wanted,
            "met": met, "unit": unit, "pairs": pairs,
        }));
    }

    /// Enters that there is no figure, and why.
    pub fn skip(&mut self, name: &str, why: &str) {
        println!("{name:<56} SKIPPED: {why}");
        eprintln!("SKIPPED: {name}: {why}");
        self.skipped.push(name.to_owned());
        self.keep(&json!({ "path": name, "skipped": why }));
    }

    /// Says something beside the figures.
    pub fn note(&mut self, name: &str, text: &str) {
        println!("  {name}: {text}");
        self.keep(&json!({ "path": name, "note": text }));
    }

    fn keep(&mut self, line: &serde_json::Value) {
        writeln!(self.file, "{line}").expect("the build's folder takes figures");
    }

    /// The last words. Whether a line missed its limit.
    pub fn close(self) -> bool {
        if !self.missed.is_empty() {
            println!("missed: {}", self.missed.join(", "));
        }
        if !self.skipped.is_empty() {
            println!("skipped: {}", self.skipped.join(", "));
        }
        println!("every pair: {}", self.path.display());
        !self.missed.is_empty()
    }
}

/// The middle value; the lower of the two where there are two.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

/// An interval that holds the median of the ratios with 95 % or more, by the binomial order statistics: no outlier moves it.
/// None where the pairs are too few for one, which fewer than six are.
pub fn interval(pairs: &[(f64, f64)]) -> Option<(f64, f64)> {
    let mut ratios: Vec<f64> = pairs.iter().map(|(ours, bare)| ours / bare).collect();
    ratios.sort_by(f64::total_cmp);
    let count = ratios.len();
    // How likely it is that exactly `outside` of the ratios lie below the median: in logarithms, as 2^-count may be too small.
    let (mut likely_ln, mut below, mut outside) = (-(count as f64) * std::f64::consts::LN_2, 0.0, 0);
    loop {
        below += likely_ln.exp();
        if below > 0.025 || outside >= count {
            break;
        }
        likely_ln += ((count - outside) as f64 / (outside + 1) as f64).ln();
        outside += 1;
    }
    let lowest = outside.checked_sub(1)?;
    Some((*ratios.get(lowest)?, *ratios.get(count - 1 - lowest)?))
}

/// Three digits, whatever the size.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
