//! A memory lane: the thread that turns runs of pages into frames at the source, and the one that takes them up at the
//! destination.
//!
//! Where the chain of encodings is live (zero pages and raw ones only), pages go to the socket straight from guest RAM:
//! no copy in user space. Every other encoding gets a stable private copy, and what is sent raw then is that copy too,
//! else the bases of deltas would differ from what was sent. The receiver reads raw pages into guest RAM directly.

use crate::core::Run;
use crate::driver::{DriverError, by_name};
use std::io::Read;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, OnceLock};
use whimbrel_disk::Volume;
use whimbrel_memory::{EncodeChain, Encoding, GuestRam, MissingPages, Part, Waited, decode};
use whimbrel_model::event::Sent;
use whimbrel_model::{Backed, ByteRate, Extent, PAGE_BYTES};
use whimbrel_wire::page_frames::{Frame, HEADER_BYTES, MOST_RAW_PAGES, PLACE_BYTES};
use whimbrel_wire::{Bucket, Class, LinkStream, clock};

/// Encoded bytes are gathered up to about this size before they are written.
const GATHER_BYTES: usize = 256 << 10;

/// What a sending lane is asked to do.
#[derive(Debug)]
pub(super) enum LaneJob {
    /// Send runs of pages.
    Send { job: u64, runs: Vec<Run>, limit: Option<ByteRate>, demanded: bool },
    /// Put a mark behind what was sent.
    Barrier(u64),
}

/// The sending end of a lane.
pub(super) struct LaneSender {
    ram: Arc<GuestRam>,
    /// The disk of which pages may be copies.
    volume: Option<Arc<Volume>>,
    stream: Arc<LinkStream>,
    encode: EncodeChain,
    class: Class,
    limit: Arc<Bucket>,
    limit_set: Option<ByteRate>,
}

/// A frame's header, and the pages that follow it.
type Piece = ([u8; HEADER_BYTES], Option<Extent>);

impl LaneSender {
    pub(super) fn new(ram: Arc<GuestRam>, stream: Arc<LinkStream>, encode: EncodeChain, class: Class) -> Self {
        LaneSender { ram, volume: None, stream, encode, class, limit: Arc::new(Bucket::unlimited()), limit_set: None }
    }

    /// As it is, with pages by name where they are copies of what lies on this disk.
    pub(super) fn with_disk(self, volume: Option<Arc<Volume>>) -> Self {
        LaneSender { volume, ..self }
    }

    /// Works off jobs until their sender is gone; `sent` hears of each that was sent.
    ///
    /// # Errors
    /// The link failed.
    pub(super) fn run(mut self, jobs: &Receiver<LaneJob>, sent: &dyn Fn(u64, Sent)) -> Result<(), DriverError> {
        while let Ok(job) = jobs.recv() {
            match job {
                LaneJob::Send { job, runs, limit, demanded } => {
                    self.set_limit(limit);
                    let done = self.send(&runs, demanded)?;
                    sent(job, done);
                }
                LaneJob::Barrier(sequence) => self.write(&[Part::Bytes(&Frame::Barrier { sequence }.encode())])?,
            }
        }
        self.write(&[Part::Bytes(&Frame::End.encode())])?;
        Ok(())
    }

    fn set_limit(&mut self, limit: Option<ByteRate>) {
        if self.limit_set != limit {
            self.limit_set = limit;
            self.limit.set_rate(clock::now(), limit);
        }
    }

    fn send(&mut self, runs: &[Run], demanded: bool) -> Result<Sent, DriverError> {
        let Some(volume) = self.volume.as_ref().filter(|_| runs.iter().any(|run| run.place.is_some())) else {
            return self.send_content(runs, demanded);
        };
        let (named, others) = by_name::seen(&self.ram, volume, runs)?;
        let mut sent = self.send_names(&named)?;
        sent.add(&self.send_content(&others, demanded)?);
        Ok(sent)
    }

    fn send_content(&mut self, runs: &[Run], demanded: bool) -> Result<Sent, DriverError> {
        if self.encode.live() { self.send_live(runs, demanded) } else { self.send_copies(runs, demanded) }
    }

    /// A page that goes so has not gone by content before, for it would have been written since: no encoding has a version of it.
    fn send_names(&self, named: &[Run]) -> Result<Sent, DriverError> {
        let mut sent = Sent::default();
        let mut gathered = Vec::new();
        for run in named {
            let Some(place) = run.place else { continue };
            gathered.extend_from_slice(&Frame::Reference { pages: run.extent }.encode());
            gathered.extend_from_slice(&place.to_be_bytes());
            account(&mut sent, run.again, run.extent.count, PLACE_BYTES as u64);
            sent.reference_units += run.extent.count;
            sent.reference_bytes += PLACE_BYTES as u64;
        }
        if !gathered.is_empty() {
            self.write(&[Part::Bytes(&gathered)])?;
        }
        Ok(sent)
    }

