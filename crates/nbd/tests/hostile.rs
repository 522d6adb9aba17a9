//! Peers that break the rules: the other side answers with an error or closes, and never panics, hangs or hoards.

use std::{sync::Arc, time::Duration};

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    task::JoinHandle,
};
use whimbrel_nbd::{
    Client, ClientOptions, Ended, Exports, Limits, MemoryBackend, NbdError, Shutdown,
    options::{Go, MetaContext, encode_option, encode_option_reply},
    protocol::{
        ChunkHeader, MAGIC_OPTION, MAGIC_SERVER, MAX_OPTION_BYTES, Request, SimpleReply, chunk, command, command_flag,
        flag, handshake, option, reply,
    },
    serve_connection,
};

type Serving = JoinHandle<Result<Ended, NbdError>>;

const SIZE: u64 = 1 << 20;
const REQUEST: Request = Request { flags: 0, command: command::READ, cookie: 7, offset: 0, length: 16 };

fn exports(limits: Limits) -> Arc<Exports> {
    let backend = Arc::new(MemoryBackend::new(vec![5; SIZE as usize]));
    Arc::new(Exports::single(backend).with_limits(limits))
}

fn serve(limits: Limits) -> (DuplexStream, Serving) {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    (ours, tokio::spawn(serve_connection(theirs, exports(limits), Shutdown::never())))
}

/// Reads the greeting and answers it.
async fn greeted(limits: Limits) -> (DuplexStream, Serving) {
    let (mut stream, serving) = serve(limits);
    let mut hello = [0; 18];
    stream.read_exact(&mut hello).await.unwrap();
    stream.write_all(&3_u32.to_be_bytes()).await.unwrap();
    (stream, serving)
}

/// Sends an option; the type of the last reply to it.
async fn ask(stream: &mut DuplexStream, option: u32, data: &[u8]) -> u32 {
    stream.write_all(&encode_option(option, data)).await.unwrap();
    loop {
        let mut header = [0; 20];
        stream.read_exact(&mut header).await.unwrap();
        let kind = u32::from_be_bytes(header[12..16].try_into().unwrap());
        let length = u32::from_be_bytes(header[16..].try_into().unwrap());
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data).await.unwrap();
        if kind == reply::ACK || kind & reply::ERROR_BIT != 0 {
            return kind;
        }
    }
}

/// In the transmission phase, with simple replies.
async fn entered() -> (DuplexStream, Serving) {
    let (mut stream, serving) = greeted(Limits::default()).await;
    let go = Go { name: String::new(), wanted: vec![] };
    assert_eq!(ask(&mut stream, option::GO, &go.encode()).await, reply::ACK);
    (stream, serving)
}

/// Sends a request with a payload; the error number of its reply.
async fn request(stream: &mut DuplexStream, request: Request, payload: &[u8]) -> u32 {
    stream.write_all(&request.encode()).await.unwrap();
    stream.write_all(payload).await.unwrap();
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).await.unwrap();
    assert_eq!(reply[8..], request.cookie.to_be_bytes());
    u32::from_be_bytes(reply[4..8].try_into().unwrap())
}

#[tokio::test]
async fn options_that_are_unknown_or_malformed_are_refused_and_the_next_is_served() {
    let (mut stream, _) = greeted(Limits::default()).await;
    let s = &mut stream;
    assert_eq!(ask(s, 5, b"").await, reply::ERR_UNSUP);
    assert_eq!(ask(s, 11, b"").await, reply::ERR_UNSUP);
    assert_eq!(ask(s, 0xffff_ffff, &[9; 1000]).await, reply::ERR_UNSUP);
    assert_eq!(ask(s, option::LIST, b"x").await, reply::ERR_INVALID);
    assert_eq!(ask(s, option::STRUCTURED_REPLY, b"x").await, reply::ERR_INVALID);
    assert_eq!(ask(s, option::GO, b"").await, reply::ERR_INVALID);
    assert_eq!(ask(s, option::GO, &[0xff; 10]).await, reply::ERR_INVALID);
    let meta = MetaContext { name: String::new(), queries: vec!["base:".into()] }.encode();
    assert_eq!(ask(s, option::SET_META_CONTEXT, &meta).await, reply::ERR_INVALID);
    assert_eq!(ask(s, option::STRUCTURED_REPLY, b"").await, reply::ACK);
    assert_eq!(ask(s, option::SET_META_CONTEXT, &meta).await, reply::ACK);
    assert_eq!(ask(s, option::LIST_META_CONTEXT, &meta[..5]).await, reply::ERR_INVALID);
    let none = Go { name: "none".into(), wanted: vec![3] }.encode();
    assert_eq!(ask(s, option::INFO, &none).await, reply::ERR_UNKNOWN);
    let long = Go { name: "n".repeat(5000), wanted: vec![] }.encode();
    assert_eq!(ask(s, option::INFO, &long).await, reply::ERR_INVALID);
    assert_eq!(ask(s, option::LIST, b"").await, reply::ACK);
    assert_eq!(ask(s, option::ABORT, b"").await, reply::ACK);
}

