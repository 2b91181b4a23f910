//! One call of a running download: requests units from one peer, assembles them, and has them
//! verified and written.
//!
//! | module | purpose |
//! |---|---|
//! | `event` | the requests of a call, and the events that it reports |
//! | `progress` | limits how often it reports arriving bytes |
//! | `submit` | what all calls share, and the way of a unit to the disk |

mod event;
mod progress;
mod submit;

use std::{collections::VecDeque, time::Duration};

use potluck_core::{Problem, Reason};
use potluck_swarm::{Failure, PeerKey};
use tokio::time::Instant;

use crate::download::{
    engine::{
        assembler::{ReadAhead, StreamError, UnexpectedData, UnitAssembler},
        request::{progress::UnreportedProgress, submit::THROTTLED_INTERVAL},
    },
    peers::rpc::client::{DATA_TIMEOUT, PeerClient},
};

pub(crate) use self::{
    event::{RequestEvent, RequestOutcome, UnitRequest},
    submit::CallContext,
};

/// How long a stream may take to end after its last byte; then it is dropped.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Minimum delay before a busy peer is asked for the rest of a unit.
const BUSY_RETRY: Duration = Duration::from_millis(250);

/// Maximum of that delay.
const MAX_BUSY_RETRY: Duration = Duration::from_secs(5);

/// One call to a peer.
#[derive(Debug)]
pub(crate) struct RequestTask {
    pub(crate) peer: PeerKey,
    pub(crate) client: PeerClient,
    pub(crate) context: CallContext,
}

