//! A guest that comes: what of it is here already, and its move.

use super::{Desk, no_guest};
use crate::commands::{Answer, GuestSpec, MoveSpec};
use crate::copies;
use crate::core::Ending;
use crate::driver::{
    Arrived, DestinationParts, DriverError, Left, accept_own, accept_roles, arrive_own, in_words, run_destination,
};
use crate::guest::Guest;
use crate::recorder::Recorder;
use std::sync::Arc;
use whimbrel_machine::Begin;
use whimbrel_model::event::Mark;
use whimbrel_wire::Nic;

/// A move that this host receives.
pub(super) struct Expected {
    pub(super) session: u64,
    nic: Nic,
    cpu_ns: u64,
    recorder: Recorder,
    pub(super) thread: std::thread::JoinHandle<Result<Arrived, DriverError>>,
}

impl Desk {
    /// Makes the disk that the guest has left here outlive this agent.
    pub(super) fn keep(&mut self) -> Result<(), DriverError> {
        if !self.away {
            return Err(DriverError::Protocol("the guest has not left this host".to_owned()));
        }
        self.guest.as_mut().ok_or_else(no_guest)?.keep()
    }

    pub(super) fn receive(&mut self, spec: GuestSpec, movement: &MoveSpec) -> Result<(), DriverError> {
        self.forget_expected();
        self.listen(Mark::Destination);
        let is_new = self.take_up(spec, movement)?;
        let guest = self.guest.as_mut().ok_or_else(no_guest)?;
        if movement.memory.leaves_out() {
            guest.clear_ram();
        }
        let context = guest.disk_context();
        let needs = context.as_ref().map(|context| movement.disk.needs(context));
        let remains = needs.is_some_and(|needs| needs.remains);
        // What the hypervisor moves by itself, nobody sees arrive.
        let recorded = movement.recorded && !remains && movement.own.is_none();
        let held = guest.hold(movement.session, is_new, recorded)?;
        let record = guest.record();
        let witness = if movement.witness { guest.begin_witness()? } else { None };
        let guest = self.guest()?;
        self.shared.metering.counts(&guest.machine);
        let own = movement.own.clone().map(|own| {
            let roles = guest.own_roles(&own)?;
            Ok::<_, DriverError>((roles, guest.machine.prepare_to_arrive(&own)?, own))
        });
        let own = own.transpose()?;
        let nic = self.shared.nic(movement.link);
        let recorder = Recorder::new(Mark::Destination);
        let (hand_over, coming) = std::sync::mpsc::channel();
        self.shared.expected().insert(movement.session, hand_over);
        let (machine, volume) = (Arc::clone(&guest.machine), guest.volume.clone());
        let (runtime, told, link) = (self.runtime.clone(), recorder.clone(), nic.clone());
        let prefetch = context.filter(|_| needs.is_some_and(|needs| needs.prefetch));
        let prefetch = prefetch.map(|context| movement.disk.build(&context).schedule);
        let thread = std::thread::spawn(move || {
            let _within = runtime.enter();
            if let Some((roles, ends, own)) = own {
                let connections = accept_own(&coming, &link, &roles)?;
                return arrive_own(&machine, volume.as_deref(), &own, ends, connections, &told);
            }
            let connections = accept_roles(&coming, &link, needs)?;
            let runtime = runtime.clone();
            let recorder = told;
            run_destination(DestinationParts {
                machine,
                volume,
                held,
                record,
                prefetch,
                needs,
                connections,
                witness,
                recorder,
                runtime,
            })
        });
        self.expected = Some(Expected { session: movement.session, nic, cpu_ns: self.cpu_ns(), recorder, thread });
        Ok(())
    }

    /// Sees to the guest's RAM, disk and machine: what the moves before this one have left here, in this process or in the
    /// folder of images, or all new. Returns whether its disk is.
    fn take_up(&mut self, spec: GuestSpec, movement: &MoveSpec) -> Result<bool, DriverError> {
        let begin = if movement.own.is_some() { Begin::ArrivingByItself } else { Begin::Arriving };
        let earlier = if movement.own.is_some() { &[][..] } else { &movement.earlier };
        let is_there = |guest: &Guest| guest.point().is_some_and(|p| earlier.contains(&p.session()));
        if let Some(guest) = self.guest.as_mut().filter(|guest| self.away && is_there(guest)) {
            if guest.volume.as_ref().is_some_and(|volume| volume.is_lent()) && !remains(guest, movement) {
                let why = "this guest's disk is not its own here: it comes back as it left, with a disk that remains";
                return Err(DriverError::Unfit(why.to_owned()));
            }
            guest.expect_return(begin)?;
            return Ok(false);
        }
        self.serves_nobody()?;
        self.discard();
        let found = spec.disk.and_then(|disk| copies::find(&self.shared.directory, earlier, &disk));
        let is_new = found.is_none();
        self.guest = Some(self.make(spec, begin, found)?);
        // Until it comes it is not here.
        self.away = true;
        Ok(is_new)
    }

    /// Sees that no guest that has left works on a disk that is here.
    pub(super) fn serves_nobody(&self) -> Result<(), DriverError> {
        let serves = self.guest.as_ref().and_then(|guest| guest.volume.as_ref()).is_some_and(|volume| volume.is_home());
        let why = "a guest that has left works on its disk here: it comes back as it left, with a disk that remains, or is \
                   discarded first";
        if serves { Err(DriverError::Unfit(why.to_owned())) } else { Ok(()) }
    }

    pub(super) fn collect(&mut self) -> Result<Answer, DriverError> {
        let nothing = || DriverError::Protocol("no move is expected here".to_owned());
        let Expected { session, nic, cpu_ns: began, recorder, thread } = self.expected.take().ok_or_else(nothing)?;
        let arrived =
            thread.join().map_err(|_| DriverError::Protocol("the destination's driver panicked".to_owned()))?;
        self.shared.expected().remove(&session);
        let (ending, handed_over) = match arrived {
            Ok(Arrived { ending, handed_over, watch, witness }) => {
                self.watch = watch;
                if let Some(guest) = &mut self.guest {
                    guest.witness = witness;
                }
                (ending, handed_over)
            }
            Err(error) => (Ending::Aborted { reason: in_words(&error) }, false),
        };
        self.away = !matches!(ending, Ending::Completed);
        if let Some(guest) = self.guest.as_mut().filter(|_| handed_over || !self.away) {
            guest.is_no_copy();
            guest.came_by = (!self.away).then_some(session);
        }
        self.recorder = recorder;
        let left = Left::without_a_word(ending);
        Ok(Answer::Ended { account: Box::new(self.account(left, handed_over, &nic, began)) })
    }
}

fn remains(guest: &Guest, movement: &MoveSpec) -> bool {
    guest.disk_context().is_some_and(|context| movement.disk.needs(&context).remains)
}