#[tokio::test]
async fn negotiation_without_end_is_ended() {
    let limits = Limits { options: 10, ..Limits::default() };
    let (mut stream, serving) = greeted(limits).await;
    for _ in 0..10 {
        assert_eq!(ask(&mut stream, option::LIST, b"").await, reply::ACK);
    }
    assert!(matches!(serving.await.unwrap(), Err(NbdError::NegotiationBound("options"))));

    let limits = Limits { option_bytes: 1000, ..Limits::default() };
    let (mut stream, serving) = greeted(limits).await;
    stream.write_all(&encode_option(99, &[0; 1000])).await.unwrap();
    assert!(matches!(serving.await.unwrap(), Err(NbdError::NegotiationBound("bytes"))));

    let limits = Limits { negotiation: Duration::from_millis(1), ..Limits::default() };
    let (_stream, serving) = serve(limits);
    assert!(matches!(serving.await.unwrap(), Err(NbdError::NegotiationBound("time"))));
}

#[tokio::test]
async fn a_broken_negotiation_closes_the_connection() {
    let (mut stream, serving) = serve(Limits::default());
    stream.write_all(&0xffff_ffff_u32.to_be_bytes()).await.unwrap();
    assert!(matches!(serving.await.unwrap(), Err(NbdError::Protocol(_))));

    let (mut stream, serving) = greeted(Limits::default()).await;
    stream.write_all(&[0; 16]).await.unwrap();
    assert!(matches!(serving.await.unwrap(), Err(NbdError::BadMagic { .. })));

    let (mut stream, serving) = greeted(Limits::default()).await;
    let mut huge = encode_option(option::GO, &[]);
    huge[12..].copy_from_slice(&(MAX_OPTION_BYTES + 1).to_be_bytes());
    stream.write_all(&huge).await.unwrap();
    assert!(matches!(serving.await.unwrap(), Err(NbdError::TooLong { .. })));

    let (mut stream, serving) = greeted(Limits::default()).await;
    stream.write_all(&encode_option(option::EXPORT_NAME, b"none")).await.unwrap();
    assert!(matches!(serving.await.unwrap(), Err(NbdError::UnknownExport(_))));

    let (stream, serving) = greeted(Limits::default()).await;
    drop(stream);
    assert!(matches!(serving.await.unwrap(), Err(NbdError::Closed { .. })));
}

