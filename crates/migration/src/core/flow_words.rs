//! What a flow is told and what it wants, and what it must know of a unit's type.

use super::{Run, Written};
use whimbrel_memory::{Select, SelectView};
use whimbrel_model::event::EndedBy;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{
    Block, ByteRate, Extent, Family, Mirroring, Nanos, Observe, Page, Rest, Unit, UnitSet, WriteCounts,
};

/// What a schedule said when it was ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Readiness {
    pub(super) rest: Rest,
    pub(super) firm: bool,
    pub(super) ended_by: EndedBy,
}

/// What a flow wants of the driver.
#[derive(Debug, PartialEq)]
pub(super) enum Want {
    Send {
        job: u64,
        runs: Vec<Run>,
        limit: Option<ByteRate>,
        content: bool,
        offered: bool,
    },
    Observe(Observe),
    /// Which units are free; the question's number.
    Ask(u64),
    Deferred(u64),
    /// From now on; what the destination lacks now.
    Mirror(Mirroring, Vec<Extent>),
    Abort(String),
}

/// What the core knows that a schedule may know too.
#[derive(Clone, Copy, Debug)]
pub(super) struct Around {
    pub(super) now: Nanos,
    pub(super) stage: Stage,
    pub(super) bandwidth: Option<ByteRate>,
    /// The link's own rate, if it is known.
    pub(super) link: Option<ByteRate>,
    pub(super) other_ready: bool,
}

/// What of its flow a selection may know.
pub(super) struct Known<'a, U> {
    pub(super) stage: Stage,
    pub(super) peeked: Option<&'a UnitSet<U>>,
    pub(super) free: Option<&'a UnitSet<U>>,
}

/// The part of a unit's type that the core needs: which family, and how a written set of it is told apart.
pub(super) trait FlowUnit: Unit {
    const FAMILY: Family;
    /// How much of a push a job may hold once the guest runs at the destination: what is in a job that waits can't be had by
    /// demand.
    fn pull_job_bytes(around: &Around) -> u64;
    fn of(written: Written) -> Option<(UnitSet<Self>, Option<WriteCounts<Self>>)>;
    fn choose(select: &mut dyn Select, run: Extent, known: &Known<'_, Self>, keep: &mut Vec<Extent>);
}

/// What a bandwidth carries in 2 ms, though at least 64 KiB.
fn two_milliseconds(bandwidth: Option<ByteRate>) -> u64 {
    bandwidth.map_or(0, |rate| bytes_in(rate, Nanos(2_000_000))).max(64 << 10)
}

fn bytes_in(rate: ByteRate, time: Nanos) -> u64 {
    (rate.0 * time.0 as f64 / 1e9) as u64
}

impl FlowUnit for Page {
    const FAMILY: Family = Family::Memory;
    /// Where the link has a rate, a demanded page stands behind the job that is on it; and a Linux guest that begins to run has some
    /// hundreds of faults one after the other before it is heard of.
    fn pull_job_bytes(around: &Around) -> u64 {
        match around.link {
            Some(rate) => bytes_in(rate, Nanos(250_000)).max(16 << 10),
            None => two_milliseconds(around.bandwidth),
        }
    }
    fn of(written: Written) -> Option<(UnitSet<Page>, Option<WriteCounts<Page>>)> {
        match written {
            Written::Pages(set) => Some((set, None)),
            Written::Blocks(..) => None,
        }
    }
    fn choose(select: &mut dyn Select, run: Extent, known: &Known<'_, Self>, keep: &mut Vec<Extent>) {
        let Known { stage, peeked, free } = *known;
        select.choose(run, &SelectView { stage, peeked, free }, keep);
    }
}

impl FlowUnit for Block {
    const FAMILY: Family = Family::Disk;
    /// Each is acknowledged, so smaller ones would wait for round trips.
    fn pull_job_bytes(around: &Around) -> u64 {
        two_milliseconds(around.bandwidth)
    }
    fn of(written: Written) -> Option<(UnitSet<Block>, Option<WriteCounts<Block>>)> {
        match written {
            Written::Blocks(set, counts) => Some((set, counts)),
            Written::Pages(_) => None,
        }
    }
    fn choose(_: &mut dyn Select, run: Extent, _: &Known<'_, Self>, keep: &mut Vec<Extent>) {
        keep.push(run);
    }
}
