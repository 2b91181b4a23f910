//! Decides which connection may send next: a few chunks at a time, first come, first served.
//!
//! If a peer served all requests at the same time, each would be slow. A receiver can upload a
//! piece only when it has all of it, so the first upload would start late. Many slow streams also
//! cost far more packets and processor time than a few fast ones. Therefore a chunk waits for one
//! of a few permits. It keeps the permit until the connection releases its bytes: they were sent,
//! or dropped with a stream that the receiver reset.
//!
//! Invariants:
//!
//! - At most [`SEND_PERMITS`] chunks hold a permit, and permits are granted in the order of
//!   requests.
//! - While others wait, a receiver that takes longer than [`PERMIT_TIMEOUT`] loses its permit. Its
//!   connection then sends without permits, until it has kept up for a while.
//! - A connection that leaves a chunk queued for longer than [`IDLE_TIMEOUT`] is closed.
//!
//! So no slow receiver, malicious or not, can delay the others for longer than that, or hold memory
//! forever.
//!
//! Non-goals: rate limits, and the number of uploads ([`crate::limits`]).

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use potluck_core::grpc::{
    limiter::ClientAddress,
    transport::{Activity, ClientConnection},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::upload::scheduling::connection_queue::{ConnectionQueue, IDLE_TIMEOUT, PERMIT_TIMEOUT};

/// Chunks that may be sent at the same time. With one, the link idles whenever its receiver's link
/// is busy; with four, it does not in a crowd of sixteen.
const SEND_PERMITS: usize = 4;

/// How often connections are checked for chunks that have been queued for too long.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3);

/// Minimum time between two evictions in favour of other callers: by then, the resources of the
/// first connection are free.
const EVICTION_INTERVAL: Duration = Duration::from_millis(100);

/// The scheduler of one peer. Cheap to clone; all clones share the same permits.
#[derive(Debug, Clone)]
pub struct SendScheduler {
    shared: Arc<SchedulerShared>,
}

#[derive(Debug)]
struct SchedulerShared {
    permits: Arc<Semaphore>,
    state: Mutex<SchedulerState>,
}

#[derive(Debug, Default)]
struct SchedulerState {
    next: u64,
    queues: HashMap<u64, ConnectionQueue>,
    last_eviction: Option<Instant>,
}

impl SchedulerState {
    const fn next_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Default for SendScheduler {
    fn default() -> Self {
        Self::new()
    }
}

impl SendScheduler {
    /// A scheduler with no connections.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(SchedulerShared {
                permits: Arc::new(Semaphore::new(SEND_PERMITS)),
                state: Mutex::default(),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, SchedulerState> {
        self.shared.state.lock()
    }

    /// Adds a connection. `client` does not count as idle while the connection holds chunks.
    pub fn add_client(&self, client: ClientConnection) -> ConnectionHandle {
        self.open(client.client(), Some(client))
    }

    /// Adds a connection of which only the address is known.
    pub fn add_connection(&self, address: ClientAddress) -> ConnectionHandle {
        self.open(address, None)
    }

    fn open(&self, address: ClientAddress, client: Option<ClientConnection>) -> ConnectionHandle {
        let mut state = self.state();
        let number = state.next_number();
        let queue = ConnectionQueue::default();
        let disconnect = queue.disconnect().clone();
        state.queues.insert(number, queue);
        drop(state);
        ConnectionHandle(Arc::new(ConnectionShared {
            scheduler: self.clone(),
            number,
            client_address: address,
            client,
            disconnect,
        }))
    }

    /// Closes connections that leave a chunk queued for too long, until `stop` is cancelled.
    pub async fn run_eviction(self, stop: CancellationToken) {
        // Cancel-safe: it only waits.
        while tokio::time::timeout(SWEEP_INTERVAL, stop.cancelled())
            .await
            .is_err()
        {
            let now = Instant::now();
            let state = self.state();
            let late = state
                .queues
                .values()
                .filter(|queue| queue.idle_for(now) >= IDLE_TIMEOUT);
            // This only wakes the connection's task, which frees what the connection holds.
            late.for_each(|queue| queue.disconnect().cancel());
        }
    }

    async fn acquire_permit(&self) -> OwnedSemaphorePermit {
        let permit = Arc::clone(&self.shared.permits).acquire_owned();
        tokio::pin!(permit);
        loop {
            // Cancel-safe: the future is pinned outside the loop and keeps its position in the
            // queue.
            match tokio::time::timeout(PERMIT_TIMEOUT, &mut permit).await {
                Ok(Ok(permit)) => return permit,
                Ok(Err(_)) => unreachable!("the semaphore is never closed"),
                Err(_) => self.evict_overdue(),
            }
        }
    }

    /// Takes the permits of connections that have held them for too long.
    fn evict_overdue(&self) {
        let now = Instant::now();
        let mut freed = Vec::new();
        let mut state = self.state();
        for queue in state.queues.values_mut() {
            queue.evict_overdue(now, &mut freed);
        }
        drop(state);
        // Dropping permits wakes waiting tasks, so it happens outside the lock.
        drop(freed);
    }
}

/// A connection as the scheduler knows it. Cheap to clone; all clones are the same connection.
#[derive(Debug, Clone)]
pub struct ConnectionHandle(Arc<ConnectionShared>);

#[derive(Debug)]
struct ConnectionShared {
    scheduler: SendScheduler,
    number: u64,
    client_address: ClientAddress,
    client: Option<ClientConnection>,
    disconnect: CancellationToken,
}

impl Drop for ConnectionShared {
    fn drop(&mut self) {
        let queue = self.scheduler.state().queues.remove(&self.number);
        // Dropping permits wakes waiting tasks, so it happens outside the lock.
        drop(queue);
    }
}

/// The permission to send one chunk. Dropping it tells the scheduler that the connection released
/// the chunk.
#[derive(Debug)]
pub(crate) struct SendPermit {
    connection: Arc<ConnectionShared>,
    chunk: u64,
    _activity: Option<Activity>,
}

impl SendPermit {
    /// Ties this permit and `permit` to the bytes: both are released when the last reference to the
    /// bytes is dropped.
    pub(crate) fn attach_guard<P: Send + 'static>(self, bytes: Bytes, permit: P) -> Bytes {
        Bytes::from_owner(GuardedBytes {
            bytes,
            _permit: self,
            _guard: permit,
        })
    }
}

impl Drop for SendPermit {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.connection.scheduler.state();
        let queue = state.queues.get_mut(&self.connection.number);
        let permit = queue.and_then(|queue| queue.pop(self.chunk, now));
        drop(state);
        drop(permit);
    }
}

