//! The link against its limits: the rate that was set, and TCP without a link. `cargo bench -p whimbrel-wire`.
//!
//! Both rivals run in turn on the loopback, with the same write size, from the same touched buffer into a reader that
//! discards; printed are medians and quartiles over the pairs. A rate is taken at the receiver, from the first byte to the last.

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use whimbrel_model::{ByteRate, Nanos, PAGE_BYTES};
use whimbrel_wire::{AsyncLinkStream, Bucket, Class, LinkStream, Nic, clock};

const PAIRS: usize = 31;

fn main() {
    // The test runner builds and runs benchmarks too: there they only have to start.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    println!("the rate that was set (1.000 is all of it, at least 0.98 is wanted)");
    for mbit in [100.0, 200.0, 1000.0, 5000.0] {
        let rate = ByteRate(mbit * 125e3);
        let lanes = [1, 4].map(|lanes| format!("{lanes} lanes {:.4}", shaped_blocking(rate, lanes) / rate.0));
        println!("  {mbit:>6} Mbit/s  blocking {}   tokio {:.4}", lanes.join(", "), shaped_tokio(rate) / rate.0);
    }
    println!("no limit, against bare TCP with the same write size");
    for kib in [4, 64, 256, 1024] {
        let bytes = kib << 10;
        let total = if kib < 64 { 64 << 20 } else { 256 << 20 };
        compare(&format!("{kib} KiB, blocking"), || bare(bytes, total), || link(Duration::ZERO, bytes, total));
        compare(&format!("{kib} KiB, tokio"), || bare_tokio(bytes, total), || link_tokio(bytes, total));
    }
    let (bytes, total) = (256 << 10, 256 << 20);
    let delay = Duration::from_millis(1);
    compare("256 KiB, blocking, 1 ms of delay", || bare(bytes, total), || link(delay, bytes, total));
    bucket_alone();
}

/// What asking an idle bucket costs.
fn bucket_alone() {
    let cost = |bucket: Bucket| {
        let bucket = std::sync::Arc::new(bucket);
        let start = Instant::now();
        for _ in 0..1_000_000 {
            black_box(bucket.book(black_box(Nanos(1)), 0, Class::Bulk));
        }
        start.elapsed().as_nanos() as f64 / 1e6
    };
    let limited = cost(Bucket::new(Some(ByteRate(1e9))));
    println!("one admission: {:.0} ns without a rate, {limited:.0} ns with one", cost(Bucket::unlimited()));
}

fn compare(what: &str, mut bare: impl FnMut() -> f64, mut ours: impl FnMut() -> f64) {
    bare();
    ours();
    let mut pairs: Vec<(f64, f64)> = (0..PAIRS).map(|_| (bare(), ours())).collect();
    pairs.sort_by(|a, b| (a.1 / a.0).total_cmp(&(b.1 / b.0)));
    let ratio = |at: usize| pairs[at].1 / pairs[at].0;
    let (low, middle, high) = (ratio(PAIRS / 4), ratio(PAIRS / 2), ratio(PAIRS * 3 / 4));
    let (bare, ours) = pairs[PAIRS / 2];
    println!("  {what:<34} {middle:.3}  ({low:.3} to {high:.3}; {:.2} of {:.2} GB/s)", ours / 1e9, bare / 1e9);
}

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback is there");
    let out = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
    let (inward, _) = listener.accept().expect("somebody connected");
    out.set_nodelay(true).expect("a TCP socket");
    (out, inward)
}

/// Reads to the end; returns the rate from the first byte on.
fn drain(mut stream: impl Read) -> f64 {
    let mut buffer = vec![1; 1 << 20];
    let mut total = stream.read(&mut buffer).expect("the link holds");
    let first = clock::now();
    loop {
        match stream.read(&mut buffer).expect("the link holds") {
            0 => break,
            bytes => total += bytes,
        }
    }
    total as f64 * 1e9 / clock::now().since(first).0 as f64
}

async fn drain_tokio(mut stream: impl AsyncReadExt + Unpin) -> f64 {
    let mut buffer = vec![1; 1 << 20];
    let mut total = stream.read(&mut buffer).await.expect("the link holds");
    let first = clock::now();
    loop {
        match stream.read(&mut buffer).await.expect("the link holds") {
            0 => break,
            bytes => total += bytes,
        }
    }
    total as f64 * 1e9 / clock::now().since(first).0 as f64
}

