//! The link over real TCP on the loopback: content, order, ends, limits, delay and failure, in both forms.

use proptest::prelude::*;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use whimbrel_model::{ByteRate, Nanos, Rng};
use whimbrel_wire::{AsyncLinkStream, Class, LinkStream, Nic};

fn pair(here: &Nic, there: &Nic) -> (LinkStream, LinkStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let out = LinkStream::connect(listener.local_addr().unwrap(), here, Class::Bulk).unwrap();
    (out, LinkStream::over(listener.accept().unwrap().0, there, Class::Bulk).unwrap())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..bytes.div_ceil(8)).flat_map(|_| rng.next_u64().to_le_bytes()).take(bytes).collect()
}

fn limited(rate: f64) -> Nic {
    Nic::new(Some(ByteRate(rate)), None, Duration::ZERO)
}

fn delayed(delay: Duration) -> Nic {
    Nic::new(None, None, delay)
}

/// A card, by its limits and its delay.
fn cards() -> impl Strategy<Value = Nic> {
    let rate = prop_oneof![Just(None), (2e7..2e9).prop_map(|rate| Some(ByteRate(rate)))];
    (rate.clone(), rate, prop_oneof![Just(0u64), 1u64..3000])
        .prop_map(|(egress, ingress, delay_us)| Nic::new(egress, ingress, Duration::from_micros(delay_us)))
}

/// Writes `bytes` in random pieces, ends the writing, and reads until the other side's end.
fn talk(stream: &LinkStream, bytes: &[u8], seed: u64) -> Vec<u8> {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut rng, mut rest, mut stream) = (Rng::new(seed), bytes, stream);
            while !rest.is_empty() {
                let (piece, after) = rest.split_at((1 + rng.below(90_000) as usize).min(rest.len()));
                stream.write_all(piece).unwrap();
                rest = after;
            }
            stream.shutdown_write().unwrap();
        });
        let mut heard = Vec::new();
        { stream }.read_to_end(&mut heard).unwrap();
        heard
    })
}

async fn talk_async(stream: AsyncLinkStream, bytes: &[u8], seed: u64) -> Vec<u8> {
    let (mut reader, mut writer) = stream.into_split();
    let write = async {
        let (mut rng, mut rest) = (Rng::new(seed), bytes);
        while !rest.is_empty() {
            let (piece, after) = rest.split_at((1 + rng.below(90_000) as usize).min(rest.len()));
            let (a, b) = piece.split_at(piece.len() / 3);
            let written = writer.write_vectored(&[IoSlice::new(a), IoSlice::new(b)]).await.unwrap();
            writer.write_all(&piece[written..]).await.unwrap();
            rest = after;
        }
        drop(writer);
    };
    let mut heard = Vec::new();
    let read = reader.read_to_end(&mut heard);
    tokio::join!(write, read).1.unwrap();
    heard
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn bytes_arrive_whole_and_in_order_over_any_card(
        here in cards(), there in cards(), out in 0usize..600_000, back in 0usize..200_000, seed in any::<u64>(),
    ) {
        let (a, b) = pair(&here, &there);
        let (out, back) = (noise(seed, out), noise(seed ^ 1, back));
        let (at_a, at_b) = std::thread::scope(|scope| {
            let other = scope.spawn(|| talk(&b, &back, seed));
            (talk(&a, &out, seed), other.join().unwrap())
        });
        prop_assert!(at_b == out && at_a == back);
        for (card, sent, received) in [(&here, &out, &back), (&there, &back, &out)] {
            prop_assert_eq!(card.traffic().sent().wire_bytes, sent.len() as u64);
            prop_assert_eq!(card.traffic().received().wire_bytes, received.len() as u64);
        }
    }

    #[test]
    fn the_form_for_tokio_carries_the_same(
        here in cards(), there in cards(), out in 0usize..600_000, back in 0usize..200_000, seed in any::<u64>(),
    ) {
        let (out, back) = (noise(seed, out), noise(seed ^ 1, back));
        let (at_a, at_b) = runtime().block_on(async {
            let (a, b) = pair(&here, &there);
            tokio::join!(talk_async(a.into_async().unwrap(), &out, seed),
                         talk_async(b.into_async().unwrap(), &back, seed))
        });
        prop_assert!(at_b == out && at_a == back);
        for (card, sent, received) in [(&here, &out, &back), (&there, &back, &out)] {
            prop_assert_eq!(card.traffic().sent().wire_bytes, sent.len() as u64);
            prop_assert_eq!(card.traffic().received().wire_bytes, received.len() as u64);
        }
    }
}

