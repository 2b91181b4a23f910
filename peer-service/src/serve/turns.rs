//! Whose turn it is to be sent: a few chunks at a time, in the order in which they were asked for.
//!
//! A peer that answers everyone at once gives each a trickle: a piece is worth nothing to others before its last byte, so the
//! first whole one comes late, and many thin flows cost far more packets and processor time than a few thick ones. So a chunk
//! waits until one of a few places is free, and keeps it until the connection has let go of its bytes: sent, or thrown away with
//! a stream that its receiver ended.
//!
//! Invariants: at most [`PLACES`] chunks that hold a place; whoever asked first goes first; a receiver that takes longer than
//! [`PATIENCE`] loses its place to who waits, and its connection is sent to beside the others until it has kept up for a while; a
//! connection that leaves a chunk lying for longer than [`IDLE`] is cut. Nobody slow, on purpose or not, keeps the others waiting
//! for longer than that, or holds memory for ever.
//!
//! Not here: limits in bytes a second, and how many may be served at all ([`crate::limits`]).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use potluck_core::{
    places::ClientAddress,
    transport::{Activity, ClientConnection},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::lane::{IDLE, Lane, PATIENCE};

/// Chunks sent at once: one would leave the link idle whenever its receiver's own is busy; in a crowd of sixteen, four do not.
const PLACES: usize = 4;

/// How often connections are looked through for such chunks.
const LOOK: Duration = Duration::from_secs(3);

/// Shortest time between two connections that are cut for the sake of others: what the first one held is free by then.
const BETWEEN_CUTS: Duration = Duration::from_millis(100);

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
    lanes: HashMap<u64, Lane>,
    last_cut: Option<Instant>,
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

    /// Where the bytes of this connection go out. It is not idle while it holds any.
    pub fn outlet_of(&self, client: ClientConnection) -> Outlet {
        self.open(client.client(), Some(client))
    }

    /// Where one more connection's bytes go out.
    pub fn outlet(&self, source: ClientAddress) -> Outlet {
        self.open(source, None)
    }

    fn open(&self, source: ClientAddress, client: Option<ClientConnection>) -> Outlet {
        let mut state = self.state();
        let number = state.number();
        let lane = Lane::default();
        let cut = lane.cut().clone();
        state.lanes.insert(number, lane);
        drop(state);
        Outlet(Arc::new(Way {
            turns: self.clone(),
            number,
            source,
            client,
            cut,
        }))
    }

    /// Cuts connections that leave a chunk lying, until `stop`.
    pub async fn watch(self, stop: CancellationToken) {
        // Cancel-safe: nothing is taken by either arm.
        while tokio::time::timeout(LOOK, stop.cancelled()).await.is_err() {
            let now = Instant::now();
            let state = self.state();
            let late = state.lanes.values().filter(|lane| lane.idle(now) >= IDLE);
            // Only wakes: what the connection holds goes where it is served.
            late.for_each(|lane| lane.cut().cancel());
        }
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
        let mut freed = Vec::new();
        let mut state = self.state();
        for lane in state.lanes.values_mut() {
            lane.evict(now, &mut freed);
        }
        drop(state);
        // Wakes those who wait: not under the lock.
        drop(freed);
    }
}

/// One connection's way out. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Outlet(Arc<Way>);

#[derive(Debug)]
struct Way {
    turns: Turns,
    number: u64,
    source: ClientAddress,
    client: Option<ClientConnection>,
    cut: CancellationToken,
}

impl Drop for Way {
    fn drop(&mut self) {
        let lane = self.turns.state().lanes.remove(&self.number);
        // Wakes those who wait: not under the lock.
        drop(lane);
    }
}

/// A chunk's turn, as long as the chunk is with the connection. Dropping it ends the turn.
#[derive(Debug)]
pub(super) struct Turn {
    way: Arc<Way>,
    chunk: u64,
    _activity: Option<Activity>,
}

impl Turn {
    /// The same bytes: with the last of their memory the turn ends and `place` is free.
    pub(super) fn carry<P: Send + 'static>(self, bytes: Bytes, place: P) -> Bytes {
        Bytes::from_owner(Held {
            bytes,
            _turn: self,
            _place: place,
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.way.turns.state();
        let lane = state.lanes.get_mut(&self.way.number);
        let place = lane.and_then(|lane| lane.let_go(self.chunk, now));
        drop(state);
        drop(place);
    }
}

/// Bytes on their way, with what they take: HTTP/2 holds them for as long as a receiver likes, and ends a stream for those who gave
/// it its last bytes long before that.
struct Held<P> {
    bytes: Bytes,
    _turn: Turn,
    _place: P,
}

impl<P> AsRef<[u8]> for Held<P> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Outlet {
    /// Where the connection comes from.
    pub(super) fn source(&self) -> ClientAddress {
        self.0.source
    }

