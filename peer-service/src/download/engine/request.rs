//! One call of a running download: requests units from one peer, assembles them, and has them
//! verified and written.
//!
//! Invariant: each request ends with exactly one final event, or with at most one if its token is
//! cancelled.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use potluck_core::{Problem, Reason};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    content::BadPieces,
    download::{
        engine::{
            active::ActiveDownload,
            assembler::{ReadAhead, StreamError, UnexpectedData, UnitAssembler},
            chunk_list::ChunkList,
            disk_pool::DiskPool,
            rate_limit::TransferRateLimiter,
        },
        peers::client::{DATA_TIMEOUT, PeerClient},
        storage::target,
    },
};
use potluck_swarm::{Failure, PeerKey, RequestId};

/// How long a stream may take to end after its last byte; then it is dropped.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes between progress reports: arriving data exceeds this unless a peer sends tiny chunks.
const PROGRESS_STEP: u64 = 64 * 1024;

/// Minimum interval between progress reports of a unit: a few reports suffice to measure a fast
/// peer.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(5);

/// Interval between reports that data waits for a local limit or disk: shorter than any stall
/// timeout.
const THROTTLED_INTERVAL: Duration = Duration::from_millis(200);

/// Minimum delay before a busy peer is asked for the rest of a unit.
const BUSY_RETRY: Duration = Duration::from_millis(250);

/// Maximum of that delay.
const MAX_BUSY_RETRY: Duration = Duration::from_secs(5);

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
    Corrupt(String),
    /// The unit failed verification; with a description and the bad pieces, if they can be
    /// identified.
    Unverified(String, Option<BadPieces>),
    /// The unit was verified but could not be written.
    NotWritten(Problem),
    /// The unit did not arrive.
    Failed(Failure, Problem),
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

/// Everything that a call needs.
#[derive(Debug, Clone)]
pub(crate) struct RequestTask {
    pub(crate) download: Arc<ActiveDownload>,
    /// The pool that verifies and writes the units.
    pub(crate) disk: Arc<DiskPool>,
    /// Limits the rate of the download.
    pub(crate) rate_limiter: Arc<TransferRateLimiter>,
    pub(crate) peer: PeerKey,
    pub(crate) client: PeerClient,
    pub(crate) events: mpsc::Sender<RequestEvent>,
    /// Tracks the work that the call starts.
    pub(crate) tasks: TaskTracker,
}

impl RequestTask {
    /// Requests the units until each has arrived, failed or been cancelled.
    pub(crate) async fn run(self, requests: Vec<UnitRequest>) {
        let mut rest = VecDeque::from(requests);
        let mut alone = false;
        loop {
            rest.retain(|request| !request.token.is_cancelled());
            if rest.is_empty() || self.events.is_closed() {
                return;
            }
            match self.request_remaining(&mut rest, alone).await {
                CallEnd::Retry => {}
                CallEnd::OneByOne => alone = true,
                CallEnd::FailAll(failure, problem) => {
                    for request in rest {
                        self.send_event(&request, RequestOutcome::Failed(failure, problem.clone()))
                            .await;
                    }
                    return;
                }
                CallEnd::ProtocolViolation(what) => {
                    // The ban that follows cancels the other requests. If the request was cancelled
                    // meanwhile, no ban follows and the others count as failed.
                    if let Some(request) = rest.pop_front() {
                        self.send_event(&request, RequestOutcome::Corrupt(what.clone()))
                            .await;
                    }
                    let problem = Problem::new(Reason::VerificationFailed, what);
                    for request in rest {
                        self.send_event(
                            &request,
                            RequestOutcome::Failed(Failure::Refused, problem.clone()),
                        )
                        .await;
                    }
                    return;
                }
            }
        }
    }

    async fn send_event(&self, request: &UnitRequest, outcome: RequestOutcome) {
        let event = RequestEvent {
            peer: self.peer,
            id: request.id,
            unit: request.unit,
            outcome,
        };
        // The send fails only if the download is over.
        let _ = self.events.send(event).await;
    }

