//! Control messages as frames: JSON that a person can read, and attachments for what is not text.
//!
//! ```text
//!   ┌──────────────┬──────────────────┬───────────────────────┬────────┬──────────────────────────┐
//!   │ JSON's bytes │ attachments, u32 │ each one's bytes, u32 │ JSON   │ attachments, one after   │
//!   │ u32 BE       │ BE               │ BE                    │        │ another                  │
//!   └──────────────┴──────────────────┴───────────────────────┴────────┴──────────────────────────┘
//!     at most 4 MiB  at most 64         at most 256 MiB in all
//! ```
//!
//! The codec knows no message: anything that serde can write goes. What is read grows with what really arrives, never
//! with what a header claims, and a frame beyond the bounds is refused by its header alone.

use crate::WireError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{Read, Write};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The most bytes of JSON in a frame.
pub const MOST_JSON_BYTES: u64 = 4 << 20;

/// The most attachments in a frame.
pub const MOST_ATTACHMENTS: u64 = 64;

/// The most bytes that a frame's attachments have together.
pub const MOST_ATTACHED_BYTES: u64 = 256 << 20;

const PREFIX_BYTES: usize = 8;
const WHAT: &str = "a control message";

/// A frame's JSON and its attachments.
pub type RawFrame = (Vec<u8>, Vec<Vec<u8>>);

/// Writes one frame.
///
/// # Errors
/// The message is beyond the bounds (nothing is written then), or the stream failed.
pub fn write_frame<T: Serialize>(
    stream: &mut impl Write,
    message: &T,
    attachments: &[Vec<u8>],
) -> Result<(), WireError> {
    write_raw_frame(stream, &serde_json::to_vec(message).map_err(WireError::Json)?, attachments)
}

/// Writes one frame whose JSON is written already.
///
/// # Errors
/// As for [`write_frame`].
pub fn write_raw_frame(stream: &mut impl Write, json: &[u8], attachments: &[Vec<u8>]) -> Result<(), WireError> {
    stream.write_all(&head(json, attachments)?)?;
    for attachment in attachments {
        stream.write_all(attachment)?;
    }
    Ok(stream.flush()?)
}

/// Reads one frame.
///
/// # Errors
/// [`WireError::Closed`] if the stream ended before it, [`WireError::Truncated`] if inside it, [`WireError::TooLarge`]
/// beyond the bounds, [`WireError::Json`] if the JSON is no `T`.
pub fn read_frame<T: DeserializeOwned>(stream: &mut impl Read) -> Result<(T, Vec<Vec<u8>>), WireError> {
    let (json, attachments) = read_raw_frame(stream)?;
    Ok((serde_json::from_slice(&json).map_err(WireError::Json)?, attachments))
}

/// Reads one frame and leaves its JSON as it is.
///
/// # Errors
/// As for [`read_frame`], but for the JSON.
pub fn read_raw_frame(stream: &mut impl Read) -> Result<RawFrame, WireError> {
    let prefix = part(stream, PREFIX_BYTES as u64)?;
    if prefix.is_empty() {
        return Err(WireError::Closed);
    }
    let (json_bytes, count) = parse_prefix(&prefix)?;
    let lengths = parse_lengths(&part(stream, count * 4)?, count)?;
    let json = whole(part(stream, json_bytes)?, json_bytes)?;
    let attachments = lengths.into_iter().map(|bytes| whole(part(stream, bytes)?, bytes));
    Ok((json, attachments.collect::<Result<_, _>>()?))
}

/// [`write_frame`] for a stream that doesn't block.
///
/// # Errors
/// As for [`write_frame`].
pub async fn write_frame_async<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &T,
    attachments: &[Vec<u8>],
) -> Result<(), WireError> {
    write_raw_frame_async(stream, &serde_json::to_vec(message).map_err(WireError::Json)?, attachments).await
}

/// [`write_raw_frame`] for a stream that doesn't block.
///
/// # Errors
/// As for [`write_frame`].
pub async fn write_raw_frame_async(
    stream: &mut (impl AsyncWrite + Unpin),
    json: &[u8],
    attachments: &[Vec<u8>],
) -> Result<(), WireError> {
    stream.write_all(&head(json, attachments)?).await?;
    for attachment in attachments {
        stream.write_all(attachment).await?;
    }
    Ok(stream.flush().await?)
}

