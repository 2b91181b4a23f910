//! Who may verify and write a unit now, over all transfers of a peer, and whether more may be read meanwhile.
//!
//! Invariant: units that came whole and wait for a thread are a few MiB, whatever the number of transfers and peers. Where these come
//! faster than they can be verified and written, nothing more is read: what was asked for waits in the kernel and at the senders, not here.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// Bytes of whole units that may wait: what threads are kept busy with while the next units come. A larger unit waits alone.
const MAX_WAITING: usize = 4 << 20;

/// See the module. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Verifying {
    threads: Arc<Semaphore>,
    /// In bytes. First come, first served: behind a unit that finds no room here, no reader finds any.
    room: Arc<Semaphore>,
    turns: Arc<Mutex<Turns>>,
}

/// The units that have a thread.
#[derive(Debug, Default)]
struct Turns {
    /// Since when, and where to: the first is the oldest.
    running: BTreeMap<u64, (Instant, PathBuf)>,
    next: u64,
    /// When one was last over.
    ended: Option<Instant>,
}

/// A thread for one unit, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    number: u64,
    turns: Arc<Mutex<Turns>>,
    _thread: OwnedSemaphorePermit,
}

fn lock(turns: &Mutex<Turns>) -> MutexGuard<'_, Turns> {
    turns.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut turns = lock(&self.turns);
        turns.running.remove(&self.number);
        turns.ended = Some(Instant::now());
    }
}

impl Verifying {
    /// On so many threads, at least one.
    pub fn new(threads: usize) -> Self {
        Self {
            threads: Arc::new(Semaphore::new(threads.max(1))),
            room: Arc::new(Semaphore::new(MAX_WAITING)),
            turns: Arc::default(),
        }
    }

    /// Waits until more may be read. Cancel-safe.
    pub(crate) async fn may_read(&self) {
        // Never closed.
        let _ = self.room.acquire().await;
    }

    /// Waits for a thread for a unit of so many bytes that is to be written there. Cancel-safe.
    pub(crate) async fn thread(&self, bytes: usize, target: &Path) -> Option<Turn> {
        let bytes = bytes.min(MAX_WAITING) as u32;
        let _waits = self.room.acquire_many(bytes).await.ok()?;
        let thread = Arc::clone(&self.threads).acquire_owned().await.ok()?;
        let mut turns = lock(&self.turns);
        let number = turns.next;
        turns.next += 1;
        turns.running.insert(number, (Instant::now(), target.to_owned()));
        drop(turns);
        Some(Turn {
            number,
            turns: Arc::clone(&self.turns),
            _thread: thread,
        })
    }

    /// Where the oldest unit is being written to and for how long nothing has got done, if that is at least so long and no thread is
    /// free: everything waits for a disk.
    pub(crate) fn hung(&self, least: Duration) -> Option<(PathBuf, Duration)> {
        if self.threads.available_permits() > 0 {
            return None;
        }
        let turns = lock(&self.turns);
        let (since, target) = turns.running.values().next()?;
        let idle = turns.ended.map_or(*since, |ended| ended.max(*since)).elapsed();
        (idle >= least).then(|| (target.clone(), idle))
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::pin};

    use tokio::time::timeout;

    use super::*;

    async fn is_ready(future: impl Future) -> bool {
        timeout(Duration::from_millis(20), future).await.is_ok()
    }

    #[tokio::test]
    async fn nothing_is_read_while_too_much_waits() {
        let (verifying, target) = (Verifying::new(2), Path::new("/target"));
        let first = verifying.thread(MAX_WAITING, target).await.unwrap();
        let second = verifying.thread(3 * MAX_WAITING, target).await.unwrap();
        assert!(is_ready(verifying.may_read()).await, "nothing waits");
        let mut small = pin!(verifying.thread(MAX_WAITING / 2, target));
        assert!(!is_ready(&mut small).await);
        assert!(is_ready(verifying.may_read()).await, "there is room for more");
        let mut large = pin!(verifying.thread(3 * MAX_WAITING, target));
        assert!(!is_ready(&mut large).await);
        assert!(!is_ready(verifying.may_read()).await, "and now there is none");
        drop(first);
        let small = small.await.unwrap();
        assert!(
            !is_ready(verifying.may_read()).await,
            "the large one fills the room by itself"
        );
        drop(second);
        assert!(is_ready(large).await);
        assert!(is_ready(verifying.may_read()).await);
        drop(small);
    }

    #[tokio::test]
    async fn who_gives_up_holds_up_nobody() {
        let (verifying, target) = (Verifying::new(1), Path::new("/target"));
        let busy = verifying.thread(1, target).await.unwrap();
        assert!(!is_ready(verifying.thread(MAX_WAITING, target)).await);
        assert!(is_ready(verifying.may_read()).await);
        drop(busy);
        assert!(is_ready(verifying.thread(1, target)).await);
    }
    #[tokio::test(start_paused = true)]
    async fn a_disk_hangs_where_no_thread_is_free_and_nothing_gets_done() {
        let verifying = Verifying::new(2);
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        let slow = verifying.thread(1, Path::new("/slow")).await.unwrap();
        tokio::time::sleep(minute).await;
        assert_eq!(verifying.hung(second), None, "a thread is free");
        let other = verifying.thread(1, Path::new("/quick")).await.unwrap();
        assert_eq!(verifying.hung(second), Some(("/slow".into(), minute)));
        drop(other);
        let other = verifying.thread(1, Path::new("/quick")).await.unwrap();
        assert_eq!(verifying.hung(second), None, "something was done just now");
        tokio::time::sleep(second).await;
        assert_eq!(verifying.hung(second), Some(("/slow".into(), second)));
        drop(slow);
        assert_eq!(verifying.hung(Duration::ZERO), None);
        drop(other);
    }
}
