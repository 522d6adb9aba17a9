//! What a person sees while a run goes on: one live line on a terminal, plain lines elsewhere. Both on standard error.

use crate::experiment::Cell;
use crate::row::Row;
use crate::trials::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::Write;
use std::time::{Duration, Instant};
use whimbrel_migration::report::{Outcome, Verdict};
use whimbrel_model::{ByteRate, Bytes, Nanos, Phase};

/// Hears of what a run does.
pub trait Display {
    /// Trial `number` of `all` begins.
    fn begin(&mut self, number: usize, all: usize, cell: &Cell, trial: u32);
    /// How far it is.
    fn progress(&mut self, progress: &Progress);
    /// A row is on disk.
    fn row(&mut self, row: &Row);
    /// Something else to know.
    fn say(&mut self, text: &str);
    /// The run is over: nothing more is shown.
    fn end(&mut self) {}
}

/// The display for this terminal, or for what stands in its place.
pub fn for_this_terminal() -> Box<dyn Display> {
    if console::Term::stderr().is_term() { Box::new(Live::new()) } else { Box::new(Lines::default()) }
}

/// Shows nothing.
#[derive(Debug)]
pub struct Quiet;

impl Display for Quiet {
    fn begin(&mut self, _: usize, _: usize, _: &Cell, _: u32) {}
    fn progress(&mut self, _: &Progress) {}
    fn row(&mut self, _: &Row) {}
    fn say(&mut self, _: &str) {}
}

/// Prints each row as a JSON line on standard output too.
pub struct JsonRows(pub Box<dyn Display>);

impl Display for JsonRows {
    fn begin(&mut self, number: usize, all: usize, cell: &Cell, trial: u32) {
        self.0.begin(number, all, cell, trial);
    }

    fn progress(&mut self, progress: &Progress) {
        self.0.progress(progress);
    }

    fn row(&mut self, row: &Row) {
        self.0.row(row);
        let line = serde_json::to_string(row).expect("a row is plain data");
        // Whoever reads may have gone; the rows are on disk all the same.
        let _ = writeln!(std::io::stdout(), "{line}");
    }

    fn say(&mut self, text: &str) {
        self.0.say(text);
    }

    fn end(&mut self) {
        self.0.end();
    }
}

/// A line that changes in place.
struct Live(ProgressBar);

impl Live {
    fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{spinner} {prefix:.bold} {wide_msg}");
        bar.set_style(style.expect("the template is well formed"));
        bar.enable_steady_tick(Duration::from_millis(100));
        Live(bar)
    }
}

impl Display for Live {
    fn begin(&mut self, number: usize, all: usize, cell: &Cell, trial: u32) {
        self.0.set_prefix(format!("[{}/{all}]", number + 1));
        self.0.set_message(format!("{} (trial {trial})", cell.name));
    }

    fn progress(&mut self, progress: &Progress) {
        self.0.set_message(describe(progress));
    }

    fn row(&mut self, row: &Row) {
        self.0.println(row_line(row));
    }

    fn say(&mut self, text: &str) {
        self.0.println(text);
    }

    fn end(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Plain lines: one a trial, one a second or a change of phase while it goes on, one a row.
#[derive(Default)]
struct Lines {
    prefix: String,
    shown: Option<(Instant, &'static str, Option<Phase>)>,
}

impl Display for Lines {
    fn begin(&mut self, number: usize, all: usize, cell: &Cell, trial: u32) {
        self.prefix = format!("[{}/{all}]", number + 1);
        self.shown = None;
        crate::tell(&format!("{} {} (trial {trial})", self.prefix, cell.name));
    }

    fn progress(&mut self, progress: &Progress) {
        let news = self.shown.is_none_or(|(at, stage, phase)| {
            (stage, phase) != (progress.stage, progress.phase) || at.elapsed() >= Duration::from_secs(1)
        });
        if news {
            self.shown = Some((Instant::now(), progress.stage, progress.phase));
            crate::tell(&format!("{}   {}", self.prefix, describe(progress)));
        }
    }

    fn row(&mut self, row: &Row) {
        crate::tell(&row_line(row));
    }

    fn say(&mut self, text: &str) {
        crate::tell(text);
    }
}

/// How far a trial is, in a line.
pub fn describe(progress: &Progress) -> String {
    let mut words = vec![match progress.phase {
        Some(phase) => format!("{phase:?}").to_lowercase(),
        None => progress.stage.to_owned(),
    }];
    if progress.guest > 0 {
        words.push(format!("guest {}", progress.guest));
    }
    if progress.phase.is_some() {
        words.push(format!("round {}", progress.round));
        words.push(format!("sent {}", Bytes(progress.sent_bytes)));
        words.push(format!("left {}", Bytes(progress.remaining_bytes)));
    }
    let rate = |name: &str, rate: Option<f64>| rate.map(|r| format!("{name} {}", ByteRate(r)));
    words.extend(rate("link", progress.bandwidth_bytes_per_s));
    words.extend(rate("dirty", progress.dirty_bytes_per_s));
    words.extend(progress.predicted_downtime_ns.map(|ns| format!("downtime ~{}", Nanos(ns))));
    words.join("  ")
}

/// A row in a line.
pub fn row_line(row: &Row) -> String {
    let report = &row.report;
    let time = |name: &str, ns: Option<u64>| ns.map(|ns| format!("{name} {}", Nanos(ns)));
    let mut words = vec![format!("  {}", outcome_word(report.outcome))];
    words.extend((row.guest > 0).then(|| format!("guest {}", row.guest)));
    words.extend((row.trip > 0).then(|| format!("trip {}", row.trip)));
    words.extend((row.attempt > 0).then(|| format!("attempt {}", row.attempt)));
    words.extend(report.reason.as_ref().map(|reason| format!("({reason})")));
    words.extend(time("downtime", report.downtime_ns));
    words.extend(time("total", report.total_ns));
    words.extend(report.bytes.total.map(|b| format!("{}", Bytes(b))));
    words.push(format!("check {}", row.check_words()));
    words.extend(report.verify.first_difference.as_ref().map(|d| format!("(first difference: {d})")));
    words.join("  ")
}

/// An outcome as it stands in a row.
pub fn outcome_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Completed => "completed",
        Outcome::Aborted => "aborted",
        Outcome::Lost => "lost",
        Outcome::Undecided => "undecided",
        Outcome::Partial => "partial",
        Outcome::Failed => "failed",
    }
}

/// A verdict as it stands in a row.
pub fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Equal => "equal",
        Verdict::Different => "different",
        Verdict::Skipped => "skipped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_is_described_with_what_is_known() {
        let progress = Progress {
            phase: Some(Phase::Push),
            round: 3,
            sent_bytes: 120 << 20,
            remaining_bytes: 4 << 20,
            dirty_bytes_per_s: Some(12.0 * 1048576.0),
            predicted_downtime_ns: Some(35_000_000),
            ..Progress::default()
        };
        assert_eq!(describe(&progress), "push  round 3  sent 120 MiB  left 4 MiB  dirty 12 MiB/s  downtime ~35 ms");
        assert_eq!(describe(&Progress { stage: "control run", ..Progress::default() }), "control run");
    }

    #[test]
    fn words_are_those_of_the_rows() {
        for outcome in
            [Outcome::Completed, Outcome::Aborted, Outcome::Lost, Outcome::Undecided, Outcome::Partial, Outcome::Failed]
        {
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome_word(outcome));
        }
        for verdict in [Verdict::Equal, Verdict::Different, Verdict::Skipped] {
            assert_eq!(serde_json::to_value(verdict).unwrap(), verdict_word(verdict));
        }
    }
}
