//! An experiment: one question, fixed parameters, varied parameters, and trials a cell.
//!
//! Everything about a file is checked before anything starts, and every mistake is one message that names the file, the
//! line, the key and what would be accepted.
//!
//! - [`tree`]: the TOML document, every value with its line
//! - [`overrides`]: `--set KEY=VALUE`
//! - [`fields`]: typed access to the keys of a table
//! - [`setting`]: what one cell fixes: guest, link, workload, memory, disk, coordinator
//! - [`brought`]: a guest of the user's own
//! - [`energy`]: how energy is measured
//! - [`cells`]: the product of what is varied
//! - [`limits`]: what this host can hold
//! - [`written`]: the resolved experiment as a file

pub mod brought;
pub mod cells;
pub mod energy;
pub mod fields;
pub mod limits;
pub mod overrides;
pub mod setting;
pub mod tree;
pub mod written;

#[cfg(test)]
mod tests;

pub use cells::Cell;
pub use energy::Energy;
pub use overrides::Override;
pub use setting::{Guest, Link, Setting, Via};
pub use tree::{Mistake, Place};

use fields::Fields;
use std::path::Path;
use tree::Node;

/// The built-in experiment that runs where no file is given.
pub const QUICKSTART: &str = include_str!("../../results/quickstart/experiment.toml");

/// The keys at the top of an experiment file.
const KEYS: [&str; 15] = [
    "name",
    "question",
    "trials",
    "seed",
    "verify",
    "guest",
    "link",
    "workload",
    "memory",
    "disk",
    "coordinator",
    "energy",
    "vary",
    "zip",
    "cell",
];

/// The most trials of all cells together.
const MOST_TRIALS: u64 = 100_000;

/// A checked experiment.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// The file, or what stands for it in messages.
    pub origin: String,
    /// Its name, of letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// What it is to answer; empty if the file doesn't say.
    pub question: String,
    /// Trials a cell.
    pub trials: u32,
    /// The seed from which those of the trials are derived.
    pub seed: u64,
    /// Whether every guest is compared with its never-migrated twin.
    pub verify: bool,
    /// The combinations of what is varied, in the file's order.
    pub cells: Vec<Cell>,
    /// The file that `--set` was applied to.
    tree: Node,
}

impl Experiment {
    /// Reads the file, or the built-in quickstart, applies the overrides and checks everything but the host's limits.
    ///
    /// # Errors
    /// The first mistake.
    pub fn load(file: Option<&Path>, overrides: &[Override]) -> Result<Experiment, Mistake> {
        let Some(path) = file else {
            return Experiment::read("quickstart (built in)", "quickstart", QUICKSTART, overrides);
        };
        let origin = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| Mistake {
            origin: origin.clone(),
            place: Place::Missing,
            message: format!("can't be read: {e}; give an experiment file, or none for the built-in quickstart"),
        })?;
        let stem = path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
        Experiment::read(&origin, &stem, &text, overrides)
    }

    /// Reads an experiment from text. `origin` stands for it in messages, `name` is its name if it says none.
    ///
    /// # Errors
    /// The first mistake.
    pub fn read(origin: &str, name: &str, text: &str, overrides: &[Override]) -> Result<Experiment, Mistake> {
        let mut tree = Node::parse(origin, text)?;
        cells::flatten(&mut tree);
        overrides.iter().for_each(|o| o.apply(&mut tree));
        brought::settle_folder(&mut tree, origin);
        let top = Fields::of(origin, "", Some(&tree));
        top.only(&KEYS)?;
        let name = top.text("name")?.unwrap_or_else(|| name.to_owned());
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !name.chars().all(plain) || !name.chars().any(|c| c.is_ascii_alphanumeric()) {
            return Err(top.refuse("name", &format!("{name:?}"), "letters, digits, \"-\", \"_\" and \".\""));
        }
        let trials = top.count("trials", 1, 1..=MOST_TRIALS)?;
        let cells = cells::expand(origin, &tree)?;
        if cells.len() as u64 * trials > MOST_TRIALS {
            let found = format!("{trials} in each of {} cells", cells.len());
            return Err(top.refuse("trials", &found, &format!("at most {MOST_TRIALS} in all cells together")));
        }
        Ok(Experiment {
            origin: origin.to_owned(),
            name,
            question: top.text("question")?.unwrap_or_default(),
            trials: u32::try_from(trials).expect("the range fits"),
            seed: top.count("seed", 1, 0..=u64::MAX)?,
            verify: top.flag("verify")?.unwrap_or(true),
            cells,
            tree,
        })
    }

    /// The seed of a trial: the same in every cell, so that cells are compared on the same streams. It has 53 bits, so
    /// that every reader of JSON keeps it whole.
    pub fn trial_seed(&self, trial: u32) -> u64 {
        if trial == 0 && self.seed < 1 << 53 {
            return self.seed;
        }
        whimbrel_model::rng::derive(self.seed, u64::from(trial)) >> 11
    }
}
