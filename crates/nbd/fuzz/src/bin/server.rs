//! Whatever a client sends, the server neither panics nor hangs nor allocates without bound: the input is all that the
//! client ever says.

#![no_main]

use std::{pin::Pin, sync::Arc, task::{Context, Poll}};

use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use whimbrel_nbd::{Exports, MemoryBackend, Shutdown, serve_connection};

/// A client that says what it has to say in pieces, takes every answer, and leaves.
struct Script<'a> {
    left: &'a [u8],
    piece: usize,
}

impl AsyncRead for Script<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let count = self.left.len().min(buffer.remaining()).min(self.piece);
        let (now, later) = self.left.split_at(count);
        buffer.put_slice(now);
        self.left = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime can be made");
    let disk = Arc::new(MemoryBackend::new(vec![1; 1 << 16]));
    let other = Arc::new(MemoryBackend::new(vec![0; 1 << 12]).into_read_only());
    let exports = Arc::new(Exports::single(disk).with("other", other));
    let script = Script { left: bytes, piece: usize::from(piece) + 1 };
    // How it ends is its own affair; that it ends is what counts.
    let _ = runtime.block_on(serve_connection(script, exports, Shutdown::never()));
});
