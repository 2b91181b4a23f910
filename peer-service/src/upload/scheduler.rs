//! Whose turn it is to be sent: a few chunks at a time, in the order in which they were asked for.
//!
//! A peer that answers everyone at once gives each a trickle: a piece is worth nothing to others before its last byte, so the
//! first whole one comes late, and many thin flows cost far more packets and processor time than a few thick ones. So a chunk
//! waits until one of a few places is free, and keeps it until the connection has let go of its bytes: sent, or thrown away with
//! a stream that its receiver ended.
//!
//! Invariants: at most [`SEND_PERMITS`] chunks that hold a place; whoever asked first goes first; a receiver that takes longer than
//! [`PERMIT_TIMEOUT`] loses its place to who waits, and its connection is sent to beside the others until it has kept up for a while; a
//! connection that leaves a chunk lying for longer than [`IDLE_TIMEOUT`] is cut. Nobody slow, on purpose or not, keeps the others waiting
//! for longer than that, or holds memory for ever.
//!
//! Not here: limits in bytes a second, and how many may be served at all ([`crate::limits`]).

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

use crate::upload::connection_queue::{ConnectionQueue, IDLE_TIMEOUT, PERMIT_TIMEOUT};

/// Chunks sent at once: one would leave the link idle whenever its receiver's own is busy; in a crowd of sixteen, four do not.
const SEND_PERMITS: usize = 4;

/// How often connections are looked through for such chunks.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3);

/// Shortest time between two connections that are cut for the sake of others: what the first one held is free by then.
const EVICTION_INTERVAL: Duration = Duration::from_millis(100);

/// The turns of one peer. Cheap to clone.
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
    /// Nobody's turn yet.
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

    /// Where the bytes of this connection go out. It is not idle while it holds any.
    pub fn outlet_of(&self, client: ClientConnection) -> ConnectionHandle {
        self.open(client.client(), Some(client))
    }

    /// Where one more connection's bytes go out.
    pub fn add_connection(&self, source: ClientAddress) -> ConnectionHandle {
        self.open(source, None)
    }

    fn open(&self, source: ClientAddress, client: Option<ClientConnection>) -> ConnectionHandle {
        let mut state = self.state();
        let number = state.next_number();
        let queue = ConnectionQueue::default();
        let disconnect = queue.disconnect().clone();
        state.queues.insert(number, queue);
        drop(state);
        ConnectionHandle(Arc::new(ConnectionShared {
            scheduler: self.clone(),
            number,
            client_address: source,
            client,
            disconnect,
        }))
    }

    /// Cuts connections that leave a chunk lying, until `stop`.
    pub async fn run_eviction(self, stop: CancellationToken) {
        // Cancel-safe: nothing is taken by either arm.
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
            // Only wakes: what the connection holds goes where it is served.
            late.for_each(|queue| queue.disconnect().cancel());
        }
    }

    async fn acquire_permit(&self) -> OwnedSemaphorePermit {
        let place = Arc::clone(&self.shared.permits).acquire_owned();
        tokio::pin!(place);
        loop {
            // Cancel-safe: the place in the queue is kept, pinned outside.
            match tokio::time::timeout(PERMIT_TIMEOUT, &mut place).await {
                Ok(Ok(place)) => return place,
                Ok(Err(_)) => unreachable!("the semaphore is never closed"),
                Err(_) => self.evict_overdue(),
            }
        }
    }

    /// Takes the places of those who have them for too long.
    fn evict_overdue(&self) {
        let now = Instant::now();
        let mut freed = Vec::new();
        let mut state = self.state();
        for queue in state.queues.values_mut() {
            queue.evict_overdue(now, &mut freed);
        }
        drop(state);
        // Wakes those who wait: not under the lock.
        drop(freed);
    }
}

/// One connection's way out. Cheap to clone; all clones are one.
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
        // Wakes those who wait: not under the lock.
        drop(queue);
    }
}

/// A chunk's turn, as long as the chunk is with the connection. Dropping it ends the turn.
#[derive(Debug)]
pub(crate) struct SendPermit {
    connection: Arc<ConnectionShared>,
    chunk: u64,
    _activity: Option<Activity>,
}

