//! Takes time from the vCPUs, by QEMU's own throttle: the one that its auto-converge sets.
//!
//! It sleeps in each vCPU's thread between two pieces of guest code, for share / (1 - share) of 10 ms after every 10 ms,
//! and where no lock of QEMU's is held. Other ways were weighed and left: to stop a thread by a signal or a control group
//! stops it wherever it is, perhaps with a lock that the monitor and the devices wait for; QMP's stop drains and flushes
//! the disks each time, and stops the guest's clock, so that the guest would not notice that it was slowed.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use whimbrel_model::Nanos;

/// The largest share that QEMU takes.
const MOST: f64 = 0.99;

/// Why a QEMU can't be slowed.
pub(super) const NONE: &str = "this QEMU's program offers its throttle (cpu_throttle_set) to nobody";

/// The throttle of one QEMU.
pub(super) struct Throttle {
    /// `None`: this QEMU offers none.
    told: Option<UnixStream>,
    vcpus: u64,
    taken: Mutex<Taken>,
}

/// What was taken so far.
#[derive(Debug, Default)]
struct Taken {
    ns: f64,
    share: f64,
    /// Since when `share` is taken; `None`: the vCPUs don't run.
    since: Option<Nanos>,
}

impl Taken {
    /// Counts until now, and from now on what the closure sets.
    fn turn(&mut self, now: Nanos, runs: bool) {
        if let Some(since) = self.since {
            self.ns += self.share * now.since(since).0 as f64;
        }
        self.since = runs.then_some(now);
    }
}

impl Throttle {
    /// Over the connection that obeys, if there is one.
    pub(super) fn over(told: Option<UnixStream>, vcpus: u32) -> Self {
        Throttle { told, vcpus: vcpus.into(), taken: Mutex::default() }
    }

    /// Takes `share` of each vCPU's time from now on.
    ///
    /// # Errors
    /// Why that can't be, in words.
    pub(super) fn set(&self, now: Nanos, share: f64) -> Result<(), String> {
        let percent = (share.clamp(0.0, MOST) * 100.0).round();
        let Some(mut told) = self.told.as_ref() else {
            return Err(NONE.to_owned());
        };
        writeln!(told, "throttle {percent}").map_err(|error| format!("QEMU can't be slowed: {error}"))?;
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = taken.since.is_some();
        taken.turn(now, runs);
        taken.share = percent / 100.0;
        Ok(())
    }

    /// Whether there is one.
    ///
    /// # Errors
    /// Why not, in words.
    pub(super) fn available(&self) -> Result<(), String> {
        self.told.as_ref().map(drop).ok_or_else(|| NONE.to_owned())
    }

    /// Hears that the vCPUs run from now on, or don't: time in which they don't is not taken.
    pub(super) fn note(&self, now: Nanos, runs: bool) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).turn(now, runs);
    }

    /// What was taken up to now by what was asked for, summed over the vCPUs: QEMU doesn't count it.
    pub(super) fn taken_ns(&self, now: Nanos) -> u64 {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = taken.since.is_some();
        taken.turn(now, runs);
        (taken.ns * self.vcpus as f64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_is_asked_for_is_said_and_counted_while_the_vcpus_run() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let throttle = Throttle::over(Some(ours), 2);
        throttle.note(Nanos(100), true);
        throttle.set(Nanos(1_000), 0.5).unwrap();
        assert_eq!(throttle.taken_ns(Nanos(2_000)), 1_000, "half of a microsecond of each of two");
        throttle.note(Nanos(3_000), false);
        assert_eq!(throttle.taken_ns(Nanos(9_000)), 2_000, "nothing is taken of a guest that is stopped");
        throttle.note(Nanos(10_000), true);
        throttle.set(Nanos(11_000), 7.0).unwrap();
        throttle.set(Nanos(12_000), 0.0).unwrap();
        assert_eq!(throttle.taken_ns(Nanos(20_000)), 2_000 + 1_000 + 1_980);
        drop(throttle);
        let mut said = String::new();
        theirs.read_to_string(&mut said).unwrap();
        assert_eq!(said, "throttle 50\nthrottle 99\nthrottle 0\n");
        assert!(Throttle::over(None, 1).set(Nanos(0), 0.5).is_err());
    }
}
