//! Open connections of one listener; closes those that are idle or leave responses unread.
//!
//! - A connection is **idle** while it has no open call and no unread response. It is closed after
//!   [`IDLE_TIMEOUT`], or earlier if the listener is full and a new client needs the permit.
//! - HTTP/2 buffers a response until the client's flow control admits it, and only closing the
//!   connection frees the buffer. So each part of a response has a deadline: [`UNREAD_GRACE`],
//!   plus the time to send all unread bytes up to its end at [`SLOWEST`]. A connection that misses
//!   a deadline is closed.
//!
//! Invariant: the listener's permits and the budget of unread responses bound the size of this
//! state ([`crate::grpc::transport::admission`]).

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::{
    grpc::limiter::{ClientAddress, LimitError, Permit},
    network::identity::CertifiedIdentity,
};

/// Maximum idle time of a connection. Much longer than the usual interval between a peer's
/// heartbeats, so that a peer keeps its connection.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// Minimum idle time before another client may evict a connection: longer than the pause between
/// two calls of a client.
const EVICTABLE: Duration = Duration::from_secs(1);

/// Minimum time between two searches for an idle connection of a client that has used its share.
const EVICTION_INTERVAL: Duration = Duration::from_millis(20);

/// Time for which a part of a response may stay unread. A client may open its window again only
/// after it has read half of it; this is longer than an honest client takes.
pub(crate) const UNREAD_GRACE: Duration = Duration::from_secs(30);

/// Slowest link that still counts as reading, in bytes per second.
const SLOWEST: u64 = 8 * 1024;

/// Minimum time that a response is unread before its connection may be closed to free budget for
/// others.
const EVICTABLE_UNREAD: Duration = Duration::from_secs(2);

/// Maximum concurrent calls per connection; further calls wait.
const MAX_CONCURRENT_CALLS: usize = 64;

/// Interval of the checks for idle and overdue connections.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_secs(2);

/// All open connections of a listener. Clones share their state.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clients {
    shared: Arc<ClientTable>,
}

#[derive(Debug, Default)]
struct ClientTable {
    state: Mutex<ClientTableState>,
}

#[derive(Debug, Default)]
struct ClientTableState {
    next: u64,
    open: HashMap<u64, Arc<ConnectionRecord>>,
    /// Time of the last search for an idle connection of a client that has used its share.
    last_sweep: Option<Instant>,
}

impl ClientTable {
    fn state(&self) -> MutexGuard<'_, ClientTableState> {
        self.state.lock()
    }
}

/// Handle of one open connection, for the handlers of its calls. Clones share their state.
#[derive(Debug, Clone)]
pub struct ClientConnection {
    shared: Arc<ConnectionRecord>,
}

#[derive(Debug)]
struct ConnectionRecord {
    client: ClientAddress,
    address: Option<SocketAddr>,
    /// Set when a TLS handshake with a certificate is complete.
    identity: OnceLock<CertifiedIdentity>,
    disconnect: CancellationToken,
    /// `None` once another connection took the permit.
    permit: Mutex<Option<Permit>>,
    table: Weak<ClientTable>,
    opened_at: Instant,
    /// Number of open calls and unread response parts.
    active: AtomicUsize,
    /// When `active` last became zero, in milliseconds since `opened_at`.
    idle_since: AtomicU64,
    unread: Mutex<UnreadAnswers>,
    concurrent_calls: Arc<Semaphore>,
}

/// Response parts that HTTP/2 holds.
#[derive(Debug, Default)]
struct UnreadAnswers {
    next: u64,
    bytes: u64,
    parts: BTreeMap<u64, UnreadRange>,
}

#[derive(Debug)]
struct UnreadRange {
    since: Instant,
    deadline: Instant,
    bytes: u64,
}

