//! The dirty log by userfaultfd in asynchronous write-protect mode and the PAGEMAP_SCAN ioctl.
//!
//! | a page's entry | meaning | the guest's write | take | peek |
//! |---|---|---|---|---|
//! | protected, or a marker where nothing is mapped | not written | the kernel lifts the protection, about 1 us, no wait | skips it | skips it |
//! | not protected | written | costs nothing | reports and protects it | reports it |
//!
//! It works on any process's range that was registered with a userfaultfd made there, see [`crate::watch::Watch`].

use crate::dirty_log::DirtyLog;
use crate::error::{MemoryError, Result};
use crate::ram::GuestRam;
use crate::watch::Watch;
use std::sync::Arc;
use whimbrel_model::{Extent, Page, UnitSet};

/// The dirty log of a guest's mapping, in this process or another, and of the host's marks.
#[derive(Debug)]
pub struct UserfaultLog {
    /// Kept so that the addresses which are watched stay this guest's.
    ram: Arc<GuestRam>,
    watch: Arc<Watch>,
    armed: bool,
}

impl UserfaultLog {
    /// A log over the mapping on which the guest of `ram` runs.
    ///
    /// # Errors
    /// userfaultfd is not available.
    pub fn over(ram: &Arc<GuestRam>) -> Result<Self> {
        Ok(UserfaultLog { watch: ram.watch()?, ram: Arc::clone(ram), armed: false })
    }

    fn written(&self, take: bool) -> Result<UnitSet<Page>> {
        if !self.armed {
            return Err(MemoryError::OutOfTurn("the dirty log is not armed"));
        }
        let pages = self.watch.pages();
        let mut set = UnitSet::empty(pages);
        self.watch.written(take, |start, end| set.insert_extent(Extent { start, count: end - start }))?;
        if take {
            self.ram.marks().take_into(&mut set);
        } else {
            self.ram.marks().peek_into(&mut set);
        }
        Ok(set)
    }
}

impl DirtyLog for UserfaultLog {
    fn arm(&mut self) -> Result<()> {
        self.ram.marks().clear();
        let again = std::mem::take(&mut self.armed);
        // A kernel that has the features may still lack the scan: better known now than at the first take.
        match self.watch.protect_all(again).and_then(|()| self.watch.written(false, |_, _| ())) {
            Ok(()) => self.armed = true,
            Err(error @ MemoryError::OutOfTurn(_)) => return Err(error),
            Err(error) => {
                // Its own failure matters less than the one that is told.
                let _ = self.watch.release_log();
                return Err(error);
            }
        }
        Ok(())
    }

    fn take(&mut self) -> Result<UnitSet<Page>> {
        self.written(true)
    }

    fn peek(&mut self) -> Result<UnitSet<Page>> {
        self.written(false)
    }

    fn disarm(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.armed) {
            return Ok(());
        }
        self.watch.release_log()
    }
}

impl Drop for UserfaultLog {
    fn drop(&mut self) {
        // Nobody is left to tell; closing the userfaultfd lifts what remains.
        let _ = self.disarm();
    }
}
