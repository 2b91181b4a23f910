//! The requests of a call, and the events that it reports.
//!
//! Invariant: each request ends with exactly one final event, or with at most one if its token is
//! cancelled.

use potluck_core::{Problem, Reason};
use potluck_swarm::{Failure, PeerKey, RequestId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::content::BadPieces;

/// A request for one unit within a call.
#[derive(Debug, Clone)]
pub(crate) struct UnitRequest {
    /// The swarm's id of the request.
    pub(crate) id: RequestId,
    /// The requested unit.
    pub(crate) unit: u32,
    /// Cancelled when the unit is no longer wanted.
    pub(crate) token: CancellationToken,
}

/// Progress or the final result of a request.
#[derive(Debug)]
pub(crate) enum RequestOutcome {
    /// This many more bytes arrived, unverified.
    Progress(u64),
    /// The request waits for the local rate limit or for local verification and writing.
    LocallyThrottled,
    /// The unit was verified and written.
    Verified,
    /// The peer violated the protocol; with a description.
    ProtocolViolation(String),
    /// The unit failed verification; with a description and the bad pieces, if they can be
    /// identified.
    Unverified(String, Option<BadPieces>),
    /// The unit was verified but could not be written.
    NotWritten(Problem),
    /// The unit did not arrive.
    Failed(Failure, Problem),
    /// The origin will not send the unit, nor any other.
    OriginFailed(Problem),
}

/// An event from a call to the driver.
#[derive(Debug)]
pub(crate) struct RequestEvent {
    /// The peer of the call.
    pub(crate) peer: PeerKey,
    /// The request.
    pub(crate) id: RequestId,
    /// The unit of the request.
    pub(crate) unit: u32,
    /// What happened.
    pub(crate) outcome: RequestOutcome,
}

/// The pending result of a request. If it is dropped without a result, for example after a panic,
/// it reports a failure; otherwise the unit would stay in flight forever.
#[derive(Debug)]
pub(super) struct CompletionGuard {
    permit: Option<mpsc::OwnedPermit<RequestEvent>>,
    peer: PeerKey,
    id: RequestId,
    unit: u32,
}

impl CompletionGuard {
    /// `permit` sends the result of this request to the driver.
    pub(super) const fn new(
        permit: mpsc::OwnedPermit<RequestEvent>,
        peer: PeerKey,
        id: RequestId,
        unit: u32,
    ) -> Self {
        Self {
            permit: Some(permit),
            peer,
            id,
            unit,
        }
    }

    /// Reports the result.
    pub(super) fn complete(mut self, outcome: RequestOutcome) {
        self.send(outcome);
    }

    fn send(&mut self, outcome: RequestOutcome) {
        if let Some(permit) = self.permit.take() {
            permit.send(RequestEvent {
                peer: self.peer,
                id: self.id,
                unit: self.unit,
                outcome,
            });
        }
    }
}

impl Drop for CompletionGuard {
    fn drop(&mut self) {
        if self.permit.is_some() {
            let problem = Problem::new(
                Reason::Internal,
                "verifying a unit failed because of a defect: see the peer's log",
            );
            self.send(RequestOutcome::Failed(Failure::Refused, problem));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use potluck_core::{availability::Availability, bitfield::Bitfield};
    use potluck_swarm::{Action, Swarm, SwarmConfig};

    use super::*;

    fn request() -> RequestId {
        let (peer, now) = (PeerKey(1), Duration::ZERO);
        let mut swarm = Swarm::new(SwarmConfig::default(), vec![10], Bitfield::new(1), 1);
        swarm.peer_joined(peer, now);
        let (have, fetching) = (Bitfield::full(1), Bitfield::new(1));
        swarm.availability(peer, &Availability { have, fetching }, now);
        match swarm.poll_action(now) {
            Some(Action::Request { id, .. }) => id,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_request_fails_if_its_verification_panics() {
        let (sender, mut events) = mpsc::channel(1);
        for panics in [true, false] {
            let permit = sender.clone().reserve_owned().await.unwrap();
            let guard = CompletionGuard::new(permit, PeerKey(1), request(), 3);
            let work = tokio::task::spawn_blocking(move || {
                assert!(!panics, "a defect");
                guard.complete(RequestOutcome::Verified);
            });
            assert_eq!(work.await.is_err(), panics);
            match events.try_recv().unwrap().outcome {
                RequestOutcome::Failed(..) if panics => {}
                RequestOutcome::Verified if !panics => {}
                other => panic!("{other:?}"),
            }
            assert!(events.try_recv().is_err(), "reported once");
        }
    }
}
