//! The state machine: its events, its actions and its timers.
//!
//! Each file handles one kind of event or decision; [`crate::state`] keeps what it knows.

mod availability;
mod distance;
mod endgame;
mod failures;
mod inspect;
#[cfg(any(test, debug_assertions))]
mod invariants;
mod pick;
mod requests;
mod reserve;
#[cfg(test)]
mod tests;
mod throttle;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

use crate::{
    config::SwarmConfig,
    state::{Estimate, Nearby, Peer, Preference, RarityOrder, Request},
    types::{Action, Counters, Failure, PeerKey, RequestId, Time},
};
use potluck_core::bitfield::Bitfield;

/// The scheduler state of one download; the crate's documentation describes it.
#[derive(Debug)]
pub struct Swarm {
    config: SwarmConfig,
    rng: Xoshiro256PlusPlus,
    unit_lens: Vec<u64>,
    /// Length of the longest unit. A request is made only if a unit of this length fits the budget.
    longest_unit: u64,
    have: Bitfield,
    /// Units in flight.
    fetching: Bitfield,
    rarity: RarityOrder,
    /// For a download that is read in order: the end of the window. Later units are not missing yet.
    window_end: Option<u32>,
    /// How many partial peers have each unit.
    partial_providers: Vec<u32>,
    /// What nearer peers provide.
    nearby: Nearby,
    /// Whether distant peers may be asked for it, too.
    preference: Preference,

    peers: BTreeMap<PeerKey, Peer>,
    /// Known peers that are complete, and known peers that are partial; banned ones are not
    /// counted.
    complete_peers: u32,
    partial_peers: u32,
    /// When a partial peer last announced something new, and how many units completed here since.
    partial_progress: (Time, u32),
    /// Whether there are partial peers and none makes progress: they are not a crowd.
    stalled_crowd: bool,
    /// Number of peers that have requests.
    active_peers: u32,
    /// Peers to examine: something changed that may allow a request to them.
    ready: VecDeque<PeerKey>,
    /// Peers that could get a request if the download were not at its limits.
    blocked: Vec<PeerKey>,
    timers: BTreeSet<(Time, PeerKey)>,
    /// When the endgame is examined again.
    endgame_tick: Option<Time>,

    requests: BTreeMap<RequestId, Request>,
    /// The requests of each unit in flight.
    unit_requests: BTreeMap<u32, Vec<RequestId>>,
    /// Units in flight whose peers are all stalled: other peers may fetch them.
    open_units: BTreeSet<u32>,
    next_request: u64,
    in_flight_bytes: u64,
    /// All arriving bytes, as if from one peer: our own downlink, or the sum of all uplinks.
    downlink: Estimate,
    /// When bytes last waited for our own rate limit.
    throttled_at: Option<Time>,

    /// When a unit was last verified.
    last_verified: Time,

    actions: VecDeque<Action>,
    finish_announced: bool,
    counters: Counters,
    #[cfg(any(test, debug_assertions))]
    events: u64,
    /// Maximum bytes in flight: the budget, or what remains in flight after the budget was reduced.
    #[cfg(any(test, debug_assertions))]
    in_flight_limit: u64,
}

impl Swarm {
    /// Creates a download of units of these lengths in bytes, of which `have` are verified already
    /// or not wanted: a unit in `have` is never requested.
    /// `seed` determines all random choices; two peers must not use the same seed.
    ///
    /// # Panics
    ///
    /// If `have` does not have `unit_lens.len()` bits.
    pub fn new(config: SwarmConfig, unit_lens: Vec<u64>, have: Bitfield, seed: u64) -> Self {
        assert_eq!(unit_lens.len(), have.len() as usize, "one bit for each unit");
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut rarity = RarityOrder::new(unit_lens.len());
        for unit in (0..have.len()).filter(|&unit| !have.get(unit)) {
            rarity.insert(unit, &mut rng);
        }
        let mut swarm = Self {
            rng,
            longest_unit: unit_lens.iter().copied().max().unwrap_or(0),
            fetching: Bitfield::new(have.len()),
            rarity,
            window_end: None,
            partial_providers: vec![0; unit_lens.len()],
            nearby: Nearby::default(),
            preference: Preference::default(),
            unit_lens,
            have,
            peers: BTreeMap::new(),
            complete_peers: 0,
            partial_peers: 0,
            partial_progress: (Time::ZERO, 0),
            stalled_crowd: false,
            active_peers: 0,
            ready: VecDeque::new(),
            blocked: Vec::new(),
            timers: BTreeSet::new(),
            endgame_tick: None,
            requests: BTreeMap::new(),
            unit_requests: BTreeMap::new(),
            open_units: BTreeSet::new(),
            next_request: 0,
            in_flight_bytes: 0,
            downlink: Estimate::default(),
            throttled_at: None,
            last_verified: Time::ZERO,
            actions: VecDeque::new(),
            finish_announced: false,
            counters: Counters::default(),
            #[cfg(any(test, debug_assertions))]
            events: 0,
            #[cfg(any(test, debug_assertions))]
            in_flight_limit: config.max_in_flight_bytes,
            config,
        };
        swarm.announce_finish();
        swarm
    }

