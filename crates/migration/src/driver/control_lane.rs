//! The control connection of a move: messages of the cores, and before them the comparison of clocks and what the
//! destination has of the disk.

use super::DriverError;
use crate::copies::{Held, Point};
use crate::report::ClockOffset;
use serde::{Deserialize, Serialize};
use whimbrel_model::Nanos;
use whimbrel_wire::clock::{Sample, estimate, now};
use whimbrel_wire::codec::{read_frame, write_frame};
use whimbrel_wire::message::Spoken;
use whimbrel_wire::{LinkStream, Message, sets};

/// Exchanges from which the clocks' offset is estimated: the one with the shortest round trip counts.
const EXCHANGES: u32 = 8;

/// What is said before the cores begin.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "prelude", rename_all = "snake_case", deny_unknown_fields)]
enum Prelude {
    /// The source's clock is read, and then the destination's.
    Clock { t0: Nanos },
    /// The answer.
    ClockWas { t1: Nanos, t2: Nanos },
    /// The source has armed its logs and asks whether the destination is ready too.
    Ready {},
    /// It is, and has of the disk nothing but the base image, if there is one; what comes will stand for this point.
    HasNothing { will_be: Option<Point> },
    /// It is, and has a copy; the attachment is the set of blocks that it lacks.
    HasCopy { of: Point },
}

/// Says a message; control passes what waits on the link.
///
/// # Errors
/// The link failed.
pub(super) fn say(mut stream: &LinkStream, message: &Message) -> Result<(), DriverError> {
    let (spoken, attachments) = message.to_parts()?;
    Ok(write_frame(&mut stream, &spoken, &attachments)?)
}

/// Hears messages, for a guest of so many pages and blocks, until nobody wants them (`said` says so) or the connection
/// ends.
///
/// # Errors
/// The link failed, or what came is no message.
pub(super) fn hear(
    mut stream: &LinkStream,
    pages: u64,
    blocks: Option<u64>,
    said: impl Fn(Message) -> bool,
) -> Result<(), DriverError> {
    loop {
        let (spoken, attachments) = read_frame::<Spoken>(&mut stream)?;
        if !said(Message::from_parts(spoken, attachments, pages, blocks)?) {
            return Ok(());
        }
    }
}

/// The source's half of the prelude, for a disk of so many blocks, if there is one: the offset of the destination's clock, and
/// its word that it is ready, and of what it has.
///
/// # Errors
/// The link failed, or the other side doesn't keep to the prelude.
pub(super) fn begin_as_source(
    mut stream: &LinkStream,
    blocks: Option<u64>,
) -> Result<(Option<ClockOffset>, Held), DriverError> {
    let mut samples = Vec::new();
    for _ in 0..EXCHANGES {
        let t0 = now();
        write_frame(&mut stream, &Prelude::Clock { t0 }, &[])?;
        match read_frame(&mut stream)? {
            (Prelude::ClockWas { t1, t2 }, _) => samples.push(Sample { t0, t1, t2, t3: now() }),
            (other, _) => return Err(DriverError::Protocol(format!("{other:?} while clocks are compared"))),
        }
    }
    write_frame(&mut stream, &Prelude::Ready {}, &[])?;
    let (answer, attached) = read_frame(&mut stream)?;
    let held = match (answer, &attached[..], blocks) {
        (Prelude::HasNothing { will_be }, [], _) => Held::New(will_be),
        (Prelude::HasCopy { of }, [lacking], Some(blocks)) => Held::Copy(of, sets::decode(lacking, blocks)?),
        (other, _, _) => return Err(DriverError::Protocol(format!("{other:?} instead of being ready"))),
    };
    let offset = estimate(&samples).map(|o| ClockOffset { offset_ns: o.offset_ns, error_ns: o.error_ns });
    Ok((offset, held))
}

/// The destination's half of the prelude.
///
/// # Errors
/// As for the source's half.
pub(super) fn begin_as_destination(mut stream: &LinkStream, held: &Held) -> Result<(), DriverError> {
    loop {
        match read_frame(&mut stream)?.0 {
            Prelude::Clock { .. } => {
                let t1 = now();
                write_frame(&mut stream, &Prelude::ClockWas { t1, t2: now() }, &[])?;
            }
            Prelude::Ready {} => {
                let (answer, attached) = match held {
                    Held::New(will_be) => (Prelude::HasNothing { will_be: *will_be }, Vec::new()),
                    Held::Copy(of, lacking) => (Prelude::HasCopy { of: *of }, vec![sets::encode(lacking)?]),
                };
                return Ok(write_frame(&mut stream, &answer, &attached)?);
            }
            other @ (Prelude::ClockWas { .. } | Prelude::HasNothing { .. } | Prelude::HasCopy { .. }) => {
                return Err(DriverError::Protocol(format!("{other:?} while clocks are compared")));
            }
        }
    }
}
