//! The client's half of the negotiation; `negotiate_server.rs` draws it.
//!
//! STRUCTURED_REPLY, SET_META_CONTEXT and GO are each tried, and each may be refused by an older server: then replies are
//! simple, there are no contexts, and EXPORT_NAME takes the place of GO. A server of the newstyle that is not the fixed one
//! understands nothing but EXPORT_NAME.

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::{
    backend::BlockSizes,
    buffers::Input,
    client::ClientOptions,
    error::NbdError,
    options::{Go, Information, MetaContext, encode_option},
    protocol::{
        Cursor, MAGIC_OPTION, MAGIC_OPTION_REPLY, MAGIC_SERVER, MAX_OPTION_BYTES, MAX_PAYLOAD_BYTES, MAX_STRING_BYTES,
        flag, handshake, info, option, reply,
    },
};

/// How many replies a client takes for one option.
const REPLIES_MAX: usize = 64 << 10;
/// How many bytes of replies a client takes for one option.
const REPLY_BYTES_MAX: usize = 16 << 20;

/// What a server says about an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its name: the canonical one, if the server told it.
    pub name: String,
    /// A text for people, if the server told one.
    pub description: Option<String>,
    /// Its size.
    pub size_bytes: u64,
    /// See [`flag`].
    pub flags: u16,
    /// Its block sizes, as told or else as the protocol assumes.
    pub block_sizes: BlockSizes,
    /// The contexts that were agreed on, with their numbers.
    pub contexts: Vec<(u32, String)>,
    /// Whether replies are structured.
    pub structured: bool,
}

impl ExportInfo {
    /// Whether a transmission flag is set.
    pub fn has(&self, transmission_flag: u16) -> bool {
        self.flags & transmission_flag == transmission_flag
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.has(flag::READ_ONLY)
    }
}

/// One export of a server's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedExport {
    /// Its name.
    pub name: String,
    /// What the server adds for people; often empty.
    pub description: String,
}

/// A client that negotiates.
pub(crate) struct Negotiation<'a, S> {
    stream: &'a mut S,
    input: &'a mut Input,
    fixed: bool,
    no_zeroes: bool,
}

/// What the greeting settled, which holds within TLS, too.
#[derive(Clone, Copy)]
pub(crate) struct Greeted {
    no_zeroes: bool,
}

/// The replies to one option: those before the last, and how it ended.
struct Answer {
    replies: Vec<(u32, Vec<u8>)>,
    refusal: Option<(u32, String)>,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Negotiation<'a, S> {
    /// Reads the server's hello and answers it.
    pub(crate) async fn begin(stream: &'a mut S, input: &'a mut Input) -> Result<Self, NbdError> {
        let mut hello = [0; 18];
        input.read_exact(stream, &mut hello, "greeting").await?;
        let mut cursor = Cursor(&hello);
        let (magic, style) = (cursor.u64().unwrap_or(0), cursor.u64().unwrap_or(0));
        if magic != MAGIC_SERVER {
            return Err(NbdError::BadMagic { what: "the greeting", found: magic });
        }
        if style != MAGIC_OPTION {
            return Err(NbdError::BadMagic { what: "the greeting's style", found: style });
        }
        let theirs = cursor.u16().unwrap_or(0);
        let ours = theirs & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
        stream.write_all(&u32::from(ours).to_be_bytes()).await?;
        let fixed = ours & handshake::FIXED_NEWSTYLE != 0;
        Ok(Self { stream, input, fixed, no_zeroes: ours & handshake::NO_ZEROES != 0 })
    }

    /// Asks for TLS. The handshake is to follow at once, and then [`within`](Self::within).
    pub(crate) async fn secure(mut self) -> Result<Greeted, NbdError> {
        self.ask(option::STARTTLS, &[]).await?.accepted(option::STARTTLS)?;
        Ok(Greeted { no_zeroes: self.no_zeroes })
    }

    /// Goes on within TLS, where there is no greeting.
    pub(crate) fn within(stream: &'a mut S, input: &'a mut Input, greeted: Greeted) -> Self {
        Self { stream, input, fixed: true, no_zeroes: greeted.no_zeroes }
    }

