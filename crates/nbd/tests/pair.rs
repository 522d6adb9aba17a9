//! Our client against our server, over an in-memory stream: what a vector of bytes would do, the export does.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use proptest::prelude::*;
use tokio::{io::DuplexStream, sync::Semaphore, task::JoinHandle};
use whimbrel_nbd::{
    Access, Backend, BlockSizes, Client, ClientOptions, Ended, ErrorCode, Exports, Extents, FileBackend, Limits,
    MemoryBackend, NbdError, Now, Shutdown, ShutdownHandle, StatusExtent, ZeroMode,
    protocol::{CONTEXT_ALLOCATION, allocation},
    serve_connection,
};

type Serving = JoinHandle<Result<Ended, NbdError>>;

fn serve(exports: Arc<Exports>) -> (DuplexStream, Serving) {
    serve_until(exports, Shutdown::never(), 64 << 10)
}

fn serve_until(exports: Arc<Exports>, shutdown: Shutdown, buffer: usize) -> (DuplexStream, Serving) {
    let (ours, theirs) = tokio::io::duplex(buffer);
    (ours, tokio::spawn(serve_connection(theirs, exports, shutdown)))
}

fn options(structured: bool, contexts: &[&str]) -> ClientOptions {
    let contexts = contexts.iter().map(|context| (*context).to_owned()).collect();
    ClientOptions { structured, contexts, ..ClientOptions::default() }
}

/// Passes everything on, but never answers at once, so that every request takes the blocking pool.
struct Slow<B>(B);

impl<B: Backend> Backend for Slow<B> {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
    fn contexts(&self) -> Vec<String> {
        self.0.contexts()
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, buffer)
    }
    fn write(&self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        self.0.write(offset, data, fua)
    }
    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> io::Result<()> {
        self.0.write_zeroes(offset, length, mode)
    }
    fn block_status(&self, context: &str, offset: u64, length: u64, extents: &mut Extents) -> io::Result<()> {
        self.0.block_status(context, offset, length, extents)
    }
}

#[derive(Debug, Clone)]
enum Act {
    Read(u64, usize),
    Write(u64, usize, u8, bool),
    Zero(u64, u64, ZeroMode),
    Flush,
    Status(u64, u64),
}

const SIZE: u64 = 700_000;

fn act() -> impl Strategy<Value = Act> {
    let range = (0..SIZE).prop_flat_map(|offset| {
        let most = SIZE - offset;
        let length = prop_oneof![1..=most.min(5000), 1..=most];
        (Just(offset), length)
    });
    prop_oneof![
        range.clone().prop_map(|(offset, length)| Act::Read(offset, length as usize)),
        (range.clone(), any::<u8>(), any::<bool>()).prop_map(|((offset, length), fill, fua)| Act::Write(
            offset,
            length as usize,
            fill,
            fua
        )),
        (range.clone(), any::<(bool, bool)>()).prop_map(|((offset, length), (may_trim, fua))| Act::Zero(
            offset,
            length,
            ZeroMode { may_trim, fua, fast: false }
        )),
        Just(Act::Flush),
        range.prop_map(|(offset, length)| Act::Status(offset, length)),
    ]
}

async fn compare(client: &Client, model: &mut [u8], acts: &[Act]) {
    for act in acts {
        match *act {
            Act::Read(offset, length) => {
                let data = client.read(offset, length).await.unwrap();
                assert!(data == model[offset as usize..][..length], "read {offset} {length}");
            }
            Act::Write(offset, length, fill, fua) => {
                let data: Vec<u8> = (0..length).map(|i| fill.wrapping_add(i as u8)).collect();
                model[offset as usize..][..length].copy_from_slice(&data);
                client.write(offset, data, fua).await.unwrap();
            }
            Act::Zero(offset, length, mode) => {
                model[offset as usize..][..length as usize].fill(0);
                client.write_zeroes(offset, length, mode).await.unwrap();
            }
            Act::Flush => client.flush().await.unwrap(),
            Act::Status(offset, length) => {
                if client.info().contexts.is_empty() {
                    continue;
                }
                let status = client.block_status_all(CONTEXT_ALLOCATION, offset, length).await;
                let mut position = offset as usize;
                for StatusExtent { length, flags } in status.unwrap() {
                    let range = &model[position..][..length as usize];
                    assert!(flags & allocation::ZERO == 0 || range.iter().all(|b| *b == 0));
                    position += length as usize;
                }
                assert_eq!(position as u64, offset + length);
            }
        }
    }
    let all = client.read(0, model.len()).await.unwrap();
    assert!(all == model, "the whole content at the end");
}

