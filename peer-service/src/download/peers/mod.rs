//! The peers of a running download: their connections, retries and bans.
//!
//! Invariants:
//!
//! - A peer keeps its key while it is listed, and permanently once it has sent bytes or was banned,
//!   so a ban survives reconnections.
//! - At most [`MAX_CONNECTED`] peers are connecting or connected. The cap is [`CROWD_CONNECTIONS`]
//!   until [`PeerSet::raise_connection_cap`] raises it or peers stay silent.

pub(crate) mod client;
mod connector;
pub(crate) mod diagnostics;
pub(crate) mod discovery;
pub(crate) mod download_stream;
pub(crate) mod event;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use potluck_core::{FileId, PeerId, Problem, Reason, model::Address};
use rand::{RngExt as _, seq::IteratorRandom as _};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::download::peers::{
    client::PeerClient,
    discovery::{Host, HostTurns, PeerCandidate},
    event::PeerEvent,
};
use connector::{PeerConnector, wait_after};
use potluck_swarm::{CROWD_PEERS, PeerKey};

/// Maximum connected peers: more add no speed, and each costs two connections.
pub(crate) const MAX_CONNECTED: usize = 64;

/// Randomly chosen connections in a crowd: as many as the swarm requests from. Each further one
/// exchanges availability of every unit.
const CROWD_CONNECTIONS: usize = CROWD_PEERS as usize;

/// Consecutive failures after which a peer gives up its connection slot if other peers wait.
const MAX_FAILURES: u32 = 3;

/// Time after which a connecting peer counts as silent and others are tried too. Doubles with each
/// failure, so that a peer on a slow path is reached eventually.
const SILENT: Duration = Duration::from_secs(1);

/// Silent peers of one host after which the host's other peers come last.
const SILENT_HOST: u32 = 2;

/// The connection state of a peer, apart from the swarm's view of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConnectionState {
    /// Waits for a connection slot.
    Waiting,
    /// Connecting.
    Dialing,
    /// Connected.
    Connected,
    /// Lost; the connection is retried.
    Lost(Problem),
    /// Banned until the swarm readmits it; with the violation.
    Banned(String),
}

/// A peer and the state of its connection.
#[derive(Debug)]
pub(crate) struct PeerEntry {
    pub(crate) candidate: PeerCandidate,
    pub(crate) connection: ConnectionState,
    pub(crate) client: Option<PeerClient>,
    /// The last error.
    pub(crate) last_error: Option<String>,
    /// The violation of the last ban, kept after the peer is readmitted.
    pub(crate) ban: Option<String>,
    /// Verified bytes received from the peer, over all its connections.
    pub(crate) bytes: u64,
    stop: CancellationToken,
    host: Host,
    failures: u32,
    /// Deadline after which the peer counts as silent if it has not answered.
    overdue_at: Instant,
    /// A random rank, so that the peers of a crowd do not all choose the same few.
    tie_breaker: u64,
}

impl PeerEntry {
    /// Whether the peer occupies a connection slot.
    const fn holds_connection(&self) -> bool {
        matches!(
            self.connection,
            ConnectionState::Dialing | ConnectionState::Connected | ConnectionState::Lost(_)
        )
    }

    /// Whether the peer is connecting and has passed its deadline.
    fn is_overdue(&self, now: Instant) -> bool {
        self.connection == ConnectionState::Dialing && self.overdue_at <= now
    }
}

/// All peers of a download.
#[derive(Debug)]
pub(crate) struct PeerSet {
    id: FileId,
    units: u32,
    peers: HashMap<PeerKey, PeerEntry>,
    by_address: HashMap<Address, PeerKey>,
    /// Number of silent peers of each host since one of its peers last answered.
    silent: HashMap<Host, u32>,
    next_key: u64,
    /// Current cap on connections.
    max_connections: usize,
    events: mpsc::Sender<(PeerKey, PeerEvent)>,
    /// Connections that were opened while the metadata was downloaded.
    ready_clients: HashMap<Address, PeerClient>,
    stop: CancellationToken,
    tracker: TaskTracker,
    own_id: PeerId,
    leave_from: Option<IpAddr>,
}

