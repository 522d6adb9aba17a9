//! The dirty log: which pages of a guest were written, by whatever means the host has.
//!
//! A log answers for every write through the guest's own mapping and for every mark of the host
//! ([`crate::marks::HostMarks`]). Its one promise: a page that was written after `arm` or after the last `take` is in
//! the next `take`. It may name a page that wasn't written; it may not leave one out. The members are listed in
//! [`crate::dirty_logs`].

use crate::error::Result;
use whimbrel_model::{Page, UnitSet};

/// The pages that a guest writes, from `arm` to `disarm`.
pub trait DirtyLog: Send {
    /// From now on every write is seen. The log is empty, also if it was armed before.
    ///
    /// # Errors
    /// The host lacks what the log needs; the message says which kernel or permission would do.
    fn arm(&mut self) -> Result<()>;

    /// What was written since the log was armed or last taken. Each page is protected again in the same step, so a write
    /// at the same time is in this answer or in the next. The content of a page is to be read after it was taken.
    ///
    /// # Errors
    /// The log is not armed, or the kernel fails.
    fn take(&mut self) -> Result<UnitSet<Page>>;

    /// What a `take` would answer, without taking it.
    ///
    /// # Errors
    /// As for `take`.
    fn peek(&mut self) -> Result<UnitSet<Page>>;

    /// Writes are no longer seen, and cost nothing any more. A log that is not armed stays so.
    ///
    /// # Errors
    /// The kernel fails.
    fn disarm(&mut self) -> Result<()>;
}