fn run(acts: &[Act], structured: bool, backend: Arc<dyn Backend>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (stream, serving) = serve(Arc::new(Exports::single(backend)));
        let contexts: &[&str] = if structured { &[CONTEXT_ALLOCATION] } else { &[] };
        let client = Client::connect(stream, "", options(structured, contexts)).await.unwrap();
        let mut model = vec![0; SIZE as usize];
        compare(&client, &mut model, acts).await;
        client.disconnect().await;
        assert_eq!(serving.await.unwrap().unwrap(), Ended::Disconnected);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn an_export_is_a_vector_of_bytes(acts in prop::collection::vec(act(), 1..24), structured: bool, kind in 0..3) {
        let memory = || MemoryBackend::new(vec![0; SIZE as usize]);
        let backend: Arc<dyn Backend> = match kind {
            0 => Arc::new(memory()),
            1 => Arc::new(Slow(memory())),
            _ => {
                let file = tempfile::tempfile().unwrap();
                file.set_len(SIZE).unwrap();
                Arc::new(FileBackend::from_file(file, Access::ReadWrite).unwrap())
            }
        };
        run(&acts, structured, backend);
    }
}

/// Reads below `OPEN` are answered at once, reads above wait for a permit.
struct Gate {
    waiting: AtomicUsize,
    gate: Semaphore,
}

const OPEN: u64 = 1 << 20;

impl Gate {
    fn new() -> Self {
        Self { waiting: AtomicUsize::new(0), gate: Semaphore::new(0) }
    }
}

impl Backend for Gate {
    fn size_bytes(&self) -> u64 {
        2 * OPEN
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if offset >= OPEN {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let permit = tokio::runtime::Handle::current().block_on(self.gate.acquire());
            permit.map_err(io::Error::other)?.forget();
        }
        buffer.fill(7);
        Ok(())
    }
    fn write(&self, _offset: u64, _data: &[u8], _fua: bool) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(28))
    }
    fn flush(&self) -> io::Result<()> {
        panic!("a backend that panics");
    }
    fn try_read_now(&self, offset: u64, buffer: &mut [u8]) -> io::Result<Now> {
        if offset >= OPEN {
            return Ok(Now::WouldBlock);
        }
        self.read(offset, buffer).map(|()| Now::Done)
    }
}

#[tokio::test]
async fn a_read_that_waits_delays_nobody_else() {
    let gate = Arc::new(Gate::new());
    let limits = Limits { blocking_calls: 4, ..Limits::default() };
    let exports = Arc::new(Exports::single(gate.clone()).with_limits(limits));
    let (stream, serving) = serve(exports);
    let client = Client::connect(stream, "", ClientOptions::default()).await.unwrap();
    // More than may run at the same time, so that some wait in the queue.
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let client = client.clone();
        waiting.push(tokio::spawn(async move { client.read(OPEN, 4096).await }));
    }
    while gate.waiting.load(Ordering::SeqCst) < 4 {
        tokio::task::yield_now().await;
    }
    for offset in 0..64 {
        assert_eq!(client.read(offset * 4096, 4096).await.unwrap(), [7; 4096]);
    }
    assert!(waiting.iter().all(|task| !task.is_finished()));
    gate.gate.add_permits(8);
    for task in waiting {
        assert_eq!(task.await.unwrap().unwrap(), [7; 4096]);
    }
    client.disconnect().await;
    assert_eq!(serving.await.unwrap().unwrap(), Ended::Disconnected);
}

