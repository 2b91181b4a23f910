//! The peers of a running download: their connections, retries and bans.
//!
//! Invariants:
//!
//! - A peer keeps its key while it is listed, and permanently once it has sent bytes or was banned,
//!   so a ban survives reconnections.
//! - At most [`MAX_CONNECTED`] peers are connecting or connected. The cap is [`CROWD_CONNECTIONS`]
//!   until [`PeerSet::raise_connection_cap`] raises it or peers stay silent.
//!
//! Non-goal: which peer to ask for what; the swarm decides that.

mod entry;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use potluck_core::{
    PeerId, Problem, Reason,
    model::{Address, Labels},
};
use potluck_swarm::{CROWD_PEERS, PeerKey};
use rand::seq::IteratorRandom as _;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::download::peers::{
    connector::{ConnectorContext, PeerConnector, backoff},
    discovery::PeerCandidate,
    host::{HostRounds, SilentHosts},
    rpc::client::PeerClient,
};

pub(crate) use entry::{ConnectionState, PeerEntry};

/// Maximum connected peers: more add no speed, and each costs two connections.
pub(crate) const MAX_CONNECTED: usize = 64;

/// Randomly chosen connections in a crowd: as many as the swarm requests from. Each further one
/// exchanges availability of every unit.
const CROWD_CONNECTIONS: usize = CROWD_PEERS as usize;

/// Consecutive failures after which a peer gives up its connection slot if other peers wait.
const MAX_FAILURES: u32 = 3;

/// Time after which a connecting peer counts as silent and others are tried too. Doubles with each
/// failure, so that a peer on a slow path is reached eventually.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(1);

/// The peers that were asked for metadata before the swarm started.
#[derive(Debug, Default)]
pub(crate) struct KnownPeers {
    /// Open connections.
    pub(crate) clients: HashMap<Address, PeerClient>,
    /// The violations of banned peers.
    pub(crate) violations: HashMap<Address, String>,
}

/// All peers of a download.
#[derive(Debug)]
pub(crate) struct PeerSet {
    peers: HashMap<PeerKey, PeerEntry>,
    by_address: HashMap<Address, PeerKey>,
    next_key: u64,
    silent_hosts: SilentHosts,
    /// Current cap on connections.
    max_connections: usize,
    /// Connections that were opened while the metadata was downloaded.
    ready_clients: HashMap<Address, PeerClient>,
    /// The context of every connector.
    connector: ConnectorContext,
    /// Stops all connectors.
    stop: CancellationToken,
    /// Tracks the tasks of the connectors.
    tracker: TaskTracker,
}

impl PeerSet {
    /// A set without candidates, except for those that were banned before.
    pub(crate) fn new(
        known: KnownPeers,
        connector: ConnectorContext,
        stop: CancellationToken,
        tracker: TaskTracker,
    ) -> Self {
        let mut set = Self {
            peers: HashMap::new(),
            by_address: HashMap::new(),
            next_key: 0,
            silent_hosts: SilentHosts::default(),
            max_connections: CROWD_CONNECTIONS,
            ready_clients: known.clients,
            connector,
            stop,
            tracker,
        };
        for (address, violation) in known.violations {
            let key = set.insert(PeerCandidate { address, peer: None });
            set.ban(key, violation);
        }
        set
    }

    fn insert(&mut self, candidate: PeerCandidate) -> PeerKey {
        let key = PeerKey(self.next_key);
        self.next_key += 1;
        self.by_address.insert(candidate.address.clone(), key);
        self.peers
            .insert(key, PeerEntry::new(candidate, self.stop.child_token()));
        key
    }

    /// Adds new candidates, forgets unlisted peers that sent nothing, retries without delay those
    /// that are listed again, and connects while there is room.
    pub(crate) fn update_candidates(&mut self, list: &[PeerCandidate]) {
        self.forget_unlisted(list);
        for candidate in list {
            match self.by_address.get(&candidate.address) {
                Some(key) => {
                    if let Some(peer) = self.peers.get_mut(key) {
                        peer.candidate.peer = candidate.peer.or(peer.candidate.peer);
                        peer.mark_listed();
                    }
                }
                None => match candidate.peer.and_then(|id| self.find_banned(id)) {
                    Some(key) => self.move_to(key, &candidate.address),
                    None => {
                        self.insert(candidate.clone());
                    }
                },
            }
        }
        self.connect_waiting();
    }

    /// Forgets peers that are neither connected nor listed. In a crowd with many arrivals and
    /// departures they would otherwise fill the memory and be tried before present peers.
    fn forget_unlisted(&mut self, list: &[PeerCandidate]) {
        let listed: HashSet<&Address> = list.iter().map(|candidate| &candidate.address).collect();
        self.peers.retain(|_, peer| {
            let is_listed = listed.contains(&peer.candidate.address);
            let stays = peer.must_be_kept() || is_listed;
            if !stays {
                peer.stop.cancel();
                self.by_address.remove(&peer.candidate.address);
            }
            peer.is_listed &= is_listed;
            stays
        });
        self.silent_hosts
            .retain(self.peers.values().map(|peer| &peer.host));
    }

