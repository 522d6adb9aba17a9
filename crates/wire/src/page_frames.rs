//! The framing of a memory lane: fixed headers of 24 bytes, big-endian, each followed by its payload.
//!
//! ```text
//!   0      1          2        4          8                  16               20           24
//!   ┌──────┬──────────┬────────┬──────────┬──────────────────┬────────────────┬────────────┐
//!   │ kind │ encoding │ flags  │ count    │ first page, or   │ payload bytes  │ "wpag"     │  payload ...
//!   │ u8   │ u8       │ u16    │ u32      │ sequence, u64    │ u32            │            │
//!   └──────┴──────────┴────────┴──────────┴──────────────────┴────────────────┴────────────┘
//! ```
//!
//! | kind | frame | encoding | count | first | payload |
//! |---|---|---|---|---|---|
//! | 0 | invalid | | | | |
//! | 1 | raw run | 0 | pages, at most 16,384 | the first page | count x 4096 bytes |
//! | 2 | zero run | 0 | pages | the first page | none |
//! | 3 | encoded page | 1 to 255, which encoding | 1 | the page | 0 to 8192 bytes: a page that did not change has no difference |
//! | 4 | barrier | 0 | 0 | its sequence number | none |
//! | 5 | end | 0 | 0 | 0 | none |
//! | 6 | want | 0 | pages | the first page | none |
//! | 7 | reference | 0 | pages | the first page | 8 bytes: where on the receiver's disk the first page lies, a multiple of 4096 |
//!
//! Flag bit 0 says that the page was asked for; all other bits are 0. What a lane says runs one way; the other way
//! carries answers in the same framing:
//!
//! ```text
//!   source                                      destination
//!     │── raw run, zero run, encoded page ... ───────►│  fills its RAM in the order of arrival
//!     │── barrier 7 ─────────────────────────────────►│
//!     │◄───────────────────────────────── barrier 7 ──│  everything before it is in RAM
//!     │◄──────────────────────── want 3 pages at 90 ──│  (a demand lane)
//!     │── raw run of 3 at 90, demanded ──────────────►│
//!     │── end ───────────────────────────────────────►│  nothing follows
//! ```

use crate::WireError;
use whimbrel_model::{Extent, PAGE_BYTES};

/// Bytes in a header.
pub const HEADER_BYTES: usize = 24;

/// The most pages in one raw run: 64 MiB.
pub const MOST_RAW_PAGES: u32 = 1 << 14;

/// The most bytes that one encoded page may take.
pub const MOST_ENCODED_BYTES: u32 = 2 * PAGE_BYTES as u32;

/// Bytes of the place on a disk that follows a reference, big-endian.
pub const PLACE_BYTES: usize = 8;

/// The last bytes of every header. A stream that lost its place shows here.
const TAG: [u8; 4] = *b"wpag";

const DEMANDED: u16 = 1;
const WHAT: &str = "page frame";

/// What a header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Pages as they are; `count` x 4096 bytes follow.
    Raw {
        /// The pages.
        pages: Extent,
        /// Whether they were asked for.
        demanded: bool,
    },
    /// Pages that hold only zeros.
    Zero {
        /// The pages.
        pages: Extent,
        /// Whether they were asked for.
        demanded: bool,
    },
    /// One page in an encoding of the room `memory`.
    Encoded {
        /// The page.
        page: u64,
        /// Which encoding, never 0.
        encoding: u8,
        /// How many bytes follow.
        payload_bytes: u32,
        /// Whether it was asked for.
        demanded: bool,
    },
    /// A point in the stream; its receiver says it back once everything before it is in RAM.
    Barrier {
        /// Which.
        sequence: u64,
    },
    /// Nothing follows.
    End,
    /// The receiver asks for pages.
    Want {
        /// The pages.
        pages: Extent,
    },
    /// Pages that hold what the receiver's disk holds; the place of the first follows, a number of [`PLACE_BYTES`].
    Reference {
        /// The pages.
        pages: Extent,
    },
}

impl Frame {
    /// How many bytes follow the header.
    pub fn payload_bytes(&self) -> u64 {
        match self {
            Frame::Raw { pages, .. } => pages.count * PAGE_BYTES,
            Frame::Encoded { payload_bytes, .. } => u64::from(*payload_bytes),
            Frame::Reference { .. } => PLACE_BYTES as u64,
            Frame::Zero { .. } | Frame::Barrier { .. } | Frame::End | Frame::Want { .. } => 0,
        }
    }

