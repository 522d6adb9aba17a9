//! The energy of a home host that sleeps while its idle guest is elsewhere (Bila et al., Jettison, EuroSys 2012).
//!
//! No host sleeps here: energies are computed from a recorded fault trace and the powers and times of a host's states.
//!
//! ```text
//!   on ── suspending ── asleep ── resuming ── on        partial: wakes whenever the guest asks for what it left behind
//! ```
//!
//! A partial migration sends a descriptor, and then what the guest asks for; the host sleeps in a gap if that is worth it,
//! with perfect knowledge of when the gap ends: what is computed bounds what a sleep scheduler can save. A full migration
//! sends everything, and the host sleeps until the user returns. Then both wake, and what changed meanwhile comes back.
//! Time after the user's return is charged with what exceeds a host that is on, since by then it would be on anyway.

use std::time::Duration;

/// The powers and times of a host's states.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct States {
    /// Watts of a host that is on and idle.
    pub on_w: f64,
    /// Watts above that while it sends or receives.
    pub transfer_w: f64,
    /// Watts while it suspends.
    pub suspending_w: f64,
    /// How long it suspends.
    pub suspending: Duration,
    /// Watts while it sleeps.
    pub asleep_w: f64,
    /// Watts while it resumes.
    pub resuming_w: f64,
    /// How long it resumes.
    pub resuming: Duration,
}

/// What is moved, and how fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moves {
    /// The guest's whole state, in bytes.
    pub full_bytes: u64,
    /// What a partial migration sends at first, in bytes.
    pub descriptor_bytes: u64,
    /// What comes back when the user returns, in bytes.
    pub returned_bytes: u64,
    /// Bytes a second.
    pub rate: f64,
    /// How long the user is away.
    pub idle: Duration,
}

/// A request for what was left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Since the guest left.
    pub at: Duration,
    /// What was sent for it.
    pub bytes: u64,
}

/// What one way of leaving costs the home host.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Joules while the user is away, and what the return costs above a host that is on.
    pub joules: f64,
    /// Bytes that crossed.
    pub bytes: u64,
    /// How often the host woke.
    pub wakes: u64,
    /// How long it slept, transitions not included.
    pub asleep_s: f64,
}

/// Both ways beside a host that stays on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Joules of a host that stays on.
    pub on_joules: f64,
    /// A full migration.
    pub full: Cost,
    /// A partial one.
    pub partial: Cost,
    /// The shortest time from the first instant of suspending to the last of resuming that saves energy, in seconds;
    /// `None`: sleeping never does.
    pub break_even_s: Option<f64>,
}

impl Comparison {
    /// The saving of a partial migration by that of a full one; `None` where a full one saves nothing.
    pub fn partial_to_full_saving(&self) -> Option<f64> {
        let full = self.on_joules - self.full.joules;
        (full > 0.0).then(|| (self.on_joules - self.partial.joules) / full)
    }
}

impl States {
    /// The shortest cycle of suspending, sleeping and resuming that saves energy, in seconds:
    /// (E_suspend + E_resume - P_sleep (t_s + t_r)) / (P_idle - P_sleep), and not shorter than t_s + t_r.
    pub fn break_even_s(&self) -> Option<f64> {
        let (s, r) = (self.suspending.as_secs_f64(), self.resuming.as_secs_f64());
        let transitions = self.suspending_w * s + self.resuming_w * r - self.asleep_w * (s + r);
        (self.on_w > self.asleep_w).then(|| (transitions / (self.on_w - self.asleep_w)).max(s + r))
    }
}

/// Computes both ways. Faults come in order of time; those after the user's return don't count.
pub fn compare(states: &States, moves: &Moves, faults: &[Fault]) -> Comparison {
    let partial = {
        let mut host = Host::new(states, moves, moves.descriptor_bytes);
        for fault in faults.iter().filter(|f| f.at < moves.idle) {
            host.let_be_until(fault.at.as_secs_f64());
            host.transfer(fault.bytes);
        }
        host.user_returns()
    };
    let full = Host::new(states, moves, moves.full_bytes).user_returns();
    let on_joules = states.on_w * moves.idle.as_secs_f64();
    Comparison { on_joules, full, partial, break_even_s: states.break_even_s() }
}

/// The home host on its way through the user's absence.
struct Host<'a> {
    states: &'a States,
    moves: &'a Moves,
    now_s: f64,
    cost: Cost,
}

impl<'a> Host<'a> {
    fn new(states: &'a States, moves: &'a Moves, first_bytes: u64) -> Self {
        let mut host = Host { states, moves, now_s: 0.0, cost: Cost::default() };
        host.transfer(first_bytes);
        host
    }

