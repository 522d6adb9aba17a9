//! `link.via = "netns"`: two network namespaces whose link the kernel holds to a rate. It takes root and iproute2.
//!
//! ```text
//!   namespace PREFIX-PID-N-source                    namespace PREFIX-PID-N-destination
//!   ┌───────────────────────────┐                    ┌────────────────────────────────┐
//!   │ 10.83.0.1   whimbrel0     │◄══════ veth ══════►│     whimbrel0   10.83.0.2      │
//!   │             tbf, rate     │                    │     tbf, rate                  │
//!   └───────────────────────────┘                    └────────────────────────────────┘
//! ```
//!
//! A host's agent is started inside by [`Namespaces::command_prefix`]; whoever coordinates from outside reaches it by
//! [`connect_in`]. Both ends' queues are token bucket filters (tc-tbf) with a burst of at least one kernel tick of the
//! rate and 128 KiB: a segmented packet of 64 KiB must fit with its headers, or throughput collapses. The filter counts
//! what lies on the wire, headers included, so TCP has about 0.95 of the rate.
//!
//! Namespaces go when the value is dropped. A program that was killed leaves its own behind: they carry its process
//! number, by which [`remove_stale`] knows them.

use crate::WireError;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use whimbrel_model::ByteRate;

/// Where iproute2 keeps the namespaces' names.
const NAMES: &str = "/run/netns";
const INTERFACE: &str = "whimbrel0";
const LEAST_BURST_BYTES: u64 = 128 << 10;
/// Ticks a second of the slowest kernel configuration that servers use.
const TICKS_PER_S: u64 = 250;
const LONGEST_PREFIX: usize = 32;
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// Tells apart the namespaces of one program.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// One of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

impl End {
    const BOTH: [End; 2] = [End::Source, End::Destination];

    fn suffix(self) -> &'static str {
        match self {
            End::Source => "source",
            End::Destination => "destination",
        }
    }

    /// The host's address inside.
    pub fn address(self) -> IpAddr {
        let last = match self {
            End::Source => 1,
            End::Destination => 2,
        };
        IpAddr::V4(Ipv4Addr::new(10, 83, 0, last))
    }
}

/// Two connected namespaces; see the [module](self). Removed when dropped.
#[derive(Debug)]
pub struct Namespaces {
    base: String,
}

impl Namespaces {
    /// Makes two namespaces whose names begin with `prefix`, joined at `rate` both ways (`None`: as fast as they go).
    ///
    /// # Errors
    /// [`WireError::Namespaces`] where [`available`] says so or the prefix is none; [`WireError::Command`] if a step
    /// fails. What was made until then is removed.
    pub fn create(rate: Option<ByteRate>, prefix: &str) -> Result<Self, WireError> {
        available()?;
        check_prefix(prefix)?;
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        // Made before the first step, so that dropping it undoes the steps before one that fails.
        let namespaces = Namespaces { base: format!("{prefix}-{}-{serial}", std::process::id()) };
        let [source, destination] = End::BOTH.map(|end| namespaces.name(end));
        run("ip", &["netns", "add", &source])?;
        run("ip", &["netns", "add", &destination])?;
        let one = ["link", "add", "name", INTERFACE, "netns", &source];
        let other = ["type", "veth", "peer", "name", INTERFACE, "netns", &destination];
        run("ip", &[&one[..], &other[..]].concat())?;
        for end in End::BOTH {
            let name = namespaces.name(end);
            run("ip", &["-n", &name, "address", "add", &format!("{}/24", end.address()), "dev", INTERFACE])?;
            run("ip", &["-n", &name, "link", "set", "dev", "lo", "up"])?;
            run("ip", &["-n", &name, "link", "set", "dev", INTERFACE, "up"])?;
            if let Some(rate) = rate {
                limit(&name, rate)?;
            }
        }
        Ok(namespaces)
    }

    /// The name of a host's namespace.
    pub fn name(&self, end: End) -> String {
        format!("{}-{}", self.base, end.suffix())
    }

    /// What to put before a command line so that it runs inside.
    pub fn command_prefix(&self, end: End) -> [String; 4] {
        ["ip".to_owned(), "netns".to_owned(), "exec".to_owned(), self.name(end)]
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for end in End::BOTH {
            // A namespace that was not made, or was removed by hand, is no concern of anybody's.
            let _ = remove(&self.name(end));
        }
    }
}

/// Whether this user can make namespaces here.
///
/// # Errors
/// [`WireError::Namespaces`] says what is missing.
pub fn available() -> Result<(), WireError> {
    if !rustix::process::geteuid().is_root() {
        return Err(unavailable("making them takes root"));
    }
    for (program, flag) in [("ip", "-V"), ("tc", "-V")] {
        run(program, &[flag])?;
    }
    Ok(())
}

