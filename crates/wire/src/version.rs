//! The versions of the protocol. This one and only it is accepted.

/// A version of everything that two hosts say to each other. Number 0 is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Version {
    /// The first: hello, control frames with attachments, page frames with 24-byte headers, NBD as it is.
    First = 1,
}

impl Version {
    /// The version that this program speaks.
    pub const OURS: Version = Version::First;

    /// The number on the wire.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// The version of that number, if this program speaks it.
    pub fn accepted(number: u16) -> Option<Version> {
        (number == Version::OURS.number()).then_some(Version::OURS)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.number().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_version_is_accepted() {
        let accepted: Vec<u16> = (0..=u16::MAX).filter(|n| Version::accepted(*n).is_some()).collect();
        assert_eq!(accepted, [Version::OURS.number()]);
    }
}
