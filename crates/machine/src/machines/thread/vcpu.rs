//! A vCPU of the thread kind: the loop that executes operations, keeps the pace, and gives heartbeats.

use super::control::{Control, Place, Seat};
use super::free_map::FreeMap;
use crate::clock::monotonic;
use crate::execute::{Registers, fits};
use crate::saved::SavedVcpu;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use whimbrel_disk::GuestDisk;
use whimbrel_memory::GuestRam;
use whimbrel_model::Nanos;
use whimbrel_model::content::Content;
use whimbrel_model::op::{Op, operation_key};
use whimbrel_model::stream::{Paced, Pacing, Shape, Stream, StreamError};

/// Work between two looks at the clock, in nanoseconds by a guess. A look takes some 50 ns, and the processor finishes all
/// that it has begun before it; and while a dirty log is armed, the first write to each page takes over ten times the
/// guess, and still the heartbeats come in time.
const LOOK_EVERY_NS: u64 = 14_000;

/// The lateness that every pacing makes up: a sleep overshoots, and a request to the disk takes its time.
const CREDIT_NS: u64 = 10_000_000;

/// The period in which throttling takes its share.
const THROTTLE_PERIOD_NS: u64 = 10_000_000;

/// What a vCPU shares with its machine.
pub(super) struct Board {
    pub(super) ram: Arc<GuestRam>,
    pub(super) disk: Option<Arc<dyn GuestDisk>>,
    pub(super) shape: Shape,
    pub(super) seed: u64,
    pub(super) pacing: Pacing,
    pub(super) content: Content,
    pub(super) free: FreeMap,
    pub(super) control: Control,
}

/// A vCPU's private state. Its thread holds it while the vCPU runs, and whoever saves or loads the state while not.
pub(super) struct Vcpu {
    index: u32,
    stream: Box<dyn Stream>,
    registers: Registers,
    /// When the next operation is due; `None` before the first one that has a pace.
    due: Option<Nanos>,
    /// An operation drawn from the stream whose disk request failed.
    failed: Option<Paced>,
}

/// A vCPU's own state of time while it runs.
struct Tempo {
    now: Nanos,
    /// Work since the last look at the clock.
    spent: u64,
    /// When the Idle that goes on ends.
    idle_until: Option<Nanos>,
    /// The last operation was the disk's: the vCPU has not executed since it left for it.
    away: bool,
}

impl Vcpu {
    pub(super) fn new(index: u32, stream: Box<dyn Stream>, shape: &Shape) -> Self {
        Vcpu { index, stream, registers: Registers::new(shape.pages), due: None, failed: None }
    }

    /// Executes until the command is no longer to run.
    ///
    /// # Errors
    /// The disk failed; the operation is kept and tried again at the next run.
    pub(super) fn run(&mut self, board: &Board) -> io::Result<()> {
        let seat = &board.control.seats()[self.index as usize];
        let now = monotonic();
        seat.beat(now);
        let idle = std::mem::take(&mut self.registers.state.idle_left);
        let mut tempo = Tempo { now, spent: 0, idle_until: (idle > 0).then(|| now.plus(Nanos(idle))), away: false };
        let mut outcome = Ok(());
        while outcome.is_ok() && board.control.runs() {
            if self.ready(board, seat, &mut tempo) {
                outcome = self.burst(board, seat, &mut tempo);
            }
        }
        let now = monotonic();
        self.publish(seat);
        if !tempo.away {
            seat.beat(now);
        }
        if let Some(until) = tempo.idle_until {
            self.registers.state.idle_left = until.since(now).0;
        }
        outcome
    }