/// The least time that `bytes` take at the rate: credit and debt of a burst each come for free.
fn least_time(card: &Nic, bytes: u64) -> Duration {
    let bucket = card.egress();
    bucket.rate().unwrap().time_for(bytes - 2 * bucket.burst_bytes()).into()
}

#[test]
fn several_streams_together_are_held_to_their_cards_rate() {
    let (here, there) = (limited(20e6), Nic::unlimited());
    let bytes = noise(1, 1_000_000);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let (mut a, mut b) = pair(&here, &there);
                let reader = scope.spawn(move || b.read_to_end(&mut Vec::new()).unwrap());
                a.write_all(&bytes).unwrap();
                drop(a);
                assert_eq!(reader.join().unwrap(), 1_000_000);
            });
        }
    });
    assert!(start.elapsed() >= least_time(&here, 3_000_000), "{:?}", start.elapsed());
    assert_eq!(there.traffic().received().wire_bytes, 3_000_000);
}

#[test]
fn streams_of_both_forms_share_their_cards_rate() {
    let (here, there) = (limited(20e6), Nic::unlimited());
    let bytes = noise(1, 1_500_000);
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (a, b) = pair(&here, &there);
            scope.spawn(move || talk(&b, &[], 0));
            talk(&a, &bytes, 3);
        });
        runtime().block_on(async {
            let (a, b) = pair(&here, &there);
            let other = talk_async(b.into_async().unwrap(), &[], 0);
            tokio::join!(talk_async(a.into_async().unwrap(), &bytes, 3), other);
        });
    });
    assert!(start.elapsed() >= least_time(&here, 3_000_000), "{:?}", start.elapsed());
}

#[test]
fn what_arrives_is_held_to_the_receivers_rate() {
    for blocks in [true, false] {
        let there = Nic::new(None, Some(ByteRate(20e6)), Duration::ZERO);
        let bytes = noise(1, 2_000_000);
        let start = Instant::now();
        let heard = runtime().block_on(async {
            let (a, b) = pair(&Nic::unlimited(), &there);
            let sender = std::thread::spawn(move || talk(&a, &bytes, 1));
            let heard = if blocks { talk(&b, &[], 0) } else { talk_async(b.into_async().unwrap(), &[], 0).await };
            sender.join().unwrap();
            heard
        });
        assert_eq!(heard.len(), 2_000_000);
        // The last burst that was read may still be owed.
        let least: Duration = ByteRate(20e6).time_for(2_000_000 - 3 * (64 << 10)).into();
        assert!(start.elapsed() >= least, "{:?}", start.elapsed());
    }
}

#[test]
fn a_caller_admits_and_then_writes_for_itself() {
    for nic in [limited(500e6), delayed(Duration::from_micros(300))] {
        let (a, mut b) = pair(&nic, &Nic::unlimited());
        let bytes = noise(5, 400_000);
        let (first, second) = bytes.split_at(150_000);
        a.admit(400_000, Class::Bulk);
        let pieces = [IoSlice::new(first), IoSlice::new(second)];
        let written = rustix::io::writev(a.fd(), &pieces).unwrap();
        rustix_write_all(&a, &bytes[written..]);
        a.shutdown_write().unwrap();
        let mut heard = Vec::new();
        b.read_to_end(&mut heard).unwrap();
        assert!(heard == bytes);
        assert_eq!(nic.traffic().sent().wire_bytes, 400_000);
    }
}

