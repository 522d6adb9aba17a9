//! What a server offers: named backends and the bounds that protect it from its clients.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use crate::{backend::Backend, protocol::flag, tls::ServerTls};

/// The exports of a server, by name.
#[derive(Default)]
pub struct Exports {
    named: BTreeMap<String, Arc<dyn Backend>>,
    default: Option<String>,
    limits: Limits,
    tls: Option<ServerTls>,
}

impl Exports {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One backend under the empty name, the default export.
    pub fn single(backend: Arc<dyn Backend>) -> Self {
        Self::new().with("", backend)
    }

    /// Adds an export, or replaces the one of that name.
    pub fn with(mut self, name: impl Into<String>, backend: Arc<dyn Backend>) -> Self {
        self.named.insert(name.into(), backend);
        self
    }

    /// Makes an export the one that a client gets for the empty name.
    pub fn with_default(mut self, name: impl Into<String>) -> Self {
        self.default = Some(name.into());
        self
    }

    /// Replaces the bounds.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Offers TLS.
    pub fn with_tls(mut self, tls: ServerTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// The TLS that is offered.
    pub(crate) fn tls(&self) -> Option<&ServerTls> {
        self.tls.as_ref()
    }

    /// The export for the name that a client gave, with its canonical name.
    pub fn find(&self, name: &str) -> Option<(&str, &Arc<dyn Backend>)> {
        let exact = self.named.get_key_value(name);
        let found = match &self.default {
            Some(default) if name.is_empty() => exact.or_else(|| self.named.get_key_value(default)),
            _ => exact,
        };
        found.map(|(name, backend)| (name.as_str(), backend))
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<dyn Backend>)> {
        self.named.iter().map(|(name, backend)| (name.as_str(), backend))
    }

    /// The bounds.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Flushes every writable export; the first error, after all were tried.
    pub fn flush(&self) -> io::Result<()> {
        let writable = self.named.values().filter(|backend| !backend.read_only());
        let results: Vec<io::Result<()>> = writable.map(|backend| backend.flush()).collect();
        results.into_iter().collect()
    }
}

impl std::fmt::Debug for Exports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exports")
            .field("names", &self.named.keys())
            .field("default", &self.default)
            .field("limits", &self.limits)
            .field("tls", &self.tls)
            .finish()
    }
}

/// What one connection may use.
///
/// Its memory stays below `in_flight_bytes` + 2 x 32 MiB (a request that is arriving, a reply that overshoots) + 1 MiB of
/// fixed buffers, whatever the client sends or refuses to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How long a client may negotiate.
    pub negotiation: Duration,
    /// How long a client may take for the last replies after a shutdown, a disconnect or an error.
    pub farewell: Duration,
    /// How many options it may send.
    pub options: u32,
    /// How many bytes of options it may send.
    pub option_bytes: u64,
    /// Requests accepted and not yet answered.
    pub in_flight_requests: usize,
    /// Payload bytes of requests accepted and not yet answered, and of answers not yet taken by the client.
    pub in_flight_bytes: usize,
    /// Backend calls of one connection that run, and may block, at the same time; further ones queue.
    pub blocking_calls: usize,
    /// Connections that a [`crate::Server`] serves at the same time; further ones wait to be accepted.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            negotiation: Duration::from_secs(60),
            farewell: Duration::from_secs(10),
            options: 1024,
            option_bytes: 1 << 20,
            in_flight_requests: 1024,
            in_flight_bytes: 64 << 20,
            blocking_calls: 64,
            connections: 256,
        }
    }
}

/// The transmission flags of an export.
pub(crate) fn transmission_flags(backend: &dyn Backend, structured: bool) -> u16 {
    let mut flags = flag::HAS_FLAGS | flag::SEND_FLUSH;
    if backend.read_only() {
        flags |= flag::READ_ONLY;
    } else {
        flags |= flag::SEND_FUA | flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
    }
    if structured {
        flags |= flag::SEND_DF;
    }
    if backend.multi_conn() {
        flags |= flag::CAN_MULTI_CONN;
    }
    flags
}
