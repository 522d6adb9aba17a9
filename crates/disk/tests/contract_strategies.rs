//! What every disk strategy must keep to, with whatever the guest writes meanwhile; and what three-phase in particular
//! decides.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use whimbrel_disk::{BLOCK_BYTES, BuildContext, DISK_PRESETS, DISK_STRATEGIES, DiskChoice};
use whimbrel_model::event::{EndedBy, Family, Round};
use whimbrel_model::strategy::{Stage, Verdict};
use whimbrel_model::{
    Block, ByteRate, Extent, Nanos, Observe, Ordered, Parameters, Pull, PullView, Rest, Rng, Schedule, Step, UnitSet,
    View, WriteCounts,
};

const BLOCKS: u64 = 1000;

/// How a guest writes while blocks are sent.
#[derive(Clone, Copy, Debug)]
enum Writer {
    Idle,
    /// So many writes for each block sent, over the whole disk.
    Uniform(f64),
    /// Likewise, within so many blocks.
    Hot(f64, u64),
}

/// How a move ended.
#[derive(Debug, PartialEq)]
enum Outcome {
    Moved { rest: Rest, ended_by: EndedBy, at_pause: u64 },
    Aborted,
}

/// An engine without bytes, link or clock.
struct Engine {
    unsent: UnitSet<Block>,
    dirty: UnitSet<Block>,
    peeked: Option<UnitSet<Block>>,
    /// Where the strategy needs them: blocks a counter, and the counts.
    writes: Option<(u64, Vec<u32>)>,
    counts: Option<WriteCounts<Block>>,
    /// The guest's writes are at both ends, and never dirty.
    mirrored: bool,
    sent: UnitSet<Block>,
    sent_total: u64,
    /// What the destination fetched, in order.
    fetched: Vec<u64>,
    rounds: Vec<Round>,
    in_round: u64,
    stage: Stage,
    writer: Writer,
    rng: Rng,
}

impl Engine {
    fn new(unsent: UnitSet<Block>, writer: Writer) -> Self {
        let none = || UnitSet::empty(BLOCKS);
        let (dirty, sent) = (none(), none());
        let rng = Rng::new(7);
        let peeked = None;
        Engine {
            unsent,
            dirty,
            peeked,
            writes: None,
            mirrored: false,
            counts: None,
            fetched: Vec::new(),
            sent,
            sent_total: 0,
            rounds: Vec::new(),
            in_round: 0,
            stage: Stage::Push,
            writer,
            rng,
        }
    }

    fn ask(&self, schedule: &mut dyn Schedule<Block>, other_ready: bool) -> Vec<Step<Block>> {
        schedule.source(&View {
            now: Nanos(self.sent_total),
            stage: self.stage,
            unit_bytes: BLOCK_BYTES,
            unsent: &self.unsent,
            peeked: self.peeked.as_ref(),
            counts: self.counts.as_ref(),
            rounds: &self.rounds,
            verdict: Verdict::Continue,
            bandwidth: None,
            other_ready,
        })
    }

    fn push(&mut self, units: &Ordered<Block>) {
        for block in units.extents().iter().copied().flat_map(Extent::indices) {
            assert!(self.unsent.remove(block), "block {block} was pushed and nobody lacks it");
            self.sent.insert(block);
            self.sent_total += 1;
            self.in_round += 1;
            let (rate, among) = match self.writer {
                _ if self.stage != Stage::Push => continue,
                Writer::Idle => continue,
                Writer::Uniform(rate) => (rate, BLOCKS),
                Writer::Hot(rate, among) => (rate, among),
            };
            let writes = rate as u64 + u64::from(self.rng.chance(rate.fract()));
            for _ in 0..writes {
                let block = self.rng.below(among);
                self.write(block);
            }
        }
    }

    fn write(&mut self, block: u64) {
        if !self.mirrored {
            self.dirty.insert(block);
        }
        if let Some((stretch, counts)) = &mut self.writes {
            counts[(block / *stretch) as usize] += 1;
        }
    }

    fn look(&mut self) {
        self.counts = self.writes.as_ref().map(|(stretch, counts)| WriteCounts::new(*stretch, counts.clone()));
    }

