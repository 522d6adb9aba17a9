//! `whimbrel run`: from the experiment file to the closing table.

use crate::BadInput;
use crate::cli::RunOptions;
use crate::display::{self, Display, JsonRows};
use crate::environment::Environment;
use crate::experiment::limits::{self, HostMemory};
use crate::experiment::{Experiment, Override};
use crate::folder::{Folder, json};
use crate::interrupt::Interrupt;
use crate::run_loop::{self, Finished};
use crate::summary::Summary;
use crate::{closing_table, html, status, trials};
use std::path::Path;

pub(super) fn run(file: Option<&Path>, options: &RunOptions) -> anyhow::Result<u8> {
    let overrides = options.set.iter().map(|text| Override::read(text)).collect::<Result<Vec<_>, _>>()?;
    let experiment = Experiment::load(file, &overrides)?;
    if let (Some(host), None) = (HostMemory::here(), options.source) {
        limits::check(&experiment, host, true)?;
    }
    if options.source.is_none() {
        limits::check_machines(&experiment)?;
        limits::check_brought(&experiment)?;
        limits::check_throttles(&experiment)?;
    }
    if let (Some(free), None) = (limits::free_for_images(), options.source) {
        limits::check_disk(&experiment, free)?;
    }
    options.out.as_deref().map_or(Ok(()), Folder::check)?;
    super::energy::place(&options.meter)?;
    if options.source.is_some() && (options.meter.energy_root.is_some() || options.meter.meter_command.is_some()) {
        let why = "the agents that run already were told where their meters are; give these to `whimbrel host`";
        return Err(BadInput(format!("--energy-root, --meter-command: {why}")).into());
    }
    let interrupt = Interrupt::on_signals()?;
    let mut trials = trials::open(options, &interrupt)?;
    trials.prepare(&experiment)?;

    let with_qemu = experiment.cells.iter().any(|cell| cell.setting.guest.machine == "qemu");
    let environment = Environment::read(with_qemu);
    let mut folder = Folder::create(options.out.as_deref(), &experiment.name)?;
    folder.write("experiment.toml", &experiment.to_toml())?;
    folder.write("environment.json", &json(&environment))?;
    let mut display = display::for_this_terminal();
    if options.json {
        display = Box::new(JsonRows(display));
    }
    opening(&experiment, &environment, display.as_mut());
    let finished = run_loop::run(&experiment, trials.as_mut(), &mut folder, display.as_mut(), &interrupt);
    display.end();
    // The children end before the last word, so that nothing runs on after it.
    drop(trials);
    let finished = finished?;
    close(&experiment, &environment, &finished, &folder, options.json)?;
    Ok(match &finished {
        finished if finished.interrupted => status::INTERRUPTED,
        finished if finished.good() => status::GOOD,
        _ => status::NOT_SO,
    })
}

fn opening(experiment: &Experiment, environment: &Environment, display: &mut dyn Display) {
    let (cells, trials) = (experiment.cells.len(), experiment.trials);
    display.say(&format!("{}: {cells} cells, {trials} trials each, seed {}", experiment.name, experiment.seed));
    if !experiment.question.is_empty() {
        display.say(&experiment.question);
    }
    for warning in &environment.warnings {
        display.say(&format!("warning: {warning}"));
    }
}

fn close(
    experiment: &Experiment,
    environment: &Environment,
    finished: &Finished,
    folder: &Folder,
    json_rows: bool,
) -> anyhow::Result<()> {
    let summary = Summary::of(experiment, &finished.rows, finished.interrupted);
    folder.write("summary.json", &json(&summary))?;
    folder.write("report.html", &html::report(experiment, environment, &summary, &finished.rows))?;
    let width = console::Term::stdout().size_checked().map(|(_, columns)| columns);
    let mut text = closing_table::closing_table(&summary, width);
    if let Some(mixture) = summary.mixture() {
        text.push_str(&format!("\nwarning: {mixture}"));
    }
    if finished.interrupted {
        text.push_str("\ninterrupted: the trials above are kept");
    }
    text.push_str(&format!("\nresults: {}\n", folder.path().display()));
    if json_rows {
        crate::tell(text.trim_end());
        return Ok(());
    }
    super::print(&text).map(drop)
}
