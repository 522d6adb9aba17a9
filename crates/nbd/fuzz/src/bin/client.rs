//! Whatever a server sends, the client neither panics nor hangs nor allocates without bound: the input is all that the
//! server ever says.

#![no_main]

use std::{pin::Pin, task::{Context, Poll}};

use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use whimbrel_nbd::{Client, ClientOptions, protocol::CONTEXT_ALLOCATION};

/// A server that says what it has to say in pieces, hears nothing, and leaves.
struct Script {
    bytes: Vec<u8>,
    at: usize,
    piece: usize,
}

impl AsyncRead for Script {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let count = (self.bytes.len() - self.at).min(buffer.remaining()).min(self.piece);
        buffer.put_slice(&self.bytes[self.at..self.at + count]);
        self.at += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
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

fuzz_target!(|input: (u8, bool, &[u8])| {
    let (piece, structured, bytes) = input;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime can be made");
    runtime.block_on(async {
        let script = Script { bytes: bytes.to_vec(), at: 0, piece: usize::from(piece) + 1 };
        let contexts = vec![CONTEXT_ALLOCATION.to_owned()];
        let options = ClientOptions { structured, contexts, ..ClientOptions::default() };
        let Ok(client) = Client::connect(script, "", options).await else { return };
        // Their cookies are 1, 2, 3 and so on. How they end is their own affair.
        let read = client.read(0, 512);
        let status = client.block_status(CONTEXT_ALLOCATION, 0, 4096);
        let write = client.write(0, vec![7; 512], false);
        let _ = tokio::join!(read, status, write, client.flush());
        client.disconnect().await;
    });
});
