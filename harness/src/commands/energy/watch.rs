//! `whimbrel energy watch`: the power of every domain, a line each time.

use crate::cli::MeterOptions;
use crate::commands::print;
use crate::interrupt::Interrupt;
use crate::status;
use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;
use whimbrel_energy::{Domain, Sampler, Totals, choose};

/// Between two readings, where no counter needs more of them.
const READ_EVERY: Duration = Duration::from_millis(10);

/// How soon an interrupt is noticed.
const NOTICE: Duration = Duration::from_millis(100);

pub(super) fn watch(options: &MeterOptions, every: Duration, time: Option<Duration>) -> anyhow::Result<u8> {
    super::known(options.meter.as_deref())?;
    let place = super::place(&options.place)?;
    let interrupt = Interrupt::on_signals()?;
    let chosen = match choose(&place, options.meter.as_deref(), whimbrel_wire::clock::now) {
        Ok(chosen) => chosen,
        Err(_) if interrupt.raised() => return Ok(status::INTERRUPTED),
        Err(unmeasured) => {
            print(&format!("No energy: {unmeasured}.\n"))?;
            return Ok(status::NOT_SO);
        }
    };
    for (domain, why) in &chosen.absent {
        print(&format!("{domain}: {why}\n"))?;
    }
    let domains: Vec<Domain> = chosen.meter.domains().to_vec();
    let shown: Vec<bool> = domains.iter().map(|d| !chosen.absent.contains_key(&d.name)).collect();
    let (tell, told) = channel();
    let sampler = Sampler::start(chosen.meter, READ_EVERY.min(every), whimbrel_wire::clock::now, move |totals| {
        // Nobody listens any more once the time is over.
        let _ = tell.send(totals);
    });
    let began = whimbrel_wire::clock::now();
    let mut last: Option<Totals> = None;
    while !interrupt.raised() && time.is_none_or(|time| whimbrel_wire::clock::now().since(began) < time.into()) {
        let totals = match told.recv_timeout(NOTICE) {
            Ok(totals) => totals,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        match &last {
            Some(before) if totals.at.since(before.at) < every.into() => {}
            Some(before) => {
                let line = line(&domains, &shown, before, &totals);
                match std::io::stdout().write_all(line.as_bytes()) {
                    // Whoever read has seen enough.
                    Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => break,
                    written => written?,
                }
                last = Some(totals);
            }
            None => last = Some(totals),
        }
    }
    drop(sampler);
    Ok(if interrupt.raised() { status::INTERRUPTED } else { status::GOOD })
}

fn line(domains: &[Domain], shown: &[bool], before: &Totals, now: &Totals) -> String {
    let seconds = now.at.since(before.at).0 as f64 / 1e9;
    let mut words = Vec::new();
    for (n, domain) in domains.iter().enumerate().filter(|(n, _)| shown[*n]) {
        let power = before.uj[n].zip(now.uj[n]).map(|(a, b)| b.saturating_sub(a) as f64 / 1e6 / seconds);
        words.push(match power {
            Some(watts) => format!("{} {watts:.3} W", domain.name),
            None => format!("{} can't be told", domain.name),
        });
    }
    format!("{}\n", words.join("  "))
}
