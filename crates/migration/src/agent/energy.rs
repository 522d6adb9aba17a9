//! What of an agent reads its host's energy: one meter at a time, shared by all guests that move to or from the host.

use super::{Desk, Shared, cpu_ns};
use crate::driver::DriverError;
use crate::recorder::Recorder;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use whimbrel_energy::{Activity, Conditions, EnergySpec, HostMeter, Place, Sampler, Totals, Unmeasured, host};
use whimbrel_machine::Machine;
use whimbrel_model::event::Mark;
use whimbrel_model::{Event, Nanos, Recorded};
use whimbrel_wire::clock;

/// The host's meter while somebody wants it.
pub(super) struct Metering {
    place: Place,
    known: Mutex<Known>,
    /// The guests whose processor time the model counts, with what each had taken when it was last asked.
    guests: Mutex<Vec<(Weak<dyn Machine>, u64)>>,
}

/// What is known of the meter that was asked for last.
#[derive(Default)]
struct Known {
    spec: Option<EnergySpec>,
    /// What was found, or why there is none. That doesn't change while the agent runs, and finding out keeps a core busy.
    found: Option<Result<HostMeter, Unmeasured>>,
    running: Weak<Running>,
}

/// A meter that is read at a steady pace.
pub(super) struct Running {
    described: HostMeter,
    heard: Arc<Mutex<Heard>>,
    sampler: Sampler,
    place: Place,
}

/// What was read, and who wants to know.
#[derive(Default)]
struct Heard {
    last: Option<Totals>,
    listeners: Vec<Weak<Recorder>>,
}

/// Records a meter's readings until it is dropped.
pub(super) struct Listening {
    running: Arc<Running>,
    recorder: Arc<Recorder>,
    conditions: Conditions,
}

impl Metering {
    pub(super) fn new(place: Place) -> Self {
        Metering { place, known: Mutex::default(), guests: Mutex::default() }
    }

    /// Has a guest's processor time counted from now on, for as long as it is here.
    pub(super) fn counts(&self, guest: &Arc<dyn Machine>) {
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        guests.push((Arc::downgrade(guest), guest.cpu_ns()));
    }

    /// What the guests have taken outside this process since this was asked last, in nanoseconds.
    fn more_guest_cpu_ns(&self) -> u64 {
        let mut more = 0;
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        guests.retain_mut(|(guest, last)| match guest.upgrade() {
            Some(guest) => {
                let now = guest.cpu_ns();
                more += now.saturating_sub(*last);
                *last = now.max(*last);
                true
            }
            None => false,
        });
        more
    }
}

/// The meter that runs, or a new one.
fn start(shared: &Arc<Shared>, spec: &EnergySpec) -> Result<Arc<Running>, Unmeasured> {
    let Metering { place, known, .. } = &shared.metering;
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    if known.spec.as_ref() == Some(spec) {
        if let Some(running) = known.running.upgrade() {
            return Ok(running);
        }
    } else {
        *known = Known { spec: Some(spec.clone()), ..Known::default() };
    }
    let again = |why: Unmeasured| {
        Unmeasured::because(format!(
            "{why} (as it was when this agent was asked first; one that is started anew looks again)"
        ))
    };
    let before = known.found.clone().transpose().map_err(again)?;
    let opened = host::open(place, spec, before.as_ref(), clock::now, activity(shared));
    known.found = Some(opened.as_ref().map(|(_, described)| described.clone()).map_err(Clone::clone));
    let (meter, described) = opened?;
    let heard: Arc<Mutex<Heard>> = Arc::default();
    let hears = Arc::clone(&heard);
    let sampler = Sampler::start(meter, spec.sample_every, clock::now, move |totals| lock(&hears).hear(totals));
    let running = Arc::new(Running { described, heard, sampler, place: place.clone() });
    known.running = Arc::downgrade(&running);
    Ok(running)
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Heard {
    fn hear(&mut self, totals: Totals) {
        self.listeners.retain(|listener| match listener.upgrade() {
            Some(recorder) => {
                recorder.record_at(totals.at, Event::Energy { uj: totals.uj.clone() });
                true
            }
            None => false,
        });
        self.last = Some(totals);
    }
}

/// What the model counts: this process and its guests, and what crossed the host's card.
fn activity(shared: &Arc<Shared>) -> impl FnMut() -> Activity + Send + 'static {
    let shared = Arc::downgrade(shared);
    let (mut before, mut last, mut guests_ns) = (0, 0, 0);
    move || {
        let crossed = shared.upgrade().and_then(|shared| {
            guests_ns += shared.metering.more_guest_cpu_ns();
            let card = shared.card.lock().unwrap_or_else(PoisonError::into_inner);
            let traffic = card.as_ref().map(|(_, nic)| nic)?.traffic();
            Some(traffic.sent().wire_bytes + traffic.received().wire_bytes)
        });
        let crossed = crossed.unwrap_or(0);
        if crossed < last {
            // Another card, with books of its own.
            before += last;
        }
        last = crossed;
        Activity { cpu_ns: cpu_ns() + guests_ns, bytes: before + crossed }
    }
}