fn rustix_write_all(stream: &LinkStream, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        bytes = &bytes[rustix::io::write(stream.fd().as_fd(), bytes).unwrap()..];
    }
}

#[test]
fn a_round_trip_takes_at_least_both_delays() {
    let (here, there) = (delayed(Duration::from_millis(3)), delayed(Duration::from_millis(5)));
    let (mut a, mut b) = pair(&here, &there);
    let echo = std::thread::spawn(move || {
        let mut byte = [0];
        while b.read(&mut byte).unwrap() > 0 {
            b.write_all(&byte).unwrap();
        }
    });
    for ping in 0..10 {
        let start = Instant::now();
        a.write_all(&[ping]).unwrap();
        let mut byte = [0];
        a.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [ping]);
        assert!(start.elapsed() >= Duration::from_millis(8), "{:?}", start.elapsed());
    }
    a.shutdown_write().unwrap();
    echo.join().unwrap();
}

#[test]
fn a_stream_changes_its_form_in_mid_conversation() {
    for nic in [Nic::unlimited(), delayed(Duration::from_micros(500))] {
        runtime().block_on(async {
            let (mut a, b) = pair(&nic, &nic);
            a.write_all(b"first, second, third").unwrap();
            let mut b = b.into_async().unwrap();
            let mut word = [0; 7];
            b.read_exact(&mut word).await.unwrap();
            assert_eq!(&word, b"first, ");
            b.write_all(b"answer").await.unwrap();
            let mut b = b.into_blocking().unwrap();
            let mut word = [0; 8];
            b.read_exact(&mut word).unwrap();
            assert_eq!(&word, b"second, ");
            b.write_all(b"s").unwrap();
            let mut b = b.into_async().unwrap();
            let mut word = [0; 5];
            b.read_exact(&mut word).await.unwrap();
            assert_eq!(&word, b"third");
            drop(b);
            let mut answer = String::new();
            a.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "answers");
        });
    }
}

#[test]
fn a_dropped_writer_ends_one_direction_only() {
    for nic in [Nic::unlimited(), delayed(Duration::from_micros(500))] {
        runtime().block_on(async {
            let (a, b) = pair(&nic, &nic);
            let (mut reader, writer) = a.into_async().unwrap().into_split();
            drop(writer);
            let mut b = b.into_async().unwrap();
            assert_eq!(b.read(&mut [0; 8]).await.unwrap(), 0);
            b.write_all(b"still here").await.unwrap();
            b.shutdown().await.unwrap();
            let mut heard = String::new();
            reader.read_to_string(&mut heard).await.unwrap();
            assert_eq!(heard, "still here");
        });
    }
}

/// Writes until it fails.
fn write_to_the_end(mut stream: impl Write) -> ErrorKind {
    let bytes = vec![7; 100_000];
    loop {
        if let Err(error) = stream.write_all(&bytes) {
            return error.kind();
        }
    }
}

const BROKEN: [ErrorKind; 3] = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset, ErrorKind::ConnectionAborted];

#[test]
fn a_writer_learns_that_the_other_side_has_gone() {
    for nic in [Nic::unlimited(), delayed(Duration::from_micros(500))] {
        let (a, b) = pair(&nic, &nic);
        drop(b);
        let kind = write_to_the_end(&a);
        assert!(BROKEN.contains(&kind), "{kind:?}");
    }
}

#[test]
fn an_idle_writer_learns_of_it_too() {
    // The relay has nothing to send when the connection fails; the next write must not vanish in it.
    let (a, b) = pair(&delayed(Duration::from_millis(1)), &Nic::unlimited());
    b.sever();
    a.sever();
    let kind = write_to_the_end(&a);
    assert!(BROKEN.contains(&kind), "{kind:?}");
}

