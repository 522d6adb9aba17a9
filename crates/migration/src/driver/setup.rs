//! The connections of one move: the source opens them all, so that only the destination needs to be reachable.

use super::DriverError;
use rustix::net::RecvFlags;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use whimbrel_model::Needs;
use whimbrel_wire::hello::offer;
use whimbrel_wire::{AsyncLinkStream, Class, Hello, LinkStream, Nic, Role, SessionId, Token};

/// How long the destination waits for the source's connections, which the source opens at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often the connections that have come are looked at while others are awaited.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The streams of one move.
pub struct Connections {
    /// Messages of the cores.
    pub control: Arc<LinkStream>,
    /// Pages in the schedule's order.
    pub push: Arc<LinkStream>,
    /// Pages that a vCPU waits for, and the requests for them.
    pub demand: Arc<LinkStream>,
    /// NBD from the source to the destination's export; `None`: no disk.
    pub disk_push: Option<AsyncLinkStream>,
    /// NBD from the destination to the source's export.
    pub disk_pull: Option<AsyncLinkStream>,
    /// The same for what the destination fetches before its guest asks; `None`: the disk's strategy doesn't.
    pub disk_prefetch: Option<AsyncLinkStream>,
    /// NBD from the source to the destination's export, for the guest's writes; `None`: the strategy doesn't mirror.
    pub disk_mirror: Option<AsyncLinkStream>,
    /// Digests of blocks, and what of them the destination lacks; `None`: the strategy offers nothing.
    pub disk_offer: Option<AsyncLinkStream>,
}

const PUSH: Role = Role::MemoryPush { lane: 0 };
const DISK: Role = Role::Disk { disk: 0 };
const PULL: Role = Role::DiskPull { disk: 0 };
const PREFETCH: Role = Role::DiskPrefetch { disk: 0 };
const MIRROR: Role = Role::DiskMirror { disk: 0 };
const OFFER: Role = Role::DiskOffer { disk: 0 };

/// The roles of a move's connections: the first three always, the disk's where there is one.
fn roles(disk: Option<Needs>) -> Vec<Role> {
    let mut roles = vec![Role::Migration, PUSH, Role::MemoryDemand];
    if let Some(needs) = disk {
        roles.extend([DISK, PULL]);
        roles.extend(needs.prefetch.then_some(PREFETCH));
        roles.extend(needs.mirror.then_some(MIRROR));
        roles.extend(needs.offer.then_some(OFFER));
    }
    roles
}

/// What is read and written in a role passes bulk that waits, goes before it, or is bulk itself: what is demanded, then what
/// is fetched, then what is pushed (Nicolae and Cappello 2012).
fn class_of(role: Role) -> Class {
    match role {
        Role::DiskPrefetch { .. } => Class::Ahead,
        Role::MemoryPush { .. } | Role::Disk { .. } | Role::DiskMirror { .. } | Role::DiskOffer { .. } => Class::Bulk,
        Role::Coordinator | Role::Migration | Role::MemoryDemand | Role::DiskPull { .. } => Class::Urgent,
    }
}

/// Where a move's connections go, and through what.
pub struct Opening<'a> {
    /// The other host's agent.
    pub to: SocketAddr,
    /// This host's card.
    pub nic: &'a Nic,
    /// The attempt.
    pub session: u64,
    /// What the other agent must be told.
    pub token: Option<&'a Token>,
}

/// Opens one connection.
pub(super) fn open(opening: &Opening<'_>, role: Role) -> Result<LinkStream, DriverError> {
    let mut stream = LinkStream::connect(opening.to, opening.nic, class_of(role))?;
    offer(&mut stream, &Hello { role, session: SessionId(opening.session) }, opening.token)?;
    Ok(stream)
}

