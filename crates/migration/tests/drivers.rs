//! The drivers of both hosts, over real sockets and real faults, with a machine as hypervisors are: it reads pages of its guest's
//! RAM while it takes up the state, and again before it says that it runs.

use serde_json::{Value, json};
use std::io;
use std::io::Write as _;
use std::net::TcpListener;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use whimbrel_machine::{Machine, MachineError, Paused, Progress, Silence};
use whimbrel_memory::dirty_logs::DIRTY_LOGS;
use whimbrel_memory::{GuestRam, MemoryError};
use whimbrel_migration::commands::{LinkSpec, MoveSpec};
use whimbrel_migration::copies::Held;
use whimbrel_migration::core::Ending;
use whimbrel_migration::driver::{
    Arrived, Copies, DestinationParts, Left, Opening, SourceParts, accept_roles, connect_roles, run_destination,
    run_source,
};
use whimbrel_migration::{CoordinatorChoice, Recorder};
use whimbrel_model::{ByteRate, Event, Mark, Recorded};
use whimbrel_wire::{Nic, clock, hello};

const PAGES: u64 = 1024;
/// Two seconds for all of the RAM: what the machine reads is asked for long before it would come by itself.
const RATE: f64 = (PAGES * 4096 / 2) as f64;
const STATE: &[u8] = b"where its vCPUs are";
const SESSION: u64 = 7;

/// Executes nothing, and reads its last pages where it begins.
struct Reader {
    ram: Arc<GuestRam>,
    read: Mutex<Vec<u64>>,
}

impl Reader {
    fn over(ram: Arc<GuestRam>) -> Arc<Self> {
        Arc::new(Reader { ram, read: Mutex::default() })
    }

    fn read(&self, page: u64) {
        let word = self.ram.guest_page(page)[0].load(Ordering::Relaxed);
        self.read.lock().unwrap().push(word);
    }
}

impl Machine for Reader {
    fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    fn run(&self) {
        self.read(PAGES - 2);
    }

    fn give_up(&self) {}

    fn pause(&self) -> Paused {
        let now = clock::now();
        Paused { asked: now, left: now }
    }

    fn drain(&self) -> io::Result<()> {
        Ok(())
    }

    fn save_state(&self) -> Result<Vec<u8>, MachineError> {
        Ok(STATE.to_vec())
    }

    fn load_state(&self, state: &[u8]) -> Result<(), MachineError> {
        assert_eq!(state, STATE);
        self.read(PAGES - 1);
        Ok(())
    }

    fn throttle(&self, _share: f64) {}

    fn throttled_ns(&self) -> u64 {
        0
    }

    fn progress(&self) -> Progress {
        Progress::default()
    }

    fn silence(&self) -> Silence {
        Silence::default()
    }

    fn reset_silence(&self) {}

    fn failure(&self) -> Option<String> {
        None
    }

    fn stop(&self) {}
}

/// A move of a guest without a disk.
fn movement(memory: Value) -> MoveSpec {
    MoveSpec {
        session: SESSION,
        link: LinkSpec { path_bytes_per_s: Some(RATE), ..LinkSpec::default() },
        memory: serde_json::from_value(memory).unwrap(),
        own: None,
        disk: serde_json::from_value(json!({})).unwrap(),
        coordinator: CoordinatorChoice::default(),
        earlier: Vec::new(),
        recorded: false,
        witness: false,
    }
}

/// Moves the guest of one machine to the other, and returns how it ended at both ends and what the destination has recorded.
fn carry(from: Arc<Reader>, to: Arc<Reader>, movement: &MoveSpec) -> (Left, Arrived, Vec<Recorded>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _within = runtime.enter();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (hand_over, coming) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let hello = hello::accept(&mut stream, None, |_| Ok(())).unwrap();
            if hand_over.send((hello.role, stream)).is_err() {
                return;
            }
        }
    });
    let recorder = Recorder::new(Mark::Destination);
    let parts = |connections| DestinationParts {
        machine: to,
        volume: None,
        held: Held::New(None),
        record: None,
        prefetch: None,
        needs: None,
        connections,
        witness: None,
        recorder: recorder.clone(),
        runtime: runtime.handle().clone(),
    };
    std::thread::scope(|scope| {
        let handle = runtime.handle();
        let arriving = scope.spawn(move || {
            let _within = handle.enter();
            run_destination(parts(accept_roles(&coming, &Nic::unlimited(), None).unwrap())).unwrap()
        });
        let nic = Nic::new(Some(ByteRate(RATE)), None, std::time::Duration::ZERO);
        let opening = Opening { to: address, nic: &nic, session: SESSION, token: None };
        let left = run_source(
            SourceParts {
                log: (DIRTY_LOGS.entries[0].build)(from.ram()).unwrap(),
                machine: from,
                volume: None,
                movement,
                copies: Copies::default(),
                seed: 1,
                needs: None,
                connections: connect_roles(&opening, None).unwrap(),
                recorder: Recorder::new(Mark::Source),
                requested: clock::now(),
                runtime: runtime.handle().clone(),
            },
            &mut |_| ControlFlow::Continue(()),
        );
        let arrived = arriving.join().unwrap();
        (left.unwrap(), arrived, recorder.take())
    })
}

#[test]
fn pages_that_a_machine_reads_while_it_begins_are_asked_for_at_once() {
    let ram = || GuestRam::create(PAGES * 4096).unwrap();
    let test = "pages_that_a_machine_reads_while_it_begins";
    for order in ["ascending", "scattered"] {
        let (source, destination) = (Reader::over(ram()), Reader::over(ram()));
        match (DIRTY_LOGS.entries[0].build)(source.ram()).and_then(|mut log| log.arm()) {
            Err(error @ MemoryError::Unavailable { .. }) => {
                return drop(writeln!(std::io::stderr(), "SKIPPED: {test}: {error}"));
            }
            armed => armed.unwrap(),
        }
        (0..PAGES).for_each(|page| source.ram.host_page(page)[0].store(page + 1, Ordering::Relaxed));
        let memory = json!({ "schedule": "post-copy", "order": order, "encode": "raw" });
        let (left, arrived, events) = carry(Arc::clone(&source), Arc::clone(&destination), &movement(memory));
        assert_eq!((left.ending, arrived.ending), (Ending::Completed, Ending::Completed), "{order}");
        assert_eq!(*destination.read.lock().unwrap(), [PAGES, PAGES - 1], "what it read is what the source had");
        let demanded = events.iter().filter(|r| matches!(r.event, Event::Fault { in_flight: false, .. })).count();
        assert_eq!(demanded, 2, "{order}: what it waits for is asked for while it waits: {events:?}");
        for page in 0..PAGES {
            assert_eq!(destination.ram.host_page(page)[0].load(Ordering::Relaxed), page + 1);
        }
    }
}