/// Bytes being sent, with the permits that they hold. HTTP/2 keeps the bytes for as long as the
/// receiver likes, and drops the stream long before that, once it has handed over its last bytes.
/// So the bytes, not the stream, must hold the permits.
struct GuardedBytes<P> {
    bytes: Bytes,
    _permit: SendPermit,
    _guard: P,
}

impl<P> AsRef<[u8]> for GuardedBytes<P> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl ConnectionHandle {
    /// The client's address.
    pub(crate) fn client_address(&self) -> ClientAddress {
        self.0.client_address
    }

    /// The client connection, if known.
    pub fn client(&self) -> Option<&ClientConnection> {
        self.0.client.as_ref()
    }

    /// Whether a chunk could be sent without waiting.
    pub(crate) fn has_free_permit(&self) -> bool {
        self.0.scheduler.shared.permits.available_permits() > 0
    }

    /// Waits for the permission to send one chunk. Does not wait if the connection is on
    /// probation.
    pub(crate) async fn acquire(&self) -> SendPermit {
        let shared = &self.0;
        let keeps_up = |state: &SchedulerState| {
            state
                .queues
                .get(&shared.number)
                .is_none_or(ConnectionQueue::keeps_up)
        };
        let slow = !keeps_up(&shared.scheduler.state());
        let permit = match slow {
            true => None,
            false => Some(shared.scheduler.acquire_permit().await),
        };
        let mut state = shared.scheduler.state();
        // If the connection was put on probation while the call waited, it must not hold a permit.
        let (permit, unused) = match keeps_up(&state) {
            true => (permit, None),
            false => (None, permit),
        };
        let send_permit = self.push(&mut state, permit, true);
        drop(state);
        drop(unused);
        send_permit
    }

    /// Permission to send a small message without waiting: it takes no permit and does not affect
    /// the probation. The limits on how long a chunk may stay queued still apply.
    pub(crate) fn unscheduled(&self) -> SendPermit {
        self.push(&mut self.0.scheduler.state(), None, false)
    }

