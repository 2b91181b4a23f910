//! Requests units from the origin. Units that follow each other share a request.
//!
//! Invariant: each request ends with one final event, or is cancelled.

use std::{sync::Arc, time::Duration};

use potluck_core::Problem;
use potluck_origins::{OriginBody, OriginError};

use crate::download::{
    engine::{
        chunk_list::ChunkList,
        request::{CallContext, RequestOutcome, UnitRequest},
    },
    origin::{
        pieces::Sender,
        source::{ORIGIN, OriginSource, failure_of},
    },
};

/// Interval between reports that data waits for a local limit: shorter than any stall timeout.
const THROTTLED_INTERVAL: Duration = Duration::from_millis(200);

/// Requests to the origin for some units of a plain file.
#[derive(Debug)]
pub(crate) struct OriginTask {
    pub(crate) source: Arc<OriginSource>,
    pub(crate) context: CallContext,
}

impl OriginTask {
    /// Requests the units until each has arrived, failed or been cancelled.
    pub(crate) async fn run(self, mut requests: Vec<UnitRequest>) {
        requests.sort_by_key(|request| request.unit);
        for run in requests.chunk_by(|a, b| a.unit + 1 == b.unit) {
            let mut arrived = 0;
            if let Err(error) = self.receive(run, &mut arrived).await {
                self.fail(&run[arrived..], &error).await;
            }
        }
    }

    /// Receives consecutive units. `arrived` counts those that are complete or cancelled.
    async fn receive(&self, run: &[UnitRequest], arrived: &mut usize) -> Result<(), OriginError> {
        let plan = self.context.download.part_file.plan();
        let skipped = run.iter().take_while(|request| request.token.is_cancelled());
        *arrived = skipped.count();
        let Some((first, last)) = run[*arrived..].first().zip(run.last()) else {
            return Ok(());
        };
        let offset = |unit: u32| plan.spans(unit).next().map_or(0, |span| span.offset);
        let range = offset(first.unit)..offset(last.unit) + plan.unit_len(last.unit);
        let opened = tokio::select! {
            () = all_cancelled(&run[*arrived..]) => return Ok(()),
            opened = self.source.client.open(&self.source.file, range) => opened,
        };
        let mut body = opened?;
        let mut left_over = bytes::Bytes::new();
        while let Some(request) = run.get(*arrived) {
            // Fits: a unit is at most 16 MiB.
            let len = plan.unit_len(request.unit) as usize;
            let mut data = ChunkList::default();
            while data.len() < len {
                if left_over.is_empty() {
                    match self.next(&mut body, &run[*arrived..]).await? {
                        Some(chunk) => left_over = chunk,
                        None => return Ok(()),
                    }
                }
                let left = len - data.len();
                let chunk = left_over.split_to(left_over.len().min(left));
                if !request.token.is_cancelled() {
                    self.wait_for_rate(request, chunk.len() as u64).await;
                    let progress = RequestOutcome::Progress(chunk.len() as u64);
                    self.context.send_event(ORIGIN, request, progress).await;
                }
                data.push(chunk, left);
            }
            *arrived += 1;
            if !request.token.is_cancelled() {
                self.context
                    .submit_unit(Sender::Origin, ORIGIN, request.clone(), data)
                    .await;
            }
        }
        Ok(())
    }

    /// The next bytes; `None` if no unit is wanted any more.
    async fn next(
        &self,
        body: &mut OriginBody,
        rest: &[UnitRequest],
    ) -> Result<Option<bytes::Bytes>, OriginError> {
        let Some(request) = rest.first() else {
            return Ok(None);
        };
        let disk = self.context.disk.wait_for_space();
        if self.context.wait_locally(ORIGIN, request, disk).await.is_none()
            && rest.iter().all(|request| request.token.is_cancelled())
        {
            return Ok(None);
        }
        let next = tokio::select! {
            () = all_cancelled(rest) => return Ok(None),
            next = body.next() => next,
        };
        match next? {
            Some(chunk) => Ok(Some(chunk)),
            None => Err(OriginError::Unreachable {
                host: self.source.file.host(),
                cause: "the response ended early".into(),
            }),
        }
    }

    /// Waits until the bytes are allowed, and meanwhile reports that they wait.
    async fn wait_for_rate(&self, request: &UnitRequest, mut left: u64) {
        while left > 0 {
            let bytes = self.context.rate_limiter.next_acquisition(left);
            left -= bytes;
            let mut allowed = std::pin::pin!(self.context.rate_limiter.acquire(bytes, request.id));
            loop {
                // The acquisition is pinned outside the loop, so polling the other arms keeps it.
                tokio::select! {
                    biased;
                    () = &mut allowed => break,
                    () = request.token.cancelled() => return,
                    () = tokio::time::sleep(THROTTLED_INTERVAL) => {
                        let waits = RequestOutcome::LocallyThrottled;
                        self.context.send_event(ORIGIN, request, waits).await;
                    }
                }
            }
        }
    }

    async fn fail(&self, rest: &[UnitRequest], error: &OriginError) {
        let problem = Problem::from(error.clone());
        let outcome = || match failure_of(error) {
            Some(failure) => RequestOutcome::Failed(failure, problem.clone()),
            None => RequestOutcome::OriginFailed(problem.clone()),
        };
        for request in rest.iter().filter(|request| !request.token.is_cancelled()) {
            self.context.send_event(ORIGIN, request, outcome()).await;
        }
    }
}

/// Completes once every request is cancelled.
async fn all_cancelled(requests: &[UnitRequest]) {
    for request in requests {
        request.token.cancelled().await;
    }
}
