//! The swarm of one transfer: which peer is asked for which unit, and when.
//!
//! A state machine without I/O, clock or randomness of its own: events go in (what peers have, bytes that arrive, units that
//! verified or failed), [`Swarm::poll_action`] gives what to do, [`Swarm::poll_timeout`] when to come back. Time is a
//! parameter and the random order comes from a seed, so that every run can be replayed.
//!
//! # What it does
//!
//! - **Rarest first**, counting what other peers have and what they are fetching, random among equals: a crowd asks its
//!   seed for each unit about once.
//! - **As deep as the link asks for**: what is owed by a peer follows its throughput times its latency. In a crowd there is
//!   nothing beyond that, since a queue at one peer is work kept from all others.
//! - **Nobody is waited for**: units of a silent peer are open to others; at the end, a request that another peer would
//!   finish much sooner is taken over if no byte of it came, else raced. At most two live requests are for the same unit,
//!   so that duplicates stay below a unit or two for each peer asked at the end.
//! - **Exact blame**: a unit comes from one peer; one that does not verify bans its sender.
//!   Slowness never bans: the last
//!   provider, however slow, is still asked.
//! - **A ban ends only where nobody else can serve**: after a delay that doubles with each ban
//!   ([`BAN`]) the peer is asked
//!   for one unit at a time, so that a link which damaged bytes for a while does not end a transfer.
//! - **A refusal is not for ever**: a peer that does not send what it announced is asked for it
//!   again after a growing delay
//!   ([`REFUSED_BACK_OFF`]), or at once when it announces it anew.
//! - **Under a limit of our own** no more is asked for than comes in the next second, and nobody is taken for slow: what was asked for
//!   first comes first, so that a limit finishes units one after the other.
//! - **Back-off**: after BUSY, a broken connection or a time-out a peer rests, longer each time, and is tried again;
//!   who fails [`MAX_FAILURES`] times in a row is forgotten until it joins anew.
//!
//! # Invariants, checked in debug builds
//!
//! Each unit is exactly one of missing (and then in the picking order), in flight (with at least
//! one request), or had. A peer has no request while it is banned. While units are missing and
//! nothing is in flight, every peer that claims one of them has a timer: no transfer waits for ever
//! for bytes that are there. Bytes in flight stay within the budget, or are those of one request;
//! where the budget was made smaller than what is in flight, they only become fewer until they fit.
//! A unit has at most [`MAX_REQUESTS_PER_UNIT`] requests, each of another peer.
//!
//! # Cost
//!
//! A change in what a peer has or fetches is O(1); bytes arriving, O(log requests). A unit that starts or ends being missing
//! visits every peer once, and all peers together announce each unit at least as often as that. Complete peers cost nothing
//! per unit.
//!
//! # Not here
//!
//! Bytes, hashes, connections, how fast anything may come, and whom to connect to: the driver's.
#![deny(
    clippy::disallowed_methods,
    reason = "pure: time, randomness and I/O come in from outside"
)]

pub(crate) mod availability;
pub(crate) mod config;
pub(crate) mod endgame;
pub(crate) mod estimate;
pub(crate) mod failures;
pub(crate) mod inspect;
#[cfg(any(test, debug_assertions))]
pub(crate) mod invariants;
pub(crate) mod peer;
pub(crate) mod pick;
pub(crate) mod rarity;
pub(crate) mod refusals;
pub(crate) mod requests;
#[cfg(test)]
mod tests;
pub(crate) mod throttle;
pub(crate) mod types;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

pub use self::{config::*, types::*};
use self::{estimate::Estimate, peer::Peer, rarity::RarityOrder, requests::Request};
use potluck_core::bitfield::Bitfield;

/// The state of one transfer. See the [module](self).
#[derive(Debug)]
pub struct Swarm {
    config: SwarmConfig,
    rng: Xoshiro256PlusPlus,
    unit_lens: Vec<u64>,
    /// Length of the longest unit: what has to fit for any request to fit.
    longest_unit: u64,
    have: Bitfield,
    /// Units in flight.
    fetching: Bitfield,
    rarity: RarityOrder,
    /// How many partial peers have each unit.
    holders: Vec<u32>,

    peers: BTreeMap<PeerKey, Peer>,
    /// How many peers that can be counted on are known to be complete, and how many partial.
    complete_peers: u32,
    partial_peers: u32,
    /// When a partial peer last told of something new, and how many units came here since.
    partial_progress: (Time, u32),
    /// Whether partial peers are there and get no further: they are no crowd.
    stalled_crowd: bool,
    /// How many peers have requests.
    active_peers: u32,
    /// Peers to look at: something changed that may let them be asked.
    ready: VecDeque<PeerKey>,
    /// Peers that could be asked were the transfer not at its limits.
    blocked: Vec<PeerKey>,
    timers: BTreeSet<(Time, PeerKey)>,
    /// When the end of the transfer is looked at again.
    endgame_tick: Option<Time>,

