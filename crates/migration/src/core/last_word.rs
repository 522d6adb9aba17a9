//! A lane has ended: was the link cut, or did the other host give up? It says why on the control connection, which is
//! another: its word may come later than the end of a lane which it caused.

use whimbrel_model::Nanos;

/// How long the other host's reason is waited for. Control passes what waits on the link, so it needs a round trip; where
/// the link is cut, the end of the control connection is known at once and nothing is waited for.
const WAIT: Nanos = Nanos(500_000_000);

/// What a core keeps from the end of the first lane until it knows why.
#[derive(Debug, Default)]
pub(super) struct LastWord {
    ended: Option<(Nanos, String)>,
}

impl LastWord {
    /// A lane has ended. What ended first counts.
    pub(super) fn lane_ended(&mut self, now: Nanos, reason: String) {
        self.ended.get_or_insert((now.plus(WAIT), reason));
    }

    /// Until when the other host's word is waited for, if it is.
    pub(super) fn until(&self) -> Option<Nanos> {
        self.ended.as_ref().map(|(until, _)| *until)
    }

    /// The reason, once it has been waited for long enough.
    pub(super) fn due(&self, now: Nanos) -> Option<String> {
        self.ended.as_ref().filter(|(until, _)| *until <= now).map(|(_, reason)| reason.clone())
    }

    /// Why the link is gone: what ended first, or else `reason`.
    pub(super) fn first(&mut self, reason: String) -> String {
        self.ended.take().map_or(reason, |(_, first)| first)
    }
}
