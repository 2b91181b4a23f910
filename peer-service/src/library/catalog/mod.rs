//! The library in memory: items, the files that they hold, and where a copy of each is. Pure.
//!
//! Invariants: a file is here exactly as long as some item has a trusted copy of it; an item gives at most one copy of each
//! file; a collection's manifest has a copy only while all that it lists was trusted when last looked at.
//!
//! Of a file nothing is stored but its copies, each a line that leads to an item: ids, sizes and paths of a collection's files are
//! where they are in its manifest, roots and stamps in rows beside it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use potluck_core::{
    FileId, FileLayout, Sha256,
    collection::path::Label,
    identity::merkle::LEAF_SIZE,
    model::{FileKind, FileRecord, Registration},
};

use crate::{
    library::{Item, Totals, hash::hasher::small_file_sha256},
    store::{Stamp, StoreChange},
};

mod damaged;
mod delta;
mod item;
mod offline;
#[cfg(test)]
mod tests;

pub(crate) use crate::library::catalog::delta::{Delta, DeltaEffects};
pub(crate) use crate::library::catalog::item::{
    EntryIndex, ItemBody, Location, NewItem, SharedCollection, SharedItem, WHOLE_ITEM, name_of,
};

/// Most names that a file is registered by, as the contract has it.
const MAX_NAMES: usize = 16;

/// Most copies looked at for names and the like: a thousand copies of one file must not cost a thousand steps each time.
const MAX_COPIES: usize = 64;

/// A trusted copy of a file; sorted so that all of one file are together, and of an item in the order of its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct FileCopy {
    /// What the id begins with: the rest is with the item.
    prefix: u64,
    location: Location,
}

/// The library in memory.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    /// Each has its own room: numbers come in order, and a tree that grows in order has half of its room empty.
    items: BTreeMap<u64, Box<SharedItem>>,
    by_path: HashMap<Arc<Path>, u64>,
    copies: BTreeSet<FileCopy>,
    /// Over the distinct files that have copies.
    files: u64,
    bytes: u64,
    /// Items that have lost a copy and wait to be looked at again.
    stale_items: BTreeSet<u64>,
    /// Those of them at whose paths nothing is now.
    offline: BTreeSet<u64>,
    /// Parts whose bytes are not what was hashed, although nothing shows a change, by item: see
    /// [`damaged`].
    damaged: BTreeMap<u64, BTreeSet<EntryIndex>>,
    /// Copies that were trusted when their item was last there.
    offline_copies: BTreeSet<FileCopy>,
    /// Paths in the files folder that the owner does not want shared.
    tombstones: HashSet<PathBuf>,
    next: u64,
}

impl Catalog {
    /// Whether an item takes a piece layer for granted that is not held any more.
    pub(crate) fn lacks_layer(&self, item: &NewItem) -> bool {
        let lacks = |id: FileId, size| {
            let is_held = || self.record(&id).is_some() || self.has_offline_copy(&id);
            has_layer(size) && !item.layers.contains_key(&id) && !is_held()
        };
        let listed = match &item.body {
            ItemBody::File(_) => None,
            ItemBody::Collection(folder) => Some(folder.manifest.entries()),
        };
        let mut listed = listed.into_iter().flatten();
        lacks(item.record.id, item.record.size)
            || listed.any(|entry| match entry.content {
                potluck_core::collection::manifest::EntryContent::File { id, size, .. } => lacks(id, size),
                _ => false,
            })
    }

    /// Puts an item in place of the one at its path, or as the newest. Nothing that it [`Catalog::lacks_layer`].
    pub(crate) fn put(&mut self, mut item: NewItem, delta: &mut Delta) -> u64 {
        let old = self.by_path.get(&item.path).copied();
        let before = old.and_then(|number| self.items.get(&number));
        // What its owner did not ask to be shared keeps the name that it came under: what its path
        // ends in may be private.
        if item.downloaded && item.label.is_none() {
            item.label = before.and_then(|before| before.label.clone());
        }
        item.downloaded &= before.is_none_or(|before| before.downloaded);
        if let Some(number) = old.filter(|&number| self.is_same(number, &item)) {
            return number;
        }
        let number = old.unwrap_or(self.next);
        self.insert(number, item, delta);
        if let Some(shared) = self.items.get(&number) {
            delta.changes.push(StoreChange::PutItem(number, shared.to_row()));
            let mut sha256s: Vec<_> = shared.sha256s.iter().map(|(&part, &sum)| (part, sum)).collect();
            let whole = &shared.record;
            let own = whole
                .sha256
                .filter(|_| small_file_sha256(whole.size, &whole.root).is_none());
            sha256s.extend(own.map(|sum| (WHOLE_ITEM, sum)));
            if !sha256s.is_empty() {
                delta.changes.push(StoreChange::PutSha256s(number, sha256s));
            }
        }
        number
    }