impl SendPermit {
    /// The same bytes: with the last of their memory the turn ends and `acquire_permit` is free.
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

/// Bytes on their way, with what they take: HTTP/2 holds them for as long as a receiver likes, and ends a stream for those who gave
/// it its last bytes long before that.
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
    /// Where the connection comes from.
    pub(crate) fn client_address(&self) -> ClientAddress {
        self.0.client_address
    }

    /// The connection, where it is known.
    pub fn client(&self) -> Option<&ClientConnection> {
        self.0.client.as_ref()
    }

    /// Whether one more chunk would not wait.
    pub(crate) fn has_free_permit(&self) -> bool {
        self.0.scheduler.shared.permits.available_permits() > 0
    }

    /// Waits until it is the turn of one more chunk.
    pub(crate) async fn acquire(&self) -> SendPermit {
        let way = &self.0;
        let keeps_up = |state: &SchedulerState| {
            state
                .queues
                .get(&way.number)
                .is_none_or(ConnectionQueue::keeps_up)
        };
        let slow = !keeps_up(&way.scheduler.state());
        let permit = match slow {
            true => None,
            false => Some(way.scheduler.acquire_permit().await),
        };
        let mut state = way.scheduler.state();
        // It may have become slow while this waited: then it keeps no place of many more.
        let (permit, unused) = match keeps_up(&state) {
            true => (permit, None),
            false => (None, permit),
        };
        let send_permit = self.push(&mut state, permit, true);
        drop(state);
        drop(unused);
        send_permit
    }

    /// A turn for what is small, beside all others: it never waits, takes no place and pays no debt, but must not lie either.
    pub(crate) fn unscheduled(&self) -> SendPermit {
        self.push(&mut self.0.scheduler.state(), None, false)
    }

    fn push(
        &self,
        state: &mut SchedulerState,
        permit: Option<OwnedSemaphorePermit>,
        counts: bool,
    ) -> SendPermit {
        let way = &self.0;
        let chunk = state.next_number();
        let since = Instant::now();
        if let Some(queue) = state.queues.get_mut(&way.number) {
            queue.push(chunk, since, permit, counts);
        }
        SendPermit {
            connection: Arc::clone(way),
            chunk,
            _activity: way.client.as_ref().map(ClientConnection::activity),
        }
    }