impl PeerSet {
    /// A set without candidates. `ready` has the open connections, `misbehaving` the banned peers
    /// with their violations.
    pub(crate) fn new(
        (id, units, own): (FileId, u32, PeerId),
        events: mpsc::Sender<(PeerKey, PeerEvent)>,
        ready: HashMap<Address, PeerClient>,
        misbehaving: HashMap<Address, String>,
        stop: CancellationToken,
        tracker: TaskTracker,
    ) -> Self {
        let mut peers = Self {
            id,
            units,
            peers: HashMap::new(),
            by_address: HashMap::new(),
            silent: HashMap::new(),
            next_key: 0,
            max_connections: CROWD_CONNECTIONS,
            events,
            ready_clients: ready,
            stop,
            tracker,
            own_id: own,
            leave_from: None,
        };
        for (address, what) in misbehaving {
            let key = peers.insert(PeerCandidate { address, peer: None });
            peers.ban(key, what);
        }
        peers
    }

    /// Makes connections leave from this local address.
    pub(crate) fn leaving_from(mut self, address: Option<IpAddr>) -> Self {
        self.leave_from = address;
        self
    }

    fn insert(&mut self, source: PeerCandidate) -> PeerKey {
        let key = PeerKey(self.next_key);
        self.next_key += 1;
        self.by_address.insert(source.address.clone(), key);
        let peer = PeerEntry {
            host: Host::from(&source.address),
            overdue_at: Instant::now(),
            candidate: source,
            connection: ConnectionState::Waiting,
            client: None,
            last_error: None,
            ban: None,
            bytes: 0,
            stop: self.stop.child_token(),
            failures: 0,
            tie_breaker: rand::rng().random(),
        };
        self.peers.insert(key, peer);
        key
    }

    /// Adds new candidates, forgets unlisted peers that sent nothing, and connects while there is
    /// room.
    pub(crate) fn update_candidates(&mut self, list: &[PeerCandidate]) {
        self.forget_gone(list);
        for source in list {
            match self.by_address.get(&source.address) {
                Some(key) => {
                    if let (Some(peer), Some(id)) = (self.peers.get_mut(key), source.peer) {
                        peer.candidate.peer = Some(id);
                    }
                }
                None => match source.peer.and_then(|id| self.banned_as(id)) {
                    Some(key) => self.move_to(key, &source.address),
                    None => {
                        self.insert(source.clone());
                    }
                },
            }
        }
        self.dial_waiting();
    }

    /// Forgets peers that are neither connected nor listed. In a crowd with many arrivals and
    /// departures they would otherwise fill the memory and be tried before present peers.
    fn forget_gone(&mut self, list: &[PeerCandidate]) {
        let listed: HashSet<&Address> = list.iter().map(|source| &source.address).collect();
        self.peers.retain(|_, peer| {
            let is_away = matches!(
                peer.connection,
                ConnectionState::Waiting | ConnectionState::Lost(_)
            );
            let is_known = peer.bytes > 0 || peer.ban.is_some();
            let stays = !is_away || is_known || listed.contains(&peer.candidate.address);
            if !stays {
                peer.stop.cancel();
                self.by_address.remove(&peer.candidate.address);
            }
            stays
        });
        if !self.silent.is_empty() {
            let hosts: HashSet<&Host> = self.peers.values().map(|peer| &peer.host).collect();
            self.silent.retain(|host, _| hosts.contains(host));
        }
    }

    /// Raises the cap from [`CROWD_CONNECTIONS`] to [`MAX_CONNECTED`]. Has no effect until at least
    /// half of the attempts have succeeded, because those peers may suffice.
    pub(crate) fn raise_connection_cap(&mut self) {
        let count = |contact| {
            self.peers
                .values()
                .filter(|peer| peer.connection == contact)
                .count()
        };
        let connected = count(ConnectionState::Connected);
        if self.max_connections < MAX_CONNECTED
            && connected > 0
            && count(ConnectionState::Dialing) <= connected
        {
            self.max_connections = MAX_CONNECTED;
            self.dial_waiting();
        }
    }

