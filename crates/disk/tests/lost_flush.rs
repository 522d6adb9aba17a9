//! A flush that fails once: of what it should have made durable nothing counts as here afterwards, though the next one succeeds.
//!
//! The fault is made at the system call, on one thread: the kernel refuses it there what it grants the others.

use std::sync::Arc;
use whimbrel_disk::{BLOCK_BYTES, CopyRecord, GuestDisk, Volume};
use whimbrel_model::{Block, Extent, UnitSet};

const BLOCKS: u64 = 64;
const ABOUT: [u64; 2] = [1, 7];
const HERE: Extent = Extent { start: 3, count: 5 };

/// Does `work` on a thread whose flushes fail.
fn unflushed<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let on_thread = || {
        refuse_flushes().expect("a thread may refuse itself a system call");
        work()
    };
    std::thread::scope(|scope| scope.spawn(on_thread).join()).expect("the work doesn't panic")
}

/// From now on fdatasync fails on this thread.
fn refuse_flushes() -> std::io::Result<()> {
    let step = |code: u32, jf, k| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let mut program = [
        // The call's number lies first in what the filter is given.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, libc::SYS_fdatasync as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::EIO as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies the filter before the call returns, and it touches nothing but this thread.
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) == 0
    };
    if set { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn nothing() -> UnitSet<Block> {
    UnitSet::empty(BLOCKS)
}

#[test]
fn after_a_flush_that_failed_a_new_record_says_that_every_block_lacks() {
    for (fails, lacking) in [(None, 0), (Some("the guest's"), BLOCKS), (Some("an earlier record's"), BLOCKS)] {
        let folder = tempfile::tempdir().unwrap();
        let volume = Volume::create(folder.path().join("disk.img"), BLOCKS * BLOCK_BYTES, BLOCK_BYTES).unwrap();
        let path = volume.path().with_extension("copy");
        volume.write(HERE.start * BLOCK_BYTES, &[1; 100]).unwrap();
        match fails {
            None => GuestDisk::flush(&volume).unwrap(),
            Some("the guest's") => drop(unflushed(|| GuestDisk::flush(&volume)).unwrap_err()),
            Some(_) => drop(unflushed(|| volume.create_record(&path, ABOUT, &nothing())).unwrap_err()),
        }
        assert_eq!((volume.is_suspect(), path.exists()), (lacking > 0, false), "{fails:?}");
        let record = volume.create_record(&path, ABOUT, &nothing()).unwrap();
        assert_eq!(record.lacking().count(), lacking);
        drop(record);
        let reopened = CopyRecord::open(&path, BLOCKS, BLOCK_BYTES).unwrap().expect("it is whole");
        assert_eq!(reopened.lacking().count(), lacking);
    }
}

#[test]
fn a_flush_that_fails_for_another_than_the_record_leaves_it_with_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let volume = Volume::create(folder.path().join("disk.img"), BLOCKS * BLOCK_BYTES, BLOCK_BYTES).unwrap();
    let path = volume.path().with_extension("copy");
    let record = Arc::new(volume.create_record(&path, ABOUT, &UnitSet::full(BLOCKS)).unwrap());
    volume.begin_receive(Some(Arc::clone(&record)));
    let arrive = || volume.arrive(HERE, &vec![1; (HERE.count * BLOCK_BYTES) as usize]);
    arrive().unwrap();
    GuestDisk::flush(&volume).unwrap();
    assert_eq!(record.lacking().count(), BLOCKS - HERE.count);
    unflushed(|| GuestDisk::flush(&volume)).unwrap_err();
    volume.close_record(&record).unwrap();
    assert_eq!(record.lacking().count(), BLOCKS);
    // What arrives again is here again.
    arrive().unwrap();
    volume.close_record(&record).unwrap();
    drop((record, volume));
    let reopened = CopyRecord::open(&path, BLOCKS, BLOCK_BYTES).unwrap().expect("it is whole");
    assert_eq!(reopened.lacking().count(), BLOCKS - HERE.count);
}
