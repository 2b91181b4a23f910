//! Keeps one peer connected: connects, passes on its events, and reconnects with backoff.
//!
//! Invariant: a peer sends at most one event per [`EVENT_PAUSE`], however many it offers.

use std::time::Duration;

use futures_util::StreamExt as _;
use potluck_core::{FileId, PeerId, Problem, Reason, availability::AvailabilityUpdate};
use rand::RngExt as _;
use tokio::sync::mpsc;

use crate::download::{
    outgoing::Outgoing,
    peers::{
        discovery::PeerCandidate,
        event::PeerEvent,
        rpc::{availability::WatchError, client::PeerClient},
    },
};
use potluck_swarm::PeerKey;

/// First delay before reconnecting to a lost peer; doubles up to [`MAX_RETRY`].
const RETRY: Duration = Duration::from_millis(500);

/// Maximum of that delay.
const MAX_RETRY: Duration = Duration::from_secs(30);

/// Minimum interval between events of one peer. HTTP/2 flow control slows a faster sender; no
/// honest peer is faster.
const EVENT_PAUSE: Duration = Duration::from_millis(5);

/// Minimum pause after a repeated snapshot: it costs more than a change, and an honest peer needs
/// longer to hash a file again.
const SNAPSHOT_PAUSE: Duration = Duration::from_millis(250);

/// Delay before connecting to a peer with this many consecutive failures.
pub(crate) fn backoff(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        _ => (RETRY * (1 << (failures - 1).min(10))).min(MAX_RETRY),
    }
}

/// The state that the connectors of all peers of a download share.
#[derive(Debug, Clone)]
pub(crate) struct ConnectorContext {
    /// The id of the content.
    pub(crate) id: FileId,
    /// The number of units.
    pub(crate) units: u32,
    /// The id of this peer, which is never asked.
    pub(crate) own_id: PeerId,
    /// How connections are opened.
    pub(crate) outgoing: Outgoing,
    /// Receives the events of all peers.
    pub(crate) events: mpsc::Sender<(PeerKey, PeerEvent)>,
}

/// Keeps one peer connected and passes on its availability.
#[derive(Debug)]
pub(crate) struct PeerConnector {
    pub(crate) key: PeerKey,
    pub(crate) candidate: PeerCandidate,
    pub(crate) context: ConnectorContext,
}

impl PeerConnector {
    /// Runs until the receiver is dropped or the peer is unusable. After failures it starts with a
    /// delay.
    pub(crate) async fn run(self, mut ready: Option<PeerClient>, failures: u32) {
        let mut wait = backoff(failures).max(RETRY);
        if failures > 0 && ready.is_none() {
            tokio::time::sleep(wait).await;
        }
        loop {
            let started = tokio::time::Instant::now();
            let problem = match self.run_connection(ready.take()).await {
                Ok(()) => return,
                Err(problem) => problem,
            };
            let is_unusable = matches!(
                problem.reason,
                Reason::VerificationFailed | Reason::InvalidAddress | Reason::Cancelled
            );
            let event = if is_unusable {
                PeerEvent::Unusable(problem)
            } else {
                PeerEvent::Lost(problem)
            };
            if self.send_event(event).await.is_none() || is_unusable {
                return;
            }
            if started.elapsed() > MAX_RETRY {
                wait = RETRY;
            }
            let jitter = rand::rng().random_range(0.75..1.25);
            tokio::time::sleep(wait.mul_f64(jitter)).await;
            wait = (wait * 2).min(MAX_RETRY);
        }
    }

    async fn send_event(&self, event: PeerEvent) -> Option<()> {
        self.context.events.send((self.key, event)).await.ok()
    }

    /// Runs one connection until it is lost; `Ok` if the receiver was dropped.
    async fn run_connection(&self, ready: Option<PeerClient>) -> Result<(), Problem> {
        let ConnectorContext {
            id, units, own_id, ..
        } = self.context;
        let client = match ready {
            Some(client) => client,
            None => {
                let PeerCandidate { address, peer } = &self.candidate;
                PeerClient::open(address, *peer, &self.context.outgoing).await?
            }
        };
        if self.candidate.peer.is_none() && client.describe(id).await?.peer == own_id {
            return Err(Problem::new(
                Reason::Cancelled,
                "the address is that of this peer itself",
            ));
        }
        let sent_at = tokio::time::Instant::now();
        let mut updates = std::pin::pin!(client.availability(id, units).await?);
        let round_trip = sent_at.elapsed();
        if self
            .send_event(PeerEvent::Connected(Box::new(client.clone()), round_trip))
            .await
            .is_none()
        {
            return Ok(());
        }
        let mut is_first = true;
        while let Some(report) = updates.next().await {
            let report = match report {
                Ok(report) => report,
                Err(WatchError::UnitCountMismatch(problem)) => {
                    self.send_event(PeerEvent::UnitCountMismatch).await;
                    return Err(problem);
                }
                Err(WatchError::Failed(problem)) => return Err(problem),
            };
            let is_repeated = matches!(report.update, AvailabilityUpdate::Snapshot(_))
                && !std::mem::take(&mut is_first);
            if self.send_event(PeerEvent::Availability(report)).await.is_none() {
                return Ok(());
            }
            let pause = if is_repeated { SNAPSHOT_PAUSE } else { EVENT_PAUSE };
            tokio::time::sleep(pause).await;
        }
        Err(Problem::new(
            Reason::Unreachable,
            format!("the peer at {} ended the stream", self.candidate.address),
        ))
    }
}
