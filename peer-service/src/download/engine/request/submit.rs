//! What all calls of a download share: events, waits, and the way of a unit to the disk.

use std::{sync::Arc, time::Duration};

use potluck_swarm::PeerKey;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::download::{
    engine::{
        active::ActiveDownload,
        chunk_list::ChunkList,
        disk_pool::DiskPool,
        rate_limit::DownloadRateLimiter,
        request::event::{CompletionGuard, RequestEvent, RequestOutcome, UnitRequest},
    },
    origin::{pieces::Sender, source::OriginSource},
    storage::target,
};

/// Interval between reports that data waits for a local limit or disk: shorter than any stall
/// timeout.
pub(super) const THROTTLED_INTERVAL: Duration = Duration::from_millis(200);

/// The state that all calls of a download share.
#[derive(Debug, Clone)]
pub(crate) struct CallContext {
    pub(crate) download: Arc<ActiveDownload>,
    /// The pool that verifies and writes the units.
    pub(crate) disk: Arc<DiskPool>,
    /// Limits the rate of the download.
    pub(crate) rate_limiter: Arc<DownloadRateLimiter>,
    /// Receives the events of all calls.
    pub(crate) events: mpsc::Sender<RequestEvent>,
    /// Tracks the calls and the work that they start.
    pub(crate) tracker: TaskTracker,
    /// The origin of the content, if there is one.
    pub(crate) origin: Option<Arc<OriginSource>>,
}

impl CallContext {
    /// Sends an event to the driver.
    pub(crate) async fn send_event(
        &self,
        peer: PeerKey,
        request: &UnitRequest,
        outcome: RequestOutcome,
    ) {
        let event = RequestEvent {
            peer,
            id: request.id,
            unit: request.unit,
            outcome,
        };
        // The send fails only if the download is over.
        let _ = self.events.send(event).await;
    }

    /// Waits for local work, such as a slow disk, and reports it so that the peer does not count as
    /// stalled. `None` if the unit is no longer wanted.
    pub(crate) async fn wait_locally<T>(
        &self,
        peer: PeerKey,
        request: &UnitRequest,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            // The work is pinned outside the loop, so polling the other arms does not drop it.
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = request.token.cancelled() => return None,
                () = tokio::time::sleep(THROTTLED_INTERVAL) => {
                    self.send_event(peer, request, RequestOutcome::LocallyThrottled).await;
                }
            }
        }
    }

    /// Queues a unit of a peer for verification and writing while the next one arrives. A unit of
    /// provisional content may be compared with the origin first.
    pub(super) async fn submit_peer_unit(
        &self,
        peer: PeerKey,
        request: UnitRequest,
        data: ChunkList,
    ) {
        let span = self.download.part_file.plan().spans(request.unit).next();
        let chosen = self.origin.as_ref().zip(span).and_then(|(origin, span)| {
            let receivers = self.download.receivers();
            let range =
                origin.choose_check(peer, span.offset..span.offset + span.len, receivers)?;
            Some((Arc::clone(origin), span.offset, range))
        });
        let Some((origin, start, range)) = chosen else {
            return self.submit_unit(Sender::Peer(peer), peer, request, data).await;
        };
        let context = self.clone();
        // The next unit arrives meanwhile. Dropping it when the token is cancelled is safe.
        self.tracker.spawn(async move {
            let compare = origin.agrees(range, start, &data);
            match context.wait_locally(peer, &request, compare).await {
                Some(true) => {
                    context.submit_unit(Sender::Peer(peer), peer, request, data).await;
                }
                Some(false) => {
                    let unit = request.unit;
                    let outcome = RequestOutcome::Unverified(
                        format!("piece {unit} differs from the origin"),
                        None,
                    );
                    context.send_event(peer, &request, outcome).await;
                }
                None => {}
            }
        });
    }

    /// Queues a unit for verification and writing while the next one arrives.
    pub(crate) async fn submit_unit(
        &self,
        sender: Sender,
        peer: PeerKey,
        request: UnitRequest,
        data: ChunkList,
    ) {
        let space = self
            .wait_locally(peer, &request, self.disk.acquire(data.len()))
            .await;
        let Some(space) = space.flatten() else {
            return;
        };
        // Reserved now, so that reporting the result never waits. Fails only if the download is
        // over.
        let Ok(permit) = self.events.clone().reserve_owned().await else {
            return;
        };
        let (download, tracker) = (Arc::clone(&self.download), self.tracker.clone());
        let work = move || {
            let UnitRequest { id, unit, token } = request;
            // Tracked before the check of the token: once a caller has cancelled the token and the
            // tracker is empty, no work starts later.
            let _tracked = tracker.token();
            if token.is_cancelled() {
                return;
            }
            let guard = CompletionGuard::new(permit, peer, id, unit);
            let outcome = verify_and_write(&download, unit, &data, sender);
            drop((data, download));
            guard.complete(outcome);
        };
        let target = &self.download.part_file.target().path;
        self.disk.submit(space, target, work);
    }
}

fn verify_and_write(
    download: &ActiveDownload,
    unit: u32,
    data: &ChunkList,
    sender: Sender,
) -> RequestOutcome {
    let write = || download.part_file.write(unit, data);
    let written = match &download.pieces {
        Some(pieces) => match download.verifier.unit_hash(unit, data) {
            Some(hash) => pieces.write(unit, hash, sender, write),
            None => {
                return RequestOutcome::ProtocolViolation(format!(
                    "unit {unit} has a wrong length"
                ));
            }
        },
        None if !download.verifier.verify(unit, data) => {
            return RequestOutcome::Unverified(
                format!("unit {unit} failed verification"),
                download.verifier.bad_pieces(unit, data),
            );
        }
        // Another peer delivered the unit first; the bytes are already on disk.
        None if download.has(unit) => Ok(()),
        None => write(),
    };
    match written {
        Ok(()) => RequestOutcome::Verified,
        Err(error) => RequestOutcome::NotWritten(target::target_problem(
            &download.part_file.target().path,
            &error,
        )),
    }
}