    fn take(&mut self) {
        self.look();
        let round = Round {
            kind: Family::Disk,
            start_ns: 0,
            ns: self.in_round,
            sent_units: self.in_round,
            dirty_units: self.dirty.count(),
            again_units: 0,
            bytes: self.in_round * BLOCK_BYTES,
            limit: None,
            predicted_ns: None,
            throttle: 0.0,
        };
        self.rounds.push(round);
        self.in_round = 0;
        self.unsent.union(&self.dirty);
        self.dirty.clear();
        self.peeked = Some(self.dirty.clone());
    }

    /// Carries out an answer while the guest runs at the source. Returns what it says of readiness.
    fn carry_out(
        &mut self,
        schedule: &mut dyn Schedule<Block>,
        steps: Vec<Step<Block>>,
    ) -> Result<Option<(Rest, EndedBy)>, Outcome> {
        let mut ready = None;
        let takes = steps.contains(&Step::Observe(Observe::Take));
        for step in steps {
            match step {
                Step::Push { units, .. } | Step::Offer { units, .. } => {
                    self.push(&units);
                    if takes {
                        // Everything is sent, and the take is still to come: nothing may be concluded yet.
                        let early = self.ask(schedule, false);
                        let pushes = |step: &Step<Block>| matches!(step, Step::Push { .. } | Step::Offer { .. });
                        assert!(!early.iter().any(pushes), "{early:?}");
                    }
                }
                Step::Observe(Observe::Take) => self.take(),
                Step::Observe(Observe::Peek) => {
                    self.look();
                    self.peeked = Some(self.dirty.clone());
                }
                Step::Mirror(_) => self.mirrored = true,
                Step::Wait(_) => {}
                Step::Ready { rest, ended_by, .. } => ready = Some((rest, ended_by)),
                Step::Abort(reason) => {
                    assert!(!reason.is_empty());
                    return Err(Outcome::Aborted);
                }
            }
        }
        Ok(ready)
    }

    /// Pushes until the strategy is ready or gives up.
    fn until_ready(&mut self, schedule: &mut dyn Schedule<Block>) -> Result<(Rest, EndedBy), Outcome> {
        for _ in 0..300 {
            let steps = self.ask(schedule, false);
            assert!(!steps.is_empty(), "nothing under way, and the strategy waits for news");
            let ready = self.carry_out(schedule, steps)?;
            if let Some(ready) = ready {
                return Ok(ready);
            }
        }
        panic!("still not ready after 300 answers");
    }

    /// The destination's part: it must fetch what the source doesn't push, each block once.
    fn prefetch(&mut self, schedule: &mut dyn Schedule<Block>) {
        let note = schedule.note(&View { counts: self.counts.as_ref(), ..paused(&self.unsent) });
        let mut unfetched = self.unsent.clone();
        for _ in 0..100 {
            let view = PullView { now: Nanos(0), unit_bytes: BLOCK_BYTES, unfetched: &unfetched };
            let pulls = schedule.destination(&view, &note);
            if pulls.is_empty() {
                return;
            }
            for pull in pulls {
                let Pull::Fetch { units, .. } = pull else { continue };
                for block in units.extents().iter().copied().flat_map(Extent::indices) {
                    assert!(unfetched.remove(block), "block {block} was fetched and is not missing");
                    assert!(self.unsent.remove(block));
                    self.sent.insert(block);
                    self.fetched.push(block);
                    self.sent_total += 1;
                }
            }
        }
        panic!("the destination asks without end");
    }

    /// A whole move; every block must have been sent in the version that the guest left.
    fn run(&mut self, schedule: &mut dyn Schedule<Block>) -> Outcome {
        self.moved(schedule).unwrap_or_else(|aborted| aborted)
    }