    /// Cuts the connection that is unread for longest, if that is this long at least: it makes room for others. Whether one was
    /// cut, just now or a moment ago. Looks at all of them.
    pub(crate) fn evict_slowest(&self, stalled_for: Duration) -> bool {
        let now = Instant::now();
        let mut state = self.0.scheduler.state();
        let recently = |disconnect: &Instant| now.duration_since(*disconnect) < EVICTION_INTERVAL;
        if state.last_eviction.as_ref().is_some_and(recently) {
            return true;
        }
        let open = state
            .queues
            .values()
            .filter(|queue| !queue.disconnect().is_cancelled());
        let idlest = open.max_by_key(|queue| queue.stalled_for(now));
        let Some(queue) = idlest.filter(|queue| queue.stalled_for(now) >= stalled_for) else {
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

    /// Resolves once the connection is to end.
    pub(crate) fn disconnected(&self) -> WaitForCancellationFutureOwned {
        self.0.disconnect.clone().cancelled_owned()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// As many connections as there are places, each with a chunk that holds one.
    async fn taken(scheduler: &SendScheduler) -> Vec<(ConnectionHandle, SendPermit)> {
        let mut taken = Vec::new();
        for _ in 0..SEND_PERMITS {
            let connection = scheduler.add_connection(ClientAddress::LOCAL);
            let permit = connection.acquire().await;
            taken.push((connection, permit));
        }
        taken
    }

    #[tokio::test(start_paused = true)]
    async fn who_asked_first_goes_first_once_a_chunk_is_out() {
        let scheduler = SendScheduler::new();
        let mut taken = taken(&scheduler).await;
        let (first, second) = (
            scheduler.add_connection(ClientAddress::LOCAL),
            scheduler.add_connection(ClientAddress::LOCAL),
        );
        let mut one = Box::pin(first.acquire());
        let mut two = Box::pin(second.acquire());
        assert!((&mut one).now_or_never().is_none());
        assert!((&mut two).now_or_never().is_none());
        drop(taken.remove(2));
        assert!((&mut two).now_or_never().is_none(), "it is not its turn");
        assert!((&mut one).now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_take_its_chunk_keeps_nobody_waiting_for_long() {
        let scheduler = SendScheduler::new();
        let silent = taken(&scheduler).await;
        let other = scheduler.add_connection(ClientAddress::LOCAL);
        let start = Instant::now();
        let mut permits = vec![other.acquire().await];
        assert_eq!(start.elapsed(), PERMIT_TIMEOUT);
        // From now on the silent are sent to beside the others, and take no place.
        for (connection, _) in &silent {
            permits.push(connection.acquire().now_or_never().unwrap());
        }
        for _ in 1..SEND_PERMITS {
            permits.push(other.acquire().now_or_never().unwrap());
        }
        assert!(other.acquire().now_or_never().is_none(), "all places are taken");
    }

    /// Stalls until it loses its place.
    async fn stall(scheduler: &SendScheduler, slow: &ConnectionHandle) {
        let stalled = slow
            .acquire()
            .now_or_never()
            .expect("it waits for its turn, and it is");
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
    async fn whoever_keeps_up_again_waits_for_its_turn_again_but_later_each_time() {
        let scheduler = SendScheduler::new();
        let slow = scheduler.add_connection(ClientAddress::LOCAL);
        for strike in 0..3 {
            stall(&scheduler, &slow).await;
            for _ in 0..1 << strike {
                let full = taken(&scheduler).await;
                let unscheduled = slow.acquire().now_or_never();
                assert!(unscheduled.is_some(), "it is sent to beside the others");
                drop((full, unscheduled));
            }
            let full = taken(&scheduler).await;
            assert!(
                slow.acquire().now_or_never().is_none(),
                "it waits like the others"
            );
            drop(full);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_small_goes_beside_the_others_and_pays_no_debt() {
        let scheduler = SendScheduler::new();
        let slow = scheduler.add_connection(ClientAddress::LOCAL);
        stall(&scheduler, &slow).await;
        drop(slow.unscheduled());
        let full = taken(&scheduler).await;
        let unscheduled = slow.acquire().now_or_never();
        assert!(unscheduled.is_some(), "it still owes a chunk");
        drop(unscheduled);
        assert!(
            slow.acquire().now_or_never().is_none(),
            "it waits like the others"
        );
        let _lies = slow.unscheduled();
        tokio::time::sleep(IDLE_TIMEOUT).await;
        drop(full);
        assert!(slow.evict_slowest(IDLE_TIMEOUT), "it lies like any chunk");
        assert!(slow.disconnected().now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_ends_gives_its_places_back() {
        let scheduler = SendScheduler::new();
        let mut taken = taken(&scheduler).await;
        let next = scheduler.add_connection(ClientAddress::LOCAL);
        assert!(next.acquire().now_or_never().is_none());
        drop(taken.pop());
        assert!(next.acquire().now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_leaves_a_chunk_lying_is_cut() {
        let scheduler = SendScheduler::new();
        let stop = CancellationToken::new();
        let watching = tokio::spawn(scheduler.clone().run_eviction(stop.clone()));
        let (silent, reader) = (
            scheduler.add_connection(ClientAddress::LOCAL),
            scheduler.add_connection(ClientAddress::LOCAL),
        );
        let _lies = silent.acquire().await;
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
    async fn the_one_that_is_not_read_for_longest_makes_room_for_others() {
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
        let disconnect = |connection: &ConnectionHandle| connection.disconnected().now_or_never().is_some();
        assert!(third.evict_slowest(idle));
        assert_eq!(
            [disconnect(&first), disconnect(&second), disconnect(&third)],
            [true, false, false]
        );
        assert!(
            third.evict_slowest(idle),
            "what that one held is about to be free"
        );
        assert!(!disconnect(&second));
        tokio::time::sleep(EVICTION_INTERVAL).await;
        assert!(third.evict_slowest(idle));
        tokio::time::sleep(EVICTION_INTERVAL).await;
        assert!(!third.evict_slowest(idle), "the last was handed over just now");
        assert_eq!(
            [disconnect(&first), disconnect(&second), disconnect(&third)],
            [true, true, false]
        );
    }
}
