//! Verifies and writes units for all downloads of a peer, and applies backpressure to reading.
//!
//! Each file system has its own threads and queue, so a file system that hangs delays only its own
//! downloads. A thread that finishes a unit takes the next one itself, which saves a wake-up per
//! unit.
//!
//! Invariant: the complete units that wait for a thread are bounded to a few MiB for each file
//! system, regardless of the number of downloads and peers. If units arrive faster than the threads
//! process them, reading stops and data waits in the kernel and at the senders.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::metrics::histogram::Histogram;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// Maximum bytes of queued units: keeps the threads busy while the next units arrive. A larger unit
/// is queued alone.
const MAX_QUEUED_BYTES: usize = 4 << 20;

/// Maximum threads for each file system. At over 1 GiB/s each they hash as fast as a disk writes,
/// and if several file systems hang, other blocking work still finds threads.
const MAX_THREADS: usize = 16;

/// Upper bounds of the time to verify and write a unit, in seconds.
const SECONDS: [f64; 9] = [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0];

/// One pool for each file system. Cheap to clone; clones share the pools.
#[derive(Debug, Clone)]
pub struct DiskPools {
    threads: usize,
    pools: Arc<Mutex<HashMap<u64, Weak<DiskPool>>>>,
    /// Time to verify and write a unit.
    seconds: Histogram,
}

/// The threads and the queue of one file system.
#[derive(Debug)]
pub(crate) struct DiskPool {
    threads: usize,
    /// Free bytes of the queue. The semaphore is fair: while a unit waits for room, no reader gets
    /// a permit.
    queue_space: Arc<Semaphore>,
    queue: Mutex<JobQueue>,
    seconds: Histogram,
}

#[derive(Debug, Default)]
struct JobQueue {
    waiting: VecDeque<VerifyJob>,
    /// The units on a thread, oldest first, each with its start time and target path.
    running: BTreeMap<u64, (Instant, PathBuf)>,
    last_number: u64,
    /// When a unit was last finished.
    last_finished: Option<Instant>,
}

/// A permit for the queued bytes of one unit.
pub(crate) type QueuePermit = OwnedSemaphorePermit;

/// A unit to verify and write.
struct VerifyJob {
    target: PathBuf,
    work: Box<dyn FnOnce() + Send>,
    permit: QueuePermit,
}

impl fmt::Debug for VerifyJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyJob")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

impl DiskPools {
    /// Uses this many threads for each file system, clamped to the range 1 to 16.
    pub fn new(threads: usize) -> Self {
        Self {
            threads: threads.clamp(1, MAX_THREADS),
            pools: Arc::default(),
            seconds: Histogram::new(SECONDS),
        }
    }

    /// The time to verify and write a unit, in seconds.
    pub(crate) const fn seconds(&self) -> &Histogram {
        &self.seconds
    }

    /// Units that wait for a thread.
    pub(crate) fn waiting_units(&self) -> usize {
        let pools = self.pools.lock();
        let pools = pools.values().filter_map(Weak::upgrade);
        pools.map(|pool| pool.queue.lock().waiting.len()).sum()
    }

    /// The pool of the file system with this device number (`st_dev`). It lives while a caller
    /// holds it.
    pub(crate) fn pool(&self, device: u64) -> Arc<DiskPool> {
        let mut pools = self.pools.lock();
        if let Some(pool) = pools.get(&device).and_then(Weak::upgrade) {
            return pool;
        }
        pools.retain(|_, pool| pool.strong_count() > 0);
        let pool = Arc::new(DiskPool {
            threads: self.threads,
            queue_space: Arc::new(Semaphore::new(MAX_QUEUED_BYTES)),
            queue: Mutex::default(),
            seconds: self.seconds.clone(),
        });
        pools.insert(device, Arc::downgrade(&pool));
        pool
    }
}

impl DiskPool {
    /// Waits until the queue has room, so that more may be read. Cancel-safe.
    pub(crate) async fn wait_for_space(&self) {
        // The semaphore is never closed.
        let _ = self.queue_space.acquire().await;
    }