#[tokio::test]
async fn requests_that_cannot_be_are_errors_and_the_next_is_served() {
    const EINVAL: u32 = 22;
    const ENOSPC: u32 = 28;
    let (mut stream, serving) = entered().await;
    let s = &mut stream;
    let read = REQUEST;
    let write = Request { command: command::WRITE, ..read };
    assert_eq!(request(s, Request { offset: SIZE, ..read }, b"").await, EINVAL);
    assert_eq!(request(s, Request { offset: u64::MAX, ..read }, b"").await, EINVAL);
    assert_eq!(request(s, Request { length: 0, ..read }, b"").await, EINVAL);
    assert_eq!(request(s, Request { length: u32::MAX, ..read }, b"").await, EINVAL);
    assert_eq!(request(s, Request { flags: 1 << 9, ..read }, b"").await, EINVAL);
    assert_eq!(request(s, Request { flags: command_flag::DF, ..read }, b"").await, EINVAL);
    assert_eq!(request(s, Request { command: 0xffff, ..read }, b"").await, EINVAL);
    assert_eq!(request(s, Request { command: 5, ..read }, b"").await, EINVAL);
    assert_eq!(request(s, Request { command: command::BLOCK_STATUS, ..read }, b"").await, EINVAL);
    assert_eq!(request(s, Request { command: command::FLUSH, ..read }, b"").await, EINVAL);
    let far = Request { offset: 1 << 60, ..read };
    assert_eq!(request(s, Request { command: command::TRIM, ..far }, b"").await, EINVAL);
    assert_eq!(request(s, Request { command: command::WRITE_ZEROES, ..far }, b"").await, ENOSPC);
    // The payload of a refused write is skipped.
    assert_eq!(request(s, Request { offset: SIZE, ..write }, &[1; 16]).await, ENOSPC);
    assert_eq!(request(s, Request { flags: 1 << 9, ..write }, &[1; 16]).await, EINVAL);
    let huge = Request { length: 33 << 20, ..write };
    let payload = vec![1; 33 << 20];
    assert_eq!(request(s, huge, &payload).await, ENOSPC);
    assert_eq!(request(s, write, &[1; 16]).await, 0);
    let mut data = [0; 16];
    assert_eq!(request(s, read, b"").await, 0);
    s.read_exact(&mut data).await.unwrap();
    assert_eq!(data, [1; 16]);

    s.write_all(&[0xab; 28]).await.unwrap();
    let mut rest = Vec::new();
    s.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
    assert!(matches!(serving.await.unwrap(), Err(NbdError::BadMagic { .. })));
}

#[tokio::test]
async fn a_request_cut_short_ends_the_connection() {
    let long = Request { command: command::WRITE, length: 1 << 20, ..REQUEST };
    for cut in [1, 27, 28, 29, 100_000] {
        let (mut stream, serving) = entered().await;
        let mut bytes = long.encode().to_vec();
        bytes.resize(cut.max(28), 0);
        stream.write_all(&bytes[..cut]).await.unwrap();
        drop(stream);
        assert!(matches!(serving.await.unwrap(), Err(NbdError::Closed { .. })), "{cut}");
    }
}

#[tokio::test]
async fn a_client_that_reads_no_replies_is_not_read_from_for_ever() {
    let (mut stream, serving) = entered().await;
    let read = Request { length: SIZE as u32, ..REQUEST };
    let mut sent = 0_u64;
    // Asks for more and more, until the server stops taking requests; that it does is the test.
    loop {
        let bytes = read.encode().repeat(100);
        match tokio::time::timeout(Duration::from_millis(300), stream.write_all(&bytes)).await {
            Ok(written) => written.unwrap(),
            Err(_) => break,
        }
        sent += 100;
        assert!(sent < 100_000);
    }
    drop(stream);
    assert!(serving.await.unwrap().is_err());
}

#[tokio::test]
async fn a_client_that_never_takes_its_last_replies_is_left() {
    let limits = Limits { farewell: Duration::from_millis(1), ..Limits::default() };
    let (mut stream, serving) = greeted(limits).await;
    let go = Go { name: String::new(), wanted: vec![] };
    assert_eq!(ask(&mut stream, option::GO, &go.encode()).await, reply::ACK);
    let read = Request { length: SIZE as u32, ..REQUEST };
    stream.write_all(&read.encode()).await.unwrap();
    stream.write_all(&Request { command: command::DISC, ..read }.encode()).await.unwrap();
    assert!(matches!(serving.await.unwrap(), Err(NbdError::Closed { during: "taking the last replies" })));
}

#[tokio::test]
async fn the_server_serves_others_after_hostile_ones() {
    let exports = exports(Limits::default());
    let server = whimbrel_nbd::Server::bind_tcp("127.0.0.1:0".parse().unwrap(), exports).await.unwrap();
    let address = server.local_address().unwrap();
    let running = tokio::spawn(server.run(Shutdown::never()));
    let mut hostile = Vec::new();
    for _ in 0..20 {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(&[0xff; 4096]).await.unwrap();
        hostile.push(stream);
    }
    let client = Client::connect_tcp(address, "", ClientOptions::default()).await.unwrap();
    assert_eq!(client.read(0, 4).await.unwrap(), [5; 4]);
    assert!(!running.is_finished());
    running.abort();
}

