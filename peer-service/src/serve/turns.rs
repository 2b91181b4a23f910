//! Whose turn it is to be sent: a few chunks at a time, in the order in which they were asked for.
//!
//! A peer that answers everyone at once gives each a trickle: a piece is worth nothing to others before its last byte, so the
//! first whole one comes late, and many thin flows cost far more packets and processor time than a few thick ones. So a chunk
//! waits until one of a few places is free, and keeps it until the system has taken its bytes from the connection.
//!
//! Invariants: at most [`PLACES`] chunks that hold a place; whoever asked first goes first; a receiver that takes longer than
//! [`PATIENCE`] loses its place to who waits, and its connection is sent to beside the others until it keeps up again: nobody slow, on purpose
//! or not, keeps the others waiting for longer than that.
//!
//! Not here: limits in bytes a second, and how many may be served at all ([`crate::limits`]).

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Chunks sent at once: one would leave the link idle whenever its receiver's own is busy; in a crowd of sixteen, four do not.
const PLACES: usize = 4;

/// How long a chunk may keep its place while others wait: several times what it takes on a link of 100 Mbit/s.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long a chunk that is not taken is counted at all.
const FORGET_AFTER: Duration = Duration::from_secs(10);

/// The turns of one peer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Turns {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    places: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    outlets: HashMap<u64, Queue>,
}

/// What was handed to one connection and not yet taken from it, oldest first.
#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<Chunk>,
    /// Whether it is sent to beside the others.
    slow: bool,
}

#[derive(Debug)]
struct Chunk {
    /// Whose it is.
    stream: u64,
    /// Bytes not yet taken by the system.
    left: u64,
    since: Instant,
    /// None where it is sent beside the others.
    place: Option<OwnedSemaphorePermit>,
}

impl Queue {
    /// Bytes went out, of whatever: what little is not of a chunk makes no difference.
    fn sent(&mut self, mut bytes: u64, now: Instant) {
        while let Some(chunk) = self.chunks.front_mut()
            && bytes > 0
        {
            let taken = bytes.min(chunk.left);
            chunk.left -= taken;
            bytes -= taken;
            if chunk.left > 0 {
                return;
            }
            if self.slow && now.duration_since(chunk.since) < PATIENCE / 2 {
                self.slow = false;
            }
            self.chunks.pop_front();
        }
    }

    /// Takes the places of chunks that have them for too long. What still is to go out of them goes on counting, but not for ever:
    /// of a stream that its receiver ended, it never will.
    fn evict(&mut self, now: Instant) {
        self.chunks
            .retain(|chunk| now.duration_since(chunk.since) < FORGET_AFTER);
        for chunk in &mut self.chunks {
            if now.duration_since(chunk.since) >= PATIENCE && chunk.place.take().is_some() {
                self.slow = true;
            }
        }
    }
}

impl State {
    const fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Default for Turns {
    fn default() -> Self {
        Self::new()
    }
}

impl Turns {
    /// Nobody's turn yet.
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                places: Arc::new(Semaphore::new(PLACES)),
                state: Mutex::default(),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where one more connection's bytes go out.
    pub fn outlet(&self) -> Outlet {
        let mut state = self.state();
        let number = state.number();
        state.outlets.insert(number, Queue::default());
        drop(state);
        Outlet(Arc::new(Way {
            turns: self.clone(),
            number,
            cut: CancellationToken::new(),
        }))
    }

    async fn place(&self) -> OwnedSemaphorePermit {
        let place = Arc::clone(&self.inner.places).acquire_owned();
        tokio::pin!(place);
        loop {
            // Cancel-safe: the place in the queue is kept, pinned outside.
            match tokio::time::timeout(PATIENCE, &mut place).await {
                Ok(Ok(place)) => return place,
                Ok(Err(_)) => unreachable!("the semaphore is never closed"),
                Err(_) => self.evict(),
            }
        }
    }

    /// Takes the places of those who have them for too long.
    fn evict(&self) {
        let now = Instant::now();
        let mut state = self.state();
        state.outlets.values_mut().for_each(|queue| queue.evict(now));
    }
}

/// One connection's way out. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Outlet(Arc<Way>);

#[derive(Debug)]
struct Way {
    turns: Turns,
    number: u64,
    cut: CancellationToken,
}

impl Drop for Way {
    fn drop(&mut self) {
        let queue = self.turns.state().outlets.remove(&self.number);
        // Wakes those who wait: not under the lock.
        drop(queue);
    }
}

impl Outlet {
    /// A number for one more stream of this connection.
    pub(super) fn stream(&self) -> u64 {
        self.0.turns.state().number()
    }