    /// Whether an item stands there already, all of it trusted.
    fn is_same(&self, number: u64, item: &NewItem) -> bool {
        let Some(shared) = self.items.get(&number) else {
            return false;
        };
        let same = shared.body.is(&item.body)
            && shared.record == item.record
            && shared.downloaded == item.downloaded;
        same && shared.label == item.label
            && !self.stale_items.contains(&number)
            && !self.is_damaged(number)
            && !self.tombstones.contains(&*item.path)
    }

    /// Puts an item under a number, in place of the one that has it.
    pub(crate) fn insert(&mut self, number: u64, item: NewItem, delta: &mut Delta) {
        self.next = self.next.max(number + 1);
        for (id, layer) in item.layers {
            delta.changes.push(StoreChange::PutLayer(id, layer));
        }
        let replaced = self.items.remove(&number);
        if let Some(replaced) = &replaced {
            self.drop_offline_copies(number, replaced, delta);
        }
        // What others know of the copies that are replaced is told anew only where it is not so any more.
        let untold = delta.touched.len();
        if let Some(replaced) = &replaced {
            self.drop_copies(number, replaced, delta);
        }
        let mut dropped = delta.touched.split_off(untold);
        dropped.sort_unstable();
        let before = |id: &FileId| {
            let old = replaced.as_deref()?;
            let part = old.entry(id)?;
            Some((old, part, old.record(part)?))
        };
        let mut shared = SharedItem {
            path: item.path,
            downloaded: item.downloaded,
            label: item.label,
            record: item.record,
            body: item.body,
            sha256s: item.sha256s,
        };
        let parts: Vec<EntryIndex> = shared.entries().collect();
        delta.touched.reserve(parts.len());
        let mut copies = Vec::with_capacity(parts.len());
        for part in parts {
            let Some(mut record) = shared.record(part) else {
                continue;
            };
            // What another copy knows need not be found out again.
            if lacks_sha256(&record)
                && let known = self.record(&record.id)
                && let known = known.or_else(|| before(&record.id).map(|(.., known)| known))
                && let Some(sum) = known.and_then(|known| known.sha256)
            {
                shared.set_sha256(part, sum);
                record.sha256 = Some(sum);
            }
            if !shared.is_manifest(part) && !self.has_file(&record.id) {
                self.files += 1;
                self.bytes += record.size;
            }
            copies.push(FileCopy {
                prefix: record.id.prefix(),
                location: Location {
                    item: number,
                    entry: part,
                },
            });
            let is_known = dropped.binary_search(&record.id).is_ok();
            let is_as_it_was = |(old, before, known): (&SharedItem, EntryIndex, FileRecord)| {
                known == record && old.name_of(before) == shared.name_of(part)
            };
            if !(is_known && before(&record.id).is_some_and(is_as_it_was)) {
                delta.touched.push(record.id);
            }
        }
        let gone = dropped.into_iter().filter(|id| shared.entry(id).is_none());
        delta.touched.extend(gone);
        self.add_copies(copies);
        if self.tombstones.remove(&*shared.path) {
            delta
                .changes
                .push(StoreChange::RemoveTombstone(shared.path.to_path_buf()));
        }
        self.stale_items.remove(&number);
        self.damaged.remove(&number);
        self.by_path.insert(shared.path.clone(), number);
        self.items.insert(number, Box::new(shared));
    }