    /// Makes this the download of a reader: units are requested in order, and only those before
    /// `end`, until [`Swarm::extend_window`] moves it. Call it before the first event.
    #[must_use]
    pub fn in_order(mut self, end: u32) -> Self {
        let end = end.min(self.have.len());
        for unit in end..self.have.len() {
            if self.rarity.contains(unit) {
                self.rarity.remove(unit);
            }
        }
        self.window_end = Some(end);
        self
    }

    /// Moves the end of the reader's window; it never moves back. No effect on a download that is
    /// not read in order.
    pub fn extend_window(&mut self, end: u32) {
        let end = end.min(self.have.len());
        if let Some(old) = self.window_end.filter(|&old| old < end) {
            self.window_end = Some(end);
            for unit in old..end {
                if !self.have.get(unit) {
                    self.mark_missing(unit);
                }
            }
            self.wake_blocked();
        }
        self.after_event();
    }

    /// A peer became reachable; [`Swarm::availability`] reports what it has. The failures and
    /// back-off of a known peer are reset, but a banned peer stays banned until
    /// [`Action::Readmit`].
    pub fn peer_joined(&mut self, peer: PeerKey, now: Time) {
        self.add_peer(peer, now);
        self.after_event();
    }

    /// Reports the round trip of a small message to this peer, measured without queues. It lets the
    /// swarm tell a long link from a long queue: in a crowd only the link is filled. Peers that did
    /// not join are ignored.
    pub fn round_trip(&mut self, peer: PeerKey, took: Duration) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.round_trip = Some(peer.round_trip.map_or(took, |min| min.min(took)));
        }
        self.after_event();
    }

    /// A peer left: its requests are cancelled, and its units no longer count.
    pub fn peer_left(&mut self, peer: PeerKey, now: Time) {
        self.remove_peer(peer, now);
        self.after_event();
    }

    /// Bytes of a request arrived and are not verified yet. They update the estimates.
    pub fn progressed(&mut self, id: RequestId, bytes: u64, now: Time) {
        self.receive_bytes(id, bytes, now);
        self.after_event();
    }

    /// Bytes of a request arrived and wait for our own rate limit, verification or disk. The peer
    /// is not silent, and no other peer would be faster.
    pub fn locally_throttled(&mut self, id: RequestId, now: Time) {
        self.mark_locally_throttled(id, now);
        self.after_event();
    }

    /// The unit of this request verified. Returns whether it was needed; if not, drop the bytes.
    pub fn verified(&mut self, id: RequestId, now: Time) -> bool {
        let needed = self.complete_unit(id, now);
        self.after_event();
        needed
    }

    /// All bytes of this request arrived and the unit did not verify: its sender is banned.
    pub fn corrupt(&mut self, id: RequestId, now: Time) {
        self.ban_sender(id, now);
        self.after_event();
    }

    /// A peer violated the protocol: it is banned and its requests are cancelled, even if it never
    /// joined.
    pub fn misbehaved(&mut self, peer: PeerKey, now: Time) {
        self.ban_peer(peer, now);
        self.after_event();
    }

    /// The request failed for any reason other than wrong bytes.
    pub fn failed(&mut self, id: RequestId, failure: Failure, now: Time) {
        self.fail_request(id, failure, now);
        self.after_event();
    }

    /// The unit must be fetched (again) and no peer is to blame: writing it to disk failed.
    pub fn reset_unit(&mut self, unit: u32, now: Time) {
        self.refetch(unit, now);
        self.after_event();
    }

    /// Changes how many bytes may be in flight. If more are in flight already, none is cancelled;
    /// no new request is made until they fit.
    pub fn set_max_in_flight_bytes(&mut self, bytes: u64) {
        if bytes != self.config.max_in_flight_bytes {
            self.config.max_in_flight_bytes = bytes;
            self.after_event();
        }
    }

    /// Handles the passing of time. Call it at the time from [`Swarm::poll_timeout`]; early or late
    /// calls are harmless.
    pub fn handle_timeout(&mut self, now: Time) {
        self.expire_timers(now);
        self.after_event();
    }

    /// Returns the next action. Call it after every event until it returns `None`.
    pub fn poll_action(&mut self, now: Time) -> Option<Action> {
        if self.actions.is_empty() {
            self.pick_next(now);
        }
        let action = self.actions.pop_front();
        #[cfg(any(test, debug_assertions))]
        if action.is_none() {
            self.check_liveness();
        }
        action
    }

    /// When to call [`Swarm::handle_timeout`]. `None` means that only an event can change anything.
    pub fn poll_timeout(&self) -> Option<Time> {
        let timer = self.timers.first().map(|&(at, _)| at);
        let preference = self.preference.deadline();
        timer.into_iter().chain(self.endgame_tick).chain(preference).min()
    }

    /// Runs after every event: checks the invariants in debug builds.
    fn after_event(&mut self) {
        #[cfg(any(test, debug_assertions))]
        {
            self.in_flight_limit = self
                .config
                .max_in_flight_bytes
                .max(self.in_flight_bytes.min(self.in_flight_limit));
            self.check_now_and_then();
        }
    }

    fn announce_finish(&mut self) {
        if self.have.is_full() && !self.finish_announced {
            self.finish_announced = true;
            self.actions.push_back(Action::Finished);
        }
    }
}
