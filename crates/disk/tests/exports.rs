//! Volumes as NBD exports: a whole move over the protocol, and what each export does with a request.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use whimbrel_disk::{
    BLOCK_BYTES, CONTEXT_DIRTY, GuestDisk, IncomingExport, OutgoingExport, PulledAs, Volume, VolumeExport,
};
use whimbrel_model::{Block, Extent, Rng, UnitSet};
use whimbrel_nbd::protocol::{CONTEXT_ALLOCATION, allocation};
use whimbrel_nbd::{Backend, Client, ClientOptions, Exports, Extents, Now, Shutdown, ZeroMode, serve_connection};

const BLOCKS: u64 = 256;

fn volume(folder: &Path, name: &str) -> Arc<Volume> {
    Arc::new(Volume::create(folder.join(name), BLOCKS * BLOCK_BYTES, BLOCK_BYTES).unwrap())
}

fn image(volume: &Volume) -> Vec<u8> {
    let mut bytes = vec![0; volume.size_bytes() as usize];
    volume.read_blocks(Extent { start: 0, count: volume.blocks() }, &mut bytes).unwrap();
    bytes
}

async fn client(export: impl Backend) -> Client {
    let (near, far) = tokio::io::duplex(1 << 20);
    tokio::spawn(serve_connection(far, Arc::new(Exports::single(Arc::new(export))), Shutdown::never()));
    let contexts = vec![CONTEXT_ALLOCATION.to_owned(), CONTEXT_DIRTY.to_owned()];
    Client::connect(near, "", ClientOptions { contexts, ..ClientOptions::default() }).await.unwrap()
}

/// Pushes blocks, holes as zeroes; returns how many went as zeroes.
async fn push(from: &Volume, to: &Client, set: &UnitSet<Block>) -> u64 {
    let mut zeroes = 0;
    for extent in set.extents() {
        let data = from.data_extents(extent).unwrap();
        let mut holes = UnitSet::<Block>::from_extents(BLOCKS, [extent]);
        for run in data {
            holes.remove_extent(run);
            let mut bytes = vec![0; (run.count * BLOCK_BYTES) as usize];
            from.read_blocks(run, &mut bytes).unwrap();
            to.write(run.start * BLOCK_BYTES, bytes, false).await.unwrap();
        }
        for hole in holes.extents() {
            let mode = ZeroMode { may_trim: true, ..ZeroMode::default() };
            to.write_zeroes(hole.start * BLOCK_BYTES, hole.count * BLOCK_BYTES, mode).await.unwrap();
            zeroes += hole.count;
        }
    }
    zeroes
}

fn write_at_random(volume: &Volume, seed: u64, times: u64) {
    let mut rng = Rng::new(seed);
    for _ in 0..times {
        let length = 1 + rng.below(3 * BLOCK_BYTES);
        let offset = rng.below(volume.size_bytes() - length);
        volume.write(offset, &vec![rng.next_u64() as u8; length as usize]).unwrap();
    }
}

