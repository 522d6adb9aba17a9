//! `memory-intensive`: rewrites words of the pages of a working set, in a pattern and at a rate.
//!
//! The uniform sweep writer is the one for which pre-copy's behavior is known in closed form; the hot set is Clark's
//! writable working set; the phased one never lets a prediction settle.

use crate::pacer::{Computing, Debt, Pacer};
use crate::pattern::{Pattern, Picker, Place};
use crate::workload::{BuildContext, Offered, Share, Streams, Workload, refuse, restore, save};
use crate::zipf::Zipf;
use serde::{Deserialize, Serialize};
use whimbrel_model::op::{Op, WORDS_PER_PAGE};
use whimbrel_model::registry::{Entry, Kind, Parameter, ParameterError, Parameters};
use whimbrel_model::rng::Rng;
use whimbrel_model::stream::{Paced, Stream, StreamError};
use whimbrel_model::units::PAGE_BYTES;

const NAME: &str = "memory-intensive";

/// What a page's rewrite takes by itself, for the compute share of an unpaced vCPU, in nanoseconds.
const WRITE_ALONE_NS: u64 = 1_000;

/// The most that `read_share` may be: a guest that only reads has no rate of writing.
const LARGEST_READ_SHARE: f64 = 0.99;

/// The member's entry.
pub const ENTRY: Entry<Workload> = Entry {
    name: NAME,
    summary: "rewrites words of the pages of a working set, in a pattern and at a rate",
    parameters: PARAMETERS,
    source: "Clark et al., NSDI 2005 (writable working set); Ibrahim et al., SC 2011",
    build: Workload { streams, offered, unit: "pages", content: "random" },
};

const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "pattern",
        summary: "which page is next; phased goes through the others in turn",
        kind: Kind::Choice(&["uniform", "hot-set", "sweep", "zipf", "phased"]),
        default: Some("uniform"),
    },
    Parameter {
        name: "working_set",
        summary: "what is written, of the whole guest; the rest of RAM is filled and stays; left out: a quarter of RAM",
        kind: Kind::Size,
        default: None,
    },
    Parameter {
        name: "rate",
        summary: "pages written x page size, rewrites counted, of the whole guest; left out: as fast as it can",
        kind: Kind::Rate,
        default: None,
    },
    Parameter {
        name: "words_per_write",
        summary: "words of 8 bytes that a write changes in its page, 1 to 512",
        kind: Kind::Count,
        default: Some("8"),
    },
    Parameter {
        name: "read_share",
        summary: "share of the accesses that read, 0 to 0.99; reads come on top of the rate",
        kind: Kind::Ratio,
        default: Some("0"),
    },
    Parameter {
        name: "compute_share",
        summary: "share of its time that a vCPU computes",
        kind: Kind::Ratio,
        default: Some("0"),
    },
    Parameter {
        name: "hot_size",
        summary: "the hot part of the working set (hot-set, phased); left out: a tenth of it",
        kind: Kind::Size,
        default: None,
    },
    Parameter {
        name: "hot_share",
        summary: "share of the accesses that go to the hot part (hot-set, phased)",
        kind: Kind::Ratio,
        default: Some("0.9"),
    },
    Parameter {
        name: "exponent",
        summary: "of Zipf's law (zipf, phased), 0 to 8",
        kind: Kind::Number,
        default: Some("1"),
    },
    Parameter {
        name: "phase_operations",
        summary: "accesses of a vCPU until a phased pattern changes",
        kind: Kind::Count,
        default: Some("20000"),
    },
];

/// Pages of the working set, of the whole guest.
fn working_set_pages(parameters: &Parameters, context: &BuildContext) -> u64 {
    let pages = parameters.optional_number("working_set").map(|bytes| bytes as u64 / PAGE_BYTES);
    pages.unwrap_or(context.shape.pages / 4).max(u64::from(context.shape.vcpus))
}

fn offered(parameters: &Parameters, context: &BuildContext) -> Offered {
    Offered {
        write_bytes_per_s: parameters.optional_number("rate"),
        working_set_bytes: Some(working_set_pages(parameters, context) * PAGE_BYTES),
        disk_write_bytes_per_s: Some(0.0),
    }
}

