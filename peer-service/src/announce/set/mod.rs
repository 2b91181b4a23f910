//! What this peer wants registered with the index: the library's files and the transfers' parts, in one place.
//!
//! Invariants: one line an id; each change has a number of its own, higher than all before, so that a registrar that knows the
//! number it has seen learns exactly what it has missed. What was removed is remembered only while a registrar listens.
//!
//! A hundred thousand files of the library would be here twice: of them only the id is kept, and how they are registered is asked of
//! the library when the index is told.
//!
//! Non-goals: knows nothing of leases, batches or the network.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Weak},
};

use parking_lot::{Mutex, MutexGuard};
use potluck_core::{FileId, SetDigest, model::Registration};
use tokio::sync::watch;

mod change_log;
#[cfg(test)]
mod tests;

use change_log::{ChangeKind, ChangeLog};

/// Ids that are asked about at once while the digest is computed: whoever waits for the lock waits for some microseconds.
const DIGEST_RUN: usize = 256;

/// Whoever knows how files are registered.
pub(crate) trait RegistrationSource: Send + Sync + fmt::Debug {
    /// How a file is registered; `None` where it is not there any more.
    fn registration(&self, id: &FileId) -> Option<Registration>;
}

/// What this peer has to offer. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct AnnounceSet {
    shared: Arc<AnnounceShared>,
}

#[derive(Debug)]
struct AnnounceShared {
    state: Mutex<AnnounceState>,
    /// Number of the last change.
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct AnnounceState {
    log: ChangeLog,
    /// Of what was put, as it was put; all else is the source's.
    put: HashMap<FileId, Registration>,
    /// How many transfers have a part of each file.
    partial_counts: HashMap<FileId, u32>,
    source: Option<Weak<dyn RegistrationSource>>,
    listeners: usize,
}

/// What changed after a number.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct AnnounceChanges {
    /// New or changed, oldest change first.
    pub(crate) put: Vec<Registration>,
    /// No longer there.
    pub(crate) removed: Vec<FileId>,
    /// The number up to which this tells.
    pub(crate) up_to: u64,
    /// Whether there is more.
    pub(crate) more: bool,
    /// How many files there are in all.
    pub(crate) total: usize,
    /// Whether some of those are gone by now, so that the index is not told of them; their removal has a number that is still to come.
    pub(crate) stale: bool,
}

impl Default for AnnounceSet {
    fn default() -> Self {
        Self::new()
    }
}

