//! A move that the hypervisor makes itself, as a baseline: its streams go through our link, and the books are ours.
//!
//! | connection | carries |
//! |---|---|
//! | control | the comparison of clocks, and at the end the destination's word |
//! | a push lane each | one of the hypervisor's streams of pages, both ways |
//! | demand | its stream of pages that a vCPU waits for, if it has one |
//! | disk push | its copy of the disk, in NBD |

use super::control_lane::{begin_as_destination, begin_as_source};
use super::destination::Arrived;
use super::setup::{Opening, gather, open};
use super::source::Left;
use super::watch::WorkWatch;
use super::{DriverError, in_words};
use crate::copies::Held;
use crate::core::Ending;
use crate::recorder::Recorder;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::Duration;
use whimbrel_disk::Volume;
use whimbrel_machine::{Machine, MachineError, OwnEnds, OwnMove};
use whimbrel_model::event::Sent;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{Event, Family, Moment, Phase};
use whimbrel_wire::codec::{read_frame, write_frame};
use whimbrel_wire::{LinkStream, Nic, Role, Severer};

/// Bytes that a stream is carried by.
const PIECE_BYTES: usize = 256 << 10;

/// What goes ahead of a stream's bytes: the hypervisor has opened it.
const OPENED: [u8; 1] = [1];

/// How long the destination may take to say that it has the guest once the source has done its part.
const WORD: Duration = Duration::from_secs(60);

/// What the destination says at the end.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "own", rename_all = "snake_case")]
enum Word {
    /// The guest runs there and lacks nothing.
    Whole {},
    /// It does not run there.
    Failed { reason: String },
}

/// The roles of the connections that carry such a move's streams, in order.
pub struct OwnRoles {
    /// Of the migration's own streams.
    pub memory: Vec<Role>,
    /// Of the disk's, if it moves too.
    pub disk: Option<Role>,
}

/// The connections of such a move.
pub struct OwnConnections {
    control: LinkStream,
    lanes: OwnLanes,
}

struct OwnLanes {
    memory: Vec<Arc<LinkStream>>,
    disk: Option<Arc<LinkStream>>,
}

impl OwnConnections {
    fn of(
        roles: &OwnRoles,
        mut connect: impl FnMut(Role) -> Result<LinkStream, DriverError>,
    ) -> Result<Self, DriverError> {
        let control = connect(Role::Migration)?;
        let mut lane = |role: &Role| connect(*role).map(Arc::new);
        let memory = roles.memory.iter().map(&mut lane).collect::<Result<_, DriverError>>()?;
        Ok(OwnConnections { control, lanes: OwnLanes { memory, disk: roles.disk.as_ref().map(lane).transpose()? } })
    }
}

/// Opens the connections of a move whose streams go by these roles.
///
/// # Errors
/// The agent can't be reached, or refuses.
pub fn connect_own(opening: &Opening<'_>, roles: &OwnRoles) -> Result<OwnConnections, DriverError> {
    OwnConnections::of(roles, |role| open(opening, role))
}

/// Waits for the connections of a move whose streams go by these roles.
///
/// # Errors
/// Not all of them came in time, or one came twice.
pub fn accept_own(
    coming: &Receiver<(Role, std::net::TcpStream)>,
    nic: &Nic,
    roles: &OwnRoles,
) -> Result<OwnConnections, DriverError> {
    let wanted = 1 + roles.memory.len() + usize::from(roles.disk.is_some());
    let mut streams = gather(coming, |_| nic.clone(), wanted)?;
    OwnConnections::of(roles, |role| {
        let at = streams.iter().position(|(known, _)| *known == role);
        let missing = || DriverError::Protocol(format!("the connection for {role:?} is missing"));
        at.map(|at| streams.swap_remove(at).1).ok_or_else(missing)
    })
}