    /// Whether an operation may start now. If not, it has slept for a while.
    fn ready(&mut self, board: &Board, seat: &Seat, tempo: &mut Tempo) -> bool {
        if tempo.spent < LOOK_EVERY_NS && tempo.idle_until.is_none() && self.due.is_none() {
            return true;
        }
        tempo.now = monotonic();
        tempo.spent = 0;
        tempo.away = false;
        seat.beat(tempo.now);
        self.publish(seat);
        if let Some(until) = tempo.idle_until {
            if tempo.now < until {
                seat.nap(tempo.now, until);
                return false;
            }
            tempo.idle_until = None;
        }
        if let Some(due) = self.due {
            if tempo.now < due {
                // A whole slice: what becomes due meanwhile goes in one burst, and a wake-up costs more than most bursts.
                seat.nap(tempo.now, Nanos(u64::MAX));
                return false;
            }
            self.due = Some(in_credit(board.pacing, due, tempo.now));
        }
        let share = board.control.throttle();
        if share > 0.0 {
            self.give_up(board, seat, tempo, share);
            return board.control.runs();
        }
        true
    }

    /// Sleeps while the vCPU's time is taken from it: the first part of each period. Gives no heartbeat meanwhile.
    fn give_up(&self, board: &Board, seat: &Seat, tempo: &mut Tempo, share: f64) {
        let taken = (share * THROTTLE_PERIOD_NS as f64) as u64;
        let from = tempo.now;
        let until = Nanos(from.0 - from.0 % THROTTLE_PERIOD_NS + taken);
        while tempo.now < until && board.control.runs() {
            seat.nap(tempo.now, until);
            tempo.now = monotonic();
        }
        seat.throttled.fetch_add(tempo.now.since(from).0, Relaxed);
    }

    /// Executes at least one operation, and goes on with those that only touch memory and have no pace, until a look at the
    /// clock is due or the command is no longer to run: what most workloads do most, with as little as can be around it.
    fn burst(&mut self, board: &Board, seat: &Seat, tempo: &mut Tempo) -> io::Result<()> {
        if let Some(paced) = self.failed.take() {
            return self.step(board, seat, tempo, &paced);
        }
        let alone = self.due.is_some();
        let mut spent = tempo.spent;
        loop {
            // The operation is never copied: a copy in other pieces than it was written in stalls the processor.
            let paced = &self.stream.next();
            match paced.op {
                Op::Write { words, .. } | Op::Read { words, .. }
                    if paced.interval_ns == 0 && !alone && fits(&paced.op, &board.shape) =>
                {
                    spent += 100 + u64::from(words);
                    self.execute(board, paced, &mut None)?;
                }
                _ => {
                    tempo.spent = spent;
                    return self.step(board, seat, tempo, paced);
                }
            }
            if spent >= LOOK_EVERY_NS || !board.control.runs() {
                tempo.spent = spent;
                return Ok(());
            }
        }
    }

    /// Executes one operation, whatever it is.
    #[inline(never)]
    fn step(&mut self, board: &Board, seat: &Seat, tempo: &mut Tempo, paced: &Paced) -> io::Result<()> {
        if !fits(&paced.op, &board.shape) {
            return Err(io::Error::other(format!("the workload left its guest: {:?}", paced.op)));
        }
        match paced.op {
            Op::Write { words, .. } | Op::Read { words, .. } => {
                tempo.spent += 100 + u64::from(words);
                self.execute(board, paced, &mut None)?;
            }
            Op::DiskRead { .. } | Op::DiskWrite { .. } | Op::Flush => self.at_disk(board, seat, tempo, paced)?,
            Op::Compute { .. } => {
                tempo.spent += LOOK_EVERY_NS / 4;
                self.execute(board, paced, &mut None)?;
            }
            Op::Allocate { page } => {
                tempo.spent += LOOK_EVERY_NS / 4;
                // Before the page is written, and the bit of a freed one after all else: see the map.
                board.free.remove(page);
                self.execute(board, paced, &mut None)?;
            }
            Op::Free { page } => {
                tempo.spent += LOOK_EVERY_NS / 4;
                self.execute(board, paced, &mut None)?;
                board.free.insert(page);
            }
            Op::Idle { nanos } => {
                self.execute(board, paced, &mut None)?;
                tempo.idle_until = Some(monotonic().plus(Nanos(nanos)));
            }
        }
        if paced.interval_ns > 0 {
            let from = self.due.unwrap_or(tempo.now);
            self.due = Some(from.plus(Nanos(paced.interval_ns)));
        }
        Ok(())
    }