fn streams(parameters: &Parameters, context: &BuildContext) -> Result<Streams, ParameterError> {
    check(parameters, context)?;
    let vcpus = u64::from(context.shape.vcpus);
    let set = working_set_pages(parameters, context);
    let make = |share: Share| {
        let index = u64::from(share.index);
        let count = (set * (index + 1) / vcpus - set * index / vcpus).clamp(1, share.page_count().max(1));
        Box::new(MemoryIntensive::new(parameters, context, &share, count)) as Box<dyn Stream>
    };
    Ok(context.shares().map(make).collect())
}

fn check(parameters: &Parameters, context: &BuildContext) -> Result<(), ParameterError> {
    let pages = context.shape.pages;
    if working_set_pages(parameters, context) > pages {
        let accepted = format!("at most the guest's {} MiB", (pages * PAGE_BYTES) >> 20);
        return Err(refuse("working_set", format!("{} bytes", parameters.number("working_set")), accepted));
    }
    let words = parameters.count("words_per_write");
    if !(1..=WORDS_PER_PAGE).contains(&words) {
        return Err(refuse("words_per_write", words, "1 to 512"));
    }
    let share = parameters.number("read_share");
    if share > LARGEST_READ_SHARE {
        return Err(refuse("read_share", share, "0 to 0.99"));
    }
    if parameters.number("exponent") > Zipf::LARGEST_EXPONENT {
        return Err(refuse("exponent", parameters.number("exponent"), "0 to 8"));
    }
    if parameters.count("phase_operations") == 0 {
        return Err(refuse("phase_operations", 0, "1 or more"));
    }
    Ok(())
}

struct MemoryIntensive {
    first_page: u64,
    picker: Picker,
    words: u64,
    read_share: f64,
    /// The rate is zero.
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
}

impl MemoryIntensive {
    fn new(parameters: &Parameters, context: &BuildContext, share: &Share, count: u64) -> Self {
        let pattern = match parameters.word("pattern") {
            "hot-set" => Pattern::HotSet,
            "sweep" => Pattern::Sweep,
            "zipf" => Pattern::Zipf,
            "phased" => Pattern::Phased,
            _ => Pattern::Uniform,
        };
        let vcpus = f64::from(context.shape.vcpus);
        let hot = parameters.optional_number("hot_size").map(|bytes| (bytes / vcpus) as u64 / PAGE_BYTES);
        let rate = parameters.optional_number("rate");
        MemoryIntensive {
            first_page: share.pages.start,
            picker: Picker {
                pattern,
                count,
                hot_count: hot.unwrap_or(count / 10).clamp(1, count),
                hot_share: parameters.number("hot_share"),
                zipf: Zipf::new(count, parameters.number("exponent")),
                phase_picks: parameters.count("phase_operations"),
            },
            words: parameters.count("words_per_write"),
            read_share: parameters.number("read_share"),
            resting: rate == Some(0.0),
            pacer: Pacer::new(rate.map(|r| r / vcpus)),
            computing: Computing::new(parameters.number("compute_share")),
            state: State { rng: Rng::new(share.seed), place: Place::default(), carry: 0, debt: Debt::default() },
        }
    }
}

impl Stream for MemoryIntensive {
    // Always, so that a filled batch is written in place: a copy of what was just written stalls the processor.
    #[inline(always)]
    fn next(&mut self) -> Paced {
        let state = &mut self.state;
        if let Some(compute) = self.computing.due(&mut state.debt) {
            return compute;
        }
        if self.resting {
            return self.computing.rest(&mut state.debt);
        }
        let reads = self.read_share > 0.0 && state.rng.chance(self.read_share);
        let page = self.first_page + self.picker.pick(&mut state.place, &mut state.rng);
        let first = state.rng.below(WORDS_PER_PAGE - self.words + 1) as u16;
        let words = self.words as u16;
        if reads {
            return Paced { op: Op::Read { page, first, words }, interval_ns: 0, units: 1 };
        }
        let interval_ns = self.pacer.interval(PAGE_BYTES, &mut state.carry);
        self.computing.owe(&mut state.debt, interval_ns, WRITE_ALONE_NS);
        Paced { op: Op::Write { page, first, words }, interval_ns, units: 1 }
    }

    fn save(&self) -> Vec<u8> {
        save(&self.state)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StreamError> {
        self.state = restore(NAME, state, |s: &State| {
            self.picker.accepts(&s.place).then_some(()).ok_or("its place lies outside the working set")
        })?;
        Ok(())
    }
}