/// A server made of bytes: a greeting, then whatever follows.
fn greeting() -> Vec<u8> {
    let mut bytes = MAGIC_SERVER.to_be_bytes().to_vec();
    bytes.extend_from_slice(&MAGIC_OPTION.to_be_bytes());
    bytes.extend_from_slice(&(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES).to_be_bytes());
    bytes
}

/// Up to the transmission phase, with structured replies and a size of 4096.
fn agreeing() -> Vec<u8> {
    let mut bytes = greeting();
    encode_option_reply(&mut bytes, option::STRUCTURED_REPLY, reply::ACK, &[]);
    let mut export = vec![0, 0];
    export.extend_from_slice(&4096_u64.to_be_bytes());
    export.extend_from_slice(&flag::HAS_FLAGS.to_be_bytes());
    encode_option_reply(&mut bytes, option::GO, reply::INFO, &export);
    encode_option_reply(&mut bytes, option::GO, reply::ACK, &[]);
    bytes
}

async fn scripted(bytes: Vec<u8>) -> Result<Client, NbdError> {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    tokio::spawn(async move {
        let (mut reader, mut writer) = tokio::io::split(theirs);
        writer.write_all(&bytes).await.unwrap();
        // Takes what the client sends, as a server would; then closes when the client does.
        let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
    });
    Client::connect(ours, "", ClientOptions::default()).await
}

fn chunk_of(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let header = ChunkHeader { flags, kind, cookie: 1, length: payload.len() as u32 };
    [&header.encode()[..], payload].concat()
}

/// How a client's first read of 16 bytes ends when the server says these bytes.
async fn first_read(after: Vec<u8>) -> Result<Vec<u8>, NbdError> {
    let (ours, mut theirs) = tokio::io::duplex(1 << 20);
    tokio::spawn(async move {
        theirs.write_all(&agreeing()).await.unwrap();
        // Flags, STRUCTURED_REPLY, GO with an empty name and three wishes, then the first request.
        let mut expected = vec![0; 4 + 16 + 16 + 4 + 2 + 6 + 28];
        theirs.read_exact(&mut expected).await.unwrap();
        let _ = theirs.write_all(&after).await;
    });
    let client = Client::connect(ours, "", ClientOptions::default()).await?;
    let first = client.read(0, 16).await;
    if first.as_ref().is_err_and(|error| !matches!(error, NbdError::Server { .. })) {
        assert!(client.read(0, 16).await.is_err());
    }
    first
}

#[tokio::test]
async fn replies_that_cannot_be_end_the_connection_with_a_reason() {
    let at = |offset: u64, data: &[u8]| [&offset.to_be_bytes()[..], data].concat();
    let done = chunk::FLAG_DONE;
    let hole = |offset: u64, length: u32| at(offset, &length.to_be_bytes());
    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("garbage", vec![0x99; 64]),
        ("nothing", vec![]),
        ("half a header", chunk_of(chunk::NONE, done, &[])[..7].to_vec()),
        ("an unknown cookie", SimpleReply { error: 0, cookie: 99 }.encode().to_vec()),
        ("a simple reply with data", SimpleReply { error: 0, cookie: 1 }.encode().to_vec()),
        ("data before the range", chunk_of(chunk::OFFSET_DATA, done, &at(u64::MAX, &[1; 16]))),
        ("data beyond the range", chunk_of(chunk::OFFSET_DATA, done, &at(1, &[1; 16]))),
        ("an enormous hole", chunk_of(chunk::OFFSET_HOLE, done, &hole(0, u32::MAX))),
        ("an empty hole", chunk_of(chunk::OFFSET_HOLE, done, &hole(0, 0))),
        ("half the data", chunk_of(chunk::OFFSET_DATA, done, &at(0, &[1; 8]))),
        ("no data", chunk_of(chunk::NONE, done, &[])),
        ("an empty chunk that goes on", chunk_of(chunk::NONE, 0, &[])),
        ("the same data twice", chunk_of(chunk::OFFSET_DATA, 0, &at(0, &[1; 8])).repeat(2)),
        ("a status", chunk_of(chunk::BLOCK_STATUS, done, &[0; 12])),
        ("an unknown chunk", chunk_of(77, done, &[0; 12])),
        ("a short error", chunk_of(chunk::ERROR, done, &[0, 0])),
        ("error 0", chunk_of(chunk::ERROR, done, &[0; 6])),
        ("an error whose text is missing", chunk_of(chunk::ERROR, done, &[0, 0, 0, 5, 9, 9])),
        (
            "a chunk of 4 GiB",
            ChunkHeader { flags: 1, kind: chunk::OFFSET_DATA, cookie: 1, length: u32::MAX }.encode().to_vec(),
        ),
    ];
    for (name, bytes) in bad {
        let result = first_read(bytes).await;
        let expected = matches!(result, Err(NbdError::Lost(_) | NbdError::Protocol(_)));
        assert!(expected, "{name}: {result:?}");
    }
}

