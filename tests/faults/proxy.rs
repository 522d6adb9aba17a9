//! A proxy between the source and the destination that breaks the link, or a host, at a chosen point of a move.
//!
//! It knows each connection by the role in its hello and follows the messages of the control connection, so that a point
//! can be named: so many bytes into a lane, or just before or after a message has crossed.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A connection's place in a hello: magic, version, the body's length, then the role.
const ROLE_AT: usize = 12;

/// Messages that the proxy knows when they pass.
const MESSAGES: [&str; 7] = ["state", "loaded", "hand_over", "resumed", "whole", "released", "abort"];

/// What a connection is for, by its number in a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Control = 2,
    Push = 3,
    Demand = 4,
    DiskPush = 5,
    DiskPull = 6,
    DiskPrefetch = 7,
    DiskMirror = 8,
    DiskOffer = 9,
}

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toward {
    Source,
    Destination,
}

/// A point of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// So many bytes have crossed on a lane.
    Bytes(Lane, Toward, u64),
    /// So many bytes have crossed on a lane since that message.
    Since(&'static str, Lane, Toward, u64),
    /// The message has come and has not crossed.
    Before(&'static str),
    /// The message has crossed.
    After(&'static str),
}

/// What happens at the point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Every connection ends, and no other is let through.
    CutAll,
    /// The connection on which the point lies ends.
    CutOne,
    /// As `CutOne`, and of the connections that are made afterwards the first is ended at once.
    CutOneAndTheNext,
    /// A process is killed.
    Kill(rustix::process::Pid),
    /// Nothing passes on any connection for this time.
    Stall(Duration),
}

/// The proxy. It lives as long as its connections.
pub struct Proxy {
    /// Where the source finds it.
    pub address: SocketAddr,
    shared: Arc<Mutex<State>>,
    told: Mutex<Receiver<()>>,
}

struct State {
    point: Point,
    act: Act,
    /// The point was reached; the messages that had crossed by then.
    fired: Option<BTreeSet<&'static str>>,
    /// Who waits for that hears of it.
    tells: Sender<()>,
    /// No other connection is let through.
    closed: bool,
    /// The next one isn't.
    refuses: bool,
    crossed: BTreeSet<&'static str>,
    streams: Vec<TcpStream>,
}

impl Proxy {
    /// Listens, and connects whoever comes with `destination`.
    pub fn start(destination: SocketAddr, point: Point, act: Act) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (crossed, streams) = (BTreeSet::new(), Vec::new());
        let (tells, told) = channel();
        let state = State { point, act, fired: None, tells, closed: false, refuses: false, crossed, streams };
        let shared = Arc::new(Mutex::new(state));
        let theirs = Arc::clone(&shared);
        std::thread::spawn(move || {
            while let Ok((from, _)) = listener.accept() {
                if lock(&theirs).closed {
                    return;
                }
                if std::mem::take(&mut lock(&theirs).refuses) {
                    continue;
                }
                // A destination that was killed takes nobody in: dropping the stream says so.
                let Ok(to) = TcpStream::connect(destination) else { continue };
                let shared = Arc::clone(&theirs);
                std::thread::spawn(move || relay(from, to, &shared));
            }
        });
        Proxy { address, shared, told: Mutex::new(told) }
    }

    /// Whether the point was reached.
    pub fn fired(&self) -> bool {
        lock(&self.shared).fired.is_some()
    }

    /// Returns once the point was reached and the act is done.
    pub fn wait_until_fired(&self) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).recv().unwrap();
        assert!(self.fired());
    }

    /// Whether that message had crossed when the point was reached.
    pub fn had_crossed(&self, message: &str) -> bool {
        lock(&self.shared).fired.as_ref().is_some_and(|crossed| crossed.contains(message))
    }

    /// Whether that message has crossed.
    pub fn crossed(&self, message: &str) -> bool {
        lock(&self.shared).crossed.contains(message)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        cut_all(&mut lock(&self.shared));
        // Wakes the listener, which sees that it is closed.
        let _ = TcpStream::connect(self.address);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cut_all(state: &mut State) {
    state.closed = true;
    for stream in state.streams.drain(..) {
        // One that has ended can't be shut down.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Passes bytes both ways.
fn relay(mut from: TcpStream, to: TcpStream, shared: &Arc<Mutex<State>>) {
    for stream in [&from, &to] {
        let _ = stream.set_nodelay(true);
        lock(shared).streams.push(stream.try_clone().unwrap());
    }
    let mut hello = [0; ROLE_AT + 1];
    if from.read_exact(&mut hello).is_err() {
        return;
    }
    let pass = |toward, input: &TcpStream, output: &TcpStream, first: &[u8]| {
        let (input, output) = (input.try_clone().unwrap(), output.try_clone().unwrap());
        let (shared, first, role) = (Arc::clone(shared), first.to_vec(), hello[ROLE_AT]);
        let mut way = Way { role, toward, input, output, count: 0, since: None, tail: Vec::new(), shared };
        std::thread::spawn(move || way.run(&first))
    };
    pass(Toward::Source, &to, &from, &[]);
    pass(Toward::Destination, &from, &to, &hello);
}

/// One direction of a connection.
struct Way {
    role: u8,
    toward: Toward,
    input: TcpStream,
    output: TcpStream,
    count: u64,
    /// The count when the point's message had crossed.
    since: Option<u64>,
    /// The end of what has passed: a message may come in parts.
    tail: Vec<u8>,
    shared: Arc<Mutex<State>>,
}

impl Way {
    fn run(&mut self, first: &[u8]) {
        let mut buffer = vec![0; 16 << 10];
        let mut length = first.len();
        buffer[..length].copy_from_slice(first);
        loop {
            if length > 0 && !self.pass(&buffer[..length]) {
                break;
            }
            match self.input.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(read) => length = read,
            }
        }
        // The end of one direction is passed on; the other may still have something to say.
        let _ = self.output.shutdown(Shutdown::Write);
    }

    /// Passes a piece on, and acts if the point lies in it. False once nothing more is to be passed on.
    fn pass(&mut self, piece: &[u8]) -> bool {
        let said = self.said(piece);
        let here = |lane: Lane, toward| lane as u8 == self.role && toward == self.toward;
        let shared = Arc::clone(&self.shared);
        let mut state = lock(&shared);
        if state.closed {
            return false;
        }
        let passing = match state.point {
            _ if state.fired.is_some() => None,
            Point::Bytes(lane, toward, bytes) if here(lane, toward) => self.room(bytes, piece),
            Point::Since(message, lane, toward, bytes) if here(lane, toward) && state.crossed.contains(message) => {
                let since = *self.since.get_or_insert(self.count);
                self.room(since + bytes, piece)
            }
            Point::Before(message) if said.contains(&message) => Some(0),
            Point::After(message) if said.contains(&message) => Some(piece.len()),
            _ => None,
        };
        self.count += piece.len() as u64;
        let Some(length) = passing else {
            // Under the lock too, for a message is known to have crossed before anything follows from it.
            if said.is_empty() {
                drop(state);
                return self.output.write_all(piece).is_ok();
            }
            let passed = self.output.write_all(piece).is_ok();
            state.crossed.extend(said.iter().filter(|_| passed));
            return passed;
        };
        if length == piece.len() {
            state.crossed.extend(&said);
        }
        state.fired = Some(state.crossed.clone());
        // Mostly nobody waits.
        let _ = state.tells.send(());
        // Under the lock: nothing else passes between the point and the act.
        let passed = self.output.write_all(&piece[..length]).is_ok();
        match state.act {
            Act::Stall(time) => {
                std::thread::sleep(time);
                let passed = passed && self.output.write_all(&piece[length..]).is_ok();
                state.crossed.extend(said.iter().filter(|_| passed));
                return passed;
            }
            Act::CutAll => cut_all(&mut state),
            Act::CutOne | Act::CutOneAndTheNext => {
                state.refuses = state.act == Act::CutOneAndTheNext;
                [&self.input, &self.output].into_iter().for_each(|s| _ = s.shutdown(Shutdown::Both));
            }
            Act::Kill(pid) => {
                // What it had said and what lay on its way is gone with it.
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            }
        }
        false
    }

    /// How much of the piece lies before byte `bytes`, if that lies in it.
    fn room(&self, bytes: u64, piece: &[u8]) -> Option<usize> {
        (self.count + piece.len() as u64 >= bytes).then(|| bytes.saturating_sub(self.count) as usize)
    }

    /// The messages that end in this piece.
    fn said(&mut self, piece: &[u8]) -> Vec<&'static str> {
        if self.role != Lane::Control as u8 {
            return Vec::new();
        }
        let before = self.tail.len();
        self.tail.extend_from_slice(piece);
        let ends_here = |message: &&str| {
            let text = format!("\"say\":\"{message}\"");
            self.tail.windows(text.len()).enumerate().any(|(at, w)| w == text.as_bytes() && at + text.len() > before)
        };
        let said = MESSAGES.into_iter().filter(|message| ends_here(message)).collect();
        let keep = self.tail.len().saturating_sub(64);
        self.tail.drain(..keep);
        said
    }
}
