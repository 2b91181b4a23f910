//! One call of a running transfer: requests for units of one peer, from the question to verified bytes on disk.
//!
//! Invariant: each request ends in exactly one event, unless its token is cancelled; then in at most one.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use potluck_core::{Problem, Reason};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    content::BadPieces,
    download::{
        engine::{
            active::ActiveDownload,
            assembler::{ReadAhead, StreamError, UnitAssembler},
            chunk_list::ChunkList,
            disk_pool::DiskPool,
            rate_limit::TransferRateLimiter,
        },
        peers::client::{DATA_TIMEOUT, PeerClient},
        storage::target,
    },
};
use potluck_swarm::{Failure, PeerKey, RequestId};

/// How long the end of a stream may take after its last byte; past that it is dropped.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes after which progress is reported: what comes at once is more unless a peer sends crumbs.
const PROGRESS_STEP: u64 = 64 * 1024;

/// Least pause between two reports of the same unit: a fast peer's rate is as well known from a few.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(5);

/// How often it is said that bytes wait for our own limit, or to be verified and written: sooner than any silence counts as one.
const THROTTLED_INTERVAL: Duration = Duration::from_millis(200);

/// Least wait before a busy peer is asked for the rest of a unit.
const BUSY_RETRY: Duration = Duration::from_millis(250);

/// Longest such wait.
const MAX_BUSY_RETRY: Duration = Duration::from_secs(5);

/// A request as a call carries it.
#[derive(Debug, Clone)]
pub(crate) struct UnitRequest {
    /// What the swarm calls it.
    pub(crate) id: RequestId,
    /// What for.
    pub(crate) unit: u32,
    /// Cancelled when it is not wanted any more.
    pub(crate) token: CancellationToken,
}

/// What came of requests.
#[derive(Debug)]
pub(crate) enum RequestOutcome {
    /// So many bytes more came, not verified.
    Progress(u64),
    /// What came, or comes next, waits for our own limit, or for us to verify and write what came before.
    LocallyThrottled,
    /// Verified and written.
    Verified,
    /// Not what it should be; what was wrong.
    Corrupt(String),
    /// Failed verification: what to say of that, and which pieces it was, where that can be told.
    Unverified(String, Option<BadPieces>),
    /// Verified, and could not be written.
    NotWritten(Problem),
    /// Did not come.
    Failed(Failure, Problem),
}

/// Something that a call tells the driver.
#[derive(Debug)]
pub(crate) struct RequestEvent {
    /// Of whom.
    pub(crate) peer: PeerKey,
    /// Which request.
    pub(crate) id: RequestId,
    /// For which unit.
    pub(crate) unit: u32,
    /// What came of it.
    pub(crate) outcome: RequestOutcome,
}

/// Everything a call needs.
#[derive(Debug, Clone)]
pub(crate) struct RequestTask {
    pub(crate) download: Arc<ActiveDownload>,
    /// Where it is written to.
    pub(crate) disk: Arc<DiskPool>,
    /// How fast the transfer may be.
    pub(crate) rate_limiter: Arc<TransferRateLimiter>,
    pub(crate) peer: PeerKey,
    pub(crate) client: PeerClient,
    pub(crate) events: mpsc::Sender<RequestEvent>,
    /// Where what it starts is counted.
    pub(crate) tasks: TaskTracker,
}

