//! Watchers: subscriptions to the providers of a file, and the unread events of each.
//!
//! Invariants:
//!
//! - A watcher receives every change after its subscription, in order, or is dropped. Publishing
//!   never waits for a watcher.
//! - The number of unread events of all watchers together is bounded. Watchers share one copy of an
//!   event.
//! - Dropping a slow watcher frees its permit immediately, whether or not its caller reads on.
//!
//! Pure apart from waking readers.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};
use potluck_core::{FileId, grpc::limiter::client_network, model::ProviderEvent};
use tokio::sync::Notify;

/// Maximum unread events per watcher: the burst that a crowd produces by starting together. A
/// dropped watcher subscribes again and gets a new snapshot.
const MAX_UNREAD: usize = 1024;

/// Maximum unread events of all watchers: about 80 MiB if no two watchers share one. Beyond it,
/// only watchers with more than an equal share are dropped.
const MAX_TOTAL_UNREAD: usize = 512 * 1024;

/// One source may have at most the maximum number of watchers divided by this, so that one machine
/// cannot use all of them.
const SOURCE_DIVISOR: usize = 4;

#[derive(Debug)]
struct Watcher {
    number: u64,
    source: IpAddr,
    queue: Arc<EventQueue>,
}

/// The unread events of one watcher.
#[derive(Debug)]
struct EventQueue {
    state: Mutex<EventQueueState>,
    /// Wakes the reader for an event or the end.
    changed: Notify,
    /// Number of unread events of all watchers.
    total_unread: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct EventQueueState {
    events: VecDeque<Arc<ProviderEvent>>,
    end: Option<SubscriptionEnd>,
}

#[derive(Debug, Default)]
struct Watchers {
    files: HashMap<FileId, Vec<Watcher>>,
    sources: HashMap<IpAddr, usize>,
    count: usize,
    next_number: u64,
    is_closed: bool,
}

/// All watchers.
#[derive(Debug)]
pub(crate) struct WatchHub {
    watchers: Mutex<Watchers>,
    max_watchers: usize,
    max_unread: usize,
    unread: Arc<AtomicUsize>,
}

/// Why a subscription was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WatchError {
    /// The configured maximum is reached, in total or for this source.
    #[error("too many watch streams are open: try again later")]
    TooMany,
    /// The index is shutting down.
    #[error("the index is shutting down")]
    Closed,
}

/// Why a subscription ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SubscriptionEnd {
    /// The watcher was too far behind.
    TooSlow,
    /// The index is shutting down.
    Closed,
}

/// The reading end of a subscription; frees its permit when dropped.
#[derive(Debug)]
pub(crate) struct Subscription {
    hub: Arc<WatchHub>,
    file: FileId,
    number: u64,
    queue: Arc<EventQueue>,
}

impl EventQueue {
    fn state(&self) -> MutexGuard<'_, EventQueueState> {
        // The state is consistent after each line that could panic.
        self.state.lock()
    }

    /// Adds an event; false if `max` events wait already.
    fn push(&self, event: &Arc<ProviderEvent>, max: usize) -> bool {
        let mut state = self.state();
        if state.events.len() >= max {
            return false;
        }
        state.events.push_back(Arc::clone(event));
        self.total_unread.fetch_add(1, Ordering::Relaxed);
        drop(state);
        self.changed.notify_one();
        true
    }

    /// Ends the subscription and discards the unread events.
    fn end(&self, end: SubscriptionEnd) {
        let mut state = self.state();
        state.end.get_or_insert(end);
        let unread = std::mem::take(&mut state.events);
        self.total_unread.fetch_sub(unread.len(), Ordering::Relaxed);
        drop(state);
        self.changed.notify_one();
    }
}

impl Watchers {
    /// Removes one watcher of this source from the counts.
    fn remove_from_counts(&mut self, source: IpAddr) {
        self.count -= 1;
        if let Some(count) = self.sources.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&source);
            }
        }
    }
}

impl WatchHub {
    /// A hub with at most `max` watchers.
    pub(crate) fn new(max: usize) -> Self {
        Self::with_bounds(max, MAX_TOTAL_UNREAD)
    }

    /// A hub with at most `max` watchers and about `max_unread` unread events.
    fn with_bounds(max: usize, max_unread: usize) -> Self {
        Self {
            watchers: Mutex::default(),
            max_watchers: max,
            max_unread,
            unread: Arc::default(),
        }
    }