    /// The header's bytes. The caller keeps to the table of the [module](self): a run longer than 32 bits can count
    /// is cut short, and the receiver refuses a raw run or payload above its bound.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let fields = match *self {
            Frame::Raw { pages, demanded } => Fields::run(1, pages, demanded, self.payload_bytes()),
            Frame::Zero { pages, demanded } => Fields::run(2, pages, demanded, 0),
            Frame::Encoded { page, encoding, payload_bytes, demanded } => {
                let one = Extent { start: page, count: 1 };
                Fields { encoding, ..Fields::run(3, one, demanded, u64::from(payload_bytes)) }
            }
            Frame::Barrier { sequence } => Fields { kind: 4, first: sequence, ..Fields::default() },
            Frame::End => Fields { kind: 5, ..Fields::default() },
            Frame::Want { pages } => Fields::run(6, pages, false, 0),
            Frame::Reference { pages } => Fields::run(7, pages, false, PLACE_BYTES as u64),
        };
        fields.to_bytes()
    }

    /// Reads a header and checks it against a RAM of `ram_pages` pages.
    ///
    /// # Errors
    /// The header breaks a rule of the table. It may come from anyone: nothing panics, and what is accepted lies in RAM.
    pub fn decode(bytes: &[u8; HEADER_BYTES], ram_pages: u64) -> Result<Frame, WireError> {
        let fields = Fields::from_bytes(bytes)?;
        if fields.flags & !DEMANDED != 0 {
            return refuse(format!("its flags {:#06x} are unknown", fields.flags));
        }
        let demanded = fields.flags & DEMANDED != 0;
        let frame = match fields.kind {
            1 => Frame::Raw { pages: fields.pages(ram_pages)?, demanded },
            2 => Frame::Zero { pages: fields.pages(ram_pages)?, demanded },
            3 => {
                let page = fields.pages(ram_pages)?.start;
                let (encoding, payload_bytes) = (fields.encoding, fields.payload_bytes);
                if encoding == 0 || payload_bytes > MOST_ENCODED_BYTES {
                    return refuse(format!("encoding {encoding} of {payload_bytes} bytes is not allowed"));
                }
                Frame::Encoded { page, encoding, payload_bytes, demanded }
            }
            4 => Frame::Barrier { sequence: fields.first },
            5 => Frame::End,
            6 => Frame::Want { pages: fields.pages(ram_pages)? },
            7 => Frame::Reference { pages: fields.pages(ram_pages)? },
            kind => return refuse(format!("its kind {kind} is unknown")),
        };
        if let Frame::Raw { pages, .. } = frame
            && pages.count > u64::from(MOST_RAW_PAGES)
        {
            return Err(WireError::TooLarge {
                what: "a raw run, in pages,",
                found: pages.count,
                limit: u64::from(MOST_RAW_PAGES),
            });
        }
        // Whatever the frame doesn't use has one value only: the one that encoding it again gives.
        if frame.encode() != *bytes {
            return refuse("a field that it does not use is set, or its payload has another length".to_owned());
        }
        Ok(frame)
    }
}

fn refuse<T>(why: String) -> Result<T, WireError> {
    Err(WireError::Malformed { what: WHAT, why })
}

/// A header's numbers.
#[derive(Clone, Copy, Debug, Default)]
struct Fields {
    kind: u8,
    encoding: u8,
    flags: u16,
    count: u32,
    first: u64,
    payload_bytes: u32,
}