    /// Executes an operation of the disk: the vCPU has left guest code meanwhile.
    #[inline(never)]
    fn at_disk(&mut self, board: &Board, seat: &Seat, tempo: &mut Tempo, paced: &Paced) -> io::Result<()> {
        self.publish(seat);
        seat.enter(Place::AtDisk);
        if !board.control.runs() {
            board.control.notify();
        }
        tempo.away = true;
        // The clock will have gone on, nobody knows how far.
        tempo.spent = LOOK_EVERY_NS;
        let outcome = self.execute(board, paced, &mut board.disk.as_deref());
        if outcome.is_ok() {
            self.publish(seat);
            seat.enter(Place::Executing);
        } else {
            self.failed = Some(*paced);
        }
        outcome
    }

    #[inline(always)]
    fn execute(&mut self, board: &Board, paced: &Paced, disk: &mut Option<&dyn GuestDisk>) -> io::Result<()> {
        let key = operation_key(board.seed, self.index, self.registers.state.operations);
        self.registers.execute(paced, key, &mut &*board.ram, disk)
    }

    /// Tells how far the vCPU is.
    fn publish(&self, seat: &Seat) {
        seat.operations.store(self.registers.state.operations, Relaxed);
        seat.units.store(self.registers.state.units, Relaxed);
    }

    /// The vCPU's part of the device state at the instant `now`.
    pub(super) fn save(&self, now: Nanos) -> SavedVcpu {
        let late = |due: Nanos| now.0 as i64 - due.0.min(i64::MAX as u64) as i64;
        SavedVcpu {
            state: self.registers.state.clone(),
            stream: self.stream.save(),
            free: self.registers.free.extents().collect(),
            late_ns: self.due.map(late),
            failed: self.failed.map(Into::into),
        }
    }

    /// Takes up a checked state at the instant `now`, after the guest was `away`.
    pub(super) fn load(&mut self, saved: &SavedVcpu, seat: &Seat, now: Nanos, away: Nanos) -> Result<(), StreamError> {
        self.stream.restore(&saved.stream)?;
        self.registers.state = saved.state.clone();
        self.registers.free = saved.free_set(self.registers.free.len());
        self.failed = saved.failed.map(Into::into);
        self.due = saved.late_ns.map(|late| {
            let late = i128::from(late) + i128::from(away.0);
            Nanos(u64::try_from((i128::from(now.0) - late).max(0)).unwrap_or(u64::MAX))
        });
        seat.operations.store(saved.state.operations, Relaxed);
        seat.units.store(saved.state.units, Relaxed);
        Ok(())
    }
}

/// The due instant of an operation that starts `now`, as the pacing sees it afterwards.
fn in_credit(pacing: Pacing, due: Nanos, now: Nanos) -> Nanos {
    match pacing {
        _ if now.since(due).0 <= CREDIT_NS => due,
        Pacing::OpenCatchUp => due,
        Pacing::Closed => Nanos(now.0 - CREDIT_NS),
        Pacing::OpenSkip => now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pacing_makes_up_what_it_says() {
        let now = Nanos(1_000_000_000);
        for (late_ms, closed, catch_up, skip) in [(0, 0, 0, 0), (10, 10, 10, 10), (11, 10, 11, 0), (900, 10, 900, 0)] {
            let due = Nanos(now.0 - late_ms * 1_000_000);
            let kept = |pacing| now.since(in_credit(pacing, due, now)).0 / 1_000_000;
            assert_eq!(kept(Pacing::Closed), closed);
            assert_eq!(kept(Pacing::OpenCatchUp), catch_up);
            assert_eq!(kept(Pacing::OpenSkip), skip);
        }
    }
}
