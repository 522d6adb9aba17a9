//! The hello that opens every connection between two hosts, and its answer.
//!
//! ```text
//!   who connects                                     who listens
//!     │── "WHIMBREL", version u16, body's bytes u16 ──►│  the version is judged first: it fixes only these 12 bytes
//!     │── body: role, index, session, token's hash ───►│
//!     │◄── "WHIMBREL", version u16, code u16, text ────│  code 0: welcome, and the connection belongs to its role;
//!     │                                                │  else a refusal, and the connection ends
//! ```
//!
//! All numbers are big-endian. The body of this version: role u8, index u32 (the lane or the disk), session u64, a flag
//! whether there is a token u8, SHA-256 of the token (32 bytes). The token is a shared secret from a file; it keeps
//! strangers out, but whoever can read the network can repeat it.

use crate::WireError;
use crate::version::Version;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How long a host should wait for a hello or its answer. Callers set it on their stream: a stranger may say nothing.
pub const PATIENCE: Duration = Duration::from_secs(10);

const MAGIC: [u8; 8] = *b"WHIMBREL";
const PREFIX_BYTES: usize = 12;
const ANSWER_BYTES: usize = 14;
const BODY_BYTES: usize = 46;
/// The longest body of any version that is read to its end, so that the refusal of another version arrives.
const MOST_BODY_BYTES: u64 = 1024;
const MOST_TEXT_BYTES: usize = 1024;
const MOST_TOKEN_BYTES: u64 = 4096;

/// Which migration a connection belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub u64);

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "kebab-case")]
pub enum Role {
    /// Orders and reports: whoever runs the experiment talks to the agent of a host.
    Coordinator,
    /// The migration's control: the cores of two hosts talk.
    Migration,
    /// Pages that are sent unasked.
    MemoryPush {
        /// Which of the parallel lanes.
        lane: u32,
    },
    /// Pages that the destination asks for.
    MemoryDemand,
    /// The NBD connection of a disk by which the source pushes.
    Disk {
        /// Which of the guest's disks.
        disk: u32,
    },
    /// The NBD connection of a disk by which the destination pulls: the source, which opens it, is its server.
    DiskPull {
        /// Which of the guest's disks.
        disk: u32,
    },
    /// As [`Role::Disk`], for the guest's writes that wait to be mirrored.
    DiskMirror {
        /// Which of the guest's disks.
        disk: u32,
    },
    /// Digests of a disk's blocks that the source offers, and what the destination lacks of them.
    DiskOffer {
        /// Which of the guest's disks.
        disk: u32,
    },
    /// As [`Role::DiskPull`], for what the destination fetches before its guest asks for it.
    DiskPrefetch {
        /// Which of the guest's disks.
        disk: u32,
    },
}

impl Role {
    fn to_wire(self) -> (u8, u32) {
        match self {
            Role::Coordinator => (1, 0),
            Role::Migration => (2, 0),
            Role::MemoryPush { lane } => (3, lane),
            Role::MemoryDemand => (4, 0),
            Role::Disk { disk } => (5, disk),
            Role::DiskPull { disk } => (6, disk),
            Role::DiskPrefetch { disk } => (7, disk),
            Role::DiskMirror { disk } => (8, disk),
            Role::DiskOffer { disk } => (9, disk),
        }
    }

    fn from_wire(role: u8, index: u32) -> Option<Role> {
        match (role, index) {
            (1, 0) => Some(Role::Coordinator),
            (2, 0) => Some(Role::Migration),
            (3, lane) => Some(Role::MemoryPush { lane }),
            (4, 0) => Some(Role::MemoryDemand),
            (5, disk) => Some(Role::Disk { disk }),
            (6, disk) => Some(Role::DiskPull { disk }),
            (7, disk) => Some(Role::DiskPrefetch { disk }),
            (8, disk) => Some(Role::DiskMirror { disk }),
            (9, disk) => Some(Role::DiskOffer { disk }),
            _ => None,
        }
    }
}

/// Why a host refuses. The code is for programs, the text for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// The cause.
    pub code: RefusalCode,
    /// What a person should know; at most 1 KiB crosses in an answer to a hello.
    pub text: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: RefusalCode, text: impl Into<String>) -> Self {
        Refusal { code, text: text.into() }
    }
}

/// The causes of a refusal. Number 0 means welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u16)]
pub enum RefusalCode {
    /// The other host speaks another version.
    Version = 1,
    /// The token is missing or another one.
    Token = 2,
    /// The hello, or a request, is not one that this version knows.
    Malformed = 3,
    /// The session is unknown, or has no use for this connection.
    Session = 4,
    /// The host is at work on something that excludes this.
    Busy = 5,
    /// The host can't do what is asked; the text says what is missing.
    Unsupported = 6,
    /// The host failed.
    Failed = 7,
}

