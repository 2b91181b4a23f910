//! Runs searches and long listings on a few threads, so that other calls never wait for them.
//!
//! Invariants: running searches leave at least half of the cores to other calls, if there is more
//! than one. Waiting searches are limited in total and per address, and run in the order of
//! arrival.

use std::{net::IpAddr, sync::Arc};

use potluck_core::{
    Problem, Reason,
    grpc::limiter::{ClientAddress, MaxShare, PerAddressLimiter},
};
use tokio::sync::Semaphore;

use crate::problem::SHORT_DELAY;

/// Maximum searches that run or wait: the last one waits for a third of a second if one runs at a
/// time.
const MAX_QUEUED: usize = 64;

/// Maximum searches that run in parallel on any machine: each holds the page that it fills in
/// memory.
const MAX_RUNNING: usize = 4;

/// The queue of searches.
#[derive(Debug)]
pub(crate) struct SearchQueue {
    /// One permit per search that waits or runs.
    queued: PerAddressLimiter,
    /// One permit per search that runs.
    running: Arc<Semaphore>,
}

impl SearchQueue {
    /// A queue sized for this machine's cores.
    pub(crate) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            queued: PerAddressLimiter::new(MAX_QUEUED, MaxShare::default()),
            running: Arc::new(Semaphore::new((cores / 2).clamp(1, MAX_RUNNING))),
        }
    }

    /// Runs a search for a caller and waits for it. A search that has started finishes even if the
    /// caller goes away.
    ///
    /// # Errors
    /// [`Reason::Busy`] if too many searches wait.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        source: Option<IpAddr>,
        search: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let busy = || {
            Problem::new(
                Reason::Busy,
                "too many searches are waiting: try again in a moment",
            )
            .retry_after(SHORT_DELAY)
        };
        let queued = self
            .queued
            .try_acquire(source.map_or(ClientAddress::LOCAL, Into::into))
            .map_err(|_| busy())?;
        let running = Arc::clone(&self.running)
            .acquire_owned()
            .await
            .map_err(|_| busy())?;
        let result = tokio::task::spawn_blocking(move || {
            let _permits = (queued, running);
            search()
        });
        result.await.map_err(|_| {
            Problem::new(
                Reason::Internal,
                "the search failed because of a defect: see the index's log",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn waiting_searches_are_limited_in_total_and_per_address() {
        let queue = Arc::new(SearchQueue {
            queued: PerAddressLimiter::new(8, MaxShare::default()),
            running: Arc::new(Semaphore::new(1)),
        });
        let source = |n| Some(IpAddr::from([192, 0, 2, n]));
        let (release, blocked) = mpsc::channel::<()>();
        let blocked = Arc::new(parking_lot::Mutex::new(blocked));
        let mut waiting = Vec::new();
        for _ in 0..4 {
            let (queue, blocked) = (Arc::clone(&queue), Arc::clone(&blocked));
            let search = move || blocked.lock().recv();
            waiting.push(tokio::spawn(async move { queue.run(source(1), search).await }));
            tokio::task::yield_now().await;
        }
        let refused = queue.run(source(1), || ()).await.unwrap_err();
        assert_eq!(refused.reason, Reason::Busy);
        let other = Arc::clone(&queue);
        let other = tokio::spawn(async move { other.run(source(2), || 7).await });
        (0..4).for_each(|_| release.send(()).unwrap());
        assert_eq!(other.await.unwrap().unwrap(), 7);
        for search in waiting {
            assert!(search.await.unwrap().is_ok());
        }
        assert!(queue.run(source(1), || ()).await.is_ok(), "permits are released");
    }
}