    /// Many at once: a tree built as a whole has full nodes, one that is grown in order has them half empty.
    fn add_copies(&mut self, copies: Vec<FileCopy>) {
        if copies.len() > self.copies.len() {
            self.copies.append(&mut copies.into_iter().collect());
        } else {
            self.copies.extend(copies);
        }
    }

    /// Withdraws all copies that an item gives; `shared` is not among the items any more.
    fn drop_copies(&mut self, number: u64, shared: &SharedItem, delta: &mut Delta) {
        for part in shared.entries() {
            self.drop_copy(number, shared, part, delta);
        }
    }

    fn drop_copy(&mut self, item: u64, shared: &SharedItem, part: EntryIndex, delta: &mut Delta) {
        let Some((_, record)) = self.take_copy(item, shared, part, delta) else {
            return;
        };
        if shared.is_manifest(part) {
            delta.manifests.push(record.id);
        }
        if has_layer(record.size) {
            delta.layered.push(record.id);
        }
    }

    /// Withdraws a copy, if it is there, and leaves what belongs to it.
    fn take_copy(
        &mut self,
        item: u64,
        shared: &SharedItem,
        part: EntryIndex,
        delta: &mut Delta,
    ) -> Option<(FileCopy, FileRecord)> {
        let record = shared.record(part)?;
        let copy = FileCopy {
            prefix: record.id.prefix(),
            location: Location { item, entry: part },
        };
        if !self.copies.remove(&copy) {
            return None;
        }
        delta.lost_copies = true;
        if !shared.is_manifest(part) && !self.has_file(&record.id) {
            self.files -= 1;
            self.bytes -= record.size;
        }
        delta.touched.push(record.id);
        Some((copy, record))
    }

    /// Whether there is a copy that is no manifest.
    fn has_file(&self, id: &FileId) -> bool {
        self.copies(id).any(|(shared, part)| !shared.is_manifest(part))
    }

    /// Takes an item away.
    pub(crate) fn remove(&mut self, number: u64, delta: &mut Delta) -> Option<Item> {
        let shared = self.items.remove(&number)?;
        self.by_path.remove(&shared.path);
        self.stale_items.remove(&number);
        self.damaged.remove(&number);
        self.drop_offline_copies(number, &shared, delta);
        self.drop_copies(number, &shared, delta);
        delta.changes.push(StoreChange::RemoveItem(number));
        Some(shared.to_item())
    }

    /// Puts an item as it was remembered, without any copy: for those that are found changed at start.
    pub(crate) fn put_stale(
        &mut self,
        number: u64,
        (path, downloaded, label): (Arc<Path>, bool, Option<Label>),
        record: FileRecord,
        body: ItemBody,
    ) {
        self.by_path.insert(path.clone(), number);
        let sha256s = BTreeMap::new();
        let shared = SharedItem {
            path,
            downloaded,
            label,
            record,
            body,
            sha256s,
        };
        self.items.insert(number, Box::new(shared));
        self.stale_items.insert(number);
        self.next = self.next.max(number + 1);
    }

    /// Withdraws a copy that is not what it was, and with it the manifest that lists it. The item waits to be looked at again.
    pub(crate) fn invalidate(&mut self, location: Location, delta: &mut Delta) {
        let Some(shared) = self.items.remove(&location.item) else {
            return;
        };
        // All entries of one content have one copy.
        let part = shared.id(location.entry).and_then(|id| shared.entry(&id));
        for part in [Some(WHOLE_ITEM), part.filter(|&part| part != WHOLE_ITEM)]
            .into_iter()
            .flatten()
        {
            self.drop_copy(location.item, &shared, part, delta);
        }
        self.items.insert(location.item, shared);
        // What is damaged waits for its owner.
        if !self.is_damaged(location.item) {
            self.stale_items.insert(location.item);
        }
    }

    /// Remembers a SHA-256, unless the file is gone by now.
    pub(crate) fn set_sha256(&mut self, id: FileId, sum: Sha256, delta: &mut Delta) {
        let locations = self.locations(&id);
        if locations.is_empty() {
            return;
        }
        for location in locations {
            if let Some(shared) = self.items.get_mut(&location.item) {
                shared.set_sha256(location.entry, sum);
                delta.changes.push(StoreChange::PutSha256s(
                    location.item,
                    vec![(location.entry, sum)],
                ));
            }
        }
        delta.touched.push(id);
    }