fn send(mut stream: impl Write, bytes: usize, total: usize) {
    let buffer = vec![1; bytes];
    for _ in 0..total / bytes {
        stream.write_all(&buffer).expect("the link holds");
    }
}

async fn send_tokio(mut stream: impl AsyncWriteExt + Unpin, bytes: usize, total: usize) {
    let buffer = vec![1; bytes];
    for _ in 0..total / bytes {
        stream.write_all(&buffer).await.expect("the link holds");
    }
}

fn bare(bytes: usize, total: usize) -> f64 {
    let (out, inward) = sockets();
    let reader = std::thread::spawn(move || drain(inward));
    send(out, bytes, total);
    reader.join().expect("the reader ends")
}

fn link(delay: Duration, bytes: usize, total: usize) -> f64 {
    let (out, inward) = sockets();
    let out = LinkStream::over(out, &Nic::new(None, None, delay), Class::Bulk).expect("a TCP socket");
    let inward = LinkStream::over(inward, &Nic::unlimited(), Class::Bulk).expect("a TCP socket");
    let reader = std::thread::spawn(move || drain(inward));
    send(out, bytes, total);
    reader.join().expect("the reader ends")
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("a runtime")
}

fn to_tokio(socket: TcpStream) -> tokio::net::TcpStream {
    socket.set_nonblocking(true).expect("a socket");
    tokio::net::TcpStream::from_std(socket).expect("within the runtime")
}

fn bare_tokio(bytes: usize, total: usize) -> f64 {
    runtime().block_on(async {
        let (out, inward) = sockets();
        let reader = tokio::spawn(drain_tokio(to_tokio(inward)));
        let out = to_tokio(out);
        tokio::spawn(send_tokio(out, bytes, total)).await.expect("the writer ends");
        reader.await.expect("the reader ends")
    })
}

fn link_tokio(bytes: usize, total: usize) -> f64 {
    runtime().block_on(async {
        let (out, inward) = sockets();
        let over = |socket| AsyncLinkStream::over(to_tokio(socket), &Nic::unlimited(), Class::Bulk);
        let (out, inward) = (over(out).expect("a TCP socket"), over(inward).expect("a TCP socket"));
        let reader = tokio::spawn(drain_tokio(inward));
        tokio::spawn(send_tokio(out, bytes, total)).await.expect("the writer ends");
        reader.await.expect("the reader ends")
    })
}

/// A second's worth, and so much more that the credit and the debt of a burst each weigh less than a thousandth.
fn worth(nic: &Nic, rate: ByteRate) -> usize {
    (rate.0 as u64).max(1000 * nic.egress().burst_bytes()).min((rate.0 * 4.0) as u64) as usize
}

/// What reached the receivers, less the first burst, which comes at once.
fn shaped_blocking(rate: ByteRate, lanes: usize) -> f64 {
    let nic = Nic::new(Some(rate), None, Duration::ZERO);
    let total = worth(&nic, rate) / lanes;
    let chunk = (nic.egress().burst_bytes() / PAGE_BYTES * PAGE_BYTES) as usize;
    std::thread::scope(|scope| {
        for _ in 0..lanes {
            let (out, inward) = sockets();
            let out = LinkStream::over(out, &nic, Class::Bulk).expect("a TCP socket");
            scope.spawn(move || drain(inward));
            scope.spawn(move || send(out, chunk, total));
        }
    });
    beyond_credit(&nic)
}

fn shaped_tokio(rate: ByteRate) -> f64 {
    let nic = Nic::new(Some(rate), None, Duration::ZERO);
    let total = worth(&nic, rate);
    runtime().block_on(async {
        let (out, inward) = sockets();
        let reader = tokio::spawn(drain_tokio(to_tokio(inward)));
        let out = AsyncLinkStream::over(to_tokio(out), &nic, Class::Bulk).expect("a TCP socket");
        tokio::spawn(send_tokio(out, 256 << 10, total)).await.expect("the writer ends");
        reader.await.expect("the reader ends");
    });
    beyond_credit(&nic)
}

/// The rate by the card's own books without the two bursts that may come for free, so that it is never flattered.
fn beyond_credit(nic: &Nic) -> f64 {
    let sent = nic.traffic().sent();
    let span = sent.last.expect("bytes went").since(sent.first.expect("bytes went"));
    (sent.wire_bytes - 2 * nic.egress().burst_bytes()) as f64 * 1e9 / span.0 as f64
}
