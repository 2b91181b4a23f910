//! Runs blocking work outside the async threads.

use std::ops::ControlFlow;

use potluck_core::{Problem, Reason};
use tokio_util::sync::CancellationToken;

/// Runs blocking work on tokio's blocking thread pool.
///
/// # Errors
/// [`Reason::Internal`] if the work panicked, which is a bug.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "a blocking task failed");
        Problem::new(Reason::Internal, "a task of the peer failed: see its log")
    })
}

/// Runs long blocking work like [`blocking`]. The token is cancelled when the returned future is
/// dropped.
pub(crate) async fn blocking_cancellable<T: Send + 'static>(
    work: impl FnOnce(&CancellationToken) -> T + Send + 'static,
) -> Result<T, Problem> {
    let stop = CancellationToken::new();
    let _dropped = stop.clone().drop_guard();
    blocking(move || work(&stop)).await
}

/// Runs blocking work as a step of a background task. `None` on shutdown, but only after the work
/// has ended: nothing may use the database after the tasks end. `None` also if the work panicked,
/// which is a bug.
pub(crate) async fn blocking_until_shutdown<T: Send + 'static>(
    shutdown: &CancellationToken,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let result = blocking(work).await.ok();
    result.filter(|_| !shutdown.is_cancelled())
}

/// Runs long background work on its own thread, with the lowest priority. `None` if it panicked,
/// which is a bug, or if no thread could be started.
pub(crate) async fn in_background<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let run = move || {
        lower_priority();
        // The receiver is gone if the peer stops.
        let _ = sender.send(work());
    };
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    if let Err(error) = started {
        tracing::error!(%error, name, "no thread could be started for background work");
        return None;
    }
    let result = receiver.await;
    if result.is_err() {
        tracing::error!(name, "background work failed");
    }
    result.ok()
}

/// Sets the lowest priority of the usual scheduling class: while one ordinary thread competes, this
/// thread gets 1/68 of the processor time. The thread's I/O priority follows from it
/// (ioprio_set(2), "io_nice").
#[cfg(target_os = "linux")]
fn lower_priority() {
    const LOWEST: i32 = 19;
    // On Linux, "process" means the thread with this id (setpriority(2), "C library/kernel
    // differences").
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), LOWEST)
    {
        tracing::debug!(%error, "background work runs with the usual priority");
    }
}

/// Other systems have priorities per process only.
#[cfg(not(target_os = "linux"))]
const fn lower_priority() {}

/// Tells a cancellable computation, such as hashing, whether to continue.
pub(crate) fn continue_unless(stop: &CancellationToken) -> ControlFlow<()> {
    match stop.is_cancelled() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn only_background_threads_have_the_lowest_priority() {
        let priority =
            || rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
        let before = priority();
        assert_eq!(super::in_background("test", priority).await, Some(19));
        assert_eq!(priority(), before);
        assert_eq!(super::blocking(priority).await.unwrap(), before);
    }
}
