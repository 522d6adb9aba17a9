//! The server's half of the negotiation (fixed newstyle).
//!
//! ```text
//! server                                          client
//!   NBDMAGIC IHAVEOPT handshake flags        ->
//!                                            <-   client flags
//!                                            <-   LIST                       optional, any number, any order
//!   SERVER* ACK                              ->
//!                                            <-   STRUCTURED_REPLY
//!   ACK                                      ->
//!                                            <-   SET_META_CONTEXT export, queries
//!   META_CONTEXT* ACK                        ->
//!                                            <-   GO export
//!   INFO* ACK                                ->                              then transmission
//!   or ERR_*                                 ->                              and on with options
//! ```
//!
//! Where TLS is offered, STARTTLS may come first, and must where it is required: then nothing but ABORT is answered before
//! it. After its ACK comes the handshake, all that was said before is forgotten, and the negotiation begins anew, without
//! the greeting, on the stream within.
//!
//! An option that is not known is answered with ERR_UNSUP. Options are bounded in size, number, bytes and time; beyond a
//! bound the connection is closed.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::{
    backend::{Backend, BlockSizes},
    buffers::Input,
    error::NbdError,
    exports::{Exports, transmission_flags},
    options::{Go, Information, MetaContext, encode_option_reply, encode_string},
    protocol::{
        Cursor, MAGIC_OPTION, MAGIC_SERVER, MAX_OPTION_BYTES, MAX_PAYLOAD_BYTES, MAX_STRING_BYTES, handshake, info,
        option, reply,
    },
};

/// What was agreed on.
pub(crate) struct Agreed {
    /// The export's backend.
    pub(crate) backend: Arc<dyn Backend>,
    /// Its size.
    pub(crate) size_bytes: u64,
    /// Its block sizes.
    pub(crate) block_sizes: BlockSizes,
    /// Whether replies are structured.
    pub(crate) structured: bool,
    /// The chosen contexts; a context's number is its index.
    pub(crate) contexts: Vec<String>,
}

struct Negotiation<'a, S> {
    stream: &'a mut S,
    input: &'a mut Input,
    exports: &'a Exports,
    /// Replies, written after each option.
    output: Vec<u8>,
    zeroes: bool,
    secure: bool,
    structured: bool,
    /// The export that contexts were chosen for, and the contexts.
    chosen: Option<(String, Vec<String>)>,
}

enum Next {
    Option,
    Secure,
    Transmission(Agreed),
    Abort,
}

/// How a negotiation ended.
pub(crate) enum Negotiated {
    /// The client wants to go on within TLS.
    Secure(Greeted),
    /// An export is entered.
    Agreed(Agreed),
    /// The client ended it.
    Aborted,
}

/// What the greeting settled, which holds within TLS, too.
#[derive(Clone, Copy)]
pub(crate) struct Greeted {
    zeroes: bool,
}

