//! What fresh pages and blocks hold: the content model of a guest before operation 0.

use crate::backed::Backed;
use crate::op::SECTOR_BYTES;
use crate::registry::{ParameterError, UnknownName};
use crate::rng::{Rng, derive};
use crate::stream::Shape;
use crate::units::PAGE_BYTES;
use serde::{Deserialize, Serialize};

/// A class of content. What it costs to send depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Nothing but zero bytes.
    Zero,
    /// English-like words: compresses to about a third.
    Text,
    /// 64-bit addresses into a small range with small integers between: compresses well, by delta better.
    Pointers,
    /// Incompressible.
    Random,
    /// What a unit of the disk holds, as a page of a page cache does. A unit of a disk of this class is random.
    Cached,
}

const CLASSES: [(&str, Class); 5] = [
    ("zero", Class::Zero),
    ("text", Class::Text),
    ("pointers", Class::Pointers),
    ("random", Class::Random),
    ("cached", Class::Cached),
];

/// The mix called `desktop`: shares in the order zero, text, pointers, random, cached.
const DESKTOP: [f64; 5] = [0.35, 0.20, 0.30, 0.15, 0.0];

/// Bytes of a unit of a disk's content, and of a page.
pub const UNIT_BYTES: u64 = PAGE_BYTES;

/// Sets the disk's content apart from the memory's.
const DISK: u64 = 0x00d1_5cf1_1100;

/// The shares of the classes; they sum to one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Content {
    shares: [f64; CLASSES.len()],
    /// Units of the disk that are filled, of which cached pages are copies.
    disk_units: u64,
}

impl Default for Content {
    fn default() -> Self {
        Content::only(Class::Random)
    }
}

impl Content {
    /// All units of one class.
    pub fn only(class: Class) -> Self {
        Content { shares: CLASSES.map(|(_, c)| f64::from(u8::from(c == class))), disk_units: 0 }
    }

    /// Reads `"random"`, `"desktop"` or `{ zero = 0.5, text = 0.5 }`.
    ///
    /// # Errors
    /// An unknown class, or shares that don't sum to one.
    pub fn read(key: &str, value: &serde_json::Value) -> Result<Self, ParameterError> {
        let names = || CLASSES.iter().map(|(n, _)| *n).chain(["desktop"]);
        match value {
            serde_json::Value::String(name) if name == "desktop" => Ok(Content { shares: DESKTOP, disk_units: 0 }),
            serde_json::Value::String(name) => CLASSES
                .iter()
                .find(|(n, _)| n == name)
                .map(|(_, class)| Content::only(*class))
                .ok_or_else(|| UnknownName::among(key, name, names()).into()),
            serde_json::Value::Object(table) => {
                let mut shares = [0.0; CLASSES.len()];
                for (name, share) in table {
                    let at = CLASSES.iter().position(|(n, _)| n == name);
                    let at = at.ok_or_else(|| UnknownName::among(key, name, CLASSES.iter().map(|(n, _)| *n)))?;
                    shares[at] = share.as_f64().filter(|s| (0.0..=1.0).contains(s)).unwrap_or(f64::NAN);
                }
                if (shares.iter().sum::<f64>() - 1.0).abs() < 1e-6 {
                    return Ok(Content { shares, disk_units: 0 });
                }
                Err(refused(key, value, "shares from 0 to 1 that sum to 1"))
            }
            _ => Err(refused(key, value, "zero, text, pointers, random, cached, desktop, or a table of shares")),
        }
    }

    /// The class of unit `index`.
    pub fn class(&self, seed: u64, index: u64) -> Class {
        let mut at = Rng::new(derive(seed, index)).unit();
        for ((_, class), share) in CLASSES.iter().zip(self.shares) {
            if at < share {
                return *class;
            }
            at -= share;
        }
        CLASSES.iter().zip(self.shares).rev().find(|(_, share)| *share > 0.0).map_or(Class::Zero, |((_, c), _)| *c)
    }

    /// Whether some pages are copies of what a disk holds.
    pub fn needs_disk(&self) -> bool {
        CLASSES.iter().zip(self.shares).any(|((_, class), share)| *class == Class::Cached && share > 0.0)
    }

    /// The content of a guest of that size: its cached pages are copies of its disk.
    pub fn of_guest(&self, shape: &Shape) -> Self {
        let filled_bytes = shape.filled_sectors.min(shape.sectors) * SECTOR_BYTES;
        Content { disk_units: filled_bytes / UNIT_BYTES, ..self.clone() }
    }

    /// The unit of the disk of which page `page` is a copy.
    pub fn cached_unit(&self, seed: u64, page: u64) -> Option<u64> {
        (self.disk_units > 0 && self.class(seed, page) == Class::Cached).then(|| page % self.disk_units)
    }

