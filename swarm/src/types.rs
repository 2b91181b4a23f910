//! The words that the swarm and its driver share.

use std::{ops::Range, time::Duration};

/// Time since the transfer began. The driver reads the clock; the swarm never does.
pub type Time = Duration;

/// A peer, by a number of the driver's choosing. The same peer keeps its number when it leaves and comes back: that is what
/// makes a ban last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey(pub u64);

/// A request, minted by the swarm and never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(crate) u64);

impl RequestId {
    /// Grows from each request to the next.
    pub const fn order(self) -> u64 {
        self.0
    }
}

/// What the driver is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask this peer for this unit. Exactly one of `verified`, `corrupt` and `failed` answers it, unless it is cancelled.
    Request {
        /// What events about it name it by.
        id: RequestId,
        /// Whom to ask.
        peer: PeerKey,
        /// What for.
        unit: u32,
    },
    /// Another peer was faster, or the request was taken back: drop it. Events that still name it are ignored.
    Cancel {
        /// The request.
        id: RequestId,
    },
    /// This peer sent bytes that do not belong to the file. Its other requests are cancelled, and
    /// it is not asked again before [`Action::Readmit`].
    Ban {
        /// The liar.
        peer: PeerKey,
        /// The unit that did not verify.
        unit: u32,
    },
    /// This peer failed too often with nothing good between: close its connections. `peer_joined` re-admits it.
    Forget {
        /// The dead.
        peer: PeerKey,
    },
    /// Nobody else can serve what is missing: connect to this banned peer again. It is asked for
    /// one unit at a time.
    Readmit {
        /// The banned peer.
        peer: PeerKey,
    },
    /// Every unit is there. Comes once, and once more after each `reset_unit` that took one away.
    Finished,
}

/// Why a request failed, apart from wrong bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The peer has no room for it now.
    Busy {
        /// How long it says to wait.
        retry_after: Option<Duration>,
    },
    /// The peer does not have this unit now, whatever it announced. It is asked again later.
    NotAvailable,
    /// The connection broke, or could not be made.
    Disconnected,
    /// The driver's own deadline passed.
    TimedOut,
    /// The peer will not serve this file at all, or breaks the protocol.
    Refused,
}

/// Where a unit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitState {
    /// Not here, and nobody is asked for it.
    Missing,
    /// This many peers are asked for it; at least one.
    InFlight(u32),
    /// Verified.
    Have,
}

/// Where a peer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerPhase {
    /// What it has is not known yet.
    Joining,
    /// Has nothing that is needed and not asked for already.
    Idle,
    /// Sends, or is about to.
    Active,
    /// Silent for longer than its estimates allow: others may take over what it was asked for.
    Stalled,
    /// Left alone until then.
    BackedOff {
        /// When it will be asked again.
        until: Time,
    },
    /// Refused all that is needed of what it has; asked again then.
    Refusing {
        /// When it will be asked again.
        until: Time,
    },
    /// Sent bad bytes or broke the protocol; not asked again before then, nor while others can
    /// serve.
    Banned {
        /// The unit that did not verify, if that was it.
        unit: Option<u32>,
        /// When it may be asked again.
        until: Time,
    },
}

/// A peer as `why` shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerView {
    /// The peer.
    pub key: PeerKey,
    /// Where it stands.
    pub phase: PeerPhase,
    /// Whether it has every unit.
    pub is_complete: bool,
    /// How many units it has.
    pub units: u32,
    /// How many of those are missing here and not asked for.
    pub useful_units: u32,
    /// How many of these it refused, and when it is asked for some of them again.
    pub refused: Option<(u32, Time)>,
    /// Whether it was banned and is asked again, for one unit at a time, because nobody else can
    /// serve.
    pub on_probation: bool,
    /// Requests in flight.
    pub requests: u32,
    /// Requests the swarm would keep in flight now.
    pub pipeline_depth: u32,
    /// Estimated throughput in bytes a second, once something arrived.
    pub rate: Option<f64>,
    /// Estimated time from a request to its first byte.
    pub latency: Option<Duration>,
    /// Bytes it sent, duplicates and bad ones included.
    pub bytes: u64,
    /// Bytes of units that it sent, verified and first.
    pub verified_bytes: u64,
    /// Its last failure, cleared by nothing: the driver shows it beside the state.
    pub last_failure: Option<Failure>,
}

/// A run of units that are not here, alike in where they could come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingRun {
    /// The units.
    pub units: Range<u32>,
    /// How many peers have all of them, banned ones left out.
    pub providers: u32,
    /// Whether somebody is asked for them now.
    pub in_flight: bool,
}

/// Why nothing is asked for although the transfer is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StuckReason {
    /// No peer is known.
    NoPeers,
    /// Every peer that is known is banned; the first may be asked again then.
    AllBanned {
        /// When.
        until: Time,
    },
    /// Peers are there, but what they have is not known yet.
    NoAvailability,
    /// No peer has any of the units still missing.
    NoProvider {
        /// How many units are missing.
        units: u32,
    },
    /// Everyone who has something needed refused it; the first is asked again then.
    Refused {
        /// When.
        until: Time,
        /// How often the one that refused least often was asked again in vain.
        tries: u32,
    },
    /// Everyone who has something needed is backed off; the first is tried again then.
    BackedOff {
        /// When.
        until: Time,
    },
}

/// What the transfer cost so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that arrived, of whatever worth.
    pub received_bytes: u64,
    /// Bytes of units that verified and were needed.
    pub verified_bytes: u64,
    /// Bytes that arrived for requests that lost a race or were taken back.
    pub duplicate_bytes: u64,
    /// Bytes of units that did not verify.
    pub corrupt_bytes: u64,
    /// Requests made.
    pub requests: u64,
    /// Requests made for a unit that another peer was already sending.
    pub hedges: u64,
    /// Requests taken from a slow peer and given to a faster one.
    pub steals: u64,
    /// Most bytes that were in flight at once.
    pub peak_in_flight_bytes: u64,
}