    /// Waits for room in the queue for a unit of this many bytes. Cancel-safe.
    pub(crate) async fn acquire(&self, bytes: usize) -> Option<QueuePermit> {
        let bytes = bytes.min(MAX_QUEUED_BYTES) as u32;
        Arc::clone(&self.queue_space).acquire_many_owned(bytes).await.ok()
    }

    /// Queues `work` for a unit that is written to `target`. It runs on a blocking thread, in order
    /// of submission.
    pub(crate) fn submit(
        self: &Arc<Self>,
        space: QueuePermit,
        target: &Path,
        work: impl FnOnce() + Send + 'static,
    ) {
        let job = VerifyJob {
            target: target.to_owned(),
            work: Box::new(work),
            permit: space,
        };
        let mut queue = self.queue.lock();
        queue.waiting.push_back(job);
        if queue.running.len() == self.threads {
            return;
        }
        let Some((mut number, mut job)) = queue.start_next() else {
            return;
        };
        drop(queue);
        let pool = Arc::clone(self);
        // Not awaited: the work itself reports its completion.
        drop(tokio::task::spawn_blocking(move || {
            loop {
                let started = Instant::now();
                job.run();
                pool.seconds.observe(started.elapsed().as_secs_f64());
                let next = pool.queue.lock().finish_and_start_next(number);
                match next {
                    Some(next) => (number, job) = next,
                    None => return,
                }
            }
        }));
    }

    /// The target of the oldest unit and the time since a unit last finished, if all threads are
    /// busy and that time is at least `min`.
    pub(crate) fn hung_for(&self, min: Duration) -> Option<(PathBuf, Duration)> {
        let queue = self.queue.lock();
        if queue.running.len() < self.threads {
            return None;
        }
        let (since, target) = queue.running.values().next()?;
        let idle = queue
            .last_finished
            .map_or(*since, |ended| ended.max(*since))
            .elapsed();
        (idle >= min).then(|| (target.clone(), idle))
    }
}

impl JobQueue {
    /// Moves the next queued unit to a thread.
    fn start_next(&mut self) -> Option<(u64, VerifyJob)> {
        let job = self.waiting.pop_front()?;
        let number = self.last_number;
        self.last_number += 1;
        self.running.insert(number, (Instant::now(), job.target.clone()));
        Some((number, job))
    }

    /// Finishes a unit and hands its thread to the next one.
    fn finish_and_start_next(&mut self, finished: u64) -> Option<(u64, VerifyJob)> {
        self.running.remove(&finished);
        self.last_finished = Some(Instant::now());
        self.start_next()
    }
}

impl VerifyJob {
    fn run(self) {
        let Self {
            work, permit: space, ..
        } = self;
        drop(space);
        // A panic was already logged and reported to the waiting request; the thread must
        // continue with the queue.
        let _ = catch_unwind(AssertUnwindSafe(work));
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::pin, sync::mpsc};

    use tokio::{sync::oneshot, time::timeout};

    use super::*;

    async fn is_ready(future: impl Future) -> bool {
        timeout(Duration::from_millis(20), future).await.is_ok()
    }

    /// Work that sends `number` when it starts and runs until the returned sender is dropped.
    fn blocked(
        number: u32,
        started: &mpsc::Sender<u32>,
    ) -> (mpsc::Sender<()>, impl FnOnce() + Send + 'static) {
        let (release, released) = mpsc::channel::<()>();
        let started = started.clone();
        (release, move || {
            started.send(number).unwrap();
            let _ = released.recv();
        })
    }