    fn moved(&mut self, schedule: &mut dyn Schedule<Block>) -> Result<Outcome, Outcome> {
        let needs = schedule.needs();
        self.writes = needs.counts.map(|stretch| (stretch, vec![0; BLOCKS.div_ceil(stretch) as usize]));
        let (rest, ended_by) = self.until_ready(schedule)?;
        // The other family takes its time: the guest writes on, and readiness stays.
        for block in [1, 500] {
            self.write(block);
            assert_eq!(self.until_ready(schedule)?.0, rest);
        }
        self.stage = Stage::Paused;
        self.unsent.union(&self.dirty);
        self.dirty.clear();
        let at_pause = self.unsent.count();
        self.look();
        let paused = self.ask(schedule, true);
        if rest != Rest::CarryOver {
            assert_eq!(paused, [], "what is left behind costs no downtime");
            self.stage = Stage::Pull;
        }
        assert_eq!(rest == Rest::Remain, needs.remains, "what remains needs to be reached");
        if rest == Rest::Remain {
            assert_eq!((self.ask(schedule, true), self.sent_total), (Vec::new(), 0), "nothing moves");
            return Ok(Outcome::Moved { rest, ended_by, at_pause });
        }
        if needs.prefetch {
            self.prefetch(schedule);
        }
        for _ in 0..100 {
            for step in self.ask(schedule, true) {
                let (Step::Push { units, .. } | Step::Offer { units, .. }) = step else {
                    panic!("{step:?} after the pause")
                };
                self.push(&units);
            }
            if self.unsent.is_empty() {
                assert_eq!(self.ask(schedule, true), [], "nothing is left to do");
                return Ok(Outcome::Moved { rest, ended_by, at_pause });
            }
        }
        panic!("{:?} never crossed", self.unsent);
    }
}

/// What a schedule sees in the pause.
fn paused(unsent: &UnitSet<Block>) -> View<'_, Block> {
    View {
        now: Nanos(0),
        stage: Stage::Paused,
        unit_bytes: BLOCK_BYTES,
        unsent,
        peeked: None,
        counts: None,
        rounds: &[],
        verdict: Verdict::Continue,
        bandwidth: None,
        other_ready: true,
    }
}

fn context() -> BuildContext {
    BuildContext { blocks: BLOCKS, block_bytes: BLOCK_BYTES, seed: 1 }
}

fn choice(table: Value) -> DiskChoice {
    serde_json::from_value(table).unwrap()
}

fn missing_sets() -> [UnitSet<Block>; 3] {
    let few = [Extent { start: 3, count: 10 }, Extent { start: 700, count: 60 }];
    [UnitSet::full(BLOCKS), UnitSet::from_extents(BLOCKS, few), UnitSet::empty(BLOCKS)]
}

const WRITERS: [Writer; 7] = [
    Writer::Idle,
    Writer::Uniform(0.01),
    Writer::Uniform(0.5),
    Writer::Uniform(3.0),
    Writer::Hot(0.9, 80),
    Writer::Hot(2.0, 200),
    Writer::Hot(5.0, 10),
];

#[test]
fn every_strategy_moves_every_block_or_gives_up() {
    let members = DISK_STRATEGIES.names().map(|name| json!({"strategy": name}));
    let presets = DISK_PRESETS.names().map(|name| json!({"preset": name}));
    for table in members.chain(presets) {
        let choice = choice(table);
        for writer in WRITERS {
            for missing in missing_sets() {
                let mut engine = Engine::new(missing.clone(), writer);
                let mut strategy = choice.build(&context());
                assert_eq!(strategy.name, choice.name());
                let outcome = engine.run(&mut *strategy.schedule);
                assert_eq!(outcome == Outcome::Aborted, choice.name() == "faulty", "{} {writer:?}", choice.name());
                if outcome != Outcome::Aborted && !choice.needs(&context()).remains {
                    let mut crossed = missing;
                    crossed.subtract(&engine.sent);
                    assert!(crossed.is_empty(), "{} {writer:?}: {crossed:?} never crossed", choice.name());
                }
            }
        }
    }
}

