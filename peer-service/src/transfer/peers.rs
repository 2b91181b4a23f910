//! The peers of a running transfer: who is connected, who is tried again, and what each of them has.
//!
//! Invariant: a peer keeps its key for as long as it is listed or has given anything or was ever
//! banned, so that a ban lasts through any number of reconnections; at most [`MAX_CONNECTED`] are
//! dialled or connected at once, and [`NEIGHBOURS`] until [`Peers::widen`] says that more are of
//! use, or those that were dialled are silent.

mod watcher;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use potluck_core::{FileId, PeerId, Problem, Reason, index_client::Address};
use rand::{RngExt as _, seq::IteratorRandom as _};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    link::{AvailabilityEvent, Link},
    sources::{Host, HostTurns, Source},
};
use crate::swarm::{CROWD_PEERS, PeerKey};
use watcher::{Watcher, wait_after};

/// Peers connected at once: more give no more speed, and each costs two connections.
pub(super) const MAX_CONNECTED: usize = 64;

/// Peers connected at once in a crowd, drawn by lot: as many as are asked at once. Each more is told and tells of every unit.
const NEIGHBOURS: usize = CROWD_PEERS as usize;

/// Failures without anything good between after which a peer gives up its place to others, if others wait.
const PATIENCE: u32 = 3;

/// How long a peer that is dialled for the first time may take before others are dialled besides, if others wait. Twice as long after
/// each failure, so that one on a slow path is reached in the end.
const SILENT: Duration = Duration::from_secs(1);

/// Silent peers of one host after which its others are dialled last.
const SILENT_HOST: u32 = 2;

/// Something that happened to a peer.
#[derive(Debug)]
pub(crate) enum PeerEvent {
    /// It is connected, and a call without data took this long.
    Joined(Box<Link>, Duration),
    /// What it has, or what is different.
    Availability(AvailabilityEvent),
    /// It counts the units otherwise: one of the two takes a folder for a file.
    OtherUnits,
    /// It is no longer connected, or could not be; tried again later.
    Lost(Problem),
    /// It is this very peer, or breaks the rules: not tried again.
    Useless(Problem),
}

/// Where a peer stands apart from what the swarm makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Contact {
    /// Waits for its turn.
    Waiting,
    /// Being dialled.
    Dialling,
    /// Connected.
    Connected,
    /// Lost; tried again.
    Lost(Problem),
    /// Not asked again before the swarm says so, and why.
    Banned(String),
}

/// One peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) source: Source,
    pub(crate) contact: Contact,
    pub(crate) link: Option<Link>,
    /// The last thing it did wrong.
    pub(crate) last_error: Option<String>,
    /// What it was last banned for, also once it is asked again.
    pub(crate) ban: Option<String>,
    /// Verified bytes it gave, over all its connections.
    pub(crate) bytes: u64,
    stop: CancellationToken,
    host: Host,
    failures: u32,
    /// When it counts as silent unless it has answered.
    overdue_at: Instant,
    /// Its place in line: by lot, so that a crowd does not lean on the same few.
    lot: u64,
}

impl Peer {
    /// Whether it is dialled, connected, or tried again.
    const fn has_place(&self) -> bool {
        matches!(
            self.contact,
            Contact::Dialling | Contact::Connected | Contact::Lost(_)
        )
    }

