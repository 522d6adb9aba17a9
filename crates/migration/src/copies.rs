//! Copies of a guest's disk at a host where the guest is not, so that not all of it need move: what they stand for, and how
//! they outlive the host's agent.
//!
//! A copy is an image that is as the disk was at a [`Point`], but for the blocks that it lacks. What was written since that
//! point only the host knows where the guest is. So two hosts bring together what each knows:
//!
//! | the destination has                      | it lacks                        | the source adds                            |
//! |------------------------------------------|---------------------------------|--------------------------------------------|
//! | the image that the guest left there      | nothing                         | what was written since the guest came here |
//! | what an attempt that failed left there   | what had not arrived durably    | what was not acknowledged, or written since |
//! | the same, of which the source knows nothing, on the base image | the same  | what was written since the guest began     |
//! | the base image, new                      | nothing                         | what was written since the guest began     |
//! | a new image, or one that the source doesn't know | all                     |                                            |
//!
//! The numbers of moves name points and are never used twice, so a copy of another guest, or one that is out of date, is one
//! that the source doesn't know. What lacks is read from the copy's record ([`CopyRecord`]), which a crash leaves with more
//! and never with less; from a torn one nothing is known, and the copy is made anew. One whose image a host could not flush
//! lacks everything.
//!
//! In a host's folder a copy is `whimbrel-GUEST-PID-NUMBER.img`, and its record beside it ends in `.copy`. Both go when their
//! coordinator discards the guest or hangs up. They stay when the agent dies or is stopped; an agent that starts removes what
//! nobody has open any more, but records that are younger than [`KEPT_FOR`], and their images.

use crate::commands::DiskSpec;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use whimbrel_disk::{CopyRecord, Volume};
use whimbrel_model::{Block, UnitSet};

/// How long a copy is kept of which no agent has heard.
pub const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);

/// How long an image is left alone whose maker may live: it may be about to be locked.
const GRACE: Duration = Duration::from_secs(60);

const PREFIX: &str = "whimbrel-";
const IMAGE: &str = "img";
const RECORD: &str = "copy";

/// A point in the history of a guest's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "point", rename_all = "snake_case", deny_unknown_fields)]
pub enum Point {
    /// The guest left by this move, whole.
    Left {
        /// The move's number.
        session: u64,
    },
    /// What arrived in this move, and in the attempts after it, which failed.
    Attempt {
        /// The number of the first.
        session: u64,
    },
}

impl Point {
    /// The number of the move.
    pub fn session(self) -> u64 {
        match self {
            Point::Left { session } | Point::Attempt { session } => session,
        }
    }

    /// As a copy's record has it.
    pub(crate) fn about(self) -> [u64; 2] {
        match self {
            Point::Left { session } => [1, session],
            Point::Attempt { session } => [2, session],
        }
    }

    pub(crate) fn of(about: [u64; 2]) -> Option<Point> {
        match about {
            [1, session] => Some(Point::Left { session }),
            [2, session] => Some(Point::Attempt { session }),
            _ => None,
        }
    }
}

/// What the destination has of a disk when a move begins.
#[derive(Clone, Debug, PartialEq)]
pub enum Held {
    /// A new image, with the base image's content where every host has one. If what arrives is recorded, it will be a copy
    /// that stands for this point.
    New(Option<Point>),
    /// A copy, and what it lacks.
    Copy(Point, UnitSet<Block>),
}

/// What the source knows of a copy at the destination after an attempt that failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Behind {
    /// The copy's point.
    pub point: Point,
    /// What of it is out of date even if nothing of it was lost: what was not acknowledged, or was written since. What is
    /// written from now on, the volume records.
    pub blocks: UnitSet<Block>,
}

/// A copy that was found in a host's folder.
pub(crate) struct Found {
    pub(crate) volume: Volume,
    pub(crate) record: CopyRecord,
}

/// A name for a new image that no other has, of this or an earlier agent.
pub(crate) fn new_image(directory: &Path, guest: &str) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos() as u64);
    let number = since.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
    let guest: String = guest.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    directory.join(format!("{PREFIX}{guest}-{}-{number:x}.{IMAGE}", std::process::id()))
}

/// The record that belongs to an image.
pub(crate) fn record_of(image: &Path) -> PathBuf {
    image.with_extension(RECORD)
}

/// The copy of a disk that stands for one of these moves, the later ones first, if there is a whole one that nobody uses.
pub(crate) fn find(directory: &Path, earlier: &[u64], disk: &DiskSpec) -> Option<Found> {
    if earlier.is_empty() {
        return None;
    }
    let records: Vec<(u64, PathBuf)> = ours(directory, RECORD)
        .filter_map(|path| Some((Point::of(CopyRecord::about_of(&path)?)?.session(), path)))
        .collect();
    let wanted = earlier.iter().rev().flat_map(|session| records.iter().filter(move |record| record.0 == *session));
    wanted.map(|(_, path)| path).find_map(|path| {
        let volume = Volume::open(path.with_extension(IMAGE), disk.block_bytes).ok()?;
        let blocks = (volume.blocks() * disk.block_bytes == disk.bytes).then(|| volume.blocks())?;
        let record = CopyRecord::open(path, blocks, disk.block_bytes).ok()??;
        Some(Found { volume, record })
    })
}

/// Removes what agents that are gone have left here and nobody will ask for. What can't be removed is the folder's owner's to
/// clear.
pub(crate) fn remove_stale(directory: &Path) {
    for image in ours(directory, IMAGE) {
        let Ok(file) = File::open(&image) else { continue };
        // While an agent has it, it is locked.
        if file.try_lock().is_err() {
            continue;
        }
        let record = record_of(&image);
        let unwanted = age(&record).is_none_or(|age| age > KEPT_FOR);
        if unwanted && (!maker_lives(&image) || age(&image).is_some_and(|age| age > GRACE)) {
            let _ = std::fs::remove_file(&image);
            let _ = std::fs::remove_file(&record);
        }
    }
    for record in ours(directory, RECORD).filter(|record| !record.with_extension(IMAGE).exists()) {
        let _ = std::fs::remove_file(record);
    }
}

/// The files in a folder that are named like an agent's.
fn ours(directory: &Path, extension: &'static str) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(move |path| {
        let named = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(PREFIX));
        named && path.extension().is_some_and(|e| e == extension) && maker(path).is_some()
    })
}

fn maker(path: &Path) -> Option<u32> {
    let mut parts = path.file_stem()?.to_str()?.rsplit('-');
    u64::from_str_radix(parts.next()?, 16).ok()?;
    parts.next()?.parse().ok()
}

fn maker_lives(path: &Path) -> bool {
    maker(path).is_some_and(|pid| Path::new("/proc").join(pid.to_string()).exists())
}

/// The time since a file was written last; `None`: there is no such file.
fn age(path: &Path) -> Option<Duration> {
    let written = std::fs::metadata(path).ok()?.modified().ok()?;
    Some(written.elapsed().unwrap_or_default())
}