    /// The connection, where it is known.
    pub fn client(&self) -> Option<&ClientConnection> {
        self.0.client.as_ref()
    }

    /// Whether one more chunk would not wait.
    pub(super) fn is_free(&self) -> bool {
        self.0.turns.inner.places.available_permits() > 0
    }

    /// Waits until it is the turn of one more chunk.
    pub(super) async fn turn(&self) -> Turn {
        let way = &self.0;
        let keeps_up = |state: &State| state.lanes.get(&way.number).is_none_or(Lane::keeps_up);
        let slow = !keeps_up(&way.turns.state());
        let place = match slow {
            true => None,
            false => Some(way.turns.place().await),
        };
        let mut state = way.turns.state();
        // It may have become slow while this waited: then it keeps no place of many more.
        let (place, unused) = match keeps_up(&state) {
            true => (place, None),
            false => (None, place),
        };
        let turn = self.hand_over(&mut state, place, true);
        drop(state);
        drop(unused);
        turn
    }

    /// A turn for what is small, beside all others: it never waits, takes no place and pays no debt, but must not lie either.
    pub(super) fn beside(&self) -> Turn {
        self.hand_over(&mut self.0.turns.state(), None, false)
    }

    fn hand_over(&self, state: &mut State, place: Option<OwnedSemaphorePermit>, counts: bool) -> Turn {
        let way = &self.0;
        let chunk = state.number();
        let since = Instant::now();
        if let Some(lane) = state.lanes.get_mut(&way.number) {
            lane.hand_over(chunk, since, place, counts);
        }
        Turn {
            way: Arc::clone(way),
            chunk,
            _activity: way.client.as_ref().map(ClientConnection::activity),
        }
    }

    /// Cuts the connection that is unread for longest, if that is this long at least: it makes room for others. Whether one was
    /// cut, just now or a moment ago. Looks at all of them.
    pub(super) fn cut_idlest(&self, unread: Duration) -> bool {
        let now = Instant::now();
        let mut state = self.0.turns.state();
        let recently = |cut: &Instant| now.duration_since(*cut) < BETWEEN_CUTS;
        if state.last_cut.as_ref().is_some_and(recently) {
            return true;
        }
        let open = state.lanes.values().filter(|lane| !lane.cut().is_cancelled());
        let idlest = open.max_by_key(|lane| lane.unread(now));
        let Some(lane) = idlest.filter(|lane| lane.unread(now) >= unread) else {
            return false;
        };
        lane.cut().cancel();
        state.last_cut = Some(now);
        true
    }

    /// Whether the connection is known to take large chunks as fast as small ones.
    pub(super) fn is_swift(&self) -> bool {
        let state = self.0.turns.state();
        state.lanes.get(&self.0.number).is_some_and(Lane::is_swift)
    }