impl Running {
    fn listen(self: &Arc<Self>, mark: Mark) -> Listening {
        let recorder = Arc::new(Recorder::new(mark));
        self.sampler.read_now();
        let mut heard = lock(&self.heard);
        if let Some(last) = &heard.last {
            recorder.record_at(last.at, Event::Energy { uj: last.uj.clone() });
        }
        heard.listeners.push(Arc::downgrade(&recorder));
        drop(heard);
        Listening { running: Arc::clone(self), recorder, conditions: Conditions::read(&self.place) }
    }
}

impl Listening {
    /// The readings, one of them made now, and what the host's processors did meanwhile.
    pub(super) fn end(self) -> (Vec<Recorded>, Conditions) {
        self.running.sampler.read_now();
        (self.recorder.take(), self.conditions.mean(Conditions::read(&self.running.place)))
    }
}

/// Does something that takes `time` at first, and gives the host's power in that time, in watts.
pub(super) fn during<T>(
    meter: Option<&Arc<Running>>,
    time: Duration,
    act: impl FnOnce() -> Result<T, DriverError>,
) -> Result<(T, Result<f64, String>), DriverError> {
    let Some(meter) = meter else {
        return Ok((act()?, Err("no meter was asked for, or none works".to_owned())));
    };
    let listening = meter.listen(Mark::Source);
    let from = clock::now();
    let done = act()?;
    let samples: Vec<Totals> = listening.end().0.into_iter().filter_map(totals).collect();
    // A meter that speaks seldom is taken from its first figure to its last.
    let spoken = samples.first().zip(samples.last()).map_or((from, from), |(first, last)| (first.at, last.at));
    let (from, to) = (from.max(spoken.0), from.plus(time.into()).min(spoken.1));
    let uj = meter.described.energy(&samples, from, to).map_err(|why| why.why);
    Ok((done, uj.map(|uj| uj as f64 * 1e3 / to.since(from).0 as f64)))
}

/// An event as readings.
fn totals(recorded: Recorded) -> Option<Totals> {
    match recorded.event {
        Event::Energy { uj } => Some(Totals { at: Nanos(recorded.at_ns.0), uj }),
        _ => None,
    }
}

impl Desk {
    /// Starts to read the host's energy.
    pub(super) fn start_meter(&mut self, spec: &EnergySpec) -> Result<Box<HostMeter>, String> {
        self.listening = None;
        self.meter = None;
        let running = start(&self.shared, spec).map_err(|why| why.why)?;
        let described = Box::new(running.described.clone());
        self.meter = Some(running);
        Ok(described)
    }

    /// Records the host's energy from now on, as one end of a move.
    pub(super) fn listen(&mut self, mark: Mark) {
        self.listening = self.meter.as_ref().map(|meter| meter.listen(mark));
    }
}
