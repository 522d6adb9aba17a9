//! What the source's core asks of its lanes, input by input.

use serde_json::json;
use whimbrel_memory::{BuildContext, MemoryChoice};
use whimbrel_migration::coordinator::CoordinatorChoice;
use whimbrel_migration::core::{Limits, Run, SourceCore, SourceEffect, SourceInput, SourcePlan, Told, Written};
use whimbrel_model::event::Sent;
use whimbrel_model::{ByteRate, Extent, Family, Nanos, Observe, PAGE_BYTES, Page, UnitSet};
use whimbrel_wire::Message;

const PAGES: u64 = 4096;
/// 250 us of it are 8 pages.
const RATE: f64 = 131_072_000.0;

/// What was to be sent: the job, its pages, and whether they were demanded.
type Send = (u64, Vec<Run>, bool);

struct Source {
    core: SourceCore,
    now: Nanos,
    sends: Vec<Send>,
    questions: Vec<u64>,
}

impl Source {
    fn new(memory: serde_json::Value, link: Option<f64>) -> Self {
        let memory = MemoryChoice::read(&serde_json::from_value(memory).unwrap()).unwrap();
        let plan = SourcePlan {
            requested: Nanos(0),
            missing_pages: UnitSet::full(PAGES),
            memory: memory.build(&BuildContext { pages: PAGES, seed: 1 }),
            disk: None,
            coordinator: CoordinatorChoice::default().build(),
            limits: Limits { fixed_cost: Nanos(0), link: link.map(ByteRate) },
        };
        Source { core: SourceCore::new(plan), now: Nanos(0), sends: Vec::new(), questions: Vec::new() }
    }

    /// Feeds one input, and answers at once what a guest that writes nothing would.
    fn feed(&mut self, input: SourceInput) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            self.now = self.now.plus(Nanos(1000));
            let mut effects = Vec::new();
            self.core.on(self.now, input, &mut effects);
            for effect in effects {
                match effect {
                    SourceEffect::Send { job, runs, demanded, .. } => self.sends.push((job, runs, demanded)),
                    SourceEffect::Ask { question } => self.questions.push(question),
                    SourceEffect::Pause => inputs.push(SourceInput::Paused { at: self.now }),
                    SourceEffect::Drain => inputs.push(SourceInput::Drained),
                    SourceEffect::Observe { .. } => {
                        let written = Written::Pages(UnitSet::empty(PAGES));
                        inputs.push(SourceInput::Observed { observe: Observe::Take, written });
                    }
                    SourceEffect::SaveState => inputs.push(SourceInput::StateSaved(vec![1])),
                    SourceEffect::Say(Message::State { .. }) => inputs.push(SourceInput::Said(Message::Loaded)),
                    SourceEffect::Say(Message::HandOver) => inputs.push(SourceInput::Said(Message::Resumed)),
                    _ => {}
                }
            }
        }
    }

    /// The job that was asked for first is on the link.
    fn send(&mut self) -> Send {
        let sent = self.sends.remove(0);
        let units: u64 = sent.1.iter().map(|run| run.extent.count).sum();
        let books = Sent { first_units: units, first_bytes: units * PAGE_BYTES, raw_units: units, ..Sent::default() };
        self.feed(SourceInput::Sent { family: Family::Memory, job: sent.0, sent: books });
        sent
    }
}

fn pages(send: &Send) -> Vec<u64> {
    send.1.iter().flat_map(|run| run.extent.indices()).collect()
}

#[test]
fn a_push_goes_on_behind_the_page_that_was_asked_for_and_a_demand_waits_for_little() {
    for (prepaging, goes_on_at) in [("forward", 2001), ("none", 16)] {
        let mut source = Source::new(json!({"schedule": "post-copy", "prepaging": prepaging}), Some(RATE));
        source.feed(SourceInput::Start);
        // Two jobs are with the lane.
        assert_eq!(source.sends.len(), 2, "{prepaging}");
        source.feed(SourceInput::Fetch(vec![2000]));
        let demanded = source.sends.pop().unwrap();
        assert_eq!((pages(&demanded), demanded.2), (vec![2000], true), "{prepaging}");
        let before: Vec<u64> = (0..2).flat_map(|_| pages(&source.send())).collect();
        assert_eq!(before, (0..16).collect::<Vec<_>>(), "{prepaging}");
        let next = pages(&source.send());
        assert_eq!(next, (goes_on_at..goes_on_at + 8).collect::<Vec<_>>(), "{prepaging}: 250 us of the link");
    }
}

#[test]
fn where_the_link_has_no_rate_jobs_are_as_large_as_what_was_achieved_allows() {
    let mut source = Source::new(json!({"schedule": "post-copy"}), None);
    source.feed(SourceInput::Start);
    let mut most = 0;
    let mut sent = 0;
    while sent < PAGES {
        let job = pages(&source.send()).len() as u64;
        (most, sent) = (most.max(job), sent + job);
    }
    // A job is sent in some microseconds here.
    assert_eq!(most, (1 << 20) / PAGE_BYTES);
}

#[test]
fn pushing_waits_for_the_guests_first_answer_and_not_for_later_ones() {
    let free = |range: Extent| Told { free: UnitSet::<Page>::from_extents(PAGES, [range]), backed: Vec::new() };
    let mut source = Source::new(json!({"schedule": "pre-copy", "select": "soft", "ask_every": 512}), None);
    source.feed(SourceInput::Start);
    assert_eq!((source.sends.len(), source.questions.len()), (0, 1), "nothing goes before the first answer");
    source.feed(SourceInput::Hinted { question: 1, told: Ok(free(Extent { start: 0, count: 1024 })) });
    let mut sent = Vec::new();
    while source.questions.len() < 2 {
        sent.extend(pages(&source.send()));
    }
    for _ in 0..3 {
        sent.extend(pages(&source.send()));
    }
    assert!(!source.sends.is_empty(), "the second question is open, and pushing goes on");
    assert!(sent.iter().all(|page| *page >= 1024), "by the first answer");
    source.feed(SourceInput::Hinted { question: 2, told: Ok(free(Extent { start: 3000, count: 1096 })) });
    let waiting: Vec<u64> = source.sends.iter().flat_map(pages).collect();
    while !source.sends.is_empty() && source.questions.len() < 3 {
        sent.extend(pages(&source.send()));
    }
    let late = |page: &&u64| **page >= 3000 && !waiting.contains(page);
    assert_eq!(sent.iter().find(late), None, "by the second");
}
