//! Volumes, write tracking by block bitmap, the NBD export, and the strategies that move disks.
