//! A copy of a disk image that somebody else owns: shared blocks where the file system knows them, else its data alone.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Copies the image to a new file. Holes stay holes. The image is only read.
///
/// # Errors
/// It can't be read, the new file is there already, or there is no room.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let (from, new) = (File::open(from)?, File::create_new(to)?);
    copy_into(&from, &new).inspect_err(|_| {
        // Half a copy is of use to nobody.
        let _ = std::fs::remove_file(to);
    })
}

fn copy_into(from: &File, to: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let bytes = from.metadata()?.len();
    to.set_len(bytes)?;
    let mut at = 0;
    while at < bytes {
        let start = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole follows.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(start))?;
        let (mut from, mut to) = (from, to);
        from.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        io::copy(&mut from.take(end - start), &mut to)?;
        at = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn a_copy_holds_the_same_and_its_holes_are_holes() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(&[7; 10_000], (32 << 20) + 5).unwrap();
        copy(&from, &to).unwrap();
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
        assert!(to.metadata().unwrap().blocks() <= from.metadata().unwrap().blocks() + 16);
        assert_eq!(copy(&from, &to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
