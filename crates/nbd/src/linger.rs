//! When to look once more for requests before replies are written.
//!
//! A client with many requests in flight sends them one by one. Answering each at once costs it and us a write, a wake-up
//! and a read; waiting for one turn of the scheduler collects several. A client that waits for each reply must not be kept:
//! so a look that gained nothing makes the next ones rarer, and one that gained makes them usual again.

/// The most replies in a row that are written without a look.
const SKIP_MAX: u32 = 63;

/// The rule, fed with the number of requests received so far.
#[derive(Debug, Default)]
pub(crate) struct Linger {
    /// Requests received when the look began that goes on.
    look: Option<u64>,
    /// Writes to come without a look.
    skip: u32,
    /// How many were skipped after the last look in vain.
    penalty: u32,
}

impl Linger {
    /// Asked before each write: whether to look first. The write after a look is always due.
    pub(crate) fn wanted(&mut self, received: u64) -> bool {
        match self.look.take() {
            Some(before) if received > before => self.penalty = 0,
            Some(_) => {
                self.penalty = (self.penalty * 2 + 1).min(SKIP_MAX);
                self.skip = self.penalty;
            }
            None if self.skip > 0 => self.skip -= 1,
            None => {
                self.look = Some(received);
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_that_gain_go_on() {
        let mut linger = Linger::default();
        for received in 0..100 {
            assert!(linger.wanted(2 * received));
            assert!(!linger.wanted(2 * received + 1));
        }
    }

    #[test]
    fn looks_in_vain_become_rare_and_come_back() {
        let mut linger = Linger::default();
        let looks = (0..1000).filter(|received| linger.wanted(*received) && !linger.wanted(*received)).count();
        assert!(looks <= 1000 / 64 + 7, "{looks}");
        let mut received = 1000;
        while !linger.wanted(received) {
            received += 1;
        }
        assert!(!linger.wanted(received + 1));
        assert!(linger.wanted(received + 1));
    }
}
