//! What the machine costs the guest: operations of a vCPU of the thread kind in a second of processor time, against the
//! bare loop that draws the same stream and executes it on the same memory. Alternating, as a ratio. Processor time, so
//! that what else the host does stays out. And how long a pause takes, which on a busy host is the scheduler's affair.

use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};
use whimbrel_machine::execute::Registers;
use whimbrel_machine::machines::MACHINES;
use whimbrel_machine::{Begin, Machine, MachineSetup, Operations, Software, Twin, TwinSetup, fill_ram};
use whimbrel_memory::GuestRam;
use whimbrel_model::op::operation_key;
use whimbrel_model::stream::Shape;
use whimbrel_model::{Op, Stream};
use whimbrel_workloads::{BuildContext, WorkloadChoice};

const SHAPE: Shape = Shape { pages: 65_536, sectors: 0, filled_sectors: 0, vcpus: 1 };
const SPAN: Duration = Duration::from_millis(400);
const PAIRS: usize = 15;

fn choice(table: serde_json::Value) -> WorkloadChoice {
    WorkloadChoice::read(&serde_json::from_value(table).expect("a table")).expect("a workload")
}

fn streams(choice: &WorkloadChoice) -> Vec<Box<dyn Stream>> {
    choice.build(&BuildContext::new(SHAPE, 1)).expect("the workload fits")
}

/// Processor time of this process so far, in seconds.
fn processor_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Operations a second without a machine.
fn bare(ram: &GuestRam, stream: &mut dyn Stream, registers: &mut Registers) -> f64 {
    let (start, spent, from) = (Instant::now(), processor_s(), registers.state.operations);
    while start.elapsed() < SPAN {
        for _ in 0..1000 {
            let paced = stream.next();
            assert!(!matches!(paced.op, Op::Idle { .. }), "the workload has no pace");
            let key = operation_key(1, 0, registers.state.operations);
            registers.execute(&paced, key, &mut &*ram, &mut None).expect("no disk, no error");
        }
    }
    (registers.state.operations - from) as f64 / (processor_s() - spent)
}

/// Operations a second with one.
fn machine_rate(machine: &dyn Machine) -> f64 {
    let from = machine.progress().operations[0];
    let spent = processor_s();
    machine.run();
    std::thread::sleep(SPAN);
    let paused = machine.pause();
    let elapsed = processor_s() - spent;
    assert!(paused.left >= paused.asked);
    (machine.progress().operations[0] - from) as f64 / elapsed
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A machine over populated and filled RAM.
fn machine(choice: &WorkloadChoice, ram: &Arc<GuestRam>) -> Arc<dyn Machine> {
    let (ram, streams) = (Arc::clone(ram), streams(choice));
    let setup = MachineSetup {
        begin: Begin::New,
        ram,
        disk: None,
        shape: SHAPE,
        seed: 1,
        software: Software::Operations(Operations {
            streams,
            pacing: choice.pacing(),
            content: choice.content().clone(),
            recipe: String::new(),
        }),
    };
    (MACHINES.find("thread").expect("the default").build.build)(setup).expect("the machine")
}

/// What a paced vCPU achieves of its rate, and what that takes of a processor.
fn report_pace(ram: &Arc<GuestRam>) {
    for rate in [0.0, 12.0, 100.0, 400.0] {
        let choice = choice(json!({ "rate": format!("{rate} MiB/s") }));
        let machine = machine(&choice, ram);
        let (spent, start) = (processor_s(), Instant::now());
        machine.run();
        std::thread::sleep(SPAN * 4);
        machine.pause();
        let (spent, seconds) = (processor_s() - spent, start.elapsed().as_secs_f64());
        let achieved = machine.progress().units as f64 / 256.0 / seconds;
        println!("offered {rate} MiB/s: achieved {achieved:.1}, {:.1} % of a processor", spent / seconds * 100.0);
    }
}

/// How fast the twin follows and compares.
fn report_twin(ram: &Arc<GuestRam>) {
    let choice = choice(json!({}));
    let content = choice.content().clone();
    fill_ram(ram, SHAPE.pages, &content, &SHAPE, 1);
    let machine = machine(&choice, ram);
    machine.run();
    std::thread::sleep(SPAN);
    machine.pause();
    let state = machine.save_state().expect("it is paused");
    let setup = TwinSetup { shape: SHAPE, seed: 1, content, streams: streams(&choice) };
    let mut twin = Twin::new(setup).expect("a twin");
    let operations = machine.progress().operations;
    let start = processor_s();
    twin.advance(&operations).expect("it is behind");
    let followed = processor_s();
    assert!(twin.check(&state, (&**ram).into(), None).expect("a state").is_good());
    println!(
        "twin: {:.1} M operations/s, then 256 MiB compared in {:.2} s of processor time",
        operations[0] as f64 / 1e6 / (followed - start),
        processor_s() - followed
    );
}

fn main() {
    let ram = GuestRam::create(SHAPE.pages * 4096).expect("memory");
    ram.populate().expect("memory");
    report_pace(&ram);
    report_twin(&ram);
    for table in [
        json!({ "working_set": "64 MiB" }),
        json!({ "working_set": "1 MiB" }),
        json!({ "pattern": "sweep", "words_per_write": 512 }),
        json!({ "read_share": 0.5, "compute_share": 0.5 }),
    ] {
        let choice = choice(table.clone());
        fill_ram(&ram, SHAPE.pages, choice.content(), &SHAPE, 1);
        let machine = machine(&choice, &ram);
        let (mut stream, mut registers) = (streams(&choice).remove(0), Registers::new(SHAPE.pages));
        let (mut ratios, mut rates) = (Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            let alone = bare(&ram, stream.as_mut(), &mut registers);
            let with = machine_rate(&*machine);
            ratios.push(with / alone);
            rates.push(with);
        }
        machine.reset_silence();
        machine.run();
        std::thread::sleep(SPAN);
        let silence = machine.silence().longest_ns / 1000;
        let mut stops: Vec<u64> = (0..300)
            .map(|_| {
                machine.run();
                std::thread::sleep(Duration::from_micros(700));
                let paused = machine.pause();
                paused.left.since(paused.asked).0 / 1000
            })
            .collect();
        stops.sort_unstable();
        println!(
            "{table}: {:.1} M operations/s, machine / bare {:.3}; longest silence {silence} us; pause p50 {} us, p99 {} us, most {} us",
            median(rates) / 1e6,
            median(ratios),
            stops[150],
            stops[297],
            stops[299]
        );
    }
}
