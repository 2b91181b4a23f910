//! One peer of a download, and the state of its connection.

use potluck_core::{
    Problem,
    model::{Address, Labels},
};
use rand::RngExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::download::peers::{discovery::PeerCandidate, host::Host, rpc::client::PeerClient};

/// The connection state of a peer, apart from the swarm's view of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConnectionState {
    /// Waits for a connection slot.
    Waiting,
    /// A connection is being opened.
    Connecting,
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
    /// Where the peer says that it is.
    pub(crate) labels: Labels,
    /// The last error.
    pub(crate) last_error: Option<String>,
    /// The violation of the last ban, kept after the peer is readmitted.
    pub(crate) last_violation: Option<String>,
    /// Verified bytes received from the peer, over all its connections.
    pub(crate) bytes: u64,
    pub(super) host: Host,
    /// Whether the index or the user names the peer now.
    pub(super) is_listed: bool,
    /// Consecutive failures.
    pub(super) failures: u32,
    /// Ends the task that keeps the peer connected.
    pub(super) stop: CancellationToken,
    /// Deadline after which the peer counts as silent if it has not answered.
    pub(super) overdue_at: Instant,
    /// A random rank, so that the peers of a crowd do not all choose the same few.
    pub(super) tie_breaker: u64,
}

impl PeerEntry {
    /// A peer that waits for a connection slot.
    pub(super) fn new(candidate: PeerCandidate, stop: CancellationToken) -> Self {
        Self {
            host: Host::from(&candidate.address),
            candidate,
            connection: ConnectionState::Waiting,
            client: None,
            labels: Labels::default(),
            last_error: None,
            last_violation: None,
            bytes: 0,
            is_listed: true,
            failures: 0,
            stop,
            overdue_at: Instant::now(),
            tie_breaker: rand::rng().random(),
        }
    }

    /// Whether the peer waits for a connection slot.
    pub(super) fn is_waiting(&self) -> bool {
        self.connection == ConnectionState::Waiting
    }

    /// Whether the peer is banned.
    pub(super) const fn is_banned(&self) -> bool {
        matches!(self.connection, ConnectionState::Banned(_))
    }

    /// Whether the peer occupies a connection slot.
    pub(super) const fn holds_slot(&self) -> bool {
        matches!(
            self.connection,
            ConnectionState::Connecting | ConnectionState::Connected | ConnectionState::Lost(_)
        )
    }

    /// Whether the peer is connecting and has passed its deadline.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.connection == ConnectionState::Connecting && self.overdue_at <= now
    }

    /// Whether the peer must stay known while it is not listed: it is in use, has sent bytes, or
    /// was banned.
    pub(super) const fn must_be_kept(&self) -> bool {
        let is_away = matches!(
            self.connection,
            ConnectionState::Waiting | ConnectionState::Lost(_)
        );
        !is_away || self.bytes > 0 || self.last_violation.is_some()
    }

    /// Records that the peer is listed. If it was not until now, it has just registered, for example
    /// with a new certificate: it is tried again without the delay after its failures.
    pub(super) fn mark_listed(&mut self) {
        let was_away = !std::mem::replace(&mut self.is_listed, true);
        let is_failing =
            self.failures > 0 && !self.is_banned() && self.connection != ConnectionState::Connected;
        if was_away && is_failing {
            self.close();
            self.failures = 0;
            self.connection = ConnectionState::Waiting;
        }
    }

    /// Records the peer's new address.
    pub(super) fn move_to(&mut self, address: &Address) {
        self.candidate.address = address.clone();
        self.host = Host::from(address);
    }

    /// Closes the connection and ends its task; the caller sets the new state.
    pub(super) fn close(&mut self) {
        self.stop.cancel();
        self.client = None;
    }
}
