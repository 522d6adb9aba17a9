//! The limit of a bulk copy: two processes that move populated memory over TCP by plain writes and reads, without a
//! protocol. Each half is this program again.
//!
//! ```text
//!   bench ── "again" ──► writer            bench ◄── ADDR ── reader
//!         ◄── seconds ──    │── connect ─────────────────────────────────────►│
//!                           │◄──────────────────────────── one byte: ready ──│
//!                           │── the memory, `chunk` bytes a write ───────────►│  into its memory
//!                           │◄───────────────────────── one byte: all there ─│
//! ```

use crate::tally::median;
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

/// The first argument that makes this program one half of the rival.
pub const FLAG: &str = "--rival";

/// The most that the reader asks for at once.
const READ_BYTES: usize = 1 << 20;

/// Two processes that wait to copy.
pub struct Rival {
    bytes: u64,
    writer: Half,
    _reader: Half,
}

struct Half {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Half {
    fn start(prefix: &[String], arguments: &[String]) -> Result<Half, String> {
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut line: Vec<std::ffi::OsString> = prefix.iter().map(Into::into).collect();
        line.push(program.into());
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).arg(FLAG).args(arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(|e| format!("the rival: {e}"))?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take());
        let answers = BufReader::new(answers.ok_or("the rival has no output")?);
        Ok(Half { child, orders: orders.ok_or("the rival has no input")?, answers })
    }

    fn hear(&mut self) -> Result<String, String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(|e| e.to_string())?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Rival {
    /// Two processes with `bytes` of populated memory each that copy `chunk` bytes a write. `prefixes` puts them into
    /// namespaces, writer first, and `host` is the address on which the reader listens there.
    pub fn start(bytes: u64, chunk: u64, prefixes: [&[String]; 2], host: &str) -> Result<Rival, String> {
        let mut reader = Half::start(prefixes[1], &["reader".into(), bytes.to_string(), format!("{host}:0")])?;
        let address = reader.hear()?;
        let mut writer = Half::start(prefixes[0], &["writer".into(), bytes.to_string(), address, chunk.to_string()])?;
        match writer.hear()?.as_str() {
            "populated" => Ok(Rival { bytes, writer, _reader: reader }),
            other => Err(format!("the rival's writer said {other:?}")),
        }
    }

    /// Copies everything so many times. The median of bytes a second.
    pub fn copy(&mut self, times: u32) -> Result<f64, String> {
        let rates: Result<Vec<f64>, String> = (0..times).map(|_| self.once()).collect();
        Ok(median(&rates?))
    }

    fn once(&mut self) -> Result<f64, String> {
        writeln!(self.writer.orders, "again").map_err(|e| e.to_string())?;
        let seconds: f64 = self.writer.hear()?.parse().map_err(|_| "the rival's writer is gone".to_owned())?;
        Ok(self.bytes as f64 / seconds)
    }
}

/// Lives as one half.
pub fn serve(arguments: &[String]) -> io::Result<()> {
    let bad = || io::Error::from(io::ErrorKind::InvalidInput);
    let number = |at: usize| arguments.get(at).and_then(|a| a.parse::<usize>().ok()).ok_or_else(bad);
    let address = arguments.get(2).ok_or_else(bad)?;
    match arguments.first().map(String::as_str) {
        Some("reader") => read_for_ever(number(1)?, address),
        Some("writer") => write_on_order(number(1)?, address, number(3)?),
        _ => Err(bad()),
    }
}

fn read_for_ever(bytes: usize, address: &str) -> io::Result<()> {
    let memory = populated(bytes)?;
    let listener = TcpListener::bind(address)?;
    println!("{}", listener.local_addr()?);
    loop {
        let mut stream = listener.accept()?.0;
        stream.set_nodelay(true)?;
        stream.write_all(&[1])?;
        for chunk in memory.chunks_mut(READ_BYTES) {
            stream.read_exact(chunk)?;
        }
        stream.write_all(&[1])?;
    }
}

fn write_on_order(bytes: usize, address: &str, chunk: usize) -> io::Result<()> {
    let memory = populated(bytes)?;
    // Content that no kernel or processor could shorten.
    let mut state = 1u64;
    for word in memory.as_chunks_mut::<8>().0 {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        *word = state.to_ne_bytes();
    }
    println!("populated");
    for order in io::stdin().lines() {
        order?;
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.read_exact(&mut [0])?;
        let start = Instant::now();
        for chunk in memory.chunks(chunk) {
            stream.write_all(chunk)?;
        }
        stream.read_exact(&mut [0])?;
        println!("{}", start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// A memfd of small pages, mapped and touched, as guest RAM is.
fn populated(bytes: usize) -> io::Result<&'static mut [u8]> {
    let fd = rustix::fs::memfd_create("rival", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&fd, bytes as u64)?;
    let flags = MapFlags::SHARED | MapFlags::POPULATE;
    // SAFETY: a new mapping at an address that the kernel chooses touches nobody's memory.
    let base =
        unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags, &fd, 0) }?;
    // SAFETY: the mapping is that long and is never unmapped; nobody else has the memfd, so this is the only reference.
    let memory = unsafe { std::slice::from_raw_parts_mut(base.cast::<u8>(), bytes) };
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    Ok(memory)
}
