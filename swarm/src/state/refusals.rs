//! Units that a peer claims and refused to send; they are requested again after a growing delay.
//!
//! A refusal describes the present, not the future. A peer that hashes a file again refuses it for
//! a moment and may never announce it again. After each delay, a few of the refused units are
//! requested again. If the peer sends one of them, all of them are requested again. If it refuses
//! again, the next delay is twice as long.

use std::collections::VecDeque;

use crate::types::Time;
use potluck_core::bitfield::Bitfield;

/// Maximum number of refused units that are requested again after one delay: enough to learn
/// whether the peer serves again, few enough that a peer which claims units that it does not have
/// costs little.
const RETRIES: usize = 64;

/// The units that one peer refused.
///
/// Invariant: `due` is set if and only if some unit is refused.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    /// The refused units; `None` before the first refusal, since few peers ever refuse.
    units: Option<Bitfield>,
    /// The same units, the oldest refusal first. May also contain units that are no longer refused.
    queue: VecDeque<u32>,
    /// Needed units that became requestable after the last delay, and that the peer has not sent
    /// yet.
    retried: Vec<u32>,
    /// Number of delays in a row after which the peer sent none of the retried units.
    rounds: u32,
    /// When some of the units may be requested again.
    due: Option<Time>,
}

impl Refusals {
    pub(crate) fn contains(&self, unit: u32) -> bool {
        self.units.as_ref().is_some_and(|units| units.get(unit))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.units.as_ref().is_none_or(|units| units.count() == 0)
    }

    /// Whether any unit became requestable after the last delay and was not sent yet.
    pub(crate) const fn is_retrying(&self) -> bool {
        !self.retried.is_empty()
    }

    /// The refused units, including those that are not missing here.
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

    /// Records that the peer refused one of `count` units. Returns whether the refusal is new.
    /// `due` is when to retry; it has no effect if a time is set already.
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

    /// The peer announced the unit: it may be requested again. Returns whether it was refused.
    pub(crate) fn remove(&mut self, unit: u32) -> bool {
        let removed = self.units.as_mut().is_some_and(|units| units.set(unit, false));
        if removed && self.is_empty() {
            self.clear();
        }
        removed
    }

    /// The delay is over. Returns the units that may be requested again from now on. `needed`
    /// reports whether a unit is not verified here yet. `due` is the time of the next retry, if
    /// refused units remain.
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

    /// The peer sent a unit. If it had refused that unit before, clears all refusals and returns
    /// the units.
    pub(crate) fn sent(&mut self, unit: u32) -> Vec<u32> {
        if !self.retried.contains(&unit) {
            return Vec::new();
        }
        let units = self.units.take();
        *self = Self::default();
        units.map_or_else(Vec::new, |units| units.ones().collect())
    }

    /// Clears all refusals. The length of the delay stays until the peer sends a unit that it had
    /// refused.
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
    fn a_few_units_are_retried_per_delay_and_all_after_one_was_sent() {
        let mut refusals = Refusals::default();
        let count = 3 * RETRIES as u32;
        (0..count).for_each(|unit| assert!(refusals.insert(unit, count, LATER)));
        assert!(!refusals.insert(5, count, 2 * LATER), "refused already");
        assert_eq!(refusals.due(), Some(LATER));
        // Units that are not needed do not count against the limit.
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
    fn an_announced_unit_is_requestable_at_once_and_may_be_refused_again() {
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
