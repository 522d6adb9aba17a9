//! Guest RAM: two views of the same pages, and pages through sockets.

mod kernel;

use kernel::ram;
use proptest::prelude::*;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use whimbrel_memory::{GuestRam, Part};
use whimbrel_model::{Extent, Rng};

const PAGES: u64 = 64;

fn random_page(rng: &mut Rng) -> [u8; 4096] {
    std::array::from_fn(|_| rng.next_u64() as u8)
}

fn random_ram(seed: u64) -> (Arc<GuestRam>, Vec<[u8; 4096]>) {
    let (ram, mut rng) = (ram(PAGES), Rng::new(seed));
    let content: Vec<_> = (0..PAGES).map(|_| random_page(&mut rng)).collect();
    content.iter().zip(0..).for_each(|(bytes, page)| ram.write_page(page, bytes));
    (ram, content)
}

fn content(ram: &GuestRam) -> Vec<[u8; 4096]> {
    let mut pages = vec![[0; 4096]; ram.pages() as usize];
    pages.iter_mut().zip(0..).for_each(|(into, page)| ram.read_page(page, into));
    pages
}

#[test]
fn both_mappings_and_the_descriptor_show_the_same() {
    let (ram, content) = random_ram(1);
    ram.populate().unwrap();
    ram.guest_page(3)[5].store(77, Ordering::Relaxed);
    assert_eq!(ram.host_page(3)[5].load(Ordering::Relaxed), 77);
    let twin = GuestRam::from_fd(ram.fd().try_clone_to_owned().unwrap(), PAGES * 4096).unwrap();
    assert_eq!(twin.guest_page(3)[5].load(Ordering::Relaxed), 77);
    let mut bytes = [0; 4096];
    twin.read_page(9, &mut bytes);
    assert_eq!(bytes, content[9]);
    assert!(GuestRam::from_fd(ram.fd().try_clone_to_owned().unwrap(), PAGES * 4096 + 4096).is_err(), "too long");
}

#[test]
fn sizes_that_are_none_are_refused() {
    for bytes in [0, 1, 4095, 4097] {
        assert!(GuestRam::create(bytes).is_err(), "{bytes} bytes");
    }
}

#[test]
fn zero_pages_are_seen_made_and_dropped() {
    let (ram, _) = random_ram(2);
    assert!((0..PAGES).all(|page| !ram.is_zero(page)));
    ram.zero_page(4);
    ram.drop_pages(Extent { start: 60, count: 100 }).unwrap();
    assert_eq!((0..PAGES).filter(|page| ram.is_zero(*page)).collect::<Vec<_>>(), [4, 60, 61, 62, 63]);
    for word in 0..512 {
        ram.host_page(4)[word].store(1 << 63, Ordering::Relaxed);
        assert!(!ram.is_zero(4), "word {word}");
        ram.host_page(4)[word].store(0, Ordering::Relaxed);
    }
    ram.drop_all().unwrap();
    assert!((0..PAGES).all(|page| ram.is_zero(page)));
    ram.drop_pages(Extent { start: PAGES + 5, count: 1 }).unwrap();
}