/// The three phases over NBD: rounds of push while the guest writes, the bitmap, then pulls that race with the push.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_moves_over_nbd() {
    let folder = tempfile::tempdir().unwrap();
    let (source, destination) = (volume(folder.path(), "source.raw"), volume(folder.path(), "destination.raw"));
    // The destination has a stale image of an earlier visit.
    destination.receive(0, &vec![0xee; (BLOCKS * BLOCK_BYTES) as usize]).unwrap();
    source.receive(0, &vec![1; 50 * BLOCK_BYTES as usize]).unwrap();
    destination.begin_receive(None);
    source.arm();

    let arrived = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&arrived);
    let incoming = client(IncomingExport::new(Arc::clone(&destination), move |extent, _| {
        count.fetch_add(extent.count, SeqCst);
    }))
    .await;
    let pulled = Arc::new(Mutex::new(BTreeSet::new()));
    let order = Arc::clone(&pulled);
    let outgoing = client(OutgoingExport::new(Arc::clone(&source), move |extent, _| {
        order.lock().unwrap().extend(extent.indices());
    }))
    .await;

    let guest_disk = Arc::clone(&source);
    let guest = tokio::task::spawn_blocking(move || write_at_random(&guest_disk, 5, 60));
    push(&source, &incoming, &UnitSet::full(BLOCKS)).await;
    assert_eq!(arrived.load(SeqCst), BLOCKS);
    guest.await.unwrap();
    source.drain();
    write_at_random(&source, 6, 20);
    let todo = source.take();
    assert!(!todo.is_empty());

    let (asked, mut requests) = tokio::sync::mpsc::unbounded_channel();
    destination.begin_pull(todo.clone(), Arc::new(move |block| asked.send(block).unwrap()));
    let expected = image(&source);
    let volume = Arc::clone(&destination);
    let guest = tokio::task::spawn_blocking(move || {
        // Backwards, so that the push and the pulls meet.
        let mut seen = vec![0; (BLOCKS * BLOCK_BYTES) as usize];
        for (at, piece) in seen.chunks_mut(BLOCK_BYTES as usize).enumerate().rev() {
            volume.read(at as u64 * BLOCK_BYTES, piece).unwrap();
        }
        seen
    });
    let volume = Arc::clone(&destination);
    let puller = tokio::spawn(async move {
        let mut waited = 0;
        while let Some(block) = requests.recv().await {
            let data = outgoing.read(block * BLOCK_BYTES, BLOCK_BYTES as usize).await.unwrap();
            waited += volume.arrive(Extent { start: block, count: 1 }, &data).unwrap().len();
            if volume.missing() == 0 {
                break;
            }
        }
        waited
    });
    push(&source, &incoming, &todo).await;
    assert!(guest.await.unwrap() == expected, "the guest saw something else at the destination");
    puller.abort();
    assert_eq!(destination.missing(), 0);
    assert!(pulled.lock().unwrap().iter().all(|block| todo.contains(*block)), "more was pulled than was missing");
    assert!(image(&destination) == expected, "the destination differs from the source");
    assert!(destination.fresh().is_empty(), "an arrival counted as a guest's write");
}

#[test]
fn an_incoming_export_takes_whole_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let volume = volume(folder.path(), "disk.raw");
    let heard = Arc::new(Mutex::new(Vec::new()));
    let list = Arc::clone(&heard);
    let export = IncomingExport::new(Arc::clone(&volume), move |extent, waited| {
        list.lock().unwrap().push((extent, waited.len()));
    });
    let block = [7; BLOCK_BYTES as usize];
    let zero = ZeroMode::default();
    for (offset, length) in [(1, BLOCK_BYTES), (0, 100)] {
        assert!(export.write(offset, &vec![1; length as usize], false).is_err());
        assert!(export.write_zeroes(offset, length, zero).is_err());
    }
    volume.arm();
    export.write(BLOCK_BYTES, &block, true).unwrap();
    volume.begin_visit();
    export.write(2 * BLOCK_BYTES, &block, false).unwrap();
    assert_eq!(volume.dropped(), 1, "a late arrival overwrote the guest's disk");
    volume.begin_receive(None);
    volume.begin_pull(UnitSet::from_extents(BLOCKS, [Extent { start: 4, count: 2 }]), Arc::new(|_| ()));
    assert_eq!(export.try_write_now(4 * BLOCK_BYTES, &block).unwrap(), Now::WouldBlock);
    export.write_zeroes(4 * BLOCK_BYTES, 4 * BLOCK_BYTES, zero).unwrap();
    let extents: Vec<_> = heard.lock().unwrap().iter().map(|(extent, _)| (extent.start, extent.count)).collect();
    assert_eq!(extents, [(1, 1), (2, 1), (4, 4)]);
    assert_eq!((volume.missing(), volume.dropped()), (0, 1 + 2));
    assert!(volume.take().is_empty(), "an arrival was marked");
    assert_eq!(export.block_sizes().minimum, BLOCK_BYTES as u32);
}

