//! Who verifies and writes units, over all transfers of a peer, and whether more may be read meanwhile.
//!
//! Each file system has threads and a queue of its own, so that one that hangs holds up only those who write to it. A thread that is done
//! takes the next unit itself: where many come, nobody is woken for each.
//!
//! Invariant: units that came whole and wait for a thread are a few MiB for each file system, whatever the number of transfers and
//! peers. Where these come faster than they can be verified and written, nothing more is read: what was asked for waits in the kernel and
//! at the senders, not here.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// Bytes of whole units that may wait: what threads are kept busy with while the next units come. A larger unit waits alone.
const MAX_WAITING: usize = 4 << 20;

/// Most threads for each file system: at over 1 GiB/s each they hash what a disk can take, and where several hang, the program's
/// other blocking work must still find threads.
const MAX_THREADS: usize = 16;

/// The file systems that are written to. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Verifying {
    threads: usize,
    disks: Arc<Mutex<HashMap<u64, Weak<Disk>>>>,
}

/// One file system's threads and queue. See the module.
#[derive(Debug)]
pub(crate) struct Disk {
    threads: usize,
    /// In bytes. First come, first served: behind a unit that finds no room here, no reader finds any.
    room: Arc<Semaphore>,
    turns: Mutex<Turns>,
}

#[derive(Debug, Default)]
struct Turns {
    waiting: VecDeque<Job>,
    /// The units that have a thread: since when, and where to. The first is the oldest.
    running: BTreeMap<u64, (Instant, PathBuf)>,
    next: u64,
    /// When one was last over.
    ended: Option<Instant>,
}

/// Of those that wait.
pub(crate) type Room = OwnedSemaphorePermit;

/// A unit to be verified and written.
struct Job {
    target: PathBuf,
    work: Box<dyn FnOnce() + Send>,
    room: Room,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Verifying {
    /// On so many threads for each file system: at least one, at most 16.
    pub fn new(threads: usize) -> Self {
        Self {
            threads: threads.clamp(1, MAX_THREADS),
            disks: Arc::default(),
        }
    }

    /// The file system with this number (`st_dev`), for as long as somebody holds it.
    pub(crate) fn disk(&self, device: u64) -> Arc<Disk> {
        let mut disks = lock(&self.disks);
        if let Some(disk) = disks.get(&device).and_then(Weak::upgrade) {
            return disk;
        }
        disks.retain(|_, disk| disk.strong_count() > 0);
        let disk = Arc::new(Disk {
            threads: self.threads,
            room: Arc::new(Semaphore::new(MAX_WAITING)),
            turns: Mutex::default(),
        });
        disks.insert(device, Arc::downgrade(&disk));
        disk
    }
}

impl Disk {
    /// Waits until more may be read. Cancel-safe.
    pub(crate) async fn may_read(&self) {
        // Never closed.
        let _ = self.room.acquire().await;
    }

    /// Waits for room among the units that wait, for one of so many bytes. Cancel-safe.
    pub(crate) async fn room(&self, bytes: usize) -> Option<Room> {
        let bytes = bytes.min(MAX_WAITING) as u32;
        Arc::clone(&self.room).acquire_many_owned(bytes).await.ok()
    }

    /// Has `work` done on a unit that is to be written there: on a thread that may wait, before whatever comes later.
    pub(crate) fn submit(self: &Arc<Self>, room: Room, target: &Path, work: impl FnOnce() + Send + 'static) {
        let job = Job {
            target: target.to_owned(),
            work: Box::new(work),
            room,
        };
        let mut turns = lock(&self.turns);
        turns.waiting.push_back(job);
        if turns.running.len() == self.threads {
            return;
        }
        let Some((mut number, mut job)) = turns.begin() else {
            return;
        };
        drop(turns);
        let disk = Arc::clone(self);
        // Never waited for: whoever gave the work knows when it is done.
        drop(tokio::task::spawn_blocking(move || {
            loop {
                job.run();
                let next = lock(&disk.turns).next(number);
                match next {
                    Some(next) => (number, job) = next,
                    None => return,
                }
            }
        }));
    }

    /// Where the oldest unit is being written to and for how long nothing has got done, if that is at least so long and no thread is
    /// free: everything waits for the disk.
    pub(crate) fn hung(&self, least: Duration) -> Option<(PathBuf, Duration)> {
        let turns = lock(&self.turns);
        if turns.running.len() < self.threads {
            return None;
        }
        let (since, target) = turns.running.values().next()?;
        let idle = turns.ended.map_or(*since, |ended| ended.max(*since)).elapsed();
        (idle >= least).then(|| (target.clone(), idle))
    }
}

impl Turns {
    /// The next that waits has a thread from now on.
    fn begin(&mut self) -> Option<(u64, Job)> {
        let job = self.waiting.pop_front()?;
        let number = self.next;
        self.next += 1;
        self.running.insert(number, (Instant::now(), job.target.clone()));
        Some((number, job))
    }

