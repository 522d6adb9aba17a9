//! The dirty log that breaks its promise: the judge of a migration must notice.

use crate::dirty_log::DirtyLog;
use crate::error::Result;
use whimbrel_model::{Page, UnitSet};

/// Leaves the first page out of each take.
pub struct ForgetfulLog {
    inner: Box<dyn DirtyLog>,
}

impl std::fmt::Debug for ForgetfulLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ForgetfulLog").finish_non_exhaustive()
    }
}

impl ForgetfulLog {
    /// Forgets what `inner` saw.
    pub fn around(inner: Box<dyn DirtyLog>) -> Self {
        ForgetfulLog { inner }
    }
}

impl DirtyLog for ForgetfulLog {
    fn arm(&mut self) -> Result<()> {
        self.inner.arm()
    }

    fn take(&mut self) -> Result<UnitSet<Page>> {
        let mut taken = self.inner.take()?;
        if let Some(first) = taken.next(0) {
            taken.remove(first);
        }
        Ok(taken)
    }

    fn peek(&mut self) -> Result<UnitSet<Page>> {
        self.inner.peek()
    }

    fn disarm(&mut self) -> Result<()> {
        self.inner.disarm()
    }
}