    /// Raises the cap from [`CROWD_CONNECTIONS`] to [`MAX_CONNECTED`]. Has no effect until at least
    /// half of the attempts have succeeded, because those peers may suffice.
    pub(crate) fn raise_connection_cap(&mut self) {
        let count = |state: &ConnectionState| {
            let peers = self.peers.values();
            peers.filter(|peer| peer.connection == *state).count()
        };
        let connected = count(&ConnectionState::Connected);
        let connecting = count(&ConnectionState::Connecting);
        if self.max_connections < MAX_CONNECTED && connected > 0 && connecting <= connected {
            self.max_connections = MAX_CONNECTED;
            self.connect_waiting();
        }
    }

    /// Moves the slot of a random peer to a random waiting one if all slots are taken; for when no
    /// connected peer has the missing units. Returns the key of the disconnected peer.
    pub(crate) fn replace_idle_peer(&mut self) -> Option<PeerKey> {
        if self.connection_count() < MAX_CONNECTED {
            return None;
        }
        let random_of = |matches: fn(&PeerEntry) -> bool| {
            let matching = self.iter().filter(|(_, peer)| matches(peer));
            matching.choose(&mut rand::rng()).map(|(key, _)| key)
        };
        // Both are random: otherwise a peer that was away for long would always come last.
        let next = random_of(PeerEntry::is_waiting)?;
        let key = random_of(PeerEntry::holds_slot)?;
        self.disconnect(key);
        self.connect(next);
        Some(key)
    }

    fn connection_count(&self) -> usize {
        self.peers.values().filter(|peer| peer.holds_slot()).count()
    }

    /// The banned peer with this id, at any address.
    fn find_banned(&self, id: PeerId) -> Option<PeerKey> {
        let is_it = |peer: &PeerEntry| peer.candidate.peer == Some(id) && peer.is_banned();
        self.iter().find(|(_, peer)| is_it(peer)).map(|(key, _)| key)
    }

    /// Records the new address of a banned peer, which is used if the peer is readmitted.
    fn move_to(&mut self, key: PeerKey, address: &Address) {
        if let Some(peer) = self.peers.get_mut(&key) {
            self.by_address.remove(&peer.candidate.address);
            self.by_address.insert(address.clone(), key);
            peer.move_to(address);
        }
    }

    /// Connects to other peers in addition to the silent ones.
    pub(crate) fn connect_past_silent(&mut self) {
        let now = Instant::now();
        if self.peers.values().any(|peer| peer.is_overdue(now)) {
            self.connect_waiting();
        }
    }

    /// Connects to waiting peers while there is room. Silent peers do not count toward the cap
    /// while slots are free, and give up their slots if none is.
    fn connect_waiting(&mut self) {
        let now = Instant::now();
        let keys_of = |matches: &dyn Fn(&PeerEntry) -> bool| -> Vec<PeerKey> {
            let matching = self.iter().filter(|(_, peer)| matches(peer));
            matching.map(|(key, _)| key).collect()
        };
        let waiting = keys_of(&PeerEntry::is_waiting);
        if waiting.is_empty() {
            return;
        }
        let mut overdue = keys_of(&|peer| peer.is_overdue(now));
        let used = self.connection_count();
        // If no peer has answered, connects up to the maximum.
        let has_answer = self
            .peers
            .values()
            .any(|peer| peer.connection == ConnectionState::Connected);
        let max = match overdue.is_empty() || has_answer {
            true => self.max_connections,
            false => MAX_CONNECTED,
        };
        let more = max.saturating_sub(used - overdue.len()).min(waiting.len());
        let to_free = more
            .saturating_sub(MAX_CONNECTED.saturating_sub(used))
            .min(overdue.len());
        overdue.sort_by_key(|key| self.peers[key].overdue_at);
        for key in overdue.into_iter().take(to_free) {
            self.record_silence(key);
            self.disconnect(key);
        }
        let more = more.min(MAX_CONNECTED.saturating_sub(self.connection_count()));
        for key in self.ranked(waiting).into_iter().take(more) {
            self.connect(key);
        }
    }

    /// The order in which to connect to these peers: those of responsive hosts first, then those
    /// with fewer failures, then those with an open connection. Within a rank, one peer of every
    /// host comes before a second of any.
    fn ranked(&self, mut keys: Vec<PeerKey>) -> Vec<PeerKey> {
        let rank = |peer: &PeerEntry| {
            let is_ready = self.ready_clients.contains_key(&peer.candidate.address);
            (self.silent_hosts.is_silent(&peer.host), peer.failures, !is_ready)
        };
        keys.sort_by_cached_key(|key| {
            let peer = &self.peers[key];
            (rank(peer), peer.tie_breaker)
        });
        let mut rounds = HostRounds::default();
        for peer in self.peers.values().filter(|peer| peer.holds_slot()) {
            rounds.next(&peer.host);
        }
        keys.sort_by_cached_key(|key| {
            let peer = &self.peers[key];
            (rank(peer), rounds.next(&peer.host))
        });
        keys
    }

