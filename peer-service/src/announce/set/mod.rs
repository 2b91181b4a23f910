//! The set of files that this peer announces to the index: files of the library and of running
//! downloads.
//!
//! Each change has a number. A registrar that knows the number of the last change that it has seen
//! learns exactly the changes since then.
//!
//! For files of the library, the set keeps only the id, and asks the library for the registration
//! when the index is informed. Otherwise the data of a hundred thousand files would be in memory
//! twice.
//!
//! Invariants: one entry per id; numbers increase with each change. Removals are remembered only
//! while a registrar listens.
//!
//! Non-goals: leases, batches, the network.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};
use potluck_core::{FileId, SetDigest, model::Registration};
use tokio::sync::watch;

mod change_log;
#[cfg(test)]
mod tests;

use change_log::{ChangeKind, ChangeLog};

/// Ids per lock acquisition while the digest is computed: other tasks wait for the lock for only a
/// few microseconds.
const DIGEST_RUN: usize = 256;

/// Looks up how files are registered.
pub(crate) trait RegistrationSource: Send + Sync + fmt::Debug {
    /// The registration of a file; `None` if the file is no longer there.
    fn registration(&self, id: &FileId) -> Option<Registration>;
}

/// The set of announced files. Cheap to clone; all clones share the same set.
#[derive(Debug, Clone)]
pub struct AnnounceSet {
    shared: Arc<AnnounceShared>,
}

#[derive(Debug)]
struct AnnounceShared {
    state: Mutex<AnnounceState>,
    /// Number of the last change.
    version: watch::Sender<u64>,
    /// Whether files are announced without their names.
    without_names: AtomicBool,
}

#[derive(Debug, Default)]
struct AnnounceState {
    log: ChangeLog,
    /// Registrations given to `put`; all others come from the source.
    put: HashMap<FileId, Registration>,
    /// Number of downloads that announce a part of each file.
    partial_counts: HashMap<FileId, u32>,
    source: Option<Weak<dyn RegistrationSource>>,
    listeners: usize,
}

/// Changes after a given number.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct AnnounceChanges {
    /// New or changed registrations, oldest change first.
    pub(crate) put: Vec<Registration>,
    /// Ids of removed files.
    pub(crate) removed: Vec<FileId>,
    /// Number of the last change in this list.
    pub(crate) up_to: u64,
    /// Whether there are further changes.
    pub(crate) more: bool,
    /// Total number of files in the set.
    pub(crate) total: usize,
    /// Whether registrations are missing from `put` because their files are gone. Their removals
    /// will be later changes.
    pub(crate) stale: bool,
}

impl Default for AnnounceSet {
    fn default() -> Self {
        Self::new()
    }
}

impl AnnounceSet {
    /// An empty set.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(AnnounceShared {
                state: Mutex::default(),
                version: watch::Sender::new(0),
                without_names: AtomicBool::new(false),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, AnnounceState> {
        self.shared.state.lock()
    }

    /// Announces files without their names from now on: in a private network, a reader may not bind
    /// names. A registrar that runs must start over. Returns whether names were announced before.
    pub(crate) fn hide_names(&self) -> bool {
        !self.shared.without_names.swap(true, Ordering::Relaxed)
    }

    /// The registration of an announcement.
    fn resolve(
        &self,
        announcement: Announcement,
        source: &Option<Arc<dyn RegistrationSource>>,
    ) -> Option<Registration> {
        let mut registration = announcement.resolve(source)?;
        if self.shared.without_names.load(Ordering::Relaxed) {
            registration.names.clear();
        }
        Some(registration)
    }

    /// Sets the source of registrations that were not given to [`AnnounceSet::put`].
    pub(crate) fn set_source(&self, source: Weak<dyn RegistrationSource>) {
        self.state().source = Some(source);
    }

    /// Adds or replaces registrations. A partial registration does not replace a complete one.
    pub fn put(&self, registrations: Vec<Registration>) {
        let mut state = self.state();
        for registration in registrations {
            let id = registration.file.id;
            let kind = match registration.is_complete {
                true => ChangeKind::Complete,
                false => ChangeKind::Partial,
            };
            if state.put.get(&id) != Some(&registration) && state.log.put(id, kind) {
                state.put.insert(id, registration);
            }
        }
        self.notify(state);
    }

