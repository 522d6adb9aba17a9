//! `idle-desktop`: what a desktop does while nobody is there: timers, polls, logs and rare bursts.
//!
//! The set-up of the scaled Jettison reproduction (Bila et al., EuroSys 2012): a clock tick, mail polls, keep-alives of
//! a messenger, the browser's timers over a small set, rare bursts over all of memory. Periods are divided by `speed`.
//! Page counts are those of a 512 MiB guest, scaled to the guest's RAM.
//!
//! A vCPU's pages, in this order:
//!
//! ```text
//! | kernel: 16 | browser: 1/20 of the guest's RAM | page cache and the rest: bursts ... | pool: a tenth, free or not |
//! ```

use crate::workload::{BuildContext, Offered, Share, Streams, Workload, refuse, restore, save};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use whimbrel_model::op::{Op, WORDS_PER_PAGE};
use whimbrel_model::registry::{Entry, Kind, Parameter, ParameterError, Parameters};
use whimbrel_model::rng::Rng;
use whimbrel_model::stream::{Paced, Stream, StreamError};

const NAME: &str = "idle-desktop";

/// Pages of the guest for which the events' page counts are given: 512 MiB.
const REFERENCE_PAGES: u64 = 131_072;

/// Pages that the clock tick writes over and over.
const KERNEL_PAGES: u64 = 16;

/// Words that an access touches.
const ACCESS_WORDS: u64 = 32;

const SECOND_NS: u64 = 1_000_000_000;

/// The member's entry.
pub const ENTRY: Entry<Workload> = Entry {
    name: NAME,
    summary: "timers, polls, logs and rare bursts of a desktop that nobody uses",
    parameters: PARAMETERS,
    source: "Bila et al., EuroSys 2012 (Jettison); scaled reproduction",
    build: Workload { streams, offered, unit: "ticks", content: "desktop" },
};

const PARAMETERS: &[Parameter] = &[Parameter {
    name: "speed",
    summary: "how much faster than life its time goes; 1 to 10000",
    kind: Kind::Number,
    default: Some("20"),
}];

/// One kind of event: something that wakes the desktop up.
struct Timer {
    period_ns: u64,
    /// Accesses of memory; scaled to the guest unless `fixed`.
    pages: u64,
    fixed: bool,
    /// Where they go.
    area: Area,
    /// Of the accesses, how many in 16 read, free a page, or allocate one.
    reads: u64,
    frees: u64,
    allocates: u64,
    /// Requests to the disk at its end.
    disk_reads: u64,
    disk_writes: u64,
}

#[derive(Clone, Copy)]
enum Area {
    Kernel,
    Browser,
    Rest,
}

/// Clock tick (on every vCPU), messenger, browser, mail, log, burst.
const TIMERS: [Timer; 6] = [
    timer(SECOND_NS, 4, true, Area::Kernel, [2, 0, 0], [0, 0]),
    timer(30 * SECOND_NS, 20, false, Area::Browser, [4, 0, 0], [0, 0]),
    timer(10 * SECOND_NS, 500, false, Area::Browser, [6, 1, 1], [2, 0]),
    timer(60 * SECOND_NS, 200, false, Area::Rest, [8, 1, 1], [8, 2]),
    timer(5 * SECOND_NS, 2, true, Area::Kernel, [0, 0, 0], [0, 2]),
    timer(600 * SECOND_NS, 5120, false, Area::Rest, [6, 2, 1], [32, 16]),
];

const fn timer(
    period_ns: u64,
    pages: u64,
    fixed: bool,
    area: Area,
    [reads, frees, allocates]: [u64; 3],
    [disk_reads, disk_writes]: [u64; 2],
) -> Timer {
    Timer { period_ns, pages, fixed, area, reads, frees, allocates, disk_reads, disk_writes }
}

fn offered(_: &Parameters, _: &BuildContext) -> Offered {
    Offered::default()
}

fn streams(parameters: &Parameters, context: &BuildContext) -> Result<Streams, ParameterError> {
    let speed = parameters.number("speed");
    if !(1.0..=10_000.0).contains(&speed) {
        return Err(refuse("speed", speed, "1 to 10000"));
    }
    let make = |share| Box::new(IdleDesktop::new(context, &share, speed)) as Box<dyn Stream>;
    Ok(context.shares().map(make).collect())
}

struct IdleDesktop {
    share: Share,
    guest_pages: u64,
    speed: f64,
    kernel: Range<u64>,
    browser: Range<u64>,
    rest: Range<u64>,
    pool: Range<u64>,
    state: State,
}

#[derive(Serialize, Deserialize)]
struct State {
    rng: Rng,
    /// The desktop's own time, in nanoseconds.
    now: u64,
    /// When each timer is due; `None`: another vCPU has it.
    due: [Option<u64>; TIMERS.len()],
    /// The event that goes on.
    event: Option<Event>,
    /// The pool is a ring: the first free page, and how many are free.
    free_first: u64,
    free_count: u64,
    /// Sectors logged so far.
    logged: u64,
}

#[derive(Clone, Serialize, Deserialize)]
struct Event {
    timer: usize,
    accesses: u64,
    disk_reads: u64,
    disk_writes: u64,
    /// A page just allocated, to be written next.
    fresh: Option<u64>,
    flush: bool,
}