#[test]
fn a_severed_link_wakes_both_sides() {
    for nic in [Nic::unlimited(), delayed(Duration::from_millis(2)), limited(1e6)] {
        let (a, b) = pair(&nic, &nic);
        let severer = a.severer();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| write_to_the_end(&a));
            let reader = scope.spawn(|| std::io::copy(&mut { &b }, &mut std::io::sink()));
            severer.sever();
            let kind = writer.join().unwrap();
            assert!(BROKEN.contains(&kind), "{kind:?}");
            // The end, or a failure if bytes were on their way; never a hang.
            let _ = reader.join().unwrap();
        });
        drop((a, b));
        severer.sever();
    }
}

#[test]
fn a_severed_link_wakes_tokio_too() {
    for nic in [Nic::unlimited(), delayed(Duration::from_millis(2))] {
        runtime().block_on(async {
            let (a, b) = pair(&nic, &nic);
            let severer = b.severer();
            let (a, mut b) = (a.into_async().unwrap(), b.into_async().unwrap());
            let (mut reader, mut writer) = a.into_split();
            let write = async {
                loop {
                    if let Err(error) = writer.write_all(&[7; 100_000]).await {
                        return error.kind();
                    }
                }
            };
            let sink = async { tokio::io::copy(&mut b, &mut tokio::io::sink()).await };
            let cut = async {
                tokio::task::yield_now().await;
                severer.sever();
            };
            let (kind, _, ()) = tokio::join!(write, sink, cut);
            assert!(BROKEN.contains(&kind), "{kind:?}");
            let _ = reader.read(&mut [0; 8]).await;
        });
    }
}

#[test]
fn a_raised_rate_frees_who_waits() {
    let nic = limited(1.0);
    let (a, b) = pair(&nic, &Nic::unlimited());
    let bytes = noise(3, 300_000);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| talk(&b, &[], 0));
        scope.spawn(|| talk(&a, &bytes, 0));
        // The writer is past its credit once the bucket is in debt.
        while nic.egress().reserve(whimbrel_wire::clock::now(), 0, Class::Urgent) <= whimbrel_wire::clock::now() {
            std::thread::yield_now();
        }
        nic.egress().set_rate(whimbrel_wire::clock::now(), None);
        assert!(reader.join().unwrap() == bytes);
    });
}

#[test]
fn a_write_that_is_given_up_while_it_waits_leaves_the_stream_usable() {
    let nic = limited(10e6);
    runtime().block_on(async {
        let (a, b) = pair(&nic, &Nic::unlimited());
        let mut a = a.into_async().unwrap();
        let reader = std::thread::spawn(move || talk(&b, &[], 0));
        nic.egress().charge(whimbrel_wire::clock::now(), 400_000);
        let given_up = tokio::time::timeout(Duration::from_millis(1), a.write(b"never")).await;
        assert!(given_up.is_err());
        a.write_all(b"in the end").await.unwrap();
        a.shutdown().await.unwrap();
        drop(a);
        assert_eq!(reader.join().unwrap(), b"in the end");
    });
}

#[test]
fn the_books_give_a_rate() {
    let nic = limited(50e6).for_session();
    let (a, b) = pair(&nic, &Nic::unlimited());
    std::thread::scope(|scope| {
        scope.spawn(|| talk(&b, &[], 0));
        talk(&a, &noise(1, 3_000_000), 0);
    });
    let used = nic.traffic().sent().link_use(nic.egress().rate());
    assert_eq!((used.limit_bytes_per_s, used.wire_bytes), (Some(50e6), 3_000_000));
    let most = 50e6 * 3_000_000.0 / (3_000_000.0 - 2.0 * nic.egress().burst_bytes() as f64);
    assert!(used.achieved_bytes_per_s.unwrap() <= most * 1.001, "{used:?}");
    let sent = nic.traffic().sent();
    assert!(sent.first.unwrap() > Nanos(0) && sent.first <= sent.last);
}
