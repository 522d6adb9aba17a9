//! Pages between guest RAM and a byte stream: by the kernel alone where the stream is a socket, else through a buffer.

use crate::ram::GuestRam;
use rustix::fd::{AsRawFd, BorrowedFd};
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use whimbrel_model::{Extent, PAGE_BYTES};

/// The most pieces that one vectored write may have.
const MOST_PIECES: usize = libc::UIO_MAXIOV as usize;

/// Bytes that pass through a private buffer at a time where the kernel can't reach the stream itself.
const BUFFER_BYTES: usize = 256 << 10;

/// A piece of what is sent.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// Bytes of the sender's own: headers, encoded pages.
    Bytes(&'a [u8]),
    /// Pages as they are at the moment when the kernel copies them. The guest may be writing them: a page can be torn,
    /// and then the dirty log, taken before, names it again.
    Pages(Extent),
}

impl GuestRam {
    /// Writes all parts, in order, to a socket (or any other descriptor in blocking mode), pages straight from the
    /// host's mapping. Answers the number of bytes.
    ///
    /// # Errors
    /// The stream's; some of the bytes may have been written.
    ///
    /// # Panics
    /// An extent reaches beyond the RAM.
    pub fn send_frames(&self, socket: BorrowedFd<'_>, parts: &[Part<'_>]) -> io::Result<u64> {
        let mut pieces: Vec<libc::iovec> = parts.iter().map(|part| self.piece(part)).collect();
        let mut rest = &mut pieces[..];
        let (mut total, mut is_socket) = (0, true);
        while !rest.is_empty() {
            match write_pieces(socket, &rest[..rest.len().min(MOST_PIECES)], is_socket) {
                Ok(written) => {
                    total += written as u64;
                    rest = advance(rest, written)?;
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::ENOTSOCK) if is_socket => is_socket = false,
                    _ => return Err(error),
                },
            }
        }
        Ok(total)
    }

    /// As [`GuestRam::send_frames`], for a stream that isn't a descriptor: pages go through a private buffer.
    ///
    /// # Errors
    /// The writer's.
    ///
    /// # Panics
    /// An extent reaches beyond the RAM.
    pub fn write_frames(&self, writer: &mut dyn Write, parts: &[Part<'_>]) -> io::Result<u64> {
        let (mut total, mut buffer) = (0, Vec::new());
        for part in parts {
            match part {
                Part::Bytes(bytes) => {
                    writer.write_all(bytes)?;
                    total += bytes.len() as u64;
                }
                Part::Pages(extent) => {
                    for chunk in self.host_part(*extent).as_flattened().chunks(BUFFER_BYTES / 8) {
                        buffer.clear();
                        buffer.extend(chunk.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()));
                        writer.write_all(&buffer)?;
                    }
                    total += extent.count * PAGE_BYTES;
                }
            }
        }
        Ok(total)
    }

    /// Reads exactly the pages of `extent` from a socket (or any other descriptor in blocking mode) into the host's
    /// mapping.
    ///
    /// # Errors
    /// The stream's; `UnexpectedEof` if it ends too early. Pages of the extent may then be half filled.
    ///
    /// # Panics
    /// The extent reaches beyond the RAM.
    pub fn receive_pages(&self, socket: BorrowedFd<'_>, extent: Extent) -> io::Result<()> {
        self.receive_pages_after(&[], socket, extent)
    }

    /// As [`GuestRam::receive_pages`], where the first bytes have been read already, into `leading`.
    ///
    /// # Errors
    /// As for [`GuestRam::receive_pages`].
    ///
    /// # Panics
    /// The extent reaches beyond the RAM, or there are more leading bytes than it has.
    pub fn receive_pages_after(&self, leading: &[u8], socket: BorrowedFd<'_>, extent: Extent) -> io::Result<()> {
        let words = self.host_part(extent).as_flattened();
        store_bytes(&words[..leading.len().div_ceil(8)], leading);
        let (mut at, mut is_socket) = (leading.len(), true);
        while at < size_of_val(words) {
            match read_into(socket, words, at, is_socket) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => at += read,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::ENOTSOCK) if is_socket => is_socket = false,
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// As [`GuestRam::receive_pages`], for a stream that isn't a descriptor: pages go through a private buffer.
    ///
    /// # Errors
    /// As for [`GuestRam::receive_pages`].
    ///
    /// # Panics
    /// The extent reaches beyond the RAM.
    pub fn fill_pages_from(&self, reader: &mut dyn Read, extent: Extent) -> io::Result<()> {
        let words = self.host_part(extent).as_flattened();
        let mut buffer = vec![0; BUFFER_BYTES.min(size_of_val(words))];
        for chunk in words.chunks(BUFFER_BYTES / 8) {
            let bytes = &mut buffer[..size_of_val(chunk)];
            reader.read_exact(bytes)?;
            store_bytes(chunk, bytes);
        }
        Ok(())
    }

    fn piece(&self, part: &Part<'_>) -> libc::iovec {
        let (base, len) = match part {
            Part::Bytes(bytes) => (bytes.as_ptr().cast_mut().cast(), bytes.len()),
            Part::Pages(extent) => {
                let pages = self.host_part(*extent);
                (pages.as_ptr().cast_mut().cast(), size_of_val(pages))
            }
        };
        libc::iovec { iov_base: base, iov_len: len }
    }
}

