//! The guest's disk: a block device, with direct I/O. What the kernel would cache could not be told from the disk.

use rustix::fs::OFlags;
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use whimbrel_disk::GuestDisk;
use whimbrel_model::PAGE_BYTES;
use whimbrel_model::op::{MOST_SECTORS, SECTOR_BYTES};

/// A block device.
pub(crate) struct BlockDevice {
    file: File,
    size_bytes: u64,
}

thread_local! {
    /// One request a vCPU at a time, of at most so many sectors.
    static SPACE: RefCell<Vec<u8>> = RefCell::new(vec![0; (u64::from(MOST_SECTORS) * SECTOR_BYTES + PAGE_BYTES) as usize]);
}

impl BlockDevice {
    pub(crate) fn open(path: &str) -> io::Result<Self> {
        let mut file = File::options().read(true).write(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path)?;
        let size_bytes = file.seek(SeekFrom::End(0))?;
        Ok(BlockDevice { file, size_bytes })
    }
}

/// Gives `with` so many bytes whose address is a multiple of a page's.
fn aligned<T>(bytes: usize, with: impl FnOnce(&mut [u8]) -> T) -> T {
    SPACE.with_borrow_mut(|space| {
        let skip = space.as_ptr().align_offset(PAGE_BYTES as usize);
        if space.len() < skip + bytes {
            space.resize(bytes + 2 * PAGE_BYTES as usize, 0);
        }
        let skip = space.as_ptr().align_offset(PAGE_BYTES as usize);
        with(&mut space[skip..skip + bytes])
    })
}

impl GuestDisk for BlockDevice {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        aligned(buffer.len(), |space| {
            self.file.read_exact_at(space, offset)?;
            buffer.copy_from_slice(space);
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        aligned(data.len(), |space| {
            space.copy_from_slice(data);
            self.file.write_all_at(space, offset)
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