/// Has the hypervisor move its guest away.
///
/// # Errors
/// Setup failed; the guest runs on as if nothing had been.
pub fn leave_own(
    machine: &Arc<dyn Machine>,
    own: &OwnMove,
    connections: OwnConnections,
    recorder: &Recorder,
) -> Result<Left, DriverError> {
    let OwnConnections { control, lanes } = connections;
    let (clock, _) = begin_as_source(&control, None)?;
    let ends = machine.prepare_to_leave(own)?;
    let sever: Vec<Severer> = lanes.memory.iter().chain(&lanes.disk).map(|lane| lane.severer()).collect();
    let disk = ends.disk.map(|end| Coming::carry_out(end, lanes.disk.into_iter().collect())).transpose()?;
    let coming = [Some(Coming::carry_out(ends.memory, lanes.memory)?), disk];
    recorder.record(Event::Moment { moment: Moment::SetupDone });
    recorder.record(Event::Phase { phase: Phase::Push });
    let left = |ending, own| Left { clock, own, ..Left::without_a_word(ending) };
    control.set_read_timeout(Some(WORD))?;
    let departed = machine.leave_by_itself(own);
    let [_, disk_bytes] = coming.map(|coming| coming.map(Coming::end));
    let departure = match departed {
        Ok(departure) => departure,
        // It runs there, or nowhere, and what is still on its way may be all that it lacks.
        Err(error @ MachineError::Departed(_)) => return Ok(left(Ending::Lost { reason: in_words(&error) }, None)),
        Err(error) => {
            sever.iter().for_each(Severer::sever);
            machine.run();
            return Ok(left(Ending::Aborted { reason: in_words(&error) }, None));
        }
    };
    for moment in [Moment::PauseRequested, Moment::Paused] {
        recorder.record_at(departure.paused, Event::Moment { moment });
    }
    if let Some(at) = departure.disk_whole {
        recorder.record_at(at, Event::Moment { moment: Moment::DiskWhole });
    }
    recorder.record(Event::Moment { moment: Moment::HandedOver });
    record_sent(&departure.figures, disk_bytes, recorder);
    recorder.departure(&**machine);
    let ending = match read_frame::<Word>(&mut &control) {
        Ok((Word::Whole {}, _)) => {
            recorder.record(Event::Moment { moment: Moment::Released });
            recorder.record(Event::Phase { phase: Phase::Complete });
            Ending::Completed
        }
        Ok((Word::Failed { reason }, _)) => Ending::Lost { reason },
        Err(error) => Ending::Lost { reason: in_words(&error) },
    };
    Ok(left(ending, Some(departure.figures)))
}

/// What the hypervisor says that it has sent of memory, and what of its disk crossed the link, where it counts none. It
/// doesn't tell a page's or a block's first time from later ones: all counts as first.
fn record_sent(figures: &Value, disk_bytes: Option<u64>, recorder: &Recorder) {
    let record = |family, sent| recorder.record(Event::Sent { family, stage: Stage::Push, demanded: false, sent });
    if let Some(first_bytes) = disk_bytes {
        record(Family::Disk, Sent { first_bytes, ..Sent::default() });
    }
    let count = |of: &str, key: &str| figures[of][key].as_u64().unwrap_or_default();
    let (raw_units, zero_units) = (count("ram", "normal"), count("ram", "duplicate"));
    // QEMU has this part where pages go as differences, and counts them nowhere else.
    let delta_units = count("xbzrle-cache", "pages");
    let sent = Sent {
        first_units: raw_units + zero_units + delta_units,
        first_bytes: count("ram", "transferred"),
        raw_units,
        zero_units,
        delta_units,
        ..Sent::default()
    };
    record(Family::Memory, sent);
}