/// [`read_frame`] for a stream that doesn't block. A future that is dropped half-way has lost what it read.
///
/// # Errors
/// As for [`read_frame`].
pub async fn read_frame_async<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<(T, Vec<Vec<u8>>), WireError> {
    let (json, attachments) = read_raw_frame_async(stream).await?;
    Ok((serde_json::from_slice(&json).map_err(WireError::Json)?, attachments))
}

/// [`read_raw_frame`] for a stream that doesn't block. A future that is dropped half-way has lost what it read.
///
/// # Errors
/// As for [`read_raw_frame`].
pub async fn read_raw_frame_async(stream: &mut (impl AsyncRead + Unpin)) -> Result<RawFrame, WireError> {
    let prefix = part_async(stream, PREFIX_BYTES as u64).await?;
    if prefix.is_empty() {
        return Err(WireError::Closed);
    }
    let (json_bytes, count) = parse_prefix(&prefix)?;
    let lengths = parse_lengths(&part_async(stream, count * 4).await?, count)?;
    let json = whole(part_async(stream, json_bytes).await?, json_bytes)?;
    let mut attachments = Vec::with_capacity(lengths.len());
    for bytes in lengths {
        attachments.push(whole(part_async(stream, bytes).await?, bytes)?);
    }
    Ok((json, attachments))
}

/// Everything before the attachments, as one buffer: a small message is one packet.
fn head(json: &[u8], attachments: &[Vec<u8>]) -> Result<Vec<u8>, WireError> {
    check("the JSON of a control message", json.len() as u64, MOST_JSON_BYTES)?;
    check("the number of attachments", attachments.len() as u64, MOST_ATTACHMENTS)?;
    check(
        "the attachments of a control message",
        attachments.iter().map(|a| a.len() as u64).sum(),
        MOST_ATTACHED_BYTES,
    )?;
    let mut head = Vec::with_capacity(PREFIX_BYTES + attachments.len() * 4 + json.len());
    head.extend_from_slice(&(json.len() as u32).to_be_bytes());
    head.extend_from_slice(&(attachments.len() as u32).to_be_bytes());
    for attachment in attachments {
        head.extend_from_slice(&(attachment.len() as u32).to_be_bytes());
    }
    head.extend_from_slice(json);
    Ok(head)
}

/// The JSON's length and the number of attachments.
fn parse_prefix(prefix: &[u8]) -> Result<(u64, u64), WireError> {
    let [j0, j1, j2, j3, a0, a1, a2, a3] = *prefix else { return Err(WireError::Truncated { what: WHAT }) };
    let json_bytes = u64::from(u32::from_be_bytes([j0, j1, j2, j3]));
    let count = u64::from(u32::from_be_bytes([a0, a1, a2, a3]));
    check("the JSON of a control message", json_bytes, MOST_JSON_BYTES)?;
    check("the number of attachments", count, MOST_ATTACHMENTS)?;
    Ok((json_bytes, count))
}

fn parse_lengths(bytes: &[u8], count: u64) -> Result<Vec<u64>, WireError> {
    let (words, _) = bytes.as_chunks::<4>();
    if words.len() as u64 != count {
        return Err(WireError::Truncated { what: WHAT });
    }
    let lengths: Vec<u64> = words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).collect();
    check("the attachments of a control message", lengths.iter().sum(), MOST_ATTACHED_BYTES)?;
    Ok(lengths)
}

fn check(what: &'static str, found: u64, limit: u64) -> Result<(), WireError> {
    if found > limit {
        return Err(WireError::TooLarge { what, found, limit });
    }
    Ok(())
}

/// Up to `bytes` bytes; fewer if the stream ends.
fn part(stream: &mut impl Read, bytes: u64) -> Result<Vec<u8>, WireError> {
    let mut buffer = Vec::new();
    stream.take(bytes).read_to_end(&mut buffer)?;
    Ok(buffer)
}

async fn part_async(stream: &mut (impl AsyncRead + Unpin), bytes: u64) -> Result<Vec<u8>, WireError> {
    let mut buffer = Vec::new();
    stream.take(bytes).read_to_end(&mut buffer).await?;
    Ok(buffer)
}