    /// Calls `Download` for all of `rest`, or only for its first unit, and removes the units that
    /// arrive. Under a rate limit it makes several calls.
    async fn request_remaining(&self, rest: &mut VecDeque<UnitRequest>, alone: bool) -> CallEnd {
        let count = if alone { 1 } else { rest.len() };
        let units: Vec<u32> = rest.iter().take(count).map(|request| request.unit).collect();
        let mut assembler = UnitAssembler::new(self.download.part_file.plan(), &units);
        let mut progress = UnreportedProgress::new();
        while let (Some(_), Some(request)) = (assembler.current(), rest.front().cloned()) {
            let ranges = assembler.next_ranges(self.rate_limiter.max_request_bytes());
            // Dropping the call or the stream resets it at the peer, so no partial state remains.
            let opened = tokio::select! {
                () = request.token.cancelled() => return CallEnd::Retry,
                opened = self.client.download(&ranges) => opened,
            };
            let stream = match opened {
                Ok(stream) => stream,
                Err(problem) if assembler.has_partial_unit() && is_busy(problem.reason) => {
                    // Waits to keep the partial unit. If the peer stays busy, the swarm cancels the
                    // request.
                    let wait = problem
                        .retry_after
                        .unwrap_or(BUSY_RETRY)
                        .clamp(BUSY_RETRY, MAX_BUSY_RETRY);
                    tokio::select! {
                        () = request.token.cancelled() => return CallEnd::Retry,
                        () = tokio::time::sleep(wait) => continue,
                    }
                }
                Err(problem) => return self.handle_status(rest, count > 1, problem).await,
            };
            let mut incoming = ReadAhead::new(stream, assembler.outstanding_bytes());
            if let Err(ended) = self
                .receive(rest, &mut assembler, &mut incoming, &mut progress)
                .await
            {
                return ended;
            }
        }
        CallEnd::Retry
    }

    /// Receives the data of one call and submits each complete unit.
    async fn receive(
        &self,
        rest: &mut VecDeque<UnitRequest>,
        assembler: &mut UnitAssembler,
        incoming: &mut ReadAhead,
        progress: &mut UnreportedProgress,
    ) -> Result<(), CallEnd> {
        while let (true, Some(request)) = (assembler.outstanding_bytes() > 0, rest.front().cloned()) {
            let Some(part) = incoming.pop() else {
                if self
                    .wait_locally(&request, self.disk.wait_for_space())
                    .await
                    .is_none()
                {
                    return Err(CallEnd::Retry);
                }
                let read = tokio::select! {
                    () = request.token.cancelled() => return Err(CallEnd::Retry),
                    read = tokio::time::timeout(DATA_TIMEOUT, incoming.read()) => read,
                };
                match read {
                    Ok(Ok(())) => continue,
                    Ok(Err(broken)) => return Err(self.handle_stream_error(rest, broken).await),
                    Err(_) => {
                        let problem = Problem::new(Reason::TimedOut, "fell silent in the middle of a unit");
                        return Err(CallEnd::FailAll(Failure::TimedOut, problem));
                    }
                }
            };
            let mut waiting = part.data.len() as u64;
            while waiting > 0 {
                let step = self.rate_limiter.next_step(waiting);
                if let Err(broken) = self.wait_for_rate(step, &request, incoming, progress).await {
                    return Err(match broken {
                        Some(broken) => self.handle_stream_error(rest, broken).await,
                        None => CallEnd::Retry,
                    });
                }
                waiting -= step;
                progress.unreported += step;
                if progress.is_due() {
                    self.send_event(&request, progress.take()).await;
                }
            }
            let taken = match assembler.push(part) {
                Ok(taken) => taken,
                Err(error) => return Err(CallEnd::ProtocolViolation(error.to_string())),
            };
            if taken.is_some() && progress.unreported > 0 {
                self.send_event(&request, progress.take()).await;
            }
            if assembler.outstanding_bytes() == 0
                && tokio::time::timeout(END_TIMEOUT, incoming.has_trailing_data()).await == Ok(true)
            {
                return Err(CallEnd::ProtocolViolation(UnexpectedData::TooMuch.to_string()));
            }
            if let Some((_, data)) = taken {
                rest.pop_front();
                self.submit_unit(request, data).await;
            }
        }
        Ok(())
    }

