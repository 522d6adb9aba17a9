//! What the stop rules and the throttle are shown, and what they say.

use super::SourceCore;
use crate::core::flow::Flow;
use crate::core::source_words::SourceEffect;
use whimbrel_memory::{StopView, ThrottleView, predicted_downtime};
use whimbrel_model::strategy::Stage;
use whimbrel_model::{ByteRate, Event, Nanos, PAGE_BYTES, Rest};

impl SourceCore {
    /// Asks the stop rules and, at a round's end, the throttle.
    pub(super) fn judge(&mut self, now: Nanos, round_ended: bool, effects: &mut Vec<SourceEffect>) {
        let mut stop = std::mem::take(&mut self.stop);
        let view = self.stop_view(now);
        let predicted = predicted_downtime(&view);
        let verdict = stop.judge(&view);
        self.stop = stop;
        if round_ended && self.stage == Stage::Push {
            let view = ThrottleView {
                rounds: self.memory.rounds(),
                bandwidth: self.bandwidth.rate(),
                unit_bytes: PAGE_BYTES,
                now: now.since(self.requested),
                current: self.throttle_share,
            };
            let share = self.throttle.share(&view);
            if share != self.throttle_share {
                self.throttle_share = share;
                effects.push(SourceEffect::Throttle(share));
                effects.push(SourceEffect::Record(Event::Throttled { share }));
            }
        }
        self.memory.judged(verdict, predicted, self.throttle_share);
    }

    pub(super) fn stop_view(&self, now: Nanos) -> StopView<'_> {
        let carried_blocks = self.disk.as_ref().filter(|d| d.readiness().is_some_and(|r| r.rest == Rest::CarryOver));
        StopView {
            remaining_units: self.memory.remaining_units(),
            remaining_bytes: self.memory.remaining_units() * PAGE_BYTES,
            other_remaining_bytes: carried_blocks.map_or(0, |d| d.remaining_units() * d.unit_bytes()),
            total_units: self.memory.total_units(),
            unit_bytes: PAGE_BYTES,
            rounds: self.memory.rounds(),
            sent_bytes: self.memory.sent_bytes(),
            bandwidth: self.pause_bandwidth(),
            fixed_cost: self.limits.fixed_cost,
            now: now.since(self.requested),
        }
    }

    /// What a pause would have of the link: what was achieved, or its rate where nothing was sent or a schedule held
    /// itself back.
    fn pause_bandwidth(&self) -> Option<ByteRate> {
        let shared = self.turns.memory.share.or(self.turns.disk.share).is_some();
        let held_back = shared || self.memory.is_limited() || self.disk.as_ref().is_some_and(Flow::is_limited);
        match (self.bandwidth.rate(), self.limits.link) {
            (Some(achieved), Some(link)) if held_back => Some(ByteRate(achieved.0.max(link.0))),
            (achieved, link) => achieved.or(link),
        }
    }
}
