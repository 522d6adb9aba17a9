//! What fresh pages and blocks hold: the content model of a guest before operation 0.

use crate::registry::{ParameterError, UnknownName};
use crate::rng::{Rng, derive};
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
}

const CLASSES: [(&str, Class); 4] =
    [("zero", Class::Zero), ("text", Class::Text), ("pointers", Class::Pointers), ("random", Class::Random)];

/// The mix called `desktop`: shares in the order zero, text, pointers, random.
const DESKTOP: [f64; 4] = [0.35, 0.20, 0.30, 0.15];

/// The shares of the classes; they sum to one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Content {
    shares: [f64; 4],
}

impl Default for Content {
    fn default() -> Self {
        Content::only(Class::Random)
    }
}

impl Content {
    /// All units of one class.
    pub fn only(class: Class) -> Self {
        Content { shares: CLASSES.map(|(_, c)| f64::from(u8::from(c == class))) }
    }

    /// Reads `"random"`, `"desktop"` or `{ zero = 0.5, text = 0.5 }`.
    ///
    /// # Errors
    /// An unknown class, or shares that don't sum to one.
    pub fn read(key: &str, value: &serde_json::Value) -> Result<Self, ParameterError> {
        let names = || CLASSES.iter().map(|(n, _)| *n).chain(["desktop"]);
        match value {
            serde_json::Value::String(name) if name == "desktop" => Ok(Content { shares: DESKTOP }),
            serde_json::Value::String(name) => CLASSES
                .iter()
                .find(|(n, _)| n == name)
                .map(|(_, class)| Content::only(*class))
                .ok_or_else(|| UnknownName::among(key, name, names()).into()),
            serde_json::Value::Object(table) => {
                let mut shares = [0.0; 4];
                for (name, share) in table {
                    let at = CLASSES.iter().position(|(n, _)| n == name);
                    let at = at.ok_or_else(|| UnknownName::among(key, name, CLASSES.iter().map(|(n, _)| *n)))?;
                    shares[at] = share.as_f64().filter(|s| (0.0..=1.0).contains(s)).unwrap_or(f64::NAN);
                }
                if (shares.iter().sum::<f64>() - 1.0).abs() < 1e-6 {
                    return Ok(Content { shares });
                }
                Err(refused(key, value, "shares from 0 to 1 that sum to 1"))
            }
            _ => Err(refused(key, value, "zero, text, pointers, random, desktop, or a table of shares")),
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

    /// Fills `buffer`, the whole of unit `index`. The same seed, index and length give the same bytes.
    pub fn fill(&self, seed: u64, index: u64, buffer: &mut [u8]) {
        let class = self.class(seed, index);
        let mut rng = Rng::new(derive(seed ^ 0x00c0_47e2, index));
        match class {
            Class::Zero => buffer.fill(0),
            Class::Random => {
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
            content.fill(9, page, &mut a);
            content.fill(9, page, &mut b);
            assert_eq!(a, b);
            zero += u32::from(a.iter().all(|x| *x == 0));
        }
        assert!((900..1100).contains(&zero), "{zero} of 4000 pages are zero, 1000 expected");
    }

    #[test]
    fn mistakes_name_the_key() {
        for value in [json!("txet"), json!({"zero": 0.5}), json!({"zorro": 1.0}), json!(3)] {
            let message = Content::read("content", &value).unwrap_err().to_string();
            assert!(message.contains("content") || message.contains("zero"), "{message}");
        }
    }
}