#[test]
fn a_rate_limit_holds_for_every_push_or_is_refused() {
    let members = DISK_STRATEGIES.entries.iter().map(|e| ("strategy", e.name, e.parameters));
    let presets = DISK_PRESETS.entries.iter().map(|e| ("preset", e.name, e.parameters));
    for (key, name, parameters) in members.chain(presets) {
        let table = json!({key: name, "rate_limit": "3 MiB/s"});
        if !parameters.iter().any(|parameter| parameter.name == "rate_limit") {
            let refused = serde_json::from_value::<DiskChoice>(table).unwrap_err().to_string();
            assert!(refused.contains(name) && refused.contains("rate_limit"), "{refused}");
            continue;
        }
        let schedule = &mut *choice(table).build(&context()).schedule;
        let mut engine = Engine::new(UnitSet::full(BLOCKS), Writer::Uniform(0.5));
        let most =
            |limit: Option<ByteRate>| assert!(limit.is_some_and(|l| l.0 <= 3.0 * 1048576.0), "{name}: {limit:?}");
        for stage in [Stage::Push, Stage::Push, Stage::Pull] {
            engine.stage = stage;
            let steps = engine.ask(schedule, false);
            for step in &steps {
                if let Step::Push { limit, .. } | Step::Offer { limit, .. } = step {
                    most(*limit);
                }
            }
            let _ = engine.carry_out(schedule, steps);
        }
        let view = PullView { now: Nanos(0), unit_bytes: BLOCK_BYTES, unfetched: &UnitSet::full(BLOCKS) };
        for pull in schedule.destination(&view, &[]) {
            let Pull::Fetch { limit, .. } = pull else { continue };
            most(limit);
        }
    }
}

#[test]
fn every_entry_is_complete() {
    let check = |name: &str, texts: [&str; 2], parameters: &'static [whimbrel_model::Parameter]| {
        let kebab = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        assert!(kebab, "{name} is not kebab-case");
        assert!(texts.iter().all(|text| !text.is_empty()), "{name} says nothing of itself");
        Parameters::defaults(parameters);
        for parameter in parameters {
            assert!(!parameter.summary.is_empty(), "{name}: {} has no summary", parameter.name);
            assert!(!["strategy", "preset"].contains(&parameter.name), "{name}: {} is taken", parameter.name);
        }
    };
    for entry in DISK_STRATEGIES.entries {
        check(entry.name, [entry.summary, entry.source], entry.parameters);
    }
    for entry in DISK_PRESETS.entries {
        check(entry.name, [entry.summary, entry.source], entry.parameters);
        let strategy = DISK_STRATEGIES.find(entry.build.strategy).unwrap();
        let names = |parameters: &[whimbrel_model::Parameter]| parameters.iter().map(|p| p.name).collect::<Vec<_>>();
        assert_eq!(names(entry.parameters), names(strategy.parameters), "{} sets other keys", entry.name);
    }
    let mut names: Vec<_> = DISK_STRATEGIES.names().chain(DISK_PRESETS.names()).collect();
    names.sort_unstable();
    let before = names.len();
    names.dedup();
    assert_eq!(names.len(), before, "a name means two things");
}

fn three_phase(table: Value, writer: Writer, missing: UnitSet<Block>) -> (Outcome, Engine) {
    let mut engine = Engine::new(missing, writer);
    let outcome = engine.run(&mut *choice(table).build(&context()).schedule);
    (outcome, engine)
}

fn moved(outcome: Outcome) -> (EndedBy, u64) {
    match outcome {
        Outcome::Moved { rest: Rest::LeaveBehind, ended_by, at_pause } => (ended_by, at_pause),
        other => panic!("{other:?}"),
    }
}

#[test]
fn three_phase_ends_its_rounds_for_the_stated_reason() {
    let full = || UnitSet::full(BLOCKS);
    let (outcome, engine) = three_phase(json!({}), Writer::Uniform(0.1), full());
    let (ended_by, at_pause) = moved(outcome);
    assert_eq!(ended_by, EndedBy::Converged);
    assert!(at_pause <= 64 + 2 && engine.rounds.len() < 4, "{at_pause} blocks after {} rounds", engine.rounds.len());

    // Shrinks from round to round, but slowly.
    let (outcome, engine) = three_phase(json!({"stop_blocks": 0}), Writer::Uniform(0.9), full());
    assert_eq!((moved(outcome).0, engine.rounds.len()), (EndedBy::RoundBound, 4));
    let (outcome, engine) = three_phase(json!({"stop_blocks": 0, "max_rounds": 2}), Writer::Uniform(0.9), full());
    assert_eq!((moved(outcome).0, engine.rounds.len()), (EndedBy::RoundBound, 2));

    // The hot set is rewritten as fast as it is sent: after round 0 no round helps.
    let (outcome, engine) = three_phase(json!({"max_rounds": 30}), Writer::Hot(9.0, 200), full());
    assert_eq!((moved(outcome).0, engine.rounds.len()), (EndedBy::RateBound, 2));
    let again = engine.sent_total - BLOCKS;
    assert!(again <= 2 * 200 + 2, "{again} blocks were sent again");
}

