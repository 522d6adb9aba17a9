//! A client of a service in the guest: connects, sends and waits for the answer, over and over, a request at a time.
//!
//! It reaches the guest as anything outside does, here by QEMU's user-mode network, whose connections end with the QEMU
//! that has them. So each request has a connection of its own, and at the destination the client begins when the guest does.

use super::command::NETWORK;
use crate::brought::Probe;
use crate::clock::monotonic;
use crate::error::MachineError;
use crate::machine::Silence;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use whimbrel_model::Nanos;
use whimbrel_model::event::Requests;

/// How long a client waits for an answer: much longer than a translated guest takes, and not as long as what would be lost
/// with one packet, for which the network waits a second and more.
const PATIENCE: Duration = Duration::from_millis(250);

/// The longest answer in which what is expected is looked for.
const LONGEST: usize = 64 << 10;

#[derive(Default)]
struct Told {
    asks: bool,
    over: bool,
    requests: Requests,
    longest_ns: u64,
    first: Nanos,
    last: Nanos,
}

#[derive(Default)]
struct Shared {
    told: Mutex<Told>,
    changed: Condvar,
}

impl Shared {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits as long as `waits` says so, or until the time is up.
    fn wait(&self, end: Option<Instant>, waits: impl Fn(&Told) -> bool) -> MutexGuard<'_, Told> {
        let mut told = self.told();
        while waits(&told) {
            told = match end.map(|end| end.saturating_duration_since(Instant::now())) {
                None => self.changed.wait(told).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => break,
                Some(left) => self.changed.wait_timeout(told, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        told
    }
}

/// The client.
pub(super) struct Service {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// A client of the service behind `port` of this host. It asks nothing yet.
    ///
    /// # Errors
    /// There are no more threads.
    pub(super) fn behind(port: u16, probe: Probe) -> Result<Self, MachineError> {
        let shared = Arc::new(Shared::default());
        let told = Arc::clone(&shared);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let thread = std::thread::Builder::new().name("probe".to_owned());
        let thread = thread.spawn(move || serve(&told, address, &probe)).map_err(MachineError::Thread)?;
        Ok(Service { shared, thread: Some(thread) })
    }

    /// Whether it begins new requests from now on.
    pub(super) fn ask(&self, asks: bool) {
        self.shared.told().asks = asks;
        self.shared.changed.notify_all();
    }

    /// Waits for the first answer, or until `given_up` says why not to.
    ///
    /// # Errors
    /// There was none in that time.
    pub(super) fn wait_answer(
        &self,
        patience: Duration,
        given_up: &dyn Fn() -> Option<String>,
    ) -> Result<(), MachineError> {
        let end = Instant::now() + patience;
        while self.shared.wait(Some(Instant::now() + PATIENCE), |told| told.last.0 == 0).last.0 == 0 {
            if let Some(why) = given_up() {
                return Err(MachineError::Hypervisor(why));
            }
            if Instant::now() >= end {
                let why = format!("the guest's service did not answer within {} s", patience.as_secs());
                return Err(MachineError::Hypervisor(why));
            }
        }
        Ok(())
    }

    /// The answers, as heartbeats.
    pub(super) fn silence(&self) -> Silence {
        let told = self.shared.told();
        Silence {
            longest_ns: told.longest_ns,
            first_beats: vec![told.first],
            last_beats: vec![told.last],
            own_clock: [None; 2],
            requests: Some(told.requests),
        }
    }

    /// Forgets the longest silence, the first answer and what became of the requests.
    pub(super) fn reset_silence(&self) {
        let mut told = self.shared.told();
        (told.longest_ns, told.first) = (0, Nanos(0));
        told.requests = Requests { open: told.requests.open, ..Requests::default() };
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shared.told().over = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // What panics there has said so.
            let _ = thread.join();
        }
    }
}

fn serve(shared: &Shared, address: SocketAddr, probe: &Probe) {
    loop {
        let mut told = shared.wait(None, |told| !told.asks && !told.over);
        if told.over {
            return;
        }
        told.requests.open = 1;
        drop(told);
        let began = Instant::now();
        let answered = ask(address, probe);
        let now = monotonic();
        let mut told = shared.told();
        told.requests.open = 0;
        match answered {
            Ok(()) => {
                told.requests.answered += 1;
                if told.last.0 != 0 {
                    told.longest_ns = told.longest_ns.max(now.since(told.last).0);
                }
                if told.first.0 == 0 {
                    told.first = now;
                }
                told.last = now;
            }
            Err(_) => told.requests.lost += 1,
        }
        drop(told);
        shared.changed.notify_all();
        drop(shared.wait(Some(began + probe.every), |told| !told.over));
    }
}

/// One request.
fn ask(address: SocketAddr, probe: &Probe) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    // Whoever has been asked forgets at once. A guest that remembered its connections for a minute, as the one that closes first does,
    // would refuse those of the client at the other host that happen to come from a port of one of them.
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(probe.send.as_bytes())?;
    let (mut answer, wanted) = (Vec::new(), probe.expect.as_bytes());
    let mut piece = [0; 4096];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || answer.len() > LONGEST {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let bytes = stream.read(&mut piece)?;
        answer.extend_from_slice(&piece[..bytes]);
        let found = wanted.is_empty() || answer.windows(wanted.len()).any(|window| window == wanted);
        match bytes {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ if found => return Ok(()),
            _ => {}
        }
    }
}

