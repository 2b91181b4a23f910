//! Watchers: subscriptions to the providers of a file, and the unread events of each.
//!
//! A thread delivers the events, because a file may have a hundred thousand watchers. It goes
//! through them in passes. A pass takes along the events that are pending when it begins, and is
//! made in slices; the files with pending events take turns. The thread starts with the first
//! watcher.
//!
//! Watchers and events are numbered in one order, so a watcher gets exactly the events that were
//! published after it subscribed.
//!
//! Invariants:
//!
//! - A watcher receives every change after its subscription, in order, or is dropped. Publishing
//!   never waits for a watcher, and takes as long for many watchers as for one.
//! - A file is in `Watchers::busy` exactly once while it has pending events, and not otherwise.
//! - The number of unread events of all watchers together is bounded. Watchers share one copy of an
//!   event.
//! - Dropping a slow watcher frees its permit immediately, whether or not its caller reads on.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use parking_lot::{Condvar, Mutex, MutexGuard};
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

/// Watchers that get their events between two checks whether more files have events.
const SLICE: usize = 256;

#[derive(Debug)]
struct Watcher {
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

/// A file with its watchers.
#[derive(Debug, Default)]
struct WatchedFile {
    /// By number, so in the order in which they subscribed.
    watchers: BTreeMap<u64, Watcher>,
    /// Events that not all watchers have yet, with their numbers. A watcher gets the events with a
    /// higher number than its own.
    pending: VecDeque<(u64, Arc<ProviderEvent>)>,
    /// The pass through the watchers that is in progress.
    pass: Pass,
}

/// A pass through the watchers of a file.
#[derive(Debug, Default)]
struct Pass {
    /// How many of the pending events it takes along; zero between two passes.
    events: usize,
    /// The number of the next watcher.
    next: u64,
}

#[derive(Debug, Default)]
struct Watchers {
    files: HashMap<FileId, WatchedFile>,
    /// The files with pending events, each once.
    busy: VecDeque<FileId>,
    /// Watchers of files with too many pending events, which are about to be dropped.
    too_slow: VecDeque<BTreeMap<u64, Watcher>>,
    sources: HashMap<IpAddr, usize>,
    count: usize,
    /// The number of the next watcher or event.
    next_number: u64,
    has_thread: bool,
    is_closed: bool,
}

/// All watchers, shared with their subscriptions and with the thread that delivers events.
#[derive(Debug)]
struct Shared {
    watchers: Mutex<Watchers>,
    /// Wakes the thread.
    has_work: Condvar,
    max_watchers: AtomicUsize,
    max_unread: usize,
    unread: Arc<AtomicUsize>,
}

/// All watchers. Dropping the hub ends their subscriptions.
#[derive(Debug)]
pub(crate) struct WatchHub {
    shared: Arc<Shared>,
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
    shared: Arc<Shared>,
    file: FileId,
    number: u64,
    queue: Arc<EventQueue>,
}

impl EventQueue {
    fn state(&self) -> MutexGuard<'_, EventQueueState> {
        // The state is consistent after each line that could panic.
        self.state.lock()
    }