#[tokio::test]
async fn a_backend_that_fails_or_panics_is_an_error_and_not_the_end() {
    for structured in [false, true] {
        let (stream, serving) = serve(Arc::new(Exports::single(Arc::new(Gate::new()))));
        let client = Client::connect(stream, "", options(structured, &[])).await.unwrap();
        let code = |result: Result<(), NbdError>| match result {
            Err(NbdError::Server { code, .. }) => code,
            other => panic!("expected an error of the server, not {other:?}"),
        };
        assert_eq!(code(client.write(0, vec![1; 4096], false).await), ErrorCode::NoSpace);
        assert_eq!(code(client.flush().await), ErrorCode::Io);
        let fast = ZeroMode { fast: true, ..ZeroMode::default() };
        assert_eq!(code(client.write_zeroes(0, 4096, fast).await), ErrorCode::NotSupported);
        assert_eq!(client.read(0, 4096).await.unwrap(), [7; 4096]);
        client.disconnect().await;
        assert_eq!(serving.await.unwrap().unwrap(), Ended::Disconnected);
    }
}

#[tokio::test]
async fn requests_out_of_range_or_not_permitted_get_the_error_of_the_protocol() {
    let memory = || MemoryBackend::new(vec![1; 1 << 20]);
    let sizes = BlockSizes { minimum: 512, preferred: 4096, maximum: 64 << 10 };
    let exports = Exports::new()
        .with("disk", Arc::new(memory()))
        .with("fixed", Arc::new(memory().into_read_only()))
        .with("aligned", Arc::new(memory().with_block_sizes(sizes)))
        .with_default("disk");
    let exports = Arc::new(exports);
    let connect = |name: &'static str| {
        let (stream, _) = serve(Arc::clone(&exports));
        Client::connect(stream, name, ClientOptions::default())
    };
    let code = |result: Result<(), NbdError>| match result {
        Err(NbdError::Server { code, .. }) => code,
        other => panic!("expected an error of the server, not {other:?}"),
    };
    let read = |result: Result<Vec<u8>, NbdError>| result.map(|_| ());

    let disk = connect("").await.unwrap();
    assert_eq!((disk.info().name.as_str(), disk.size_bytes()), ("disk", 1 << 20));
    assert_eq!(code(read(disk.read(1 << 20, 1).await)), ErrorCode::Invalid);
    assert_eq!(code(read(disk.read(u64::MAX, 2).await)), ErrorCode::Invalid);
    assert_eq!(code(disk.write((1 << 20) - 1, vec![0; 2], false).await), ErrorCode::NoSpace);
    assert_eq!(code(disk.trim(1 << 40, 1, false).await), ErrorCode::Invalid);
    assert_eq!(code(disk.write_zeroes(1 << 40, 1, ZeroMode::default()).await), ErrorCode::NoSpace);
    assert_eq!(disk.read(0, 3).await.unwrap(), [1; 3]);

    let fixed = connect("fixed").await.unwrap();
    assert!(fixed.info().read_only());
    assert_eq!(code(fixed.write(0, vec![0; 9], false).await), ErrorCode::NotPermitted);
    assert_eq!(code(fixed.trim(0, 9, false).await), ErrorCode::NotPermitted);
    assert_eq!(fixed.read(0, 3).await.unwrap(), [1; 3]);

    let aligned = connect("aligned").await.unwrap();
    assert_eq!(aligned.info().block_sizes, sizes);
    assert_eq!(code(read(aligned.read(1, 512).await)), ErrorCode::Invalid);
    // Longer than the maximum: the client splits it.
    assert_eq!(aligned.read(0, 1 << 20).await.unwrap(), vec![1; 1 << 20]);

    assert!(matches!(connect("none").await, Err(NbdError::Refused { .. })));
    let (stream, _) = serve(Arc::clone(&exports));
    let names: Vec<_> = Client::list(stream).await.unwrap().into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["aligned", "disk", "fixed"]);
    let (stream, _) = serve(Arc::clone(&exports));
    let info = Client::query(stream, "disk").await.unwrap();
    assert_eq!(info.contexts, [(0, CONTEXT_ALLOCATION.to_owned())]);
    assert_eq!(info.description.as_deref(), Some("bytes in memory"));
}