    /// How a file is registered.
    pub(crate) fn registration(&self, id: &FileId) -> Option<Registration> {
        let mut names: Vec<String> = Vec::with_capacity(1);
        let record = self.record_with(id, |shared, part| {
            if let Some(name) = shared.name_of(part)
                && names.len() < MAX_NAMES
                && !names.contains(&name)
            {
                names.push(name);
            }
        });
        Some(Registration {
            file: record?,
            names,
            partial: false,
        })
    }

    /// The file with this id, if a trusted copy is here.
    pub(crate) fn record(&self, id: &FileId) -> Option<FileRecord> {
        self.record_with(id, |_, _| {})
    }

    /// The same; `see` is shown the copies that were looked at.
    fn record_with(&self, id: &FileId, mut see: impl FnMut(&SharedItem, EntryIndex)) -> Option<FileRecord> {
        let copies = self.copies(id).take(MAX_COPIES);
        let copies = copies.inspect(|(shared, part)| see(shared, *part));
        let mut records = copies.filter_map(|(shared, part)| shared.record(part));
        let mut record = records.next()?;
        for other in records {
            record.sha256 = record.sha256.or(other.sha256);
            if other.kind == FileKind::Collection {
                record.kind = other.kind;
            }
        }
        Some(record)
    }

    /// The copies of a file: the items that have them, and which part it is.
    pub(crate) fn copies(&self, id: &FileId) -> impl Iterator<Item = (&SharedItem, EntryIndex)> {
        self.located_copies(id).map(|(_, shared, part)| (shared, part))
    }

    fn located_copies(&self, id: &FileId) -> impl Iterator<Item = (u64, &SharedItem, EntryIndex)> {
        self.located_copies_in(&self.copies, id)
    }