/// A way to move parts from one RAM to another RAM's extent list, in order.
fn through_socket(from: &GuestRam, parts: &[Part<'_>], read: impl FnOnce(&UnixStream) + Send) -> io::Result<u64> {
    let (near, far) = UnixStream::pair().unwrap();
    // A small buffer makes for partial writes.
    rustix::net::sockopt::set_socket_send_buffer_size(&near, 8192).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || read(&far));
        from.send_frames(near.as_fd(), parts)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn frames_arrive_as_they_were_sent(seed: u64, runs in prop::collection::vec((0..PAGES, 1..20u64, 0..40usize), 1..8),
                                       buffered in 0..5000usize) {
        let (ram, pages) = random_ram(seed);
        let other = kernel::ram(PAGES);
        let header = random_page(&mut Rng::new(seed ^ 1));
        let frames: Vec<_> = runs.iter().map(|(start, count, header)| (Extent { start: *start, count: (*count).min(PAGES - start) }, *header)).collect();
        let parts: Vec<Part> = frames.iter().flat_map(|(extent, len)| [Part::Bytes(&header[..*len]), Part::Pages(*extent)]).collect();
        let bytes: u64 = frames.iter().map(|(extent, len)| extent.count * 4096 + *len as u64).sum();

        let sent = through_socket(&ram, &parts, |mut socket| {
            for (extent, len) in &frames {
                let mut head = vec![0; *len];
                socket.read_exact(&mut head).unwrap();
                assert_eq!(head, header[..*len]);
                let mut leading = vec![0; buffered.min(extent.count as usize * 4096)];
                socket.read_exact(&mut leading).unwrap();
                other.receive_pages_after(&leading, socket.as_fd(), *extent).unwrap();
            }
        }).unwrap();
        prop_assert_eq!(sent, bytes);
        let mut expected = vec![[0; 4096]; PAGES as usize];
        frames.iter().flat_map(|(extent, _)| extent.indices()).for_each(|p| expected[p as usize] = pages[p as usize]);
        prop_assert_eq!(&content(&other), &expected);

        // The way without a descriptor says the same.
        let (mut stream, other) = (Vec::new(), kernel::ram(PAGES));
        prop_assert_eq!(ram.write_frames(&mut stream, &parts).unwrap(), bytes);
        let mut reader = &stream[..];
        for (extent, len) in &frames {
            reader = &reader[*len..];
            other.fill_pages_from(&mut reader, *extent).unwrap();
        }
        prop_assert!(reader.is_empty());
        prop_assert_eq!(&content(&other), &expected);
    }
}

#[test]
fn more_pieces_than_one_call_takes() {
    let (ram, pages) = random_ram(3);
    let parts: Vec<Part> = (0..3000).map(|at| Part::Pages(Extent { start: at % PAGES, count: 1 })).collect();
    let mut seen = Vec::new();
    through_socket(&ram, &parts, |socket| {
        socket.take(3000 * 4096).read_to_end(&mut seen).map(|_| ()).unwrap();
        socket.shutdown(std::net::Shutdown::Both).unwrap();
    })
    .unwrap();
    assert_eq!(seen.len(), 3000 * 4096);
    assert!(seen.chunks(4096).zip((0..PAGES as usize).cycle()).all(|(got, page)| got == pages[page]));
}

#[test]
fn an_end_comes_as_an_error_on_either_side() {
    let (ram, _) = random_ram(4);
    let all = Extent { start: 0, count: PAGES };
    let (near, far) = UnixStream::pair().unwrap();
    drop(far);
    let error = ram.send_frames(near.as_fd(), &[Part::Pages(all)]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    let error = through_socket(&ram, &[Part::Pages(Extent { start: 0, count: 2 })], |socket| {
        ram.receive_pages(socket.as_fd(), Extent { start: 8, count: 1 }).unwrap();
        let mut socket = socket;
        assert_eq!(socket.read(&mut [0; 8192]).unwrap(), 4096);
    });
    assert_eq!(error.unwrap(), 8192);
    let (near, far) = UnixStream::pair().unwrap();
    ram.send_frames(near.as_fd(), &[Part::Bytes(&[1; 5000])]).unwrap();
    drop(near);
    let error = ram.receive_pages(far.as_fd(), Extent { start: 0, count: 2 }).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn pipes_and_files_serve_as_well() {
    let (ram, pages) = random_ram(5);
    let other = kernel::ram(PAGES);
    let (reader, writer) = io::pipe().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| other.receive_pages(reader.as_fd(), other.all()).unwrap());
        ram.send_frames(writer.as_fd(), &[Part::Bytes(&[]), Part::Pages(ram.all())]).unwrap();
    });
    assert_eq!(content(&other), pages);
}
