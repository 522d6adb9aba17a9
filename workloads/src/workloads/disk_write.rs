//! `disk-write`: writes the disk in requests, in a pattern and at a rate, with flushes, rewrites and reads back.
//!
//! With a compute share it is AsyncWR (Nicolae and Cappello, HPDC 2012): compute at a constant pace and write what was
//! computed, so that a stall of the disk shows as work lost. Some requests are cut to sectors, so that they cover blocks
//! in part and the merging of a partial write with a block that is still missing is exercised.

use crate::pacer::{Computing, Debt, Pacer};
use crate::pattern::{Pattern, Picker, Place};
use crate::workload::{BuildContext, Offered, Share, Streams, Workload, refuse, restore, save};
use crate::zipf::Zipf;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use whimbrel_model::op::{MOST_SECTORS, Op, SECTOR_BYTES, WORDS_PER_PAGE};
use whimbrel_model::registry::{Entry, Kind, Parameter, ParameterError, Parameters};
use whimbrel_model::rng::Rng;
use whimbrel_model::stream::{Paced, Stream, StreamError};

const NAME: &str = "disk-write";

/// Requests that a rewrite or a read back chooses from.
const REMEMBERED: usize = 128;

/// Pages of memory in which a vCPU prepares its requests, in turn.
const BUFFER_PAGES: u64 = 64;

/// Words of the buffer that a request rewrites.
const BUFFER_WORDS: u64 = 64;

/// The rate at which an unpaced request is taken to be written, for the compute share: bytes in a nanosecond.
const ALONE_BYTES_PER_NS: f64 = 0.5;

/// The member's entry.
pub const ENTRY: Entry<Workload> = Entry {
    name: NAME,
    summary: "writes the disk in requests, in a pattern and at a rate, with flushes, rewrites and reads back",
    parameters: PARAMETERS,
    source: "Luo et al., CLUSTER 2008; Nicolae and Cappello, HPDC 2012 (AsyncWR by compute_share)",
    build: Workload { streams, offered, unit: "requests", content: "random" },
};

const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "rate",
        summary: "bytes written, rewrites counted, of the whole guest; left out: as fast as it can",
        kind: Kind::Rate,
        default: None,
    },
    Parameter {
        name: "pattern",
        summary: "where the next request goes",
        kind: Kind::Choice(&["sequential", "random", "zipf"]),
        default: Some("sequential"),
    },
    Parameter {
        name: "extent",
        summary: "the part of the disk, from its start, that is written; left out: half of the disk",
        kind: Kind::Size,
        default: None,
    },
    Parameter {
        name: "request",
        summary: "the size of a request, a multiple of 512 bytes, at most 1 MiB",
        kind: Kind::Size,
        default: Some("64 KiB"),
    },
    Parameter {
        name: "rewrite_share",
        summary: "share of the writes that rewrite one of the last 128 requests",
        kind: Kind::Ratio,
        default: Some("0.1"),
    },
    Parameter {
        name: "partial_share",
        summary: "share of the writes that are cut to sectors at both ends, so that they cover blocks in part",
        kind: Kind::Ratio,
        default: Some("0.05"),
    },
    Parameter {
        name: "read_share",
        summary: "share of the requests that read back one of the last 128; they come on top of the rate",
        kind: Kind::Ratio,
        default: Some("0.05"),
    },
    Parameter {
        name: "flush_every",
        summary: "writes of a vCPU from flush to flush; 0: never",
        kind: Kind::Count,
        default: Some("64"),
    },
    Parameter {
        name: "compute_share",
        summary: "share of its time that a vCPU computes",
        kind: Kind::Ratio,
        default: Some("0"),
    },
    Parameter { name: "exponent", summary: "of Zipf's law (zipf), 0 to 8", kind: Kind::Number, default: Some("1") },
];

fn offered(parameters: &Parameters, context: &BuildContext) -> Offered {
    let buffers = context.shares().map(|share| share.page_count().min(BUFFER_PAGES)).sum::<u64>();
    Offered {
        write_bytes_per_s: None,
        working_set_bytes: Some(buffers * whimbrel_model::units::PAGE_BYTES),
        disk_write_bytes_per_s: parameters.optional_number("rate"),
    }
}

/// The sectors of a whole guest's extent.
fn extent_sectors(parameters: &Parameters, context: &BuildContext) -> u64 {
    let given = parameters.optional_number("extent").map(|bytes| bytes as u64 / SECTOR_BYTES);
    given.unwrap_or(context.shape.sectors / 2)
}

fn streams(parameters: &Parameters, context: &BuildContext) -> Result<Streams, ParameterError> {
    let request = parameters.size("request").0;
    if !request.is_multiple_of(SECTOR_BYTES) || !(1..=u64::from(MOST_SECTORS)).contains(&(request / SECTOR_BYTES)) {
        return Err(refuse("request", format!("{request} bytes"), "a multiple of 512 B, at most 1 MiB"));
    }
    if context.shape.sectors == 0 {
        return Err(refuse("use", NAME, "another workload, or give the guest a disk (guest.disk)"));
    }
    let (extent, sectors) = (extent_sectors(parameters, context), context.shape.sectors);
    let least = u64::from(context.shape.vcpus) * request.div_ceil(4096) * (4096 / SECTOR_BYTES);
    if extent > sectors || extent < least {
        let accepted = format!("from {} B (a request a vCPU) to the disk's {} B", least * 512, sectors * 512);
        return Err(refuse("extent", format!("{} bytes", extent * SECTOR_BYTES), accepted));
    }
    if parameters.number("exponent") > Zipf::LARGEST_EXPONENT {
        return Err(refuse("exponent", parameters.number("exponent"), "0 to 8"));
    }
    if parameters.number("read_share") > 0.99 {
        return Err(refuse("read_share", parameters.number("read_share"), "0 to 0.99"));
    }
    let mut part = context.clone();
    part.shape.sectors = extent;
    Ok(part.shares().map(|share| Box::new(DiskWrite::new(parameters, &part, &share)) as Box<dyn Stream>).collect())
}