    async fn submit(disk: &Arc<DiskPool>, bytes: usize, work: impl FnOnce() + Send + 'static) {
        disk.submit(disk.acquire(bytes).await.unwrap(), "/target".as_ref(), work);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn reading_stops_while_the_queue_is_full() {
        let pools = DiskPools::new(2);
        let disk = pools.pool(1);
        let (sender, started) = mpsc::channel();
        let mut running = VecDeque::new();
        let mut work = |number| {
            let (release, work) = blocked(number, &sender);
            running.push_back(release);
            work
        };
        submit(&disk, MAX_QUEUED_BYTES, work(0)).await;
        assert_eq!(started.recv(), Ok(0));
        submit(&disk, 3 * MAX_QUEUED_BYTES, work(1)).await;
        assert_eq!(started.recv(), Ok(1));
        assert!(is_ready(disk.wait_for_space()).await, "the queue is empty");
        submit(&disk, MAX_QUEUED_BYTES / 2, work(2)).await;
        assert!(is_ready(disk.wait_for_space()).await, "the queue has room");
        let large = work(3);
        let mut large = pin!(submit(&disk, 3 * MAX_QUEUED_BYTES, large));
        assert!(!is_ready(&mut large).await);
        assert!(!is_ready(disk.wait_for_space()).await, "the queue is full");
        assert!(
            is_ready(pools.pool(2).wait_for_space()).await,
            "the queue of another disk is empty"
        );
        running.pop_front();
        assert_eq!(started.recv(), Ok(2));
        large.await;
        assert!(
            !is_ready(disk.wait_for_space()).await,
            "the large one fills the queue by itself"
        );
        running.pop_front();
        assert_eq!(started.recv(), Ok(3));
        assert!(is_ready(disk.wait_for_space()).await);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_cancelled_acquisition_blocks_no_other() {
        let disk = DiskPools::new(1).pool(1);
        let (sender, started) = mpsc::channel();
        let (busy, work) = blocked(0, &sender);
        submit(&disk, 1, work).await;
        assert_eq!(started.recv(), Ok(0));
        let (_waits, work) = blocked(1, &sender);
        submit(&disk, MAX_QUEUED_BYTES, work).await;
        assert!(!is_ready(disk.acquire(MAX_QUEUED_BYTES)).await);
        drop(busy);
        assert_eq!(started.recv(), Ok(1));
        assert!(is_ready(disk.wait_for_space()).await);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_panic_does_not_end_the_thread() {
        let disk = DiskPools::new(1).pool(1);
        let (done, ends) = oneshot::channel();
        submit(&disk, 1, || panic!("a defect")).await;
        submit(&disk, 1, || done.send(()).unwrap()).await;
        ends.await.unwrap();
    }

    #[tokio::test]
    async fn all_writers_to_a_disk_share_a_pool_that_ends_with_them() {
        let pools = DiskPools::new(1);
        let disk = pools.pool(1);
        assert!(Arc::ptr_eq(&disk, &pools.pool(1)));
        drop(disk);
        let _other = pools.pool(2);
        assert_eq!(pools.pools.lock().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_hangs_if_all_threads_are_busy_and_nothing_finishes() {
        let disk = DiskPools::new(2).pool(1);
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        let start = |target: &str| {
            let space = Arc::clone(&disk.queue_space).try_acquire_owned().unwrap();
            let mut queue = disk.queue.lock();
            queue.waiting.push_back(VerifyJob {
                target: target.into(),
                work: Box::new(|| {}),
                permit: space,
            });
            queue.start_next().unwrap().0
        };
        let finish = |number| assert!(disk.queue.lock().finish_and_start_next(number).is_none());
        let slow = start("/slow");
        tokio::time::sleep(minute).await;
        assert_eq!(disk.hung_for(second), None, "a thread is free");
        let other = start("/quick");
        assert_eq!(disk.hung_for(second), Some(("/slow".into(), minute)));
        finish(other);
        let other = start("/quick");
        assert_eq!(disk.hung_for(second), None, "a unit was finished just now");
        tokio::time::sleep(second).await;
        assert_eq!(disk.hung_for(second), Some(("/slow".into(), second)));
        finish(slow);
        assert_eq!(disk.hung_for(Duration::ZERO), None);
        finish(other);
    }
}