    /// Waits until this many bytes are allowed and meanwhile reports that they arrived, so that the
    /// peer does not count as stalled. Continues to read ahead.
    ///
    /// # Errors
    /// If the stream fails; `Err(None)` if the unit is no longer wanted.
    async fn wait_for_rate(
        &self,
        bytes: u64,
        request: &UnitRequest,
        incoming: &mut ReadAhead,
        progress: &mut UnreportedProgress,
    ) -> Result<(), Option<StreamError>> {
        let mut allowed = std::pin::pin!(self.rate_limiter.acquire(bytes, request.id));
        loop {
            let beat = progress
                .throttled_at
                .map_or_else(Instant::now, |held| held + THROTTLED_INTERVAL);
            // All arms are cancel-safe: a dropped acquisition gives its bytes back, and unread data
            // stays in the stream.
            tokio::select! {
                biased;
                () = &mut allowed => return Ok(()),
                () = request.token.cancelled() => return Err(None),
                read = incoming.read(), if incoming.can_read() => read?,
                () = tokio::time::sleep_until(beat) => {
                    progress.throttled_at = Some(Instant::now());
                    if progress.unreported > 0 {
                        self.send_event(request, progress.take()).await;
                    }
                    self.send_event(request, RequestOutcome::LocallyThrottled).await;
                }
            }
        }
    }

    /// Waits for local work, such as a slow disk, and reports it so that the peer does not count as
    /// stalled. `None` if the unit is no longer wanted.
    async fn wait_locally<T>(&self, request: &UnitRequest, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            // The work is pinned outside the loop, so polling the other arms does not drop it.
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = request.token.cancelled() => return None,
                () = tokio::time::sleep(THROTTLED_INTERVAL) => self.send_event(request, RequestOutcome::LocallyThrottled).await,
            }
        }
    }

    async fn handle_stream_error(&self, rest: &mut VecDeque<UnitRequest>, broken: StreamError) -> CallEnd {
        match broken {
            StreamError::Unexpected(error) => CallEnd::ProtocolViolation(error.to_string()),
            StreamError::Truncated => {
                let problem = Problem::new(Reason::NotPotluck, "ended the stream before all was sent");
                CallEnd::FailAll(Failure::Refused, problem)
            }
            StreamError::Failed(problem) => self.handle_status(rest, false, problem).await,
        }
    }

    /// Queues a unit for verification and writing while the next one arrives.
    async fn submit_unit(&self, request: UnitRequest, data: ChunkList) {
        let space = self.wait_locally(&request, self.disk.acquire(data.len())).await;
        let Some(space) = space.flatten() else {
            return;
        };
        // Reserved now, so that reporting the result never waits. Fails only if the download is
        // over.
        let Ok(slot) = self.events.clone().reserve_owned().await else {
            return;
        };
        let (download, tasks, peer) = (Arc::clone(&self.download), self.tasks.clone(), self.peer);
        let work = move || {
            let UnitRequest { id, unit, token } = request;
            // Registered before the check of the token: once a caller has cancelled the token and
            // sees no registered work, none starts later.
            let _counted = tasks.token();
            if token.is_cancelled() {
                return;
            }
            let slot = Some(slot);
            let guard = CompletionGuard { slot, peer, id, unit };
            let outcome = match download.verifier.verify(unit, &data) {
                false => RequestOutcome::Unverified(
                    format!("unit {unit} failed verification"),
                    download.verifier.bad_pieces(unit, &data),
                ),
                // Another peer delivered the unit first; the bytes are already on disk.
                true if download.has(unit) => RequestOutcome::Verified,
                true => match download.part_file.write(unit, &data) {
                    Ok(()) => RequestOutcome::Verified,
                    Err(error) => RequestOutcome::NotWritten(target::target_problem(
                        &download.part_file.target().path,
                        &error,
                    )),
                },
            };
            drop((data, download));
            guard.complete(outcome);
        };
        self.disk
            .submit(space, &self.download.part_file.target().path, work);
    }

    /// Maps a status to the fate of the open requests. `any`: the status may concern any of them.
    async fn handle_status(&self, rest: &mut VecDeque<UnitRequest>, any: bool, problem: Problem) -> CallEnd {
        let failure = match problem.reason {
            reason if is_busy(reason) => Failure::Busy {
                retry_after: problem.retry_after,
            },
            Reason::PieceNotAvailable | Reason::NotFound | Reason::FileChanged => Failure::NotAvailable,
            Reason::TimedOut => Failure::TimedOut,
            // This machine lacks file descriptors; that is temporary and not the peer's fault.
            Reason::Unreachable | Reason::Cancelled | Reason::ShuttingDown | Reason::TooManyOpenFiles => {
                Failure::Disconnected
            }
            _ => Failure::Refused,
        };
        if failure == Failure::NotAvailable {
            if any {
                return CallEnd::OneByOne;
            }
            // Only the unit being sent fails; the peer may have the others.
            if let Some(request) = rest.pop_front() {
                self.send_event(&request, RequestOutcome::Failed(failure, problem))
                    .await;
            }
            return CallEnd::Retry;
        }
        CallEnd::FailAll(failure, problem)
    }
}