impl ConnectionRecord {
    fn unread(&self) -> MutexGuard<'_, UnreadAnswers> {
        self.unread.lock()
    }

    fn lock_permit(&self) -> MutexGuard<'_, Option<Permit>> {
        self.permit.lock()
    }

    /// How long the connection has been idle; `None` if it is active.
    fn idle(&self, now: Instant) -> Option<Duration> {
        if self.active.load(Ordering::Relaxed) > 0 {
            return None;
        }
        let since = Duration::from_millis(self.idle_since.load(Ordering::Relaxed));
        Some(now.duration_since(self.opened_at).saturating_sub(since))
    }

    /// Whether a response part missed its deadline.
    fn is_overdue(&self, now: Instant) -> bool {
        self.unread().parts.values().any(|part| part.deadline <= now)
    }

    /// Age of the oldest unread part.
    fn unread_age(&self, now: Instant) -> Duration {
        let unread = self.unread();
        let oldest = unread.parts.values().next();
        oldest.map_or(Duration::ZERO, |part| now.duration_since(part.since))
    }

    fn ended(&self) {
        if self.active.fetch_sub(1, Ordering::Relaxed) == 1 {
            let now = u64::try_from(self.opened_at.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.idle_since.store(now, Ordering::Relaxed);
        }
    }
}

impl Clients {
    /// Adds a connection until the guard is dropped.
    pub(crate) fn open(
        &self,
        source: ClientAddress,
        address: Option<SocketAddr>,
        permit: Permit,
        disconnect: CancellationToken,
    ) -> OpenConnectionGuard {
        let shared = Arc::new(ConnectionRecord {
            client: source,
            address,
            identity: OnceLock::new(),
            disconnect,
            permit: Mutex::new(Some(permit)),
            table: Arc::downgrade(&self.shared),
            opened_at: Instant::now(),
            active: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
            unread: Mutex::default(),
            concurrent_calls: Arc::new(Semaphore::new(MAX_CONCURRENT_CALLS)),
        });
        let mut state = self.shared.state();
        state.next += 1;
        let number = state.next;
        state.open.insert(number, Arc::clone(&shared));
        drop(state);
        OpenConnectionGuard {
            client: ClientConnection { shared },
            table: Arc::clone(&self.shared),
            number,
        }
    }

    /// Closes the connection that has been idle longest and returns its permit. If the listener is
    /// full, any client's connection qualifies; if `source` has used its share, only its own.
    /// `None` if no connection qualifies.
    pub(crate) fn evict(&self, source: ClientAddress, why: LimitError) -> Option<Permit> {
        let now = Instant::now();
        let mut state = self.shared.state();
        if why == LimitError::AddressShare {
            // Only one of the client's own permits can be freed, so a search per attempt is not
            // worth its cost.
            let recently = |last: Instant| now.duration_since(last) < EVICTION_INTERVAL;
            if state.last_sweep.is_some_and(recently) {
                return None;
            }
            state.last_sweep = Some(now);
        }
        let mut connections: HashMap<ClientAddress, usize> = HashMap::new();
        let idle = state
            .open
            .values()
            .filter(|connection| !connection.disconnect.is_cancelled())
            .inspect(|connection| *connections.entry(connection.client).or_default() += 1)
            .filter(|connection| why == LimitError::Full || connection.client == source)
            .filter_map(|connection| Some((connection.idle(now)?, connection)))
            .filter(|(idle, _)| *idle >= EVICTABLE)
            .collect::<Vec<_>>();
        // The client with the most connections loses one first.
        let (_, evicted) = idle.into_iter().max_by_key(|(idle, connection)| {
            (connections.get(&connection.client).copied(), *idle)
        })?;
        let permit = evicted.lock_permit().take();
        evicted.disconnect.cancel();
        drop(state);
        tracing::debug!(?source, "closed an idle connection to make room for another");
        permit
    }

    /// Closes connections that are idle for too long or have an overdue response part.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        let state = self.shared.state();
        let late = state.open.values().filter(|connection| {
            connection.idle(now).is_some_and(|idle| idle >= IDLE_TIMEOUT)
                || connection.is_overdue(now)
        });
        // Only wakes the connection's task, which frees its resources.
        late.for_each(|connection| connection.disconnect.cancel());
    }
}

/// Keeps a connection in the table while it is open.
#[derive(Debug)]
pub(crate) struct OpenConnectionGuard {
    client: ClientConnection,
    table: Arc<ClientTable>,
    number: u64,
}

impl OpenConnectionGuard {
    /// The handle for the handlers of the connection's calls.
    pub(crate) const fn client(&self) -> &ClientConnection {
        &self.client
    }
}

impl Drop for OpenConnectionGuard {
    fn drop(&mut self) {
        let connection = self.table.state().open.remove(&self.number);
        drop(connection);
        // Clones of the handle may outlive the connection; its permit must not.
        let permit = self.client.shared.lock_permit().take();
        drop(permit);
    }
}

