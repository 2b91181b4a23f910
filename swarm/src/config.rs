//! The settings of a swarm; each default states its reason.

use std::time::Duration;

/// Maximum bytes in flight (requested and not yet verified) over all peers, regardless of the unit
/// size. Enough for 5 Gbit/s over 100 ms, and for four sources in parallel with units of 16 MiB.
/// All downloads together hold about this much in memory: several downloads divide it among them.
pub const MAX_IN_FLIGHT_BYTES: u64 = 64 << 20;

/// Maximum number of simultaneous requests for one unit, including those to stalled peers.
pub(crate) const MAX_REQUESTS_PER_UNIT: usize = 3;

/// Maximum bytes in flight from one peer. Enough for twice 1 Gbit/s over 60 ms, the bytes on the
/// wire and the requests queued behind them; no single peer can use the whole budget.
pub(crate) const MAX_PEER_BYTES: u64 = 16 << 20;

/// Maximum number of requests to one peer, regardless of their size: each is a stream, or part of
/// one, at the other end.
pub(crate) const MAX_PEER_REQUESTS: u32 = 64;

/// Maximum number of peers with requests in a crowd. A peer can upload a unit only when it has all
/// of it, so in a large crowd a peer must not request units from everyone at once. With too few
/// peers, uplinks idle: in the simulator 8 of 16 peers took 1.7 times the bound, 16 of 16 took 1.1
/// times.
pub const CROWD_PEERS: u32 = 24;

/// Silence of all partial peers after which they are not a crowd: four times the longest interval
/// at which a peer announces its changes.
pub(crate) const CROWD_STALL: Duration = Duration::from_secs(1);

/// Number of units that must also have completed here: in a crowd, other peers get theirs about as
/// fast.
pub(crate) const CROWD_STALL_UNITS: u32 = 16;

/// Data to keep in flight with a complete provider beyond the link's own delay, as time at its
/// rate. Covers verification and the driver's scheduling, and lets the driver request neighbouring
/// units in one call.
pub(crate) const PIPELINE_SLACK: Duration = Duration::from_millis(20);

/// Longest silence before other peers may fetch a peer's units. A silent peer costs at most this
/// and the time of one unit.
pub(crate) const MAX_STALL: Duration = Duration::from_millis(1500);

/// Shortest such silence: less would mistake a scheduling delay for a failure.
pub(crate) const MIN_STALL: Duration = Duration::from_millis(250);

/// Silence after which a request times out and the peer is backed off.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// How often the endgame looks for requests that another peer would finish sooner.
pub(crate) const ENDGAME_TICK: Duration = Duration::from_millis(50);

/// First back-off after a broken connection or a timeout; doubles with each failure in a row.
pub(crate) const BACK_OFF: Duration = Duration::from_millis(500);

/// Longest back-off: a peer that comes back is noticed within this time.
pub(crate) const MAX_BACK_OFF: Duration = Duration::from_secs(30);

/// First back-off after BUSY without a delay from the peer; doubles with each BUSY in a row.
pub(crate) const BUSY_BACK_OFF: Duration = Duration::from_millis(50);

/// Longest back-off after BUSY, with or without a delay from the peer: slots become free sooner
/// than connections recover.
pub(crate) const MAX_BUSY_BACK_OFF: Duration = Duration::from_secs(5);

/// First delay before refused units are requested again; doubles with each refusal in a row. A peer
/// that hashes a small file again needs a few milliseconds.
pub(crate) const REFUSED_BACK_OFF: Duration = Duration::from_millis(250);

/// Longest such delay: units that become available again are noticed within this time.
pub(crate) const MAX_REFUSED_BACK_OFF: Duration = Duration::from_secs(30);

/// Number of requests that all peers together keep at a reserve, if that is more than one each. Origins often
/// limit the rate of each connection.
pub(crate) const RESERVE_REQUESTS: u64 = 6;

