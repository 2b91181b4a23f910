//! Units that a peer claims and refused to send: it is asked for them again after a growing delay.
//!
//! A refusal says what is so now, not what stays so. A source that hashes a file again refuses it
//! for a moment and may never announce it anew. After each delay a peer is asked for a few of the
//! refused units; if it sends one of them, it is asked for all of them. If it refuses again, the
//! next delay is twice as long.

use std::collections::VecDeque;

use crate::Time;
use potluck_core::bitfield::Bitfield;

/// Most refused units that are asked for again after one delay: enough to learn whether the peer
/// serves again, and few enough that a peer which claims units that it does not have costs little.
const RETRIES: usize = 64;

/// What one peer refused.
///
/// Invariant: `due` is set if and only if some unit is refused.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    /// The units; none until the first refusal, since most peers never refuse.
    units: Option<Bitfield>,
    /// The same units, the oldest refusal first. May also hold units that are no longer refused.
    queue: VecDeque<u32>,
    /// Units that are open again since the last delay, and not sent yet.
    retried: Vec<u32>,
    /// Delays in a row after which the peer sent none of the retried units.
    rounds: u32,
    /// When some of the units are open again.
    due: Option<Time>,
}

impl Refusals {
    pub(crate) fn contains(&self, unit: u32) -> bool {
        self.units.as_ref().is_some_and(|units| units.get(unit))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.units.as_ref().is_none_or(|units| units.count() == 0)
    }

    /// Whether any unit is open again since the last delay, and not sent yet.
    pub(crate) const fn is_retrying(&self) -> bool {
        !self.retried.is_empty()
    }

    /// The refused units, whether they are missing here or not.
    #[cfg(any(test, debug_assertions))]
    pub(crate) fn units(&self) -> impl Iterator<Item = u32> + '_ {
        self.units.iter().flat_map(Bitfield::ones)
    }

    pub(crate) const fn due(&self) -> Option<Time> {
        self.due
    }

    pub(crate) const fn rounds(&self) -> u32 {
        self.rounds
    }

    /// The peer refused one of `count` units; returns whether that is new. `due`: when to ask
    /// again, unless a time is set.
    pub(crate) fn insert(&mut self, unit: u32, count: u32, due: Time) -> bool {
        let units = self.units.get_or_insert_with(|| Bitfield::new(count));
        let is_new = units.set(unit, true);
        if is_new {
            self.queue.push_back(unit);
            self.due.get_or_insert(due);
        }
        self.retried.retain(|&other| other != unit);
        is_new
    }

    /// The unit is open again: the peer announced it. Returns whether it was refused.
    pub(crate) fn remove(&mut self, unit: u32) -> bool {
        let removed = self.units.as_mut().is_some_and(|units| units.set(unit, false));
        if removed && self.is_empty() {
            self.clear();
        }
        removed
    }

    /// The delay is over: gives the units that are open again from now on. `needed`: whether a unit
    /// is not here yet. `due`: when to open the rest, if any is left.
    pub(crate) fn retry(&mut self, needed: impl Fn(u32) -> bool, due: Time) -> Vec<u32> {
        self.rounds = self.rounds.saturating_add(1);
        self.retried.clear();
        let mut opened = Vec::new();
        while self.retried.len() < RETRIES
            && let Some(unit) = self.queue.pop_front()
        {
            if self.units.as_mut().is_some_and(|units| units.set(unit, false)) {
                opened.push(unit);
                if needed(unit) {
                    self.retried.push(unit);
                }
            }
        }
        self.due = (!self.is_empty()).then_some(due);
        opened
    }

    /// The peer sent a unit. If it had refused that one before, all others are open again; gives
    /// those.
    pub(crate) fn sent(&mut self, unit: u32) -> Vec<u32> {
        if !self.retried.contains(&unit) {
            return Vec::new();
        }
        let units = self.units.take();
        *self = Self::default();
        units.map_or_else(Vec::new, |units| units.ones().collect())
    }

    /// No unit is refused any more. The delay stays as long as it was, until the peer sends what it
    /// had refused.
    pub(crate) fn clear(&mut self) {
        self.units = None;
        self.queue.clear();
        self.due = None;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LATER: Time = Duration::from_secs(1);

    #[test]
    fn a_few_units_are_retried_after_each_delay_and_all_once_one_was_sent() {
        let mut refusals = Refusals::default();
        let count = 3 * RETRIES as u32;
        (0..count).for_each(|unit| assert!(refusals.insert(unit, count, LATER)));
        assert!(!refusals.insert(5, count, 2 * LATER), "refused already");
        assert_eq!(refusals.due(), Some(LATER));
        // Those that are here already do not count against the few.
        let opened = refusals.retry(|unit| unit >= 10, 2 * LATER);
        assert_eq!(opened, (0..10 + RETRIES as u32).collect::<Vec<_>>());
        assert_eq!((refusals.due(), refusals.rounds()), (Some(2 * LATER), 1));
        assert!(refusals.sent(100).is_empty(), "it was not refused before");
        assert_eq!(
            refusals.sent(20).len(),
            count as usize - 10 - RETRIES,
            "all that were left"
        );
        assert!(refusals.is_empty());
        assert_eq!((refusals.due(), refusals.rounds()), (None, 0));
    }

    #[test]
    fn a_unit_that_was_announced_is_open_at_once_and_may_be_refused_again() {
        let mut refusals = Refusals::default();
        refusals.insert(1, 4, LATER);
        assert!(refusals.remove(1) && !refusals.remove(1));
        assert!(refusals.is_empty() && refusals.due().is_none());
        refusals.insert(1, 4, LATER);
        refusals.insert(2, 4, LATER);
        assert!(refusals.remove(1));
        refusals.insert(1, 4, LATER);
        assert_eq!(refusals.retry(|_| true, LATER), [1, 2]);
        assert!(refusals.is_empty() && refusals.due().is_none());
    }
}
