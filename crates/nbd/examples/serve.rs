//! Serves a raw image, under the default name, on a unix socket until Ctrl-C: `serve IMAGE SOCKET`.

use std::{env, io, sync::Arc};

use whimbrel_nbd::{Access, Exports, FileBackend, Server, ShutdownHandle};

#[tokio::main]
async fn main() -> io::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [image, socket] = &arguments[..] else {
        return Err(io::Error::other("usage: serve IMAGE SOCKET"));
    };
    let backend = FileBackend::open(image, Access::ReadWrite)?;
    let server = Server::bind_unix(socket, Arc::new(Exports::single(Arc::new(backend))))?
        .on_error(|error| eprintln!("a connection ended: {error}"));
    let (handle, shutdown) = ShutdownHandle::new();
    tokio::spawn(async move {
        let told = tokio::signal::ctrl_c().await;
        if told.is_ok() {
            handle.shut_down();
        }
    });
    server.run(shutdown).await
}