impl RefusalCode {
    fn from_wire(code: u16) -> Option<RefusalCode> {
        use RefusalCode::{Busy, Failed, Malformed, Session, Token, Unsupported, Version};
        [Version, Token, Malformed, Session, Busy, Unsupported, Failed].into_iter().find(|c| *c as u16 == code)
    }
}

/// A shared secret, kept as its hash.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// The token with this secret.
    pub fn of(secret: &[u8]) -> Self {
        Token(Sha256::digest(secret).into())
    }

    /// The token in a file: its content without white space around it, at most 4 KiB.
    ///
    /// # Errors
    /// The file can't be read, is empty or is too long.
    pub fn from_file(path: &Path) -> Result<Self, WireError> {
        let unusable = |why: String| WireError::Token { path: path.display().to_string(), why };
        let mut secret = Vec::new();
        let file = std::fs::File::open(path).map_err(|error| unusable(error.to_string()))?;
        file.take(MOST_TOKEN_BYTES + 1).read_to_end(&mut secret).map_err(|error| unusable(error.to_string()))?;
        if secret.len() as u64 > MOST_TOKEN_BYTES {
            return Err(unusable(format!("it is longer than {MOST_TOKEN_BYTES} bytes")));
        }
        match secret.trim_ascii() {
            [] => Err(unusable("it is empty".to_owned())),
            secret => Ok(Token::of(secret)),
        }
    }

    /// Whether this is the token with that hash, in a time that doesn't tell how much of it is right.
    fn is(&self, hash: &[u8; 32]) -> bool {
        std::hint::black_box(self.0.iter().zip(hash).fold(0, |differ, (a, b)| differ | (a ^ b))) == 0
    }
}

/// What a host says when it connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What the connection is for.
    pub role: Role,
    /// Which migration it belongs to.
    pub session: SessionId,
}

/// Says hello and waits for the welcome.
///
/// # Errors
/// [`WireError::Refused`] with the other host's refusal, [`WireError::Version`] if it speaks another version,
/// [`WireError::NotWhimbrel`] if it is something else.
pub fn offer(stream: &mut (impl Read + Write), hello: &Hello, token: Option<&Token>) -> Result<(), WireError> {
    stream.write_all(&hello_bytes(hello, token))?;
    stream.flush()?;
    let mut answer = [0; ANSWER_BYTES];
    stream.read_exact(&mut answer).map_err(answer_missing)?;
    let (verdict, text_bytes) = parse_answer(&answer)?;
    let mut text = Vec::new();
    stream.take(text_bytes).read_to_end(&mut text)?;
    conclude(verdict, &text)
}

/// [`offer`] for a stream that doesn't block.
///
/// # Errors
/// As for [`offer`].
pub async fn offer_async(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    hello: &Hello,
    token: Option<&Token>,
) -> Result<(), WireError> {
    stream.write_all(&hello_bytes(hello, token)).await?;
    stream.flush().await?;
    let mut answer = [0; ANSWER_BYTES];
    stream.read_exact(&mut answer).await.map_err(answer_missing)?;
    let (verdict, text_bytes) = parse_answer(&answer)?;
    let mut text = Vec::new();
    stream.take(text_bytes).read_to_end(&mut text).await?;
    conclude(verdict, &text)
}

/// Hears a hello, judges it and answers. `token`: what the hello must carry; `None`: anyone may come. `judge` has the
/// last word, by role and session.
///
/// # Errors
/// [`WireError::Turned`] with the refusal that was sent, [`WireError::NotWhimbrel`] if a stranger spoke.
pub fn accept(
    stream: &mut (impl Read + Write),
    token: Option<&Token>,
    judge: impl FnOnce(&Hello) -> Result<(), Refusal>,
) -> Result<Hello, WireError> {
    let mut prefix = [0; PREFIX_BYTES];
    stream.read_exact(&mut prefix).map_err(|error| WireError::reading("a hello", error))?;
    let (version, body_bytes) = parse_prefix(&prefix)?;
    let mut body = Vec::new();
    stream.take(body_bytes).read_to_end(&mut body)?;
    let verdict = judge_hello(version, &body, token).and_then(|hello| judge(&hello).map(|()| hello));
    stream.write_all(&answer_bytes(verdict.as_ref().err()))?;
    stream.flush()?;
    verdict.map_err(WireError::Turned)
}

/// [`accept`] for a stream that doesn't block.
///
/// # Errors
/// As for [`accept`].
pub async fn accept_async(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    token: Option<&Token>,
    judge: impl FnOnce(&Hello) -> Result<(), Refusal>,
) -> Result<Hello, WireError> {
    let mut prefix = [0; PREFIX_BYTES];
    stream.read_exact(&mut prefix).await.map_err(|error| WireError::reading("a hello", error))?;
    let (version, body_bytes) = parse_prefix(&prefix)?;
    let mut body = Vec::new();
    stream.take(body_bytes).read_to_end(&mut body).await?;
    let verdict = judge_hello(version, &body, token).and_then(|hello| judge(&hello).map(|()| hello));
    stream.write_all(&answer_bytes(verdict.as_ref().err())).await?;
    stream.flush().await?;
    verdict.map_err(WireError::Turned)
}

