//! What the host and the agent in the guest say to each other over the guest's virtio-serial port: JSON, a line each.

use crate::error::MachineError;
use crate::machine::Asked;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, Read};
use whimbrel_model::stream::Shape;
use whimbrel_model::{Backed, Extent, Page, PageTypes, UnitSet};

/// The port's name.
pub const PORT: &str = "whimbrel";

/// The longest line. The other side may be anything.
const LONGEST_LINE: u64 = 64 << 20;

/// What the agent is to execute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// The seed of all that is written.
    pub seed: u64,
    /// The guest's size as its workload sees it.
    pub shape: Shape,
    /// What the streams are made of, in JSON.
    pub recipe: String,
}

/// Said by the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToGuest {
    /// Take memory, fill it, and be ready; said once.
    Begin(Task),
    /// Execute, or go on.
    Go,
    /// Stop between two operations, and say [`FromGuest::Frozen`].
    Freeze,
    /// Say what you know of your pages: [`FromGuest::Hints`] or [`FromGuest::NoHints`]. The guest runs on.
    Hint {
        /// The question's number. A question may move with the guest and be answered at another host, which has not asked it:
        /// no two are the same.
        question: u64,
        /// What is asked.
        asked: Asked,
        /// How many frames the guest's memory has.
        frames: u64,
    },
    /// From now on let QEMU's own migrations hear which pages are free, over the balloon: [`FromGuest::OffersFree`] or
    /// [`FromGuest::NoHints`].
    OfferFree {
        /// The question's number, as above.
        question: u64,
    },
}

/// Said by the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromGuest {
    /// The agent runs; nothing has begun.
    Here {
        /// Memory that the guest could give, in bytes.
        available_bytes: u64,
    },
    /// All is ready for operation 0.
    Ready,
    /// A heartbeat, every [`BEAT_NS`].
    Beat {
        /// The guest's own monotonic clock.
        clock_ns: u64,
        /// Work done so far.
        units: u64,
        /// Operations completed, one count a vCPU.
        operations: Vec<u64>,
    },
    /// It has stopped between two operations.
    Frozen {
        /// The vCPUs, as [`crate::SavedState`] has them.
        state: String,
        /// Where the workload's pages lie: runs of frames of guest-physical memory, in the order of the pages.
        frames: Vec<(u64, u64)>,
    },
    /// What the guest knows of its pages; of what was not asked, nothing.
    Hints {
        /// The question's number.
        question: u64,
        /// Frames of guest-physical memory that were free at an instant after the question, each at its own, as
        /// [`run_lengths`] has them.
        free: Vec<u64>,
        /// What all frames are, as its kernel says where it is asked which are free.
        types: Option<PageTypes>,
        /// Frames that hold what is on the disk: runs of a first frame, how many, and the byte of the disk at which they begin.
        backed: Vec<(u64, u64, u64)>,
    },
    /// The balloon's driver is there, and has agreed with QEMU on hints.
    OffersFree {
        /// The question's number.
        question: u64,
    },
    /// It can't say.
    NoHints {
        /// The question's number.
        question: u64,
        /// Why.
        why: String,
    },
    /// It can't go on.
    Failed {
        /// Why.
        why: String,
    },
}

/// Between two heartbeats.
pub const BEAT_NS: u64 = 5_000_000;

/// One line of either side.
///
/// # Panics
/// Never: what is said is numbers, texts and lists of them.
pub fn line(words: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(words).expect("words are numbers and texts");
    line.push(b'\n');
    line
}

/// The next thing that the other side says; `None` at its end.
///
/// # Errors
/// The stream failed, or the line is too long or no word of this protocol.
pub fn hear<T: serde::de::DeserializeOwned>(stream: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    let bytes = stream.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)?;
    if bytes == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a line without an end"));
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

/// The frames of the pages, of so many, from runs that a guest gave; each frame lies below `limit`.
///
/// # Errors
/// The runs are not so many pages, or leave the guest's memory.
pub fn spread(runs: &[(u64, u64)], pages: u64, limit: u64) -> Result<Vec<u64>, MachineError> {
    let wrong = |why: &str| MachineError::State(format!("the guest's agent gave its pages wrongly: {why}"));
    let mut frames = Vec::new();
    for &(first, count) in runs {
        let end = first.checked_add(count).filter(|end| *end <= limit);
        let end = end.ok_or_else(|| wrong("a frame lies outside the guest's memory"))?;
        if frames.len() as u64 + count > pages {
            return Err(wrong("there are too many"));
        }
        frames.extend(first..end);
    }
    if frames.len() as u64 == pages { Ok(frames) } else { Err(wrong("there are too few")) }
}