    /// Announces files that the source has complete, and that are new or changed.
    pub(crate) fn announce_complete(&self, ids: &[FileId]) {
        let mut state = self.state();
        state.log.reserve(ids.len());
        for &id in ids {
            state.log.put(id, ChangeKind::Complete);
        }
        if !state.put.is_empty() {
            for id in ids {
                state.put.remove(id);
            }
        }
        self.notify(state);
    }

    /// Removes files; ignores unknown ids.
    pub fn remove(&self, ids: &[FileId]) {
        let mut state = self.state();
        let remember = state.listeners > 0;
        for id in ids {
            state.log.remove(id, remember);
            state.put.remove(id);
        }
        self.notify(state);
    }

    /// Announces a part of a file until the returned guard is dropped. If several downloads
    /// announce the same file, it stays until the last guard is dropped.
    pub(crate) fn announce_partial(&self, registration: Registration) -> PartialAnnouncement {
        let id = registration.file.id;
        *self.state().partial_counts.entry(id).or_default() += 1;
        self.put(vec![registration]);
        PartialAnnouncement {
            announce_set: self.clone(),
            id,
        }
    }

    /// Removes the partial registration if this was its last download.
    fn withdraw_partial(&self, id: &FileId) {
        let mut state = self.state();
        if let Some(count) = state.partial_counts.get_mut(id) {
            *count -= 1;
            if *count > 0 {
                return;
            }
        }
        state.partial_counts.remove(id);
        // Keep the registration if the file has become complete.
        if state
            .put
            .get(id)
            .is_some_and(|registration| !registration.is_complete)
        {
            let remember = state.listeners > 0;
            state.log.remove(id, remember);
            state.put.remove(id);
        }
        self.notify(state);
    }

    fn notify(&self, state: MutexGuard<'_, AnnounceState>) {
        let last = state.log.last();
        drop(state);
        self.shared.version.send_if_modified(|version| {
            let newer = last > *version;
            *version = last.max(*version);
            newer
        });
    }

    /// All registrations, in no particular order.
    pub fn snapshot(&self) -> Vec<Registration> {
        let state = self.state();
        let ids = state
            .log
            .after(0)
            .filter(|entry| entry.kind != ChangeKind::Removed);
        let ids: Vec<FileId> = ids.map(|entry| entry.id).collect();
        let announcements: Vec<_> = ids.into_iter().map(|id| state.announcement(id)).collect();
        let source = state.source();
        drop(state);
        announcements
            .into_iter()
            .filter_map(|announcement| self.resolve(announcement, &source))
            .collect()
    }

    /// The digest of the set, and the number of the last change in it. `None` if the set changed
    /// meanwhile, or if the source no longer has all files. Takes one or two microseconds per file,
    /// so do not call it on async threads.
    pub(crate) fn digest(&self) -> Option<(u64, SetDigest)> {
        let state = self.state();
        let version = state.log.last();
        let present = state
            .log
            .after(0)
            .filter(|entry| entry.kind != ChangeKind::Removed);
        let ids: Vec<FileId> = present.map(|entry| entry.id).collect();
        let source = state.source();
        drop(state);
        let mut digest = SetDigest::default();
        for ids in ids.chunks(DIGEST_RUN) {
            let state = self.state();
            if state.log.last() != version {
                return None;
            }
            let announcements: Vec<Announcement> =
                ids.iter().map(|&id| state.announcement(id)).collect();
            drop(state);
            for announcement in announcements {
                digest.insert(&(&self.resolve(announcement, &source)?).into());
            }
        }
        (self.version() == version).then_some((version, digest))
    }