fn hello_bytes(hello: &Hello, token: Option<&Token>) -> Vec<u8> {
    let (role, index) = hello.role.to_wire();
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + BODY_BYTES);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&Version::OURS.number().to_be_bytes());
    bytes.extend_from_slice(&(BODY_BYTES as u16).to_be_bytes());
    bytes.push(role);
    bytes.extend_from_slice(&index.to_be_bytes());
    bytes.extend_from_slice(&hello.session.0.to_be_bytes());
    bytes.push(u8::from(token.is_some()));
    bytes.extend_from_slice(&token.map_or([0; 32], |token| token.0));
    bytes
}

/// The version and the body's length.
fn parse_prefix(prefix: &[u8; PREFIX_BYTES]) -> Result<(u16, u64), WireError> {
    let [magic @ .., v0, v1, b0, b1] = *prefix;
    if magic != MAGIC {
        return Err(WireError::NotWhimbrel { found: magic });
    }
    let body_bytes = u64::from(u16::from_be_bytes([b0, b1]));
    Ok((u16::from_be_bytes([v0, v1]), body_bytes.min(MOST_BODY_BYTES)))
}

fn judge_hello(version: u16, body: &[u8], token: Option<&Token>) -> Result<Hello, Refusal> {
    let ours = Version::OURS;
    if Version::accepted(version).is_none() {
        let text = format!("this host speaks version {ours} of the protocol, the connecting one version {version}");
        return Err(Refusal::new(RefusalCode::Version, text));
    }
    let malformed = |text: &str| Refusal::new(RefusalCode::Malformed, text);
    let body: &[u8; BODY_BYTES] = body.try_into().map_err(|_| malformed("the hello has another length"))?;
    let [role, i0, i1, i2, i3, s0, s1, s2, s3, s4, s5, s6, s7, has_token, hash @ ..] = *body;
    if let Some(token) = token {
        if has_token == 0 {
            return Err(Refusal::new(RefusalCode::Token, "this host requires a token: give its --token-file"));
        }
        if !token.is(&hash) {
            return Err(Refusal::new(
                RefusalCode::Token,
                "the token is not this host's: both need the same --token-file",
            ));
        }
    }
    let role = Role::from_wire(role, u32::from_be_bytes([i0, i1, i2, i3]))
        .ok_or_else(|| malformed("the connection's role is unknown"))?;
    Ok(Hello { role, session: SessionId(u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7])) })
}

fn answer_bytes(refusal: Option<&Refusal>) -> Vec<u8> {
    let (code, text) = refusal.map_or((0, ""), |refusal| (refusal.code as u16, refusal.text.as_str()));
    let text = &text[..text.floor_char_boundary(MOST_TEXT_BYTES)];
    let mut bytes = Vec::with_capacity(ANSWER_BYTES + text.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&Version::OURS.number().to_be_bytes());
    bytes.extend_from_slice(&code.to_be_bytes());
    bytes.extend_from_slice(&(text.len() as u16).to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// What an answer says before its text.
#[derive(Clone, Copy, Debug)]
struct Verdict {
    version: u16,
    code: u16,
}

fn parse_answer(answer: &[u8; ANSWER_BYTES]) -> Result<(Verdict, u64), WireError> {
    let [magic @ .., v0, v1, c0, c1, t0, t1] = *answer;
    if magic != MAGIC {
        return Err(WireError::NotWhimbrel { found: magic });
    }
    let text_bytes = u64::from(u16::from_be_bytes([t0, t1]));
    if text_bytes > MOST_TEXT_BYTES as u64 {
        let limit = MOST_TEXT_BYTES as u64;
        return Err(WireError::TooLarge { what: "the text of a refusal", found: text_bytes, limit });
    }
    Ok((Verdict { version: u16::from_be_bytes([v0, v1]), code: u16::from_be_bytes([c0, c1]) }, text_bytes))
}

fn conclude(verdict: Verdict, text: &[u8]) -> Result<(), WireError> {
    if Version::accepted(verdict.version).is_none() {
        return Err(WireError::Version { ours: Version::OURS, theirs: verdict.version });
    }
    if verdict.code == 0 {
        return Ok(());
    }
    let code = RefusalCode::from_wire(verdict.code)
        .ok_or_else(|| WireError::malformed("answer to a hello", format!("its code {} is unknown", verdict.code)))?;
    Err(WireError::Refused(Refusal { code, text: String::from_utf8_lossy(text).into_owned() }))
}

fn answer_missing(error: std::io::Error) -> WireError {
    WireError::reading("the answer to a hello", error)
}

#[cfg(test)]
mod tests;