impl ClientConnection {
    /// The client's identity for limits.
    pub fn client(&self) -> ClientAddress {
        self.shared.client
    }

    /// The client's socket address, if it has one.
    pub fn address(&self) -> Option<SocketAddr> {
        self.shared.address
    }

    /// The identity that the client's certificate proves; `None` without TLS or a certificate.
    pub fn identity(&self) -> Option<&CertifiedIdentity> {
        self.shared.identity.get()
    }

    /// Sets the identity, once.
    pub(super) fn set_identity(&self, identity: CertifiedIdentity) {
        // It is set only after the handshake, of which a connection has one.
        let _ = self.shared.identity.set(identity);
    }

    /// Closes the connection when cancelled.
    pub(super) fn close_token(&self) -> CancellationToken {
        self.shared.disconnect.clone()
    }

    /// A connection of an unknown client, which cannot be closed.
    pub(crate) fn unknown() -> Self {
        let shared = ConnectionRecord {
            client: ClientAddress::LOCAL,
            address: None,
            identity: OnceLock::new(),
            disconnect: CancellationToken::new(),
            permit: Mutex::default(),
            table: Weak::new(),
            opened_at: Instant::now(),
            active: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
            unread: Mutex::default(),
            concurrent_calls: Arc::new(Semaphore::new(MAX_CONCURRENT_CALLS)),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Marks the connection as active until the guard is dropped.
    pub fn activity(&self) -> Activity {
        self.shared.active.fetch_add(1, Ordering::Relaxed);
        Activity {
            connection: Arc::clone(&self.shared),
        }
    }

    /// Resolves when the connection must close.
    pub(crate) fn disconnected(&self) -> WaitForCancellationFutureOwned {
        self.shared.disconnect.clone().cancelled_owned()
    }

    /// One permit per call in progress.
    pub(crate) fn concurrent_calls(&self) -> &Arc<Semaphore> {
        &self.shared.concurrent_calls
    }

    /// Wraps `bytes` so that they count as unread, and hold `budget`, until the last reference to
    /// their memory is dropped.
    pub(crate) fn count_unread(&self, bytes: Bytes, budget: Arc<Permit>) -> Bytes {
        let now = Instant::now();
        let mut unread = self.shared.unread();
        unread.next += 1;
        unread.bytes += bytes.len() as u64;
        let number = unread.next;
        let deadline = now + UNREAD_GRACE + Duration::from_millis(unread.bytes * 1000 / SLOWEST);
        let part = UnreadRange {
            since: now,
            deadline,
            bytes: bytes.len() as u64,
        };
        unread.parts.insert(number, part);
        drop(unread);
        Bytes::from_owner(UnreadGuard {
            bytes,
            number,
            activity: self.activity(),
            _budget: budget,
        })
    }

    /// Closes the listener's connection with the oldest unread response, if that is older than
    /// [`EVICTABLE_UNREAD`].
    pub(crate) fn evict_oldest_unread(&self) {
        let Some(table) = self.shared.table.upgrade() else {
            return;
        };
        let now = Instant::now();
        let state = table.state();
        let open = state.open.values().filter(|open| !open.disconnect.is_cancelled());
        let longest = open.max_by_key(|connection| connection.unread_age(now));
        if let Some(connection) =
            longest.filter(|connection| connection.unread_age(now) >= EVICTABLE_UNREAD)
        {
            connection.disconnect.cancel();
        }
    }
}

/// An open call. Ends when dropped.
#[derive(Debug)]
pub struct Activity {
    connection: Arc<ConnectionRecord>,
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.connection.ended();
    }
}

/// Unread bytes of a response.
struct UnreadGuard {
    bytes: Bytes,
    number: u64,
    activity: Activity,
    _budget: Arc<Permit>,
}

impl AsRef<[u8]> for UnreadGuard {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for UnreadGuard {
    fn drop(&mut self) {
        let mut unread = self.activity.connection.unread();
        if let Some(part) = unread.parts.remove(&self.number) {
            unread.bytes -= part.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::grpc::limiter::{MaxShare, PerAddressLimiter};

    fn connect(clients: &Clients, limiter: &PerAddressLimiter, port: u16) -> OpenConnectionGuard {
        let address = SocketAddr::from(([192, 0, 2, (port >> 8) as u8], port));
        let permit = limiter.try_acquire(address.into()).unwrap();
        clients.open(address.into(), Some(address), permit, CancellationToken::new())
    }

    fn is_cut(open: &OpenConnectionGuard) -> bool {
        open.client().disconnected().now_or_never().is_some()
    }

    fn budget(bytes: usize) -> Arc<Permit> {
        let limiter = PerAddressLimiter::new(bytes, MaxShare::ALL);
        Arc::new(limiter.try_acquire_many(ClientAddress::LOCAL, bytes).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_closed_and_one_with_a_call_is_not() {
        let (clients, limiter) = (Clients::default(), PerAddressLimiter::new(9, MaxShare::ALL));
        let (idle, busy) = (connect(&clients, &limiter, 1), connect(&clients, &limiter, 2));
        let call = busy.client().activity();
        tokio::time::advance(IDLE_TIMEOUT - SWEEP_INTERVAL).await;
        clients.sweep();
        assert!(!is_cut(&idle));
        tokio::time::advance(SWEEP_INTERVAL).await;
        clients.sweep();
        assert!(is_cut(&idle) && !is_cut(&busy));
        drop(call);
        tokio::time::advance(IDLE_TIMEOUT - SWEEP_INTERVAL).await;
        clients.sweep();
        assert!(!is_cut(&busy), "idle since its last call ended");
        tokio::time::advance(SWEEP_INTERVAL).await;
        clients.sweep();
        assert!(is_cut(&busy));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_listener_evicts_from_the_client_with_most_connections() {
        let (clients, limiter) = (Clients::default(), PerAddressLimiter::new(4, MaxShare::ALL));
        let single = connect(&clients, &limiter, 0x100);
        tokio::time::advance(EVICTABLE).await;
        let many = [0x200, 0x201, 0x202].map(|port| connect(&clients, &limiter, port));
        let _call = many[0].client().activity();
        let new_client = ClientAddress::from(SocketAddr::from(([192, 0, 2, 9], 1)));
        assert!(
            clients.evict(new_client, LimitError::AddressShare).is_none(),
            "the new client has no connection to close"
        );
        tokio::time::advance(EVICTABLE).await;
        let permit = clients
            .evict(new_client, LimitError::Full)
            .expect("some are idle");
        let disconnect: Vec<bool> = many.iter().map(is_cut).collect();
        assert!(
            !is_cut(&single) && !disconnect[0] && (disconnect[1] || disconnect[2]),
            "{disconnect:?}"
        );
        drop(many);
        assert_eq!(limiter.in_use(), 2, "the new client got the permit");
        drop((permit, single));
        assert_eq!(limiter.in_use(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unread_answer_closes_its_connection() {
        let (clients, limiter) = (Clients::default(), PerAddressLimiter::new(9, MaxShare::ALL));
        let (silent, slow) = (connect(&clients, &limiter, 1), connect(&clients, &limiter, 2));
        let part = || Bytes::from(vec![0; SLOWEST as usize]);
        let _unread = silent.client().count_unread(part(), budget(1));
        let mut reading: std::collections::VecDeque<_> = (0..60)
            .map(|_| slow.client().count_unread(part(), budget(1)))
            .collect();
        // One part per second is the slowest accepted rate.
        while reading.pop_front().is_some() {
            tokio::time::advance(Duration::from_secs(1)).await;
            clients.sweep();
            assert!(!is_cut(&slow), "{} parts are left", reading.len());
        }
        assert!(is_cut(&silent));
        assert_eq!(slow.client().shared.unread().bytes, 0);
        assert!(slow.client().shared.idle(Instant::now()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_with_the_oldest_unread_answer_is_closed_to_free_budget() {
        let (clients, limiter) = (Clients::default(), PerAddressLimiter::new(9, MaxShare::ALL));
        let (one, other) = (connect(&clients, &limiter, 1), connect(&clients, &limiter, 2));
        let _first = one.client().count_unread(Bytes::from_static(b"x"), budget(1));
        other.client().evict_oldest_unread();
        assert!(!is_cut(&one), "the client may be about to read it");
        tokio::time::advance(EVICTABLE_UNREAD).await;
        let _second = other.client().count_unread(Bytes::from_static(b"x"), budget(1));
        other.client().evict_oldest_unread();
        assert!(is_cut(&one) && !is_cut(&other));
    }
}