    requests: BTreeMap<RequestId, Request>,
    /// The requests of each unit in flight.
    unit_requests: BTreeMap<u32, Vec<RequestId>>,
    /// Units in flight all of whose peers are stalled: open to others.
    open_units: BTreeSet<u32>,
    next_request: u64,
    in_flight_bytes: u64,
    /// Whatever arrives, as if one peer sent it: our own downlink, or the sum of all uplinks.
    downlink: Estimate,
    /// When bytes last waited for our own limit.
    throttled_at: Option<Time>,

    actions: VecDeque<Action>,
    finish_announced: bool,
    counters: Counters,
    #[cfg(any(test, debug_assertions))]
    events: u64,
    /// Most bytes that may be in flight: the budget, or what was in flight when it was made smaller and still is.
    #[cfg(any(test, debug_assertions))]
    in_flight_limit: u64,
}

impl Swarm {
    /// A transfer of units of these lengths in bytes, of which `have` are here already. `seed` decides all that is random:
    /// two peers must not have the same.
    ///
    /// # Panics
    /// If `have` is not of `unit_lens.len()` bits.
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
            holders: vec![0; unit_lens.len()],
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

    /// A peer can be reached; what it has comes with [`Swarm::availability`]. A forgotten or failing one starts anew, a
    /// banned one stays banned until [`Action::Readmit`].
    pub fn peer_joined(&mut self, peer: PeerKey, now: Time) {
        self.add_peer(peer, now);
        self.after_event();
    }

    /// A small message to this peer and its answer took so long, measured where nothing queues: with it the swarm tells a
    /// long link from a long queue, and in a crowd only fills the first. Peers that did not join are ignored.
    pub fn round_trip(&mut self, peer: PeerKey, took: Duration) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.round_trip = Some(peer.round_trip.map_or(took, |min| min.min(took)));
        }
        self.after_event();
    }

    /// A peer is gone: its requests are cancelled, and what it had is no longer counted.
    pub fn peer_left(&mut self, peer: PeerKey, now: Time) {
        self.remove_peer(peer, now);
        self.after_event();
    }

    /// Bytes of a request arrived, not verified yet. They feed the estimates.
    pub fn progressed(&mut self, id: RequestId, bytes: u64, now: Time) {
        self.receive_bytes(id, bytes, now);
        self.after_event();
    }

    /// Bytes of a request wait for our own limit, or for us to verify and write: whoever sent them is not silent, and nobody else would be faster.
    pub fn locally_throttled(&mut self, id: RequestId, now: Time) {
        self.mark_locally_throttled(id, now);
        self.after_event();
    }

    /// The unit of this request verified. Returns whether it was needed: if not, drop the bytes.
    pub fn verified(&mut self, id: RequestId, now: Time) -> bool {
        let needed = self.complete_unit(id, now);
        self.after_event();
        needed
    }

    /// The unit of this request came whole and did not verify: its sender is banned.
    pub fn corrupt(&mut self, id: RequestId, now: Time) {
        self.ban_sender(id, now);
        self.after_event();
    }

    /// A peer broke the protocol, whether it joined or not: it is banned, and its requests are
    /// cancelled.
    pub fn misbehaved(&mut self, peer: PeerKey, now: Time) {
        self.ban_peer(peer, now);
        self.after_event();
    }

    /// The request failed otherwise.
    pub fn failed(&mut self, id: RequestId, failure: Failure, now: Time) {
        self.fail_request(id, failure, now);
        self.after_event();
    }

    /// The unit has to be fetched (again), and nobody is to blame: writing it here failed.
    pub fn reset_unit(&mut self, unit: u32, now: Time) {
        self.refetch(unit, now);
        self.after_event();
    }

    /// Changes how many bytes may be in flight. Where more than that are, nothing is taken back: nothing is asked for beyond
    /// them until they fit.
    pub fn set_max_in_flight_bytes(&mut self, bytes: u64) {
        if bytes != self.config.max_in_flight_bytes {
            self.config.max_in_flight_bytes = bytes;
            self.after_event();
        }
    }

    /// Time passed. To be called when [`Swarm::poll_timeout`] says so; early or late calls do no harm.
    pub fn handle_timeout(&mut self, now: Time) {
        self.expire_timers(now);
        self.after_event();
    }

    /// What to do next. To be called until it gives `None`, after every event.
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

    /// When [`Swarm::handle_timeout`] wants to be called; `None`: only events can change anything.
    pub fn poll_timeout(&self) -> Option<Time> {
        let timer = self.timers.first().map(|&(at, _)| at);
        timer.into_iter().chain(self.endgame_tick).min()
    }

    /// After every event.
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