/// The port of this host that QEMU forwards to the guest, from what it says of its user-mode networks.
pub(super) fn forwarded_port(told: &str) -> Option<u16> {
    // Hub -1 (whimbrel):
    //   Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
    //   TCP[HOST_FORWARD]  12       127.0.0.1 40123       10.0.2.15  8080     0     0
    let ours = told.lines().skip_while(|line| !line.contains(&format!("({NETWORK})")));
    let line = ours.skip(1).find(|line| line.trim_start().starts_with("TCP[HOST_FORWARD]"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn probe(expect: &str) -> Probe {
        Probe { port: 0, send: "hello\n".into(), expect: expect.into(), every: Duration::from_millis(1) }
    }

    /// Answers each connection by what it says, piece by piece; nothing: it hangs up.
    fn server(answers: &'static [&'static [&'static str]]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for (stream, answer) in listener.incoming().zip(answers.iter().cycle()) {
                let mut stream = stream.unwrap();
                let mut heard = [0; 6];
                stream.read_exact(&mut heard).unwrap();
                // A client that has what it wants may be gone.
                answer.iter().for_each(|piece| drop(stream.write_all(piece.as_bytes())));
            }
        });
        port
    }

    #[test]
    fn answers_are_heartbeats_and_what_is_no_answer_is_lost() {
        let service = Service::behind(server(&[&["20", "0 OK"], &["500"], &[]]), probe("200 OK")).unwrap();
        let never = || None;
        assert!(service.wait_answer(Duration::ZERO, &never).is_err(), "nothing was asked yet");
        service.ask(true);
        service.wait_answer(Duration::from_secs(60), &never).unwrap();
        let lost = |told: &Told| told.requests.lost < 2 || told.requests.answered < 2;
        drop(service.shared.wait(None, lost));
        service.ask(false);
        let silence = service.silence();
        let requests = silence.requests.unwrap();
        assert!(requests.lost >= requests.answered, "of three two are no answers: {requests:?}");
        assert!(silence.longest_ns > 0 && silence.first_beats < silence.last_beats, "{silence:?}");
        service.reset_silence();
        assert_eq!((service.silence().longest_ns, service.silence().first_beats), (0, vec![Nanos(0)]));
    }

    #[test]
    fn a_server_that_was_asked_keeps_nothing_of_the_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"200 OK").unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all)
        });
        ask(address, &probe("200 OK")).unwrap();
        assert_eq!(server.join().unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn the_port_is_found_in_what_qemu_says() {
        let told = "Hub -1 (theirs):\n  TCP[HOST_FORWARD]  11       127.0.0.1 22       10.0.2.15    22     0     0\n\
                    Hub -1 (whimbrel):\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\n  \
                    TCP[HOST_FORWARD]  12       127.0.0.1 40123       10.0.2.15  8080     0     0\n";
        assert_eq!(forwarded_port(told), Some(40123));
        assert_eq!(forwarded_port("nothing"), None);
    }
}
