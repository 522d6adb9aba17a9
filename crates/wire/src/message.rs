//! What the cores of two hosts say to each other on the migration's control connection.
//!
//! Device state and missing sets travel as attachments of the frame, the sets in roaring's form ([`crate::sets`]).

use crate::{WireError, sets};
use serde::{Deserialize, Serialize};
use whimbrel_model::{Block, Family, Page, UnitSet};

/// One thing said.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Source to destination: the device state, and what the destination will lack when it resumes.
    State {
        /// The device state.
        device: Vec<u8>,
        /// Pages left behind.
        missing_pages: UnitSet<Page>,
        /// Blocks left behind: the block bitmap. `None`: the guest has no disk.
        missing_blocks: Option<UnitSet<Block>>,
        /// What the disk's schedule tells its twin; empty without a disk.
        disk_note: Vec<u8>,
    },
    /// Destination to source: everything carried over is here and the device state is taken up.
    Loaded,
    /// Source to destination: only you may run the guest from here on.
    HandOver,
    /// Destination to source: the guest runs.
    Resumed,
    /// Destination to source: I lack nothing of this family.
    Whole {
        /// Which.
        family: Family,
    },
    /// Source to destination: I hold nothing that you may still ask for.
    Released,
    /// Either: I can't go on.
    Abort {
        /// Why.
        reason: String,
    },
}

/// The part of a message that travels as JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case", deny_unknown_fields)]
pub enum Spoken {
    /// See [`Message::State`].
    State {
        /// Whether a third attachment holds missing blocks, and a fourth the note of the disk's schedule.
        has_disk: bool,
    },
    /// See [`Message::Loaded`].
    Loaded {},
    /// See [`Message::HandOver`].
    HandOver {},
    /// See [`Message::Resumed`].
    Resumed {},
    /// See [`Message::Whole`].
    Whole {
        /// Which family.
        family: Family,
    },
    /// See [`Message::Released`].
    Released {},
    /// See [`Message::Abort`].
    Abort {
        /// Why.
        reason: String,
    },
}

impl Message {
    /// The message's name, for messages about messages.
    pub fn name(&self) -> &'static str {
        match self {
            Message::State { .. } => "State",
            Message::Loaded => "Loaded",
            Message::HandOver => "HandOver",
            Message::Resumed => "Resumed",
            Message::Whole { .. } => "Whole",
            Message::Released => "Released",
            Message::Abort { .. } => "Abort",
        }
    }

    /// The message's two parts: what travels as JSON, and the attachments.
    ///
    /// # Errors
    /// A set is larger than the protocol allows.
    pub fn to_parts(&self) -> Result<(Spoken, Vec<Vec<u8>>), WireError> {
        let plain = |spoken| Ok((spoken, Vec::new()));
        match self {
            Message::State { device, missing_pages, missing_blocks, disk_note } => {
                let mut attachments = vec![device.clone(), sets::encode(missing_pages)?];
                if let Some(blocks) = missing_blocks {
                    attachments.push(sets::encode(blocks)?);
                    attachments.push(disk_note.clone());
                }
                Ok((Spoken::State { has_disk: missing_blocks.is_some() }, attachments))
            }
            Message::Loaded => plain(Spoken::Loaded {}),
            Message::HandOver => plain(Spoken::HandOver {}),
            Message::Resumed => plain(Spoken::Resumed {}),
            Message::Whole { family } => plain(Spoken::Whole { family: *family }),
            Message::Released => plain(Spoken::Released {}),
            Message::Abort { reason } => plain(Spoken::Abort { reason: reason.clone() }),
        }
    }

    /// The message that the two parts make, for a guest of so many pages and blocks.
    ///
    /// # Errors
    /// An attachment is missing, left over, or no set over those universes. The parts may come from anyone.
    pub fn from_parts(
        spoken: Spoken,
        attachments: Vec<Vec<u8>>,
        pages: u64,
        blocks: Option<u64>,
    ) -> Result<Message, WireError> {
        let given = attachments.len();
        let mut attachments = attachments.into_iter();
        let message = match (spoken, given) {
            (Spoken::State { has_disk }, 2 | 4) if has_disk == blocks.is_some() && has_disk == (given == 4) => {
                let device = attachments.next().unwrap_or_default();
                let missing_pages = sets::decode(&attachments.next().unwrap_or_default(), pages)?;
                let missing_blocks = match (attachments.next(), blocks) {
                    (Some(bytes), Some(blocks)) => Some(sets::decode(&bytes, blocks)?),
                    _ => None,
                };
                let disk_note = attachments.next().unwrap_or_default();
                Message::State { device, missing_pages, missing_blocks, disk_note }
            }
            (Spoken::Loaded {}, 0) => Message::Loaded,
            (Spoken::HandOver {}, 0) => Message::HandOver,
            (Spoken::Resumed {}, 0) => Message::Resumed,
            (Spoken::Whole { family }, 0) => Message::Whole { family },
            (Spoken::Released {}, 0) => Message::Released,
            (Spoken::Abort { reason }, 0) => Message::Abort { reason },
            (spoken, given) => {
                let why = format!("{spoken:?} with {given} attachments");
                return Err(WireError::malformed("message", why));
            }
        };
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whimbrel_model::Extent;

    #[test]
    fn every_message_comes_back_as_it_was() {
        let messages = [
            Message::State {
                device: vec![1, 2, 3],
                missing_pages: UnitSet::from_extents(100, [Extent { start: 3, count: 9 }]),
                missing_blocks: Some(UnitSet::full(50)),
                disk_note: vec![9, 9],
            },
            Message::Loaded,
            Message::HandOver,
            Message::Resumed,
            Message::Whole { family: Family::Disk },
            Message::Released,
            Message::Abort { reason: "the disk is full".to_owned() },
        ];
        for message in messages {
            let (spoken, attachments) = message.to_parts().unwrap();
            let json = serde_json::to_vec(&spoken).unwrap();
            let spoken = serde_json::from_slice(&json).unwrap();
            assert_eq!(Message::from_parts(spoken, attachments, 100, Some(50)).unwrap(), message);
        }
    }

    #[test]
    fn attachments_that_do_not_fit_are_refused() {
        let missing_pages = UnitSet::full(10);
        let state = Message::State { device: vec![], missing_pages, missing_blocks: None, disk_note: vec![] };
        let (spoken, attachments) = state.to_parts().unwrap();
        let again = || serde_json::from_value(serde_json::to_value(&spoken).unwrap()).unwrap();
        assert!(Message::from_parts(again(), attachments.clone(), 11, None).is_err());
        assert!(Message::from_parts(again(), vec![], 10, None).is_err());
        assert!(Message::from_parts(again(), attachments, 10, Some(4)).is_err());
        assert!(Message::from_parts(Spoken::Loaded {}, vec![vec![]], 10, None).is_err());
    }
}
