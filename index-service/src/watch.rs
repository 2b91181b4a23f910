//! Who watches which file, and what they are told.
//!
//! Invariant: a watcher is told every change after its subscription, in order, or is dropped; its queue is bounded and nobody waits
//! for it. Pure apart from the queues.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use potluck_core::{FileId, index_client::WatchEvent, places::network};
use tokio::sync::mpsc;

/// Events that a watcher may be behind before it is dropped: what a crowd that starts together makes in a moment. A watcher that
/// is dropped watches again and gets a new snapshot.
const QUEUE: usize = 1024;

/// The part of all watchers that one source may have, as a divisor: one machine cannot take the places of all others.
const SHARE: usize = 4;

#[derive(Debug)]
struct Watcher {
    number: u64,
    events: mpsc::Sender<WatchEvent>,
}

#[derive(Debug, Default)]
struct Watchers {
    files: HashMap<FileId, Vec<Watcher>>,
    sources: HashMap<IpAddr, usize>,
    count: usize,
    next: u64,
    closed: bool,
}

/// All watchers.
#[derive(Debug)]
pub struct Hub {
    watchers: Mutex<Watchers>,
    most: usize,
}

/// Why nobody can watch now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// As many as the index was told to allow.
    #[error("too many callers are watching: try again later")]
    TooMany,
    /// The index is ending.
    #[error("the index is shutting down")]
    Closed,
}

/// Why a subscription ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The watcher was too far behind.
    TooSlow,
    /// The index is ending.
    Closed,
}

/// One watcher's side; gives its place back when dropped.
#[derive(Debug)]
pub struct Subscription {
    hub: Arc<Hub>,
    file: FileId,
    source: IpAddr,
    number: u64,
    events: mpsc::Receiver<WatchEvent>,
}

impl Hub {
    /// A hub that lets at most this many watch.
    pub fn new(most: usize) -> Self {
        Self {
            watchers: Mutex::default(),
            most,
        }
    }

    /// Begins to watch a file. To miss nothing, the caller keeps the file's providers from changing until it has read them.
    ///
    /// # Errors
    /// [`WatchError`].
    pub fn subscribe(self: &Arc<Self>, file: FileId, source: IpAddr) -> Result<Subscription, WatchError> {
        let source = network(source);
        let (sender, events) = mpsc::channel(QUEUE);
        let mut guard = self.lock();
        let watchers = &mut *guard;
        if watchers.closed {
            return Err(WatchError::Closed);
        }
        let of_source = watchers.sources.get(&source).copied().unwrap_or(0);
        if watchers.count >= self.most || of_source >= self.most.div_ceil(SHARE) {
            return Err(WatchError::TooMany);
        }
        let number = watchers.next;
        watchers.next += 1;
        watchers.count += 1;
        *watchers.sources.entry(source).or_default() += 1;
        watchers.files.entry(file).or_default().push(Watcher {
            number,
            events: sender,
        });
        Ok(Subscription {
            hub: Arc::clone(self),
            file,
            source,
            number,
            events,
        })
    }

    /// Whether anybody watches at all.
    pub fn is_idle(&self) -> bool {
        self.lock().files.is_empty()
    }

    /// The files that somebody watches.
    pub fn files(&self) -> Vec<FileId> {
        self.lock().files.keys().copied().collect()
    }

    /// Tells whoever watches `file`. Whoever is too far behind is dropped.
    pub fn tell(&self, file: &FileId, event: impl FnOnce() -> Option<WatchEvent>) {
        let mut watchers = self.lock();
        let Some(of_file) = watchers.files.get_mut(file) else {
            return;
        };
        let Some(event) = event() else { return };
        of_file.retain(|watcher| watcher.events.try_send(event.clone()).is_ok());
        if of_file.is_empty() {
            watchers.files.remove(file);
        }
    }

    /// How many watch.
    pub fn count(&self) -> usize {
        self.lock().count
    }

    /// Ends every subscription and allows no more.
    pub fn close(&self) {
        let mut watchers = self.lock();
        watchers.closed = true;
        watchers.files.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Watchers> {
        // Whole after every line that could panic.
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// The file that is watched.
    pub const fn file(&self) -> FileId {
        self.file
    }

    /// The next event; `Err` once the subscription is over. Cancel-safe.
    pub async fn next(&mut self) -> Result<WatchEvent, Ended> {
        match self.events.recv().await {
            Some(event) => Ok(event),
            None if self.hub.lock().closed => Err(Ended::Closed),
            None => Err(Ended::TooSlow),
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut guard = self.hub.lock();
        let watchers = &mut *guard;
        watchers.count -= 1;
        if let Some(count) = watchers.sources.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                watchers.sources.remove(&self.source);
            }
        }
        if let Some(of_file) = watchers.files.get_mut(&self.file) {
            of_file.retain(|watcher| watcher.number != self.number);
            if of_file.is_empty() {
                watchers.files.remove(&self.file);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use potluck_core::PeerId;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn left(n: u8) -> Option<WatchEvent> {
        Some(WatchEvent::Left(PeerId([n; 32])))
    }

    #[tokio::test]
    async fn events_arrive_in_order_and_only_of_the_file() {
        let hub = Arc::new(Hub::new(8));
        let mut one = hub.subscribe(FileId([1; 32]), HERE).unwrap();
        hub.tell(&FileId([1; 32]), || left(1));
        hub.tell(&FileId([2; 32]), || unreachable!("nobody watches"));
        hub.tell(&FileId([1; 32]), || left(2));
        assert_eq!(one.next().await.ok(), left(1));
        assert_eq!(one.next().await.ok(), left(2));
    }

    #[tokio::test]
    async fn a_slow_watcher_is_dropped_and_others_go_on() {
        let hub = Arc::new(Hub::new(8));
        let file = FileId([1; 32]);
        let mut slow = hub.subscribe(file, HERE).unwrap();
        let mut quick = hub.subscribe(file, HERE).unwrap();
        for _ in 0..=QUEUE {
            hub.tell(&file, || left(1));
            assert!(quick.next().await.is_ok());
        }
        for _ in 0..QUEUE {
            assert!(slow.next().await.is_ok());
        }
        assert_eq!(slow.next().await, Err(Ended::TooSlow));
        hub.tell(&file, || left(2));
        assert_eq!(quick.next().await.ok(), left(2));
    }

    #[tokio::test]
    async fn places_are_bounded_and_given_back() {
        let hub = Arc::new(Hub::new(8));
        let file = FileId([1; 32]);
        let taken: Vec<_> = (0..2).map(|_| hub.subscribe(file, HERE).unwrap()).collect();
        assert_eq!(hub.subscribe(file, HERE).unwrap_err(), WatchError::TooMany);
        assert!(
            hub.subscribe(file, IpAddr::V4(std::net::Ipv4Addr::BROADCAST))
                .is_ok()
        );
        drop(taken);
        assert_eq!(hub.count(), 0);
        assert!(hub.is_idle());
        assert!(hub.subscribe(file, HERE).is_ok());
    }

    #[tokio::test]
    async fn closing_ends_all() {
        let hub = Arc::new(Hub::new(8));
        let mut one = hub.subscribe(FileId([1; 32]), HERE).unwrap();
        hub.close();
        assert_eq!(one.next().await, Err(Ended::Closed));
        assert_eq!(
            hub.subscribe(FileId([1; 32]), HERE).unwrap_err(),
            WatchError::Closed
        );
    }
}
