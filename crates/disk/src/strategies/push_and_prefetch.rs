//! Active push of what is cold, prioritised prefetch of what is hot (Nicolae and Cappello, HPDC 2012).
//!
//! Storage moves independently of memory: the strategy is ready from the start, and pushes as long as memory takes. A
//! chunk that the guest goes on writing is *hot*: it isn't pushed any more. At the switch what is left, hot or not,
//! stays behind with its write counts; the destination fetches it, the chunks that were written most first, and what its
//! guest asks for before all others. A whole overwrite of a block makes its fetch needless, a write of a part waits for
//! it; those are the volume's rules.
//!
//! | `hot` | a chunk is hot once | after |
//! |---|---|---|
//! | `count` | it was written `threshold` times since the migration began | the paper's counter |
//! | `waiting` | it was written while it waited to be pushed; one that was pushed and is written waits again | the released code |
//!
//! With `count` at most `threshold` times the modified chunks are pushed, so that the push ends however the guest writes;
//! `waiting` has no such bound. With `drain` the strategy is ready only once nothing cold waits (the code's push-all).
//!
//! Counts are kept a chunk; what is pushed and fetched of a chunk are its missing blocks. With blocks as large as chunks
//! that is the paper's unit.

use crate::strategy::{BuildContext, Constructor, RATE_LIMIT};
use whimbrel_model::event::EndedBy;
use whimbrel_model::registry::Kind;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{
    Block, Entry, Extent, Nanos, Needs, Observe, Ordered, Parameter, Parameters, Pull, PullView, Rest, Schedule, Step,
    UnitSet, View, WriteCounts,
};

pub(super) const NAME: &str = "push-and-prefetch";
pub(super) const PAPER: &str = "Nicolae, Cappello: a hybrid local storage transfer scheme for live migration of I/O \
                                intensive workloads, HPDC 2012";

pub(super) const THRESHOLD: Parameter = Parameter {
    name: "threshold",
    summary: "a chunk that was written so often since the migration began is hot (hot = count)",
    kind: Kind::Positive,
    default: Some("2"),
};
pub(super) const CHUNK: Parameter = Parameter {
    name: "chunk",
    summary: "what a write count is kept for; a block where that is more",
    kind: Kind::Chunk,
    default: Some("256 KiB"),
};
pub(super) const HOT: Parameter = Parameter {
    name: "hot",
    summary: "what makes a chunk hot: its write count, or a write while it waits to be pushed",
    kind: Kind::Choice(&["count", "waiting"]),
    default: Some("count"),
};
pub(super) const PREFETCH: Parameter = Parameter {
    name: "prefetch",
    summary: "the order in which the destination fetches: by descending write count, the hot chunks first, or by index",
    kind: Kind::Choice(&["count", "hot-first", "index"]),
    default: Some("count"),
};
pub(super) const DRAIN: Parameter = Parameter {
    name: "drain",
    summary: "switch only once nothing cold waits to be pushed",
    kind: Kind::Flag,
    default: Some("false"),
};

pub(super) const ENTRY: Entry<Constructor> = Entry {
    name: NAME,
    summary: "pushes what is cold while memory moves; the rest is fetched by the destination, the hottest first",
    parameters: &[THRESHOLD, CHUNK, HOT, PREFETCH, DRAIN, RATE_LIMIT],
    source: PAPER,
    build,
};

/// Chunks that are pushed between two looks at what the guest wrote: 4 MiB of the default size.
const BATCH_CHUNKS: usize = 16;
/// How often the log is looked at while there is nothing to push.
const LOOK_EVERY: Nanos = Nanos(20_000_000);