#[test]
fn three_phase_sends_only_what_is_missing() {
    let [_, few, none] = missing_sets();
    let (outcome, engine) = three_phase(json!({}), Writer::Idle, few.clone());
    assert_eq!(moved(outcome), (EndedBy::Converged, 2));
    // The two written while memory was moved follow in the pull phase.
    assert_eq!((engine.sent_total, engine.rounds.len()), (few.count() + 2, 1));
    let (outcome, engine) = three_phase(json!({}), Writer::Idle, none);
    assert_eq!(moved(outcome).0, EndedBy::Converged);
    assert_eq!((engine.sent_total, engine.rounds.len()), (2, 0));
}

#[test]
fn three_phase_without_rounds_pulls_everything() {
    let (outcome, engine) = three_phase(json!({"max_rounds": 0}), Writer::Uniform(1.0), UnitSet::full(BLOCKS));
    assert_eq!(moved(outcome), (EndedBy::RoundBound, BLOCKS));
    assert_eq!((engine.sent_total, engine.rounds.len()), (BLOCKS, 0));
}

#[test]
fn iterative_ends_its_rounds_and_then_stays_close_behind_the_guest() {
    let table = || json!({"strategy": "iterative"});
    let (outcome, engine) = three_phase(table(), Writer::Uniform(0.1), UnitSet::full(BLOCKS));
    let Outcome::Moved { rest: Rest::CarryOver, ended_by: EndedBy::Converged, at_pause } = outcome else {
        panic!("{outcome:?}")
    };
    assert!(at_pause <= 2 * 64 + 2, "{at_pause} blocks after {} rounds", engine.rounds.len());
    // A hot set that is rewritten as fast as it is sent keeps it busy until its rounds are used up.
    let mut table = table();
    table["max_rounds"] = 7.into();
    let (outcome, engine) = three_phase(table, Writer::Hot(9.0, 200), UnitSet::full(BLOCKS));
    let Outcome::Moved { ended_by, at_pause, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!((ended_by, engine.rounds.len()), (EndedBy::RoundBound, 7));
    assert!(at_pause >= 200, "{at_pause}");
}

/// A table with chunks of 4 blocks, of which a disk as small as this one has 250.
fn chunked(key: &str, name: &str) -> Value {
    json!({key: name, "chunk": "16 KiB"})
}

#[test]
fn the_counter_bounds_the_push_whatever_the_guest_writes() {
    for threshold in 1..4 {
        let mut table = chunked("preset", "nicolae2012");
        (table["threshold"], table["drain"]) = (threshold.into(), true.into());
        let mut engine = Engine::new(UnitSet::full(BLOCKS), Writer::Uniform(3.0));
        let schedule = &mut *choice(table).build(&context()).schedule;
        engine.writes = schedule.needs().counts.map(|stretch| (stretch, vec![0; BLOCKS.div_ceil(stretch) as usize]));
        let (rest, _) = engine.until_ready(schedule).unwrap();
        assert_eq!(rest, Rest::LeaveBehind);
        assert!(engine.sent_total <= threshold * BLOCKS, "{} pushed, threshold {threshold}", engine.sent_total);
    }
}

#[test]
fn what_was_written_most_is_fetched_first() {
    let order = |prefetch: &str| {
        let mut table = chunked("preset", "nicolae2012");
        (table["prefetch"], table["threshold"]) = (prefetch.into(), 1.into());
        if prefetch == "hot-first" {
            table["hot"] = "count".into();
        }
        let schedule = &mut *choice(table).build(&context()).schedule;
        let mut engine = Engine::new(UnitSet::full(BLOCKS), Writer::Idle);
        let mut counts = vec![0; 250];
        (counts[7], counts[200], counts[100]) = (2, 9, 2);
        engine.counts = Some(WriteCounts::new(4, counts));
        engine.stage = Stage::Pull;
        engine.prefetch(schedule);
        engine.fetched.iter().step_by(4).map(|block| block / 4).take(5).collect::<Vec<_>>()
    };
    assert_eq!(order("count"), [200, 7, 100, 0, 1]);
    assert_eq!(order("hot-first"), [7, 100, 200, 0, 1]);
    assert_eq!(order("index"), [0, 1, 2, 3, 4]);
}

#[test]
fn the_released_codes_rule_keeps_back_what_is_written_while_it_waits_and_repeats_what_was_pushed() {
    let schedule = &mut *choice(chunked("preset", "blobseer")).build(&context()).schedule;
    let mut engine = Engine::new(UnitSet::full(BLOCKS), Writer::Idle);
    engine.writes = Some((4, vec![0; 250]));
    let first = engine.ask(schedule, false);
    engine.carry_out(schedule, first).unwrap_or_else(|e| panic!("{e:?}"));
    // Chunk 0 was pushed, chunk 249 waits: both are written.
    assert!(engine.sent.contains(0) && !engine.sent.contains(999));
    engine.write(0);
    engine.write(999);
    for _ in 0..60 {
        engine.look();
        let steps = engine.ask(schedule, false);
        engine.carry_out(schedule, steps).unwrap_or_else(|e| panic!("{e:?}"));
    }
    assert_eq!(engine.unsent.iter().collect::<Vec<_>>(), [996, 997, 998, 999]);
    assert_eq!(engine.sent_total, BLOCKS - 4 + 1, "the pushed block that was written went again");
}

#[test]
fn a_note_may_hold_anything() {
    let schedule = &mut *choice(json!({"preset": "nicolae2012"})).build(&context()).schedule;
    let mut rng = Rng::new(5);
    for length in 0..64 {
        let note: Vec<u8> = (0..length).map(|_| rng.next_u64() as u8).collect();
        let unfetched = UnitSet::full(BLOCKS);
        let view = PullView { now: Nanos(0), unit_bytes: BLOCK_BYTES, unfetched: &unfetched };
        let pulls = schedule.destination(&view, &note);
        let Pull::Fetch { units, .. } = &pulls[0] else { panic!("{pulls:?}") };
        assert_eq!(units.count(), BLOCKS);
    }
}

#[test]
fn pull_sends_nothing_before_the_pause() {
    let (outcome, engine) = three_phase(json!({"strategy": "pull"}), Writer::Uniform(3.0), UnitSet::full(BLOCKS));
    assert_eq!(moved(outcome), (EndedBy::Immediate, BLOCKS));
    assert_eq!((engine.sent_total, engine.rounds.len()), (BLOCKS, 0));
}

#[test]
fn freeze_and_copy_sends_each_block_once_while_paused() {
    let (outcome, engine) =
        three_phase(json!({"strategy": "freeze-and-copy"}), Writer::Uniform(3.0), UnitSet::full(BLOCKS));
    assert_eq!(outcome, Outcome::Moved { rest: Rest::CarryOver, ended_by: EndedBy::Immediate, at_pause: BLOCKS });
    assert_eq!(engine.sent_total, BLOCKS);
}

#[test]
fn faulty_gives_up_after_its_rounds() {
    for rounds in 0..4 {
        let (outcome, engine) =
            three_phase(json!({"strategy": "faulty", "rounds": rounds}), Writer::Uniform(0.9), UnitSet::full(BLOCKS));
        assert_eq!((outcome, engine.rounds.len()), (Outcome::Aborted, rounds));
    }
}

#[test]
fn a_choice_survives_a_file() {
    let table: BTreeMap<String, Value> = choice(json!({"preset": "luo2008"})).resolved();
    assert_eq!(serde_json::to_value(&table).unwrap(), json!({"preset": "luo2008", "max_rounds": 4, "stop_blocks": 64}));
}