    /// Moves the slot of a random peer to a random waiting one if all slots are taken; for when no
    /// connected peer has the missing units. Returns the key of the disconnected peer.
    pub(crate) fn replace_idle_peer(&mut self) -> Option<PeerKey> {
        if self.connection_count() < MAX_CONNECTED {
            return None;
        }
        let random_of = |which: fn(&PeerEntry) -> bool| {
            let those = self.iter().filter(|(_, peer)| which(peer));
            those.choose(&mut rand::rng()).map(|(key, _)| key)
        };
        // Both are random: otherwise a peer that was away for long would always come last.
        let next = random_of(|peer| peer.connection == ConnectionState::Waiting)?;
        let key = random_of(PeerEntry::holds_connection)?;
        self.disconnect(key);
        self.dial_peer(next);
        Some(key)
    }

    fn connection_count(&self) -> usize {
        self.peers.values().filter(|peer| peer.holds_connection()).count()
    }

    /// The banned peer with this id, at any address.
    fn banned_as(&self, id: PeerId) -> Option<PeerKey> {
        let is_it = |peer: &PeerEntry| {
            peer.candidate.peer == Some(id) && matches!(peer.connection, ConnectionState::Banned(_))
        };
        self.iter().find(|(_, peer)| is_it(peer)).map(|(key, _)| key)
    }

    /// Records the new address of a banned peer, which is used if the peer is readmitted.
    fn move_to(&mut self, key: PeerKey, address: &Address) {
        if let Some(peer) = self.peers.get_mut(&key) {
            self.by_address.remove(&peer.candidate.address);
            self.by_address.insert(address.clone(), key);
            peer.candidate.address = address.clone();
            peer.host = Host::from(address);
        }
    }

    /// Connects to other peers in addition to the silent ones.
    pub(crate) fn pass_over_silent(&mut self) {
        let now = Instant::now();
        if self.peers.values().any(|peer| peer.is_overdue(now)) {
            self.dial_waiting();
        }
    }