/// Maximum bytes of one request to a reserve; a larger unit has a request of its own. Large enough
/// that a round trip for each costs little, and small enough that several soon run side by side.
pub const RESERVE_REQUEST_BYTES: u64 = 512 << 10;

/// Time without a verified unit after which a reserve is asked for units that peers have or fetch.
/// Longer than peers with little bandwidth take for a unit in a crowd, and short compared with a
/// download that needs a reserve.
pub(crate) const RESERVE_PATIENCE: Duration = Duration::from_secs(3);

/// In a crowd, the longest random wait before a request to a reserve once few units are left: peers
/// learn within this time what the others chose. Otherwise several choose the same of the last
/// units, and each costs the reserve a copy.
pub(crate) const RESERVE_HOLD: Duration = Duration::from_millis(100);

/// Number of units left for each peer of the crowd at which these waits begin.
pub(crate) const RESERVE_HOLD_UNITS: u32 = 8;

/// The longest random wait before a unit is requested from a distant peer that is new to the zone:
/// near peers learn within this time what the others chose. Otherwise each of them fetches a copy.
pub(crate) const DISTANT_HOLD: Duration = Duration::from_millis(150);

/// Time for which distant peers are held back before the first trial without that; doubles with each
/// trial that showed no gain. Long enough for near peers to reach their speed; near peers that are
/// slow cost little more than this.
pub(crate) const TRIAL_INTERVAL: Duration = Duration::from_secs(2);

/// Longest such time: a trial costs bytes from other zones, and near peers may become slow.
pub(crate) const MAX_TRIAL_INTERVAL: Duration = Duration::from_secs(60);

/// Time after a change before its effect is measured: two long round trips.
pub(crate) const TRIAL_SETTLE: Duration = Duration::from_millis(250);

/// Time for which the effect is measured: many chunks of every peer.
pub(crate) const TRIAL: Duration = Duration::from_millis(400);

/// Time without any byte after which distant peers are asked for everything.
pub(crate) const STARVED: Duration = Duration::from_millis(400);

/// Delay before a banned peer may be readmitted, if no other peer can serve; doubles with each ban.
/// Long enough that a misbehaving peer costs next to nothing, short enough to wait for if a link
/// damaged the bytes of an honest peer.
pub const BAN: Duration = Duration::from_secs(30);

/// Longest delay before a banned peer may be readmitted.
pub const MAX_BAN: Duration = Duration::from_secs(600);

/// Number of units that a readmitted peer must deliver before it gets more than one request at a
/// time.
pub(crate) const PROBATION_UNITS: u32 = 32;

/// How often to check whether a peer whose ban is over must be readmitted: only if no other peer
/// can serve.
pub(crate) const READMISSION_INTERVAL: Duration = Duration::from_secs(1);

/// Failures in a row before a peer is forgotten: about two minutes of retries.
pub(crate) const MAX_FAILURES: u32 = 10;

/// The limits of one swarm.
#[derive(Debug, Clone, PartialEq)]
pub struct SwarmConfig {
    /// Maximum bytes in flight; default [`MAX_IN_FLIGHT_BYTES`]. One request is always allowed,
    /// however large its unit.
    /// [`Swarm::set_max_in_flight_bytes`](crate::Swarm::set_max_in_flight_bytes) changes it later.
    pub max_in_flight_bytes: u64,
    /// Maximum bytes in flight from one peer, 16 MiB unless set. One request is always
    /// allowed, however large its unit.
    pub max_peer_bytes: u64,
    /// Maximum number of requests to one peer, 64 unless set.
    pub max_peer_requests: u32,
    /// Maximum number of peers with requests in a crowd; default [`CROWD_PEERS`].
    pub crowd_peers: u32,
}

impl Default for SwarmConfig {
    fn default() -> Self {
        Self {
            max_in_flight_bytes: MAX_IN_FLIGHT_BYTES,
            max_peer_bytes: MAX_PEER_BYTES,
            max_peer_requests: MAX_PEER_REQUESTS,
            crowd_peers: CROWD_PEERS,
        }
    }
}
