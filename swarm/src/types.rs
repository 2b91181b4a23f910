//! The types that the swarm and its driver exchange.

use std::{ops::Range, time::Duration};

/// Time since the download began. The driver reads the clock; the swarm never does.
pub type Time = Duration;

/// A peer, as a number that the driver chooses. A peer that leaves and comes back must keep its
/// number: otherwise a ban does not last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey(pub u64);

/// A request. The swarm creates the id and never reuses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(crate) u64);

impl RequestId {
    /// The position of this request among all requests; later requests have higher numbers.
    pub const fn order(self) -> u64 {
        self.0
    }
}

/// An instruction to the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Request this unit from this peer. Exactly one of `verified`, `corrupt` and `failed` must
    /// answer it, unless it is cancelled.
    Request {
        /// Identifies the request in events.
        id: RequestId,
        /// The peer to send the request to.
        peer: PeerKey,
        /// The requested unit.
        unit: u32,
    },
    /// Drop this request: another peer was faster, or the swarm gave it up. Events that still name
    /// it are ignored.
    Cancel {
        /// The request.
        id: RequestId,
    },
    /// This peer sent bytes that do not belong to the file. Its other requests are cancelled, and
    /// it gets no new ones before [`Action::Readmit`].
    Ban {
        /// The peer that sent the bytes.
        peer: PeerKey,
        /// The unit that did not verify.
        unit: u32,
    },
    /// This peer failed too often in a row: close its connections. `peer_joined` readmits it.
    Forget {
        /// The failed peer.
        peer: PeerKey,
    },
    /// No other peer can serve the missing units: connect to this banned peer again. It gets one
    /// request at a time.
    Readmit {
        /// The banned peer.
        peer: PeerKey,
    },
    /// Every unit is verified. Emitted once, and again after each `reset_unit` that made a unit
    /// missing.
    Finished,
}

/// The reason why a request failed, other than bad bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The peer has no free slot now.
    Busy {
        /// The delay that the peer asks for.
        retry_after: Option<Duration>,
    },
    /// The peer does not have this unit now, even if it announced it. The unit is requested again
    /// later.
    NotAvailable,
    /// The connection broke, or could not be made.
    Disconnected,
    /// The driver's own deadline passed.
    TimedOut,
    /// The peer does not serve this file at all, or violates the protocol.
    Refused,
}

/// The state of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerPhase {
    /// Its availability is not known yet.
    Joining,
    /// Has no unit that is missing and not requested yet.
    Idle,
    /// Has requests in flight.
    Active,
    /// Silent for longer than its estimates allow: other peers may fetch its units.
    Stalled,
    /// Gets no requests before `until`.
    BackedOff {
        /// When it is tried again.
        until: Time,
    },
    /// Refused every missing unit that it has.
    Refusing {
        /// When some of them are requested again.
        until: Time,
    },
    /// Sent bad bytes or violated the protocol. Gets no requests before `until`, nor while other
    /// peers can serve.
    Banned {
        /// The unit that did not verify; `None` after a protocol violation.
        unit: Option<u32>,
        /// The earliest time at which it may be readmitted.
        until: Time,
    },
}

/// A snapshot of one peer, as the `why` command shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerView {
    /// The peer.
    pub key: PeerKey,
    /// Its state.
    pub phase: PeerPhase,
    /// Whether it has every unit.
    pub is_complete: bool,
    /// Number of units it has.
    pub units: u32,
    /// Number of its units that are missing here and not requested.
    pub useful_units: u32,
    /// Number of these units that it refused, and when some of them are requested again.
    pub refused: Option<(u32, Time)>,
    /// Whether it was banned and readmitted, so that it gets one request at a time while no other
    /// peer can serve.
    pub on_probation: bool,
    /// Requests in flight.
    pub requests: u32,
    /// Number of requests that the swarm would keep in flight now.
    pub pipeline_depth: u32,
    /// Estimated throughput in bytes per second; `None` before the first estimate.
    pub rate: Option<f64>,
    /// Estimated time from a request to its first byte.
    pub latency: Option<Duration>,
    /// Bytes received from it, including duplicate and bad ones.
    pub bytes: u64,
    /// Bytes of the units that it was the first to deliver and that verified.
    pub verified_bytes: u64,
    /// Its last failure; later successes do not clear it.
    pub last_failure: Option<Failure>,
}

/// A run of missing units with the same number of providers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingRun {
    /// The units.
    pub units: Range<u32>,
    /// Number of peers that have all of them, without banned peers.
    pub providers: u32,
    /// Whether they are in flight now.
    pub in_flight: bool,
}

/// The reason why nothing is in flight although the download is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StuckReason {
    /// No peer is known.
    NoPeers,
    /// Every known peer is banned.
    AllBanned {
        /// When the first may be readmitted.
        until: Time,
    },
    /// Peers have joined, but the availability of none is known yet.
    NoAvailability,
    /// No peer has any of the units still missing.
    NoProvider {
        /// Number of missing units.
        units: u32,
    },
    /// Every peer that has a missing unit refused it.
    Refused {
        /// When a unit is requested again from the first peer.
        until: Time,
        /// Number of retry rounds without success, of the peer with the fewest.
        tries: u32,
    },
    /// Every peer that has a missing unit is backed off.
    BackedOff {
        /// When the first peer is tried again.
        until: Time,
    },
}

/// Transfer statistics of the download so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// All bytes that arrived.
    pub received_bytes: u64,
    /// Bytes of units that verified and were needed.
    pub verified_bytes: u64,
    /// Bytes that arrived for requests that lost a hedge, were cancelled or failed.
    pub duplicate_bytes: u64,
    /// Bytes of units that did not verify.
    pub corrupt_bytes: u64,
    /// Requests made.
    pub requests: u64,
    /// Requests for a unit that was in flight from another peer already.
    pub hedges: u64,
    /// Requests taken from a slow peer and given to a faster one.
    pub steals: u64,
    /// The maximum of bytes in flight.
    pub peak_in_flight_bytes: u64,
}