    /// Resolves once the connection is to end.
    pub(super) fn is_cut(&self) -> WaitForCancellationFutureOwned {
        self.0.cut.clone().cancelled_owned()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// As many connections as there are places, each with a chunk that holds one.
    async fn taken(turns: &Turns) -> Vec<(Outlet, Turn)> {
        let mut taken = Vec::new();
        for _ in 0..PLACES {
            let outlet = turns.outlet(ClientAddress::LOCAL);
            let turn = outlet.turn().await;
            taken.push((outlet, turn));
        }
        taken
    }

    #[tokio::test(start_paused = true)]
    async fn who_asked_first_goes_first_once_a_chunk_is_out() {
        let turns = Turns::new();
        let mut taken = taken(&turns).await;
        let (first, second) = (
            turns.outlet(ClientAddress::LOCAL),
            turns.outlet(ClientAddress::LOCAL),
        );
        let mut one = Box::pin(first.turn());
        let mut two = Box::pin(second.turn());
        assert!((&mut one).now_or_never().is_none());
        assert!((&mut two).now_or_never().is_none());
        drop(taken.remove(2));
        assert!((&mut two).now_or_never().is_none(), "it is not its turn");
        assert!((&mut one).now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_take_its_chunk_keeps_nobody_waiting_for_long() {
        let turns = Turns::new();
        let silent = taken(&turns).await;
        let other = turns.outlet(ClientAddress::LOCAL);
        let start = Instant::now();
        let mut held = vec![other.turn().await];
        assert_eq!(start.elapsed(), PATIENCE);
        // From now on the silent are sent to beside the others, and take no place.
        for (outlet, _) in &silent {
            held.push(outlet.turn().now_or_never().unwrap());
        }
        for _ in 1..PLACES {
            held.push(other.turn().now_or_never().unwrap());
        }
        assert!(other.turn().now_or_never().is_none(), "all places are taken");
    }

    /// Stalls until it loses its place.
    async fn stall(turns: &Turns, slow: &Outlet) {
        let stalled = slow
            .turn()
            .now_or_never()
            .expect("it waits for its turn, and it is");
        let held: Vec<_> =
            std::iter::repeat_with(|| turns.outlet(ClientAddress::LOCAL).turn().now_or_never())
                .take(PLACES - 1)
                .collect();
        turns.outlet(ClientAddress::LOCAL).turn().await;
        drop((stalled, held));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_keeps_up_again_waits_for_its_turn_again_but_later_each_time() {
        let turns = Turns::new();
        let slow = turns.outlet(ClientAddress::LOCAL);
        for strike in 0..3 {
            stall(&turns, &slow).await;
            for _ in 0..1 << strike {
                let full = taken(&turns).await;
                let beside = slow.turn().now_or_never();
                assert!(beside.is_some(), "it is sent to beside the others");
                drop((full, beside));
            }
            let full = taken(&turns).await;
            assert!(slow.turn().now_or_never().is_none(), "it waits like the others");
            drop(full);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_small_goes_beside_the_others_and_pays_no_debt() {
        let turns = Turns::new();
        let slow = turns.outlet(ClientAddress::LOCAL);
        stall(&turns, &slow).await;
        drop(slow.beside());
        let full = taken(&turns).await;
        let beside = slow.turn().now_or_never();
        assert!(beside.is_some(), "it still owes a chunk");
        drop(beside);
        assert!(slow.turn().now_or_never().is_none(), "it waits like the others");
        let _lies = slow.beside();
        tokio::time::sleep(IDLE).await;
        drop(full);
        assert!(slow.cut_idlest(IDLE), "it lies like any chunk");
        assert!(slow.is_cut().now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_ends_gives_its_places_back() {
        let turns = Turns::new();
        let mut taken = taken(&turns).await;
        let next = turns.outlet(ClientAddress::LOCAL);
        assert!(next.turn().now_or_never().is_none());
        drop(taken.pop());
        assert!(next.turn().now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_leaves_a_chunk_lying_is_cut() {
        let turns = Turns::new();
        let stop = CancellationToken::new();
        let watching = tokio::spawn(turns.clone().watch(stop.clone()));
        let (silent, reader) = (
            turns.outlet(ClientAddress::LOCAL),
            turns.outlet(ClientAddress::LOCAL),
        );
        let _lies = silent.turn().await;
        let start = Instant::now();
        while start.elapsed() < IDLE - LOOK {
            let _taken = reader.turn().await;
            tokio::time::sleep(LOOK).await;
            assert!(silent.is_cut().now_or_never().is_none());
        }
        tokio::time::sleep(3 * LOOK).await;
        assert!(silent.is_cut().now_or_never().is_some());
        assert!(reader.is_cut().now_or_never().is_none());
        stop.cancel();
        watching.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_that_is_not_read_for_longest_makes_room_for_others() {
        let turns = Turns::new();
        let idle = Duration::from_secs(1);
        let (first, second, third) = (
            turns.outlet(ClientAddress::LOCAL),
            turns.outlet(ClientAddress::LOCAL),
            turns.outlet(ClientAddress::LOCAL),
        );
        let _first = first.turn().await;
        tokio::time::sleep(idle).await;
        let _second = second.turn().await;
        tokio::time::sleep(idle).await;
        let _third = third.turn().await;
        let cut = |outlet: &Outlet| outlet.is_cut().now_or_never().is_some();
        assert!(third.cut_idlest(idle));
        assert_eq!([cut(&first), cut(&second), cut(&third)], [true, false, false]);
        assert!(third.cut_idlest(idle), "what that one held is about to be free");
        assert!(!cut(&second));
        tokio::time::sleep(BETWEEN_CUTS).await;
        assert!(third.cut_idlest(idle));
        tokio::time::sleep(BETWEEN_CUTS).await;
        assert!(!third.cut_idlest(idle), "the last was handed over just now");
        assert_eq!([cut(&first), cut(&second), cut(&third)], [true, true, false]);
    }
}
