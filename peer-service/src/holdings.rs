//! What this peer wants registered with the index: the library's files and the transfers' parts, in one place.
//!
//! Invariants: one entry an id; each change has a number of its own, higher than all before, so that a registrar that knows the
//! number it has seen learns exactly what it has missed. What was removed is remembered only while a registrar listens.
//!
//! Non-goals: knows nothing of leases, batches or the network.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use potluck_core::{
    FileId,
    index_client::{FileRecord, Registration},
};
use tokio::sync::watch;

/// Joins names into one string: names have no slash.
const SEPARATOR: char = '/';

/// What this peer has to offer. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Holdings {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// Number of the last change.
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<FileId, Entry>,
    /// Each id under the number of its last change; of removed ones too while someone listens.
    by_version: BTreeMap<u64, FileId>,
    /// Numbers of what was removed.
    removed: HashMap<FileId, u64>,
    last: u64,
    listeners: usize,
}

#[derive(Debug)]
struct Entry {
    version: u64,
    record: FileRecord,
    partial: bool,
    /// Names joined by [`SEPARATOR`], as most entries have one: no vector for each.
    names: Box<str>,
}

impl Entry {
    fn registration(&self) -> Registration {
        Registration {
            file: self.record,
            names: self.names.split(SEPARATOR).map(str::to_owned).collect(),
            partial: self.partial,
        }
    }
}

/// What changed after a number.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// New or changed, oldest change first.
    pub(crate) put: Vec<Registration>,
    /// No longer there.
    pub(crate) removed: Vec<FileId>,
    /// The number up to which this tells.
    pub(crate) upto: u64,
    /// Whether there is more.
    pub(crate) more: bool,
    /// How many files there are in all.
    pub(crate) total: usize,
}

impl Default for Holdings {
    fn default() -> Self {
        Self::new()
    }
}

impl Holdings {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                state: Mutex::default(),
                version: watch::Sender::new(0),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds or replaces. A part does not replace a whole: who has both has the whole.
    pub fn put(&self, registrations: Vec<Registration>) {
        let mut state = self.state();
        for registration in registrations {
            state.put(registration);
        }
        self.publish(state);
    }

    /// Takes away; what is not there is passed over.
    pub fn remove(&self, ids: &[FileId]) {
        let mut state = self.state();
        for id in ids {
            state.remove(id);
        }
        self.publish(state);
    }

    fn publish(&self, state: MutexGuard<'_, State>) {
        let last = state.last;
        drop(state);
        self.inner.version.send_if_modified(|version| {
            let newer = last > *version;
            *version = last.max(*version);
            newer
        });
    }

    /// Everything there is, in no order.
    pub fn snapshot(&self) -> Vec<Registration> {
        self.state().entries.values().map(Entry::registration).collect()
    }

    /// How many files there are.
    pub fn len(&self) -> usize {
        self.state().entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of the last change.
    pub(crate) fn version(&self) -> u64 {
        self.state().last
    }

    /// Starts remembering what is removed. Whoever listens calls [`Listener::changes`] from 0 first.
    pub(crate) fn listen(&self) -> Listener {
        self.state().listeners += 1;
        Listener {
            holdings: self.clone(),
            changed: self.inner.version.subscribe(),
        }
    }
}

impl State {
    fn put(&mut self, registration: Registration) {
        let Registration {
            file: record,
            names,
            partial,
        } = registration;
        let names = names.join("/").into_boxed_str();
        if let Some(old) = self.entries.get(&record.id) {
            let lesser = partial && !old.partial;
            if lesser || (old.record == record && old.partial == partial && old.names == names) {
                return;
            }
        }
        let version = self.number(record.id);
        self.entries.insert(
            record.id,
            Entry {
                version,
                record,
                partial,
                names,
            },
        );
    }

    fn remove(&mut self, id: &FileId) {
        if !self.entries.contains_key(id) {
            return;
        }
        let version = self.number(*id);
        self.entries.remove(id);
        if self.listeners > 0 {
            self.removed.insert(*id, version);
        } else {
            self.by_version.remove(&version);
        }
    }

