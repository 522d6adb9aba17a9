//! What a flow is to push, in the order in which its schedule named it, and what goes before that.

use std::collections::VecDeque;
use whimbrel_model::{Extent, Ordered, Unit, UnitSet};

/// The units that a push names. What of them was sent meanwhile is passed over.
#[derive(Debug, Default)]
pub(super) struct Queue {
    extents: VecDeque<Extent>,
    /// Goes first, and its units are queued behind it as well: so it can be dropped for another.
    pivot: Option<Extent>,
}

impl Queue {
    pub(super) fn clear(&mut self) {
        self.extents.clear();
        self.pivot = None;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    pub(super) fn extend(&mut self, extents: impl Iterator<Item = Extent>) {
        self.extents.extend(extents.filter(|e| e.count > 0));
    }

    pub(super) fn push<U: Unit>(&mut self, units: &Ordered<U>) {
        self.extend(units.extents().iter().copied());
    }

    /// What is queued goes on at `unit`, upwards, and only then where it was.
    pub(super) fn turn_to(&mut self, unit: u64, len: u64) {
        self.pivot = Some(Extent { start: unit, count: len.saturating_sub(unit) });
    }

    /// The next units of one kind that are still to be sent, as many of them as `head_of` takes from the front.
    pub(super) fn next<U: Unit>(
        &mut self,
        unsent: &UnitSet<U>,
        head_of: impl FnOnce(Extent) -> (Extent, bool),
    ) -> Option<(Extent, bool)> {
        while !self.extents.is_empty() {
            let (front, pivots) = match self.pivot.take() {
                Some(pivot) => (pivot, true),
                None => (self.extents.pop_front()?, false),
            };
            let Some(start) = unsent.next(front.start).filter(|start| *start < front.end()) else { continue };
            let (head, hole) = head_of(Extent { start, count: front.end() - start });
            let rest = Extent { start: head.end(), count: front.end() - head.end() };
            match (pivots, rest.count) {
                (_, 0) => {}
                (true, _) => self.pivot = Some(rest),
                (false, _) => self.extents.push_front(rest),
            }
            return Some((head, hole));
        }
        self.pivot = None;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whimbrel_model::Page;

    /// Takes everything, `most` units at a time; before the one of that number the queue turns.
    fn taken(most: u64, turns: &[(usize, u64)]) -> Vec<u64> {
        let mut unsent = UnitSet::<Page>::empty(20);
        unsent.insert_extent(Extent { start: 2, count: 15 });
        let mut queue = Queue::default();
        queue.push(&Ordered::ascending(&unsent));
        let mut order = Vec::new();
        for number in 0.. {
            if let Some((_, unit)) = turns.iter().find(|(at, _)| *at == number) {
                queue.turn_to(*unit, 20);
            }
            let head = |front: Extent| (Extent { start: front.start, count: front.count.min(most) }, false);
            let Some((extent, _)) = queue.next(&unsent, head) else { break };
            order.extend(extent.indices().filter(|unit| unsent.remove(*unit)));
        }
        assert!(unsent.is_empty() && queue.is_empty());
        order
    }

    #[test]
    fn a_turn_goes_on_upwards_and_everything_is_sent_once() {
        assert_eq!(taken(4, &[]), (2..17).collect::<Vec<_>>());
        let turned = [2, 3, 4, 5, 11, 12, 13, 14, 15, 16, 6, 7, 8, 9, 10];
        assert_eq!(taken(4, &[(1, 11)]), turned);
        assert_eq!(taken(1, &[(0, 19), (1, 9), (3, 5), (4, 16)]), [2, 9, 10, 5, 16, 3, 4, 6, 7, 8, 11, 12, 13, 14, 15]);
    }
}