/// Removes the namespaces with this prefix whose program is gone. Returns their names.
///
/// # Errors
/// The prefix is none, or a namespace can't be removed.
pub fn remove_stale(prefix: &str) -> Result<Vec<String>, WireError> {
    check_prefix(prefix)?;
    let names = match std::fs::read_dir(NAMES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        names => names?,
    };
    let mut removed = Vec::new();
    for name in names {
        let Ok(name) = name?.file_name().into_string() else { continue };
        if owner(&name, prefix).is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists()) {
            remove(&name)?;
            removed.push(name);
        }
    }
    Ok(removed)
}

/// Connects to `address` from inside a namespace, within 10 s. The socket stays there wherever it is used.
///
/// # Errors
/// There is no such namespace, it can't be entered, or nobody answers.
pub fn connect_in(namespace: &str, address: SocketAddr) -> Result<TcpStream, WireError> {
    within(namespace, || TcpStream::connect_timeout(&address, CONNECT_PATIENCE))
}

/// Runs `work` on a thread inside a namespace and waits for it. Sockets that it makes stay there.
///
/// # Errors
/// There is no such namespace, it can't be entered, or `work` failed.
pub fn within<T: Send>(namespace: &str, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T, WireError> {
    let entered = || {
        let file = File::open(Path::new(NAMES).join(namespace))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok::<_, io::Error>(())
    };
    // A thread of its own: the namespace is a property of the thread, and this one ends with it.
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            entered().map_err(|error| unavailable(format!("{namespace} can't be entered: {error}")))?;
            Ok(work()?)
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Limits what a namespace sends.
fn limit(namespace: &str, rate: ByteRate) -> Result<(), WireError> {
    let bytes_per_s = (rate.0 as u64).max(1);
    let burst = (bytes_per_s / TICKS_PER_S).max(LEAST_BURST_BYTES);
    let (rate, burst) = (format!("{}bit", bytes_per_s.saturating_mul(8)), burst.to_string());
    let queue = ["tbf", "rate", &rate, "burst", &burst, "latency", "50ms"];
    run("tc", &[&["-n", namespace, "qdisc", "add", "dev", INTERFACE, "root"], &queue[..]].concat())
}

fn remove(name: &str) -> Result<(), WireError> {
    run("ip", &["netns", "delete", name])
}

/// The process that made the namespace of this name, if it is one of ours.
fn owner(name: &str, prefix: &str) -> Option<u32> {
    let mut parts = name.strip_prefix(prefix)?.strip_prefix('-')?.split('-');
    let (process, serial, end) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    let ours = serial.parse::<u64>().is_ok() && End::BOTH.iter().any(|e| e.suffix() == end) && parts.next().is_none();
    ours.then_some(process)
}

fn check_prefix(prefix: &str) -> Result<(), WireError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if prefix.is_empty() || prefix.len() > LONGEST_PREFIX || prefix.starts_with('-') || !prefix.bytes().all(plain) {
        return Err(unavailable(format!("{prefix:?} can't begin a name: use letters and digits")));
    }
    Ok(())
}

fn unavailable(why: impl Into<String>) -> WireError {
    WireError::Namespaces { why: why.into() }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), WireError> {
    let failed = |why: String| WireError::Command { command: format!("{program} {}", arguments.join(" ")), why };
    match Command::new(program).args(arguments.iter().map(OsStr::new)).output() {
        Ok(Output { status, .. }) if status.success() => Ok(()),
        Ok(Output { status, stderr, .. }) => {
            let said = String::from_utf8_lossy(&stderr);
            Err(failed(format!("{} ({status})", said.trim())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(unavailable(format!("the program {program} (of iproute2) is not installed")))
        }
        Err(error) => Err(failed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_have_an_owner() {
        assert_eq!(owner("whimbrel-12-0-source", "whimbrel"), Some(12));
        assert_eq!(owner("whimbrel-x-12-3-destination", "whimbrel-x"), Some(12));
        for name in [
            "whimbrel",
            "whimbrel-12-0",
            "whimbrel-12-0-source-2",
            "whimbrel-x-0-source",
            "other-12-0-source",
            "whimbrel-12-x-source",
            "whimbrel-12-0-middle",
            "whimbrel2-12-0-source",
        ] {
            assert_eq!(owner(name, "whimbrel"), None, "{name}");
        }
    }

    #[test]
    fn a_prefix_that_could_mean_something_else_is_refused() {
        for prefix in ["", "-n", "a/b", "..", "a b", &"x".repeat(33)] {
            assert!(matches!(remove_stale(prefix), Err(WireError::Namespaces { .. })), "{prefix:?}");
        }
    }

    #[test]
    fn a_namespace_that_is_not_there_is_named() {
        let error = connect_in("whimbrel-no-such", "10.83.0.1:1".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("whimbrel-no-such"), "{error}");
    }
}
