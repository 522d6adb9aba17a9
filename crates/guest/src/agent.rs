//! The agent's loop: does what the host says, and gives heartbeats.

use crate::GuestError;
use crate::balloon::offer_free;
use crate::block_device::BlockDevice;
use crate::boot::host;
use crate::page_flags::{PageFlags, free_is_nobodys};
use rustix::mm::MlockAllFlags;
use std::fs::File;
use std::io::{BufReader, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use whimbrel_disk::GuestDisk;
use whimbrel_machine::machines::qemu::words::{BEAT_NS, FromGuest, Task, ToGuest, hear, line, run_lengths};
use whimbrel_machine::{Asked, Begin, MACHINES, Machine, MachineSetup, Operations, Software, fill_ram, monotonic};
use whimbrel_memory::GuestRam;
use whimbrel_model::{Backed, PAGE_BYTES, PageTypes};
use whimbrel_workloads::{BuildContext, WorkloadChoice};

/// The guest's disk.
const DISK: &str = "/dev/vda";

/// How long the agent waits where the host has left the port.
const ALONE: Duration = Duration::from_millis(10);

/// The bits of a page's entry in the kernel's page map that say its frame, and whether it is there.
const FRAME: u64 = (1 << 55) - 1;
const PRESENT: u64 = 1 << 63;

/// The sending end of the port, which heartbeats and answers share.
type Say = Mutex<File>;

fn say(port: &Say, words: &FromGuest) {
    let line = line(words);
    let mut port = port.lock().unwrap_or_else(PoisonError::into_inner);
    // Where nobody is at the other end, nobody misses it.
    let _ = port.write_all(&line);
}

/// Serves until the port fails.
pub(crate) fn serve(port: &File) -> Result<(), GuestError> {
    let speak = Arc::new(Mutex::new(port.try_clone().map_err(host("the port"))?));
    let mut listen = BufReader::new(port);
    say(&speak, &FromGuest::Here { available_bytes: available_bytes() });
    let mut guest = None;
    loop {
        let done = match hear::<ToGuest>(&mut listen) {
            Ok(Some(ToGuest::Begin(task))) => begin(task, &speak).map(|made| guest = Some(made)),
            Ok(Some(ToGuest::Go)) => guest.iter().try_for_each(|(machine, _): &(Arc<dyn Machine>, Arc<GuestRam>)| {
                machine.run();
                Ok(())
            }),
            Ok(Some(ToGuest::Hint { question, asked, frames })) => {
                let told = match asked {
                    Asked::Free => free_is_nobodys().and_then(|()| in_words(free(guest.as_ref(), frames))),
                    Asked::Copies => in_words(copies(guest.as_ref())),
                };
                let told = told.map(|Told { free, types, backed }| FromGuest::Hints { question, free, types, backed });
                say(&speak, &told.unwrap_or_else(|why| FromGuest::NoHints { question, why }));
                Ok(())
            }
            Ok(Some(ToGuest::OfferFree { question })) => {
                let offered = free_is_nobodys().and_then(|()| offer_free().map_err(|error| error.to_string()));
                let answer = match offered {
                    Ok(()) => FromGuest::OffersFree { question },
                    Err(why) => FromGuest::NoHints { question, why },
                };
                say(&speak, &answer);
                Ok(())
            }
            Ok(Some(ToGuest::Freeze)) => guest.iter().try_for_each(|(machine, ram)| freeze(machine, ram, &speak)),
            Ok(None) => {
                std::thread::sleep(ALONE);
                Ok(())
            }
            Err(error) => Err(GuestError::Host { what: "the port".to_owned(), error }),
        };
        if let Err(error) = done {
            say(&speak, &FromGuest::Failed { why: error.to_string() });
            return Err(error);
        }
    }
}

/// Memory that a process can still get.
fn available_bytes() -> u64 {
    let table = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = table.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Makes all that is needed for operation 0.
fn begin(task: Task, speak: &Arc<Say>) -> Result<(Arc<dyn Machine>, Arc<GuestRam>), GuestError> {
    let Task { seed, shape, recipe } = task;
    let workload: WorkloadChoice = serde_json::from_str(&recipe).map_err(|e| GuestError::Task(e.to_string()))?;
    let streams = workload.build(&BuildContext::new(shape, seed)).map_err(|e| GuestError::Task(e.to_string()))?;
    let ram = GuestRam::create(shape.pages * PAGE_BYTES)?;
    ram.populate()?;
    // What is locked stays in its frames. Only what is there: to lock a stack or an arena whole, the kernel would fill it,
    // and in a small guest that took the last free page.
    rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::ONFAULT).map_err(host("mlockall"))?;
    fill_ram(&ram, shape.pages, workload.content(), &shape, seed);
    let disk = match shape.sectors {
        0 => None,
        _ => Some(Arc::new(BlockDevice::open(DISK).map_err(host(DISK))?) as Arc<dyn GuestDisk>),
    };
    let setup = MachineSetup {
        begin: Begin::New,
        ram: Arc::clone(&ram),
        disk,
        shape,
        seed,
        software: Software::Operations(Operations {
            streams,
            pacing: workload.pacing(),
            content: workload.content().clone(),
            recipe,
        }),
    };
    let kind = MACHINES.find("thread").map_err(|e| GuestError::Task(e.to_string()))?;
    let machine = (kind.build.build)(setup)?;
    let (watched, speak_too) = (Arc::clone(&machine), Arc::clone(speak));
    let beats = std::thread::Builder::new().name("heartbeat".to_owned());
    beats.spawn(move || beat(&*watched, &speak_too)).map_err(host("a thread"))?;
    say(speak, &FromGuest::Ready);
    Ok((machine, ram))
}

/// Gives heartbeats for ever.
fn beat(machine: &dyn Machine, speak: &Say) {
    loop {
        let progress = machine.progress();
        let (units, operations) = (progress.units, progress.operations);
        say(speak, &FromGuest::Beat { clock_ns: monotonic().0, units, operations });
        if let Some(why) = machine.failure() {
            say(speak, &FromGuest::Failed { why });
            return;
        }
        std::thread::sleep(Duration::from_nanos(BEAT_NS));
    }
}

/// Stops between two operations, and says how far it is and where the pages lie.
fn freeze(machine: &Arc<dyn Machine>, ram: &GuestRam, speak: &Say) -> Result<(), GuestError> {
    machine.pause();
    machine.drain().map_err(host("the disk"))?;
    let state = String::from_utf8(machine.save_state()?).map_err(|e| GuestError::Task(e.to_string()))?;
    say(speak, &FromGuest::Frozen { state, frames: frames(ram)? });
    Ok(())
}

/// What is known of pages, as it crosses.
#[derive(Default)]
struct Told {
    free: Vec<u64>,
    types: Option<PageTypes>,
    backed: Vec<(u64, u64, u64)>,
}

fn in_words<T>(told: Result<T, GuestError>) -> Result<T, String> {
    told.map_err(|error| error.to_string())
}

/// Which of so many frames are free, by the kernel and by what the operations have freed of those that are the agent's.
fn free(guest: Option<&(Arc<dyn Machine>, Arc<GuestRam>)>, of: u64) -> Result<Told, GuestError> {
    let PageFlags { mut free, types } = PageFlags::read(of)?;
    if let Some((machine, ram)) = guest {
        let freed = machine.hints(Asked::Free, &|| false)?.free;
        if !freed.is_empty() {
            let frames = each_frame(ram)?;
            freed.iter().for_each(|page| _ = free.insert(frames[page as usize]));
        }
    }
    Ok(Told { free: run_lengths(&free), types: Some(types), backed: Vec::new() })
}

/// Which frames are copies of what the disk holds.
fn copies(guest: Option<&(Arc<dyn Machine>, Arc<GuestRam>)>) -> Result<Told, GuestError> {
    let Some((machine, ram)) = guest else { return Ok(Told::default()) };
    let backed = machine.hints(Asked::Copies, &|| false)?.backed;
    if backed.is_empty() {
        return Ok(Told::default());
    }
    let frames = each_frame(ram)?;
    let pages = backed.iter().flat_map(|run| {
        (0..run.pages.count).map(|at| (frames[(run.pages.start + at) as usize], run.offset_bytes + at * PAGE_BYTES))
    });
    let backed = Backed::runs(pages).iter().map(|run| (run.pages.start, run.pages.count, run.offset_bytes)).collect();
    Ok(Told { backed, ..Told::default() })
}

/// The frame of each page.
fn each_frame(ram: &GuestRam) -> Result<Vec<u64>, GuestError> {
    Ok(frames(ram)?.into_iter().flat_map(|(first, count)| first..first + count).collect())
}

/// Where the pages lie in the guest's physical memory, as runs of frames.
fn frames(ram: &GuestRam) -> Result<Vec<(u64, u64)>, GuestError> {
    let map = File::open("/proc/self/pagemap").map_err(host("the page map"))?;
    let mut entries = vec![0; ram.pages() as usize * 8];
    map.read_exact_at(&mut entries, ram.guest_address() / PAGE_BYTES * 8).map_err(host("the page map"))?;
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for entry in entries.as_chunks().0 {
        let entry = u64::from_ne_bytes(*entry);
        if entry & PRESENT == 0 {
            return Err(GuestError::Task("a page of the workload is not in memory".to_owned()));
        }
        let frame = entry & FRAME;
        match runs.last_mut() {
            Some((first, count)) if *first + *count == frame => *count += 1,
            _ => runs.push((frame, 1)),
        }
    }
    Ok(runs)
}
