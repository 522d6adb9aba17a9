//! The folder of a run: every file that a run leaves.
//!
//! | file | what |
//! |---|---|
//! | `experiment.toml` | the experiment as resolved |
//! | `environment.json` | the host, its settings, versions, warnings |
//! | `trials.jsonl` | a row a line; on disk before the next trial begins |
//! | `events.jsonl` | what was recorded, a line an event |
//! | `data-dictionary.json` | what each field of a row means |
//! | `summary.json` | a cell's metrics over its trials |
//! | `report.html` | all of it for a person |

use crate::BadInput;
use crate::row::Row;
use crate::trials::Trip;
use anyhow::Context;
use serde::Serialize;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use whimbrel_migration::metrics::{METRICS, Metric};

/// A run's folder, with its rows and events open for appending.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    rows: File,
    events: BufWriter<File>,
}

/// A line of `events.jsonl`.
#[derive(Serialize)]
struct Line<'a> {
    cell: &'a str,
    trial: u32,
    guest: u32,
    trip: u32,
    attempt: u32,
    #[serde(flatten)]
    recorded: &'a whimbrel_model::Recorded,
}

impl Folder {
    /// Makes the folder: the one given, or `results/NAME/RUN` where RUN is the present date and time.
    ///
    /// # Errors
    /// [`BadInput`] where the given folder holds a run already or can't be made.
    pub fn create(given: Option<&Path>, experiment: &str) -> anyhow::Result<Folder> {
        let path = match given {
            Some(path) => path.to_owned(),
            None => unused(Path::new("results").join(experiment), &timestamp(SystemTime::now())),
        };
        let refuse = |why: &str| BadInput(format!("--out {}: {why}; give a folder that can be made", path.display()));
        fs::create_dir_all(&path).map_err(|e| refuse(&format!("can't be made: {e}")))?;
        let open = |name: &str| {
            let new = File::options().write(true).create_new(true).open(path.join(name));
            new.map_err(|e| match e.kind() {
                std::io::ErrorKind::AlreadyExists => refuse("it holds a run already"),
                _ => refuse(&format!("can't be written: {e}")),
            })
        };
        let (rows, events) = (open("trials.jsonl")?, BufWriter::new(open("events.jsonl")?));
        let folder = Folder { path, rows, events };
        folder.write("data-dictionary.json", &json(&dictionary()))?;
        Ok(folder)
    }

    /// Sees that a given folder can become a run's, without making it.
    ///
    /// # Errors
    /// [`BadInput`] where it holds a run already or is no folder.
    pub fn check(given: &Path) -> Result<(), BadInput> {
        let refuse = |why: &str| BadInput(format!("--out {}: {why}; give a folder that can be made", given.display()));
        match given {
            path if path.join("trials.jsonl").exists() => Err(refuse("it holds a run already")),
            path if path.exists() && !path.is_dir() => Err(refuse("it is a file")),
            _ => Ok(()),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a whole file.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, name: &str, content: &str) -> anyhow::Result<()> {
        let path = self.path.join(name);
        fs::write(&path, content).with_context(|| format!("{} can't be written", path.display()))
    }

    /// Keeps a trip: its events, then its row, and returns when both are on disk.
    ///
    /// # Errors
    /// The file system's.
    pub fn keep(&mut self, row: &Row, trip: &Trip) -> anyhow::Result<()> {
        for recorded in &trip.events {
            let (trial, guest, trip, attempt) = (row.trial, row.guest, row.trip, row.attempt);
            let line = Line { cell: &row.cell, trial, guest, trip, attempt, recorded };
            serde_json::to_writer(&mut self.events, &line)?;
            self.events.write_all(b"\n")?;
        }
        self.events.flush().context("events.jsonl can't be written")?;
        let mut line = serde_json::to_vec(row)?;
        line.push(b'\n');
        // One write, so that whoever reads along never sees half a row.
        self.rows.write_all(&line).context("trials.jsonl can't be written")?;
        self.events.get_ref().sync_data()?;
        self.rows.sync_data().context("trials.jsonl can't be written")
    }
}

/// JSON for a person's eyes.
pub fn json(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("plain data");
    text.push('\n');
    text
}

/// What each field of a row means, as data.
fn dictionary() -> Vec<serde_json::Value> {
    let entry = |metric: &Metric| {
        let mut value = serde_json::to_value(metric).expect("plain data");
        value["interval"] = metric.interval().into();
        value
    };
    METRICS.iter().map(entry).collect()
}

/// The first of `run`, `run-2`, `run-3`, ... in `parent` that isn't there.
fn unused(parent: PathBuf, run: &str) -> PathBuf {
    let first = parent.join(run);
    let later = (2..).map(|n| parent.join(format!("{run}-{n}")));
    std::iter::once(first).chain(later).find(|p| !p.exists()).expect("numbers don't end")
}

/// A date and time in UTC as a folder may be called: `2026-01-31T23-59-59Z`.
pub fn timestamp(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, second) = (seconds / 86400, seconds % 86400);
    // The civil date of a day count, with years that begin in March so that the leap day comes last (H. Hinnant).
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}-{minute:02}-{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_civil() {
        for (seconds, expected) in [
            (0, "1970-01-01T00-00-00Z"),
            (951_827_696, "2000-02-29T12-34-56Z"),
            (1_709_251_199, "2024-02-29T23-59-59Z"),
            (1_767_225_600, "2026-01-01T00-00-00Z"),
            (4_107_542_399, "2100-02-28T23-59-59Z"),
            (4_107_542_400, "2100-03-01T00-00-00Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn a_folder_is_not_used_twice() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        Folder::create(Some(&path), "x").unwrap();
        let message = Folder::create(Some(&path), "x").unwrap_err().to_string();
        assert!(message.contains("holds a run already") && message.contains("--out"), "{message}");
        assert_eq!(unused(parent.path().to_owned(), "a"), parent.path().join("a-2"));
    }
}