/// Negotiates, with a greeting or, within TLS, after it. Takes no longer than the limits allow.
pub(crate) async fn negotiate<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    input: &mut Input,
    exports: &Exports,
    greeted: Option<Greeted>,
) -> Result<Negotiated, NbdError> {
    let zeroes = greeted.is_none_or(|greeted| greeted.zeroes);
    let secure = greeted.is_some();
    let mut negotiation =
        Negotiation { stream, input, exports, output: Vec::new(), zeroes, secure, structured: false, chosen: None };
    match tokio::time::timeout(exports.limits().negotiation, negotiation.run()).await {
        Ok(result) => result,
        Err(_) => Err(NbdError::NegotiationBound("time")),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Negotiation<'_, S> {
    async fn run(&mut self) -> Result<Negotiated, NbdError> {
        if !self.secure {
            self.hello().await?;
        }
        let limits = self.exports.limits();
        let mut bytes_left = limits.option_bytes;
        for _ in 0..limits.options {
            let (option, data) = self.option().await?;
            bytes_left = bytes_left.checked_sub(16 + data.len() as u64).ok_or(NbdError::NegotiationBound("bytes"))?;
            let next = self.answer(option, &data)?;
            self.stream.write_all(&self.output).await?;
            self.stream.flush().await?;
            self.output.clear();
            match next {
                Next::Option => (),
                // Only what was asked for has been read: whatever the client slipped in comes to the handshake, and breaks it.
                Next::Secure => return Ok(Negotiated::Secure(Greeted { zeroes: self.zeroes })),
                Next::Transmission(agreed) => return Ok(Negotiated::Agreed(agreed)),
                Next::Abort => return Ok(Negotiated::Aborted),
            }
        }
        Err(NbdError::NegotiationBound("options"))
    }

    async fn hello(&mut self) -> Result<(), NbdError> {
        let mut hello = Vec::with_capacity(18);
        hello.extend_from_slice(&MAGIC_SERVER.to_be_bytes());
        hello.extend_from_slice(&MAGIC_OPTION.to_be_bytes());
        let ours = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
        hello.extend_from_slice(&ours.to_be_bytes());
        self.stream.write_all(&hello).await?;
        self.stream.flush().await?;
        let mut theirs = [0; 4];
        self.input.read_exact(self.stream, &mut theirs, "sending its flags").await?;
        let theirs = u32::from_be_bytes(theirs);
        if theirs & !u32::from(ours) != 0 {
            return Err(NbdError::Protocol("unknown client flags"));
        }
        self.zeroes = theirs & u32::from(handshake::NO_ZEROES) == 0;
        Ok(())
    }

    async fn option(&mut self) -> Result<(u32, Vec<u8>), NbdError> {
        let mut header = [0; 16];
        self.input.read_exact(self.stream, &mut header, "sending an option").await?;
        let mut cursor = Cursor(&header);
        let magic = cursor.u64().unwrap_or(0);
        if magic != MAGIC_OPTION {
            return Err(NbdError::BadMagic { what: "an option", found: magic });
        }
        let (option, length) = (cursor.u32().unwrap_or(0), cursor.u32().unwrap_or(0));
        if length > MAX_OPTION_BYTES {
            let (what, bound) = ("an option", MAX_OPTION_BYTES.into());
            return Err(NbdError::TooLong { what, length: length.into(), bound });
        }
        let mut data = vec![0; length as usize];
        self.input.read_exact(self.stream, &mut data, "sending an option's data").await?;
        Ok((option, data))
    }

    fn answer(&mut self, option: u32, data: &[u8]) -> Result<Next, NbdError> {
        let required = !self.secure && self.exports.tls().is_some_and(|tls| tls.required());
        match option {
            option::EXPORT_NAME if required => return Err(NbdError::Protocol("an export without TLS")),
            option::EXPORT_NAME => return self.export_name(data),
            option::STARTTLS if self.exports.tls().is_some() && !self.secure && data.is_empty() => {
                self.reply(option, reply::ACK, &[]);
                return Ok(Next::Secure);
            }
            option::STARTTLS if self.exports.tls().is_some() => {
                self.refuse(option, reply::ERR_INVALID, "has no data, and comes once");
            }
            option::ABORT => {
                self.reply(option, reply::ACK, &[]);
                return Ok(Next::Abort);
            }
            _ if required => self.refuse(option, reply::ERR_TLS_REQD, "TLS comes first"),
            option::LIST => self.list(data),
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                self.reply(option, reply::ACK, &[]);
            }
            option::STRUCTURED_REPLY => self.refuse(option, reply::ERR_INVALID, "has no data"),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta(option, data),
            option::INFO | option::GO => return Ok(self.go(option, data)),
            unknown => self.refuse(unknown, reply::ERR_UNSUP, "unknown option"),
        }
        Ok(Next::Option)
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) {
        encode_option_reply(&mut self.output, option, kind, data);
    }

    fn refuse(&mut self, option: u32, kind: u32, why: &str) {
        self.reply(option, kind, why.as_bytes());
    }

    fn agreed(&mut self, asked: &str) -> Option<Agreed> {
        let (name, backend) = self.exports.find(asked)?;
        let contexts = match self.chosen.take() {
            Some((export, contexts)) if export == name => contexts,
            _ => Vec::new(),
        };
        let block_sizes = offered_block_sizes(&**backend);
        Some(Agreed {
            backend: Arc::clone(backend),
            size_bytes: backend.size_bytes(),
            block_sizes,
            structured: self.structured,
            contexts,
        })
    }

    /// The old way to choose an export: there is no reply but success, so anything else closes the connection.
    fn export_name(&mut self, data: &[u8]) -> Result<Next, NbdError> {
        if data.len() > MAX_STRING_BYTES {
            let (length, bound) = (data.len() as u64, MAX_STRING_BYTES as u64);
            return Err(NbdError::TooLong { what: "an export's name", length, bound });
        }
        let name = String::from_utf8_lossy(data);
        let Some(agreed) = self.agreed(&name) else {
            return Err(NbdError::UnknownExport(name.into_owned()));
        };
        let flags = transmission_flags(&*agreed.backend, self.structured);
        self.output.extend_from_slice(&agreed.size_bytes.to_be_bytes());
        self.output.extend_from_slice(&flags.to_be_bytes());
        if self.zeroes {
            self.output.extend_from_slice(&[0; 124]);
        }
        Ok(Next::Transmission(agreed))
    }

    fn list(&mut self, data: &[u8]) {
        if !data.is_empty() {
            return self.refuse(option::LIST, reply::ERR_INVALID, "has no data");
        }
        for (name, _) in self.exports.iter() {
            let mut entry = Vec::new();
            encode_string(&mut entry, name);
            encode_option_reply(&mut self.output, option::LIST, reply::SERVER, &entry);
        }
        self.reply(option::LIST, reply::ACK, &[]);
    }

    fn meta(&mut self, option: u32, data: &[u8]) {
        if option == option::SET_META_CONTEXT {
            // A failed choice undoes an earlier one.
            self.chosen = None;
        }
        let Some(asked) = MetaContext::decode(data) else {
            return self.refuse(option, reply::ERR_INVALID, "malformed");
        };
        if !self.structured {
            return self.refuse(option, reply::ERR_INVALID, "structured replies come first");
        }
        let Some((name, backend)) = self.exports.find(&asked.name) else {
            return self.refuse(option, reply::ERR_UNKNOWN, "no such export");
        };
        let name = name.to_owned();
        let list = option == option::LIST_META_CONTEXT;
        let mut contexts = backend.contexts();
        contexts.retain(|context| {
            let by_query = |query: &String| matches(query, context, list);
            list && asked.queries.is_empty() || asked.queries.iter().any(by_query)
        });
        for (id, context) in contexts.iter().enumerate() {
            let id = if list { 0 } else { id as u32 };
            let mut entry = id.to_be_bytes().to_vec();
            entry.extend_from_slice(context.as_bytes());
            self.reply(option, reply::META_CONTEXT, &entry);
        }
        self.reply(option, reply::ACK, &[]);
        if !list {
            self.chosen = Some((name, contexts));
        }
    }

    fn go(&mut self, option: u32, data: &[u8]) -> Next {
        let Some(asked) = Go::decode(data) else {
            self.refuse(option, reply::ERR_INVALID, "malformed");
            return Next::Option;
        };
        let Some((name, backend)) = self.exports.find(&asked.name) else {
            self.refuse(option, reply::ERR_UNKNOWN, "no such export");
            return Next::Option;
        };
        let size_bytes = backend.size_bytes();
        let flags = transmission_flags(&**backend, self.structured);
        let mut list =
            vec![Information::Export { size_bytes, flags }, Information::BlockSize(offered_block_sizes(&**backend))];
        if asked.wanted.contains(&info::NAME) {
            list.push(Information::Name(name.to_owned()));
        }
        let description = backend.description();
        if asked.wanted.contains(&info::DESCRIPTION) && !description.is_empty() {
            list.push(Information::Description(description));
        }
        for information in list {
            self.reply(option, reply::INFO, &information.encode());
        }
        self.reply(option, reply::ACK, &[]);
        if option == option::INFO {
            return Next::Option;
        }
        self.agreed(&asked.name).map_or(Next::Option, Next::Transmission)
    }
}

/// Whether a query means a context: by its name or, in a list, by its namespace ("base:").
fn matches(query: &str, context: &str, list: bool) -> bool {
    query == context || list && query.ends_with(':') && context.starts_with(query)
}

/// The backend's block sizes, within what the protocol and this server allow.
fn offered_block_sizes(backend: &dyn Backend) -> BlockSizes {
    let asked = backend.block_sizes();
    let minimum = asked.minimum.clamp(1, 64 << 10).next_power_of_two();
    let preferred = asked.preferred.clamp(512, MAX_PAYLOAD_BYTES).next_power_of_two().max(minimum);
    let maximum = asked.maximum.clamp(preferred, MAX_PAYLOAD_BYTES);
    BlockSizes { minimum, preferred, maximum: maximum - maximum % minimum }
}