/// Two contexts; every other block is dirty.
struct Marked;

impl Backend for Marked {
    fn size_bytes(&self) -> u64 {
        8 << 30
    }
    fn contexts(&self) -> Vec<String> {
        vec![CONTEXT_ALLOCATION.into(), "whimbrel:dirty".into()]
    }
    fn read(&self, _offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.fill(0);
        Ok(())
    }
    fn write(&self, _offset: u64, _data: &[u8], _fua: bool) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn is_zero(&self, _offset: u64, _length: u64) -> bool {
        true
    }
    fn block_status(&self, context: &str, offset: u64, length: u64, extents: &mut Extents) -> io::Result<()> {
        if context == CONTEXT_ALLOCATION {
            extents.push(length, allocation::HOLE | allocation::ZERO);
            return Ok(());
        }
        let mut block = offset >> 16;
        while extents.push(1 << 16, (block & 1) as u32) {
            block += 1;
        }
        Ok(())
    }
}

#[tokio::test]
async fn contexts_of_the_backend_are_answered_and_long_maps_come_in_parts() {
    let (stream, _) = serve(Arc::new(Exports::single(Arc::new(Marked))));
    let contexts = [CONTEXT_ALLOCATION, "whimbrel:dirty", "other:thing"];
    let client = Client::connect(stream, "", options(true, &contexts)).await.unwrap();
    let agreed: Vec<_> = client.info().contexts.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(agreed, contexts[..2]);
    let dirty = client.block_status_all("whimbrel:dirty", 0, 8 << 30).await.unwrap();
    assert_eq!(dirty.len(), 8 << 14);
    assert!(dirty.iter().enumerate().all(|(i, extent)| (extent.length, extent.flags) == (1 << 16, (i & 1) as u32)));
    let hole = StatusExtent { length: 8 << 30, flags: 3 };
    assert_eq!(client.block_status_all(CONTEXT_ALLOCATION, 0, 8 << 30).await.unwrap(), [hole]);
    assert!(matches!(client.block_status("other:thing", 0, 1).await, Err(NbdError::InvalidRequest(_))));
    // A hole on the wire is zeroes in the buffer, whatever was there.
    let buffer = client.read_into(4096, vec![9; 1 << 20]).await.unwrap();
    assert!(buffer == vec![0; 1 << 20]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_are_in_flight_on_several_connections() {
    let memory = Arc::new(MemoryBackend::new(vec![0; 1 << 20]));
    let exports = Arc::new(Exports::single(memory.clone()));
    let mut writers = Vec::new();
    for connection in 0..4_u64 {
        let (stream, _) = serve(Arc::clone(&exports));
        let client = Client::connect(stream, "", ClientOptions::default()).await.unwrap();
        for part in 0..64 {
            let (client, offset) = (client.clone(), (connection * 64 + part) * 4096);
            writers.push(tokio::spawn(async move {
                let fill = (offset / 4096) as u8;
                client.write(offset, vec![fill; 4096], part % 8 == 0).await?;
                client.read(offset, 4096).await.map(|data| assert_eq!(data, [fill; 4096]))
            }));
        }
    }
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    let all = memory.snapshot();
    assert!(all.chunks(4096).enumerate().all(|(i, block)| block.iter().all(|b| *b == i as u8)));
}

#[tokio::test]
async fn shutdown_answers_what_is_in_flight() {
    let gate = Arc::new(Gate::new());
    let (handle, shutdown) = ShutdownHandle::new();
    let (stream, serving) = serve_until(Arc::new(Exports::single(gate.clone())), shutdown, 4096);
    let client = Client::connect(stream, "", ClientOptions::default()).await.unwrap();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.read(OPEN, 100_000).await }
    });
    while gate.waiting.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    handle.shut_down();
    gate.gate.add_permits(1);
    assert_eq!(waiting.await.unwrap().unwrap().len(), 100_000);
    assert_eq!(serving.await.unwrap().unwrap(), Ended::Shutdown);
    assert!(matches!(client.read(0, 1).await, Err(NbdError::Lost(_))));
    assert!(client.is_lost());
}

