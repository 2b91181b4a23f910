//! Runs the swarm for content whose root is not known, until its SHA-256 is right.
//!
//! Invariant: this returns [`AttemptOutcome::Complete`] only if the SHA-256 over all bytes was
//! compared.

use std::sync::Arc;

use potluck_core::{Problem, Reason};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::download::{
    counters::BanReason,
    engine::{active::ActiveDownload, driver::AttemptOutcome},
    origin::{
        pieces::ProvisionalPieces,
        running_sum::RunningSum,
        settle::{self, Settled},
    },
    peers::{discovery::PeerCandidates, peer_set::KnownPeers},
    task::{comparison, fetching, run_context::RunContext},
};

/// Downloads all pieces and compares the SHA-256. If it is wrong, fetches pieces that peers sent again
/// from the origin: those that differ from the pieces of a peer that has the content, else all.
///
/// # Errors
/// [`Reason::VerificationFailed`] if the bytes of the origin are wrong, or any failure of the origin
/// that lasts.
pub(crate) async fn run(
    context: &RunContext,
    download: &Arc<ActiveDownload>,
    pieces: &Arc<ProvisionalPieces>,
    candidates: &watch::Receiver<PeerCandidates>,
    ended: &CancellationToken,
) -> Result<AttemptOutcome, Problem> {
    let Some(origin) = &context.spec.origin else {
        let message = "content without a root needs an origin";
        return Err(Problem::new(Reason::Internal, message));
    };
    let sum = Arc::new(RunningSum::default());
    let stop = ended.child_token();
    let _guard = stop.clone().drop_guard();
    let follow = Arc::clone(&sum).follow(Arc::clone(download), Arc::clone(pieces), stop);
    context.peer.tracker.spawn(follow);
    let mut candidates = candidates.clone();
    let mut is_compared = false;
    loop {
        let outcome = fetching::run_swarm(
            context,
            download,
            KnownPeers::default(),
            candidates,
            false,
            context.origin_source()?,
            ended,
        )
        .await?;
        if outcome != AttemptOutcome::Complete {
            return Ok(outcome);
        }
        let settled = settle::settle(download, pieces, &sum, origin).await?;
        let faults = pieces.take_faults();
        for fault in &faults {
            let peer = fault
                .address
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default();
            tracing::warn!(
                file = %download.record.id.short(), peer, piece = fault.unit,
                "banned a peer: its piece differs from the origin"
            );
            context.peer.counters.add_ban(BanReason::WrongBytes);
        }
        match settled {
            Settled::Right(id) => {
                context.reporter.set_id(id);
                context.reporter.show_faults(&faults);
                return Ok(outcome);
            }
            Settled::Wrong(found) => {
                let wrong = match std::mem::replace(&mut is_compared, true) {
                    false => comparison::wrong_pieces(context, download, pieces, origin).await?,
                    true => None,
                };
                settle::doubt(download, pieces, wrong.as_ref(), found, origin)?;
                // No peer is asked this time.
                candidates = watch::channel(PeerCandidates::default()).1;
            }
        }
    }
}