    /// The cached pages among so many, and where on the disk they lie.
    pub fn backed(&self, seed: u64, pages: u64) -> Vec<Backed> {
        let cached = |page| self.cached_unit(seed, page).map(|unit| (page, unit * UNIT_BYTES));
        Backed::runs((0..pages).filter(|_| self.needs_disk()).filter_map(cached))
    }

    /// Fills `buffer`, the whole of page `page`. The same seed and page give the same bytes.
    pub fn fill_page(&self, seed: u64, page: u64, buffer: &mut [u8]) {
        match self.cached_unit(seed, page) {
            Some(unit) => self.fill_unit(seed, unit, buffer),
            None => fill_as(self.class(seed, page), seed, page, buffer),
        }
    }

    /// Fills `buffer`, the whole of unit `unit` of the disk.
    pub fn fill_unit(&self, seed: u64, unit: u64, buffer: &mut [u8]) {
        let seed = derive(seed, DISK);
        fill_as(self.class(seed, unit), seed, unit, buffer);
    }
}

fn fill_as(class: Class, seed: u64, index: u64, buffer: &mut [u8]) {
    let mut rng = Rng::new(derive(seed ^ 0x00c0_47e2, index));
    match class {
        Class::Zero => buffer.fill(0),
        Class::Random | Class::Cached => {
            for chunk in buffer.chunks_mut(8) {
                chunk.copy_from_slice(&rng.next_u64().to_le_bytes()[..chunk.len()]);
            }
        }
        Class::Pointers => {
            let base = 0x0000_7f00_0000_0000 | (rng.below(1 << 16) << 20);
            for (at, chunk) in buffer.chunks_mut(8).enumerate() {
                let word = if at % 3 == 0 { base + rng.below(1 << 14) * 8 } else { rng.below(256) };
                chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
            }
        }
        Class::Text => fill_text(&mut rng, buffer),
    }
}

fn fill_text(rng: &mut Rng, buffer: &mut [u8]) {
    const WORDS: [&str; 32] = [
        "the ", "of ", "and ", "to ", "in ", "a ", "is ", "that ", "for ", "it ", "memory ", "page ", "was ", "on ",
        "disk ", "with ", "as ", "machine ", "be ", "guest ", "at ", "by ", "this ", "had ", "not ", "are ", "but ",
        "from ", "or ", "have ", "an ", "they\n",
    ];
    let mut at = 0;
    while at < buffer.len() {
        let word = WORDS[rng.below(32) as usize].as_bytes();
        let take = word.len().min(buffer.len() - at);
        buffer[at..at + take].copy_from_slice(&word[..take]);
        at += take;
        // A number here and there keeps the text from being a mere dictionary.
        if rng.chance(0.15) && at < buffer.len() {
            buffer[at] = b'0' + rng.below(10) as u8;
            at += 1;
        }
    }
}

fn refused(key: &str, value: &serde_json::Value, accepted: &str) -> ParameterError {
    ParameterError::Value { key: key.to_owned(), found: value.to_string(), accepted: accepted.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_fill_repeats_and_its_shares_are_what_they_say() {
        let content = Content::read("content", &json!({"zero": 0.25, "random": 0.75})).unwrap();
        let mut zero = 0;
        for page in 0..4000 {
            let (mut a, mut b) = ([1u8; 4096], [2u8; 4096]);
            content.fill_page(9, page, &mut a);
            content.fill_page(9, page, &mut b);
            assert_eq!(a, b);
            zero += u32::from(a.iter().all(|x| *x == 0));
        }
        assert!((900..1100).contains(&zero), "{zero} of 4000 pages are zero, 1000 expected");
    }

    #[test]
    fn a_cached_page_is_what_its_unit_of_the_disk_is() {
        let content = Content::read("content", &json!({"cached": 0.5, "random": 0.5})).unwrap();
        assert!(content.needs_disk() && !Content::default().needs_disk());
        let content = content.of_guest(&Shape { pages: 1000, sectors: 8 * 300, filled_sectors: 8 * 200 + 3, vcpus: 1 });
        let mut cached = 0;
        for page in 0..1000 {
            let (mut a, mut b) = ([1u8; 4096], [2u8; 4096]);
            content.fill_page(9, page, &mut a);
            content.fill_unit(9, page % 200, &mut b);
            assert_eq!(a == b, content.cached_unit(9, page) == Some(page % 200), "page {page}");
            cached += u32::from(a == b);
        }
        assert!((400..600).contains(&cached), "{cached} of 1000 pages are cached, 500 expected");
    }

    #[test]
    fn mistakes_name_the_key() {
        for value in [json!("txet"), json!({"zero": 0.5}), json!({"zorro": 1.0}), json!(3)] {
            let message = Content::read("content", &value).unwrap_err().to_string();
            assert!(message.contains("content") || message.contains("zero"), "{message}");
        }
    }
}