/// Opens every connection of a move; `disk`: what the strategy of the guest's disk needs. To be called within tokio's
/// runtime.
///
/// # Errors
/// The agent can't be reached, or refuses.
pub fn connect_roles(opening: &Opening<'_>, disk: Option<Needs>) -> Result<Connections, DriverError> {
    let card = card_of(opening.nic, disk);
    let streams =
        roles(disk).into_iter().map(|role| Ok((role, open(&Opening { nic: &card(role), ..*opening }, role)?)));
    Connections::of(streams.collect::<Result<_, DriverError>>()?, disk)
}

/// The card of each role, with the move's books. Requests to a disk that remains are its guest's: they have books apart.
fn card_of(nic: &Nic, disk: Option<Needs>) -> impl Fn(Role) -> Nic {
    let remains = disk.is_some_and(|needs| needs.remains);
    move |role| if remains && role == PULL { nic.for_session() } else { nic.clone() }
}

impl Connections {
    fn of(mut streams: Vec<(Role, LinkStream)>, disk: Option<Needs>) -> Result<Self, DriverError> {
        let mut take = |role| {
            let at = streams.iter().position(|(known, _)| *known == role);
            let missing = || DriverError::Protocol(format!("the connection for {role:?} is missing"));
            at.map(|at| streams.swap_remove(at).1).ok_or_else(missing)
        };
        let control = Arc::new(take(Role::Migration)?);
        let push = Arc::new(take(PUSH)?);
        let demand = Arc::new(take(Role::MemoryDemand)?);
        let wanted = roles(disk);
        let mut disk =
            |role| wanted.contains(&role).then(|| Ok::<_, DriverError>(take(role)?.into_async()?)).transpose();
        let (disk_push, disk_pull) = (disk(DISK)?, disk(PULL)?);
        let (disk_prefetch, disk_mirror, disk_offer) = (disk(PREFETCH)?, disk(MIRROR)?, disk(OFFER)?);
        Ok(Connections { control, push, demand, disk_push, disk_pull, disk_prefetch, disk_mirror, disk_offer })
    }
}

/// Whether the other side has ended a connection on which nothing has come yet.
fn has_ended(socket: &std::net::TcpStream) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::net::recv(socket, &mut [0; 1], flags) {
        Ok((_, bytes)) => bytes == 0,
        Err(error) => error != rustix::io::Errno::AGAIN,
    }
}

/// Waits for every connection of a move, as the agent's listener hands them over; `disk` as for [`connect_roles`]. To be
/// called within tokio's runtime.
///
/// # Errors
/// Not all of them came in time, or one came twice.
pub fn accept_roles(
    coming: &Receiver<(Role, std::net::TcpStream)>,
    nic: &Nic,
    disk: Option<Needs>,
) -> Result<Connections, DriverError> {
    Connections::of(gather(coming, card_of(nic, disk), roles(disk).len())?, disk)
}

/// Waits for so many connections, each of another role, and puts them behind their cards.
pub(super) fn gather(
    coming: &Receiver<(Role, std::net::TcpStream)>,
    card: impl Fn(Role) -> Nic,
    wanted: usize,
) -> Result<Vec<(Role, LinkStream)>, DriverError> {
    let deadline = Instant::now() + PATIENCE;
    let mut streams: Vec<(Role, LinkStream)> = Vec::new();
    let mut sockets: Vec<std::net::TcpStream> = Vec::new();
    while streams.len() < wanted {
        let wait = deadline.saturating_duration_since(Instant::now());
        let (role, tcp) = match coming.recv_timeout(wait.min(LOOK_EVERY)) {
            Ok(next) => next,
            Err(RecvTimeoutError::Timeout) if wait > LOOK_EVERY && !sockets.iter().any(has_ended) => continue,
            Err(_) => {
                let what = format!("only {} of {wanted} connections came from the source", streams.len());
                return Err(DriverError::Protocol(what));
            }
        };
        sockets.push(tcp.try_clone()?);
        if streams.iter().any(|(known, _)| *known == role) {
            return Err(DriverError::Protocol(format!("the connection for {role:?} came twice")));
        }
        streams.push((role, LinkStream::over(tcp, &card(role), class_of(role))?));
    }
    Ok(streams)
}