    fn send_live(&mut self, runs: &[Run], demanded: bool) -> Result<Sent, DriverError> {
        let mut sent = Sent::default();
        let mut pieces: Vec<Piece> = Vec::new();
        let mut gathered = 0;
        let most_pages = self.most_pages();
        for run in runs {
            for (pages, zero) in self.by_content(run.extent, most_pages) {
                let bytes = if zero { 0 } else { pages.count * PAGE_BYTES };
                if gathered + bytes > most_pages * PAGE_BYTES {
                    self.write_pieces(&mut pieces)?;
                    gathered = 0;
                }
                gathered += bytes;
                account(&mut sent, run.again, pages.count, bytes);
                if zero {
                    sent.zero_units += pages.count;
                    pieces.push((Frame::Zero { pages, demanded }.encode(), None));
                } else {
                    sent.raw_units += pages.count;
                    pieces.push((Frame::Raw { pages, demanded }.encode(), Some(pages)));
                }
            }
        }
        self.write_pieces(&mut pieces)?;
        Ok(sent)
    }

    /// The most pages that go in one write: a burst of the bucket with its headers. Where nothing limits, that leaves the
    /// last page of a job to a write of its own, which is measured to be faster than the whole job in one write.
    fn most_pages(&self) -> u64 {
        let burst = self.stream.burst_bytes().min(self.limit.burst_bytes());
        (burst / PAGE_BYTES).saturating_sub(1).clamp(1, u64::from(MOST_RAW_PAGES))
    }

    /// Splits an extent into runs of zero pages, where the chain knows them, and runs of others.
    fn by_content(&self, extent: Extent, most_pages: u64) -> Vec<(Extent, bool)> {
        let mut parts: Vec<(Extent, bool)> = Vec::new();
        for page in extent.indices() {
            let zero = self.encode.tells_zero() && self.ram.is_zero(page);
            match parts.last_mut() {
                Some((last, kind)) if *kind == zero && (zero || last.count < most_pages) => last.count += 1,
                _ => parts.push((Extent { start: page, count: 1 }, zero)),
            }
        }
        parts
    }

    fn write_pieces(&mut self, pieces: &mut Vec<Piece>) -> Result<(), DriverError> {
        let mut parts: Vec<Part<'_>> = Vec::with_capacity(pieces.len() * 2);
        for (header, pages) in pieces.iter() {
            parts.push(Part::Bytes(header));
            parts.extend(pages.map(Part::Pages));
        }
        if !parts.is_empty() {
            self.write(&parts)?;
        }
        pieces.clear();
        Ok(())
    }

    fn send_copies(&mut self, runs: &[Run], demanded: bool) -> Result<Sent, DriverError> {
        let mut sent = Sent::default();
        let mut gathered: Vec<u8> = Vec::with_capacity(GATHER_BYTES + 2 * PAGE_BYTES as usize);
        let most = (self.stream.burst_bytes().min(self.limit.burst_bytes()) as usize).min(GATHER_BYTES);
        let mut content = [0; PAGE_BYTES as usize];
        for run in runs {
            for page in run.extent.indices() {
                self.ram.read_page(page, &mut content);
                let pages = Extent { start: page, count: 1 };
                let encoded = self.encode.encode(page, &content);
                let bytes = encoded.payload.len() as u64;
                let frame = match encoded.kind {
                    Encoding::Zero => Frame::Zero { pages, demanded },
                    Encoding::Raw => Frame::Raw { pages, demanded },
                    kind => Frame::Encoded { page, encoding: kind as u8, payload_bytes: bytes as u32, demanded },
                };
                match encoded.kind {
                    Encoding::Zero => sent.zero_units += 1,
                    Encoding::Raw => sent.raw_units += 1,
                    Encoding::Delta => sent.delta_units += 1,
                    Encoding::Lz4 => sent.compressed_units += 1,
                }
                if gathered.len() + HEADER_BYTES + encoded.payload.len() > most && !gathered.is_empty() {
                    write(&self.ram, &self.stream, &self.limit, self.class, &[Part::Bytes(&gathered)])?;
                    gathered.clear();
                }
                gathered.extend_from_slice(&frame.encode());
                gathered.extend_from_slice(encoded.payload);
                account(&mut sent, run.again, 1, bytes);
            }
        }
        if !gathered.is_empty() {
            self.write(&[Part::Bytes(&gathered)])?;
        }
        Ok(sent)
    }

