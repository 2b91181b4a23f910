//! Work that blocks, off the async threads.

use std::ops::ControlFlow;

use potluck_core::{Problem, Reason};
use tokio_util::sync::CancellationToken;

/// Runs what blocks on a thread for that.
///
/// # Errors
/// [`Reason::Internal`] where it panicked, which is a defect.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "a blocking task failed");
        Problem::new(Reason::Internal, "a part of the peer failed: see its log")
    })
}

/// The same for work that takes long and can be stopped: it is told to when nobody waits for it any more.
pub(crate) async fn stoppable<T: Send + 'static>(
    work: impl FnOnce(&CancellationToken) -> T + Send + 'static,
) -> Result<T, Problem> {
    let stop = CancellationToken::new();
    let _dropped = stop.clone().drop_guard();
    blocking(move || work(&stop)).await
}

/// What to answer to whoever hashes and asks whether to go on.
pub(crate) fn unless(stop: &CancellationToken) -> ControlFlow<()> {
    match stop.is_cancelled() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}
