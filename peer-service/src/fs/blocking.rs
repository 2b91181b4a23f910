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
pub(crate) async fn blocking_cancellable<T: Send + 'static>(
    work: impl FnOnce(&CancellationToken) -> T + Send + 'static,
) -> Result<T, Problem> {
    let stop = CancellationToken::new();
    let _dropped = stop.clone().drop_guard();
    blocking(move || work(&stop)).await
}

/// Runs what takes long and nobody waits for on a thread of its own, which the system lets run when
/// nothing else wants to. `None` where it panicked, which is a defect, or no thread could be
/// started.
pub(crate) async fn in_background<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let run = move || {
        lower_priority();
        // Nobody waits any more where the peer stops.
        let _ = tell.send(work());
    };
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    if let Err(error) = started {
        tracing::error!(%error, name, "no thread for background work");
        return None;
    }
    let done = told.await;
    if done.is_err() {
        tracing::error!(name, "background work failed");
    }
    done.ok()
}

/// The lowest priority of the usual scheduling class: 1/68 of the time of an ordinary thread beside
/// one. The priority of a thread's disk access follows from it (ioprio_set(2), "io_nice").
#[cfg(target_os = "linux")]
fn lower_priority() {
    const LOWEST: i32 = 19;
    // On Linux "process" means the thread with this id (setpriority(2), "C library/kernel
    // differences").
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), LOWEST) {
        tracing::debug!(%error, "background work runs with the usual priority");
    }
}

/// Elsewhere priorities belong to whole processes.
#[cfg(not(target_os = "linux"))]
const fn lower_priority() {}

/// What to answer to whoever hashes and asks whether to go on.
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
        let priority = || rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
        let before = priority();
        assert_eq!(super::in_background("test", priority).await, Some(19));
        assert_eq!(priority(), before);
        assert_eq!(super::blocking(priority).await.unwrap(), before);
    }
}
