//! The library in memory: items, the files that they hold, and where a copy of each is. Pure.
//!
//! Invariants: a file is here exactly as long as some item has a trusted copy of it; an item gives at most one copy of each
//! file; a collection's manifest has a copy only while all that it lists was trusted when last looked at. Paths of a
//! collection's files are not stored: they are the item's path and the manifest's entry.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use potluck_core::{
    FileId, Sha256,
    index_client::{FileRecord, Kind, Registration},
    manifest::Content,
};

mod item;

use super::{Item, Totals};
use crate::store::{Change, Stamp};
pub(super) use item::{Body, Folder, Hashed, Held, MANIFEST, NewItem, Place, Shared};

/// Most names that a file is registered by, as the contract has it.
const MAX_NAMES: usize = 16;

/// Most copies looked at for names: a thousand copies of one name must not cost a thousand steps each time.
const MAX_NAMED_COPIES: usize = 64;

/// What changed and has still to be settled, stored and told.
#[derive(Debug, Default)]
pub(super) struct Delta {
    touched: BTreeSet<FileId>,
    changes: Vec<Change>,
}

/// What to store and tell.
#[derive(Debug, Default)]
pub(super) struct Settled {
    pub(super) changes: Vec<Change>,
    pub(super) put: Vec<Registration>,
    pub(super) removed: Vec<FileRecord>,
}

/// The library in memory.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    items: BTreeMap<u64, Shared>,
    by_path: HashMap<Arc<Path>, u64>,
    files: HashMap<FileId, Held>,
    /// Items that have lost a copy and wait to be looked at again.
    stale: BTreeSet<u64>,
    /// Paths in the files folder that the owner does not want shared.
    hidden: HashSet<PathBuf>,
    next: u64,
}

impl Delta {
    pub(super) fn is_empty(&self) -> bool {
        self.touched.is_empty() && self.changes.is_empty()
    }
}

impl Catalog {
    /// Files that a new item takes for granted and that are not held any more.
    pub(super) fn lacks(&self, item: &NewItem) -> bool {
        let known = |id: &FileId| item.hashed.contains_key(id) || self.files.contains_key(id);
        match &item.body {
            Body::File(_) => !known(&item.record.id),
            Body::Collection(folder) => !known(&item.record.id) || folder.files().any(|(_, id)| !known(&id)),
        }
    }

    /// Puts an item in place of the one at its path, or as the newest. Nothing that it [`Catalog::lacks`].
    pub(super) fn put(&mut self, item: NewItem, delta: &mut Delta) -> u64 {
        let number = self.insert(item, delta);
        if let Some(shared) = self.items.get(&number) {
            delta.changes.push(Change::PutItem(number, shared.row()));
        }
        number
    }

    /// The same for what the database has already.
    fn insert(&mut self, item: NewItem, delta: &mut Delta) -> u64 {
        let old = self.by_path.get(&item.path).copied();
        let number = old.unwrap_or(self.next);
        self.next = self.next.max(number + 1);
        let shared = Shared {
            path: item.path,
            record: item.record,
            body: item.body,
        };
        // Places are given before the old ones are taken, so that what both hold stays.
        let files = shared.files();
        let replaced = self.items.remove(&number);
        if let Some(replaced) = &replaced {
            for (id, _) in replaced.files() {
                self.drop_place(&id, number);
                delta.touched.insert(id);
            }
        }
        for (id, entry) in files {
            let hashed = item.hashed.get(&id);
            self.add_place(id, Place { item: number, entry }, hashed, delta);
        }
        if self.hidden.remove(&*shared.path) {
            delta.changes.push(Change::Unhide(shared.path.to_path_buf()));
        }
        self.stale.remove(&number);
        self.by_path.insert(shared.path.clone(), number);
        self.items.insert(number, shared);
        number
    }

    fn add_place(&mut self, id: FileId, place: Place, hashed: Option<&Hashed>, delta: &mut Delta) {
        delta.touched.insert(id);
        let held = match self.files.entry(id) {
            std::collections::hash_map::Entry::Occupied(held) => held.into_mut(),
            std::collections::hash_map::Entry::Vacant(vacant) => {
                let Some(hashed) = hashed else { return };
                delta.changes.push(Change::PutRecord(hashed.record));
                if !hashed.layer.is_empty() {
                    delta.changes.push(Change::PutLayer(id, hashed.layer.clone()));
                }
                vacant.insert(Held {
                    record: hashed.record,
                    places: Vec::with_capacity(1),
                })
            }
        };
        if let Some(sha256) = hashed.and_then(|hashed| hashed.record.sha256)
            && held.record.sha256.is_none()
        {
            held.record.sha256 = Some(sha256);
            delta.changes.push(Change::PutRecord(held.record));
        }
        held.places.push(place);
    }

