//! A volume as an NBD export: to the source that pushes, to the destination that pulls, and to any NBD tool.
//!
//! | export             | who connects                      | a read                             | a write or write-zeroes               |
//! |--------------------|-----------------------------------|------------------------------------|---------------------------------------|
//! | [`IncomingExport`] | the source, to the destination's  | the image as it is, missing or not | an arrival, by the rules of the phase |
//! | [`OutgoingExport`] | the destination, to the source's  | a pull                             | refused                               |
//! | [`VolumeExport`]   | a guest or a tool                 | the guest's                        | the guest's: marked                   |
//!
//! All answer `base:allocation` and [`CONTEXT_DIRTY`].

use crate::guest_disk::GuestDisk;
use crate::volume::{Content, Volume};
use std::io;
use std::sync::Arc;
use whimbrel_model::Extent;
use whimbrel_nbd::protocol::{CONTEXT_ALLOCATION, MAX_PAYLOAD_BYTES, allocation};
use whimbrel_nbd::{Backend, BlockSizes, Extents, Now, ZeroMode};

/// The metadata context that says which blocks the guest wrote since the bitmap was last taken: [`DIRTY`] or 0.
pub const CONTEXT_DIRTY: &str = "whimbrel:dirty";

/// The bit of an extent in [`CONTEXT_DIRTY`]: written since the last take.
pub const DIRTY: u32 = 1 << 0;

/// The largest minimum that NBD allows an export to state.
const MINIMUM_BYTES_MAX: u64 = 64 << 10;

type OnArrived = Box<dyn Fn(Extent, &[(u64, u64)]) + Send + Sync>;
type OnPulled = Box<dyn Fn(Extent, PulledAs) + Send + Sync>;

/// How the destination has blocks from the source's export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PulledAs {
    /// It has read them.
    Content,
    /// It was told by `base:allocation` that they are zeroes.
    Zero,
}

fn contexts() -> Vec<String> {
    vec![CONTEXT_ALLOCATION.to_owned(), CONTEXT_DIRTY.to_owned()]
}

fn block_sizes(volume: &Volume, minimum: u64) -> BlockSizes {
    BlockSizes { minimum: minimum as u32, preferred: volume.block_bytes() as u32, maximum: MAX_PAYLOAD_BYTES }
}