    /// Spends time at a power. What lies after the user's return counts only above a host that is on: that the user waits for
    /// less than that is no saving.
    fn spend(&mut self, seconds: f64, watts: f64) {
        let away = (self.moves.idle.as_secs_f64() - self.now_s).clamp(0.0, seconds);
        self.cost.joules += watts * away + (watts - self.states.on_w).max(0.0) * (seconds - away);
        self.now_s += seconds;
    }

    fn transfer(&mut self, bytes: u64) {
        self.spend(bytes as f64 / self.moves.rate, self.states.on_w + self.states.transfer_w);
        self.cost.bytes = self.cost.bytes.saturating_add(bytes);
    }

    /// Until an instant nothing is asked of the host; at that instant it must be on, or begin to resume.
    fn let_be_until(&mut self, instant_s: f64) {
        let (s, r) = (self.states.suspending.as_secs_f64(), self.states.resuming.as_secs_f64());
        let gap = (instant_s - self.now_s).max(0.0);
        let worth_it = self.states.break_even_s().is_some_and(|shortest| gap >= s && gap + r > shortest);
        if worth_it {
            self.spend(s, self.states.suspending_w);
            self.spend(gap - s, self.states.asleep_w);
            self.spend(r, self.states.resuming_w);
            self.cost.wakes += 1;
            self.cost.asleep_s += gap - s;
        } else {
            self.spend(gap, self.states.on_w);
        }
    }

    fn user_returns(mut self) -> Cost {
        self.let_be_until(self.moves.idle.as_secs_f64());
        self.transfer(self.moves.returned_bytes);
        self.cost
    }
}

/// A trace as the partial strategy writes it: the line `at_ns,bytes`, then a line a fault: when it was asked, in nanoseconds
/// since the guest left, and how many bytes were sent for it. Times never fall. Lines that begin with `#` say what they like.
///
/// # Errors
/// The number of the first line that is wrong, and what would be right.
pub fn read_trace(text: &str) -> Result<Vec<Fault>, WrongLine> {
    let mut lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    let wrong = |line, why: &str| Err(WrongLine { line, why: why.to_owned() });
    match lines.next() {
        Some((_, header)) if header.trim() == HEADER => {}
        Some((line, _)) => return wrong(line, "the first line names the columns; write at_ns,bytes"),
        None => return wrong(1, "the trace is empty; write at_ns,bytes and a line a fault"),
    }
    let mut faults: Vec<Fault> = Vec::new();
    for (line, text) in lines {
        let numbers =
            text.split_once(',').and_then(|(at, bytes)| Some((at.trim().parse().ok()?, bytes.trim().parse().ok()?)));
        let Some((at_ns, bytes)) = numbers else {
            return wrong(line, "write two whole numbers, such as 1500000000,4096");
        };
        let fault = Fault { at: Duration::from_nanos(at_ns), bytes };
        if faults.last().is_some_and(|last| last.at > fault.at) {
            return wrong(line, "it is earlier than the line before it; write faults in order of time");
        }
        faults.push(fault);
    }
    Ok(faults)
}

/// The first line of a trace.
pub const HEADER: &str = "at_ns,bytes";

/// A line of a trace that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}: {why}")]
pub struct WrongLine {
    /// From 1.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub why: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Round figures, not any machine's.
    const STATES: States = States {
        on_w: 100.0,
        transfer_w: 20.0,
        suspending_w: 110.0,
        suspending: Duration::from_secs(3),
        asleep_w: 5.0,
        resuming_w: 120.0,
        resuming: Duration::from_secs(2),
    };

    fn moves(idle_s: u64) -> Moves {
        Moves {
            full_bytes: 4 << 30,
            descriptor_bytes: 16 << 20,
            returned_bytes: 64 << 20,
            rate: 100e6,
            idle: Duration::from_secs(idle_s),
        }
    }

    fn faults(every_s: u64, idle_s: u64) -> Vec<Fault> {
        (1..)
            .map(|n| Fault { at: Duration::from_secs(n * every_s), bytes: 1 << 20 })
            .take_while(|f| f.at.as_secs() < idle_s)
            .collect()
    }

    #[test]
    fn the_break_even_time_is_the_papers() {
        // (330 + 240 - 5 x 5) / 95
        assert!((STATES.break_even_s().unwrap() - 545.0 / 95.0).abs() < 1e-12);
        assert_eq!(States { asleep_w: 100.0, ..STATES }.break_even_s(), None);
        let quick = States { suspending_w: 0.0, resuming_w: 0.0, ..STATES };
        assert_eq!(quick.break_even_s(), Some(5.0));
    }