    fn located_copies_in<'a>(
        &'a self,
        copies: &'a BTreeSet<FileCopy>,
        id: &FileId,
    ) -> impl Iterator<Item = (u64, &'a SharedItem, EntryIndex)> + use<'a> {
        let (id, prefix) = (*id, id.prefix());
        let copy = |item, part| FileCopy {
            prefix,
            location: Location { item, entry: part },
        };
        let copies = copies.range(copy(0, 0)..=copy(u64::MAX, EntryIndex::MAX));
        copies.filter_map(move |copy| {
            let Location { item, entry: part } = copy.location;
            let shared: &SharedItem = self.items.get(&item)?;
            (shared.id(part) == Some(id)).then_some((item, shared, part))
        })
    }

    /// Where the copies of a file are.
    pub(crate) fn locations(&self, id: &FileId) -> Vec<Location> {
        let placed = self.located_copies(id);
        placed
            .map(|(item, _, part)| Location { item, entry: part })
            .collect()
    }

    /// An item.
    pub(crate) fn item(&self, number: u64) -> Option<&SharedItem> {
        self.items.get(&number).map(AsRef::as_ref)
    }

    /// Items after the one numbered `after`, oldest first.
    pub(crate) fn items_after(&self, after: Option<u64>) -> impl Iterator<Item = (u64, &SharedItem)> {
        let start = after.map_or(0, |after| after.saturating_add(1));
        self.items
            .range(start..)
            .map(|(&number, shared)| (number, &**shared))
    }

    /// The item at a path.
    pub(crate) fn item_at(&self, path: &Path) -> Option<u64> {
        self.by_path.get(path).copied()
    }

    /// The collection at a path, if all of it is trusted.
    pub(crate) fn folder_at(&self, path: &Path) -> Option<(FileRecord, &Arc<SharedCollection>)> {
        let is_trusted = |number: &u64| !self.stale_items.contains(number) && !self.is_damaged(*number);
        let number = self.item_at(path).filter(is_trusted)?;
        let shared = self.items.get(&number)?;
        Some((shared.record, shared.folder()?))
    }

    /// The id of what is at a path, if it was hashed when `stat` said this and is trusted since, or kept.
    pub(crate) fn known_file(&self, path: &Path, stamp: &Stamp) -> Option<FileRecord> {
        path.ancestors().find_map(|ancestor| {
            let number = self.item_at(ancestor)?;
            let shared = self.items.get(&number)?;
            let part = match &shared.body {
                ItemBody::File(_) if ancestor == path => WHOLE_ITEM,
                ItemBody::File(_) => return None,
                ItemBody::Collection(folder) => {
                    let below = path.strip_prefix(ancestor).ok().and_then(Path::to_str)?;
                    folder.manifest.find(below)?
                }
            };
            if shared.stamp(part) != Some(*stamp) || self.is_part_damaged(number, part) {
                return None;
            }
            let trusted = self.record(&shared.id(part)?);
            trusted.or_else(|| self.offline_record(number, shared, part))
        })
    }

    /// Whether [`Catalog::known_file`] may know any of so many files beneath a folder: true where finding out takes more than asking for each.
    pub(crate) fn may_know(&self, folder: &Path, files: usize) -> bool {
        self.items.len() > files
            || folder.ancestors().any(|above| self.by_path.contains_key(above))
            || self.by_path.keys().any(|path| path.starts_with(folder))
    }

    /// Items that wait to be looked at again.
    pub(crate) fn stale_numbers(&self) -> Vec<u64> {
        self.stale_items.iter().copied().collect()
    }

    /// Whether an item waits to be looked at again.
    pub(crate) fn is_stale(&self, number: u64) -> bool {
        self.stale_items.contains(&number)
    }

    /// Files after this place whose SHA-256 is not known, at most so many, in the order in which they lie on the disk, about.
    pub(crate) fn without_sha256(&self, after: Option<Location>, max: usize) -> Vec<(Location, FileId)> {
        let first = after.map_or(0, |after| after.item);
        let locations = self.items.range(first..).flat_map(|(&item, shared)| {
            let entries = shared
                .folder()
                .map_or(0, |folder| folder.manifest.len() as EntryIndex);
            let parts = (0..entries).chain([WHOLE_ITEM]);
            parts.map(move |part| (Location { item, entry: part }, shared))
        });
        locations
            .skip_while(|(location, _)| after.is_some_and(|after| *location <= after))
            .filter_map(|(location, shared)| {
                let record = shared.record(location.entry).filter(lacks_sha256)?;
                let copy = FileCopy {
                    prefix: record.id.prefix(),
                    location,
                };
                self.copies.contains(&copy).then_some((location, record.id))
            })
            .take(max)
            .collect()
    }

    /// Sums; manifests count as items only.
    pub(crate) fn totals(&self) -> Totals {
        Totals {
            items: self.items.len() as u64,
            files: self.files,
            bytes: self.bytes,
            damaged: self.damaged.len() as u64,
        }
    }
}

/// Whether a file has a piece layer that has to be kept.
fn has_layer(size: u64) -> bool {
    FileLayout::new(size).is_some_and(|layout| layout.piece_count() > 1)
}

/// Whether a file's SHA-256 is still to be found out.
fn lacks_sha256(record: &FileRecord) -> bool {
    record.sha256.is_none() && record.kind == FileKind::File && record.size > LEAF_SIZE as u64
}

impl Catalog {
    /// Whether the owner took this path out of the files folder's sharing.
    pub(crate) fn is_tombstoned(&self, path: &Path) -> bool {
        self.tombstones.contains(path)
    }

    /// Keeps a path in the files folder from being shared by itself again.
    pub(crate) fn add_tombstone(&mut self, path: PathBuf, delta: Option<&mut Delta>) {
        if self.tombstones.insert(path.clone())
            && let Some(delta) = delta
        {
            delta.changes.push(StoreChange::AddTombstone(path));
        }
    }

    /// The hidden paths that are not among these.
    pub(crate) fn tombstones_besides(&self, there: &HashSet<PathBuf>) -> Vec<PathBuf> {
        self.tombstones.difference(there).cloned().collect()
    }

    /// Forgets that a path is hidden.
    pub(crate) fn remove_tombstone(&mut self, path: PathBuf, delta: &mut Delta) {
        if self.tombstones.remove(&path) {
            delta.changes.push(StoreChange::RemoveTombstone(path));
        }
    }
}
