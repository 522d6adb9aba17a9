//! The threads of delay lines end with their streams. Alone in its program, because it counts threads.

use socket2::SockRef;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;
use whimbrel_wire::{Class, LinkStream, Nic};

fn pair(nic: &Nic) -> (LinkStream, LinkStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let out = LinkStream::connect(listener.local_addr().unwrap(), nic, Class::Bulk).unwrap();
    (out, LinkStream::over(listener.accept().unwrap().0, nic, Class::Bulk).unwrap())
}

fn relays() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    tasks.filter_map(Result::ok).map(name).filter(|name| name.trim() == "delay").count()
}

fn wait_for_no_relays() {
    while relays() > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn no_thread_outlives_its_stream_for_long() {
    let nic = Nic::new(None, None, Duration::from_millis(1));
    let streams: Vec<_> = (0..10).map(|_| pair(&nic)).collect();
    while relays() < 20 {
        std::thread::yield_now();
    }
    drop(streams);
    wait_for_no_relays();

    let (mut a, mut b) = pair(&nic);
    a.write_all(b"what was written before the end").unwrap();
    drop(a);
    let mut heard = String::new();
    b.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "what was written before the end");
    drop(b);
    wait_for_no_relays();

    let (a, b) = pair(&nic);
    a.sever();
    drop((a, b));
    wait_for_no_relays();

    // A receiver that takes nothing: the relay gives up once its stream is dropped, and says so to the receiver.
    let (mut a, mut b) = pair(&nic);
    SockRef::from(&a.read_fd()).set_send_buffer_size(32 << 10).unwrap();
    SockRef::from(&b.read_fd()).set_recv_buffer_size(32 << 10).unwrap();
    let written = 2 << 20;
    a.write_all(&vec![7; written]).unwrap();
    drop(a);
    wait_for_no_relays_of(1);
    let mut heard = Vec::new();
    let _ = b.read_to_end(&mut heard);
    assert!(heard.len() < written, "{} of {written} bytes", heard.len());
}

/// The other side's own relay stays.
fn wait_for_no_relays_of(others: usize) {
    while relays() > others {
        std::thread::yield_now();
    }
}