    fn write(&self, parts: &[Part<'_>]) -> Result<(), DriverError> {
        write(&self.ram, &self.stream, &self.limit, self.class, parts)
    }
}

/// Waits for the lane's own limit and the link's bucket, then writes.
fn write(
    ram: &GuestRam,
    stream: &LinkStream,
    limit: &Arc<Bucket>,
    class: Class,
    parts: &[Part<'_>],
) -> Result<(), DriverError> {
    let bytes = parts.iter().map(|part| match part {
        Part::Bytes(bytes) => bytes.len() as u64,
        Part::Pages(pages) => pages.count * PAGE_BYTES,
    });
    let bytes = bytes.sum();
    limit.admit(bytes, class);
    stream.admit(bytes, class);
    ram.send_frames(stream.fd(), parts)?;
    Ok(())
}

fn account(sent: &mut Sent, again: bool, units: u64, bytes: u64) {
    if again {
        sent.again_units += units;
        sent.again_bytes += bytes;
    } else {
        sent.first_units += units;
        sent.first_bytes += bytes;
    }
}

/// What a receiving lane tells.
#[derive(Debug)]
pub(super) enum Arrival {
    /// The barrier has come.
    Barrier,
    /// Missing pages were completed: who had waited, whether they had been asked for, and how many are missing still.
    Completed { waited: Vec<Waited>, demanded: bool, left: u64 },
}

/// The receiving end of a lane.
pub(super) struct LaneReceiver {
    pub(super) ram: Arc<GuestRam>,
    /// The disk from which pages that come by name are taken; `None`: by this lane none may.
    pub(super) volume: Option<Arc<Volume>>,
    pub(super) stream: Arc<LinkStream>,
    /// Set once the guest is about to run with pages missing.
    pub(super) missing: Arc<OnceLock<Arc<MissingPages>>>,
}

impl LaneReceiver {
    /// Takes frames up until the lane ends.
    ///
    /// # Errors
    /// The link failed, or the other side broke the protocol.
    pub(super) fn run(self, arrived: &dyn Fn(Arrival)) -> Result<(), DriverError> {
        let mut header = [0; HEADER_BYTES];
        let mut payload = Vec::new();
        loop {
            (&*self.stream).read_exact(&mut header)?;
            match Frame::decode(&header, self.ram.pages())? {
                Frame::Raw { pages, demanded } => {
                    self.check(pages)?;
                    self.ram.receive_pages(self.stream.read_fd(), pages)?;
                    self.stream.received(pages.count * PAGE_BYTES, self.stream.class());
                    self.complete(pages, demanded, arrived)?;
                }
                Frame::Zero { pages, demanded } => {
                    self.check(pages)?;
                    pages.indices().for_each(|page| self.ram.zero_page(page));
                    self.complete(pages, demanded, arrived)?;
                }
                Frame::Encoded { page, encoding, payload_bytes, demanded } => {
                    let pages = Extent { start: page, count: 1 };
                    self.check(pages)?;
                    payload.resize(payload_bytes as usize, 0);
                    (&*self.stream).read_exact(&mut payload)?;
                    let mut content = [0; PAGE_BYTES as usize];
                    self.ram.read_page(page, &mut content);
                    decode(Encoding::try_from(encoding)?, &payload, &mut content)?;
                    self.ram.write_page(page, &content);
                    self.complete(pages, demanded, arrived)?;
                }
                Frame::Reference { pages } => {
                    self.check(pages)?;
                    let mut place = [0; PLACE_BYTES];
                    (&*self.stream).read_exact(&mut place)?;
                    let named = Backed { pages, offset_bytes: u64::from_be_bytes(place) };
                    // The guest that is about to run here writes to the disk.
                    let volume = self.volume.as_ref().filter(|_| self.missing.get().is_none());
                    by_name::take_up(&self.ram, volume, named)?;
                }
                Frame::Barrier { .. } => arrived(Arrival::Barrier),
                Frame::End => return Ok(()),
                Frame::Want { .. } => {
                    return Err(DriverError::Protocol("a request on a lane that carries pages".into()));
                }
            }
        }
    }

    /// Once the guest runs, only what it misses may be written: everything else is the guest's own.
    fn check(&self, pages: Extent) -> Result<(), DriverError> {
        match self.missing.get() {
            Some(missing) if pages.indices().any(|page| !missing.is_missing(page)) => {
                Err(DriverError::Protocol(format!("pages {pages:?} came, but not all of them are missing")))
            }
            _ => Ok(()),
        }
    }

    fn complete(&self, pages: Extent, demanded: bool, arrived: &dyn Fn(Arrival)) -> Result<(), DriverError> {
        if let Some(missing) = self.missing.get() {
            let waited = missing.complete(pages)?;
            arrived(Arrival::Completed { waited, demanded, left: missing.missing_count() });
        }
        Ok(())
    }
}