    /// Whether it was dialled a while ago and has not answered.
    fn is_overdue(&self, now: Instant) -> bool {
        self.contact == Contact::Dialling && self.overdue_at <= now
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Peers {
    id: FileId,
    units: u32,
    peers: HashMap<PeerKey, Peer>,
    by_address: HashMap<Address, PeerKey>,
    /// How many peers of each host were silent since one of them answered.
    silent: HashMap<Host, u32>,
    next: u64,
    /// How many may be dialled or connected now.
    most: usize,
    events: mpsc::Sender<(PeerKey, PeerEvent)>,
    /// Connections made while preparing.
    ready: HashMap<Address, Link>,
    stop: CancellationToken,
    tracker: TaskTracker,
    own: PeerId,
    leave_from: Option<IpAddr>,
}

impl Peers {
    /// No peers yet. `ready`: connections there are; `liars`: who is banned already.
    pub(crate) fn new(
        (id, units, own): (FileId, u32, PeerId),
        events: mpsc::Sender<(PeerKey, PeerEvent)>,
        ready: HashMap<Address, Link>,
        liars: HashMap<Address, String>,
        stop: CancellationToken,
        tracker: TaskTracker,
    ) -> Self {
        let mut peers = Self {
            id,
            units,
            peers: HashMap::new(),
            by_address: HashMap::new(),
            silent: HashMap::new(),
            next: 0,
            most: NEIGHBOURS,
            events,
            ready,
            stop,
            tracker,
            own,
            leave_from: None,
        };
        for (address, what) in liars {
            let key = peers.insert(Source { address, peer: None });
            peers.ban(key, what);
        }
        peers
    }

    /// The same, whose connections leave from this address of this machine.
    pub(crate) fn leaving_from(mut self, address: Option<IpAddr>) -> Self {
        self.leave_from = address;
        self
    }

    fn insert(&mut self, source: Source) -> PeerKey {
        let key = PeerKey(self.next);
        self.next += 1;
        self.by_address.insert(source.address.clone(), key);
        let peer = Peer {
            host: Host::from(&source.address),
            overdue_at: Instant::now(),
            source,
            contact: Contact::Waiting,
            link: None,
            last_error: None,
            ban: None,
            bytes: 0,
            stop: self.stop.child_token(),
            failures: 0,
            lot: rand::rng().random(),
        };
        self.peers.insert(key, peer);
        key
    }

    /// Takes up new sources, forgets those that are gone and gave nothing, and dials as many as there is room for.
    pub(crate) fn reconcile(&mut self, list: &[Source]) {
        self.forget_gone(list);
        for source in list {
            match self.by_address.get(&source.address) {
                Some(key) => {
                    if let (Some(peer), Some(id)) = (self.peers.get_mut(key), source.peer) {
                        peer.source.peer = Some(id);
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
        self.dial();
    }

    /// Forgets who is neither connected nor on the list any more: who comes and goes in a crowd, for as long as a transfer lasts, must
    /// not fill the memory, nor be tried before those who are there.
    fn forget_gone(&mut self, list: &[Source]) {
        let listed: HashSet<&Address> = list.iter().map(|source| &source.address).collect();
        self.peers.retain(|_, peer| {
            let is_away = matches!(peer.contact, Contact::Waiting | Contact::Lost(_));
            let is_known = peer.bytes > 0 || peer.ban.is_some();
            let stays = !is_away || is_known || listed.contains(&peer.source.address);
            if !stays {
                peer.stop.cancel();
                self.by_address.remove(&peer.source.address);
            }
            stays
        });
        if !self.silent.is_empty() {
            let hosts: HashSet<&Host> = self.peers.values().map(|peer| &peer.host).collect();
            self.silent.retain(|host, _| hosts.contains(host));
        }
    }

    /// Connects to more than [`NEIGHBOURS`] from now on. Has no effect before half of those have answered: they may tell that
    /// they are enough.
    pub(crate) fn widen(&mut self) {
        let count = |contact| self.peers.values().filter(|peer| peer.contact == contact).count();
        let connected = count(Contact::Connected);
        if self.most < MAX_CONNECTED && connected > 0 && count(Contact::Dialling) <= connected {
            self.most = MAX_CONNECTED;
            self.dial();
        }
    }

    /// Gives the place of somebody by lot to one that waits, where all places are taken: none of those who have one has what is missing.
    /// Says whose connection is gone.
    pub(crate) fn make_place(&mut self) -> Option<PeerKey> {
        if self.taken() < MAX_CONNECTED {
            return None;
        }
        let by_lot = |which: fn(&Peer) -> bool| {
            let those = self.iter().filter(|(_, peer)| which(peer));
            those.choose(&mut rand::rng()).map(|(key, _)| key)
        };
        // Both by lot: whoever was away for long would come last otherwise.
        let next = by_lot(|peer| peer.contact == Contact::Waiting)?;
        let key = by_lot(Peer::has_place)?;
        self.put_off(key);
        self.begin(next);
        Some(key)
    }

    fn taken(&self) -> usize {
        self.peers.values().filter(|peer| peer.has_place()).count()
    }

    /// The banned peer with this id, under whatever address.
    fn banned_as(&self, id: PeerId) -> Option<PeerKey> {
        let is_it = |peer: &Peer| peer.source.peer == Some(id) && matches!(peer.contact, Contact::Banned(_));
        self.iter().find(|(_, peer)| is_it(peer)).map(|(key, _)| key)
    }

    /// A banned peer has another address now: there it is found if it is readmitted.
    fn move_to(&mut self, key: PeerKey, address: &Address) {
        if let Some(peer) = self.peers.get_mut(&key) {
            self.by_address.remove(&peer.source.address);
            self.by_address.insert(address.clone(), key);
            peer.source.address = address.clone();
            peer.host = Host::from(address);
        }
    }

    /// Dials others besides those that are silent.
    pub(crate) fn pass_over_silent(&mut self) {
        let now = Instant::now();
        if self.peers.values().any(|peer| peer.is_overdue(now)) {
            self.dial();
        }
    }

    /// Dials those who wait, while there is room. Those that are silent take no room while there are free places, and give theirs to
    /// others where there are none.
    fn dial(&mut self) {
        let now = Instant::now();
        let mut waiting: Vec<PeerKey> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.contact == Contact::Waiting)
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
        let taken = self.taken();
        // As long as nobody answers at all, as many are dialled as may be connected.
        let is_answered = self.peers.values().any(|peer| peer.contact == Contact::Connected);
        let most = match overdue.is_empty() || is_answered {
            true => self.most,
            false => MAX_CONNECTED,
        };
        let more = most.saturating_sub(taken - overdue.len()).min(waiting.len());
        let to_free = more
            .saturating_sub(MAX_CONNECTED.saturating_sub(taken))
            .min(overdue.len());
        overdue.sort_by_key(|key| self.peers[key].overdue_at);
        for key in overdue.into_iter().take(to_free) {
            self.count_silent(key);
            self.put_off(key);
        }
        let more = more.min(MAX_CONNECTED.saturating_sub(self.taken()));
        let is_silent = |peer: &Peer| {
            self.silent
                .get(&peer.host)
                .is_some_and(|&count| count >= SILENT_HOST)
        };
        // Those of hosts that answer first, then those that failed least, then those that answered while preparing.
        let rank = |peer: &Peer| {
            let is_ready = self.ready.contains_key(&peer.source.address);
            (is_silent(peer), peer.failures, !is_ready)
        };
        waiting.sort_by_cached_key(|key| {
            let peer = &self.peers[key];
            (rank(peer), peer.lot)
        });
        // Among these, hosts take turns.
        let mut turns = HostTurns::default();
        for peer in self.peers.values().filter(|peer| peer.has_place()) {
            turns.next(&peer.host);
        }
        waiting.sort_by_cached_key(|key| {
            let peer = &self.peers[key];
            (rank(peer), turns.next(&peer.host))
        });
        waiting.truncate(more);
        for key in waiting {
            self.begin(key);
        }
    }

    /// Notes that a peer was dialled and did not answer.
    fn count_silent(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get(&key) {
            *self.silent.entry(peer.host.clone()).or_default() += 1;
        }
    }

    /// Dials one.
    fn begin(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.contact = Contact::Dialling;
        let patience = wait_after(peer.failures) + SILENT * (1 << peer.failures.min(4));
        peer.overdue_at = Instant::now() + patience;
        peer.stop = self.stop.child_token();
        let watcher = Watcher {
            key,
            source: peer.source.clone(),
            id: self.id,
            units: self.units,
            own: self.own,
            leave_from: self.leave_from,
            events: self.events.clone(),
        };
        let ready = self.ready.remove(&peer.source.address);
        let (stop, failures) = (peer.stop.clone(), peer.failures);
        // Nothing is half done when it is dropped: connections close, events are whole.
        self.tracker.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = watcher.run(ready, failures) => {}
            }
        });
    }

    /// Notes that a peer is connected; false where it is not wanted any more.
    pub(crate) fn joined(&mut self, key: PeerKey, link: Link) -> bool {
        let Some(peer) = self.peers.get_mut(&key) else {
            return false;
        };
        if matches!(peer.contact, Contact::Banned(_) | Contact::Waiting) {
            return false;
        }
        peer.contact = Contact::Connected;
        peer.link = Some(link);
        self.silent.remove(&peer.host);
        true
    }

    /// Notes that a peer was lost. One that keeps failing gives its place to another that waits.
    pub(crate) fn lost(&mut self, key: PeerKey, problem: &Problem) {
        let others = self.peers.values().any(|peer| peer.contact == Contact::Waiting);
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        // What one says that has lost its place is late.
        if matches!(peer.contact, Contact::Banned(_) | Contact::Waiting) {
            return;
        }
        let answered = peer.contact == Contact::Connected;
        peer.link = None;
        peer.failures += 1;
        peer.last_error = Some(problem.message.clone());
        peer.contact = Contact::Lost(problem.clone());
        if !answered && problem.reason == Reason::TimedOut {
            *self.silent.entry(peer.host.clone()).or_default() += 1;
        }
        // One that never answered has no place to keep.
        let was_here = answered || peer.bytes > 0;
        if others && (!was_here || peer.failures % PATIENCE == 0) {
            peer.stop.cancel();
            peer.contact = Contact::Waiting;
        }
        self.dial();
    }

    /// Ends a peer's connection until [`Peers::readmit`].
    pub(crate) fn ban(&mut self, key: PeerKey, what: String) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.stop.cancel();
            peer.link = None;
            peer.ban = Some(what.clone());
            peer.contact = Contact::Banned(what);
        }
        self.dial();
    }