    /// Agrees on all that is needed to use an export.
    pub(crate) async fn enter(mut self, name: &str, options: &ClientOptions) -> Result<ExportInfo, NbdError> {
        if name.len() > MAX_STRING_BYTES {
            return Err(NbdError::InvalidRequest("an export's name is too long"));
        }
        if !self.fixed {
            return self.export_name(name).await;
        }
        let structured = options.structured && self.structured().await?;
        let contexts = match structured && !options.contexts.is_empty() {
            true => self.meta_contexts(option::SET_META_CONTEXT, name, &options.contexts).await?,
            false => Vec::new(),
        };
        let wanted = vec![info::NAME, info::DESCRIPTION, info::BLOCK_SIZE];
        let go = Go { name: name.to_owned(), wanted }.encode();
        let answer = self.ask(option::GO, &go).await?;
        let found = match answer.refusal {
            None => collect_information(name, &answer.replies)?,
            Some((reply::ERR_UNSUP, _)) => self.export_name(name).await?,
            Some((kind, message)) => return Err(refused(option::GO, kind, message)),
        };
        check_contexts(&contexts)?;
        Ok(ExportInfo { contexts, structured, ..found })
    }

    /// What the server says about an export, without using it.
    pub(crate) async fn info(&mut self, name: &str) -> Result<ExportInfo, NbdError> {
        let wanted = vec![info::NAME, info::DESCRIPTION, info::BLOCK_SIZE];
        let asked = Go { name: name.to_owned(), wanted }.encode();
        let answer = self.ask(option::INFO, &asked).await?.accepted(option::INFO)?;
        collect_information(name, &answer)
    }

    /// The server's exports.
    pub(crate) async fn list(&mut self) -> Result<Vec<ListedExport>, NbdError> {
        let replies = self.ask(option::LIST, &[]).await?.accepted(option::LIST)?;
        let mut list = Vec::with_capacity(replies.len());
        for (kind, data) in replies {
            let mut cursor = Cursor(&data);
            let name = match kind {
                reply::SERVER => cursor.string(),
                _ => return Err(NbdError::Protocol("a list with a reply that is no export")),
            };
            let name = name.ok_or(NbdError::Protocol("a malformed export in a list"))?;
            let description = String::from_utf8_lossy(cursor.0).into_owned();
            list.push(ListedExport { name, description });
        }
        Ok(list)
    }

    /// Whether the server sends structured replies from now on.
    pub(crate) async fn structured(&mut self) -> Result<bool, NbdError> {
        Ok(self.ask(option::STRUCTURED_REPLY, &[]).await?.refusal.is_none())
    }

    /// Lists or chooses contexts; an older server has none.
    pub(crate) async fn meta_contexts(
        &mut self,
        option: u32,
        name: &str,
        queries: &[String],
    ) -> Result<Vec<(u32, String)>, NbdError> {
        let asked = MetaContext { name: name.to_owned(), queries: queries.to_vec() }.encode();
        let answer = self.ask(option, &asked).await?;
        match answer.refusal {
            None => (),
            Some((reply::ERR_UNSUP, _)) => return Ok(Vec::new()),
            Some((kind, message)) => return Err(refused(option, kind, message)),
        }
        let context = |(kind, data): &(u32, Vec<u8>)| {
            let mut cursor = Cursor(data);
            let id = cursor.u32().filter(|_| *kind == reply::META_CONTEXT)?;
            Some((id, String::from_utf8(cursor.0.to_vec()).ok()?))
        };
        let contexts: Option<_> = answer.replies.iter().map(context).collect();
        contexts.ok_or(NbdError::Protocol("a malformed metadata context"))
    }

    /// Ends the negotiation.
    pub(crate) async fn abort(&mut self) -> Result<(), NbdError> {
        self.send(option::ABORT, &[]).await?;
        // A server may close without an answer.
        let _ = self.answer(option::ABORT).await;
        Ok(())
    }

    async fn export_name(&mut self, name: &str) -> Result<ExportInfo, NbdError> {
        self.send(option::EXPORT_NAME, name.as_bytes()).await?;
        let mut data = [0; 10 + 124];
        let data = if self.no_zeroes { &mut data[..10] } else { &mut data[..] };
        self.input.read_exact(self.stream, data, "entering the export").await?;
        let mut cursor = Cursor(data);
        let (size_bytes, flags) = (cursor.u64().unwrap_or(0), cursor.u16().unwrap_or(0));
        export_info(name, size_bytes, flags)
    }

    async fn send(&mut self, option: u32, data: &[u8]) -> Result<(), NbdError> {
        if data.len() > MAX_OPTION_BYTES as usize {
            return Err(NbdError::InvalidRequest("an option's data is too long"));
        }
        self.stream.write_all(&encode_option(option, data)).await?;
        Ok(self.stream.flush().await?)
    }

    async fn ask(&mut self, option: u32, data: &[u8]) -> Result<Answer, NbdError> {
        if !self.fixed {
            return Err(NbdError::Protocol("the server does not speak the fixed newstyle"));
        }
        self.send(option, data).await?;
        self.answer(option).await
    }