impl RequestTask {
    /// Requests the units until each has arrived, failed or been cancelled.
    pub(crate) async fn run(self, requests: Vec<UnitRequest>) {
        let mut rest = VecDeque::from(requests);
        let mut one_by_one = false;
        loop {
            rest.retain(|request| !request.token.is_cancelled());
            if rest.is_empty() || self.context.events.is_closed() {
                return;
            }
            match self.request_remaining(&mut rest, one_by_one).await {
                CallEnd::Retry => {}
                CallEnd::OneByOne => one_by_one = true,
                CallEnd::FailAll(failure, problem) => {
                    for request in rest {
                        self.send_event(&request, RequestOutcome::Failed(failure, problem.clone()))
                            .await;
                    }
                    return;
                }
                CallEnd::ProtocolViolation(violation) => {
                    // The ban that follows cancels the other requests. If the request was cancelled
                    // meanwhile, no ban follows and the others count as failed.
                    if let Some(request) = rest.pop_front() {
                        self.send_event(
                            &request,
                            RequestOutcome::ProtocolViolation(violation.clone()),
                        )
                        .await;
                    }
                    let problem = Problem::new(Reason::VerificationFailed, violation);
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
        self.context.send_event(self.peer, request, outcome).await;
    }

    /// Calls `Download` for all of `rest`, or only for its first unit, and removes the units that
    /// arrive. Under a rate limit it makes several calls.
    async fn request_remaining(
        &self,
        rest: &mut VecDeque<UnitRequest>,
        one_by_one: bool,
    ) -> CallEnd {
        let count = if one_by_one { 1 } else { rest.len() };
        let units: Vec<u32> = rest.iter().take(count).map(|request| request.unit).collect();
        let mut assembler = UnitAssembler::new(self.context.download.part_file.plan(), &units);
        let mut progress = UnreportedProgress::new();
        while let (Some(_), Some(request)) = (assembler.current(), rest.front().cloned()) {
            let ranges = assembler.next_ranges(self.context.rate_limiter.max_call_bytes());
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
            let mut stream = ReadAhead::new(stream, assembler.outstanding_bytes());
            if let Err(end) = self
                .receive(rest, &mut assembler, &mut stream, &mut progress)
                .await
            {
                return end;
            }
        }
        CallEnd::Retry
    }

    /// Receives the data of one call and submits each complete unit.
    async fn receive(
        &self,
        rest: &mut VecDeque<UnitRequest>,
        assembler: &mut UnitAssembler,
        stream: &mut ReadAhead,
        progress: &mut UnreportedProgress,
    ) -> Result<(), CallEnd> {
        while let (true, Some(request)) = (assembler.outstanding_bytes() > 0, rest.front().cloned())
        {
            let chunk = match stream.pop() {
                Ok(chunk) => chunk,
                Err(error) => return Err(self.handle_stream_error(rest, error).await),
            };
            let Some(chunk) = chunk else {
                let space = self.context.disk.wait_for_space();
                let waited = self.context.wait_locally(self.peer, &request, space);
                if waited.await.is_none() {
                    return Err(CallEnd::Retry);
                }
                let read = tokio::select! {
                    () = request.token.cancelled() => return Err(CallEnd::Retry),
                    read = tokio::time::timeout(DATA_TIMEOUT, stream.read()) => read,
                };
                if read.is_err() {
                    let problem = Problem::new(
                        Reason::TimedOut,
                        "the peer stopped sending in the middle of a unit",
                    );
                    return Err(CallEnd::FailAll(Failure::TimedOut, problem));
                }
                continue;
            };
            let mut left = chunk.data.len() as u64;
            while left > 0 {
                let bytes = self.context.rate_limiter.next_acquisition(left);
                self.wait_for_rate(bytes, &request, stream, progress)
                    .await
                    .ok_or(CallEnd::Retry)?;
                left -= bytes;
                progress.add(bytes);
                if progress.is_due() {
                    self.send_event(&request, progress.take()).await;
                }
            }
            let complete = match assembler.push(chunk) {
                Ok(complete) => complete,
                Err(error) => return Err(CallEnd::ProtocolViolation(error.to_string())),
            };
            if complete.is_some() && !progress.is_empty() {
                self.send_event(&request, progress.take()).await;
            }
            if assembler.outstanding_bytes() == 0
                && tokio::time::timeout(END_TIMEOUT, stream.has_trailing_data()).await == Ok(true)
            {
                return Err(CallEnd::ProtocolViolation(UnexpectedData::TooMuch.to_string()));
            }
            if let Some((_, data)) = complete {
                rest.pop_front();
                self.context.submit_peer_unit(self.peer, request, data).await;
            }
        }
        Ok(())
    }

    /// Waits until this many bytes are allowed and meanwhile reports that they arrived, so that the
    /// peer does not count as stalled. Continues to read ahead. `None` if the unit is no longer
    /// wanted.
    async fn wait_for_rate(
        &self,
        bytes: u64,
        request: &UnitRequest,
        stream: &mut ReadAhead,
        progress: &mut UnreportedProgress,
    ) -> Option<()> {
        let mut allowed = std::pin::pin!(self.context.rate_limiter.acquire(bytes, request.id));
        loop {
            let report_at = progress
                .throttled_at
                .map_or_else(Instant::now, |last| last + THROTTLED_INTERVAL);
            // All arms are cancel-safe: a dropped acquisition gives its bytes back, and unread data
            // stays in the stream.
            tokio::select! {
                biased;
                () = &mut allowed => return Some(()),
                () = request.token.cancelled() => return None,
                () = stream.read(), if stream.can_read() => {}
                () = tokio::time::sleep_until(report_at) => {
                    progress.throttled_at = Some(Instant::now());
                    if !progress.is_empty() {
                        self.send_event(request, progress.take()).await;
                    }
                    self.send_event(request, RequestOutcome::LocallyThrottled).await;
                }
            }
        }
    }

    async fn handle_stream_error(
        &self,
        rest: &mut VecDeque<UnitRequest>,
        error: StreamError,
    ) -> CallEnd {
        match error {
            StreamError::Unexpected(error) => CallEnd::ProtocolViolation(error.to_string()),
            StreamError::Truncated => {
                let problem = Problem::new(
                    Reason::NotPotluck,
                    "the peer ended the stream before it had sent everything",
                );
                CallEnd::FailAll(Failure::Refused, problem)
            }
            StreamError::Failed(problem) => self.handle_status(rest, false, problem).await,
        }
    }

    /// Maps a status to the fate of the open requests. `any`: the status may concern any of them.
    async fn handle_status(
        &self,
        rest: &mut VecDeque<UnitRequest>,
        any: bool,
        problem: Problem,
    ) -> CallEnd {
        let failure = match problem.reason {
            reason if is_busy(reason) => Failure::Busy {
                retry_after: problem.retry_after,
            },
            Reason::PieceNotAvailable | Reason::NotFound | Reason::FileChanged => {
                Failure::NotAvailable
            }
            Reason::TimedOut => Failure::TimedOut,
            // This machine lacks file descriptors; that is temporary and not the peer's fault.
            Reason::Unreachable
            | Reason::Cancelled
            | Reason::ShuttingDown
            | Reason::TooManyOpenFiles => Failure::Disconnected,
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

const fn is_busy(reason: Reason) -> bool {
    matches!(reason, Reason::Busy | Reason::RateLimited)
}

/// The end of a call.
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