/// Stores `bytes` from the start of `words` on; what of the last word they don't reach stays.
fn store_bytes(words: &[AtomicU64], bytes: &[u8]) {
    let (whole, tail) = bytes.as_chunks::<8>();
    for (word, bytes) in words.iter().zip(whole) {
        word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
    }
    if let (Some(word), false) = (words.get(whole.len()), tail.is_empty()) {
        // SAFETY: eight atomic bytes lie where the atomic word lies.
        let last: &[AtomicU8; 8] = unsafe { &*std::ptr::from_ref(word).cast() };
        last.iter().zip(tail).for_each(|(to, from)| to.store(*from, Ordering::Relaxed));
    }
}

/// One vectored write. A socket whose other end is gone answers an error and raises no signal.
fn write_pieces(fd: BorrowedFd<'_>, pieces: &[libc::iovec], is_socket: bool) -> io::Result<usize> {
    let written = if is_socket {
        // SAFETY: a message header of zeros is valid: no address, no control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = pieces.as_ptr().cast_mut();
        message.msg_iovlen = pieces.len() as _;
        // SAFETY: the kernel reads the header and the pieces, which point into slices that outlive the call. Pages may
        // change meanwhile: only the kernel looks at them.
        unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) }
    } else {
        // SAFETY: as above; there are at most MOST_PIECES.
        unsafe { libc::writev(fd.as_raw_fd(), pieces.as_ptr(), pieces.len() as libc::c_int) }
    };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// What is left of `pieces` after `written` bytes of them.
fn advance(pieces: &mut [libc::iovec], mut written: usize) -> io::Result<&mut [libc::iovec]> {
    let bytes: usize = pieces.iter().map(|p| p.iov_len).sum();
    if written == 0 && bytes > 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let whole = pieces
        .iter()
        .take_while(|p| {
            p.iov_len <= written && {
                written -= p.iov_len;
                true
            }
        })
        .count();
    let rest = &mut pieces[whole..];
    if let Some(first) = rest.first_mut() {
        first.iov_base = first.iov_base.wrapping_byte_add(written);
        first.iov_len -= written;
    }
    Ok(rest)
}

/// One read into `words`, from byte `at` on.
fn read_into(fd: BorrowedFd<'_>, words: &[AtomicU64], at: usize, is_socket: bool) -> io::Result<usize> {
    let rest = size_of_val(words) - at;
    let start = words.as_ptr().cast::<u8>().wrapping_add(at).cast_mut().cast::<libc::c_void>();
    let read = if is_socket {
        // SAFETY: the kernel writes at most `rest` bytes, which lie within `words`; those are atomics, so that they may
        // change while they are shared.
        unsafe { libc::recv(fd.as_raw_fd(), start, rest, libc::MSG_WAITALL) }
    } else {
        // SAFETY: as above.
        unsafe { libc::read(fd.as_raw_fd(), start, rest) }
    };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}