    /// A new number for this id in place of its old one.
    fn number(&mut self, id: FileId) -> u64 {
        let old = self
            .entries
            .get(&id)
            .map(|entry| entry.version)
            .or_else(|| self.removed.remove(&id));
        if let Some(old) = old {
            self.by_version.remove(&old);
        }
        self.last += 1;
        self.by_version.insert(self.last, id);
        self.last
    }
}

/// A registrar's view of the holdings.
#[derive(Debug)]
pub(crate) struct Listener {
    holdings: Holdings,
    changed: watch::Receiver<u64>,
}

impl Listener {
    /// What changed after the number `since`, at most about `most_files` entries and `most_bytes` of names.
    pub(crate) fn changes(&self, since: u64, most_files: usize, most_bytes: usize) -> Changes {
        let state = self.holdings.state();
        let mut changes = Changes {
            upto: since,
            total: state.entries.len(),
            ..Changes::default()
        };
        let mut bytes = 0;
        for (&version, id) in state.by_version.range(since.saturating_add(1)..) {
            if changes.put.len() + changes.removed.len() >= most_files || bytes >= most_bytes {
                changes.more = true;
                return changes;
            }
            match state.entries.get(id) {
                Some(entry) => {
                    bytes += entry.names.len();
                    changes.put.push(entry.registration());
                }
                None => changes.removed.push(*id),
            }
            changes.upto = version;
        }
        changes.upto = state.last.max(since);
        changes
    }

    /// Forgets what was removed up to this number: the index knows.
    pub(crate) fn acknowledged(&self, upto: u64) {
        let mut state = self.holdings.state();
        let state = &mut *state;
        if state.listeners > 1 || state.removed.is_empty() {
            return;
        }
        state.removed.retain(|_, &mut version| {
            let keep = version > upto;
            if !keep {
                state.by_version.remove(&version);
            }
            keep
        });
    }

    /// Number of the last change.
    pub(crate) fn version(&self) -> u64 {
        self.holdings.version()
    }

    /// Waits until there is a change after the number `since`.
    pub(crate) async fn changed(&mut self, since: u64) {
        // The sender lives in the holdings that this listener holds: it cannot be gone.
        let _ = self.changed.wait_for(|&version| version > since).await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut state = self.holdings.state();
        let state = &mut *state;
        state.listeners -= 1;
        if state.listeners == 0 {
            for version in std::mem::take(&mut state.removed).into_values() {
                state.by_version.remove(&version);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use potluck_core::{Root, index_client::Kind};
    use proptest::prelude::*;

    use super::*;

    fn registration(n: u8, name: &str, partial: bool) -> Registration {
        let root = Root([n; 32]);
        let id = FileId::derive(u64::from(n), &root);
        let file = FileRecord {
            id,
            size: n.into(),
            root,
            sha256: None,
            kind: Kind::File,
        };
        Registration {
            file,
            names: vec![name.to_owned()],
            partial,
        }
    }

    #[derive(Debug, Clone)]
    enum Op {
        Put(u8, u8, bool),
        Remove(u8),
        Sync,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0u8..8, 0u8..3, any::<bool>()).prop_map(|(n, name, partial)| Op::Put(n, name, partial)),
            3 => (0u8..8).prop_map(Op::Remove),
            2 => Just(Op::Sync),
        ]
    }

    proptest! {
        /// A listener that applies what it is told ends with exactly what there is.
        #[test]
        fn a_listener_misses_nothing(ops in proptest::collection::vec(op(), 0..80), most in 1usize..5) {
            let holdings = Holdings::new();
            holdings.put(vec![registration(1, "before", false)]);
            let listener = holdings.listen();
            let mut copy = HashMap::new();
            let mut seen = 0;
            let mut sync = |seen: &mut u64| {
                loop {
                    let changes = listener.changes(*seen, most, usize::MAX);
                    for put in changes.put {
                        copy.insert(put.file.id, put);
                    }
                    for id in changes.removed {
                        copy.remove(&id);
                    }
                    *seen = changes.upto;
                    listener.acknowledged(*seen);
                    if !changes.more {
                        break;
                    }
                }
                copy.clone()
            };
            for op in ops {
                match op {
                    Op::Put(n, name, partial) => holdings.put(vec![registration(n, &name.to_string(), partial)]),
                    Op::Remove(n) => holdings.remove(&[registration(n, "", false).file.id]),
                    Op::Sync => {
                        sync(&mut seen);
                    }
                }
            }
            let copy = sync(&mut seen);
            let expected: HashMap<_, _> =
                holdings.snapshot().into_iter().map(|registration| (registration.file.id, registration)).collect();
            prop_assert_eq!(copy, expected);
            drop(listener);
            let state = holdings.state();
            prop_assert_eq!(state.by_version.len(), state.entries.len());
            prop_assert!(state.removed.is_empty());
        }
    }

    #[test]
    fn a_part_does_not_hide_the_whole() {
        let holdings = Holdings::new();
        holdings.put(vec![registration(1, "a", true)]);
        holdings.put(vec![registration(1, "a", false)]);
        holdings.put(vec![registration(1, "a", true)]);
        assert!(!holdings.snapshot()[0].partial);
    }
}