    /// Adds an event; false if `max` events wait already. Does nothing after the end.
    fn push(&self, event: &Arc<ProviderEvent>, max: usize) -> bool {
        let mut state = self.state();
        if state.end.is_some() {
            return true;
        }
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
            shared: Arc::new(Shared {
                watchers: Mutex::default(),
                has_work: Condvar::new(),
                max_watchers: AtomicUsize::new(max),
                max_unread,
                unread: Arc::default(),
            }),
        }
    }

    /// Changes the maximum of watchers. Those that watch already stay.
    pub(crate) fn set_max(&self, max: usize) {
        self.shared.max_watchers.store(max, Ordering::Relaxed);
    }

    /// Starts watching a file. To miss no change, the caller keeps the file's providers from
    /// changing until it has read them.
    ///
    /// # Errors
    /// [`WatchError`] if too many callers watch, the hub is closed, or the system cannot start the
    /// thread that delivers events.
    pub(crate) fn subscribe(
        &self,
        file: FileId,
        source: IpAddr,
    ) -> Result<Subscription, WatchError> {
        let source = client_network(source);
        let shared = &self.shared;
        let mut guard = shared.lock();
        let watchers = &mut *guard;
        if watchers.is_closed {
            return Err(WatchError::Closed);
        }
        let source_count = watchers.sources.get(&source).copied().unwrap_or(0);
        let max_watchers = shared.max_watchers.load(Ordering::Relaxed);
        if watchers.count >= max_watchers || source_count >= max_watchers.div_ceil(SOURCE_DIVISOR) {
            return Err(WatchError::TooMany);
        }
        if !watchers.has_thread {
            let shared = Arc::clone(shared);
            thread::Builder::new()
                .name("watch".to_owned())
                .spawn(move || shared.deliver_until_closed())
                .map_err(|_| WatchError::TooMany)?;
            watchers.has_thread = true;
        }
        let number = watchers.take_number();
        watchers.count += 1;
        *watchers.sources.entry(source).or_default() += 1;
        let queue = Arc::new(EventQueue {
            state: Mutex::default(),
            changed: Notify::new(),
            total_unread: Arc::clone(&shared.unread),
        });
        let watcher = Watcher {
            source,
            queue: Arc::clone(&queue),
        };
        watchers
            .files
            .entry(file)
            .or_default()
            .watchers
            .insert(number, watcher);
        Ok(Subscription {
            shared: Arc::clone(shared),
            file,
            number,
            queue,
        })
    }

    /// Whether there are no watchers.
    pub(crate) fn is_idle(&self) -> bool {
        self.shared.lock().files.is_empty()
    }

    /// Number of watched files.
    pub(crate) fn file_count(&self) -> usize {
        self.shared.lock().files.len()
    }

    /// The watched files.
    pub(crate) fn files(&self) -> Vec<FileId> {
        self.shared.lock().files.keys().copied().collect()
    }

    /// Sends an event to the watchers of `file`. `event` runs only if there are watchers. The time
    /// that this takes does not depend on their number: a thread delivers the event.
    pub(crate) fn publish(&self, file: &FileId, event: impl FnOnce() -> Option<ProviderEvent>) {
        let mut guard = self.shared.lock();
        let watchers = &mut *guard;
        let Some(watched) = watchers.files.get_mut(file) else {
            return;
        };
        let Some(event) = event().map(Arc::new) else {
            return;
        };
        let number = watchers.next_number;
        watchers.next_number += 1;
        if watched.pending.len() >= MAX_UNREAD {
            // Some watcher would have more unread events than it may.
            if let Some(watched) = watchers.files.remove(file) {
                watchers.busy.retain(|busy| busy != file);
                watchers.too_slow.push_back(watched.watchers);
            }
        } else {
            watched.pending.push_back((number, event));
            if watched.pending.len() == 1 {
                watchers.busy.push_back(*file);
            }
        }
        drop(guard);
        self.shared.has_work.notify_one();
    }

    /// Number of watchers.
    pub(crate) fn count(&self) -> usize {
        self.shared.lock().count
    }

    /// Number of unread events of all watchers.
    #[cfg(test)]
    pub(crate) fn unread(&self) -> usize {
        self.shared.unread.load(Ordering::Relaxed)
    }

    /// Waits until all events are delivered.
    #[cfg(test)]
    pub(crate) fn wait_until_delivered(&self) {
        while self.shared.lock().has_work() {
            thread::yield_now();
        }
    }

    /// Ends all subscriptions and refuses new ones.
    pub(crate) fn close(&self) {
        let mut guard = self.shared.lock();
        let watchers = &mut *guard;
        watchers.is_closed = true;
        watchers.busy.clear();
        let files = std::mem::take(&mut watchers.files).into_values();
        let too_slow = std::mem::take(&mut watchers.too_slow);
        let all = files.map(|watched| watched.watchers).chain(too_slow);
        for watcher in all.flat_map(BTreeMap::into_values) {
            watcher.queue.end(SubscriptionEnd::Closed);
            watchers.remove_from_counts(watcher.source);
        }
        drop(guard);
        self.shared.has_work.notify_one();
    }
}