    /// One is over, and its thread is the next one's.
    fn next(&mut self, over: u64) -> Option<(u64, Job)> {
        self.running.remove(&over);
        self.ended = Some(Instant::now());
        self.begin()
    }
}

impl Job {
    fn run(self) {
        let Self { work, room, .. } = self;
        drop(room);
        // What panicked said so itself, to whoever waits for it and in the log; those that wait still have this thread.
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

    /// Work that lasts until the sender is dropped, and tells its number when it begins.
    fn held(number: u32, told: &mpsc::Sender<u32>) -> (mpsc::Sender<()>, impl FnOnce() + Send + 'static) {
        let (hold, held) = mpsc::channel::<()>();
        let told = told.clone();
        (hold, move || {
            told.send(number).unwrap();
            let _ = held.recv();
        })
    }

    async fn submit(disk: &Arc<Disk>, bytes: usize, work: impl FnOnce() + Send + 'static) {
        disk.submit(disk.room(bytes).await.unwrap(), "/target".as_ref(), work);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_is_read_while_too_much_waits() {
        let verifying = Verifying::new(2);
        let disk = verifying.disk(1);
        let (told, begun) = mpsc::channel();
        let mut holds = VecDeque::new();
        let mut work = |number| {
            let (hold, work) = held(number, &told);
            holds.push_back(hold);
            work
        };
        submit(&disk, MAX_WAITING, work(0)).await;
        assert_eq!(begun.recv(), Ok(0));
        submit(&disk, 3 * MAX_WAITING, work(1)).await;
        assert_eq!(begun.recv(), Ok(1));
        assert!(is_ready(disk.may_read()).await, "nothing waits");
        submit(&disk, MAX_WAITING / 2, work(2)).await;
        assert!(is_ready(disk.may_read()).await, "there is room for more");
        let large = work(3);
        let mut large = pin!(submit(&disk, 3 * MAX_WAITING, large));
        assert!(!is_ready(&mut large).await);
        assert!(!is_ready(disk.may_read()).await, "and now there is none");
        assert!(
            is_ready(verifying.disk(2).may_read()).await,
            "but on another disk"
        );
        holds.pop_front();
        assert_eq!(begun.recv(), Ok(2));
        large.await;
        assert!(
            !is_ready(disk.may_read()).await,
            "the large one fills the room by itself"
        );
        holds.pop_front();
        assert_eq!(begun.recv(), Ok(3));
        assert!(is_ready(disk.may_read()).await);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_gives_up_holds_up_nobody() {
        let disk = Verifying::new(1).disk(1);
        let (told, begun) = mpsc::channel();
        let (busy, work) = held(0, &told);
        submit(&disk, 1, work).await;
        assert_eq!(begun.recv(), Ok(0));
        let (_waits, work) = held(1, &told);
        submit(&disk, MAX_WAITING, work).await;
        assert!(!is_ready(disk.room(MAX_WAITING)).await);
        drop(busy);
        assert_eq!(begun.recv(), Ok(1));
        assert!(is_ready(disk.may_read()).await);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn work_that_panics_costs_no_thread() {
        let disk = Verifying::new(1).disk(1);
        let (done, ends) = oneshot::channel();
        submit(&disk, 1, || panic!("a defect")).await;
        submit(&disk, 1, || done.send(()).unwrap()).await;
        ends.await.unwrap();
    }

    #[tokio::test]
    async fn a_disk_is_one_for_all_who_write_to_it_and_forgotten_after_them() {
        let verifying = Verifying::new(1);
        let disk = verifying.disk(1);
        assert!(Arc::ptr_eq(&disk, &verifying.disk(1)));
        drop(disk);
        let _other = verifying.disk(2);
        assert_eq!(lock(&verifying.disks).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_hangs_where_no_thread_is_free_and_nothing_gets_done() {
        let disk = Verifying::new(2).disk(1);
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        let begin = |target: &str| {
            let room = Arc::clone(&disk.room).try_acquire_owned().unwrap();
            let mut turns = lock(&disk.turns);
            turns.waiting.push_back(Job {
                target: target.into(),
                work: Box::new(|| {}),
                room,
            });
            turns.begin().unwrap().0
        };
        let end = |number| assert!(lock(&disk.turns).next(number).is_none());
        let slow = begin("/slow");
        tokio::time::sleep(minute).await;
        assert_eq!(disk.hung(second), None, "a thread is free");
        let other = begin("/quick");
        assert_eq!(disk.hung(second), Some(("/slow".into(), minute)));
        end(other);
        let other = begin("/quick");
        assert_eq!(disk.hung(second), None, "something was done just now");
        tokio::time::sleep(second).await;
        assert_eq!(disk.hung(second), Some(("/slow".into(), second)));
        end(slow);
        assert_eq!(disk.hung(Duration::ZERO), None);
        end(other);
    }
}