#[tokio::test]
async fn replies_in_parts_and_errors_with_text_are_understood() {
    let at = |offset: u64, data: &[u8]| [&offset.to_be_bytes()[..], data].concat();
    let mut parts = chunk_of(chunk::OFFSET_DATA, 0, &at(8, &[2; 8]));
    parts.extend(chunk_of(chunk::OFFSET_HOLE, 0, &at(0, &4_u32.to_be_bytes())));
    parts.extend(chunk_of(chunk::OFFSET_DATA, 0, &at(4, &[1; 4])));
    parts.extend(chunk_of(chunk::NONE, chunk::FLAG_DONE, &[]));
    let data = first_read(parts).await.unwrap();
    assert_eq!(data, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]);

    let mut error = chunk_of(chunk::ERROR_OFFSET, 0, b"\0\0\0\x05\0\x03bad\0\0\0\0\0\0\0\x04");
    error.extend(chunk_of(chunk::NONE, chunk::FLAG_DONE, &[]));
    match first_read(error).await {
        Err(NbdError::Server { code, message }) => {
            assert_eq!((code, message.as_str()), (whimbrel_nbd::ErrorCode::Io, "bad"));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn servers_that_are_none_are_refused() {
    let mut oldstyle = greeting();
    oldstyle[8..16].copy_from_slice(&0x0000_4202_8186_1253_u64.to_be_bytes());
    assert!(matches!(scripted(oldstyle).await, Err(NbdError::BadMagic { .. })));
    assert!(matches!(scripted(b"SSH-2.0-OpenSSH_9.2 and more".to_vec()).await, Err(NbdError::BadMagic { .. })));
    let mut huge = greeting();
    encode_option_reply(&mut huge, option::STRUCTURED_REPLY, reply::ACK, &[]);
    let length = huge.len();
    huge[length - 4..].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(matches!(scripted(huge).await, Err(NbdError::TooLong { .. })));
    let mut other = greeting();
    encode_option_reply(&mut other, option::LIST, reply::ACK, &[]);
    assert!(matches!(scripted(other).await, Err(NbdError::Protocol(_))));
    assert!(scripted(agreeing()).await.is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_server_survives_any_bytes(
        phase in 0..3,
        bytes in prop::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..600),
        header in any::<(u16, u16, u64, u32)>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut stream, serving) = match phase {
                0 => serve(Limits::default()),
                1 => greeted(Limits::default()).await,
                _ => entered().await,
            };
            if phase == 2 {
                let (flags, number, offset, length) = header;
                let known = Request { flags: flags & 31, command: number % 9, cookie: 1, offset: offset % (2 * SIZE), length };
                stream.write_all(&known.encode()).await.unwrap();
            }
            let (mut reader, mut writer) = tokio::io::split(stream);
            let drain = tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
            let _ = writer.write_all(&bytes).await;
            let _ = writer.shutdown().await;
            // Ends, with whatever result, and does not panic.
            let _ = serving.await.unwrap();
            let _ = drain.await.unwrap();
        });
    }

    #[test]
    fn a_client_survives_any_bytes(
        agreed: bool,
        bytes in prop::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..600),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            if agreed {
                assert!(first_read(bytes).await.is_err());
            } else {
                let (ours, mut theirs) = tokio::io::duplex(1 << 20);
                theirs.write_all(&bytes).await.unwrap();
                theirs.shutdown().await.unwrap();
                assert!(Client::connect(ours, "", ClientOptions::default()).await.is_err());
            }
        });
    }
}