    async fn answer(&mut self, option: u32) -> Result<Answer, NbdError> {
        let (mut replies, mut bytes) = (Vec::new(), 0);
        loop {
            let mut header = [0; 20];
            self.input.read_exact(self.stream, &mut header, "answering an option").await?;
            let mut cursor = Cursor(&header);
            let magic = cursor.u64().unwrap_or(0);
            if magic != MAGIC_OPTION_REPLY {
                return Err(NbdError::BadMagic { what: "an option's reply", found: magic });
            }
            if cursor.u32() != Some(option) {
                return Err(NbdError::Protocol("a reply to another option"));
            }
            let (kind, length) = (cursor.u32().unwrap_or(0), cursor.u32().unwrap_or(0));
            if length > MAX_OPTION_BYTES {
                let (what, bound) = ("an option's reply", MAX_OPTION_BYTES.into());
                return Err(NbdError::TooLong { what, length: length.into(), bound });
            }
            let mut data = vec![0; length as usize];
            self.input.read_exact(self.stream, &mut data, "answering an option").await?;
            if kind == reply::ACK {
                return Ok(Answer { replies, refusal: None });
            }
            if kind & reply::ERROR_BIT != 0 {
                let message = String::from_utf8_lossy(&data).into_owned();
                return Ok(Answer { replies, refusal: Some((kind, message)) });
            }
            bytes += data.len();
            replies.push((kind, data));
            if replies.len() > REPLIES_MAX || bytes > REPLY_BYTES_MAX {
                return Err(NbdError::NegotiationBound("replies"));
            }
        }
    }
}

impl Answer {
    /// The replies, or the refusal as an error.
    fn accepted(self, option: u32) -> Result<Vec<(u32, Vec<u8>)>, NbdError> {
        match self.refusal {
            None => Ok(self.replies),
            Some((kind, message)) => Err(refused(option, kind, message)),
        }
    }
}

fn refused(option: u32, kind: u32, message: String) -> NbdError {
    NbdError::Refused { option: option::name(option), reply: reply::error_name(kind), message }
}

fn export_info(name: &str, size_bytes: u64, flags: u16) -> Result<ExportInfo, NbdError> {
    if size_bytes > i64::MAX as u64 {
        let bound = i64::MAX as u64;
        return Err(NbdError::TooLong { what: "an export", length: size_bytes, bound });
    }
    Ok(ExportInfo {
        name: name.to_owned(),
        description: None,
        size_bytes,
        flags,
        block_sizes: BlockSizes::default(),
        contexts: Vec::new(),
        structured: false,
    })
}

fn collect_information(name: &str, replies: &[(u32, Vec<u8>)]) -> Result<ExportInfo, NbdError> {
    let mut list = Vec::with_capacity(replies.len());
    for (kind, data) in replies {
        let information = Information::decode(data).filter(|_| *kind == reply::INFO);
        list.push(information.ok_or(NbdError::Protocol("malformed information on an export"))?);
    }
    let export = list.iter().find_map(|information| match information {
        Information::Export { size_bytes, flags } => Some((*size_bytes, *flags)),
        _ => None,
    });
    let (size_bytes, flags) = export.ok_or(NbdError::Protocol("an export without its size"))?;
    let mut found = export_info(name, size_bytes, flags)?;
    for information in list {
        match information {
            Information::Name(name) => found.name = name,
            Information::Description(text) => found.description = Some(text),
            Information::BlockSize(sizes) => found.block_sizes = checked_block_sizes(sizes)?,
            Information::Export { .. } | Information::Unknown(_) => (),
        }
    }
    Ok(found)
}

/// The server's block sizes, if they make sense; its maximum is capped to what this client handles.
fn checked_block_sizes(sizes: BlockSizes) -> Result<BlockSizes, NbdError> {
    let BlockSizes { minimum, preferred, maximum } = sizes;
    if !minimum.is_power_of_two() || minimum > 64 << 10 || maximum < minimum {
        return Err(NbdError::Protocol("impossible block sizes"));
    }
    let maximum = maximum.min(MAX_PAYLOAD_BYTES);
    Ok(BlockSizes { minimum, preferred, maximum: maximum - maximum % minimum })
}

fn check_contexts(contexts: &[(u32, String)]) -> Result<(), NbdError> {
    let mut ids: Vec<u32> = contexts.iter().map(|(id, _)| *id).collect();
    ids.sort_unstable();
    match ids.windows(2).any(|pair| pair[0] == pair[1]) {
        true => Err(NbdError::Protocol("two metadata contexts with the same number")),
        false => Ok(()),
    }
}