struct DiskWrite {
    share: Share,
    /// Picks slots of one request each.
    picker: Picker,
    request_sectors: u64,
    rewrite_share: f64,
    partial_share: f64,
    read_share: f64,
    flush_every: u64,
    resting: bool,
    pacer: Pacer,
    computing: Computing,
    state: State,
}

#[derive(Serialize, Deserialize)]
struct State {
    rng: Rng,
    place: Place,
    carry: u64,
    debt: Debt,
    /// Requests made; chooses the buffer.
    requests: u64,
    /// Writes since the last flush.
    unflushed: u64,
    /// Whether the buffer of the next request is prepared.
    prepared: bool,
    /// The last slots written, the oldest first.
    recent: VecDeque<u64>,
}

impl DiskWrite {
    fn new(parameters: &Parameters, context: &BuildContext, share: &Share) -> Self {
        let request_sectors = parameters.size("request").0 / SECTOR_BYTES;
        let pattern = match parameters.word("pattern") {
            "random" => Pattern::Uniform,
            "zipf" => Pattern::Zipf,
            _ => Pattern::Sweep,
        };
        let rate = parameters.optional_number("rate");
        DiskWrite {
            share: share.clone(),
            picker: Picker::plain(pattern, share.sector_count() / request_sectors, parameters.number("exponent")),
            request_sectors,
            rewrite_share: parameters.number("rewrite_share"),
            partial_share: parameters.number("partial_share"),
            read_share: parameters.number("read_share"),
            flush_every: parameters.count("flush_every"),
            resting: rate == Some(0.0),
            pacer: Pacer::new(rate.map(|r| r / f64::from(context.shape.vcpus))),
            computing: Computing::new(parameters.number("compute_share")),
            state: State {
                rng: Rng::new(share.seed),
                place: Place::default(),
                carry: 0,
                debt: Debt::default(),
                requests: 0,
                unflushed: 0,
                prepared: false,
                recent: VecDeque::new(),
            },
        }
    }

    fn sector(&self, slot: u64) -> u64 {
        self.share.sectors.start + slot * self.request_sectors
    }

    /// Rewrites words of the buffer in which the next request is prepared.
    fn prepare(&mut self) -> Paced {
        let page = self.share.pages.start + self.state.requests % self.share.page_count().clamp(1, BUFFER_PAGES);
        let first = self.state.rng.below(WORDS_PER_PAGE - BUFFER_WORDS + 1) as u16;
        self.state.prepared = true;
        Paced { op: Op::Write { page, first, words: BUFFER_WORDS as u16 }, interval_ns: 0, units: 0 }
    }

    fn recent(&mut self) -> Option<u64> {
        let at = self.state.rng.below(self.state.recent.len() as u64);
        self.state.recent.get(at as usize).copied()
    }

    fn write(&mut self) -> Paced {
        let slot = if self.state.rng.chance(self.rewrite_share) { self.recent() } else { None };
        let slot = slot.unwrap_or_else(|| self.picker.pick(&mut self.state.place, &mut self.state.rng));
        let state = &mut self.state;
        if state.recent.len() == REMEMBERED {
            state.recent.pop_front();
        }
        state.recent.push_back(slot);
        state.requests = state.requests.wrapping_add(1);
        state.unflushed = state.unflushed.saturating_add(1);
        state.prepared = false;
        let (mut skip, mut sectors) = (0, self.request_sectors);
        if state.rng.chance(self.partial_share) {
            sectors = 1 + state.rng.below(self.request_sectors);
            skip = state.rng.below(self.request_sectors - sectors + 1);
        }
        let bytes = sectors * SECTOR_BYTES;
        let interval_ns = self.pacer.interval(bytes, &mut state.carry);
        self.computing.owe(&mut state.debt, interval_ns, (bytes as f64 / ALONE_BYTES_PER_NS) as u64);
        let op = Op::DiskWrite { sector: self.sector(slot) + skip, sectors: sectors as u32 };
        Paced { op, interval_ns, units: 1 }
    }
}

impl Stream for DiskWrite {
    fn next(&mut self) -> Paced {
        if let Some(compute) = self.computing.due(&mut self.state.debt) {
            return compute;
        }
        if self.resting {
            return self.computing.rest(&mut self.state.debt);
        }
        if self.flush_every > 0 && self.state.unflushed >= self.flush_every {
            self.state.unflushed = 0;
            return Paced { op: Op::Flush, interval_ns: 0, units: 0 };
        }
        if !self.state.prepared {
            return self.prepare();
        }
        if self.state.rng.chance(self.read_share)
            && let Some(slot) = self.recent()
        {
            let op = Op::DiskRead { sector: self.sector(slot), sectors: self.request_sectors as u32 };
            return Paced { op, interval_ns: 0, units: 0 };
        }
        self.write()
    }

    fn save(&self) -> Vec<u8> {
        save(&self.state)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StreamError> {
        self.state = restore(NAME, state, |s: &State| {
            let inside = s.recent.iter().all(|slot| *slot < self.picker.count) && s.recent.len() <= REMEMBERED;
            (inside && self.picker.accepts(&s.place)).then_some(()).ok_or("a place lies outside the extent")
        })?;
        Ok(())
    }
}