    /// Counts a peer that did not answer.
    fn record_silence(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get(&key) {
            self.silent_hosts.record_silence(&peer.host);
        }
    }

    /// Starts connecting to a peer.
    fn connect(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.connection = ConnectionState::Connecting;
        let timeout = backoff(peer.failures) + SILENCE_TIMEOUT * (1 << peer.failures.min(4));
        peer.overdue_at = Instant::now() + timeout;
        peer.stop = self.stop.child_token();
        let connector = PeerConnector {
            key,
            candidate: peer.candidate.clone(),
            context: self.connector.clone(),
        };
        let ready = self.ready_clients.remove(&peer.candidate.address);
        let (stop, failures) = (peer.stop.clone(), peer.failures);
        // Dropping the connector is safe: connections close, and events are sent whole.
        let connect = async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = connector.run(ready, failures) => {}
            }
        };
        self.tracker.spawn(connect.in_current_span());
    }

    /// Records that a peer is connected; false if the peer is no longer wanted.
    pub(crate) fn mark_connected(&mut self, key: PeerKey, client: PeerClient) -> bool {
        let Some(peer) = self.peers.get_mut(&key) else {
            return false;
        };
        if peer.is_banned() || peer.is_waiting() {
            return false;
        }
        peer.connection = ConnectionState::Connected;
        peer.client = Some(client);
        self.silent_hosts.record_answer(&peer.host);
        true
    }

    /// Records where a peer says that it is.
    pub(crate) fn set_labels(&mut self, key: PeerKey, labels: Labels) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.labels = labels;
        }
    }

    /// Records that a peer was lost. A peer that keeps failing gives its slot to a waiting one.
    pub(crate) fn mark_lost(&mut self, key: PeerKey, problem: &Problem) {
        let others_wait = self.peers.values().any(PeerEntry::is_waiting);
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        // A late event of a peer that has lost its slot.
        if peer.is_banned() || peer.is_waiting() {
            return;
        }
        let was_connected = peer.connection == ConnectionState::Connected;
        peer.client = None;
        peer.failures += 1;
        peer.last_error = Some(problem.message.clone());
        peer.connection = ConnectionState::Lost(problem.clone());
        if !was_connected && problem.reason == Reason::TimedOut {
            self.silent_hosts.record_silence(&peer.host);
        }
        // A peer that never answered gives up its slot immediately.
        let has_answered = was_connected || peer.bytes > 0;
        if others_wait && (!has_answered || peer.failures % MAX_FAILURES == 0) {
            peer.stop.cancel();
            peer.connection = ConnectionState::Waiting;
        }
        self.connect_waiting();
    }

    /// Disconnects a peer until [`PeerSet::readmit`].
    pub(crate) fn ban(&mut self, key: PeerKey, violation: String) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.close();
            peer.last_violation = Some(violation.clone());
            peer.connection = ConnectionState::Banned(violation);
        }
        self.connect_waiting();
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
            self.connect(key);
        }
    }

    /// Reconnects to all connected peers, because their availability may have been lost or damaged.
    /// Returns their keys.
    pub(crate) fn reconnect(&mut self) -> Vec<PeerKey> {
        let is_connected = |peer: &PeerEntry| peer.connection == ConnectionState::Connected;
        let connected = self.iter().filter(|(_, peer)| is_connected(peer));
        let keys: Vec<PeerKey> = connected.map(|(key, _)| key).collect();
        for &key in &keys {
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.close();
            }
            self.connect(key);
        }
        keys
    }

    /// The keys of the banned peers.
    pub(crate) fn banned(&self) -> Vec<PeerKey> {
        let banned = self.iter().filter(|(_, peer)| peer.is_banned());
        banned.map(|(key, _)| key).collect()
    }

    /// Removes a peer that did not misbehave, for example this peer itself. Its address stays
    /// known, so that the peer is not added again.
    pub(crate) fn forget(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.remove(&key) {
            peer.stop.cancel();
        }
        self.connect_waiting();
    }

    /// Disconnects a peer and lets it wait for another connection.
    pub(crate) fn reconnect_later(&mut self, key: PeerKey) {
        self.disconnect(key);
        self.connect_waiting();
    }

    /// Disconnects a peer that is not banned and lets it wait.
    fn disconnect(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key)
            && !peer.is_banned()
        {
            peer.close();
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
    pub(crate) fn record_error(&mut self, key: PeerKey, error: String) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.last_error = Some(error);
        }
    }

    /// All peers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PeerKey, &PeerEntry)> {
        self.peers.iter().map(|(&key, peer)| (key, peer))
    }
}