#[test]
fn an_outgoing_export_only_answers() {
    let folder = tempfile::tempdir().unwrap();
    let volume = volume(folder.path(), "disk.raw");
    let heard = Arc::new(Mutex::new(Vec::new()));
    let list = Arc::clone(&heard);
    let export = OutgoingExport::new(volume, move |extent, pulled_as| list.lock().unwrap().push((extent, pulled_as)));
    assert!(export.read_only());
    assert!(export.write(0, &[1; 512], false).is_err());
    export.read(BLOCK_BYTES, &mut vec![0; 2 * BLOCK_BYTES as usize]).unwrap();
    // Parts of blocks are no pull of them.
    export.read(1, &mut vec![0; BLOCK_BYTES as usize]).unwrap();
    export.read(BLOCK_BYTES - 1, &mut vec![0; BLOCK_BYTES as usize + 1]).unwrap();
    let extents = [Extent { start: 1, count: 2 }, Extent { start: 1, count: 1 }];
    assert_eq!(*heard.lock().unwrap(), extents.map(|extent| (extent, PulledAs::Content)));
    heard.lock().unwrap().clear();
    let size = export.size_bytes();
    assert_eq!(status(&export, CONTEXT_DIRTY, 0, size), [(size, 0)]);
    assert_eq!(*heard.lock().unwrap(), [], "who asks what is dirty has none of it");
    // Parts of blocks are no pull of them here either.
    assert_eq!(
        status(&export, CONTEXT_ALLOCATION, 100, size - 100),
        [(size - 100, allocation::HOLE | allocation::ZERO)]
    );
    let extent = Extent { start: 1, count: BLOCKS - 1 };
    assert_eq!(*heard.lock().unwrap(), [(extent, PulledAs::Zero)]);
    assert!(export.read(BLOCKS * BLOCK_BYTES, &mut [0; 1]).is_err());
}

fn status(export: &impl Backend, context: &str, offset: u64, length: u64) -> Vec<(u64, u32)> {
    let mut extents = Extents::new(length, 100);
    export.block_status(context, offset, length, &mut extents).unwrap();
    extents.list().iter().map(|extent| (extent.length, extent.flags)).collect()
}

#[test]
fn a_volume_export_is_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let volume = volume(folder.path(), "disk.raw");
    let export = VolumeExport::new(Arc::clone(&volume));
    let size = export.size_bytes();
    assert_eq!(status(&export, CONTEXT_DIRTY, 0, size), [(size, 0)]);
    volume.arm();
    export.write(100, &[1; 10], true).unwrap();
    export.write_zeroes(2 * BLOCK_BYTES, BLOCK_BYTES, ZeroMode::default()).unwrap();
    export.trim(3 * BLOCK_BYTES, BLOCK_BYTES, false).unwrap();
    assert_eq!(export.try_write_now(9 * BLOCK_BYTES, &[1; 10]).is_ok(), export.try_read_now(0, &mut [0; 1]).is_ok());
    assert!([0, 2, 3, 9].iter().all(|block| volume.peek().contains(*block)), "{:?}", volume.peek());
    let expected = [(BLOCK_BYTES, 1), (BLOCK_BYTES, 0), (2 * BLOCK_BYTES, 1), (BLOCK_BYTES, 0)];
    assert_eq!(status(&export, CONTEXT_DIRTY, 0, 5 * BLOCK_BYTES), expected);
    assert_eq!(status(&export, CONTEXT_DIRTY, 100, BLOCK_BYTES), [(BLOCK_BYTES - 100, 1), (100, 0)]);
    assert!(export.block_status("other:context", 0, 512, &mut Extents::new(512, 1)).is_err());
    // A missing block is no hole, whatever the image has there.
    volume.begin_pull(UnitSet::full(BLOCKS), Arc::new(|_| ()));
    assert_eq!(status(&export, CONTEXT_ALLOCATION, 0, size), [(size, 0)]);
    assert!(!export.is_zero(0, size));
    assert_eq!(export.try_read_now(0, &mut [0; 1]).unwrap(), Now::WouldBlock);
    assert_eq!(export.try_write_now(0, &[0; 1]).unwrap(), Now::WouldBlock);
}
