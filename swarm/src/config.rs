//! The settings of a swarm, each default with its reason.

use std::time::Duration;

/// Bytes asked for and not yet verified, over all peers, whatever the size of units: enough for 5 Gbit/s over 100 ms, and for
/// four sources at once where units are of 16 MiB. What all transfers together hold in memory is about this: where several
/// run, each has a part of it.
pub const MAX_IN_FLIGHT_BYTES: u64 = 64 << 20;

/// Most requests for one unit at once, those to stalled peers included.
pub const MAX_REQUESTS_PER_UNIT: usize = 3;

/// The same for one peer: enough for 1 Gbit/s over 60 ms twice over, as what is on its way and what waits for that to arrive, and no
/// single peer can take the whole budget.
pub const MAX_PEER_BYTES: u64 = 16 << 20;

/// Requests at once to one peer, whatever their size: each is a stream or part of one at the other end.
pub const MAX_PEER_REQUESTS: u32 = 64;

/// Peers asked at once in a crowd. A unit is worth nothing to others before its last byte, so a large crowd must not ask
/// everyone for everything at once; but too few starve uplinks: in the simulator 8 of 16 peers took 1.7 times the bound,
/// where 16 of 16 took 1.1 times.
pub const CROWD_PEERS: u32 = 24;

/// Silence of all partial peers after which they are no crowd: four times the longest that a peer gathers its news for.
pub const CROWD_STALL: Duration = Duration::from_secs(1);

/// Units that must have come here meanwhile: in a crowd others get theirs about as fast.
pub const CROWD_STALL_UNITS: u32 = 16;

/// How much data beyond the link's own delay is kept in flight with a complete source, as time at its rate: covers the
/// hash check and the driver's scheduling, and lets the driver ask for neighbours in one call.
pub const PIPELINE_SLACK: Duration = Duration::from_millis(20);

/// Longest silence before a peer's units are open to others. A silent source costs at most this and one unit's time.
pub const MAX_STALL: Duration = Duration::from_millis(1500);

/// Shortest such silence: less would take a scheduler's hiccup for a failure.
pub const MIN_STALL: Duration = Duration::from_millis(250);

/// Silence before a request is given up and the peer backed off.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// How often the end of a transfer looks for requests that another peer would finish sooner.
pub const ENDGAME_TICK: Duration = Duration::from_millis(50);

/// First back-off after a broken connection or a time-out; doubles with each failure in a row.
pub const BACK_OFF: Duration = Duration::from_millis(500);

/// Longest back-off: a peer that comes back is noticed within this time.
pub const MAX_BACK_OFF: Duration = Duration::from_secs(30);

/// First back-off after BUSY without a stated delay; doubles with each in a row.
pub const BUSY_BACK_OFF: Duration = Duration::from_millis(50);

/// Longest back-off after BUSY, stated or not: slots change hands faster than connections break.
pub const MAX_BUSY_BACK_OFF: Duration = Duration::from_secs(5);

/// First delay before a peer is asked again for units that it refused; doubles while it refuses
/// them. A source that hashes a small file again needs a few milliseconds.
pub const REFUSED_BACK_OFF: Duration = Duration::from_millis(250);

/// Longest such delay: units that are back are noticed within this time.
pub const MAX_REFUSED_BACK_OFF: Duration = Duration::from_secs(30);

/// Delay before a banned peer is asked again where nobody else can serve; doubles with each ban.
/// Long enough that a misbehaving peer costs next to nothing, and short enough to wait for where a
/// link damaged what an honest one sent.
pub const BAN: Duration = Duration::from_secs(30);

/// Longest such delay.
pub const MAX_BAN: Duration = Duration::from_secs(600);

/// Units that a banned peer which is asked again has to send before it is asked for more than one
/// at a time.
pub const PROBATION_UNITS: u32 = 32;

/// How often it is looked at whether others can serve in place of a peer that was banned.
pub const BAN_LOOK: Duration = Duration::from_secs(1);

/// Failures in a row before a peer is forgotten: about two minutes of trying.
pub const MAX_FAILURES: u32 = 10;

/// How a swarm behaves.
#[derive(Debug, Clone, PartialEq)]
pub struct SwarmConfig {
    /// [`MAX_IN_FLIGHT_BYTES`]. One request is always allowed, however large its unit. Can be changed on the way
    /// ([`Swarm::set_max_in_flight_bytes`](crate::Swarm::set_max_in_flight_bytes)).
    pub max_in_flight_bytes: u64,
    /// [`MAX_PEER_BYTES`]. One request is always allowed, however large its unit.
    pub max_peer_bytes: u64,
    /// [`MAX_PEER_REQUESTS`].
    pub max_peer_requests: u32,
    /// [`CROWD_PEERS`].
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
