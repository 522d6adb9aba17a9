//! How a person writes a size, a rate or a duration, and how one is shown.

use crate::units::{ByteRate, Bytes, Nanos};

/// Why a text is not the quantity that was wanted; its message says what would be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {kind}: write a number and a unit, {accepted}")]
pub struct QuantityError {
    text: String,
    kind: &'static str,
    accepted: &'static str,
}

const SIZES: &[(&str, f64)] = &[("B", 1.0), ("KiB", 1024.0), ("MiB", 1048576.0), ("GiB", 1073741824.0)];
const RATES: &[(&str, f64)] = &[
    ("B/s", 1.0),
    ("KiB/s", 1024.0),
    ("MiB/s", 1048576.0),
    ("GiB/s", 1073741824.0),
    ("kbit/s", 125.0),
    ("Mbit/s", 125e3),
    ("Gbit/s", 125e6),
];
const TIMES: &[(&str, f64)] = &[("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9), ("min", 60e9)];

fn parse(text: &str, units: &[(&str, f64)], kind: &'static str, accepted: &'static str) -> Result<f64, QuantityError> {
    let error = || QuantityError { text: text.to_owned(), kind, accepted };
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).ok_or_else(error)?;
    let (number, unit) = text.split_at(split);
    let number: f64 = number.replace('_', "").parse().map_err(|_| error())?;
    let scale = units.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(error)?.1;
    let value = number * scale;
    if value.is_finite() && value <= 9e18 { Ok(value) } else { Err(error()) }
}

/// Reads a size such as `256 MiB`.
pub fn size(text: &str) -> Result<Bytes, QuantityError> {
    parse(text, SIZES, "size", "such as \"64 KiB\", \"256 MiB\" or \"4 GiB\"").map(|v| Bytes(v.round() as u64))
}

/// Reads a rate such as `200 Mbit/s` or `12 MiB/s`.
pub fn rate(text: &str) -> Result<ByteRate, QuantityError> {
    parse(text, RATES, "rate", "such as \"12 MiB/s\", \"200 Mbit/s\" or \"1 Gbit/s\"").map(ByteRate)
}

/// Reads a duration such as `100 us`.
pub fn duration(text: &str) -> Result<Nanos, QuantityError> {
    parse(text, TIMES, "duration", "such as \"100 us\", \"300 ms\" or \"2 s\"").map(|v| Nanos(v.round() as u64))
}

fn show(value: f64, units: &[(&str, f64)]) -> String {
    let (name, scale) = units.iter().rev().find(|(_, scale)| value >= *scale).copied().unwrap_or(units[0]);
    let scaled = value / scale;
    let digits = if scaled >= 100.0 || scaled.fract() == 0.0 {
        0
    } else if scaled >= 10.0 {
        1
    } else {
        2
    };
    format!("{scaled:.digits$} {name}")
}

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&show(self.0 as f64, SIZES))
    }
}

impl std::fmt::Display for ByteRate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&show(self.0, &RATES[..4]))
    }
}

impl std::fmt::Display for Nanos {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&show(self.0 as f64, &TIMES[..4]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_forms_are_read() {
        assert_eq!(size("256 MiB"), Ok(Bytes(256 << 20)));
        assert_eq!(size("1.5KiB"), Ok(Bytes(1536)));
        assert_eq!(rate("200 Mbit/s"), Ok(ByteRate(25e6)));
        assert_eq!(rate("0 MiB/s"), Ok(ByteRate(0.0)));
        assert_eq!(duration("100 us"), Ok(Nanos(100_000)));
    }

    #[test]
    fn the_wrong_unit_is_refused_with_what_is_accepted() {
        for text in ["256 MB", "256", "MiB", "-1 MiB", "1 MiB/s", "1e999 GiB", "", "99999999999999999999 GiB"] {
            let message = size(text).unwrap_err().to_string();
            assert!(message.contains("256 MiB"), "{message}");
        }
        assert!(rate("12 MBps").is_err());
        assert!(duration("5 minutes").is_err());
    }

    #[test]
    fn quantities_are_shown_in_a_unit_that_reads_well() {
        assert_eq!(Bytes(1536).to_string(), "1.50 KiB");
        assert_eq!(Bytes(256 << 20).to_string(), "256 MiB");
        assert_eq!(Nanos(12_345_678).to_string(), "12.3 ms");
        assert_eq!(ByteRate(25e6).to_string(), "23.8 MiB/s");
    }
}
