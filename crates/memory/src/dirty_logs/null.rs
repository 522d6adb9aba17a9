//! The dirty log that sees nothing: what a migration would cost without one. The guest that it moves is stale.

use crate::dirty_log::DirtyLog;
use crate::error::Result;
use crate::ram::GuestRam;
use whimbrel_model::{Page, UnitSet};

/// Sees no write.
#[derive(Clone, Copy, Debug)]
pub struct NullLog {
    pages: u64,
}

impl NullLog {
    /// A log of the right size.
    pub fn over(ram: &GuestRam) -> Self {
        NullLog { pages: ram.pages() }
    }
}

impl DirtyLog for NullLog {
    fn arm(&mut self) -> Result<()> {
        Ok(())
    }

    fn take(&mut self) -> Result<UnitSet<Page>> {
        Ok(UnitSet::empty(self.pages))
    }

    fn peek(&mut self) -> Result<UnitSet<Page>> {
        self.take()
    }

    fn disarm(&mut self) -> Result<()> {
        Ok(())
    }
}