/// Has the hypervisor take a guest in, at the sockets where it waits for it. What it writes to its `volume` from then on is
/// recorded.
///
/// # Errors
/// Setup failed; nothing has run here.
pub fn arrive_own(
    machine: &Arc<dyn Machine>,
    volume: Option<&Volume>,
    own: &OwnMove,
    ends: OwnEnds<PathBuf>,
    connections: OwnConnections,
    recorder: &Recorder,
) -> Result<Arrived, DriverError> {
    let OwnConnections { control, lanes } = connections;
    begin_as_destination(&control, &Held::New(None))?;
    carry_in(ends.memory, lanes.memory)?;
    for (path, lane) in ends.disk.into_iter().zip(lanes.disk) {
        carry_in(path, vec![lane])?;
    }
    let watch = std::cell::RefCell::new(None);
    let resumed = |at| {
        recorder.record_at(at, Event::Moment { moment: Moment::Resumed });
        machine.reset_silence();
        *watch.borrow_mut() = Some(WorkWatch::start(Arc::clone(machine), recorder.clone()));
    };
    let disk_whole = || volume.iter().for_each(|volume| volume.begin_visit());
    let ended = machine.arrive_by_itself(own, &disk_whole, &resumed);
    let watch = watch.into_inner();
    let handed_over = watch.is_some();
    let (ending, word) = match ended {
        Ok(()) => {
            recorder.record(Event::Moment { moment: Moment::MemoryWhole });
            recorder.record(Event::Moment { moment: Moment::Whole });
            (Ending::Completed, Word::Whole {})
        }
        Err(error) => {
            let reason = in_words(&error);
            let ending = match handed_over {
                true => Ending::Lost { reason: reason.clone() },
                false => Ending::Aborted { reason: reason.clone() },
            };
            (ending, Word::Failed { reason })
        }
    };
    // A source that is gone has other means to know.
    let _ = write_frame(&mut &control, &word, &[]);
    Ok(Arrived { ending, handed_over, watch, witness: None })
}

/// Takes the hypervisor's streams as it opens them, some perhaps late or never, until it is dropped.
struct Coming {
    listener: UnixListener,
    thread: Option<JoinHandle<()>>,
    /// Bytes that went out.
    carried: Arc<AtomicU64>,
}

impl Coming {
    fn carry_out(listener: UnixListener, lanes: Vec<Arc<LinkStream>>) -> io::Result<Self> {
        let coming = listener.try_clone()?;
        let carried = Arc::<AtomicU64>::default();
        let count = Arc::clone(&carried);
        let take = move || {
            for lane in &lanes {
                let Ok((stream, _)) = coming.accept() else { return };
                if (&**lane).write_all(&OPENED).and_then(|()| carry(stream, lane, Some(&count))).is_err() {
                    lane.sever();
                }
            }
        };
        let thread = std::thread::Builder::new().name("own-streams".to_owned()).spawn(take)?;
        Ok(Coming { listener, thread: Some(thread), carried })
    }

    /// No stream comes any more; how many bytes went out so far.
    fn end(self) -> u64 {
        self.carried.load(Ordering::SeqCst)
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        // Whoever waits for a stream learns that none comes any more.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // What panics there has said so.
            let _ = thread.join();
        }
    }
}

/// Connects each stream to the hypervisor that takes the guest in once the other one has opened it: in the same order, by
/// which some versions tell them apart.
fn carry_in(meeting: PathBuf, lanes: Vec<Arc<LinkStream>>) -> io::Result<()> {
    let take = move || {
        for lane in &lanes {
            let mut opened = OPENED;
            if (&**lane).read_exact(&mut opened).is_err() {
                return;
            }
            if UnixStream::connect(&meeting).and_then(|stream| carry(stream, lane, None)).is_err() {
                lane.sever();
            }
        }
    };
    std::thread::Builder::new().name("own-streams".to_owned()).spawn(take).map(drop)
}

