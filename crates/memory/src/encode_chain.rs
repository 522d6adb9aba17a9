//! A chain of encodings: each page goes by the first that pays, else as it is.

use crate::encode::{Encode, Encoding, PageBytes};
use crate::encodings::{ENCODINGS, TAKES_ALL, TELLS_ZERO};
use whimbrel_model::{ParameterError, Parameters};

/// An encoded page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded<'a> {
    /// How it is encoded.
    pub kind: Encoding,
    /// The bytes that go, at most a page.
    pub payload: &'a [u8],
}

/// The encodings that are tried on each page, in their order.
///
/// A chain knows what the other end holds from what it encoded. So every page that goes to one destination goes through
/// one chain, what it yields is sent in order on one lane, and where that can't be said any more, [`EncodeChain::forget`]
/// is called: when pages go another way too, or when the destination drops stale pages at the switchover.
#[derive(Default)]
pub struct EncodeChain {
    members: Vec<Box<dyn Encode>>,
    tells_zero: bool,
    out: Vec<u8>,
}

impl EncodeChain {
    /// The chain of the encodings of these names, with their parameters together.
    ///
    /// # Errors
    /// A name is unknown or stands behind one that takes every page, or a value can't be.
    pub fn build<N: AsRef<str>>(names: &[N], parameters: &Parameters) -> Result<Self, ParameterError> {
        if let Some(at) = names.iter().position(|name| name.as_ref() == TAKES_ALL)
            && let Some(behind) = names.get(at + 1)
        {
            return Err(ParameterError::Value {
                key: "encode".to_owned(),
                found: format!("{:?} behind {TAKES_ALL:?}", behind.as_ref()),
                accepted: format!("{TAKES_ALL:?} last: it takes every page"),
            });
        }
        let members = names
            .iter()
            .map(|name| (ENCODINGS.find(name.as_ref())?.build)(parameters))
            .collect::<Result<_, ParameterError>>()?;
        let tells_zero = names.iter().any(|name| name.as_ref() == TELLS_ZERO);
        Ok(EncodeChain { members, tells_zero, out: Vec::new() })
    }

    /// Whether pages may be read while the guest writes them. Else each needs a stable private copy.
    pub fn live(&self) -> bool {
        self.members.iter().all(|member| member.live())
    }

    /// Whether a page of zeros goes as such, without content: all that a live chain can tell of a page.
    pub fn tells_zero(&self) -> bool {
        self.tells_zero
    }

    /// Encodes `content`, the page numbered `page`, which is from then on what the other end holds.
    pub fn encode<'a>(&'a mut self, page: u64, content: &'a PageBytes) -> Encoded<'a> {
        let mut found = None;
        for member in &mut self.members {
            self.out.clear();
            found = member.encode(page, content, &mut self.out);
            if found.is_some() {
                break;
            }
        }
        for member in &mut self.members {
            member.sent(page, content);
        }
        match found {
            Some(kind) if kind != Encoding::Raw || !self.out.is_empty() => Encoded { kind, payload: &self.out },
            _ => Encoded { kind: Encoding::Raw, payload: content },
        }
    }

    /// Forgets what the other end holds: the next version of each page goes without reference to an earlier one.
    pub fn forget(&mut self) {
        self.members.iter_mut().for_each(|member| member.forget());
    }
}

impl std::fmt::Debug for EncodeChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a chain of {} encodings", self.members.len())
    }
}