    fn drop_place(&mut self, id: &FileId, item: u64) {
        if let Some(held) = self.files.get_mut(id) {
            held.places.retain(|place| place.item != item);
        }
    }

    /// Takes an item away.
    pub(super) fn remove(&mut self, number: u64, delta: &mut Delta) -> Option<Item> {
        let shared = self.items.remove(&number)?;
        self.by_path.remove(&shared.path);
        self.stale.remove(&number);
        for (id, _) in shared.files() {
            self.drop_place(&id, number);
            delta.touched.insert(id);
        }
        delta.changes.push(Change::RemoveItem(number));
        Some(shared.item())
    }

    /// Puts an item as it was remembered, without any copy: for those that are found changed at start.
    pub(super) fn put_stale(&mut self, number: u64, path: Arc<Path>, record: FileRecord, body: Body) {
        self.by_path.insert(path.clone(), number);
        self.items.insert(number, Shared { path, record, body });
        self.stale.insert(number);
        self.next = self.next.max(number + 1);
    }

    /// Takes a file as remembered, before the items that hold it are restored.
    pub(super) fn remember(&mut self, record: FileRecord, delta: &mut Delta) {
        delta.touched.insert(record.id);
        let held = Held {
            record,
            places: Vec::with_capacity(1),
        };
        self.files.insert(record.id, held);
    }

    /// A file that was remembered, whether or not an item holds it by now.
    pub(super) fn remembered(&self, id: &FileId) -> Option<FileRecord> {
        self.files.get(id).map(|held| held.record)
    }

    /// Puts an item as it was remembered, under its number. `changed`: entries that are no longer what they were.
    pub(super) fn restore(&mut self, number: u64, item: NewItem, changed: &[u32], delta: &mut Delta) {
        self.by_path.insert(item.path.clone(), number);
        self.insert(item, delta);
        for &entry in changed {
            self.distrust(Place { item: number, entry }, delta);
        }
    }

    /// Withdraws a copy that is not what it was, and with it the manifest that lists it. The item waits to be looked at again.
    pub(super) fn distrust(&mut self, place: Place, delta: &mut Delta) {
        let Some(shared) = self.items.get(&place.item) else {
            return;
        };
        let mut ids = vec![shared.record.id];
        if let Body::Collection(folder) = &shared.body
            && let Some(entry) = folder.manifest.entries.get(place.entry as usize)
            && let Content::File { id, .. } = entry.content
        {
            ids.push(id);
        }
        for id in ids {
            self.drop_place(&id, place.item);
            delta.touched.insert(id);
        }
        self.stale.insert(place.item);
    }

    /// Brings the files in line with what changed, and says what to store and tell.
    pub(super) fn settle(&mut self, delta: Delta) -> Settled {
        let mut settled = Settled {
            changes: delta.changes,
            ..Settled::default()
        };
        for id in delta.touched {
            let Some(held) = self.files.get_mut(&id) else {
                continue;
            };
            if held.places.is_empty() {
                settled.changes.push(Change::RemoveFile(id));
                settled.removed.push(held.record);
                self.files.remove(&id);
                continue;
            }
            let kind = match held.places.iter().any(|place| place.entry == MANIFEST) {
                true => Kind::Collection,
                false => Kind::File,
            };
            held.record.kind = kind;
            settled.put.extend(self.registration(&id));
        }
        settled
    }

    /// Remembers a SHA-256.
    pub(super) fn set_sha256(&mut self, id: FileId, sha256: Sha256, delta: &mut Delta) {
        if let Some(held) = self.files.get_mut(&id) {
            held.record.sha256 = Some(sha256);
            delta.changes.push(Change::PutRecord(held.record));
            delta.touched.insert(id);
        }
    }