fn whole(buffer: Vec<u8>, bytes: u64) -> Result<Vec<u8>, WireError> {
    if buffer.len() as u64 == bytes { Ok(buffer) } else { Err(WireError::Truncated { what: WHAT }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;
    use serde_json::Value;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Spoken {
        text: String,
        numbers: Vec<u64>,
    }

    fn block<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    proptest! {
        #[test]
        fn a_frame_survives_the_crossing(
            text in ".*", numbers in prop::collection::vec(any::<u64>(), 0..20),
            attachments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 0..8),
        ) {
            let message = Spoken { text, numbers };
            let mut bytes = Vec::new();
            write_frame(&mut bytes, &message, &attachments).unwrap();
            let mut written = Vec::new();
            block(write_frame_async(&mut written, &message, &attachments)).unwrap();
            prop_assert_eq!(&written, &bytes);
            write_frame(&mut bytes, &1u8, &[]).unwrap();

            let mut stream = &bytes[..];
            prop_assert_eq!(read_frame::<Spoken>(&mut stream).unwrap(), (message, attachments.clone()));
            prop_assert_eq!(read_frame::<u8>(&mut stream).unwrap(), (1, vec![]));
            prop_assert!(matches!(read_frame::<u8>(&mut stream), Err(WireError::Closed)));

            let mut stream = &bytes[..];
            let (again, attached) = block(read_frame_async::<Spoken>(&mut stream)).unwrap();
            prop_assert_eq!(attached, attachments);
            prop_assert_eq!(block(read_frame_async::<u8>(&mut stream)).unwrap(), (1, vec![]));
            prop_assert!(matches!(block(read_frame_async::<u8>(&mut stream)), Err(WireError::Closed)));
            drop(again);
        }

        #[test]
        fn every_truncation_is_told_from_a_close(
            attachments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = Vec::new();
            write_frame(&mut bytes, &"hello", &attachments).unwrap();
            let cut = cut.index(bytes.len());
            let error = read_frame::<String>(&mut &bytes[..cut]).unwrap_err();
            let expected = if cut == 0 { matches!(error, WireError::Closed) }
                           else { matches!(error, WireError::Truncated { .. }) };
            prop_assert!(expected, "{error:?} after {cut} bytes");
        }

        #[test]
        fn noise_is_survived(noise in prop::collection::vec(any::<u8>(), 0..300), json in 0u32..80, count in 0u32..5) {
            let _ = read_frame::<Value>(&mut &noise[..]);
            let mut dressed = [json.to_be_bytes(), count.to_be_bytes()].concat();
            dressed.extend_from_slice(&noise);
            let _ = read_frame::<Value>(&mut &dressed[..]);
            let _ = block(read_frame_async::<Value>(&mut &dressed[..]));
        }
    }

    #[test]
    fn claims_beyond_the_bounds_are_refused_by_the_header() {
        let claims = [
            vec![MOST_JSON_BYTES as u32 + 1, 0],
            vec![u32::MAX, u32::MAX],
            vec![2, MOST_ATTACHMENTS as u32 + 1],
            vec![2, 2, MOST_ATTACHED_BYTES as u32, 1],
        ];
        for claim in claims {
            let bytes: Vec<u8> = claim.iter().flat_map(|word| word.to_be_bytes()).collect();
            let error = read_frame::<Value>(&mut &bytes[..]).unwrap_err();
            assert!(matches!(error, WireError::TooLarge { .. }), "{claim:?}: {error:?}");
        }
    }

    #[test]
    fn a_claim_that_nothing_follows_allocates_nothing() {
        let bytes: Vec<u8> =
            [2u32, 1, MOST_ATTACHED_BYTES as u32].iter().flat_map(|word| word.to_be_bytes()).chain(*b"{}").collect();
        assert!(matches!(read_frame::<Value>(&mut &bytes[..]), Err(WireError::Truncated { .. })));
        assert_eq!(part(&mut &b"ab"[..], MOST_ATTACHED_BYTES).unwrap().capacity() / 1024, 0);
    }

    #[test]
    fn what_is_too_large_is_not_written() {
        let mut written = Vec::new();
        let long = "x".repeat(MOST_JSON_BYTES as usize);
        assert!(matches!(write_frame(&mut written, &long, &[]), Err(WireError::TooLarge { .. })));
        let many = vec![vec![]; MOST_ATTACHMENTS as usize + 1];
        assert!(matches!(write_frame(&mut written, &1, &many), Err(WireError::TooLarge { .. })));
        assert!(written.is_empty());
    }

    #[test]
    fn other_json_than_expected_is_an_error_of_its_own() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &1, &[]).unwrap();
        assert!(matches!(read_frame::<String>(&mut &bytes[..]), Err(WireError::Json(_))));
        let nested = "[".repeat(100_000);
        let mut bytes = Vec::new();
        write_raw_frame(&mut bytes, nested.as_bytes(), &[]).unwrap();
        assert!(matches!(read_frame::<Value>(&mut &bytes[..]), Err(WireError::Json(_))));
    }
}