    /// Connects to a banned peer again, before others that wait: none of those has what is missing.
    pub(crate) fn readmit(&mut self, key: PeerKey) {
        let has_room = self.taken() < MAX_CONNECTED;
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        (peer.contact, peer.failures, peer.last_error) = (Contact::Waiting, 0, None);
        if has_room {
            self.begin(key);
        }
    }

    /// Connects anew to all that are connected, and gives their keys: what they told may have been
    /// lost or damaged.
    pub(crate) fn reconnect(&mut self) -> Vec<PeerKey> {
        let connected = |(&key, peer): (&PeerKey, &Peer)| (peer.contact == Contact::Connected).then_some(key);
        let keys: Vec<PeerKey> = self.peers.iter().filter_map(connected).collect();
        for &key in &keys {
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.stop.cancel();
                peer.link = None;
            }
            self.begin(key);
        }
        keys
    }

    /// Those who are banned.
    pub(crate) fn banned(&self) -> Vec<PeerKey> {
        let is_banned = |peer: &Peer| matches!(peer.contact, Contact::Banned(_));
        let banned = self.iter().filter(|(_, peer)| is_banned(peer));
        banned.map(|(key, _)| key).collect()
    }

    /// A peer that is gone without having lied, such as this very peer.
    pub(crate) fn forget(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.remove(&key) {
            peer.stop.cancel();
        }
        // The address stays known, so that it is not taken up again.
        self.dial();
    }

    /// Starts a peer's connection anew, after a wait.
    pub(crate) fn restart(&mut self, key: PeerKey) {
        self.put_off(key);
        self.dial();
    }

    /// Ends a peer's connection until it is dialled again.
    fn put_off(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key)
            && !matches!(peer.contact, Contact::Banned(_))
        {
            peer.stop.cancel();
            peer.link = None;
            peer.failures += 1;
            peer.contact = Contact::Waiting;
        }
    }

    /// One of them.
    pub(crate) fn get(&self, key: PeerKey) -> Option<&Peer> {
        self.peers.get(&key)
    }

    /// Counts verified bytes that a peer gave: kept here, as the swarm forgets who is gone.
    pub(crate) fn credit(&mut self, key: PeerKey, bytes: u64) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.bytes += bytes;
        }
    }

    /// A peer sends something: it is there. Not because it is connected, or whoever does nothing else would always come before those who
    /// were away for a while.
    pub(crate) fn sends(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.failures = 0;
        }
    }

    /// Notes what a peer did wrong.
    pub(crate) fn note(&mut self, key: PeerKey, what: String) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.last_error = Some(what);
        }
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PeerKey, &Peer)> {
        self.peers.iter().map(|(&key, peer)| (key, peer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers() -> Peers {
        let (id, own) = (FileId([1; 32]), PeerId([2; 32]));
        let (events, _) = mpsc::channel(1);
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        Peers::new(
            (id, 8, own),
            events,
            HashMap::new(),
            HashMap::new(),
            stop,
            tracker,
        )
    }

    fn many() -> Vec<Source> {
        let address = |n: u16| Address {
            host: "192.0.2.1".into(),
            port: 1000 + n,
        };
        let source = |n| Source {
            address: address(n),
            peer: None,
        };
        (0..100).map(source).collect()
    }

    fn dialled(peers: &Peers) -> usize {
        peers
            .iter()
            .filter(|(_, peer)| peer.contact != Contact::Waiting)
            .count()
    }

    // Nothing is awaited, so nobody is called.
    #[tokio::test]
    async fn more_than_a_few_are_dialled_only_once_half_of_those_have_answered() {
        let mut peers = peers();
        peers.widen();
        peers.reconcile(&many());
        assert_eq!(dialled(&peers), NEIGHBOURS, "nobody had answered");
        peers.widen();
        assert_eq!(dialled(&peers), NEIGHBOURS);
        let dialling = peers
            .peers
            .values_mut()
            .filter(|peer| peer.contact == Contact::Dialling);
        for peer in dialling.take(NEIGHBOURS / 2) {
            peer.contact = Contact::Connected;
        }
        peers.widen();
        assert_eq!(dialled(&peers), MAX_CONNECTED);
    }

    #[tokio::test]
    async fn a_provider_that_was_away_gets_its_turn_however_many_useless_peers_there_are() {
        let mut peers = peers();
        peers.reconcile(&many());
        let connect = |peers: &mut Peers| {
            let dialling = peers
                .peers
                .values_mut()
                .filter(|peer| peer.contact == Contact::Dialling);
            dialling.for_each(|peer| peer.contact = Contact::Connected);
        };
        connect(&mut peers);
        peers.widen();
        connect(&mut peers);
        // Away for so long that everyone else is tried before it, unless it is by lot.
        let waits = |(key, peer): (PeerKey, &Peer)| (peer.contact == Contact::Waiting).then_some(key);
        let seed = peers.iter().find_map(waits).unwrap();
        peers.peers.get_mut(&seed).unwrap().failures = u32::MAX / 2;
        let mut turns = 0;
        while peers.get(seed).unwrap().contact != Contact::Connected {
            assert!(peers.make_place().is_some());
            assert_eq!(dialled(&peers), MAX_CONNECTED);
            connect(&mut peers);
            turns += 1;
            assert!(turns < 10_000, "it never gets a place");
        }
    }

    /// A peer that restarts on another port is the same peer.
    #[tokio::test]
    async fn a_banned_peer_is_followed_to_its_new_address() {
        let mut peers = peers();
        let mut source = many().remove(0);
        source.peer = Some(PeerId([7; 32]));
        peers.reconcile(std::slice::from_ref(&source));
        let key = peers.by_address[&source.address];
        peers.ban(key, "lied".into());
        let before = source.address.clone();
        source.address.port += 1000;
        peers.reconcile(std::slice::from_ref(&source));
        assert_eq!((peers.peers.len(), peers.by_address.len()), (1, 1));
        assert_eq!(peers.get(key).unwrap().source.address, source.address);
        assert!(!peers.by_address.contains_key(&before));
        peers.readmit(key);
        let peer = peers.get(key).unwrap();
        assert_eq!(peer.contact, Contact::Dialling);
        assert_eq!(peer.ban.as_deref(), Some("lied"), "remembered");
    }

    #[tokio::test(start_paused = true)]
    async fn black_holes_of_one_host_keep_no_other_waiting() {
        let mut peers = peers();
        let port = |port| Address {
            host: "198.51.100.1".into(),
            port,
        };
        let source = |address| Source { address, peer: None };
        let mut all: Vec<Source> = (1..=300).map(port).map(source).collect();
        peers.reconcile(&all);
        assert_eq!(dialled(&peers), NEIGHBOURS);
        all.push(many().remove(0));
        peers.reconcile(&all);
        let honest = peers.by_address[&all[300].address];
        assert_eq!(
            peers.get(honest).unwrap().contact,
            Contact::Waiting,
            "no place is free"
        );
        tokio::time::advance(SILENT).await;
        peers.pass_over_silent();
        assert_eq!(peers.get(honest).unwrap().contact, Contact::Dialling);
        // From the beginning, hosts take turns.
        let mut peers = self::peers();
        peers.reconcile(&all);
        let honest = peers.by_address[&all[300].address];
        assert_eq!(peers.get(honest).unwrap().contact, Contact::Dialling);
    }

    #[tokio::test(start_paused = true)]
    async fn hundreds_of_silent_hosts_are_tried_within_seconds_and_few_at_once() {
        let mut peers = peers();
        let all: Vec<Source> = (1..=200)
            .map(|n| Source {
                address: Address {
                    host: format!("198.51.100.{n}"),
                    port: 1,
                },
                peer: None,
            })
            .collect();
        peers.reconcile(&all);
        let tried = |peers: &Peers| {
            peers
                .iter()
                .filter(|(_, peer)| peer.failures > 0 || peer.has_place())
                .count()
        };
        let mut seconds = 0;
        while tried(&peers) < all.len() {
            tokio::time::advance(SILENT).await;
            peers.pass_over_silent();
            assert!(peers.taken() <= MAX_CONNECTED);
            seconds += 1;
            assert!(seconds < 10, "{} were tried", tried(&peers));
        }
        assert!(seconds <= 4, "{seconds} s");
    }

    #[tokio::test]
    async fn who_is_gone_and_gave_nothing_is_forgotten() {
        let mut peers = peers();
        let all = many();
        peers.reconcile(&all);
        let problem = Problem::new(Reason::Unreachable, "gone");
        let key = |peers: &Peers, at: usize| peers.by_address[&all[at].address];
        let (lost, banned, gave) = (key(&peers, 0), key(&peers, 1), key(&peers, 2));
        for peer in peers.peers.values_mut() {
            peer.contact = Contact::Waiting;
        }
        peers.peers.get_mut(&lost).unwrap().contact = Contact::Lost(problem);
        peers.peers.get_mut(&banned).unwrap().contact = Contact::Banned("lied".into());
        peers.credit(gave, 1);
        peers.most = 0;
        peers.reconcile(&all[50..]);
        assert_eq!((peers.peers.len(), peers.by_address.len()), (52, 52));
        assert!(peers.get(lost).is_none());
        assert!(peers.get(banned).is_some() && peers.get(gave).is_some());
        // Back again, as somebody new.
        peers.reconcile(&all);
        assert_eq!(peers.peers.len(), 100);
    }
}