impl Drop for WatchHub {
    fn drop(&mut self) {
        self.close();
    }
}

/// A part of a pass: some watchers of a file, and the events for them.
struct Slice {
    file: FileId,
    watchers: Vec<(u64, Arc<EventQueue>)>,
    events: Vec<(u64, Arc<ProviderEvent>)>,
    /// Number of all watchers.
    count: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Watchers> {
        // The state is consistent after each line that could panic.
        self.watchers.lock()
    }

    /// Delivers events until the hub is closed.
    fn deliver_until_closed(&self) {
        loop {
            let mut guard = self.lock();
            while !guard.has_work() {
                if guard.is_closed {
                    return;
                }
                self.has_work.wait(&mut guard);
            }
            guard.drop_too_slow();
            let slice = guard.next_slice();
            // Watchers are woken without the lock, because a committer may wait for it.
            MutexGuard::unlock_fair(guard);
            if let Some(slice) = slice {
                self.deliver(&slice);
            }
        }
    }

    fn deliver(&self, slice: &Slice) {
        let mut too_slow = Vec::new();
        for (number, queue) in &slice.watchers {
            let events = slice.events.iter().filter(|(event, _)| event > number);
            for (_, event) in events {
                let max = match self.unread.load(Ordering::Relaxed) < self.max_unread {
                    true => MAX_UNREAD,
                    false => self.max_unread / slice.count.max(1),
                };
                if !queue.push(event, max) {
                    too_slow.push(*number);
                    break;
                }
            }
        }
        let mut watchers = self.lock();
        for number in too_slow {
            if let Some(watcher) = watchers.remove(&slice.file, number) {
                watcher.queue.end(SubscriptionEnd::TooSlow);
            }
        }
        watchers.end_slice(&slice.file);
    }
}

impl Watchers {
    fn take_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    fn has_work(&self) -> bool {
        !self.busy.is_empty() || !self.too_slow.is_empty()
    }

    /// The next watchers of the next file with pending events. The file stays first in the list of
    /// such files until [`Self::end_slice`].
    fn next_slice(&mut self) -> Option<Slice> {
        let file = *self.busy.front()?;
        let Some(watched) = self.files.get_mut(&file) else {
            debug_assert!(false, "a file without watchers has pending events");
            self.busy.pop_front();
            return None;
        };
        if watched.pass.events == 0 {
            watched.pass = Pass {
                events: watched.pending.len(),
                next: 0,
            };
        }
        let Pass { events, next } = watched.pass;
        let max = (SLICE / events.max(1)).max(1);
        let slice: Vec<_> = watched
            .watchers
            .range(next..)
            .take(max)
            .map(|(&number, watcher)| (number, Arc::clone(&watcher.queue)))
            .collect();
        let events = watched.pending.iter().take(events).cloned().collect();
        match slice.last() {
            Some((last, _)) if slice.len() == max => watched.pass.next = last + 1,
            _ => watched.pass.next = u64::MAX,
        }
        Some(Slice {
            file,
            watchers: slice,
            events,
            count: self.count,
        })
    }

    /// Ends the slice of a file, and the pass after its last slice.
    fn end_slice(&mut self, file: &FileId) {
        // The last watcher, or the hub, may have ended meanwhile.
        if self.busy.front() != Some(file) {
            return;
        }
        self.busy.pop_front();
        let Some(watched) = self.files.get_mut(file) else {
            return;
        };
        if watched.pass.next == u64::MAX {
            watched.pending.drain(..watched.pass.events);
            watched.pass = Pass::default();
        }
        if !watched.pending.is_empty() {
            self.busy.push_back(*file);
        }
    }

    /// Drops some of the watchers that are too slow.
    fn drop_too_slow(&mut self) {
        for _ in 0..SLICE {
            let Some(watchers) = self.too_slow.front_mut() else {
                return;
            };
            match watchers.pop_first() {
                Some((_, watcher)) => {
                    watcher.queue.end(SubscriptionEnd::TooSlow);
                    self.remove_from_counts(watcher.source);
                }
                None => drop(self.too_slow.pop_front()),
            }
        }
    }

