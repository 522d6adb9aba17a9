//! The least that an NBD server can do for a read: it takes the requests that are there, and answers all of them at once with
//! the same bytes. No file, no checks. What a client gets from it is about what the client can do: no bound, for others may
//! suit how it waits better.
//!
//! Its replies are structured ones where the client asks for these, as every other server's here are: a read takes the
//! client more calls so.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// The argument by which this program becomes the server: `FLAG SOCKET BYTES`.
pub const FLAG: &str = "--bare-nbd-server";

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const GO: u32 = 7;
const STRUCTURED: u32 = 8;
const ACKNOWLEDGED: u32 = 1;
const INFO: u32 = 3;
const UNSUPPORTED: u32 = 1 << 31 | 1;

const REQUEST_BYTES: usize = 28;
const SIMPLE_HEADER_BYTES: usize = 16;
const STRUCTURED_HEADER_BYTES: usize = 28;

/// The most bytes that are answered by one write.
const MOST_BYTES: usize = 512 << 10;

/// Serves until it is killed.
pub fn serve(arguments: &[String]) -> Result<()> {
    let [socket, bytes] = arguments else { return Err(ErrorKind::InvalidInput.into()) };
    let bytes: u64 = bytes.parse().map_err(|_| ErrorKind::InvalidInput)?;
    for stream in UnixListener::bind(Path::new(socket))?.incoming() {
        let stream = stream?;
        std::thread::spawn(move || connection(stream, bytes));
    }
    Ok(())
}

fn connection(mut stream: UnixStream, bytes: u64) -> Result<()> {
    let structured = negotiate(&mut stream, bytes)?;
    let mut answers = Answers::new(structured);
    let mut requests = vec![0; 64 << 10];
    let mut have = 0;
    loop {
        have += match stream.read(&mut requests[have..])? {
            0 => return Ok(()),
            read => read,
        };
        let whole = have / REQUEST_BYTES * REQUEST_BYTES;
        for request in requests[..whole].chunks(REQUEST_BYTES) {
            match u16::from_be_bytes([request[6], request[7]]) {
                0 => answers.add(request, &mut stream)?,
                2 => return Ok(()),
                kind => return Err(Error::other(format!("a request of kind {kind}: only reads are answered"))),
            }
        }
        answers.write(&mut stream)?;
        requests.copy_within(whole..have, 0);
        have -= whole;
    }
}

/// Up to the transmission; whether replies are structured.
fn negotiate(stream: &mut UnixStream, bytes: u64) -> Result<bool> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    let mut flags = [0; 4];
    stream.read_exact(&mut flags)?;
    let mut structured = false;
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header)?;
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let option = word(8);
        let mut data = vec![0; word(12).min(64 << 10) as usize];
        stream.read_exact(&mut data)?;
        let mut reply = |kind: u32, data: &[u8]| {
            let mut reply = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
            [option, kind, data.len() as u32].iter().for_each(|word| reply.extend(word.to_be_bytes()));
            reply.extend(data);
            stream.write_all(&reply)
        };
        match option {
            STRUCTURED => {
                structured = true;
                reply(ACKNOWLEDGED, &[])?;
            }
            GO => {
                let mut export = vec![0, 0];
                export.extend(bytes.to_be_bytes());
                // It has flags, and takes a flush.
                export.extend(5_u16.to_be_bytes());
                reply(INFO, &export)?;
                reply(ACKNOWLEDGED, &[])?;
                return Ok(structured);
            }
            ABORT | EXPORT_NAME => return Err(ErrorKind::ConnectionAborted.into()),
            _ => reply(UNSUPPORTED, &[])?,
        }
    }
}

/// Replies of one length, one behind the other, of which only the requests' names change.
struct Answers {
    structured: bool,
    bytes_each: usize,
    ready: Vec<u8>,
    filled: usize,
}

impl Answers {
    fn new(structured: bool) -> Answers {
        Answers { structured, bytes_each: 0, ready: Vec::new(), filled: 0 }
    }

    fn header_bytes(&self) -> usize {
        if self.structured { STRUCTURED_HEADER_BYTES } else { SIMPLE_HEADER_BYTES }
    }

    fn add(&mut self, request: &[u8], stream: &mut UnixStream) -> Result<()> {
        let bytes = u32::from_be_bytes(request[24..28].try_into().expect("four bytes")).min(1 << 25) as usize;
        if bytes + self.header_bytes() != self.bytes_each {
            self.write(stream)?;
            self.make(bytes);
        }
        let at = self.filled;
        self.ready[at + 8..at + 16].copy_from_slice(&request[8..16]);
        if self.structured {
            self.ready[at + 20..at + 28].copy_from_slice(&request[16..24]);
        }
        self.filled += self.bytes_each;
        if self.filled == self.ready.len() { self.write(stream) } else { Ok(()) }
    }

    fn write(&mut self, stream: &mut UnixStream) -> Result<()> {
        stream.write_all(&self.ready[..std::mem::take(&mut self.filled)])
    }

    fn make(&mut self, bytes: usize) {
        let mut one = Vec::with_capacity(self.header_bytes() + bytes);
        if self.structured {
            one.extend(0x668e_33ef_u32.to_be_bytes());
            // The last chunk of its reply, which holds data at an offset.
            one.extend([0, 1, 0, 1]);
            one.extend([0; 8]);
            one.extend((bytes as u32 + 8).to_be_bytes());
            one.extend([0; 8]);
        } else {
            one.extend(0x6744_6698_u32.to_be_bytes());
            one.extend([0; 12]);
        }
        one.resize(self.header_bytes() + bytes, 0x5a);
        self.bytes_each = one.len();
        self.ready = one.repeat((MOST_BYTES / one.len()).max(1));
    }
}
