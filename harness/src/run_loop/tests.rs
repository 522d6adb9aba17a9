//! The loop with trials that move nothing.

use super::*;
use crate::display::Quiet;
use crate::row::tests::experiment;
use crate::trials::Progress;
use std::path::PathBuf;
use whimbrel_model::Moment;

/// Completes every trial but those it is told to fail, and watches what is on disk when a trial begins.
#[derive(Default)]
struct Scripted {
    fail: Vec<usize>,
    interrupt_at: Option<(usize, Interrupt)>,
    folder: PathBuf,
    made: Vec<(String, u32, u64)>,
    rows_before: Vec<usize>,
}

fn moved() -> Vec<Recorded> {
    use Moment::*;
    let at =
        [(0, Requested), (1, SetupDone), (5, PauseRequested), (5, Paused), (9, Resumed), (9, Whole), (9, Released)];
    let event = |(at, moment)| Recorded { at_ns: Nanos(at), host: Mark::Source, event: Event::Moment { moment } };
    at.into_iter().map(event).collect()
}

impl Trials for Scripted {
    fn prepare(&mut self, _: &Experiment) -> anyhow::Result<()> {
        Ok(())
    }

    fn run(&mut self, request: &Request<'_>, progress: &mut dyn FnMut(Progress)) -> anyhow::Result<Vec<Trip>> {
        let number = self.made.len();
        let kept = std::fs::read_to_string(self.folder.join("trials.jsonl")).unwrap();
        self.rows_before.push(kept.lines().count());
        self.made.push((request.cell.name.clone(), request.trial, request.seed));
        progress(Progress::default());
        if let Some((_, interrupt)) = self.interrupt_at.as_ref().filter(|(at, _)| *at == number) {
            interrupt.raise();
            anyhow::bail!("interrupted");
        }
        anyhow::ensure!(!self.fail.contains(&number), "the source could not be started");
        Ok(vec![Trip { events: moved(), ..Trip::default() }])
    }
}

fn two_cells() -> Experiment {
    experiment("trials = 2\n[guest]\nram = \"16 MiB\"\n[vary]\n\"guest.vcpus\" = [1, 2]")
}

fn make(experiment: &Experiment, script: Scripted) -> (Finished, Scripted, Vec<serde_json::Value>) {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("run");
    let mut folder = Folder::create(Some(&path), "x").unwrap();
    let interrupt = script.interrupt_at.as_ref().map(|(_, i)| i.clone()).unwrap_or_default();
    let mut script = Scripted { folder: path.clone(), ..script };
    let finished = run(experiment, &mut script, &mut folder, &mut Quiet, &interrupt).unwrap();
    let kept = std::fs::read_to_string(path.join("trials.jsonl")).unwrap();
    let kept = kept.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (finished, script, kept)
}

#[test]
fn cells_take_turns_and_rows_are_kept_before_the_next_trial() {
    let experiment = two_cells();
    let (finished, script, kept) = make(&experiment, Scripted::default());
    let order: Vec<_> = script.made.iter().map(|(cell, trial, _)| (cell.as_str(), *trial)).collect();
    let cells = ["guest.vcpus=1", "guest.vcpus=2"];
    assert_eq!(order, [(cells[0], 0), (cells[1], 0), (cells[0], 1), (cells[1], 1)]);
    assert_eq!(script.rows_before, [0, 1, 2, 3]);
    assert_eq!(script.made[0].2, script.made[1].2, "trials of one number share their seed");
    assert_ne!(script.made[0].2, script.made[2].2);
    assert_eq!((kept.len(), finished.good(), finished.interrupted), (4, true, false));
    assert_eq!(kept[0]["downtime_ns"], 4);
    assert_eq!(kept[1]["factors"]["guest.vcpus"], 2);
}

#[test]
fn a_failed_trial_is_a_row_and_the_run_goes_on() {
    let (finished, _, kept) = make(&two_cells(), Scripted { fail: vec![1], ..Scripted::default() });
    assert_eq!((kept.len(), finished.good()), (4, false));
    assert_eq!(
        (&kept[1]["outcome"], &kept[1]["reason"]),
        (&"failed".into(), &"the source could not be started".into())
    );
    assert!(kept[1]["downtime_ns"].is_null() && kept[1]["reasons"]["downtime_ns"].is_string());
    assert_eq!(kept[2]["outcome"], "completed");
}

#[test]
fn an_interrupt_keeps_what_is_finished() {
    let script = Scripted { interrupt_at: Some((2, Interrupt::default())), ..Scripted::default() };
    let (finished, script, kept) = make(&two_cells(), script);
    assert_eq!((script.made.len(), kept.len(), finished.interrupted), (3, 2, true));
}

#[test]
fn every_guest_and_trip_has_a_row() {
    let experiment = experiment("[guest]\nram = \"16 MiB\"\ncount = 2\ntrips = 2");
    let (finished, _, kept) = make(&experiment, Scripted::default());
    let which: Vec<_> = finished.rows.iter().map(|r| (r.guest, r.trip, r.good())).collect();
    assert_eq!(which, [(0, 0, true), (0, 1, false), (1, 0, false), (1, 1, false)]);
    assert_eq!(kept.len(), 4);
}
