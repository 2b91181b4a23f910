//! The chunks that one connection has been handed and has not released, and the speed of its
//! receiver.
//!
//! A slow link releases chunks in bursts: the system buffers some ahead, and then releases none for
//! seconds. Therefore a connection is not judged by a single chunk, but by the time that it would
//! take to release all its chunks. The limit on how long a chunk may stay queued, [`IDLE_TIMEOUT`],
//! is the same for every connection.

use std::{collections::BTreeMap, time::Duration};

use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tokio_util::sync::CancellationToken;

/// How long a chunk may keep its permit while other connections wait: several times as long as it
/// takes on a link of 100 Mbit/s.
pub(crate) const PERMIT_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a chunk may stay queued on a connection. HTTP/2 would keep it forever; only closing
/// the connection releases it.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a connection must stall before it may be evicted to free a slot for others.
pub(crate) const STALL_BEFORE_EVICTION: Duration = Duration::from_secs(2);

/// A connection counts as read if, at its current rate, it would release all its chunks within this
/// time: two calls with a chunk of 64 KiB each, over a link of 8 KiB/s.
const MAX_DRAIN_TIME: Duration = Duration::from_secs(16);

/// How long a released chunk counts as progress at most: on a link of 16 KiB/s, the next burst
/// comes later than that.
const CREDIT: Duration = Duration::from_secs(8);

/// Each time a connection loses its permits, its probation doubles, up to two to this power.
/// Otherwise a few connections that alternately stall and read could hold all permits.
const MAX_STRIKES: u32 = 6;

/// Consecutive chunks that a connection must release in time before it counts as fast: more than
/// the system buffers ahead.
const FAST_AFTER: u32 = 8;

/// The queue of one connection, with the oldest chunk first.
#[derive(Debug, Default)]
pub(crate) struct ConnectionQueue {
    chunks: BTreeMap<u64, QueuedChunk>,
    /// Number of times that the connection lost its permits; at most [`MAX_STRIKES`].
    strikes: u32,
    /// Chunks that the connection must still release in time before it is scheduled again. Until
    /// then, its chunks are sent without permits.
    probation: u32,
    /// Consecutive chunks released in time; at most [`FAST_AFTER`].
    timely_chunks: u32,
    /// Until when the connection counts as read, because of chunks that it released.
    read_until: Option<Instant>,
    disconnect: CancellationToken,
}

#[derive(Debug)]
struct QueuedChunk {
    since: Instant,
    /// `None` if the chunk is sent without a permit, or has lost it.
    permit: Option<OwnedSemaphorePermit>,
    /// Whether the chunk counts towards ending the probation.
    counts_for_probation: bool,
}

impl ConnectionQueue {
    /// Cancelled when the connection must be closed.
    pub(crate) const fn disconnect(&self) -> &CancellationToken {
        &self.disconnect
    }

    /// Whether the connection is scheduled: true unless it is on probation.
    pub(crate) const fn keeps_up(&self) -> bool {
        self.probation == 0
    }

    /// Whether the connection is known to take large chunks as fast as small ones.
    pub(crate) const fn is_fast(&self) -> bool {
        self.timely_chunks >= FAST_AFTER
    }

    /// Adds a chunk that was handed to the connection. `counts_for_probation`: whether it
    /// affects the probation.
    pub(crate) fn push(
        &mut self,
        chunk: u64,
        since: Instant,
        permit: Option<OwnedSemaphorePermit>,
        counts_for_probation: bool,
    ) {
        let queued = QueuedChunk {
            since,
            permit,
            counts_for_probation,
        };
        self.chunks.insert(chunk, queued);
    }

    /// Removes a chunk that the connection released. Returns its permit, which the caller must drop
    /// without holding a lock.
    pub(crate) fn pop(&mut self, chunk: u64, now: Instant) -> Option<OwnedSemaphorePermit> {
        let (oldest, count) = (*self.chunks.keys().next()?, self.chunks.len() as u32);
        let released = self.chunks.remove(&chunk)?;
        // Only the oldest chunk counts as progress: a receiver that leaves it and takes or resets
        // later ones is hoarding.
        if chunk == oldest {
            let read_until = self.read_until.map_or(now, |until| until.max(now));
            self.read_until = Some((read_until + MAX_DRAIN_TIME / count).min(now + CREDIT));
        }
        if released.counts_for_probation {
            match now.duration_since(released.since) < PERMIT_TIMEOUT / 2 {
                true => {
                    self.probation = self.probation.saturating_sub(1);
                    self.timely_chunks = FAST_AFTER.min(self.timely_chunks + 1);
                }
                false => self.timely_chunks = 0,
            }
        }
        released.permit
    }