    /// Waits until it is the turn of so many bytes of this stream.
    pub(super) async fn turn(&self, stream: u64, bytes: u64) {
        let place = match self.with(|queue| queue.slow) {
            true => None,
            false => Some(self.0.turns.place().await),
        };
        let since = Instant::now();
        self.with(|queue| {
            queue.chunks.push_back(Chunk {
                stream,
                left: bytes,
                since,
                // It may have become slow while this waited: then it keeps no place of many more.
                place: place.filter(|_| !queue.slow),
            });
        });
    }

    /// What is left of this stream will not be sent.
    pub(super) fn forget(&self, stream: u64) {
        self.with(|queue| queue.chunks.retain(|chunk| chunk.stream != stream));
    }

    /// Ends the connection: somebody does not read what it was sent.
    pub(super) fn cut(&self) {
        self.0.cut.cancel();
    }

    /// Resolves once the connection is to end.
    pub(super) fn is_cut(&self) -> WaitForCancellationFutureOwned {
        self.0.cut.clone().cancelled_owned()
    }

    /// So many bytes were taken from the connection.
    pub(super) fn sent(&self, bytes: usize) {
        let now = Instant::now();
        self.with(|queue| queue.sent(bytes as u64, now));
    }

    fn with<T: Default>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        let mut state = self.0.turns.state();
        state
            .outlets
            .get_mut(&self.0.number)
            .map(change)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const CHUNK: u64 = 100;

    /// As many connections as there are places, each with a chunk that holds one.
    async fn taken(turns: &Turns) -> Vec<Outlet> {
        let outlets: Vec<_> = (0..PLACES).map(|_| turns.outlet()).collect();
        for outlet in &outlets {
            outlet.turn(outlet.stream(), CHUNK).await;
        }
        outlets
    }

    #[tokio::test(start_paused = true)]
    async fn who_asked_first_goes_first_once_a_chunk_is_out() {
        let turns = Turns::new();
        let outlets = taken(&turns).await;
        let (first, second) = (turns.outlet(), turns.outlet());
        let mut one = Box::pin(first.turn(first.stream(), CHUNK));
        let mut two = Box::pin(second.turn(second.stream(), CHUNK));
        assert!((&mut one).now_or_never().is_none());
        assert!((&mut two).now_or_never().is_none());
        outlets[2].sent(CHUNK as usize - 1);
        assert!((&mut one).now_or_never().is_none(), "a byte is left");
        outlets[2].sent(1);
        assert!((&mut two).now_or_never().is_none(), "it is not its turn");
        assert!((&mut one).now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_take_its_chunk_keeps_nobody_waiting_for_long() {
        let turns = Turns::new();
        let silent = taken(&turns).await;
        let other = turns.outlet();
        let start = Instant::now();
        other.turn(other.stream(), CHUNK).await;
        assert_eq!(start.elapsed(), PATIENCE);
        // From now on the silent are sent to beside the others, and take no place.
        for outlet in &silent {
            assert!(outlet.turn(outlet.stream(), CHUNK).now_or_never().is_some());
        }
        for _ in 1..PLACES {
            assert!(other.turn(other.stream(), CHUNK).now_or_never().is_some());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_keeps_up_again_takes_turns_again() {
        let turns = Turns::new();
        let slow = taken(&turns).await.remove(0);
        let other = turns.outlet();
        other.turn(other.stream(), CHUNK).await;
        slow.sent(CHUNK as usize);
        slow.turn(slow.stream(), CHUNK).await;
        slow.sent(CHUNK as usize);
        other.sent(CHUNK as usize);
        let rest = taken(&turns).await;
        assert!(
            slow.turn(slow.stream(), CHUNK).now_or_never().is_none(),
            "it waits like the others"
        );
        drop(rest);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_or_connection_that_ends_gives_its_places_back() {
        let turns = Turns::new();
        let mut outlets = taken(&turns).await;
        let given_up = turns.outlet();
        drop(outlets.pop());
        let stream = given_up.stream();
        assert!(given_up.turn(stream, CHUNK).now_or_never().is_some());
        let next = turns.outlet();
        assert!(next.turn(next.stream(), CHUNK).now_or_never().is_none());
        given_up.forget(stream);
        assert!(next.turn(next.stream(), CHUNK).now_or_never().is_some());
    }
}