fn status(volume: &Volume, context: &str, offset: u64, length: u64, extents: &mut Extents) -> io::Result<()> {
    match context {
        CONTEXT_ALLOCATION => volume.allocation(offset, length, extents),
        CONTEXT_DIRTY => {
            let end = offset + length;
            let bytes = volume.block_bytes();
            let mut at = offset;
            while at < end {
                let rest = Extent { start: at / bytes, count: end.div_ceil(bytes) - at / bytes };
                let run = volume.dirty_run(rest).map_or(end..end, |run| run.start * bytes..run.end() * bytes);
                let (start, stop) = (run.start.clamp(at, end), run.end.min(end));
                if !(extents.push(start - at, 0) && extents.push(stop - start, DIRTY)) {
                    return Ok(());
                }
                at = stop;
            }
            Ok(())
        }
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn flush_if(fua: bool, volume: &Volume) -> io::Result<()> {
    if fua { GuestDisk::flush(volume) } else { Ok(()) }
}

/// Zeroes to be stored; making them durable comes after, once.
fn zeroes(length: u64, mode: ZeroMode) -> Content<'static> {
    Content::Zeroes { length, mode: ZeroMode { fua: false, ..mode } }
}

/// The destination's export: what the source writes to it arrives.
pub struct IncomingExport {
    volume: Arc<Volume>,
    on_arrived: OnArrived,
}

impl IncomingExport {
    /// Writes must cover whole blocks. `on_arrived` hears of each after it was stored or dropped: its extent, and of the
    /// blocks in it that the guest had caused to be fetched the number and the nanoseconds since.
    pub fn new(volume: Arc<Volume>, on_arrived: impl Fn(Extent, &[(u64, u64)]) + Send + Sync + 'static) -> Self {
        IncomingExport { volume, on_arrived: Box::new(on_arrived) }
    }

    fn extent(&self, offset: u64, length: u64) -> io::Result<Extent> {
        let bytes = self.volume.block_bytes();
        if offset.is_multiple_of(bytes) && length.is_multiple_of(bytes) {
            Ok(Extent { start: offset / bytes, count: length / bytes })
        } else {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }
}

impl Backend for IncomingExport {
    fn size_bytes(&self) -> u64 {
        GuestDisk::size_bytes(&*self.volume)
    }

    fn block_sizes(&self) -> BlockSizes {
        block_sizes(&self.volume, self.volume.block_bytes().min(MINIMUM_BYTES_MAX))
    }

    fn description(&self) -> String {
        "a disk that migrates to this host".to_owned()
    }

    fn multi_conn(&self) -> bool {
        true
    }

    fn contexts(&self) -> Vec<String> {
        contexts()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.volume.read_image(offset, buffer)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        let extent = self.extent(offset, data.len() as u64)?;
        let waited = self.volume.arrive(extent, data)?;
        (self.on_arrived)(extent, &waited);
        flush_if(fua, &self.volume)
    }

    fn flush(&self) -> io::Result<()> {
        flush_if(true, &self.volume)
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> io::Result<()> {
        let extent = self.extent(offset, length)?;
        let waited = self.volume.store(extent, zeroes(length, mode))?;
        (self.on_arrived)(extent, &waited);
        flush_if(mode.fua, &self.volume)
    }

    fn block_status(&self, context: &str, offset: u64, length: u64, extents: &mut Extents) -> io::Result<()> {
        status(&self.volume, context, offset, length, extents)
    }

    fn try_write_now(&self, offset: u64, data: &[u8]) -> io::Result<Now> {
        let extent = self.extent(offset, data.len() as u64)?;
        let now = self.volume.try_arrive_now(extent, data)?;
        if now == Now::Done {
            (self.on_arrived)(extent, &[]);
        }
        Ok(now)
    }
}

/// The source's export: what the destination reads of it is pulled.
pub struct OutgoingExport {
    volume: Arc<Volume>,
    on_pulled: OnPulled,
}

impl OutgoingExport {
    /// `on_pulled` hears of each read, and of what is told to be zeroes, before the answer leaves: of the blocks that it covers
    /// wholly.
    pub fn new(volume: Arc<Volume>, on_pulled: impl Fn(Extent, PulledAs) + Send + Sync + 'static) -> Self {
        OutgoingExport { volume, on_pulled: Box::new(on_pulled) }
    }

    fn pulled(&self, offset: u64, length: u64, pulled_as: PulledAs) {
        let bytes = self.volume.block_bytes();
        let (start, end) = (offset.div_ceil(bytes), (offset + length) / bytes);
        if start < end {
            (self.on_pulled)(Extent { start, count: end - start }, pulled_as);
        }
    }
}

impl Backend for OutgoingExport {
    fn size_bytes(&self) -> u64 {
        GuestDisk::size_bytes(&*self.volume)
    }

    fn block_sizes(&self) -> BlockSizes {
        block_sizes(&self.volume, 1)
    }

    fn description(&self) -> String {
        "a disk that migrates from this host".to_owned()
    }

    fn read_only(&self) -> bool {
        true
    }

    fn multi_conn(&self) -> bool {
        true
    }

    fn contexts(&self) -> Vec<String> {
        contexts()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.volume.read_image(offset, buffer)?;
        self.pulled(offset, buffer.len() as u64, PulledAs::Content);
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8], _: bool) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn block_status(&self, context: &str, offset: u64, length: u64, extents: &mut Extents) -> io::Result<()> {
        status(&self.volume, context, offset, length, extents)?;
        if context == CONTEXT_ALLOCATION {
            let mut at = offset;
            for extent in extents.list() {
                if extent.flags & allocation::ZERO != 0 {
                    self.pulled(at, extent.length, PulledAs::Zero);
                }
                at += extent.length;
            }
        }
        Ok(())
    }

    fn try_read_now(&self, offset: u64, buffer: &mut [u8]) -> io::Result<Now> {
        let now = self.volume.try_read_image_now(offset, buffer)?;
        if now == Now::Done {
            self.pulled(offset, buffer.len() as u64, PulledAs::Content);
        }
        Ok(now)
    }
}

/// A tracked volume for any NBD client: it is the guest.
pub struct VolumeExport {
    volume: Arc<Volume>,
}

impl VolumeExport {
    /// Exports `volume`, writable.
    pub fn new(volume: Arc<Volume>) -> Self {
        VolumeExport { volume }
    }
}

impl Backend for VolumeExport {
    fn size_bytes(&self) -> u64 {
        GuestDisk::size_bytes(&*self.volume)
    }

    fn block_sizes(&self) -> BlockSizes {
        block_sizes(&self.volume, 1)
    }

    fn description(&self) -> String {
        "a disk whose writes are tracked".to_owned()
    }

    fn multi_conn(&self) -> bool {
        true
    }

    fn contexts(&self) -> Vec<String> {
        contexts()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        GuestDisk::read(&*self.volume, offset, buffer)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        GuestDisk::write(&*self.volume, offset, data)?;
        flush_if(fua, &self.volume)
    }

    fn flush(&self) -> io::Result<()> {
        flush_if(true, &self.volume)
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        let mode = ZeroMode { may_trim: true, fua, fast: true };
        match self.write_zeroes(offset, length, mode) {
            // A hint: what can't be trimmed stays as it is.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other,
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> io::Result<()> {
        self.volume.guest_write(offset, zeroes(length, mode))?;
        flush_if(mode.fua, &self.volume)
    }

    fn block_status(&self, context: &str, offset: u64, length: u64, extents: &mut Extents) -> io::Result<()> {
        status(&self.volume, context, offset, length, extents)
    }

    fn try_read_now(&self, offset: u64, buffer: &mut [u8]) -> io::Result<Now> {
        self.volume.try_read_now(offset, buffer)
    }

    fn try_write_now(&self, offset: u64, data: &[u8]) -> io::Result<Now> {
        self.volume.try_write_now(offset, data)
    }

    fn try_write_many_now(&self, writes: &[(u64, &[u8])]) -> usize {
        self.volume.try_write_many_now(writes)
    }

    fn takes_pieces(&self) -> bool {
        true
    }

    fn is_cached(&self, offset: u64, length: u64) -> bool {
        self.volume.is_cached(offset, length)
    }

    fn is_zero(&self, offset: u64, length: u64) -> bool {
        self.volume.is_hole(offset, length)
    }
}
