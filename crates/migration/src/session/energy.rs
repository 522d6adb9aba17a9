//! What of a trial concerns energy: the hosts' meters, their powers without a migration, and what they read during one.

use super::{Agent, SessionError};
use crate::commands::{Answer, Command, GuestSpec};
use crate::report::{ControlRun, EnergyFacts, HostPowers};
use std::time::Duration;
use whimbrel_energy::{Conditions, EnergySpec};
use whimbrel_model::{Mark, Recorded};

/// Why a host has no meter where nobody asked for one.
pub(super) const NOT_ASKED: &str = "energy was not asked for";

/// How the energy of a trial is measured.
#[derive(Clone, Debug, Default)]
pub struct EnergyPlan {
    /// With which meter, how often, and by which model where there is none.
    pub spec: EnergySpec,
    /// How long both hosts are let be before the control run, for their idle power; zero: that isn't measured.
    pub idle: Duration,
    /// Whether guests move back too, so that the workload's power is needed at both hosts.
    pub both_ways: bool,
}

/// What two hosts use without a migration.
#[derive(Clone, Debug)]
pub struct Powers {
    /// While nothing runs on them.
    pub idle: HostPowers,
    /// While the guest runs at the first of them.
    pub workload: HostPowers,
}

impl Powers {
    /// The same with the hosts' parts exchanged.
    pub(super) fn swapped(&self) -> Powers {
        let swap = |HostPowers { source_w, destination_w }: HostPowers| HostPowers {
            source_w: destination_w,
            destination_w: source_w,
        };
        Powers { idle: swap(self.idle.clone()), workload: swap(self.workload.clone()) }
    }
}

/// A control run with the pages that it dirtied in an interval of so many nanoseconds.
type Baseline = (ControlRun, Option<(u64, u64)>);

impl Agent {
    /// Has the host's energy read for as long as the connection lasts.
    pub(super) fn start_meter(&mut self, spec: &EnergySpec) -> Result<(), SessionError> {
        self.meter = self.expect(&Command::Meter { spec: spec.clone() }, |a| match a {
            Answer::Metered { meter } => Some(meter),
            _ => None,
        })?;
        Ok(())
    }

    fn idle(&mut self, time: Duration) -> Result<Result<f64, String>, SessionError> {
        self.expect(&Command::Idle { for_ns: time.as_nanos() as u64 }, |a| match a {
            Answer::Idled { power_w } => Some(power_w),
            _ => None,
        })
    }

    fn energies(&mut self) -> Option<(Vec<Recorded>, Conditions)> {
        // A host that is gone has no more to tell: the report says what it lacks.
        let told = self.expect(&Command::Energies {}, |a| match a {
            Answer::Energies { events, conditions } => Some((events, conditions)),
            _ => None,
        });
        told.ok()
    }
}

/// Whether each host has a meter of its own.
pub(super) fn apart(here: &Agent, there: &Agent) -> bool {
    matches!((&here.meter, &there.meter), (Ok(here), Ok(there)) if !here.shares_package(there))
}

/// Lets both hosts be, then runs the guest at the first of them, and gives their powers in both times.
pub(super) fn baseline(
    here: &mut Agent,
    there: &mut Agent,
    guest: &GuestSpec,
    time: Duration,
    energy: Option<&EnergyPlan>,
) -> Result<(Baseline, Powers), SessionError> {
    let mut idle = HostPowers::none("the experiment doesn't ask for it: energy.idle is 0");
    if let Some(plan) = energy {
        here.start_meter(&plan.spec)?;
        there.start_meter(&plan.spec)?;
        let metered = here.meter.is_ok() || there.meter.is_ok();
        if plan.idle > Duration::ZERO && metered {
            let (one, other) = std::thread::scope(|scope| {
                let other = scope.spawn(|| there.idle(plan.idle));
                (here.idle(plan.idle), other.join().expect("it waits for an answer only"))
            });
            idle = HostPowers { source_w: one?, destination_w: other? };
        }
    }
    here.done(&Command::Create { spec: guest.clone() })?;
    let command = Command::Control { for_ns: time.as_nanos() as u64 };
    let (ran, other) = std::thread::scope(|scope| {
        let other = there.meter.is_ok().then(|| scope.spawn(|| there.idle(time)));
        let ran = here.expect(&command, |a| match a {
            Answer::Baseline { control, dirtied, power_w } => Some(((*control, dirtied), power_w)),
            _ => None,
        });
        (ran, other.map(|other| other.join().expect("it waits for an answer only")))
    });
    let (run, source_w) = ran?;
    let destination_w = other.unwrap_or_else(|| Ok(Err("the host has no meter".to_owned())))?;
    Ok((run, Powers { idle, workload: HostPowers { source_w, destination_w } }))
}

/// What both hosts read since the move began, and what is known of it.
pub(super) fn gather(here: &mut Agent, there: &mut Agent, powers: Option<&Powers>) -> (Vec<Recorded>, EnergyFacts) {
    let mut facts =
        EnergyFacts { source: here.meter.clone(), destination: there.meter.clone(), ..EnergyFacts::default() };
    if let Some(powers) = powers {
        facts.idle = powers.idle.clone();
        facts.workload = powers.workload.clone();
    }
    let mut all = Vec::new();
    let ends = [
        (here, Mark::Source, &mut facts.source_conditions),
        (there, Mark::Destination, &mut facts.destination_conditions),
    ];
    for (agent, host, conditions) in ends {
        if agent.meter.is_err() {
            continue;
        }
        if let Some((events, meanwhile)) = agent.energies() {
            all.extend(events.into_iter().map(|event| Recorded { host, ..event }));
            *conditions = meanwhile;
        }
    }
    (all, facts)
}