impl RequestTask {
    /// Asks for the units until each has come, failed or been cancelled.
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
                    // The ban that follows cancels the others. Where none follows, as the request
                    // was taken back meanwhile, they failed.
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
        // Nobody listens any more: the transfer is over.
        let _ = self.events.send(event).await;
    }

    /// `Download` for all of `rest`, or for its first alone; takes from it what came. Where there is a limit, in several calls.
    async fn request_remaining(&self, rest: &mut VecDeque<UnitRequest>, alone: bool) -> CallEnd {
        let count = if alone { 1 } else { rest.len() };
        let units: Vec<u32> = rest.iter().take(count).map(|request| request.unit).collect();
        let mut assembly = UnitAssembler::new(self.download.part_file.plan(), &units);
        let mut progress = UnreportedProgress::new();
        while let (Some(_), Some(request)) = (assembly.current(), rest.front().cloned()) {
            let spans = assembly.next_spans(self.rate_limiter.max_request_bytes());
            // Dropping the call or the stream resets it at the other end: nothing is half taken.
            let opened = tokio::select! {
                () = request.token.cancelled() => return CallEnd::Retry,
                opened = self.client.download(spans) => opened,
            };
            let stream = match opened {
                Ok(stream) => stream,
                Err(problem) if assembly.has_partial_unit() && is_busy(problem.reason) => {
                    // For a part of a unit the rest is not given up; where the peer stays busy, the swarm takes the unit back.
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
            let mut incoming = ReadAhead::new(stream, assembly.outstanding_bytes());
            if let Err(ended) = self
                .receive(rest, &mut assembly, &mut incoming, &mut progress)
                .await
            {
                return ended;
            }
        }
        CallEnd::Retry
    }

    /// All that one call brings; what completes a unit is handed on.
    async fn receive(
        &self,
        rest: &mut VecDeque<UnitRequest>,
        assembly: &mut UnitAssembler,
        incoming: &mut ReadAhead,
        progress: &mut UnreportedProgress,
    ) -> Result<(), CallEnd> {
        while let (true, Some(request)) = (assembly.outstanding_bytes() > 0, rest.front().cloned()) {
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
            let taken = match assembly.push(part) {
                Ok(taken) => taken,
                Err(error) => return Err(CallEnd::ProtocolViolation(error.to_string())),
            };
            if taken.is_some() && progress.unreported > 0 {
                self.send_event(&request, progress.take()).await;
            }
            if assembly.outstanding_bytes() == 0
                && tokio::time::timeout(END_TIMEOUT, incoming.has_trailing_data()).await == Ok(true)
            {
                return Err(CallEnd::ProtocolViolation(
                    "it sent more than was asked for".into(),
                ));
            }
            if let Some((_, data)) = taken {
                rest.pop_front();
                self.submit_unit(request, data).await;
            }
        }
        Ok(())
    }

    /// Waits until so many bytes may count, and meanwhile says that they are here: whoever sent them is not silent. What comes behind
    /// them is read. Fails where that cannot be, or with nothing where the unit is not wanted any more.
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
            // All arms are cancel-safe: what is not wanted any more is not waited for, and what is not read stays in the stream.
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

    /// Waits for what takes time here, such as a disk that writes nothing for a while, and says so: whoever was asked is not silent. `None`
    /// where the unit is not wanted any more.
    async fn wait_locally<T>(&self, request: &UnitRequest, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            // The work is pinned outside: polling the other arms loses nothing of it.
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

    /// Has a unit verified and written, while the next comes in.
    async fn submit_unit(&self, request: UnitRequest, data: ChunkList) {
        let space = self.wait_locally(&request, self.disk.acquire(data.len())).await;
        let Some(space) = space.flatten() else {
            return;
        };
        // Kept free from now on, so that telling never waits. Nobody listens any more: the transfer is over.
        let Ok(slot) = self.events.clone().reserve_owned().await else {
            return;
        };
        let (download, tasks, peer) = (Arc::clone(&self.download), self.tasks.clone(), self.peer);
        let work = move || {
            let UnitRequest { id, unit, token } = request;
            // Counted before it is asked whether to begin: whoever cancelled it and counts none finds nothing begun later.
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
                // Another peer was faster: the bytes are there.
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

    /// What a status means for the requests that are still open. `any`: it could speak of any of them.
    async fn handle_status(&self, rest: &mut VecDeque<UnitRequest>, any: bool, problem: Problem) -> CallEnd {
        let failure = match problem.reason {
            reason if is_busy(reason) => Failure::Busy {
                retry_after: problem.retry_after,
            },
            Reason::PieceNotAvailable | Reason::NotFound | Reason::FileChanged => Failure::NotAvailable,
            Reason::TimedOut => Failure::TimedOut,
            // A lack of file descriptors is this machine's own, and passes.
            Reason::Unreachable | Reason::Cancelled | Reason::ShuttingDown | Reason::TooManyOpenFiles => {
                Failure::Disconnected
            }
            _ => Failure::Refused,
        };
        if failure == Failure::NotAvailable {
            if any {
                return CallEnd::OneByOne;
            }
            // Only the unit that was being sent: the others may be there.
            if let Some(request) = rest.pop_front() {
                self.send_event(&request, RequestOutcome::Failed(failure, problem))
                    .await;
            }
            return CallEnd::Retry;
        }
        CallEnd::FailAll(failure, problem)
    }
}

/// What came of a request, still to be told. Dropped untold, as where the work on it panicked, it tells that the request failed:
/// otherwise its unit would be on its way for ever.
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

/// What came and was not reported yet.
#[derive(Debug)]
struct UnreportedProgress {
    unreported: u64,
    reported: Instant,
    /// When it was last said that bytes wait for our own limit.
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

    /// What to tell, and nothing is left to be told.
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
    /// Ask again for what is left, if anything is.
    Retry,
    /// One of them cannot be had, and it is not said which.
    OneByOne,
    /// What is left will not come.
    FailAll(Failure, Problem),
    /// The peer breaks the rules.
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