#[tokio::test]
async fn a_lost_connection_fails_all_that_wait_and_the_server_finishes_its_calls() {
    let gate = Arc::new(Gate::new());
    let (stream, serving) = serve(Arc::new(Exports::single(gate.clone())));
    let (near, mut far) = tokio::io::duplex(4096);
    let cut = Arc::new(Semaphore::new(0));
    let relay = tokio::spawn({
        let cut = Arc::clone(&cut);
        async move {
            let mut stream = stream;
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut far, &mut stream) => (),
                _ = cut.acquire() => (),
            }
        }
    });
    let client = Client::connect(near, "", ClientOptions::default()).await.unwrap();
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.read(OPEN, 4096).await })
        })
        .collect();
    while gate.waiting.load(Ordering::SeqCst) < 5 {
        tokio::task::yield_now().await;
    }
    cut.add_permits(1);
    relay.await.unwrap();
    for task in waiting {
        assert!(matches!(task.await.unwrap(), Err(NbdError::Lost(_))));
    }
    assert!(!serving.is_finished());
    gate.gate.add_permits(5);
    // Without replies to read the client counts as gone, in one of the ways to notice.
    assert!(matches!(serving.await.unwrap(), Ok(Ended::Closed) | Err(NbdError::Io(_))));
}

#[tokio::test]
async fn a_dropped_call_leaves_the_connection_in_order() {
    let gate = Arc::new(Gate::new());
    let (stream, serving) = serve(Arc::new(Exports::single(gate.clone())));
    let client = Client::connect(stream, "", ClientOptions::default()).await.unwrap();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.read(OPEN, 50_000).await }
    });
    while gate.waiting.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    gate.gate.add_permits(1);
    for _ in 0..9 {
        assert_eq!(client.read(0, 4096).await.unwrap(), [7; 4096]);
    }
    drop(client);
    assert_eq!(serving.await.unwrap().unwrap(), Ended::Disconnected);
}

/// Counts flushes.
struct Flushed(AtomicBool);

impl Backend for Flushed {
    fn size_bytes(&self) -> u64 {
        4096
    }
    fn read(&self, _offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.fill(1);
        Ok(())
    }
    fn write(&self, _offset: u64, _data: &[u8], _fua: bool) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        self.0.store(true, Ordering::SeqCst);
        Ok(())
    }
}

#[tokio::test]
async fn a_server_shuts_down_with_a_flush() {
    let backend = Arc::new(Flushed(AtomicBool::new(false)));
    let address = "127.0.0.1:0".parse().unwrap();
    let exports = Arc::new(Exports::single(backend.clone()));
    let server = whimbrel_nbd::Server::bind_tcp(address, exports).await.unwrap();
    let address = server.local_address().unwrap();
    let (handle, shutdown) = ShutdownHandle::new();
    let running = tokio::spawn(server.run(shutdown));
    let client = Client::connect_tcp(address, "", ClientOptions::default()).await.unwrap();
    assert_eq!(client.read(0, 9).await.unwrap(), [1; 9]);
    handle.shut_down();
    running.await.unwrap().unwrap();
    assert!(backend.0.load(Ordering::SeqCst));
    assert!(client.read(0, 9).await.is_err());
}
