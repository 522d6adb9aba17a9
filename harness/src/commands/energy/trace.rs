//! `whimbrel energy trace`: what a guest fetched from the host that it had left, out of a run's events, as a fault trace.

use crate::BadInput;
use crate::cli::TraceOptions;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::io::BufRead;
use whimbrel_energy::power_states::HEADER;
use whimbrel_model::{Event, Moment, Recorded};

/// A line of `events.jsonl`.
#[derive(Deserialize)]
struct Line {
    cell: String,
    trial: u32,
    guest: u32,
    trip: u32,
    #[serde(flatten)]
    recorded: Recorded,
}

/// A trip of a run.
type Trip = (String, u32, u32, u32);

pub(super) fn trace(options: &TraceOptions) -> anyhow::Result<u8> {
    let path = options.run.join("events.jsonl");
    let refuse = |why: String| BadInput(format!("{}: {why}", path.display()));
    let file = std::fs::File::open(&path).map_err(|e| refuse(format!("{e}; give the folder of a run")))?;
    let mut trips: Vec<(Trip, Vec<Recorded>)> = Vec::new();
    let mut cells = BTreeSet::new();
    for (number, line) in (1..).zip(std::io::BufReader::new(file).lines()) {
        let line = line.map_err(|e| refuse(format!("line {number}: {e}")))?;
        let line: Line =
            serde_json::from_str(&line).map_err(|e| refuse(format!("line {number} is no event of a run: {e}")))?;
        let trip = (line.cell, line.trial, line.guest, line.trip);
        if !cells.contains(&trip.0) {
            cells.insert(trip.0.clone());
        }
        let wanted =
            options.cell.as_ref().is_none_or(|cell| *cell == trip.0) && options.trial.is_none_or(|n| n == trip.1);
        let of_trace = matches!(line.recorded.event, Event::Moment { .. } | Event::Sent { demanded: true, .. });
        if !wanted || !of_trace {
            continue;
        }
        match trips.iter_mut().find(|(known, _)| *known == trip) {
            Some((_, events)) => events.push(line.recorded),
            None => trips.push((trip, vec![line.recorded])),
        }
    }
    if trips.is_empty() {
        let found: Vec<String> = cells.iter().map(|cell| format!("{cell:?}")).collect();
        let why = format!("it has no such cell or trial; its cells are {}", found.join(", "));
        return Err(refuse(why).into());
    }
    let fetched = trips.iter().map(|(trip, events)| (trip, faults(events))).find(|(_, faults)| !faults.is_empty());
    let Some(((cell, trial, guest, trip), faults)) = fetched else {
        let why = "no guest fetched what it had left behind; give a run with the schedule post-copy or hybrid";
        return Err(refuse(why.to_owned()).into());
    };
    let mut text = format!("# cell {cell}, trial {trial}, guest {guest}, trip {trip}\n{HEADER}\n");
    faults.iter().for_each(|(at_ns, bytes)| text.push_str(&format!("{at_ns},{bytes}\n")));
    crate::commands::print(&text)
}

/// What was sent because the guest asked, since it was handed over: nanoseconds, and bytes, in order.
fn faults(events: &[Recorded]) -> Vec<(u64, u64)> {
    let handed_over = |e: &&Recorded| e.event == Event::Moment { moment: Moment::HandedOver };
    let Some(left) = events.iter().find(handed_over) else { return Vec::new() };
    let demanded = events.iter().filter(|e| e.host == left.host).filter_map(|e| match &e.event {
        Event::Sent { demanded: true, sent, .. } => Some((e.at_ns.since(left.at_ns).0, sent.bytes())),
        _ => None,
    });
    let mut faults: Vec<(u64, u64)> = demanded.collect();
    faults.sort_unstable();
    faults
}