/// Carries one of the hypervisor's streams over a lane, both ways, until both have ended. `count` hears of what goes out.
fn carry(stream: UnixStream, lane: &Arc<LinkStream>, count: Option<&Arc<AtomicU64>>) -> io::Result<()> {
    let (back, back_lane) = (stream.try_clone()?, Arc::clone(lane));
    std::thread::spawn(move || {
        // How it ends is told by the hypervisor.
        let _ = pump(&mut &*back_lane, &mut &back, |_| {});
        let _ = back.shutdown(Shutdown::Write);
    });
    let (lane, count) = (Arc::clone(lane), count.cloned());
    std::thread::spawn(move || {
        let _ = pump(&mut &stream, &mut &*lane, |bytes| {
            count.iter().for_each(|count| _ = count.fetch_add(bytes as u64, Ordering::SeqCst));
        });
        let _ = lane.shutdown_write();
    });
    Ok(())
}

fn pump(from: &mut impl Read, to: &mut impl Write, sent: impl Fn(usize)) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match from.read(&mut piece)? {
            0 => return Ok(()),
            bytes => {
                to.write_all(&piece[..bytes])?;
                sent(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whimbrel_model::Mark;

    /// What QEMU 7.2.22 and 10.0.2 answered to query-migrate after a move with multifd; 7.2 knows `skipped`, and of a disk
    /// that moved too there is QEMU's last word on its job.
    const RECORDED: [&str; 2] = [
        r#"{"downtime": 246, "ram": {"dirty-pages-rate": 0, "dirty-sync-count": 3, "dirty-sync-missed-zero-copy": 0,
            "downtime-bytes": 5283, "duplicate": 4798, "mbps": 1114.1868925619835, "multifd-bytes": 134612736,
            "normal": 32685, "normal-bytes": 133877760, "page-size": 4096, "pages-per-second": 33779,
            "postcopy-bytes": 0, "postcopy-requests": 0, "precopy-bytes": 38035, "remaining": 0, "skipped": 0,
            "total": 151396352, "transferred": 134656054}, "setup-time": 218, "status": "completed", "total-time": 1186}"#,
        r#"{"block-job": {"ended": {"device": "mirror", "len": 33882112, "offset": 33882112, "speed": 0, "type": "mirror"}},
            "downtime": 16, "ram": {"dirty-pages-rate": 0, "dirty-sync-count": 3, "dirty-sync-missed-zero-copy": 0,
            "downtime-bytes": 0, "duplicate": 4005, "mbps": 6163.575005649717, "multifd-bytes": 136162496,
            "normal": 33144, "normal-bytes": 135757824, "page-size": 4096, "pages-per-second": 227417,
            "postcopy-bytes": 0, "postcopy-requests": 0, "precopy-bytes": 24, "remaining": 0, "total": 151396352,
            "transferred": 136369097}, "setup-time": 258, "status": "completed", "total-time": 435}"#,
    ];

    fn sent(figures: &str, disk_bytes: Option<u64>) -> Vec<(Family, Sent)> {
        let recorder = Recorder::new(Mark::Source);
        record_sent(&serde_json::from_str(figures).unwrap(), disk_bytes, &recorder);
        let sent = recorder.take().into_iter().map(|recorded| match recorded.event {
            Event::Sent { family, sent, .. } => (family, sent),
            other => panic!("{other:?}"),
        });
        sent.collect()
    }

    #[test]
    fn the_answers_of_both_versions_fill_the_books() {
        for (answer, [raw_units, zero_units, first_bytes]) in
            RECORDED.into_iter().zip([[32_685, 4798, 134_656_054], [33_144, 4005, 136_369_097]])
        {
            let memory =
                Sent { first_units: raw_units + zero_units, first_bytes, raw_units, zero_units, ..Sent::default() };
            assert_eq!(sent(answer, None), [(Family::Memory, memory)]);
            let disk = Sent { first_bytes: 17_105_823, ..Sent::default() };
            assert_eq!(sent(answer, Some(17_105_823)), [(Family::Disk, disk), (Family::Memory, memory)]);
        }
    }
}