    /// Connects to waiting peers while there is room. Silent peers do not count toward the cap
    /// while slots are free, and give up their slots if none is.
    fn dial_waiting(&mut self) {
        let now = Instant::now();
        let mut waiting: Vec<PeerKey> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.connection == ConnectionState::Waiting)
            .map(|(&key, _)| key)
            .collect();
        if waiting.is_empty() {
            return;
        }
        let mut overdue: Vec<PeerKey> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.is_overdue(now))
            .map(|(&key, _)| key)
            .collect();
        let taken = self.connection_count();
        // If no peer has answered, connects up to the maximum.
        let is_answered = self
            .peers
            .values()
            .any(|peer| peer.connection == ConnectionState::Connected);
        let max = match overdue.is_empty() || is_answered {
            true => self.max_connections,
            false => MAX_CONNECTED,
        };
        let more = max.saturating_sub(taken - overdue.len()).min(waiting.len());
        let to_free = more
            .saturating_sub(MAX_CONNECTED.saturating_sub(taken))
            .min(overdue.len());
        overdue.sort_by_key(|key| self.peers[key].overdue_at);
        for key in overdue.into_iter().take(to_free) {
            self.count_silent(key);
            self.disconnect(key);
        }
        let more = more.min(MAX_CONNECTED.saturating_sub(self.connection_count()));
        let is_silent = |peer: &PeerEntry| {
            self.silent
                .get(&peer.host)
                .is_some_and(|&count| count >= SILENT_HOST)
        };
        // Ranks peers of responsive hosts first, then those with fewer failures, then those with an
        // open connection.
        let rank = |peer: &PeerEntry| {
            let is_ready = self.ready_clients.contains_key(&peer.candidate.address);
            (is_silent(peer), peer.failures, !is_ready)
        };
        waiting.sort_by_cached_key(|key| {
            let peer = &self.peers[key];
            (rank(peer), peer.tie_breaker)
        });
        // Within a rank, hosts take turns.
        let mut rounds = HostTurns::default();
        for peer in self.peers.values().filter(|peer| peer.holds_connection()) {
            rounds.next(&peer.host);
        }
        waiting.sort_by_cached_key(|key| {
            let peer = &self.peers[key];
            (rank(peer), rounds.next(&peer.host))
        });
        waiting.truncate(more);
        for key in waiting {
            self.dial_peer(key);
        }
    }

    /// Counts a peer that did not answer as silent.
    fn count_silent(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get(&key) {
            *self.silent.entry(peer.host.clone()).or_default() += 1;
        }
    }

    /// Starts connecting to a peer.
    fn dial_peer(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.connection = ConnectionState::Dialing;
        let patience = wait_after(peer.failures) + SILENT * (1 << peer.failures.min(4));
        peer.overdue_at = Instant::now() + patience;
        peer.stop = self.stop.child_token();
        let watcher = PeerConnector {
            key,
            candidate: peer.candidate.clone(),
            id: self.id,
            units: self.units,
            own: self.own_id,
            leave_from: self.leave_from,
            events: self.events.clone(),
        };
        let ready = self.ready_clients.remove(&peer.candidate.address);
        let (stop, failures) = (peer.stop.clone(), peer.failures);
        // Dropping the connector is safe: connections close, and events are sent whole.
        self.tracker.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = watcher.run(ready, failures) => {}
            }
        });
    }

    /// Records that a peer is connected; false if the peer is no longer wanted.
    pub(crate) fn mark_connected(&mut self, key: PeerKey, client: PeerClient) -> bool {
        let Some(peer) = self.peers.get_mut(&key) else {
            return false;
        };
        if matches!(
            peer.connection,
            ConnectionState::Banned(_) | ConnectionState::Waiting
        ) {
            return false;
        }
        peer.connection = ConnectionState::Connected;
        peer.client = Some(client);
        self.silent.remove(&peer.host);
        true
    }

    /// Records that a peer was lost. A peer that keeps failing gives its slot to a waiting one.
    pub(crate) fn mark_lost(&mut self, key: PeerKey, problem: &Problem) {
        let others = self
            .peers
            .values()
            .any(|peer| peer.connection == ConnectionState::Waiting);
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        // A late event of a peer that has lost its slot.
        if matches!(
            peer.connection,
            ConnectionState::Banned(_) | ConnectionState::Waiting
        ) {
            return;
        }
        let answered = peer.connection == ConnectionState::Connected;
        peer.client = None;
        peer.failures += 1;
        peer.last_error = Some(problem.message.clone());
        peer.connection = ConnectionState::Lost(problem.clone());
        if !answered && problem.reason == Reason::TimedOut {
            *self.silent.entry(peer.host.clone()).or_default() += 1;
        }
        // A peer that never answered gives up its slot immediately.
        let was_here = answered || peer.bytes > 0;
        if others && (!was_here || peer.failures % MAX_FAILURES == 0) {
            peer.stop.cancel();
            peer.connection = ConnectionState::Waiting;
        }
        self.dial_waiting();
    }

    /// Disconnects a peer until [`PeerSet::readmit`].
    pub(crate) fn ban(&mut self, key: PeerKey, what: String) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.stop.cancel();
            peer.client = None;
            peer.ban = Some(what.clone());
            peer.connection = ConnectionState::Banned(what);
        }
        self.dial_waiting();
    }

    /// Connects to a banned peer again, ahead of waiting peers, because no other peer has the
    /// missing units.
    pub(crate) fn readmit(&mut self, key: PeerKey) {
        let has_room = self.connection_count() < MAX_CONNECTED;
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        (peer.connection, peer.failures, peer.last_error) = (ConnectionState::Waiting, 0, None);
        if has_room {
            self.dial_peer(key);
        }
    }

    /// Reconnects to all connected peers, because their availability may have been lost or damaged.
    /// Returns their keys.
    pub(crate) fn reconnect(&mut self) -> Vec<PeerKey> {
        let connected = |(&key, peer): (&PeerKey, &PeerEntry)| {
            (peer.connection == ConnectionState::Connected).then_some(key)
        };
        let keys: Vec<PeerKey> = self.peers.iter().filter_map(connected).collect();
        for &key in &keys {
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.stop.cancel();
                peer.client = None;
            }
            self.dial_peer(key);
        }
        keys
    }

    /// The keys of the banned peers.
    pub(crate) fn banned(&self) -> Vec<PeerKey> {
        let is_banned = |peer: &PeerEntry| matches!(peer.connection, ConnectionState::Banned(_));
        let banned = self.iter().filter(|(_, peer)| is_banned(peer));
        banned.map(|(key, _)| key).collect()
    }

    /// Removes a peer that did not misbehave, for example this peer itself.
    pub(crate) fn forget(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.remove(&key) {
            peer.stop.cancel();
        }
        // The address stays known, so that the peer is not added again.
        self.dial_waiting();
    }

    /// Disconnects a peer and lets it wait for another connection.
    pub(crate) fn reconnect_later(&mut self, key: PeerKey) {
        self.disconnect(key);
        self.dial_waiting();
    }

    /// Disconnects a peer that is not banned and lets it wait.
    fn disconnect(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key)
            && !matches!(peer.connection, ConnectionState::Banned(_))
        {
            peer.stop.cancel();
            peer.client = None;
            peer.failures += 1;
            peer.connection = ConnectionState::Waiting;
        }
    }

    /// The peer with this key.
    pub(crate) fn get(&self, key: PeerKey) -> Option<&PeerEntry> {
        self.peers.get(&key)
    }

    /// Credits verified bytes to a peer. Kept here because the swarm forgets peers that left.
    pub(crate) fn credit_bytes(&mut self, key: PeerKey, bytes: u64) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.bytes += bytes;
        }
    }

    /// Resets the failures of a peer that sends data. A mere connection does not, because an idle
    /// peer would then always come before peers that were away.
    pub(crate) fn mark_sending(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.failures = 0;
        }
    }

    /// Records the last error of a peer.
    pub(crate) fn record_error(&mut self, key: PeerKey, what: String) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.last_error = Some(what);
        }
    }

    /// All peers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PeerKey, &PeerEntry)> {
        self.peers.iter().map(|(&key, peer)| (key, peer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers() -> PeerSet {
        let (id, own) = (FileId([1; 32]), PeerId([2; 32]));
        let (events, _) = mpsc::channel(1);
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        PeerSet::new(
            (id, 8, own),
            events,
            HashMap::new(),
            HashMap::new(),
            stop,
            tracker,
        )
    }

    fn many() -> Vec<PeerCandidate> {
        let address = |n: u16| Address {
            host: "192.0.2.1".into(),
            port: 1000 + n,
        };
        let source = |n| PeerCandidate {
            address: address(n),
            peer: None,
        };
        (0..100).map(source).collect()
    }

    fn dialled(peers: &PeerSet) -> usize {
        peers
            .iter()
            .filter(|(_, peer)| peer.connection != ConnectionState::Waiting)
            .count()
    }

    // The tests do not await the connectors, so no connection is opened.
    #[tokio::test]
    async fn more_than_a_few_are_dialled_only_once_half_of_those_have_answered() {
        let mut peers = peers();
        peers.raise_connection_cap();
        peers.update_candidates(&many());
        assert_eq!(dialled(&peers), CROWD_CONNECTIONS, "nobody had answered");
        peers.raise_connection_cap();
        assert_eq!(dialled(&peers), CROWD_CONNECTIONS);
        let dialling = peers
            .peers
            .values_mut()
            .filter(|peer| peer.connection == ConnectionState::Dialing);
        for peer in dialling.take(CROWD_CONNECTIONS / 2) {
            peer.connection = ConnectionState::Connected;
        }
        peers.raise_connection_cap();
        assert_eq!(dialled(&peers), MAX_CONNECTED);
    }

    #[tokio::test]
    async fn a_provider_that_was_away_gets_its_turn_however_many_useless_peers_there_are() {
        let mut peers = peers();
        peers.update_candidates(&many());
        let connect = |peers: &mut PeerSet| {
            let dialling = peers
                .peers
                .values_mut()
                .filter(|peer| peer.connection == ConnectionState::Dialing);
            dialling.for_each(|peer| peer.connection = ConnectionState::Connected);
        };
        connect(&mut peers);
        peers.raise_connection_cap();
        connect(&mut peers);
        // So many failures that every other peer comes first, unless the choice is random.
        let waits =
            |(key, peer): (PeerKey, &PeerEntry)| (peer.connection == ConnectionState::Waiting).then_some(key);
        let seed = peers.iter().find_map(waits).unwrap();
        peers.peers.get_mut(&seed).unwrap().failures = u32::MAX / 2;
        let mut rounds = 0;
        while peers.get(seed).unwrap().connection != ConnectionState::Connected {
            assert!(peers.replace_idle_peer().is_some());
            assert_eq!(dialled(&peers), MAX_CONNECTED);
            connect(&mut peers);
            rounds += 1;
            assert!(rounds < 10_000, "it never gets a place");
        }
    }

    /// A peer that restarts on another port is the same peer.
    #[tokio::test]
    async fn a_banned_peer_is_followed_to_its_new_address() {
        let mut peers = peers();
        let mut source = many().remove(0);
        source.peer = Some(PeerId([7; 32]));
        peers.update_candidates(std::slice::from_ref(&source));
        let key = peers.by_address[&source.address];
        peers.ban(key, "lied".into());
        let before = source.address.clone();
        source.address.port += 1000;
        peers.update_candidates(std::slice::from_ref(&source));
        assert_eq!((peers.peers.len(), peers.by_address.len()), (1, 1));
        assert_eq!(peers.get(key).unwrap().candidate.address, source.address);
        assert!(!peers.by_address.contains_key(&before));
        peers.readmit(key);
        let peer = peers.get(key).unwrap();
        assert_eq!(peer.connection, ConnectionState::Dialing);
        assert_eq!(peer.ban.as_deref(), Some("lied"), "remembered");
    }

    #[tokio::test(start_paused = true)]
    async fn black_holes_of_one_host_keep_no_other_waiting() {
        let mut peers = peers();
        let port = |port| Address {
            host: "198.51.100.1".into(),
            port,
        };
        let source = |address| PeerCandidate { address, peer: None };
        let mut all: Vec<PeerCandidate> = (1..=300).map(port).map(source).collect();
        peers.update_candidates(&all);
        assert_eq!(dialled(&peers), CROWD_CONNECTIONS);
        all.push(many().remove(0));
        peers.update_candidates(&all);
        let honest = peers.by_address[&all[300].address];
        assert_eq!(
            peers.get(honest).unwrap().connection,
            ConnectionState::Waiting,
            "no place is free"
        );
        tokio::time::advance(SILENT).await;
        peers.pass_over_silent();
        assert_eq!(peers.get(honest).unwrap().connection, ConnectionState::Dialing);
        // Hosts take turns from the start.
        let mut peers = self::peers();
        peers.update_candidates(&all);
        let honest = peers.by_address[&all[300].address];
        assert_eq!(peers.get(honest).unwrap().connection, ConnectionState::Dialing);
    }

    #[tokio::test(start_paused = true)]
    async fn hundreds_of_silent_hosts_are_tried_within_seconds_and_few_at_once() {
        let mut peers = peers();
        let all: Vec<PeerCandidate> = (1..=200)
            .map(|n| PeerCandidate {
                address: Address {
                    host: format!("198.51.100.{n}"),
                    port: 1,
                },
                peer: None,
            })
            .collect();
        peers.update_candidates(&all);
        let tried = |peers: &PeerSet| {
            peers
                .iter()
                .filter(|(_, peer)| peer.failures > 0 || peer.holds_connection())
                .count()
        };
        let mut seconds = 0;
        while tried(&peers) < all.len() {
            tokio::time::advance(SILENT).await;
            peers.pass_over_silent();
            assert!(peers.connection_count() <= MAX_CONNECTED);
            seconds += 1;
            assert!(seconds < 10, "{} were tried", tried(&peers));
        }
        assert!(seconds <= 4, "{seconds} s");
    }

    #[tokio::test]
    async fn who_is_gone_and_gave_nothing_is_forgotten() {
        let mut peers = peers();
        let all = many();
        peers.update_candidates(&all);
        let problem = Problem::new(Reason::Unreachable, "gone");
        let key = |peers: &PeerSet, at: usize| peers.by_address[&all[at].address];
        let (lost, banned, gave) = (key(&peers, 0), key(&peers, 1), key(&peers, 2));
        for peer in peers.peers.values_mut() {
            peer.connection = ConnectionState::Waiting;
        }
        peers.peers.get_mut(&lost).unwrap().connection = ConnectionState::Lost(problem);
        peers.peers.get_mut(&banned).unwrap().connection = ConnectionState::Banned("lied".into());
        peers.credit_bytes(gave, 1);
        peers.max_connections = 0;
        peers.update_candidates(&all[50..]);
        assert_eq!((peers.peers.len(), peers.by_address.len()), (52, 52));
        assert!(peers.get(lost).is_none());
        assert!(peers.get(banned).is_some() && peers.get(gave).is_some());
        // A peer that returns counts as a new one.
        peers.update_candidates(&all);
        assert_eq!(peers.peers.len(), 100);
    }
}
