//! What the tests against the real kernel share.

#![allow(dead_code, reason = "not every test program needs all of it")]

use std::error::Error;
use std::io::Write as _;
use std::sync::Arc;
use whimbrel_memory::error::{MemoryError, Result};
use whimbrel_memory::{GuestRam, MissingPages};
use whimbrel_model::{Page, UnitSet};

/// Unwraps, or says loudly why the test is skipped and answers `None`: the kernel lacks what is needed.
pub fn or_skip<T>(test: &str, result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error @ MemoryError::Unavailable { .. }) => {
            let source = error.source().map(|s| format!(" ({s})")).unwrap_or_default();
            drop(writeln!(std::io::stderr(), "SKIPPED: {test}: {error}{source}"));
            None
        }
        Err(error) => panic!("{test}: {error}: {:?}", error.source()),
    }
}

/// Fresh RAM.
pub fn ram(pages: u64) -> Arc<GuestRam> {
    GuestRam::create(pages * 4096).expect("a few MiB of memory")
}

/// The set of some pages.
pub fn set(pages: u64, members: impl IntoIterator<Item = u64>) -> UnitSet<Page> {
    let mut set = UnitSet::empty(pages);
    members.into_iter().for_each(|page| _ = set.insert(page));
    set
}

/// Begins post-copy with a handler that sends the page numbers to the receiver that comes along.
pub fn begin(
    ram: &Arc<GuestRam>,
    missing: UnitSet<Page>,
) -> Result<(Arc<MissingPages>, std::sync::mpsc::Receiver<u64>)> {
    let (tell, told) = std::sync::mpsc::channel();
    let handler = move |page, _| _ = tell.send(page);
    Ok((MissingPages::begin(Arc::clone(ram), missing, Box::new(handler))?, told))
}