    /// How a file is registered.
    pub(super) fn registration(&self, id: &FileId) -> Option<Registration> {
        let held = self.files.get(id)?;
        let mut names: Vec<String> = Vec::new();
        for place in held.places.iter().take(MAX_NAMED_COPIES) {
            let Some(shared) = self.items.get(&place.item) else {
                continue;
            };
            let name = match &shared.body {
                Body::Collection(folder) if place.entry != MANIFEST => {
                    let entry = folder.manifest.entries.get(place.entry as usize);
                    entry.map(|entry| entry.path.file_name().to_owned())
                }
                _ => Some(shared.name()),
            };
            if let Some(name) = name
                && names.len() < MAX_NAMES
                && !names.contains(&name)
            {
                names.push(name);
            }
        }
        Some(Registration {
            file: held.record,
            names,
            partial: false,
        })
    }

    /// The file with this id, if a trusted copy is here.
    pub(super) fn held(&self, id: &FileId) -> Option<&Held> {
        self.files.get(id).filter(|held| !held.places.is_empty())
    }

    /// Where the copies of a file are.
    pub(super) fn places(&self, id: &FileId) -> Vec<Place> {
        self.files
            .get(id)
            .map(|held| held.places.clone())
            .unwrap_or_default()
    }

    /// An item.
    pub(super) fn item(&self, number: u64) -> Option<&Shared> {
        self.items.get(&number)
    }

    /// Items after the one numbered `after`, oldest first.
    pub(super) fn items_after(&self, after: Option<u64>) -> impl Iterator<Item = (u64, &Shared)> {
        let start = after.map_or(0, |after| after.saturating_add(1));
        self.items
            .range(start..)
            .map(|(&number, shared)| (number, shared))
    }

    /// The item at a path.
    pub(super) fn at(&self, path: &Path) -> Option<u64> {
        self.by_path.get(path).copied()
    }

    /// The id of what is at a path, if it was hashed when `stat` said this and is trusted since.
    pub(super) fn known(&self, path: &Path, stamp: &Stamp) -> Option<FileRecord> {
        for ancestor in path.ancestors() {
            let Some(shared) = self.at(ancestor).and_then(|number| self.items.get(&number)) else {
                continue;
            };
            let id = match &shared.body {
                Body::File(known) if ancestor == path && known == stamp => Some(shared.record.id),
                Body::File(_) => None,
                Body::Collection(folder) => {
                    path.strip_prefix(ancestor)
                        .ok()
                        .and_then(Path::to_str)
                        .and_then(|below| {
                            let entries = &folder.manifest.entries;
                            let index = entries
                                .binary_search_by(|entry| entry.path.as_str().cmp(below))
                                .ok()?;
                            match entries[index].content {
                                Content::File { id, .. } if folder.stamps.get(index) == Some(stamp) => {
                                    Some(id)
                                }
                                _ => None,
                            }
                        })
                }
            };
            if let Some(held) = id.and_then(|id| self.held(&id)) {
                return Some(held.record);
            }
        }
        None
    }

    /// Items that wait to be looked at again.
    pub(super) fn stale(&self) -> Vec<u64> {
        self.stale.iter().copied().collect()
    }

    /// Whether an item waits to be looked at again.
    pub(super) fn is_stale(&self, number: u64) -> bool {
        self.stale.contains(&number)
    }

    /// The files whose SHA-256 is not known.
    pub(super) fn unsummed(&self) -> Vec<FileId> {
        let files = self.files.iter();
        files
            .filter(|(_, held)| held.record.sha256.is_none() && held.record.kind == Kind::File)
            .map(|(&id, _)| id)
            .collect()
    }

    /// Whether the owner took this path out of the files folder's sharing.
    pub(super) fn is_hidden(&self, path: &Path) -> bool {
        self.hidden.contains(path)
    }

    /// Keeps a path in the files folder from being shared by itself again.
    pub(super) fn hide(&mut self, path: PathBuf, delta: Option<&mut Delta>) {
        if self.hidden.insert(path.clone())
            && let Some(delta) = delta
        {
            delta.changes.push(Change::Hide(path));
        }
    }

    /// Forgets those hidden paths that are gone.
    pub(super) fn unhide_missing(&mut self, there: &HashSet<PathBuf>, delta: &mut Delta) {
        self.hidden.retain(|path| {
            let keep = there.contains(path);
            if !keep {
                delta.changes.push(Change::Unhide(path.clone()));
            }
            keep
        });
    }

    /// Sums; manifests count as items only. A step for each file: for people who ask now and then.
    pub(super) fn totals(&self) -> Totals {
        let files = self.files.values().filter(|held| held.record.kind == Kind::File);
        let mut totals = Totals {
            items: self.items.len() as u64,
            ..Totals::default()
        };
        for held in files {
            totals.files += 1;
            totals.bytes += held.record.size;
        }
        totals
    }
}
