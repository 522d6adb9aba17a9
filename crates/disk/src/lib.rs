//! Volumes, write tracking by block bitmap, the NBD export, and the strategies that move disks.
//!
//! Reading order: [`guest_disk`] (what a guest does to its disk), [`bitmap`], [`bitmap_file`] (how it outlives a crash),
//! [`volume`] (an image file with its bitmaps, and the merge rules of the pull phase), [`copy_record`] (what of a copy
//! outlives a crash), [`content_index`] (what it holds, by content), [`export`] (a volume as seen by the other host),
//! [`strategy`] and [`strategies`] (what to push when), [`limited`] (how much of the link that may take).

#![forbid(unsafe_code)]

pub mod bitmap;
pub mod bitmap_file;
pub mod content_index;
pub mod copy_record;
pub mod error;
pub mod export;
pub mod guest_disk;
pub mod limited;
pub mod rounds;
pub mod strategies;
pub mod strategy;
pub mod volume;

pub use bitmap::BlockBitmap;
pub use bitmap_file::{BitmapFile, Found};
pub use content_index::{ContentIndex, DIGEST_BYTES, digests};
pub use copy_record::CopyRecord;
pub use error::DiskError;
pub use export::{CONTEXT_DIRTY, IncomingExport, OutgoingExport, PulledAs, VolumeExport};
pub use guest_disk::GuestDisk;
pub use strategies::{DISK_PRESETS, DISK_STRATEGIES};
pub use strategy::{BuildContext, DiskChoice, DiskStrategy};
pub use volume::{BLOCK_BYTES, BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, Fetch, MirrorSink, Push, RemoteDisk, Volume};