    /// Takes the permits of chunks that have held them for longer than [`PERMIT_TIMEOUT`].
    pub(crate) fn evict_overdue(&mut self, now: Instant, freed: &mut Vec<OwnedSemaphorePermit>) {
        let before = freed.len();
        let late = self
            .chunks
            .values_mut()
            .take_while(|chunk| now.duration_since(chunk.since) >= PERMIT_TIMEOUT);
        freed.extend(late.filter_map(|chunk| chunk.permit.take()));
        if freed.len() > before {
            self.probation = 1 << self.strikes;
            self.strikes = MAX_STRIKES.min(self.strikes + 1);
        }
    }

    /// How long the oldest chunk has been queued.
    pub(crate) fn idle_for(&self, now: Instant) -> Duration {
        let oldest = self.chunks.values().next();
        oldest.map_or(Duration::ZERO, |chunk| now.duration_since(chunk.since))
    }

    /// How long the connection has released chunks too slowly.
    pub(crate) fn stalled_for(&self, now: Instant) -> Duration {
        let idle = self.idle_for(now);
        match self.read_until {
            Some(until) if idle < IDLE_TIMEOUT => idle.min(now.saturating_duration_since(until)),
            _ => idle,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long a connection must stall before others without a slot may evict it.
    const STALLED: Duration = STALL_BEFORE_EVICTION;

    const KIB: u64 = 1024;

    /// Simulates a connection with `calls` calls, chunks of 64 KiB, and a link that releases 128
    /// KiB at a time. Returns the longest stall within a minute.
    fn over_a_link_of(bytes_per_second: u64, calls: u64) -> Duration {
        let (chunk, at_once) = (64 * KIB, 2);
        let lump = Duration::from_secs_f64((at_once * chunk) as f64 / bytes_per_second as f64);
        let (mut queue, mut now, mut next) = (ConnectionQueue::default(), Instant::now(), 0..);
        let end = now + Duration::from_secs(60);
        let mut hand_over =
            |queue: &mut ConnectionQueue, now| queue.push(next.next().unwrap(), now, None, true);
        (0..calls).for_each(|_| hand_over(&mut queue, now));
        let mut longest = Duration::ZERO;
        while now < end {
            for _ in 0..at_once {
                let oldest = *queue.chunks.keys().next().unwrap();
                queue.pop(oldest, now);
                hand_over(&mut queue, now);
            }
            now += lump;
            longest = longest.max(queue.stalled_for(now));
        }
        longest
    }

    #[test]
    fn a_slow_link_does_not_count_as_stalled() {
        for calls in 1..=4 {
            for rate in [16, 30, 64] {
                let stalled_for = over_a_link_of(rate * KIB, calls);
                assert!(
                    stalled_for < STALLED,
                    "{calls} calls at {rate} KiB/s: stalled for {stalled_for:?}"
                );
            }
        }
        assert!(over_a_link_of(4 * KIB, 1) > STALLED);
    }

    #[test]
    fn releasing_only_later_chunks_does_not_count_as_progress() {
        let (mut queue, mut now) = (ConnectionQueue::default(), Instant::now());
        let start = now;
        queue.push(0, now, None, true);
        for chunk in 1..100 {
            queue.push(chunk, now, None, true);
            now += Duration::from_millis(100);
            queue.pop(chunk, now);
        }
        assert_eq!(queue.stalled_for(now), now - start);
    }

    #[test]
    fn a_release_counts_for_a_while_and_less_the_more_chunks_are_queued() {
        let (mut queue, now) = (ConnectionQueue::default(), Instant::now());
        (0..160).for_each(|chunk| queue.push(chunk, now, None, true));
        queue.pop(0, now);
        let later = now + Duration::from_secs(5);
        assert_eq!(queue.stalled_for(later), Duration::from_millis(4_900));
        (1..158).for_each(|chunk| drop(queue.pop(chunk, later)));
        assert_eq!(queue.stalled_for(later + CREDIT), Duration::ZERO);
        assert_eq!(queue.stalled_for(later + CREDIT + STALLED), STALLED);
        assert_eq!(
            queue.stalled_for(now + IDLE_TIMEOUT),
            IDLE_TIMEOUT,
            "no chunk may stay queued for that long"
        );
    }

    #[test]
    fn a_connection_is_fast_after_timely_releases_until_one_is_late() {
        let (mut queue, mut now) = (ConnectionQueue::default(), Instant::now());
        for chunk in 0..u64::from(FAST_AFTER) {
            assert!(!queue.is_fast());
            queue.push(chunk, now, None, true);
            queue.pop(chunk, now);
        }
        assert!(queue.is_fast());
        queue.push(100, now, None, true);
        now += PERMIT_TIMEOUT;
        queue.pop(100, now);
        assert!(!queue.is_fast());
    }
}