    fn push(
        &self,
        state: &mut SchedulerState,
        permit: Option<OwnedSemaphorePermit>,
        counts: bool,
    ) -> SendPermit {
        let shared = &self.0;
        let chunk = state.next_number();
        let since = Instant::now();
        if let Some(queue) = state.queues.get_mut(&shared.number) {
            queue.push(chunk, since, permit, counts);
        }
        SendPermit {
            connection: Arc::clone(shared),
            chunk,
            _activity: shared.client.as_ref().map(ClientConnection::activity),
        }
    }

    /// Closes the connection that has stalled the longest, if that is at least `min_stall`.
    /// Returns whether a connection was closed, either now or within [`EVICTION_INTERVAL`]. Scans
    /// all connections.
    pub(crate) fn evict_slowest(&self, min_stall: Duration) -> bool {
        let now = Instant::now();
        let mut state = self.0.scheduler.state();
        let is_recent = |eviction: Instant| now.duration_since(eviction) < EVICTION_INTERVAL;
        if state.last_eviction.is_some_and(is_recent) {
            return true;
        }
        let open = state
            .queues
            .values()
            .filter(|queue| !queue.disconnect().is_cancelled());
        let slowest = open.max_by_key(|queue| queue.stalled_for(now));
        let Some(queue) = slowest.filter(|queue| queue.stalled_for(now) >= min_stall) else {
            return false;
        };
        queue.disconnect().cancel();
        state.last_eviction = Some(now);
        true
    }

    /// Whether the connection is known to take large chunks as fast as small ones.
    pub(crate) fn is_fast(&self) -> bool {
        let state = self.0.scheduler.state();
        state
            .queues
            .get(&self.0.number)
            .is_some_and(ConnectionQueue::is_fast)
    }

