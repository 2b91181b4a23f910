//! The steps of a run, and when it starts over.
//!
//! Invariant: an attempt that does not complete the content stops serving it and writes a last
//! checkpoint.

use std::sync::Arc;

use potluck_core::{Problem, bitfield::Bitfield, model::Registration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    download::{
        engine::{active::ActiveDownload, driver::AttemptOutcome},
        peers::{
            bootstrap::BootstrapPool,
            discovery::{Discovery, PeerCandidates},
        },
        task::{fetching, finishing, planning, preparation, provisional, run_context::RunContext},
    },
    fs::blocking::blocking,
};

/// How the task of a download ended.
#[derive(Debug)]
pub(crate) enum RunEnd {
    /// The content is verified and has its final name.
    Done,
    /// The run was stopped; the downloaded data is kept.
    Stopped,
    /// The download cannot continue; the downloaded data is kept.
    Failed(Problem),
}

/// One run of a download.
#[derive(Debug)]
pub(crate) struct DownloadRun {
    context: RunContext,
    /// The candidates that discovery finds.
    candidates: watch::Receiver<PeerCandidates>,
    /// Cancelled when the run ends for any reason.
    ended: CancellationToken,
}

impl DownloadRun {
    /// Runs to completion.
    pub(crate) async fn run(context: RunContext) -> RunEnd {
        let ended = context.stop.child_token();
        // The guard stops discovery.
        let _guard = ended.clone().drop_guard();
        let candidates = start_discovery(&context, ended.clone());
        let run = Self {
            context,
            candidates,
            ended,
        };
        let outcome = run.run_until_done().await;
        let context = &run.context;
        if !matches!(outcome, Ok(AttemptOutcome::Complete)) {
            context.channels.active.send_replace(None);
        }
        match outcome {
            Ok(AttemptOutcome::Complete) => RunEnd::Done,
            Ok(_) => RunEnd::Stopped,
            Err(_) if context.stop.is_cancelled() => RunEnd::Stopped,
            Err(problem) => RunEnd::Failed(problem),
        }
    }

    /// Starts over if the kind of the content is in doubt, and if the disk is full or file
    /// descriptors run out outside the steps that wait by themselves (for example on a failed
    /// flush). Each attempt continues from the data on disk.
    async fn run_until_done(&self) -> Result<AttemptOutcome, Problem> {
        let file = self.context.spec.id.short();
        let mut kind_doubted = false;
        loop {
            match self.attempt(kind_doubted).await {
                Ok(AttemptOutcome::KindDoubted) => {
                    tracing::info!(
                        %file,
                        "may be a folder, although its record says file: examines it"
                    );
                    kind_doubted = true;
                }
                Ok(outcome) => return Ok(outcome),
                Err(problem) if problem.reason.is_exhaustion() => {
                    tracing::warn!(%file, %problem, "starts over soon");
                    if !self.context.wait_to_retry(problem).await {
                        return Ok(AttemptOutcome::Stopped);
                    }
                }
                Err(problem) => return Err(problem),
            }
        }
    }

    /// One attempt. If `kind_doubted`, examines whether a supposed plain file is a manifest.
    async fn attempt(&self, kind_doubted: bool) -> Result<AttemptOutcome, Problem> {
        let context = &self.context;
        let (outgoing, counters) =
            (context.peer.local.outgoing.clone(), context.peer.counters.clone());
        let pool = BootstrapPool::new(self.candidates.clone(), outgoing, counters);
        // Both futures can be dropped: they hold nothing that outlives them.
        let planned = tokio::select! {
            () = context.stop.cancelled() => return Ok(AttemptOutcome::Stopped),
            planned = planning::plan(context, &pool, kind_doubted) => planned?,
        };
        let Some(planned) = planned else {
            return Ok(AttemptOutcome::Complete);
        };
        // Runs to the end: a dropped blocking task would continue and conflict with the next user
        // of the part file.
        let Some((part_file, found)) = preparation::open_part(context, &planned).await? else {
            return Ok(AttemptOutcome::Stopped);
        };
        let verifier = tokio::select! {
            () = context.stop.cancelled() => return Ok(AttemptOutcome::Stopped),
            verifier = planning::build_verifier(context, &planned, &pool) => verifier?,
        };
        let part_file = Arc::new(part_file);
        let Some(have) = preparation::recover_units(context, &part_file, &verifier, found).await?
        else {
            return Ok(AttemptOutcome::Stopped);
        };
        let download = preparation::publish(context, &planned, part_file, verifier, have).await?;
        // Announced before the first unit is verified, so that peers that download the same file
        // find each other early and know of each other's download.
        let announcement = context.shares().then(|| {
            context.peer.announce_set.announce_partial(Registration {
                file: download.record,
                names: vec![download.name.clone()],
                is_complete: false,
            })
        });
        let may_be_collection =
            !kind_doubted && download.pieces.is_none() && planning::may_be_manifest(&planned.plan);
        let known_peers = pool.into_known_peers();
        let mut outcome = match &download.pieces {
            Some(pieces) => {
                provisional::run(context, &download, pieces, &self.candidates, &self.ended).await
            }
            None => {
                fetching::run_swarm(
                    context,
                    &download,
                    known_peers,
                    self.candidates.clone(),
                    may_be_collection,
                    context.origin_source()?,
                    &self.ended,
                )
                .await
            }
        };
        if matches!(outcome, Ok(AttemptOutcome::Complete))
            && may_be_collection
            && planning::is_manifest(&download.part_file).await?
        {
            outcome = Ok(AttemptOutcome::KindDoubted);
        }
        let have = download.have();
        if matches!(outcome, Ok(AttemptOutcome::Complete)) {
            outcome = finishing::finish(context, &download, planned.collection, announcement).await;
        } else {
            drop(announcement);
        }
        if !matches!(outcome, Ok(AttemptOutcome::Complete)) {
            self.retire(&download, have).await;
        }
        outcome
    }

    /// Stops serving the download and writes a last checkpoint.
    async fn retire(&self, download: &Arc<ActiveDownload>, have: Bitfield) {
        self.context.channels.active.send_replace(None);
        if let Some(pieces) = &download.pieces {
            // An upload may hold the pieces a little longer.
            pieces.early().set_wrong();
        }
        let part = Arc::clone(&download.part_file);
        let last = move || {
            let stored = part.checkpoint(&have);
            // An upload may hold the part file a little longer; without the lock the file can be
            // deleted or resumed.
            part.unlock();
            stored
        };
        if let Err(problem) = blocking(last).await.and_then(|stored| stored) {
            tracing::warn!(%problem, "could not write the last resume state");
        }
    }
}

/// Keeps a list of candidates up to date until `stop`.
pub(super) fn start_discovery(
    context: &RunContext,
    stop: CancellationToken,
) -> watch::Receiver<PeerCandidates> {
    let (list, candidates) = watch::channel(PeerCandidates::default());
    let discovery = Discovery {
        id: context.spec.id,
        index: context.peer.index.clone(),
        named_peers: context.channels.named_peers.clone(),
        status: context.channels.status.subscribe(),
    };
    let peer = Arc::clone(&context.peer);
    let discover = async move {
        let is_self = |id: Option<&_>, address: &_| peer.local.is_self(id, address);
        discovery.run(is_self, list, stop).await;
    };
    context.peer.tracker.spawn(discover.in_current_span());
    candidates
}