impl Fields {
    fn run(kind: u8, pages: Extent, demanded: bool, payload_bytes: u64) -> Fields {
        Fields {
            kind,
            encoding: 0,
            flags: if demanded { DEMANDED } else { 0 },
            count: u32::try_from(pages.count).unwrap_or(u32::MAX),
            first: pages.start,
            payload_bytes: u32::try_from(payload_bytes).unwrap_or(u32::MAX),
        }
    }

    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.kind;
        bytes[1] = self.encoding;
        bytes[2..4].copy_from_slice(&self.flags.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.count.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.first.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.payload_bytes.to_be_bytes());
        bytes[20..24].copy_from_slice(&TAG);
        bytes
    }

    fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Result<Fields, WireError> {
        let [kind, encoding, f0, f1, c0, c1, c2, c3, first @ .., p0, p1, p2, p3, t0, t1, t2, t3] = *bytes;
        if [t0, t1, t2, t3] != TAG {
            return refuse("its tag is missing: the stream lost its place".to_owned());
        }
        Ok(Fields {
            kind,
            encoding,
            flags: u16::from_be_bytes([f0, f1]),
            count: u32::from_be_bytes([c0, c1, c2, c3]),
            first: u64::from_be_bytes(first),
            payload_bytes: u32::from_be_bytes([p0, p1, p2, p3]),
        })
    }

    /// The run, which must not be empty and must lie in RAM.
    fn pages(self, ram_pages: u64) -> Result<Extent, WireError> {
        let count = u64::from(self.count);
        if count == 0 || self.first.checked_add(count).is_none_or(|end| end > ram_pages) {
            return refuse(format!("{count} pages at {} do not lie in a RAM of {ram_pages}", self.first));
        }
        Ok(Extent { start: self.first, count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RAM_PAGES: u64 = 1 << 20;

    fn runs(most: u64) -> impl Strategy<Value = Extent> {
        (1..=most).prop_flat_map(|count| (0..=RAM_PAGES - count).prop_map(move |start| Extent { start, count }))
    }

    fn frames() -> impl Strategy<Value = Frame> {
        prop_oneof![
            (runs(u64::from(MOST_RAW_PAGES)), any::<bool>())
                .prop_map(|(pages, demanded)| Frame::Raw { pages, demanded }),
            (runs(RAM_PAGES), any::<bool>()).prop_map(|(pages, demanded)| Frame::Zero { pages, demanded }),
            (0..RAM_PAGES, 1u8..=255, 0..=MOST_ENCODED_BYTES, any::<bool>()).prop_map(
                |(page, encoding, payload_bytes, demanded)| Frame::Encoded { page, encoding, payload_bytes, demanded }
            ),
            any::<u64>().prop_map(|sequence| Frame::Barrier { sequence }),
            Just(Frame::End),
            runs(RAM_PAGES).prop_map(|pages| Frame::Want { pages }),
            runs(RAM_PAGES).prop_map(|pages| Frame::Reference { pages }),
        ]
    }

    proptest! {
        #[test]
        fn a_header_survives_the_crossing(frame in frames()) {
            prop_assert_eq!(Frame::decode(&frame.encode(), RAM_PAGES).unwrap(), frame);
        }

        #[test]
        fn what_is_accepted_of_damaged_headers_lies_in_ram_and_means_one_thing(
            frame in frames(), at in 0..HEADER_BYTES, value in any::<u8>(), ram_pages in 0..=RAM_PAGES,
        ) {
            let mut bytes = frame.encode();
            bytes[at] = value;
            if let Ok(read) = Frame::decode(&bytes, ram_pages) {
                prop_assert_eq!(read.encode(), bytes);
                if let Frame::Raw { pages, .. }
                | Frame::Zero { pages, .. }
                | Frame::Want { pages }
                | Frame::Reference { pages } = read
                {
                    prop_assert!(pages.end() <= ram_pages && pages.count > 0);
                }
                prop_assert!(read.payload_bytes() <= u64::from(MOST_RAW_PAGES) * PAGE_BYTES);
            }
        }

        #[test]
        fn noise_is_survived(mut noise in any::<[u8; HEADER_BYTES]>(), kind in 0u8..10, tagged in any::<bool>()) {
            noise[0] = kind;
            if tagged {
                noise[20..].copy_from_slice(&TAG);
            }
            if let Ok(frame) = Frame::decode(&noise, RAM_PAGES) {
                prop_assert_eq!(frame.encode(), noise);
            }
        }
    }

    #[test]
    fn a_header_of_zeros_is_invalid() {
        assert!(Frame::decode(&[0; HEADER_BYTES], RAM_PAGES).is_err());
    }

    #[test]
    fn a_run_that_wraps_around_is_refused() {
        let pages = Extent { start: u64::MAX, count: 2 };
        assert!(Frame::decode(&Frame::Zero { pages, demanded: false }.encode(), u64::MAX).is_err());
        let long = Extent { start: 0, count: u64::from(MOST_RAW_PAGES) + 1 };
        let bytes = Frame::Raw { pages: long, demanded: false }.encode();
        assert!(matches!(Frame::decode(&bytes, RAM_PAGES), Err(WireError::TooLarge { .. })));
    }
}
