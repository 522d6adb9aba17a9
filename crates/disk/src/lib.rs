//! Volumes, write tracking by block bitmap, the NBD export, and the strategies that move disks.
//!
//! Reading order: [`guest_disk`] (what a guest does to its disk), [`bitmap`], [`volume`] (an image file with its bitmaps,
//! and the merge rules of the pull phase), [`export`] (a volume as seen by the other host), [`strategy`] and
//! [`strategies`] (what to push when).

#![forbid(unsafe_code)]

pub mod bitmap;
pub mod guest_disk;

pub use bitmap::BlockBitmap;
pub use guest_disk::GuestDisk;