impl IdleDesktop {
    fn new(context: &BuildContext, share: &Share, speed: f64) -> Self {
        let (start, count) = (share.pages.start, share.page_count());
        let kernel = start..start + KERNEL_PAGES.min(count);
        let pool = start + (count - count / 10).max(kernel.end - start)..start + count;
        let browser_pages = (context.shape.pages / 20).min((pool.start - kernel.end) / 2);
        let browser = kernel.end..kernel.end + browser_pages;
        let rest = browser.end..pool.start;
        let mut rng = Rng::new(share.seed);
        let mut due = [None; TIMERS.len()];
        for (index, timer) in TIMERS.iter().enumerate() {
            let mine = index == 0 || index as u64 % u64::from(context.shape.vcpus) == u64::from(share.index);
            due[index] = mine.then(|| rng.below(timer.period_ns));
        }
        let state = State { rng, now: 0, due, event: None, free_first: 0, free_count: 0, logged: 0 };
        IdleDesktop {
            share: share.clone(),
            guest_pages: context.shape.pages,
            speed,
            kernel,
            browser,
            rest,
            pool,
            state,
        }
    }

    /// Idles until the next timer and begins its event.
    fn wait(&mut self) -> Paced {
        let state = &mut self.state;
        let due = state.due.iter().enumerate().filter_map(|(index, due)| due.map(|at| (at, index)));
        let (at, index) = due.min().expect("every vCPU has the clock tick");
        let timer = &TIMERS[index];
        let nap = at.saturating_sub(state.now);
        state.now = state.now.max(at);
        // Periods vary by a tenth either way, so that the events don't march in step.
        let jittered = timer.period_ns * 9 / 10 + state.rng.below(timer.period_ns / 5);
        state.due[index] = Some(at.saturating_add(jittered));
        let scaled = if timer.fixed { timer.pages } else { timer.pages * self.guest_pages / REFERENCE_PAGES };
        state.event = Some(Event {
            timer: index,
            accesses: scaled.max(1),
            disk_reads: timer.disk_reads,
            disk_writes: timer.disk_writes,
            fresh: None,
            flush: timer.disk_writes > 0,
        });
        Paced { op: Op::Idle { nanos: (nap as f64 / self.speed) as u64 }, interval_ns: 0, units: 0 }
    }

    /// The event's next access of memory.
    fn access(&mut self, event: &mut Event) -> Op {
        let state = &mut self.state;
        let first = state.rng.below(WORDS_PER_PAGE - ACCESS_WORDS + 1) as u16;
        let words = ACCESS_WORDS as u16;
        if let Some(page) = event.fresh.take() {
            return Op::Write { page, first, words };
        }
        event.accesses -= 1;
        let timer = &TIMERS[event.timer];
        let pool = self.pool.end - self.pool.start;
        let lot = state.rng.below(16);
        if lot < timer.frees && state.free_count < pool {
            let page = self.pool.start + (state.free_first + state.free_count) % pool;
            state.free_count += 1;
            return Op::Free { page };
        }
        if (timer.frees..timer.frees + timer.allocates).contains(&lot) && state.free_count > 0 {
            let page = self.pool.start + state.free_first;
            state.free_first = (state.free_first + 1) % pool;
            state.free_count -= 1;
            event.fresh = Some(page);
            return Op::Allocate { page };
        }
        let area = match timer.area {
            Area::Browser if !self.browser.is_empty() => &self.browser,
            Area::Rest if !self.rest.is_empty() => &self.rest,
            _ => &self.kernel,
        };
        let page = area.start + state.rng.below(area.end - area.start);
        if state.rng.below(16) < timer.reads {
            Op::Read { page, first, words }
        } else {
            Op::Write { page, first, words }
        }
    }

    /// The event's next request to the disk: a file that is read, or the log, a ring in the second half of the share.
    fn disk_access(&mut self, event: &mut Event) -> Option<Op> {
        let (start, count) = (self.share.sectors.start, self.share.sector_count());
        if count < 64 {
            return None;
        }
        let state = &mut self.state;
        if event.disk_reads > 0 {
            event.disk_reads -= 1;
            let among = if self.share.filled_sectors >= 64 { self.share.filled_sectors } else { count };
            return Some(Op::DiskRead { sector: start + state.rng.below(among - 32), sectors: 32 });
        }
        if event.disk_writes > 0 {
            event.disk_writes -= 1;
            let log = count / 2;
            let at = state.logged % log;
            let sectors = (1 + state.rng.below(8)).min(log - at);
            state.logged = state.logged.wrapping_add(sectors);
            return Some(Op::DiskWrite { sector: start + count - log + at, sectors: sectors as u32 });
        }
        std::mem::take(&mut event.flush).then_some(Op::Flush)
    }
}

impl Stream for IdleDesktop {
    fn next(&mut self) -> Paced {
        let Some(mut event) = self.state.event.take() else { return self.wait() };
        let op = if event.accesses > 0 || event.fresh.is_some() {
            Some(self.access(&mut event))
        } else {
            self.disk_access(&mut event)
        };
        let Some(op) = op else { return self.wait() };
        let ends = event.accesses == 0
            && event.fresh.is_none()
            && (self.share.sector_count() < 64 || (event.disk_reads == 0 && event.disk_writes == 0 && !event.flush));
        if !ends {
            self.state.event = Some(event);
        }
        Paced { op, interval_ns: 0, units: u32::from(ends) }
    }

    fn save(&self) -> Vec<u8> {
        save(&self.state)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StreamError> {
        let pool = self.pool.end - self.pool.start;
        self.state = restore(NAME, state, |s: &State| {
            if s.free_count > pool || s.free_first >= pool.max(1) {
                return Err("its free pages lie outside the pool");
            }
            let fits = |e: &Event| e.timer < TIMERS.len() && e.fresh.is_none_or(|page| self.pool.contains(&page));
            if s.due[0].is_none() || !s.event.as_ref().is_none_or(fits) {
                return Err("it has no clock tick, or an event that there is not");
            }
            Ok(())
        })?;
        Ok(())
    }
}
