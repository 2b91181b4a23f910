//! An async rate limiter in bytes per second.
//!
//! [`FairQueue`] decides which request is next; this module waits for it. One of the waiting tasks
//! runs the timer for all of them, so that a dispatched request wakes one task and not all.
//!
//! Invariant: while tasks wait, one of them runs the timer. Without a limit, [`Flow::acquire`]
//! neither locks, counts nor wakes anything.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{Mutex as AsyncMutex, Notify, oneshot},
    time::Instant,
};

use crate::limits::{
    Priority,
    fair_queue::{Dispatch, FairQueue, FlowId, Ticket},
};

/// A rate shared by flows. Cheap to clone; all clones share the same rate.
#[derive(Debug, Clone)]
pub struct RateLimiter {
    shared: Arc<RateLimiterShared>,
}

#[derive(Debug)]
struct RateLimiterShared {
    /// Copy of the queue's rate, to be read without locking.
    rate: AtomicU64,
    queue: Mutex<FairQueue<oneshot::Sender<()>>>,
    start: Instant,
    /// Held by the task that runs the timer.
    timer: AsyncMutex<()>,
    /// Notifies the timer task that a request may go earlier than its timer is set for.
    deadline_moved: Notify,
}

impl RateLimiter {
    /// A limiter in bytes per second; 0 for no limit.
    pub fn new(rate: u64) -> Self {
        Self {
            shared: Arc::new(RateLimiterShared {
                rate: AtomicU64::new(rate),
                queue: Mutex::new(FairQueue::new(rate, Duration::ZERO)),
                start: Instant::now(),
                timer: AsyncMutex::new(()),
                deadline_moved: Notify::new(),
            }),
        }
    }

    /// Bytes per second; 0 for no limit.
    pub fn rate(&self) -> u64 {
        self.shared.rate.load(Ordering::Relaxed)
    }

    /// Changes the rate in bytes per second; 0 for no limit. Applies immediately, also to waiting
    /// requests.
    pub fn set_rate(&self, rate: u64) {
        let shared = &self.shared;
        shared.change(|queue| {
            queue.set_rate(rate, shared.start.elapsed());
            shared.rate.store(rate, Ordering::Relaxed);
        });
    }

    /// Adds a flow, which shares the rate until it is dropped.
    pub fn flow(&self, priority: Priority) -> Flow {
        Flow {
            id: self.shared.queue().join(priority),
            limiter: self.clone(),
        }
    }
}

impl RateLimiterShared {
    fn queue(&self) -> MutexGuard<'_, FairQueue<oneshot::Sender<()>>> {
        self.queue.lock()
    }

    /// Changes the queue and wakes the requests that may go now.
    fn change<T>(&self, change: impl FnOnce(&mut FairQueue<oneshot::Sender<()>>) -> T) -> T {
        let changed = change(&mut self.queue());
        self.release_ready();
        self.deadline_moved.notify_one();
        changed
    }

    /// Wakes the requests that may go now. Returns the time until the next may go, if any waits.
    fn release_ready(&self) -> Option<Duration> {
        let mut queue = self.queue();
        loop {
            match queue.next(self.start.elapsed()) {
                // If the receiver is gone, dropping its `PendingRequest` withdraws the request.
                Dispatch::Go(wake) => _ = wake.send(()),
                Dispatch::Wait(wait) => return Some(wait),
                Dispatch::Empty => return None,
            }
        }
    }

    /// Runs the timer for all waiting tasks, once this task holds the lock. Never returns; when it
    /// is dropped, another task takes over.
    async fn run_timer(&self) {
        let _running = self.timer.lock().await;
        loop {
            let wait = self.release_ready().unwrap_or(Duration::MAX);
            // Both arms are cancel-safe: they take nothing, and `Notify` keeps one pending
            // notification.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.deadline_moved.notified() => {}
            }
        }
    }
}

/// One of the flows that share a rate.
#[derive(Debug)]
pub struct Flow {
    limiter: RateLimiter,
    id: FlowId,
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.limiter.shared.change(|queue| queue.leave(self.id));
    }
}

impl Flow {
    /// Bytes per second for all flows together; 0 for no limit.
    pub fn rate(&self) -> u64 {
        self.limiter.rate()
    }

    /// Changes the rate for all flows; see [`RateLimiter::set_rate`].
    pub fn set_rate(&self, rate: u64) {
        self.limiter.set_rate(rate);
    }

    /// Changes this flow's priority, also for its waiting requests.
    pub fn set_priority(&self, priority: Priority) {
        self.limiter
            .shared
            .change(|queue| queue.set_priority(self.id, priority));
    }

