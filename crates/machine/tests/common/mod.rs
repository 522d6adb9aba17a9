//! Guests for tests: real RAM, a disk in a real file, and the twin that judges them.

#![allow(dead_code)]

use serde_json::{Value, json};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use whimbrel_disk::GuestDisk;
use whimbrel_machine::machines::MACHINES;
use whimbrel_machine::{
    Begin, Machine, MachineSetup, Operations, Software, Twin, TwinSetup, Verification, fill_disk, fill_ram,
};
use whimbrel_memory::GuestRam;
use whimbrel_model::op::SECTOR_BYTES;
use whimbrel_model::stream::Shape;
use whimbrel_workloads::{BuildContext, WORKLOADS, WorkloadChoice};

/// A disk in a temporary file, which can be made to fail.
pub struct FileDisk {
    file: File,
    bytes: u64,
    pub fails: AtomicBool,
}

impl FileDisk {
    pub fn new(bytes: u64) -> Arc<Self> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        Arc::new(FileDisk { file, bytes, fails: AtomicBool::new(false) })
    }

    fn check(&self) -> io::Result<()> {
        if self.fails.load(Ordering::SeqCst) { Err(io::Error::other("the disk is broken")) } else { Ok(()) }
    }
}

impl GuestDisk for FileDisk {
    fn size_bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.check()?;
        self.file.read_exact_at(buffer, offset)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.file.write_all_at(data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.check()
    }
}

/// Everything that a guest is built from.
#[derive(Clone)]
pub struct Plan {
    pub choice: WorkloadChoice,
    pub shape: Shape,
    pub seed: u64,
}

/// A guest with its parts.
pub struct Guest {
    pub plan: Plan,
    pub machine: Arc<dyn Machine>,
    pub ram: Arc<GuestRam>,
    pub disk: Option<Arc<FileDisk>>,
}

pub fn plan(mut table: Value, vcpus: u32, disk: bool) -> Plan {
    // A mix has at most a part for each vCPU.
    if let Some(parts) = table.get_mut("parts").and_then(Value::as_array_mut) {
        parts.truncate(vcpus as usize);
    }
    let choice = WorkloadChoice::read(&serde_json::from_value(table).unwrap()).unwrap();
    let sectors = if disk { 16_384 } else { 0 };
    let shape = Shape { pages: 2048, sectors, filled_sectors: sectors / 4 + u64::from(disk) * 3, vcpus };
    Plan { choice, shape, seed: 42 }
}

/// Every registered workload with its defaults (a desktop's time goes faster), and some at a pace.
pub fn tables() -> Vec<Value> {
    let desktop = json!({ "use": "idle-desktop", "speed": 1000 });
    let table = |name| match name {
        "idle-desktop" => desktop.clone(),
        "mix" => json!({ "use": "mix", "parts": ["memory-intensive", desktop] }),
        _ => json!({ "use": name }),
    };
    let mut tables: Vec<Value> = WORKLOADS.entries.iter().map(|entry| table(entry.name)).collect();
    tables.push(json!({ "rate": "20 MiB/s", "pattern": "zipf", "read_share": 0.3, "compute_share": 0.2 }));
    tables.push(json!({ "use": "disk-write", "rate": "10 MiB/s", "partial_share": 0.5, "pattern": "random" }));
    tables.push(json!({ "use": "mix", "parts": ["memory-intensive", "disk-write", desktop],
                        "pacing": "open-catch-up" }));
    tables
}

impl Plan {
    fn streams(&self) -> Vec<Box<dyn whimbrel_model::Stream>> {
        self.choice.build(&BuildContext::new(self.shape, self.seed)).unwrap()
    }

    /// A guest before operation 0, filled unless it is to receive everything.
    pub fn guest(&self, filled: bool) -> Guest {
        self.guest_of(self.streams(), filled)
    }

    /// A guest that executes these streams instead.
    pub fn guest_of(&self, streams: Vec<Box<dyn whimbrel_model::Stream>>, filled: bool) -> Guest {
        let ram = GuestRam::create(self.shape.pages * 4096).unwrap();
        let disk = (self.shape.sectors > 0).then(|| FileDisk::new(self.shape.sectors * SECTOR_BYTES));
        if filled {
            fill_ram(&ram, self.shape.pages, self.choice.content(), &self.shape, self.seed);
            if let Some(disk) = &disk {
                let bytes = self.shape.filled_sectors * SECTOR_BYTES;
                fill_disk(bytes, self.choice.content(), self.seed, |at, data| disk.write(at, data)).unwrap();
            }
        }
        let setup = MachineSetup {
            begin: if filled { Begin::New } else { Begin::Arriving },
            ram: Arc::clone(&ram),
            disk: disk.clone().map(|disk| disk as Arc<dyn GuestDisk>),
            shape: self.shape,
            seed: self.seed,
            software: Software::Operations(Operations {
                streams,
                pacing: self.choice.pacing(),
                content: self.choice.content().clone(),
                recipe: String::new(),
            }),
        };
        let machine = (MACHINES.find("thread").unwrap().build.build)(setup).unwrap();
        Guest { plan: self.clone(), machine, ram, disk }
    }

    pub fn twin(&self) -> Twin {
        self.twin_of(self.streams())
    }

    /// The twin of [`Plan::guest_of`].
    pub fn twin_of(&self, streams: Vec<Box<dyn whimbrel_model::Stream>>) -> Twin {
        let content = self.choice.content().clone();
        Twin::new(TwinSetup { shape: self.shape, seed: self.seed, content, streams }).unwrap()
    }
}

impl Guest {
    /// Runs until every vCPU has completed `more` operations more, then pauses and drains.
    pub fn run_for(&self, more: u64) {
        let from = self.machine.progress().operations;
        self.machine.run();
        while self.machine.progress().operations.iter().zip(&from).any(|(now, from)| *now < from + more) {
            assert_eq!(self.machine.failure(), None);
            std::thread::yield_now();
        }
        self.machine.pause();
        self.machine.drain().unwrap();
    }

    pub fn check(&self, twin: &mut Twin) -> Verification {
        self.check_state(twin, &self.machine.save_state().unwrap())
    }

    pub fn check_state(&self, twin: &mut Twin, state: &[u8]) -> Verification {
        let read = |at, buffer: &mut [u8]| self.disk.as_ref().expect("there is a disk").read(at, buffer);
        twin.check(state, (&*self.ram).into(), self.disk.is_some().then_some(&read as _)).unwrap()
    }

    /// What a migration does, without one: all pages, all of the disk, the device state.
    pub fn move_to(&self, other: &Guest) {
        let mut page = [0; 4096];
        for index in 0..self.ram.pages() {
            self.ram.read_page(index, &mut page);
            other.ram.write_page(index, &page);
        }
        if let (Some(from), Some(to)) = (&self.disk, &other.disk) {
            let mut all = vec![0; from.size_bytes() as usize];
            from.read(0, &mut all).unwrap();
            to.write(0, &all).unwrap();
        }
        other.machine.load_state(&self.machine.save_state().unwrap()).unwrap();
    }
}
