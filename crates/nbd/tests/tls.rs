//! TLS between our two sides, and with programs that we did not write. gnutls' certtool makes the certificates.

mod certificates;

use std::{
    io::Write,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use certificates::{Certificates, run};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use whimbrel_nbd::{
    Client, ClientOptions, ClientTls, Exports, MemoryBackend, NbdError, Server, ServerTls, Shutdown, ShutdownHandle,
};

fn server_tls(certificates: &Certificates, verify: bool) -> ServerTls {
    let authority = certificates.path("ca-cert.pem");
    let authorities = verify.then_some(&*authority);
    let [certificate, key] = ["server-cert.pem", "server-key.pem"].map(|name| certificates.path(name));
    ServerTls::from_files(&certificate, &key, authorities).unwrap()
}

fn client_tls(certificates: &Certificates, authority: &str, show: bool) -> ClientTls {
    let [certificate, key] = ["client-cert.pem", "client-key.pem"].map(|name| certificates.path(name));
    let own = show.then_some((&*certificate, &*key));
    ClientTls::from_files(&certificates.path(authority), own, "localhost").unwrap()
}

async fn serve(tls: Option<ServerTls>, size: usize) -> (SocketAddr, ShutdownHandle) {
    let bytes = (0..size).map(|at| (at / 1000) as u8).collect();
    let exports = Exports::single(Arc::new(MemoryBackend::new(bytes)));
    let exports = match tls {
        Some(tls) => exports.with_tls(tls),
        None => exports,
    };
    let server = Server::bind_tcp("127.0.0.1:0".parse().unwrap(), Arc::new(exports)).await.unwrap();
    let address = server.local_address().unwrap();
    let (handle, shutdown): (_, Shutdown) = ShutdownHandle::new();
    tokio::spawn(server.run(shutdown));
    (address, handle)
}

async fn secure(address: SocketAddr, tls: &ClientTls) -> Result<Client, NbdError> {
    let stream = TcpStream::connect(address).await.unwrap();
    Client::connect_secure(stream, "", ClientOptions::default(), tls).await
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_agree_and_data_is_whole() {
    let Some(certificates) = Certificates::make() else { return };
    let (address, _handle) = serve(Some(server_tls(&certificates, true)), 8 << 20).await;
    let client = secure(address, &client_tls(&certificates, "ca-cert.pem", true)).await.unwrap();
    let data: Vec<u8> = (0..3_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    client.write_at(777, &data, true).await.unwrap();
    let reads: Vec<_> = (0..64).map(|at| client.read(777 + at * 40_000, 40_000)).collect();
    for (at, read) in reads.into_iter().enumerate() {
        assert!(read.await.unwrap() == data[at * 40_000..][..40_000], "part {at}");
    }
    client.disconnect().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_trusted_or_does_not_ask_is_refused() {
    let Some(certificates) = Certificates::make() else { return };
    let (address, _handle) = serve(Some(server_tls(&certificates, true)), 4096).await;
    // A server that the client doesn't trust; a client without a certificate; one that doesn't ask for TLS.
    assert!(secure(address, &client_tls(&certificates, "other-cert.pem", true)).await.is_err());
    let unknown = secure(address, &client_tls(&certificates, "ca-cert.pem", false)).await;
    assert!(unknown.is_err());
    let plain = Client::connect_tcp(address, "", ClientOptions::default()).await.unwrap_err();
    assert!(matches!(&plain, NbdError::Refused { reply: "NBD_REP_ERR_TLS_REQD", .. }), "{plain}");
    // Still there for those who are welcome.
    secure(address, &client_tls(&certificates, "ca-cert.pem", true)).await.unwrap();

    let (address, _handle) = serve(Some(server_tls(&certificates, false).optional()), 4096).await;
    Client::connect_tcp(address, "", ClientOptions::default()).await.unwrap();
    secure(address, &client_tls(&certificates, "ca-cert.pem", false)).await.unwrap();

    let (address, _handle) = serve(None, 4096).await;
    let none = secure(address, &client_tls(&certificates, "ca-cert.pem", false)).await.unwrap_err();
    assert!(matches!(&none, NbdError::Refused { option: "NBD_OPT_STARTTLS", .. }), "{none}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_slipped_in_before_the_handshake_end_the_connection() {
    let Some(certificates) = Certificates::make() else { return };
    let (address, _handle) = serve(Some(server_tls(&certificates, false)), 4096).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut hello = [0; 18];
    stream.read_exact(&mut hello).await.unwrap();
    // Flags, STARTTLS, and in the same breath LIST, which would otherwise be answered within TLS.
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    bytes.extend(whimbrel_nbd::options::encode_option(whimbrel_nbd::protocol::option::STARTTLS, &[]));
    bytes.extend(whimbrel_nbd::options::encode_option(whimbrel_nbd::protocol::option::LIST, &[]));
    stream.write_all(&bytes).await.unwrap();
    let mut rest = Vec::new();
    // Closed, or reset as there were unread bytes.
    let _ = stream.read_to_end(&mut rest).await;
    // The answer to STARTTLS, and then an alert of TLS, which can't make sense of a LIST.
    assert!(rest.len() >= 20 && (rest.len() == 20 || rest[20] == 21), "{rest:?}");
    assert!(rest.len() < 40, "{rest:?}");
}

#[test]
fn files_that_are_no_certificates_are_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("empty.pem");
    std::fs::write(&path, "nothing").unwrap();
    let error = ServerTls::from_files(&path, &path, None).unwrap_err().to_string();
    assert!(error.contains("empty.pem") && error.contains("PEM"), "{error}");
    let error = ServerTls::from_files(Path::new("/nowhere/cert"), &path, None).unwrap_err().to_string();
    assert!(error.contains("/nowhere/cert"), "{error}");
}

#[test]
fn nbdinfo_and_nbdcopy_use_our_server_within_tls() {
    let Some(certificates) = Certificates::make() else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (address, _handle) = runtime.block_on(serve(Some(server_tls(&certificates, true)), 4 << 20));
    let folder = certificates.folder();
    let uri = format!("nbds://localhost:{}/?tls-certificates={}", address.port(), folder.display());
    let Some(info) = run("nbdinfo", folder, &[&uri]) else { return };
    let text = String::from_utf8_lossy(&info.stdout);
    assert!(info.status.success(), "{}", String::from_utf8_lossy(&info.stderr));
    assert!(text.contains("with TLS") && text.contains("export-size: 4194304"), "{text}");
    let Some(copied) = run("nbdcopy", folder, &[&uri, "copy.raw"]) else { return };
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    let copy = std::fs::read(folder.join("copy.raw")).unwrap();
    assert!(copy.len() == 4 << 20 && copy.iter().enumerate().all(|(at, byte)| *byte == (at / 1000) as u8));
    let back = run("nbdcopy", folder, &["copy.raw", &uri]).unwrap();
    assert!(back.status.success(), "{}", String::from_utf8_lossy(&back.stderr));
    let plain = format!("nbd://localhost:{}/", address.port());
    assert!(!run("nbdinfo", folder, &[&plain]).unwrap().status.success(), "TLS is required");
}

#[test]
fn our_client_uses_nbdkit_within_tls() {
    let Some(certificates) = Certificates::make() else { return };
    let folder = certificates.folder();
    let socket = folder.join("socket");
    let mut command = Command::new("nbdkit");
    command.args(["--foreground", "--exit-with-parent", "--tls=require", "--tls-verify-peer"]);
    command.arg(format!("--tls-certificates={}", folder.display())).arg("--unix").arg(&socket);
    let mut server = match command.args(["memory", "1M"]).stdin(Stdio::null()).spawn() {
        Ok(server) => server,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "SKIPPED: nbdkit: {error}");
            return;
        }
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let done = runtime.block_on(async {
        let stream = loop {
            match tokio::net::UnixStream::connect(&socket).await {
                Ok(stream) => break stream,
                // It has not bound it yet.
                Err(_) if server.try_wait().unwrap().is_none() => tokio::task::yield_now().await,
                Err(error) => panic!("nbdkit: {error}"),
            }
        };
        let tls = client_tls(&certificates, "ca-cert.pem", true);
        let client = Client::connect_secure(stream, "", ClientOptions::default(), &tls).await?;
        client.write_at(4096, &[7; 300_000], false).await?;
        let read = client.read(0, 400_000).await?;
        client.disconnect().await;
        Ok::<_, NbdError>(read)
    });
    let _ = server.kill();
    let _ = server.wait();
    let read = done.unwrap();
    assert!(read[..4096].iter().all(|b| *b == 0) && read[4096..304_096].iter().all(|b| *b == 7));
}