/// A set of frames as the lengths of its runs: of those that are not in it, of those that are, and so on in turns. A few
/// thousand numbers at most, for Linux keeps what is free together.
pub fn run_lengths(frames: &UnitSet<Page>) -> Vec<u64> {
    let mut lengths = Vec::new();
    let mut at = 0;
    for run in frames.extents() {
        lengths.extend([run.start - at, run.count]);
        at = run.end();
    }
    lengths
}

/// The set that the lengths say, over so many frames.
///
/// # Errors
/// They reach further. They come from a guest, and may be anything.
pub fn from_run_lengths(lengths: &[u64], frames: u64) -> Result<UnitSet<Page>, MachineError> {
    let mut set = UnitSet::empty(frames);
    let mut at: u64 = 0;
    for (index, length) in lengths.iter().enumerate() {
        let end = at.checked_add(*length).filter(|end| *end <= frames);
        let end = end.ok_or_else(|| {
            MachineError::Hypervisor("the guest's agent calls a frame free that lies outside the guest's memory".into())
        })?;
        if index % 2 == 1 {
            set.insert_extent(Extent { start: at, count: *length });
        }
        at = end;
    }
    Ok(set)
}

/// The runs of frames that hold what is on the disk, of a guest of so many frames.
///
/// # Errors
/// They reach further. They come from a guest, and may be anything.
pub fn backed_frames(runs: &[(u64, u64, u64)], frames: u64) -> Result<Vec<Backed>, MachineError> {
    let runs = runs.iter().map(|&(start, count, offset_bytes)| {
        let lies_within = start.checked_add(count).is_some_and(|end| end <= frames);
        let run = Backed { pages: Extent { start, count }, offset_bytes };
        (lies_within && run.end_bytes().is_some()).then_some(run)
    });
    runs.collect::<Option<_>>().ok_or_else(|| {
        MachineError::Hypervisor("the guest's agent says of frames outside the guest's memory what they hold".into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_set_of_frames_crosses_as_run_lengths(runs in prop::collection::vec((0u64..3000, 1u64..300), 0..40)) {
            let set = UnitSet::from_extents(3000, runs.into_iter().map(|(start, count)| Extent { start, count }));
            let lengths = run_lengths(&set);
            prop_assert_eq!(from_run_lengths(&lengths, 3000).unwrap(), set.clone());
            let last = set.extents().last().map_or(0, Extent::end);
            prop_assert!(last == 0 || from_run_lengths(&lengths, last - 1).is_err());
        }

        #[test]
        fn any_lengths_are_a_set_within_memory_or_refused(lengths in prop::collection::vec(any::<u64>(), 0..6),
                                                          small in prop::collection::vec(0u64..50, 0..60)) {
            for lengths in [lengths, small] {
                if let Ok(set) = from_run_lengths(&lengths, 700) {
                    prop_assert!(set.len() == 700 && set.count() == lengths.iter().skip(1).step_by(2).sum::<u64>());
                }
            }
        }
    }

    #[test]
    fn what_is_said_is_heard() {
        let said = [FromGuest::Ready, FromGuest::Beat { clock_ns: 7, units: 3, operations: vec![1, 2] }];
        let bytes: Vec<u8> = said.iter().flat_map(line).collect();
        let mut stream = bytes.as_slice();
        assert_eq!(hear(&mut stream).unwrap(), Some(said[0].clone()));
        assert_eq!(hear(&mut stream).unwrap(), Some(said[1].clone()));
        assert_eq!(hear::<FromGuest>(&mut stream).unwrap(), None);
        assert!(hear::<FromGuest>(&mut &b"{\"ready\""[..]).is_err());
        assert!(hear::<FromGuest>(&mut &b"nonsense\n"[..]).is_err());
    }

    #[test]
    fn a_guests_frames_are_checked() {
        assert_eq!(spread(&[(5, 2), (1, 1)], 3, 7).unwrap(), [5, 6, 1]);
        for runs in [&[(5, 2)][..], &[(5, 4)], &[(6, 2), (0, 1)], &[(u64::MAX, 2), (0, 1)]] {
            assert!(spread(runs, 3, 7).is_err(), "{runs:?}");
        }
    }
}
