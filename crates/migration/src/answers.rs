//! How an answer crosses: in one frame; or, where what was recorded is longer than a frame may be, as pieces of its JSON, each a
//! frame's attachment.

use crate::commands::Answer;
use serde::{Deserialize, Serialize};
use std::io::Read;
use tokio::io::AsyncWrite;
use whimbrel_wire::WireError;
use whimbrel_wire::codec::{MOST_JSON_BYTES, read_raw_frame, write_frame_async, write_raw_frame_async};

/// The most bytes of JSON that an answer has: events of a move of several days.
const MOST_ANSWER_BYTES: u64 = 1 << 30;

/// The JSON of a frame whose attachment is the next piece of an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Piece {
    /// Whether the answer is complete with it.
    last_piece: bool,
}

/// Sends an answer. One that is too long for anybody to hear is refused in its place, so that who asked knows.
///
/// # Errors
/// The stream failed.
pub(crate) async fn tell(stream: &mut (impl AsyncWrite + Unpin), answer: &Answer) -> Result<(), WireError> {
    let json = serde_json::to_vec(answer).map_err(WireError::Json)?;
    let bytes = json.len() as u64;
    if bytes <= MOST_JSON_BYTES {
        return write_raw_frame_async(stream, &json, &[]).await;
    }
    if bytes > MOST_ANSWER_BYTES {
        let reason = format!("what it has to say takes {bytes} bytes, more than {MOST_ANSWER_BYTES}");
        return write_frame_async(stream, &Answer::Refused { reason }, &[]).await;
    }
    let mut pieces = json.chunks(MOST_JSON_BYTES as usize).peekable();
    while let Some(piece) = pieces.next() {
        let header = Piece { last_piece: pieces.peek().is_none() };
        write_frame_async(stream, &header, &[piece.to_vec()]).await?;
    }
    Ok(())
}

/// Reads an answer.
///
/// # Errors
/// The stream failed or ended, or what it carries is no answer or beyond the bounds.
pub(crate) fn hear(stream: &mut impl Read) -> Result<Answer, WireError> {
    hear_within(stream, MOST_ANSWER_BYTES)
}

fn hear_within(stream: &mut impl Read, limit: u64) -> Result<Answer, WireError> {
    let (mut json, mut attached) = read_raw_frame(stream)?;
    if attached.is_empty() {
        return serde_json::from_slice(&json).map_err(WireError::Json);
    }
    let mut whole = Vec::new();
    loop {
        let Piece { last_piece } = serde_json::from_slice(&json).map_err(WireError::Json)?;
        attached.iter().for_each(|piece| whole.extend_from_slice(piece));
        let found = whole.len() as u64;
        if found > limit {
            return Err(WireError::TooLarge { what: "an answer in pieces", found, limit });
        }
        if last_piece {
            return serde_json::from_slice(&whole).map_err(WireError::Json);
        }
        (json, attached) = read_raw_frame(stream)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(answer: &Answer) -> Vec<u8> {
        let mut bytes = Vec::new();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(tell(&mut bytes, answer)).unwrap();
        bytes
    }

    fn answer(length: usize) -> Answer {
        Answer::Refused { reason: "a".repeat(length) }
    }

    #[test]
    fn an_answer_of_any_length_is_heard_as_it_was_told() {
        let frame = MOST_JSON_BYTES as usize;
        for length in [0, 100, frame - 100, frame, frame + 1, 2 * frame - 40, 3 * frame + 7] {
            let bytes = [told(&answer(length)), told(&answer(1))].concat();
            let mut stream = &bytes[..];
            for expected in [length, 1] {
                match hear(&mut stream).unwrap() {
                    Answer::Refused { reason } => assert_eq!(reason.len(), expected),
                    other => panic!("{other:?}"),
                }
            }
            assert!(matches!(hear(&mut stream), Err(WireError::Closed)));
        }
    }

    #[test]
    fn what_is_cut_off_or_without_an_end_is_an_error() {
        let bytes = told(&answer(2 * MOST_JSON_BYTES as usize));
        for cut in [1, 50, bytes.len() / 2, bytes.len() - 1] {
            assert!(hear(&mut &bytes[..cut]).is_err(), "{cut}");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut endless = Vec::new();
        let piece = Piece { last_piece: false };
        (0..40).for_each(|_| runtime.block_on(write_frame_async(&mut endless, &piece, &[vec![b' '; 1000]])).unwrap());
        assert!(matches!(hear_within(&mut &endless[..], 10_000), Err(WireError::TooLarge { found: 11_000, .. })));
        // An answer in the middle of another's pieces is none.
        let mixed = [&endless[..], &told(&answer(1))].concat();
        assert!(matches!(hear(&mut &mixed[..]), Err(WireError::Json(_))));
    }
}