    #[test]
    fn a_known_trace_costs_what_it_must() {
        let moves =
            Moves { full_bytes: 0, descriptor_bytes: 0, returned_bytes: 0, rate: 1e6, idle: Duration::from_secs(100) };
        let fault = [Fault { at: Duration::from_secs(50), bytes: 1_000_000 }];
        let Comparison { on_joules, partial, full, .. } = compare(&STATES, &moves, &fault);
        assert_eq!(on_joules, 10_000.0);
        // Twice 3 s of suspending; 47 and 44 s asleep; 2 s of resuming, the second time after the return; 1 s of transfer.
        let expected = 2.0 * 330.0 + 91.0 * 5.0 + 240.0 + 120.0 + 2.0 * 20.0;
        assert!((partial.joules - expected).abs() < 1e-9, "{partial:?}");
        assert_eq!((partial.wakes, partial.bytes, partial.asleep_s), (2, 1_000_000, 91.0));
        assert!((full.joules - (330.0 + 97.0 * 5.0 + 2.0 * 20.0)).abs() < 1e-9, "{full:?}");
    }

    #[test]
    fn short_gaps_are_not_slept_through() {
        let partial = compare(&STATES, &moves(600), &faults(3, 600)).partial;
        assert_eq!((partial.wakes, partial.asleep_s), (0, 0.0));
        assert!(compare(&STATES, &moves(600), &faults(60, 600)).partial.wakes >= 9);
    }

    /// The shape of the paper: savings rise with the idle time; partial comes near full, and exceeds it where the transfer of
    /// everything is dear.
    #[test]
    fn partial_comes_near_full_and_may_exceed_it() {
        let ratio =
            |idle: u64, every: u64| compare(&STATES, &moves(idle), &faults(every, idle)).partial_to_full_saving();
        let long: Vec<f64> = [300, 1800, 7200].iter().map(|idle| ratio(*idle, 120).unwrap()).collect();
        assert!((0.8..1.2).contains(&long[2]), "{long:?}");
        assert!(ratio(300, 1000).unwrap() > 1.0, "without a fault there is only less to send");
        assert!(ratio(7200, 20).unwrap() < ratio(7200, 120).unwrap());
    }

    #[test]
    fn a_wrong_trace_is_refused_with_its_line() {
        for (text, line, part) in [
            ("", 1, "empty"),
            ("at,bytes\n", 1, "at_ns,bytes"),
            ("# made by hand\nat_ns,bytes\n1,2\n1;2\n", 4, "two whole numbers"),
            ("at_ns,bytes\n1,-2\n", 2, "two whole numbers"),
            ("at_ns,bytes\n5,1\n4,1\n", 3, "order"),
            ("at_ns,bytes\n99999999999999999999,1\n", 2, "whole numbers"),
        ] {
            let wrong = read_trace(text).unwrap_err();
            assert!(wrong.line == line && wrong.why.contains(part), "{text:?}: {wrong}");
        }
        assert_eq!(
            read_trace("at_ns,bytes\n\n5, 4096\n").unwrap(),
            [Fault { at: Duration::from_nanos(5), bytes: 4096 }]
        );
    }

    proptest! {
        /// Nothing is free and nothing is paid twice: a host costs at least sleeping all the time, and at most being on and
        /// transferring and changing state all the time.
        #[test]
        fn energies_lie_within_their_bounds(
            gaps in prop::collection::vec((0u64..400, 0u64..50_000_000), 0..40),
            idle in 1u64..5000,
            (suspending_w, resuming_w) in (0.0f64..200.0, 0.0f64..200.0),
        ) {
            let states = States { suspending_w, resuming_w, ..STATES };
            let mut at = 0;
            let faults: Vec<Fault> = gaps.iter().map(|(gap, bytes)| {
                at += gap;
                Fault { at: Duration::from_secs(at), bytes: *bytes }
            }).collect();
            let found = compare(&states, &moves(idle), &faults);
            let [least, most] = [f64::min, f64::max].map(|of| of(suspending_w, resuming_w));
            for cost in [found.full, found.partial] {
                prop_assert!(cost.joules >= least.min(5.0) * idle as f64 - 1e-6, "{cost:?}");
                prop_assert!(
                    cost.joules <= most.max(120.0) * (idle as f64 + cost.bytes as f64 / 100e6 + 2.0),
                    "{cost:?}"
                );
                prop_assert!(cost.asleep_s <= idle as f64);
            }
            // Sleeping is chosen only where it saves.
            let never = compare(&States { asleep_w: 100.0, ..states }, &moves(idle), &faults);
            prop_assert!(found.partial.joules <= never.partial.joules + 2.0 * resuming_w + 1e-6);
        }
    }
}
