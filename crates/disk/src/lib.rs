//! Volumes, write tracking by block bitmap, the NBD export, and the strategies that move disks.

pub mod guest_disk;

pub use guest_disk::GuestDisk;
