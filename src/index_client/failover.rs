//! Which index of a list to use. Pure.
//!
//! The first index that works is used. After a failure, an index is avoided for a while, longer
//! after each further failure; then it is tried again if it precedes the one in use.
//!
//! Invariant: an index that is avoided is still tried if all others fail.
#![deny(
    clippy::disallowed_methods,
    reason = "pure: time, randomness and I/O come in from outside"
)]

use std::time::{Duration, Instant};

/// How long an index is avoided after its first failure.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);

/// The longest time for which an index is avoided: an attempt to return costs one small call.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// The indexes of a list, by their place.
#[derive(Debug)]
pub(super) struct Failover {
    current: usize,
    indexes: Vec<IndexHealth>,
}

#[derive(Debug, Clone, Copy, Default)]
struct IndexHealth {
    /// Consecutive failures.
    failures: u32,
    /// Until when it is avoided.
    avoided_until: Option<Instant>,
}

impl IndexHealth {
    fn is_avoided(&self, now: Instant) -> bool {
        self.avoided_until.is_some_and(|until| until > now)
    }
}

impl Failover {
    /// Uses the first of `count` indexes.
    pub(super) fn new(count: usize) -> Self {
        Self {
            current: 0,
            indexes: vec![IndexHealth::default(); count],
        }
    }

    /// The index in use.
    pub(super) const fn current(&self) -> usize {
        self.current
    }

    /// The indexes for one call, in the order in which to try them: the one in use, then those that
    /// are not avoided, then the others from the one that has been avoided for longest.
    pub(super) fn candidates(&self, now: Instant) -> Vec<usize> {
        let mut places: Vec<usize> = (0..self.indexes.len()).collect();
        places.sort_by_key(|&place| {
            let index = &self.indexes[place];
            let is_avoided = index.is_avoided(now);
            let until = index.avoided_until.filter(|_| is_avoided);
            (place != self.current, is_avoided, until)
        });
        places
    }

    /// Notes that an index failed.
    pub(super) fn failed(&mut self, place: usize, now: Instant) {
        let index = &mut self.indexes[place];
        let backoff = FIRST_BACKOFF.saturating_mul(1 << index.failures.min(16));
        index.failures = index.failures.saturating_add(1);
        index.avoided_until = Some(now + backoff.min(MAX_BACKOFF));
    }

    /// Notes that an index works. It is used from now on, unless another one than `used` was chosen
    /// meanwhile. True if that changed the index in use.
    pub(super) fn works(&mut self, place: usize, used: usize) -> bool {
        self.indexes[place] = IndexHealth::default();
        self.current == used && std::mem::replace(&mut self.current, place) != place
    }

    /// Whether another index might answer if the one in use does not.
    pub(super) fn has_alternative(&self, now: Instant) -> bool {
        let others = (0..self.indexes.len()).filter(|&place| place != self.current);
        others
            .into_iter()
            .any(|place| !self.indexes[place].is_avoided(now))
    }

    /// The first index that precedes the one in use and is not avoided any more.
    pub(super) fn preferred(&self, now: Instant) -> Option<usize> {
        (0..self.current).find(|&place| !self.indexes[place].is_avoided(now))
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "a test needs some instant to begin with"
    )]

    use super::*;

    #[test]
    fn the_first_index_is_used_again_once_it_works() {
        let now = Instant::now();
        let mut failover = Failover::new(3);
        assert_eq!(failover.candidates(now), [0, 1, 2]);
        assert_eq!(failover.preferred(now), None);
        failover.failed(0, now);
        assert!(failover.works(1, 0));
        assert_eq!(failover.candidates(now), [1, 2, 0]);
        assert_eq!(failover.preferred(now), None, "it failed just now");
        let later = now + FIRST_BACKOFF;
        assert_eq!(failover.candidates(later), [1, 0, 2]);
        assert_eq!(failover.preferred(later), Some(0));
        assert!(failover.works(0, 1));
        assert!(!failover.works(0, 0));
        // A call at the later index ends only now.
        assert!(!failover.works(1, 1));
        assert_eq!(failover.candidates(later), [0, 1, 2]);
    }

    #[test]
    fn an_index_that_keeps_failing_is_tried_less_and_less_often() {
        let mut now = Instant::now();
        let mut failover = Failover::new(2);
        failover.works(1, 0);
        let mut attempts = 0;
        for _ in 0..600 {
            if failover.preferred(now) == Some(0) {
                failover.failed(0, now);
                attempts += 1;
            }
            now += Duration::from_secs(1);
        }
        assert!((20..30).contains(&attempts), "{attempts}");
    }

    #[test]
    fn all_indexes_are_tried_if_all_are_avoided() {
        let now = Instant::now();
        let mut failover = Failover::new(3);
        for place in [2, 0, 1] {
            failover.failed(place, now + Duration::from_millis(place as u64));
        }
        assert!(!failover.has_alternative(now));
        assert_eq!(failover.candidates(now), [0, 1, 2]);
        assert!(failover.has_alternative(now + MAX_BACKOFF));
    }
}
