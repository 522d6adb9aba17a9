//! Blocks in the order of how seldom they are written (Zheng, Ng, Sripanidkulchai: workload-aware live storage migration
//! for clouds, VEE 2011).
//!
//! As pre-copy, but in each round the chunks that the guest has not written go first, then those written least; within one
//! frequency (powers of two) neighbors stay together. What is written often is copied late, when it has fewer writes
//! left to come, so that less is copied in vain. The frequencies are those since the migration began: no history from
//! before is kept, unlike the paper's.

use crate::rounds::{Next, Rounds, STOP_BLOCKS, all_of};
use crate::strategy::{BuildContext, Constructor, RATE_LIMIT};
use whimbrel_model::registry::Kind;
use whimbrel_model::strategy::Stage;
use whimbrel_model::{
    Block, Entry, Extent, Needs, Observe, Ordered, Parameter, Parameters, Rest, Schedule, Step, View, WriteCounts,
};

pub(super) const NAME: &str = "by-frequency";
pub(super) const SOURCE: &str =
    "Zheng, Ng, Sripanidkulchai: workload-aware live storage migration for clouds, VEE 2011";

pub(super) const CHUNK: Parameter = Parameter {
    name: "chunk",
    summary: "what a write count is kept for; a block where that is more",
    kind: Kind::Chunk,
    default: Some("256 KiB"),
};
pub(super) const MAX_ROUNDS: Parameter =
    Parameter { name: "max_rounds", summary: "the most rounds of push", kind: Kind::Count, default: Some("4") };

pub(super) const ENTRY: Entry<Constructor> = Entry {
    name: NAME,
    summary: "rounds of push, the blocks that are written least first; the rest follows after the switch",
    parameters: &[STOP_BLOCKS, MAX_ROUNDS, CHUNK, RATE_LIMIT],
    source: SOURCE,
    build,
};

/// Chunks that are pushed between two looks at the write counts.
const BATCH_CHUNKS: usize = 32;

fn build(parameters: &Parameters, context: &BuildContext) -> Box<dyn Schedule<Block>> {
    Box::new(ByFrequency {
        rounds: Rounds::new(parameters.count(STOP_BLOCKS.name), parameters.count(MAX_ROUNDS.name), true),
        stretch: (parameters.size(CHUNK.name).0 / context.block_bytes).max(1),
        within_round: false,
    })
}

struct ByFrequency {
    rounds: Rounds,
    /// Blocks in a chunk.
    stretch: u64,
    within_round: bool,
}

impl Schedule<Block> for ByFrequency {
    fn needs(&self) -> Needs {
        Needs { counts: Some(self.stretch), ..Needs::default() }
    }

    fn source(&mut self, view: &View<'_, Block>) -> Vec<Step<Block>> {
        match view.stage {
            Stage::Push => self.push(view),
            Stage::Paused => Vec::new(),
            Stage::Pull => all_of(view.unsent),
        }
    }
}

impl ByFrequency {
    fn push(&mut self, view: &View<'_, Block>) -> Vec<Step<Block>> {
        if !self.within_round {
            match self.rounds.next(view) {
                Next::Ended(ended_by) => {
                    return vec![Step::Ready { rest: Rest::LeaveBehind, firm: false, ended_by }];
                }
                Next::Steps(steps) if steps.is_empty() => return steps,
                Next::Steps(_) => self.within_round = true,
            }
        }
        let mut chunks = self.chunks(view);
        // Stable: within one frequency the index decides.
        chunks.sort_by_key(|(chunk, _)| frequency(view.counts, *chunk));
        self.within_round = chunks.len() > BATCH_CHUNKS;
        let batch = chunks.into_iter().take(BATCH_CHUNKS).flat_map(|(_, runs)| runs).collect();
        let look = if self.within_round { Observe::Peek } else { Observe::Take };
        vec![Step::Push { units: Ordered::of(batch), limit: None }, Step::Observe(look)]
    }

    /// The chunks with something unsent, ascending, each with the runs of it.
    fn chunks(&self, view: &View<'_, Block>) -> Vec<(u64, Vec<Extent>)> {
        let mut chunks: Vec<(u64, Vec<Extent>)> = Vec::new();
        for mut extent in view.unsent.extents() {
            while extent.count > 0 {
                let chunk = extent.start / self.stretch;
                let count = extent.count.min((chunk + 1) * self.stretch - extent.start);
                let part = Extent { start: extent.start, count };
                match chunks.last_mut() {
                    Some((last, runs)) if *last == chunk => runs.push(part),
                    _ => chunks.push((chunk, vec![part])),
                }
                extent = Extent { start: part.end(), count: extent.count - count };
            }
        }
        chunks
    }
}

/// The power of two below a chunk's write count.
fn frequency(counts: Option<&WriteCounts<Block>>, chunk: u64) -> u32 {
    u32::BITS - counts.map_or(0, |counts| counts.of_stretch(chunk)).leading_zeros()
}
