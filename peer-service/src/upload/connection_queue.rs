//! What one connection was handed and has not let go of yet, and what that says of whoever reads it.
//!
//! A slow link lets go of what it was handed in lumps: the system takes some of it ahead, and then none for seconds. So a connection
//! is not judged by any single chunk, but by how fast all that lies with it would be gone. What a chunk may lie at all is the same for everyone.

use std::{collections::BTreeMap, time::Duration};

use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tokio_util::sync::CancellationToken;

/// How long a chunk may keep its place while others wait: several times what it takes on a link of 100 Mbit/s.
pub(crate) const PERMIT_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a chunk may lie with a connection at all: HTTP/2 would leave it there for ever, and nothing but the end of the
/// connection takes it back.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// In what time all that lies with a connection would be gone, at the rate at which it takes, for it to count as read: two calls with
/// a chunk of 64 KiB each, over a link of 8 KiB a second.
const MAX_DRAIN_TIME: Duration = Duration::from_secs(16);

/// For how long what was taken counts at most: on a link of 16 KiB a second, the next lump comes after that.
const CREDIT: Duration = Duration::from_secs(8);

/// A connection that lost its places so often has to keep up for twice as many chunks each time, up to this power of two: or a
/// few that stall and read by turns would have all places.
const MAX_STRIKES: u32 = 6;

/// Chunks that a connection takes in time, one after the other, before it is a swift one: more than the system takes ahead.
const FAST_AFTER: u32 = 8;

/// See the module. Chunks are oldest first.
#[derive(Debug, Default)]
pub(crate) struct ConnectionQueue {
    chunks: BTreeMap<u64, QueuedChunk>,
    /// How often it lost its places.
    strikes: u32,
    /// Chunks that it has to take in time before it waits for its turn again; until then it is sent to beside the others.
    probation: u32,
    /// Chunks that it took in time since it last did not.
    timely_chunks: u32,
    /// Until when it counts as read for what it took.
    read_until: Option<Instant>,
    disconnect: CancellationToken,
}

#[derive(Debug)]
struct QueuedChunk {
    since: Instant,
    /// None where it is sent beside the others.
    permit: Option<OwnedSemaphorePermit>,
    /// Whether it counts for what its connection owes.
    counts_for_probation: bool,
}

impl ConnectionQueue {
    /// Cancelled where the connection is to end.
    pub(crate) const fn disconnect(&self) -> &CancellationToken {
        &self.disconnect
    }

    /// Whether it waits for its turn like others.
    pub(crate) const fn keeps_up(&self) -> bool {
        self.probation == 0
    }

    /// Whether it is known to take large chunks as fast as small ones.
    pub(crate) const fn is_fast(&self) -> bool {
        self.timely_chunks >= FAST_AFTER
    }

    /// The connection was handed a chunk. One that does not count pays no debt.
    pub(crate) fn push(
        &mut self,
        chunk: u64,
        since: Instant,
        place: Option<OwnedSemaphorePermit>,
        counts: bool,
    ) {
        self.chunks.insert(
            chunk,
            QueuedChunk {
                since,
                permit: place,
                counts_for_probation: counts,
            },
        );
    }

    /// The connection let go of a chunk. Gives its place, to be dropped where no lock is held.
    pub(crate) fn pop(&mut self, chunk: u64, now: Instant) -> Option<OwnedSemaphorePermit> {
        let (oldest, lying) = (*self.chunks.keys().next()?, self.chunks.len() as u32);
        let given = self.chunks.remove(&chunk)?;
        // Whoever leaves the oldest lying, and takes or resets what came after it, hoards.
        if chunk == oldest {
            let read_until = self.read_until.map_or(now, |until| until.max(now));
            self.read_until = Some((read_until + MAX_DRAIN_TIME / lying).min(now + CREDIT));
        }
        if given.counts_for_probation {
            match now.duration_since(given.since) < PERMIT_TIMEOUT / 2 {
                true => {
                    self.probation = self.probation.saturating_sub(1);
                    self.timely_chunks = FAST_AFTER.min(self.timely_chunks + 1);
                }
                false => self.timely_chunks = 0,
            }
        }
        given.permit
    }

    /// Takes the places of chunks that have them for too long.
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

    /// How long the oldest chunk has lain here.
    pub(crate) fn idle_for(&self, now: Instant) -> Duration {
        let oldest = self.chunks.values().next();
        oldest.map_or(Duration::ZERO, |chunk| now.duration_since(chunk.since))
    }

    /// How long it has taken too little of what lies here.
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

    /// How long others that find no slot leave a connection alone.
    const STALLED: Duration = crate::upload::STALL_BEFORE_EVICTION;

    const KIB: u64 = 1024;

    /// A connection with so many calls of 64 KiB a chunk, whose link lets go of 128 KiB at a time. The longest that it was unread in
    /// a minute.
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
    fn an_honest_reader_on_a_slow_link_is_read() {
        for calls in 1..=4 {
            for rate in [16, 30, 64] {
                let stalled_for = over_a_link_of(rate * KIB, calls);
                assert!(
                    stalled_for < STALLED,
                    "{calls} calls at {rate} KiB/s: unread for {stalled_for:?}"
                );
            }
        }
        assert!(over_a_link_of(4 * KIB, 1) > STALLED);
    }

    #[test]
    fn whoever_leaves_the_oldest_lying_hoards_whatever_else_it_takes() {
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
    fn what_was_taken_counts_for_a_while_and_less_where_more_lies() {
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
            "nothing lies for that long"
        );
    }

    #[test]
    fn a_connection_is_swift_once_it_took_some_in_time_and_until_it_does_not() {
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
