//! What the protocol costs by itself: the codec, and client and server over an in-memory stream with a backend in memory.

use std::{hint::black_box, sync::Arc};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::task::JoinSet;
use whimbrel_nbd::{Client, ClientOptions, Exports, MemoryBackend, Shutdown, protocol::Request, serve_connection};

const SIZE_BYTES: usize = 16 << 20;

fn codec(criterion: &mut Criterion) {
    let request = Request { flags: 0, command: 1, cookie: 2, offset: 3 << 20, length: 4096 };
    criterion.bench_function("request, encoded and decoded", |bencher| {
        bencher.iter(|| Request::decode(&black_box(request).encode()).expect("what was encoded"));
    });
}

fn serving(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let client = runtime.block_on(async {
        let exports = Arc::new(Exports::single(Arc::new(MemoryBackend::new(vec![1; SIZE_BYTES]))));
        let (ours, theirs) = tokio::io::duplex(256 << 10);
        tokio::spawn(serve_connection(theirs, exports, Shutdown::never()));
        Client::connect(ours, "", ClientOptions::default()).await.expect("a connection")
    });
    for (length, depth) in [(4096, 1), (4096, 32), (256 << 10, 4)] {
        let mut group = criterion.benchmark_group(format!("{length} bytes at depth {depth}"));
        group.throughput(Throughput::Bytes((length * depth) as u64));
        group.bench_function("read", |bencher| {
            bencher.iter(|| runtime.block_on(reads(&client, length, depth)));
        });
        group.bench_function("write", |bencher| {
            bencher.iter(|| runtime.block_on(writes(&client, length, depth)));
        });
        group.finish();
    }
}

async fn reads(client: &Client, length: usize, depth: usize) {
    let mut tasks = JoinSet::new();
    for part in 0..depth {
        let client = client.clone();
        tasks.spawn(async move {
            let data = client.read((part * length) as u64, length).await.expect("a read");
            client.give_buffer(data);
        });
    }
    tasks.join_all().await;
}

async fn writes(client: &Client, length: usize, depth: usize) {
    let mut tasks = JoinSet::new();
    for part in 0..depth {
        let client = client.clone();
        tasks.spawn(async move {
            let data = client.take_buffer(length);
            client.write((part * length) as u64, data, false).await.expect("a write");
        });
    }
    tasks.join_all().await;
}

criterion_group!(benches, codec, serving);
criterion_main!(benches);
