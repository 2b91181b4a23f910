//! Runs the swarm of one attempt.
//!
//! Invariant: when this returns, nothing writes to the part file any more: all calls, the
//! preallocation and the checkpoint task have ended.

use std::sync::Arc;

use potluck_core::Problem;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::download::{
    engine::{
        active::ActiveDownload,
        driver::{ActiveLimits, AttemptOutcome, DownloadDriver, DriverSignals},
    },
    origin::source::OriginSource,
    peers::{discovery::PeerCandidates, peer_set::KnownPeers},
    task::{checkpoints, run_context::RunContext},
};

/// Runs the swarm until the download has all units. `may_be_collection`: whether a different unit
/// count at a peer casts doubt on the kind of the content. `origin`: where bytes come from that no
/// peer has.
///
/// # Errors
/// If units cannot be written and waiting does not help.
pub(crate) async fn run_swarm(
    context: &RunContext,
    download: &Arc<ActiveDownload>,
    known_peers: KnownPeers,
    candidates: watch::Receiver<PeerCandidates>,
    may_be_collection: bool,
    origin: Option<Arc<OriginSource>>,
    ended: &CancellationToken,
) -> Result<AttemptOutcome, Problem> {
    if download.have().is_full() {
        return Ok(AttemptOutcome::Complete);
    }
    let file = context.spec.id.short();
    let plan = download.part_file.plan();
    let stop = ended.child_token();
    // Stops the other tasks of this attempt when the driver ends.
    let guard = stop.clone().drop_guard();
    let tracker = TaskTracker::new();
    let signals = DriverSignals {
        candidates: candidates.clone(),
        window: None,
        stop: stop.clone(),
    };
    let limits = ActiveLimits::new(context.channels.limits.clone(), &context.peer.resources);
    let driver = DownloadDriver::new(
        &context.peer,
        download,
        known_peers,
        limits,
        signals,
        tracker.clone(),
    )
    .may_be_collection(may_be_collection)
    .with_origin(origin)
    .in_order(context.spec.in_order)
    .report_to(|view| context.reporter.show_swarm(plan, view, &candidates.borrow()));
    preallocate(download, &tracker, stop.clone());
    let checkpoints = checkpoints::run_checkpoints(Arc::clone(download), stop);
    let checkpoints = context.peer.tracker.spawn(checkpoints);
    tracing::debug!(%file, units = plan.unit_count(), "starts the swarm");
    let outcome = driver.run().await;
    tracing::debug!(%file, ?outcome, "ended the swarm");
    drop(guard);
    tracker.close();
    tracker.wait().await;
    // Waiting for the checkpoint task keeps a late checkpoint from overlapping the next step.
    if let Ok(Err(problem)) = checkpoints.await {
        return Err(problem);
    }
    match outcome? {
        AttemptOutcome::Complete if !download.have().is_full() => Ok(AttemptOutcome::Stopped),
        outcome => Ok(outcome),
    }
}

/// Runs the swarm of a download that is read in order. `window` has the end of the units that may be
/// requested.
///
/// # Errors
/// If units cannot be written and waiting does not help.
pub(crate) async fn run_reader(
    context: &RunContext,
    download: &Arc<ActiveDownload>,
    known_peers: KnownPeers,
    candidates: watch::Receiver<PeerCandidates>,
    window: watch::Receiver<u32>,
    ended: &CancellationToken,
) -> Result<AttemptOutcome, Problem> {
    let signals = DriverSignals {
        candidates: candidates.clone(),
        window: Some(window),
        stop: ended.clone(),
    };
    let limits = ActiveLimits::new(context.channels.limits.clone(), &context.peer.resources);
    let plan = download.part_file.plan();
    let tracker = TaskTracker::new();
    let driver =
        DownloadDriver::new(&context.peer, download, known_peers, limits, signals, tracker)
            .report_to(|view| context.reporter.show_swarm(plan, view, &candidates.borrow()));
    driver.run().await
}

/// Allocates the part file in the background.
fn preallocate(download: &Arc<ActiveDownload>, tracker: &TaskTracker, stop: CancellationToken) {
    let part = Arc::clone(&download.part_file);
    tracker.spawn_blocking(move || {
        if let Err(error) = part.preallocate(|| !stop.is_cancelled()) {
            // The next write fails the same way and reports the error.
            tracing::debug!(%error, "could not preallocate the part file");
        }
    });
}