    /// Waits until `bytes` bytes may go; this may be more than a second's worth. Dropping the
    /// future returns them.
    pub async fn acquire(&self, bytes: u64) {
        self.acquire_ranked(bytes, 0).await;
    }

    /// Waits like [`Flow::acquire`], ahead of this flow's waiting requests of a higher rank.
    pub async fn acquire_ranked(&self, bytes: u64, rank: u64) {
        if self.rate() == 0 {
            return;
        }
        let shared = &*self.limiter.shared;
        let (wake, mut woken) = oneshot::channel();
        let pending = shared.change(|queue| {
            queue.enqueue_ranked(self.id, rank, bytes, wake, shared.start.elapsed())
        });
        let Some(ticket) = pending else {
            return;
        };
        let mut pending = PendingRequest {
            limiter: shared,
            ticket: Some(ticket),
        };
        // Both arms are cancel-safe: dropping `pending` withdraws the request, and dropping the
        // timer lets another task run it.
        tokio::select! {
            biased;
            _ = &mut woken => {}
            () = shared.run_timer() => {}
        }
        pending.ticket = None;
    }
}

/// Withdraws the request on drop, unless it was dispatched and the task noticed.
struct PendingRequest<'a> {
    limiter: &'a RateLimiterShared,
    ticket: Option<Ticket>,
}

impl Drop for PendingRequest<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.limiter.change(|queue| queue.withdraw(ticket));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn priority(number: u32) -> Priority {
        Priority::new(number).unwrap()
    }

    /// A task that acquires this many bytes in a loop and counts them.
    fn start_taker(flow: &Arc<Flow>, bytes: u64) -> Arc<AtomicU64> {
        let (flow, taken) = (Arc::clone(flow), Arc::new(AtomicU64::new(0)));
        let counter = Arc::clone(&taken);
        tokio::spawn(async move {
            loop {
                flow.acquire(bytes).await;
                counter.fetch_add(bytes, Ordering::Relaxed);
            }
        });
        taken
    }

    #[tokio::test(start_paused = true)]
    async fn flows_share_by_priority_whatever_their_number_of_tasks() {
        let limiter = RateLimiter::new(1_000_000);
        let (high, low) = (
            Arc::new(limiter.flow(priority(30))),
            Arc::new(limiter.flow(priority(10))),
        );
        // The flow of low priority has ten tasks.
        let high_bytes = start_taker(&high, 64_000);
        let low_bytes: Vec<_> = (0..10).map(|_| start_taker(&low, 64_000)).collect();
        let sum = || {
            low_bytes
                .iter()
                .map(|bytes| bytes.load(Ordering::Relaxed))
                .sum::<u64>()
        };
        tokio::time::sleep(Duration::from_secs(100)).await;
        let (first, second) = (high_bytes.load(Ordering::Relaxed), sum());
        assert!(
            first + second > 99_800_000 && first + second <= 100_100_000,
            "{first} and {second}"
        );
        assert!(
            (first as f64 / second as f64 - 3.0).abs() < 0.05,
            "{first} and {second}"
        );
        high.set_priority(priority(10));
        tokio::time::sleep(Duration::from_secs(100)).await;
        let (more, others) = (high_bytes.load(Ordering::Relaxed) - first, sum() - second);
        assert!(
            (more as f64 / others as f64 - 1.0).abs() < 0.05,
            "{more} and {others}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_rate_applies_to_waiting_requests() {
        let limiter = RateLimiter::new(1);
        let flow = Arc::new(limiter.flow(Priority::default()));
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..3 {
            let (flow, done) = (Arc::clone(&flow), Arc::clone(&done));
            tokio::spawn(async move {
                flow.acquire(1 << 30).await;
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        tokio::time::sleep(Duration::from_secs(1000)).await;
        assert_eq!(done.load(Ordering::Relaxed), 0);
        limiter.set_rate(1 << 30);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(done.load(Ordering::Relaxed), 1);
        limiter.set_rate(0);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(done.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_request_returns_its_bytes_and_the_timer() {
        let limiter = RateLimiter::new(1000);
        let flow = Arc::new(limiter.flow(Priority::default()));
        let first = tokio::spawn({
            let flow = Arc::clone(&flow);
            async move { flow.acquire(1_000_000).await }
        });
        tokio::task::yield_now().await;
        let second = tokio::spawn({
            let flow = Arc::clone(&flow);
            async move { flow.acquire(1000).await }
        });
        tokio::task::yield_now().await;
        let start = Instant::now();
        first.abort();
        second.await.unwrap();
        assert!(start.elapsed() <= Duration::from_secs(1), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_no_request_waits() {
        let flow = RateLimiter::new(0).flow(Priority::default());
        let start = Instant::now();
        flow.acquire(u64::MAX).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