    /// Resolves when the connection must be closed.
    pub(crate) fn disconnected(&self) -> WaitForCancellationFutureOwned {
        self.0.disconnect.clone().cancelled_owned()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// As many connections as there are permits; each has a chunk that holds one.
    async fn take_all_permits(scheduler: &SendScheduler) -> Vec<(ConnectionHandle, SendPermit)> {
        let mut taken = Vec::new();
        for _ in 0..SEND_PERMITS {
            let connection = scheduler.add_connection(ClientAddress::LOCAL);
            let permit = connection.acquire().await;
            taken.push((connection, permit));
        }
        taken
    }

    #[tokio::test(start_paused = true)]
    async fn permits_are_granted_in_the_order_of_requests() {
        let scheduler = SendScheduler::new();
        let mut taken = take_all_permits(&scheduler).await;
        let (first, second) = (
            scheduler.add_connection(ClientAddress::LOCAL),
            scheduler.add_connection(ClientAddress::LOCAL),
        );
        let mut one = Box::pin(first.acquire());
        let mut two = Box::pin(second.acquire());
        assert!((&mut one).now_or_never().is_none());
        assert!((&mut two).now_or_never().is_none());
        drop(taken.remove(2));
        assert!(
            (&mut two).now_or_never().is_none(),
            "the first request comes first"
        );
        assert!((&mut one).now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_does_not_read_delays_others_for_a_short_time_only() {
        let scheduler = SendScheduler::new();
        let silent = take_all_permits(&scheduler).await;
        let other = scheduler.add_connection(ClientAddress::LOCAL);
        let start = Instant::now();
        let mut permits = vec![other.acquire().await];
        assert_eq!(start.elapsed(), PERMIT_TIMEOUT);
        // The stalled connections are now on probation: they send without permits.
        for (connection, _) in &silent {
            permits.push(connection.acquire().now_or_never().unwrap());
        }
        for _ in 1..SEND_PERMITS {
            permits.push(other.acquire().now_or_never().unwrap());
        }
        assert!(other.acquire().now_or_never().is_none(), "all permits are taken");
    }

    /// Stalls the connection until it loses its permit.
    async fn stall(scheduler: &SendScheduler, slow: &ConnectionHandle) {
        let stalled = slow.acquire().now_or_never().expect("a permit is free");
        let permits: Vec<_> = std::iter::repeat_with(|| {
            scheduler
                .add_connection(ClientAddress::LOCAL)
                .acquire()
                .now_or_never()
        })
        .take(SEND_PERMITS - 1)
        .collect();
        scheduler.add_connection(ClientAddress::LOCAL).acquire().await;
        drop((stalled, permits));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_keeps_up_ends_its_probation_later_each_time() {
        let scheduler = SendScheduler::new();
        let slow = scheduler.add_connection(ClientAddress::LOCAL);
        for strike in 0..3 {
            stall(&scheduler, &slow).await;
            for _ in 0..1 << strike {
                let full = take_all_permits(&scheduler).await;
                let unscheduled = slow.acquire().now_or_never();
                assert!(unscheduled.is_some(), "it sends without a permit");
                drop((full, unscheduled));
            }
            let full = take_all_permits(&scheduler).await;
            assert!(
                slow.acquire().now_or_never().is_none(),
                "it waits like the others"
            );
            drop(full);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn small_messages_need_no_permit_and_do_not_end_a_probation() {
        let scheduler = SendScheduler::new();
        let slow = scheduler.add_connection(ClientAddress::LOCAL);
        stall(&scheduler, &slow).await;
        drop(slow.unscheduled());
        let full = take_all_permits(&scheduler).await;
        let unscheduled = slow.acquire().now_or_never();
        assert!(unscheduled.is_some(), "it is still on probation");
        drop(unscheduled);
        assert!(
            slow.acquire().now_or_never().is_none(),
            "it waits like the others"
        );
        let _queued = slow.unscheduled();
        tokio::time::sleep(IDLE_TIMEOUT).await;
        drop(full);
        assert!(
            slow.evict_slowest(IDLE_TIMEOUT),
            "it counts as queued like any chunk"
        );
        assert!(slow.disconnected().now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_ends_releases_its_permits() {
        let scheduler = SendScheduler::new();
        let mut taken = take_all_permits(&scheduler).await;
        let next = scheduler.add_connection(ClientAddress::LOCAL);
        assert!(next.acquire().now_or_never().is_none());
        drop(taken.pop());
        assert!(next.acquire().now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_never_releases_a_chunk_is_closed() {
        let scheduler = SendScheduler::new();
        let stop = CancellationToken::new();
        let watching = tokio::spawn(scheduler.clone().run_eviction(stop.clone()));
        let (silent, reader) = (
            scheduler.add_connection(ClientAddress::LOCAL),
            scheduler.add_connection(ClientAddress::LOCAL),
        );
        let _queued = silent.acquire().await;
        let start = Instant::now();
        while start.elapsed() < IDLE_TIMEOUT - SWEEP_INTERVAL {
            let _taken = reader.acquire().await;
            tokio::time::sleep(SWEEP_INTERVAL).await;
            assert!(silent.disconnected().now_or_never().is_none());
        }
        tokio::time::sleep(3 * SWEEP_INTERVAL).await;
        assert!(silent.disconnected().now_or_never().is_some());
        assert!(reader.disconnected().now_or_never().is_none());
        stop.cancel();
        watching.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_stalled_longest_is_evicted() {
        let scheduler = SendScheduler::new();
        let idle = Duration::from_secs(1);
        let (first, second, third) = (
            scheduler.add_connection(ClientAddress::LOCAL),
            scheduler.add_connection(ClientAddress::LOCAL),
            scheduler.add_connection(ClientAddress::LOCAL),
        );
        let _first = first.acquire().await;
        tokio::time::sleep(idle).await;
        let _second = second.acquire().await;
        tokio::time::sleep(idle).await;
        let _third = third.acquire().await;
        let disconnect =
            |connection: &ConnectionHandle| connection.disconnected().now_or_never().is_some();
        assert!(third.evict_slowest(idle));
        assert_eq!(
            [disconnect(&first), disconnect(&second), disconnect(&third)],
            [true, false, false]
        );
        assert!(
            third.evict_slowest(idle),
            "the resources of the first are about to be free"
        );
        assert!(!disconnect(&second));
        tokio::time::sleep(EVICTION_INTERVAL).await;
        assert!(third.evict_slowest(idle));
        tokio::time::sleep(EVICTION_INTERVAL).await;
        assert!(!third.evict_slowest(idle), "the last has not stalled long enough");
        assert_eq!(
            [disconnect(&first), disconnect(&second), disconnect(&third)],
            [true, true, false]
        );
    }
}
