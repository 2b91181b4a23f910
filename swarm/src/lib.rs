//! The scheduler of one download: which unit to request from which peer, and when.
//!
//! A state machine without I/O, clock or source of randomness. The driver reports events: what
//! peers have, bytes that arrived, units that verified or failed. It executes the actions that
//! [`Swarm::poll_action`] returns, and calls back at the time that [`Swarm::poll_timeout`] returns.
//! Time is a parameter and the random order comes from a seed, so every run can be replayed.
//!
//! # Scheduling
//!
//! - **Rarest first.** Rarity counts what other peers have and what they are fetching; ties are
//!   broken at random. A crowd therefore requests each unit from its seed about once.
//! - **In order, for a reader.** A download that is read while it arrives requests the earliest
//!   missing unit first, and nothing beyond a window that moves with the reader
//!   ([`Swarm::in_order`]). Within the window the rules of the endgame hold, so a slow peer does not
//!   keep the reader waiting.
//! - **Pipeline depth follows the link.** The bytes outstanding at a peer follow its throughput
//!   times its latency. In a crowd nothing is queued beyond that, since a queue at one peer delays
//!   all the others.
//! - **No waiting for slow peers.** Other peers may fetch the units of a stalled peer. In the
//!   endgame, a request that another peer would finish much sooner is stolen if none of its bytes
//!   arrived, and hedged otherwise. A unit has at most two live requests, so duplicates stay below
//!   a unit or two for each peer that has requests in the endgame.
//! - **Exact blame.** A unit comes from one peer. If it does not verify, its sender is banned.
//!   Slowness never bans: even the slowest provider still gets requests if it is the last.
//! - **A reserve is spared.** An origin has every unit and is costly ([`Swarm::reserve_joined`]). It
//!   is asked for units that no peer has and nobody fetches; for others only after nothing arrived
//!   for a while (`RESERVE_PATIENCE`), since what strangers claim to have may not come.
//! - **Near peers first.** A peer that is more distant than others is asked only for units that no
//!   nearer one has or fetches, so a unit enters a rack or a zone about once. Short trials show
//!   whether the download would be faster without this; then distance does not count
//!   ([`Swarm::set_distance`]).
//! - **A ban ends only if no other peer can serve.** After a delay that doubles with each ban
//!   ([`BAN`]), the peer gets one request at a time, so a link that damaged bytes for a while does
//!   not end a download.
//! - **Refusals are temporary.** If a peer does not send a unit that it announced, the unit is
//!   requested again after a growing delay (`REFUSED_BACK_OFF`), or immediately when the peer
//!   announces it again.
//! - **Local rate limit.** While bytes wait for the driver's own limit, the swarm requests no more
//!   than arrives in the next second and regards no peer as slow. Requests complete in the order in
//!   which they were made, so the limit finishes one unit after another.
//! - **Back-off.** After BUSY, a broken connection or a timeout a peer is backed off, longer each
//!   time, and tried again. After `MAX_FAILURES` failures in a row it is forgotten until it joins
//!   again.
//!
//! # Invariants, checked in debug builds
//!
//! - Each unit is exactly one of missing (and then in the picking order), in flight (with at least
//!   one request), verified, or beyond the window of a reader.
//! - A banned peer has no requests.
//! - While units are missing and nothing is in flight, every peer that claims one of them has a
//!   timer: no download waits forever for bytes that are available.
//! - Bytes in flight stay within the budget, or belong to a single request. After the budget was
//!   reduced below the bytes in flight, they only decrease until they fit.
//! - A unit has at most `MAX_REQUESTS_PER_UNIT` requests, each to another peer.
//!
//! # Cost
//!
//! A change in the availability of a peer is O(1); arriving bytes are O(log requests). A unit that
//! becomes missing or stops being missing visits every peer once; all peers together announce each
//! unit at least as often. Complete peers cost nothing per unit.
//!
//! # Non-goals
//!
//! The driver handles bytes, hashes, connections and rate limits, and chooses the peers to connect
//! to.
#![deny(
    clippy::disallowed_methods,
    reason = "pure: time, randomness and I/O come in from outside"
)]

mod config;
mod scheduler;
mod state;
mod types;

pub use self::{
    config::{BAN, CROWD_PEERS, MAX_BAN, MAX_IN_FLIGHT_BYTES, RESERVE_REQUEST_BYTES, SwarmConfig},
    scheduler::Swarm,
    types::*,
};
