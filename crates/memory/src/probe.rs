//! What of the kernel's means this process may use: found out by using them, not by reading a version.

use crate::dirty_log::DirtyLog;
use crate::dirty_logs::UserfaultLog;
use crate::error::{MemoryError, Result};
use crate::faults::MissingPages;
use crate::ram::GuestRam;
use crate::uffd::{self, FAULT_FEATURES, LOG_FEATURES, Uffd, Way};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use whimbrel_model::{Extent, UnitSet};

/// Pages of the RAM that a trial uses.
const PAGES: u64 = 16;

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What was tried.
    pub name: &'static str,
    /// Whether it works.
    pub ok: bool,
    /// What was seen.
    pub detail: String,
    /// What would make it work, or work better; empty if nothing is wanting.
    pub remedy: String,
}

/// Tries all that guest memory needs of the kernel.
pub fn probe() -> Vec<Finding> {
    let memfd = || GuestRam::create(PAGES * whimbrel_model::PAGE_BYTES).map(|_| "a memfd is mapped twice".to_owned());
    let mut findings = vec![tried("memfd", memfd()), open_finding()];
    let features = Uffd::supported().unwrap_or(0);
    findings.extend(LOG_FEATURES.iter().chain(FAULT_FEATURES).map(|feature| {
        let ok = features & feature.bit != 0;
        Finding {
            name: feature.name,
            ok,
            detail: format!("userfaultfd {} it", if ok { "offers" } else { "does not offer" }),
            remedy: if ok { String::new() } else { format!("Linux {} or newer", feature.since) },
        }
    }));
    findings.push(tried("dirty log", try_log()));
    findings.push(tried("missing pages", try_faults()));
    findings
}

fn open_finding() -> Finding {
    let name = "userfaultfd";
    match uffd::open_fresh() {
        Err(error) => tried(name, Err(error)),
        Ok((_, way)) => {
            let (detail, remedy) = match way {
                Way::Call => ("allowed by the system call", ""),
                Way::Device => ("allowed by /dev/userfaultfd", ""),
                Way::UserModeOnly => (
                    "allowed for faults of user code only: enough for machine thread, and under QEMU for all but post-copy's missing pages",
                    uffd::FOR_ALL_FAULTS,
                ),
            };
            Finding { name, ok: true, detail: detail.to_owned(), remedy: remedy.to_owned() }
        }
    }
}

fn tried(name: &'static str, result: Result<String>) -> Finding {
    match result {
        Ok(detail) => Finding { name, ok: true, detail, remedy: String::new() },
        Err(MemoryError::Unavailable { what, remedy, source }) => {
            let why = source.map(|s| format!(": {s}")).unwrap_or_default();
            Finding { name, ok: false, detail: format!("{what} is not available{why}"), remedy }
        }
        Err(error) => {
            let why = error.source().map(|s| format!(": {s}")).unwrap_or_default();
            let remedy = "the kernel offers this, yet it does not work here: use another kernel".to_owned();
            Finding { name, ok: false, detail: format!("{error}{why}"), remedy }
        }
    }
}

fn try_log() -> Result<String> {
    let ram = GuestRam::create(PAGES * whimbrel_model::PAGE_BYTES)?;
    let mut log = UserfaultLog::over(&ram)?;
    log.arm()?;
    let written = [1, 2, 7];
    for page in written {
        ram.guest_page(page)[0].store(page, Ordering::Relaxed);
    }
    let expected = UnitSet::from_extents(PAGES, written.map(|start| Extent { start, count: 1 }));
    if log.take()? != expected || !log.take()?.is_empty() {
        return Err(MemoryError::OutOfTurn("what the log says was written is not what was written"));
    }
    Ok("PAGEMAP_SCAN reports exactly the pages that were written".to_owned())
}

fn try_faults() -> Result<String> {
    let ram = GuestRam::create(PAGES * whimbrel_model::PAGE_BYTES)?;
    // Page 0 is there but incomplete (a minor fault), page 1 is not (a missing one).
    ram.host_page(0)[0].store(1, Ordering::Relaxed);
    let (tell, told) = std::sync::mpsc::channel();
    let handler = move |page, _| _ = tell.send(page);
    let missing = MissingPages::begin(Arc::clone(&ram), UnitSet::full(PAGES), Box::new(handler))?;
    let seen = std::thread::scope(|scope| {
        let guest = scope.spawn(|| [0, 1].map(|page| ram.guest_page(page)[0].load(Ordering::Relaxed)));
        for page in told.iter().take(2) {
            ram.host_page(page)[0].store(page + 10, Ordering::Relaxed);
            missing.complete(Extent { start: page, count: 1 })?;
        }
        Ok(guest.join().expect("a load does not panic"))
    });
    if seen? != [10, 11] {
        return Err(MemoryError::OutOfTurn("the guest saw a page before it was complete"));
    }
    missing.complete(ram.all())?;
    missing.finish()?;
    Ok("faults on absent and on half-received pages wait until the page is complete".to_owned())
}