/// The pending result of a request. If it is dropped without a result, for example after a panic,
/// it reports a failure; otherwise the unit would stay in flight forever.
struct CompletionGuard {
    slot: Option<mpsc::OwnedPermit<RequestEvent>>,
    peer: PeerKey,
    id: RequestId,
    unit: u32,
}

impl CompletionGuard {
    fn complete(mut self, outcome: RequestOutcome) {
        self.send(outcome);
    }

    fn send(&mut self, outcome: RequestOutcome) {
        if let Some(slot) = self.slot.take() {
            slot.send(RequestEvent {
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
        if self.slot.is_some() {
            let problem = Problem::new(
                Reason::Internal,
                "a unit could not be verified: see the peer's log",
            );
            self.send(RequestOutcome::Failed(Failure::Refused, problem));
        }
    }
}

/// Bytes that arrived and were not reported.
#[derive(Debug)]
struct UnreportedProgress {
    unreported: u64,
    reported: Instant,
    /// When the request last reported that data waits for a local limit.
    throttled_at: Option<Instant>,
}

impl UnreportedProgress {
    fn new() -> Self {
        Self {
            unreported: 0,
            reported: Instant::now(),
            throttled_at: None,
        }
    }

    fn is_due(&self) -> bool {
        self.unreported >= PROGRESS_STEP && self.reported.elapsed() >= PROGRESS_INTERVAL
    }

    /// Takes the unreported bytes as an event.
    fn take(&mut self) -> RequestOutcome {
        self.reported = Instant::now();
        RequestOutcome::Progress(std::mem::take(&mut self.unreported))
    }
}

const fn is_busy(reason: Reason) -> bool {
    matches!(reason, Reason::Busy | Reason::RateLimited)
}

/// How a call ended.
enum CallEnd {
    /// Call again for the remaining units, if any.
    Retry,
    /// The peer lacks one of the units, without saying which; request them one by one.
    OneByOne,
    /// The remaining units will not arrive.
    FailAll(Failure, Problem),
    /// The peer violated the protocol.
    ProtocolViolation(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use potluck_core::{availability::Availability, bitfield::Bitfield};
    use potluck_swarm::{Action, Swarm, SwarmConfig};

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
    async fn a_request_whose_verification_panics_fails() {
        let (tell, mut event) = mpsc::channel(1);
        for panics in [true, false] {
            let guard = CompletionGuard {
                slot: Some(tell.clone().reserve_owned().await.unwrap()),
                peer: PeerKey(1),
                id: request(),
                unit: 3,
            };
            let work = tokio::task::spawn_blocking(move || {
                assert!(!panics, "a defect");
                guard.complete(RequestOutcome::Verified);
            });
            assert_eq!(work.await.is_err(), panics);
            match event.try_recv().unwrap().outcome {
                RequestOutcome::Failed(..) if panics => {}
                RequestOutcome::Verified if !panics => {}
                other => panic!("{other:?}"),
            }
            assert!(event.try_recv().is_err(), "told once");
        }
    }
}