fn build(parameters: &Parameters, context: &BuildContext) -> Box<dyn Schedule<Block>> {
    let stretch = (parameters.size(CHUNK.name).0 / context.block_bytes).max(1);
    Box::new(PushAndPrefetch {
        threshold: u32::try_from(parameters.count(THRESHOLD.name)).unwrap_or(u32::MAX),
        stretch,
        by_count: parameters.word(HOT.name) == "count",
        order: match parameters.word(PREFETCH.name) {
            "count" => Order::Count,
            "hot-first" => Order::HotFirst,
            _ => Order::Index,
        },
        drain: parameters.flag(DRAIN.name),
        waited: Vec::new(),
        seen: Vec::new(),
        hot: vec![false; usize::try_from(context.blocks.div_ceil(stretch)).unwrap_or(0)],
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Count,
    HotFirst,
    Index,
}

struct PushAndPrefetch {
    threshold: u32,
    /// Blocks in a chunk.
    stretch: u64,
    by_count: bool,
    order: Order,
    drain: bool,
    /// Chunks that waited to be pushed when the last answer was given.
    waited: Vec<u64>,
    /// Their write counts then.
    seen: Vec<u32>,
    /// Chunks that a write has made hot while they waited.
    hot: Vec<bool>,
}

impl Schedule<Block> for PushAndPrefetch {
    fn needs(&self) -> Needs {
        Needs { counts: Some(self.stretch), prefetch: true, ..Needs::default() }
    }

    fn source(&mut self, view: &View<'_, Block>) -> Vec<Step<Block>> {
        match view.stage {
            Stage::Push => self.push(view),
            // The rest is the destination's to fetch.
            Stage::Paused | Stage::Pull => Vec::new(),
        }
    }

    fn note(&mut self, view: &View<'_, Block>) -> Vec<u8> {
        self.heat(view.counts);
        let mut note = Vec::new();
        if self.order != Order::Index {
            for chunk in self.chunks(view.unsent) {
                let weight = match self.order {
                    Order::Count => view.counts.map_or(0, |counts| counts.of_stretch(chunk)),
                    _ => u32::from(self.is_hot(chunk, view.counts)),
                };
                if weight > 0 {
                    note.extend(chunk.to_le_bytes());
                    note.extend(weight.to_le_bytes());
                }
            }
        }
        note
    }

    fn destination(&mut self, view: &PullView<'_, Block>, note: &[u8]) -> Vec<Pull<Block>> {
        if view.unfetched.is_empty() {
            return Vec::new();
        }
        let mut weights = vec![0_u32; self.hot.len()];
        for entry in note.chunks_exact(12) {
            let chunk = entry[..8].try_into().map(u64::from_le_bytes).ok().and_then(|c| usize::try_from(c).ok());
            let weight = entry[8..].try_into().map(u32::from_le_bytes).unwrap_or(0);
            if let Some(held) = chunk.and_then(|chunk| weights.get_mut(chunk)) {
                *held = weight;
            }
        }
        let mut chunks: Vec<u64> = self.chunks(view.unfetched).collect();
        // Stable: where the counts are equal, the index decides.
        chunks.sort_by_key(|chunk| std::cmp::Reverse(weights.get(*chunk as usize).copied().unwrap_or(0)));
        let extents = chunks.iter().flat_map(|chunk| self.within(view.unfetched, *chunk)).collect();
        vec![Pull::Fetch { units: Ordered::of(extents), limit: None }]
    }
}

impl PushAndPrefetch {
    fn push(&mut self, view: &View<'_, Block>) -> Vec<Step<Block>> {
        self.heat(view.counts);
        let mut cold = self.chunks(view.unsent).filter(|chunk| !self.is_hot(*chunk, view.counts));
        let batch: Vec<Extent> =
            cold.by_ref().take(BATCH_CHUNKS).flat_map(|chunk| self.within(view.unsent, chunk)).collect();
        // The rest of the disk is looked at only where it matters what is written while it waits.
        let waits: Vec<u64> = if self.by_count { Vec::new() } else { cold.collect() };
        self.seen = waits.iter().map(|chunk| view.counts.map_or(0, |counts| counts.of_stretch(*chunk))).collect();
        self.waited = waits;

        let nothing_cold = batch.is_empty();
        let ended_by = if nothing_cold { EndedBy::Converged } else { EndedBy::Immediate };
        let mut steps = Vec::new();
        if nothing_cold || !self.drain {
            steps.push(Step::Ready { rest: Rest::LeaveBehind, firm: false, ended_by });
        }
        if !nothing_cold {
            steps.push(Step::Push { units: Ordered::of(batch), limit: None });
            steps.push(Step::Observe(Observe::Peek));
        } else if self.rewritten(view) {
            steps.push(Step::Observe(Observe::Take));
        } else {
            steps.push(Step::Wait(view.now.plus(LOOK_EVERY)));
            steps.push(Step::Observe(Observe::Peek));
        }
        steps
    }

    /// Whether something was written since the last take that is to be pushed again.
    fn rewritten(&self, view: &View<'_, Block>) -> bool {
        view.peeked.is_some_and(|peeked| self.chunks(peeked).any(|chunk| !self.is_hot(chunk, view.counts)))
    }

    /// Notes which chunks were written while they waited.
    fn heat(&mut self, counts: Option<&WriteCounts<Block>>) {
        let Some(counts) = counts else { return };
        for (chunk, seen) in self.waited.iter().zip(&self.seen) {
            if counts.of_stretch(*chunk) > *seen {
                self.hot[*chunk as usize] = true;
            }
        }
    }

    fn is_hot(&self, chunk: u64, counts: Option<&WriteCounts<Block>>) -> bool {
        if self.by_count {
            counts.is_some_and(|counts| counts.of_stretch(chunk) >= self.threshold)
        } else {
            self.hot[chunk as usize]
        }
    }

    /// The chunks that hold members of a set, ascending.
    fn chunks<'a>(&self, set: &'a UnitSet<Block>) -> impl Iterator<Item = u64> + use<'a> {
        let (stretch, mut at) = (self.stretch, 0);
        std::iter::from_fn(move || {
            let chunk = set.next(at)? / stretch;
            at = (chunk + 1) * stretch;
            Some(chunk)
        })
    }

    /// The members of a set that lie in a chunk.
    fn within(&self, set: &UnitSet<Block>, chunk: u64) -> Vec<Extent> {
        let end = (chunk + 1) * self.stretch;
        let mut runs: Vec<Extent> = Vec::new();
        let mut at = chunk * self.stretch;
        while let Some(block) = set.next(at).filter(|block| *block < end) {
            match runs.last_mut() {
                Some(last) if last.end() == block => last.count += 1,
                _ => runs.push(Extent { start: block, count: 1 }),
            }
            at = block + 1;
        }
        runs
    }
}