    /// Removes a watcher of a file.
    fn remove(&mut self, file: &FileId, number: u64) -> Option<Watcher> {
        let watched = self.files.get_mut(file)?;
        let watcher = watched.watchers.remove(&number)?;
        if watched.watchers.is_empty() {
            if !watched.pending.is_empty() {
                self.busy.retain(|busy| busy != file);
            }
            self.files.remove(file);
        }
        self.remove_from_counts(watcher.source);
        Some(watcher)
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
        // If the hub dropped the watcher, its permit is free already.
        let removed = self.shared.lock().remove(&self.file, self.number);
        drop(removed);
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
        let hub = WatchHub::new(8);
        let mut one = hub.subscribe(FileId([1; 32]), HERE).unwrap();
        hub.publish(&FileId([1; 32]), || left(1));
        hub.publish(&FileId([2; 32]), || unreachable!("the file has no watchers"));
        hub.publish(&FileId([1; 32]), || left(2));
        assert_eq!(next_event(&mut one).await, left(1));
        assert_eq!(next_event(&mut one).await, left(2));
    }

    #[tokio::test]
    async fn only_a_slow_watcher_is_dropped() {
        let hub = WatchHub::new(8);
        let file = FileId([1; 32]);
        let mut slow = hub.subscribe(file, HERE).unwrap();
        let mut quick = hub.subscribe(file, HERE).unwrap();
        for _ in 0..MAX_UNREAD {
            hub.publish(&file, || left(1));
            assert!(quick.next().await.is_ok());
        }
        hub.wait_until_delivered();
        assert_eq!((hub.count(), hub.unread()), (2, MAX_UNREAD));
        hub.publish(&file, || left(1));
        assert!(quick.next().await.is_ok());
        hub.wait_until_delivered();
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
        let hub = WatchHub::with_bounds(4 * 40, 400);
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
                hub.wait_until_delivered();
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
        let hub = WatchHub::new(8);
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
        let hub = WatchHub::new(8);
        let mut one = hub.subscribe(FileId([1; 32]), HERE).unwrap();
        hub.close();
        assert_eq!(one.next().await, Err(SubscriptionEnd::Closed));
        assert_eq!(
            hub.subscribe(FileId([1; 32]), HERE).unwrap_err(),
            WatchError::Closed
        );
    }

    #[tokio::test]
    async fn many_watchers_receive_all_events_in_order() {
        let hub = WatchHub::new(100_000);
        let file = FileId([1; 32]);
        let mut watchers: Vec<_> = (0..3 * SLICE)
            .map(|_| hub.subscribe(file, HERE).unwrap())
            .collect();
        for n in 0..10 {
            hub.publish(&file, || left(n));
            // Some come and go while events are on their way.
            drop(watchers.swap_remove(usize::from(n) * 7));
            let mut late = hub.subscribe(file, HERE).unwrap();
            hub.publish(&file, || left(100 + n));
            assert_eq!(next_event(&mut late).await, left(100 + n), "only later events");
        }
        for watcher in &mut watchers {
            for n in 0..10 {
                assert_eq!(next_event(watcher).await, left(n));
                assert_eq!(next_event(watcher).await, left(100 + n));
            }
        }
    }

    #[tokio::test]
    async fn too_many_pending_events_end_the_subscriptions() {
        let hub = WatchHub::new(8);
        let file = FileId([1; 32]);
        let mut watcher = hub.subscribe(file, HERE).unwrap();
        {
            // The thread cannot deliver anything now.
            let mut guard = hub.shared.lock();
            let watched = guard.files.get_mut(&file).unwrap();
            let event = Arc::new(left(1).unwrap());
            watched.pending = (0..MAX_UNREAD).map(|_| (u64::MAX, Arc::clone(&event))).collect();
        }
        hub.publish(&file, || left(1));
        assert_eq!(watcher.next().await, Err(SubscriptionEnd::TooSlow));
        hub.wait_until_delivered();
        assert_eq!((hub.count(), hub.unread()), (0, 0));
    }
}