impl AnnounceSet {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(AnnounceShared {
                state: Mutex::default(),
                version: watch::Sender::new(0),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, AnnounceState> {
        self.shared.state.lock()
    }

    /// Whom to ask for what is held and not put.
    pub(crate) fn set_source(&self, source: Weak<dyn RegistrationSource>) {
        self.state().source = Some(source);
    }

    /// Adds or replaces. A part does not replace a whole: who has both has the whole.
    pub fn put(&self, registrations: Vec<Registration>) {
        let mut state = self.state();
        for registration in registrations {
            let id = registration.file.id;
            let kind = match registration.partial {
                true => ChangeKind::Partial,
                false => ChangeKind::Complete,
            };
            if state.put.get(&id) != Some(&registration) && state.log.put(id, kind) {
                state.put.insert(id, registration);
            }
        }
        self.notify(state);
    }

    /// The source has these files whole, new or registered otherwise than before, and will be asked how.
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

    /// Takes away; what is not there is passed over.
    pub fn remove(&self, ids: &[FileId]) {
        let mut state = self.state();
        let remember = state.listeners > 0;
        for id in ids {
            state.log.remove(id, remember);
            state.put.remove(id);
        }
        self.notify(state);
    }

    /// Adds a part of a file, until what this gives is dropped. Where several transfers fetch one file, it is there until the last ends.
    pub(crate) fn announce_partial(&self, registration: Registration) -> PartialAnnouncement {
        let id = registration.file.id;
        *self.state().partial_counts.entry(id).or_default() += 1;
        self.put(vec![registration]);
        PartialAnnouncement {
            announce_set: self.clone(),
            id,
        }
    }

    /// One transfer of a file less has a part of it.
    fn withdraw_partial(&self, id: &FileId) {
        let mut state = self.state();
        if let Some(count) = state.partial_counts.get_mut(id) {
            *count -= 1;
            if *count > 0 {
                return;
            }
        }
        state.partial_counts.remove(id);
        // Unless the whole came meanwhile.
        if state.put.get(id).is_some_and(|registration| registration.partial) {
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

    /// Everything there is, in no order.
    pub fn snapshot(&self) -> Vec<Registration> {
        let state = self.state();
        let ids = state.log.after(0).filter(|line| line.kind != ChangeKind::Removed);
        let ids: Vec<FileId> = ids.map(|line| line.id).collect();
        let announcements: Vec<_> = ids.into_iter().map(|id| state.announcement(id)).collect();
        let source = state.source();
        drop(state);
        announcements
            .into_iter()
            .filter_map(|announcement| announcement.resolve(&source))
            .collect()
    }

    /// The digest of everything there is, and the number of the last change that it holds for. `None` where something changed
    /// meanwhile, or the source does not have all of it any more. Takes a microsecond or two a file: not for an async thread.
    pub(crate) fn digest(&self) -> Option<(u64, SetDigest)> {
        let state = self.state();
        let version = state.log.last();
        let there = state.log.after(0).filter(|line| line.kind != ChangeKind::Removed);
        let ids: Vec<FileId> = there.map(|line| line.id).collect();
        let source = state.source();
        drop(state);
        let mut digest = SetDigest::default();
        for ids in ids.chunks(DIGEST_RUN) {
            let state = self.state();
            if state.log.last() != version {
                return None;
            }
            let announcements: Vec<Announcement> = ids.iter().map(|&id| state.announcement(id)).collect();
            drop(state);
            for announcement in announcements {
                digest.insert(&(&announcement.resolve(&source)?).into());
            }
        }
        (self.version() == version).then_some((version, digest))
    }

    /// How many files there are.
    pub fn len(&self) -> usize {
        self.state().log.present()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of the last change.
    pub(crate) fn version(&self) -> u64 {
        self.state().log.last()
    }

    /// Starts remembering what is removed. Whoever listens calls [`AnnounceListener::changes`] from 0 first.
    pub(crate) fn subscribe(&self) -> AnnounceListener {
        self.state().listeners += 1;
        AnnounceListener {
            announce_set: self.clone(),
            changed: self.shared.version.subscribe(),
        }
    }
}

/// A part that is offered. Dropping it takes the part away.
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

/// How a file that is there is registered, or whom to ask.
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

/// A registrar's view of the holdings.
#[derive(Debug)]
pub(crate) struct AnnounceListener {
    announce_set: AnnounceSet,
    changed: watch::Receiver<u64>,
}

impl AnnounceListener {
    /// What changed after the number `since`, at most `most_files` entries and about `most_bytes` of names.
    pub(crate) fn changes(&self, since: u64, most_files: usize, most_bytes: usize) -> AnnounceChanges {
        let state = self.announce_set.state();
        let mut lines = state.log.after(since);
        let announcements: Vec<_> = lines
            .by_ref()
            .take(most_files)
            .map(|line| {
                let announcement = (line.kind != ChangeKind::Removed).then(|| state.announcement(line.id));
                (line.version, line.id, announcement)
            })
            .collect();
        let more = lines.next().is_some();
        drop(lines);
        let mut changes = AnnounceChanges {
            up_to: state.log.last().max(since),
            total: state.log.present(),
            ..AnnounceChanges::default()
        };
        let source = state.source();
        // The source has a lock of its own.
        drop(state);
        let mut bytes = 0;
        let mut upto = since;
        let mut announcement = announcements.into_iter();
        for (version, id, announcement) in announcement.by_ref() {
            match announcement {
                None => changes.removed.push(id),
                Some(announcement) => match announcement.resolve(&source) {
                    Some(registration) => {
                        bytes += registration.names.iter().map(String::len).sum::<usize>();
                        changes.put.push(registration);
                    }
                    None => changes.stale = true,
                },
            }
            upto = version;
            if bytes >= most_bytes {
                break;
            }
        }
        if more || announcement.len() > 0 {
            (changes.up_to, changes.more) = (upto, true);
        }
        changes
    }

    /// What it listens to.
    pub(crate) fn holdings(&self) -> AnnounceSet {
        self.announce_set.clone()
    }

    /// Forgets what was removed up to this number: the index knows.
    pub(crate) fn acknowledged(&self, upto: u64) {
        let mut state = self.announce_set.state();
        if state.listeners == 1 {
            state.log.forget_removed(upto);
        }
    }

    /// Number of the last change.
    pub(crate) fn version(&self) -> u64 {
        self.announce_set.version()
    }

    /// Waits until there is a change after the number `since`.
    pub(crate) async fn changed(&mut self, since: u64) {
        // The sender lives in the holdings that this listener holds: it cannot be gone.
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