    /// Number of files in the set.
    pub fn len(&self) -> usize {
        self.state().log.present()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of the last change.
    pub(crate) fn version(&self) -> u64 {
        self.state().log.last()
    }

    /// Starts remembering removals. The listener first calls [`AnnounceListener::changes`] from 0.
    pub(crate) fn subscribe(&self) -> AnnounceListener {
        self.state().listeners += 1;
        AnnounceListener {
            announce_set: self.clone(),
            changed: self.shared.version.subscribe(),
        }
    }
}

/// Announces a part of a file until it is dropped.
#[derive(Debug)]
pub(crate) struct PartialAnnouncement {
    announce_set: AnnounceSet,
    id: FileId,
}

impl Drop for PartialAnnouncement {
    fn drop(&mut self) {
        self.announce_set.withdraw_partial(&self.id);
    }
}

/// A registration, or the id to look up in the source.
enum Announcement {
    Known(Box<Registration>),
    FromSource(FileId),
}

impl Announcement {
    fn resolve(self, source: &Option<Arc<dyn RegistrationSource>>) -> Option<Registration> {
        match self {
            Self::Known(registration) => Some(*registration),
            Self::FromSource(id) => source.as_ref()?.registration(&id),
        }
    }
}

impl AnnounceState {
    fn announcement(&self, id: FileId) -> Announcement {
        match self.put.get(&id) {
            Some(registration) => Announcement::Known(Box::new(registration.clone())),
            None => Announcement::FromSource(id),
        }
    }

    fn source(&self) -> Option<Arc<dyn RegistrationSource>> {
        self.source.as_ref()?.upgrade()
    }
}

/// A registrar's view of the announce set.
#[derive(Debug)]
pub(crate) struct AnnounceListener {
    announce_set: AnnounceSet,
    changed: watch::Receiver<u64>,
}

impl AnnounceListener {
    /// The changes after the number `since`, at most `max_files` entries and about `max_bytes`
    /// bytes of names.
    pub(crate) fn changes(
        &self,
        since: u64,
        max_files: usize,
        max_bytes: usize,
    ) -> AnnounceChanges {
        let state = self.announce_set.state();
        let mut entries = state.log.after(since);
        let announcements: Vec<_> = entries
            .by_ref()
            .take(max_files)
            .map(|entry| {
                let announcement =
                    (entry.kind != ChangeKind::Removed).then(|| state.announcement(entry.id));
                (entry.version, entry.id, announcement)
            })
            .collect();
        let more = entries.next().is_some();
        drop(entries);
        let mut changes = AnnounceChanges {
            up_to: state.log.last().max(since),
            total: state.log.present(),
            ..AnnounceChanges::default()
        };
        let source = state.source();
        // Release the lock first, because the source has a lock of its own.
        drop(state);
        let mut bytes = 0;
        let mut up_to = since;
        let mut announcements = announcements.into_iter();
        for (version, id, announcement) in announcements.by_ref() {
            match announcement {
                None => changes.removed.push(id),
                Some(announcement) => match self.announce_set.resolve(announcement, &source) {
                    Some(registration) => {
                        bytes += registration.names.iter().map(String::len).sum::<usize>();
                        changes.put.push(registration);
                    }
                    None => changes.stale = true,
                },
            }
            up_to = version;
            if bytes >= max_bytes {
                break;
            }
        }
        if more || announcements.len() > 0 {
            (changes.up_to, changes.more) = (up_to, true);
        }
        changes
    }

    /// The set that it listens to.
    pub(crate) fn announce_set(&self) -> AnnounceSet {
        self.announce_set.clone()
    }

    /// Forgets removals up to this number, because the index has acknowledged them.
    pub(crate) fn forget_removals(&self, up_to: u64) {
        let mut state = self.announce_set.state();
        if state.listeners == 1 {
            state.log.forget_removed(up_to);
        }
    }

    /// Number of the last change.
    pub(crate) fn version(&self) -> u64 {
        self.announce_set.version()
    }

    /// Waits for a change after the number `since`.
    pub(crate) async fn changed(&mut self, since: u64) {
        // The sender cannot be dropped: the set that this listener holds contains it.
        let _ = self.changed.wait_for(|&version| version > since).await;
    }
}

impl Drop for AnnounceListener {
    fn drop(&mut self) {
        let mut state = self.announce_set.state();
        state.listeners -= 1;
        if state.listeners == 0 {
            state.log.forget_removed(u64::MAX);
        }
    }
}