    /// Starts watching a file. To miss no change, the caller keeps the file's providers from
    /// changing until it has read them.
    ///
    /// # Errors
    /// [`WatchError`] if too many callers watch or the hub is closed.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        file: FileId,
        source: IpAddr,
    ) -> Result<Subscription, WatchError> {
        let source = client_network(source);
        let mut guard = self.lock();
        let watchers = &mut *guard;
        if watchers.is_closed {
            return Err(WatchError::Closed);
        }
        let source_count = watchers.sources.get(&source).copied().unwrap_or(0);
        if watchers.count >= self.max_watchers
            || source_count >= self.max_watchers.div_ceil(SOURCE_DIVISOR)
        {
            return Err(WatchError::TooMany);
        }
        let number = watchers.next_number;
        watchers.next_number += 1;
        watchers.count += 1;
        *watchers.sources.entry(source).or_default() += 1;
        let queue = Arc::new(EventQueue {
            state: Mutex::default(),
            changed: Notify::new(),
            total_unread: Arc::clone(&self.unread),
        });
        watchers.files.entry(file).or_default().push(Watcher {
            number,
            source,
            queue: Arc::clone(&queue),
        });
        Ok(Subscription {
            hub: Arc::clone(self),
            file,
            number,
            queue,
        })
    }

    /// Whether there are no watchers.
    pub(crate) fn is_idle(&self) -> bool {
        self.lock().files.is_empty()
    }

    /// Number of watched files.
    pub(crate) fn file_count(&self) -> usize {
        self.lock().files.len()
    }

    /// The watched files.
    pub(crate) fn files(&self) -> Vec<FileId> {
        self.lock().files.keys().copied().collect()
    }

    /// Sends an event to the watchers of `file`, and drops those that are too far behind. `event`
    /// runs only if there are watchers.
    pub(crate) fn publish(&self, file: &FileId, event: impl FnOnce() -> Option<ProviderEvent>) {
        let mut guard = self.lock();
        let watchers = &mut *guard;
        let Some(file_watchers) = watchers.files.get_mut(file) else {
            return;
        };
        let Some(event) = event().map(Arc::new) else {
            return;
        };
        let mut dropped_sources = Vec::new();
        let count = watchers.count;
        file_watchers.retain(|watcher| {
            let max = match self.unread.load(Ordering::Relaxed) < self.max_unread {
                true => MAX_UNREAD,
                false => self.max_unread / count.max(1),
            };
            let was_queued = watcher.queue.push(&event, max);
            if !was_queued {
                watcher.queue.end(SubscriptionEnd::TooSlow);
                dropped_sources.push(watcher.source);
            }
            was_queued
        });
        if file_watchers.is_empty() {
            watchers.files.remove(file);
        }
        for source in dropped_sources {
            watchers.remove_from_counts(source);
        }
    }

    /// Number of watchers.
    pub(crate) fn count(&self) -> usize {
        self.lock().count
    }

    /// Number of unread events of all watchers.
    #[cfg(test)]
    pub(crate) fn unread(&self) -> usize {
        self.unread.load(Ordering::Relaxed)
    }

    /// Ends all subscriptions and refuses new ones.
    pub(crate) fn close(&self) {
        let mut guard = self.lock();
        let watchers = &mut *guard;
        watchers.is_closed = true;
        for watcher in std::mem::take(&mut watchers.files).into_values().flatten() {
            watcher.queue.end(SubscriptionEnd::Closed);
            watchers.remove_from_counts(watcher.source);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Watchers> {
        // The state is consistent after each line that could panic.
        self.watchers.lock()
    }
}

impl Subscription {
    /// The watched file.
    pub(crate) const fn file(&self) -> FileId {
        self.file
    }

    /// Waits for the next event; `Err` once the subscription has ended. Cancel-safe: no event is
    /// taken unless it is returned.
    pub(crate) async fn next(&mut self) -> Result<Arc<ProviderEvent>, SubscriptionEnd> {
        loop {
            {
                let mut state = self.queue.state();
                if let Some(end) = state.end {
                    return Err(end);
                }
                if let Some(event) = state.events.pop_front() {
                    if state.events.is_empty() {
                        // Free the buffer: most watchers are idle most of the time.
                        state.events = VecDeque::new();
                    }
                    self.queue.total_unread.fetch_sub(1, Ordering::Relaxed);
                    return Ok(event);
                }
            }
            // `notify_one` stores a permit, so an event that arrives before this await still wakes
            // it.
            self.queue.changed.notified().await;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut guard = self.hub.lock();
        let watchers = &mut *guard;
        // If the hub dropped the watcher, its permit is free already.
        if let Some(file_watchers) = watchers.files.get_mut(&self.file)
            && let Some(at) = file_watchers
                .iter()
                .position(|watcher| watcher.number == self.number)
        {
            let watcher = file_watchers.swap_remove(at);
            if file_watchers.is_empty() {
                watchers.files.remove(&self.file);
            }
            watchers.remove_from_counts(watcher.source);
        }
        self.queue.end(SubscriptionEnd::Closed);
    }
}

#[cfg(test)]
mod tests {
    use potluck_core::PeerId;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn left(n: u8) -> Option<ProviderEvent> {
        Some(ProviderEvent::Left(PeerId([n; 32])))
    }

    async fn next_event(subscription: &mut Subscription) -> Option<ProviderEvent> {
        subscription
            .next()
            .await
            .ok()
            .map(|event| ProviderEvent::clone(&event))
    }

    #[tokio::test]
    async fn a_watcher_receives_the_events_of_its_file_in_order() {
        let hub = Arc::new(WatchHub::new(8));
        let mut one = hub.subscribe(FileId([1; 32]), HERE).unwrap();
        hub.publish(&FileId([1; 32]), || left(1));
        hub.publish(&FileId([2; 32]), || unreachable!("the file has no watchers"));
        hub.publish(&FileId([1; 32]), || left(2));
        assert_eq!(next_event(&mut one).await, left(1));
        assert_eq!(next_event(&mut one).await, left(2));
    }

    #[tokio::test]
    async fn only_a_slow_watcher_is_dropped() {
        let hub = Arc::new(WatchHub::new(8));
        let file = FileId([1; 32]);
        let mut slow = hub.subscribe(file, HERE).unwrap();
        let mut quick = hub.subscribe(file, HERE).unwrap();
        for _ in 0..MAX_UNREAD {
            hub.publish(&file, || left(1));
            assert!(quick.next().await.is_ok());
        }
        assert_eq!((hub.count(), hub.unread()), (2, MAX_UNREAD));
        hub.publish(&file, || left(1));
        assert!(quick.next().await.is_ok());
        // The slow watcher has read nothing and is still alive; its permit and memory are free
        // nevertheless.
        assert_eq!((hub.count(), hub.unread()), (1, 0));
        let _another = hub.subscribe(file, HERE).unwrap();
        assert_eq!(
            slow.next().await,
            Err(SubscriptionEnd::TooSlow),
            "the subscription ends immediately"
        );
        drop(slow);
        assert_eq!(hub.count(), 2);
        hub.publish(&file, || left(2));
        assert_eq!(next_event(&mut quick).await, left(2));
    }

    #[tokio::test]
    async fn the_unread_events_of_all_watchers_are_bounded() {
        let hub = Arc::new(WatchHub::with_bounds(4 * 40, 400));
        let files: Vec<FileId> = (0..40).map(|n| FileId([n; 32])).collect();
        let mut slow: Vec<_> = files
            .iter()
            .map(|&file| hub.subscribe(file, HERE).unwrap())
            .collect();
        let mut reader = hub
            .subscribe(files[0], IpAddr::V4(std::net::Ipv4Addr::BROADCAST))
            .unwrap();
        for _ in 0..100 {
            for file in &files {
                hub.publish(file, || left(1));
                assert!(hub.unread() <= 400 + 40);
            }
            assert_eq!(
                next_event(&mut reader).await,
                left(1),
                "a watcher that reads is not dropped"
            );
        }
        // The remaining watchers fit the bound.
        let remaining = hub.count() - 1;
        assert!(remaining <= 4 && hub.unread() == 100 * remaining, "{remaining}");
        let mut ended = 0;
        for watcher in &mut slow {
            ended += usize::from(watcher.next().await == Err(SubscriptionEnd::TooSlow));
        }
        assert_eq!(ended, 40 - remaining);
    }

    #[tokio::test]
    async fn watchers_are_limited_and_released() {
        let hub = Arc::new(WatchHub::new(8));
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
    async fn closing_ends_all_subscriptions() {
        let hub = Arc::new(WatchHub::new(8));
        let mut one = hub.subscribe(FileId([1; 32]), HERE).unwrap();
        hub.close();
        assert_eq!(one.next().await, Err(SubscriptionEnd::Closed));
        assert_eq!(
            hub.subscribe(FileId([1; 32]), HERE).unwrap_err(),
            WatchError::Closed
        );
    }
}
