//! The events that the driver of a download waits for.

use std::{sync::Arc, time::Duration};

use potluck_swarm::PeerKey;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, Interval},
};
use tokio_util::sync::CancellationToken;

use crate::download::{
    engine::{driver::limits::ActiveLimits, request::RequestEvent},
    peers::{
        discovery::{PeerCandidate, PeerCandidates},
        event::PeerEvent,
    },
};

/// Interval between updates of the status.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);

/// Capacity of the channel for request events.
const REQUEST_EVENTS: usize = 1024;

/// Capacity of the channel for peer events: small, because one event can list every unit.
const PEER_EVENTS: usize = 64;

/// Maximum events that are handled before the next actions: a loop turn costs more than an event,
/// and requests must still go out while a crowd sends events.
const MAX_BATCH: usize = 64;

/// An event of a running download.
#[derive(Debug)]
pub(super) enum DriverEvent {
    /// The download must stop.
    Stopped,
    /// An event of a request.
    Request(RequestEvent),
    /// An event of a peer.
    Peer(PeerKey, PeerEvent),
    /// The list of candidates changed.
    Candidates(Arc<Vec<PeerCandidate>>),
    /// The limits or the budget changed.
    LimitsChanged,
    /// The reader's window ends at this unit now.
    WindowMoved(u32),
    /// It is time to update the status.
    ReportDue,
    /// It is time to check the full disk.
    DiskCheckDue,
    /// A timer of the swarm expired.
    SwarmTimeout,
}

/// The deadlines of one wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadlines {
    pub(super) swarm: Option<Instant>,
    pub(super) disk: Option<Instant>,
}

/// The sources of events from outside the driver.
#[derive(Debug)]
pub(crate) struct DriverSignals {
    /// The candidates that discovery finds.
    pub(crate) candidates: watch::Receiver<PeerCandidates>,
    /// For a download that is read in order: the end of the window, in units.
    pub(crate) window: Option<watch::Receiver<u32>>,
    /// Stops the download.
    pub(crate) stop: CancellationToken,
}

/// Receives all events of one download.
#[derive(Debug)]
pub(super) struct DriverEvents {
    signals: DriverSignals,
    requests: mpsc::Receiver<RequestEvent>,
    peers: mpsc::Receiver<(PeerKey, PeerEvent)>,
    report: Interval,
    /// Events that may still join the current batch.
    left_in_batch: usize,
}

/// The senders of the channels that [`DriverEvents`] receives from.
#[derive(Debug)]
pub(super) struct EventSenders {
    pub(super) requests: mpsc::Sender<RequestEvent>,
    pub(super) peers: mpsc::Sender<(PeerKey, PeerEvent)>,
}

impl DriverEvents {
    pub(super) fn new(signals: DriverSignals) -> (Self, EventSenders) {
        let (request_sender, requests) = mpsc::channel(REQUEST_EVENTS);
        let (peer_sender, peers) = mpsc::channel(PEER_EVENTS);
        let events = Self {
            signals,
            requests,
            peers,
            report: tokio::time::interval(REPORT_INTERVAL),
            left_in_batch: 0,
        };
        let senders = EventSenders {
            requests: request_sender,
            peers: peer_sender,
        };
        (events, senders)
    }

    /// The candidates known now.
    pub(super) fn candidates(&mut self) -> Arc<Vec<PeerCandidate>> {
        Arc::clone(&self.signals.candidates.borrow_and_update().list)
    }

    /// Waits for an event, the first of a batch.
    pub(super) async fn next(
        &mut self,
        limits: &mut ActiveLimits,
        deadlines: Deadlines,
    ) -> DriverEvent {
        self.left_in_batch = MAX_BATCH - 1;
        // All arms are cancel-safe: channels and timers lose nothing if another arm completes.
        tokio::select! {
            () = self.signals.stop.cancelled() => DriverEvent::Stopped,
            Some(event) = self.requests.recv() => DriverEvent::Request(event),
            Some((peer, event)) = self.peers.recv() => DriverEvent::Peer(peer, event),
            Ok(()) = self.signals.candidates.changed() => {
                DriverEvent::Candidates(self.candidates())
            }
            () = limits.changed() => DriverEvent::LimitsChanged,
            end = next_window(&mut self.signals.window) => DriverEvent::WindowMoved(end),
            _ = self.report.tick() => DriverEvent::ReportDue,
            () = sleep_until(deadlines.disk) => DriverEvent::DiskCheckDue,
            () = sleep_until(deadlines.swarm) => DriverEvent::SwarmTimeout,
        }
    }

    /// The next event of the batch, if one has already arrived and the batch is not full. The caller
    /// must handle it: a result that is lost leaves its unit in flight forever.
    pub(super) fn next_in_batch(&mut self) -> Option<DriverEvent> {
        self.left_in_batch = self.left_in_batch.checked_sub(1)?;
        if let Ok(event) = self.requests.try_recv() {
            return Some(DriverEvent::Request(event));
        }
        let (peer, event) = self.peers.try_recv().ok()?;
        Some(DriverEvent::Peer(peer, event))
    }
}

/// The next end of the reader's window, if there is a reader.
async fn next_window(window: &mut Option<watch::Receiver<u32>>) -> u32 {
    if let Some(window) = window
        && window.changed().await.is_ok()
    {
        return *window.borrow_and_update();
    }
    std::future::pending().await
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_batch_leaves_the_other_events_for_the_next_one() {
        let (_candidates, candidates) = watch::channel(PeerCandidates::default());
        let signals = DriverSignals {
            candidates,
            window: None,
            stop: CancellationToken::new(),
        };
        let (mut events, senders) = DriverEvents::new(signals);
        for key in 0..PEER_EVENTS as u64 {
            let event = (PeerKey(key), PeerEvent::UnitCountMismatch);
            senders.peers.try_send(event).unwrap();
        }
        let mut keys = Vec::new();
        for _ in 0..PEER_EVENTS {
            events.left_in_batch = 10;
            while let Some(DriverEvent::Peer(PeerKey(key), _)) = events.next_in_batch() {
                keys.push(key);
            }
        }
        assert_eq!(keys, Vec::from_iter(0..PEER_EVENTS as u64));
    }
}
