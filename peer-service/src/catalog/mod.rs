//! The library in memory: which files are shared, and where their copies are.
//!
//! Pure: no disk, no clock, no store. A method that changes the catalog records the affected ids in
//! a [`Delta`]; [`Catalog::effects_of`] turns it into rows to store and ids to announce.
//!
//! | module | contents |
//! |---|---|
//! | `item` | items, collections and locations of copies |
//! | `stamp`, `record` | the `stat` data of a file; its ids and hashes |
//! | `share_options` | how a folder is shared |
//! | `row`, `change` | the stored form of an item; the effects of a change |
//! | `damaged`, `offline` | items whose bytes are damaged, and items whose paths do not exist now |
//!
//! For a file the catalog stores only its copies, each a short entry that refers to an item. The
//! ids, sizes and paths of a collection's files are in its manifest; their roots and stamps are in
//! separate arrays.
//!
//! Invariants:
//! - A file is in the catalog exactly as long as an item has a trusted copy of it.
//! - An item gives at most one copy of each file.
//! - A collection's manifest has a copy only if all files that it lists were trusted when last
//!   checked.
//!
//! Non-goals: whether a copy is unchanged on the disk, and when a change is stored or announced.
//! The callers know these.

#![deny(
    clippy::disallowed_methods,
    reason = "pure: time, randomness and I/O come in from outside"
)]
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use potluck_core::{
    FileId, FileLayout, Root, Sha256,
    collection::manifest::EntryContent,
    identity::merkle::LEAF_SIZE,
    model::{FileKind, FileRecord, Registration},
};

pub(crate) mod change;
mod damaged;
pub(crate) mod item;
mod offline;
pub(crate) mod record;
pub(crate) mod row;
pub(crate) mod share_options;
pub(crate) mod stamp;
#[cfg(test)]
mod tests;

use crate::catalog::{
    change::{CatalogChange, Delta, DeltaEffects},
    item::{Item, ItemBody, Location, NewItem, SharedCollection, SharedItem},
    record::small_file_sha256,
    row::{EntryIndex, ItemRow, RowBody, WHOLE_ITEM},
    stamp::Stamp,
};

/// Maximum number of names that a file is registered under; set by the protocol.
const MAX_NAMES: usize = 16;

/// Maximum number of copies searched for names and SHA-256s: a thousand copies of one file must not
/// cost a thousand steps for each lookup.
const MAX_COPIES: usize = 64;

/// A trusted copy of a file. The order groups the copies of one file; within an item it is the
/// order of the entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct FileCopy {
    /// The first bytes of the file's id. The item has the whole id.
    prefix: u64,
    location: Location,
}

/// Totals over the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Number of items: files and collections.
    pub items: u64,
    /// Number of distinct files, including those in collections.
    pub files: u64,
    /// Sum of their sizes in bytes.
    pub bytes: u64,
    /// Number of items with a damaged file.
    pub damaged: u64,
}

/// The library in memory; the module's documentation lists its invariants.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    /// Boxed: numbers come in order, and a B-tree that grows in order leaves its nodes half empty.
    items: BTreeMap<u64, Box<SharedItem>>,
    by_path: HashMap<Arc<Path>, u64>,
    copies: BTreeSet<FileCopy>,
    /// Number of distinct files that have copies, without manifests. `bytes` is the sum of their
    /// sizes.
    files: u64,
    bytes: u64,
    /// Items that lost a copy and wait to be checked again.
    stale: BTreeSet<u64>,
    /// The stale items whose paths do not exist now.
    offline: BTreeSet<u64>,
    /// Entries whose bytes differ from the hashed ones although their stamps are unchanged, by
    /// item. See [`damaged`].
    damaged: BTreeMap<u64, BTreeSet<EntryIndex>>,
    /// Copies that were trusted when their item was last online.
    offline_copies: BTreeSet<FileCopy>,
    /// Paths in the files folder that the owner unshared.
    tombstones: HashSet<PathBuf>,
    /// The number of the next new item.
    next_number: u64,
}

impl Catalog {
    /// Whether an item relies on a piece layer that is no longer stored.
    pub(crate) fn lacks_layer(&self, item: &NewItem) -> bool {
        let lacks = |id: FileId, size| {
            let is_stored = || self.record(&id).is_some() || self.has_offline_copy(&id);
            has_layer(size) && !item.layers.contains_key(&id) && !is_stored()
        };
        let listed = match &item.body {
            ItemBody::File(_) => None,
            ItemBody::Collection(folder) => Some(folder.manifest.entries()),
        };
        let mut listed = listed.into_iter().flatten();
        lacks(item.record.id, item.record.size)
            || listed.any(|entry| match entry.content {
                EntryContent::File { id, size, .. } => lacks(id, size),
                _ => false,
            })
    }

    /// Puts an item in place of the one at its path, or as the newest. The item must not [lack a
    /// layer](Catalog::lacks_layer).
    pub(crate) fn put(&mut self, mut new: NewItem, delta: &mut Delta) -> u64 {
        let old = self.by_path.get(&new.path).copied();
        let before = old.and_then(|number| self.items.get(&number));
        // A download that its owner did not ask to share keeps the label that it came with: the
        // last component of its path may be private.
        if new.is_unrequested && new.label.is_none() {
            new.label = before.and_then(|before| before.label.clone());
        }
        new.is_unrequested &= before.is_none_or(|before| before.is_unrequested);
        if let Some(number) = old.filter(|&number| self.is_same(number, &new)) {
            return number;
        }
        let number = old.unwrap_or(self.next_number);
        self.insert(number, new, delta);
        if let Some(item) = self.items.get(&number) {
            delta.changes.push(CatalogChange::PutItem(number, item.to_row()));
            let mut sha256s: Vec<_> = item
                .sha256s
                .iter()
                .map(|(&entry, &sha256)| (entry, sha256))
                .collect();
            let whole = &item.record;
            let own = whole
                .sha256
                .filter(|_| small_file_sha256(whole.size, &whole.root).is_none());
            sha256s.extend(own.map(|sha256| (WHOLE_ITEM, sha256)));
            if !sha256s.is_empty() {
                delta.changes.push(CatalogChange::PutSha256s(number, sha256s));
            }
        }
        number
    }

    /// Whether the same item already exists under this number, and is trusted as a whole.
    fn is_same(&self, number: u64, new: &NewItem) -> bool {
        let Some(item) = self.items.get(&number) else {
            return false;
        };
        let same = item.body.is(&new.body)
            && item.record == new.record
            && item.is_unrequested == new.is_unrequested;
        same && item.label == new.label
            && item.options == new.options
            && !self.stale.contains(&number)
            && !self.is_damaged(number)
            && !self.tombstones.contains(&*new.path)
    }

    /// Puts an item under a number and replaces the item that has it.
    pub(crate) fn insert(&mut self, number: u64, new: NewItem, delta: &mut Delta) {
        self.next_number = self.next_number.max(number + 1);
        for (id, layer) in new.layers {
            delta.changes.push(CatalogChange::PutLayer(id, layer));
        }
        let replaced = self.items.remove(&number);
        if let Some(replaced) = &replaced {
            self.drop_offline_copies(number, replaced, delta);
        }
        // A file whose copy is only replaced is announced again only if its record or name differs.
        let dropped_from = delta.touched.len();
        if let Some(replaced) = &replaced {
            self.drop_copies(number, replaced, delta);
        }
        let mut dropped = delta.touched.split_off(dropped_from);
        dropped.sort_unstable();
        let before = |id: &FileId| {
            let old = replaced.as_deref()?;
            let entry = old.entry(id)?;
            Some((old, entry, old.record(entry)?))
        };
        let mut item = SharedItem {
            path: new.path,
            is_unrequested: new.is_unrequested,
            label: new.label,
            options: new.options,
            record: new.record,
            body: new.body,
            sha256s: new.sha256s,
        };
        let entries: Vec<EntryIndex> = item.entries().collect();
        delta.touched.reserve(entries.len());
        let mut copies = Vec::with_capacity(entries.len());
        for entry in entries {
            let Some(mut record) = item.record(entry) else {
                continue;
            };
            // If another copy has the SHA-256, it need not be computed again.
            if lacks_sha256(&record)
                && let known = self.record(&record.id)
                && let known = known.or_else(|| before(&record.id).map(|(.., known)| known))
                && let Some(sha256) = known.and_then(|known| known.sha256)
            {
                item.set_sha256(entry, sha256);
                record.sha256 = Some(sha256);
            }
            if !item.is_manifest(entry) && !self.has_file(&record.id) {
                self.files += 1;
                self.bytes += record.size;
            }
            copies.push(FileCopy {
                prefix: record.id.prefix(),
                location: Location { item: number, entry },
            });
            let was_present = dropped.binary_search(&record.id).is_ok();
            let is_unchanged = |(old, before, known): (&SharedItem, EntryIndex, FileRecord)| {
                known == record && old.name_of(before) == item.name_of(entry)
            };
            if !(was_present && before(&record.id).is_some_and(is_unchanged)) {
                delta.touched.push(record.id);
            }
        }
        let gone = dropped.into_iter().filter(|id| item.entry(id).is_none());
        delta.touched.extend(gone);
        self.add_copies(copies);
        if self.tombstones.remove(&*item.path) {
            delta
                .changes
                .push(CatalogChange::RemoveTombstone(item.path.to_path_buf()));
        }
        self.stale.remove(&number);
        self.damaged.remove(&number);
        self.by_path.insert(item.path.clone(), number);
        self.items.insert(number, Box::new(item));
    }

    /// Adds many copies in one step: a tree that is built as a whole has full nodes, one that grows
    /// in order has half-empty nodes.
    fn add_copies(&mut self, copies: Vec<FileCopy>) {
        if copies.len() > self.copies.len() {
            self.copies.append(&mut copies.into_iter().collect());
        } else {
            self.copies.extend(copies);
        }
    }

    /// Withdraws all copies of an item. `item` was already removed from them.
    fn drop_copies(&mut self, number: u64, item: &SharedItem, delta: &mut Delta) {
        for entry in item.entries() {
            self.drop_copy(number, item, entry, delta);
        }
    }

    fn drop_copy(&mut self, number: u64, item: &SharedItem, entry: EntryIndex, delta: &mut Delta) {
        let Some((_, record)) = self.take_copy(number, item, entry, delta) else {
            return;
        };
        if item.is_manifest(entry) {
            delta.manifests.push(record.id);
        }
        if has_layer(record.size) {
            delta.layered.push(record.id);
        }
    }

    /// Withdraws a copy if it exists. Keeps its piece layer and manifest.
    fn take_copy(
        &mut self,
        number: u64,
        item: &SharedItem,
        entry: EntryIndex,
        delta: &mut Delta,
    ) -> Option<(FileCopy, FileRecord)> {
        let record = item.record(entry)?;
        let copy = FileCopy {
            prefix: record.id.prefix(),
            location: Location { item: number, entry },
        };
        if !self.copies.remove(&copy) {
            return None;
        }
        delta.lost_copies = true;
        if !item.is_manifest(entry) && !self.has_file(&record.id) {
            self.files -= 1;
            self.bytes -= record.size;
        }
        delta.touched.push(record.id);
        Some((copy, record))
    }

    /// Whether a copy exists that is not a manifest.
    fn has_file(&self, id: &FileId) -> bool {
        self.copies(id).any(|(item, entry)| !item.is_manifest(entry))
    }

    /// Removes an item.
    pub(crate) fn remove(&mut self, number: u64, delta: &mut Delta) -> Option<Item> {
        let item = self.items.remove(&number)?;
        self.by_path.remove(&item.path);
        self.stale.remove(&number);
        self.damaged.remove(&number);
        self.drop_offline_copies(number, &item, delta);
        self.drop_copies(number, &item, delta);
        delta.changes.push(CatalogChange::RemoveItem(number));
        Some(item.to_item())
    }

    /// Restores a stored item without any copy. Used for an item that cannot be trusted at start.
    pub(crate) fn put_stale(&mut self, number: u64, row: ItemRow) {
        self.by_path.insert(row.path.clone(), number);
        let item = SharedItem {
            path: row.path,
            is_unrequested: row.is_unrequested,
            label: row.label,
            options: row.options,
            record: FileRecord {
                id: row.id,
                size: 0,
                root: Root([0; 32]),
                sha256: None,
                kind: FileKind::File,
            },
            body: match row.body {
                RowBody::File(stamp) => ItemBody::File(stamp),
                RowBody::Collection(_) => ItemBody::Collection(Arc::default()),
            },
            sha256s: BTreeMap::new(),
        };
        self.items.insert(number, Box::new(item));
        self.stale.insert(number);
        self.next_number = self.next_number.max(number + 1);
    }

    /// Withdraws a copy that changed, and the manifest that lists it. The item waits to be checked
    /// again.
    pub(crate) fn invalidate(&mut self, location: Location, delta: &mut Delta) {
        let Some(item) = self.items.remove(&location.item) else {
            return;
        };
        // Entries with the same content share one copy.
        let entry = item.id(location.entry).and_then(|id| item.entry(&id));
        for entry in [Some(WHOLE_ITEM), entry.filter(|&entry| entry != WHOLE_ITEM)]
            .into_iter()
            .flatten()
        {
            self.drop_copy(location.item, &item, entry, delta);
        }
        self.items.insert(location.item, item);
        // A damaged item waits for its owner.
        if !self.is_damaged(location.item) {
            self.stale.insert(location.item);
        }
    }

    /// Stores a SHA-256, unless the file was removed meanwhile.
    pub(crate) fn set_sha256(&mut self, id: FileId, sha256: Sha256, delta: &mut Delta) {
        let locations = self.locations(&id);
        if locations.is_empty() {
            return;
        }
        for location in locations {
            if let Some(item) = self.items.get_mut(&location.item) {
                item.set_sha256(location.entry, sha256);
                delta.changes.push(CatalogChange::PutSha256s(
                    location.item,
                    vec![(location.entry, sha256)],
                ));
            }
        }
        delta.touched.push(id);
    }

    /// The registration of a file for the index.
    pub(crate) fn registration(&self, id: &FileId) -> Option<Registration> {
        let mut names: Vec<String> = Vec::with_capacity(1);
        let record = self.record_with(id, |item, entry| {
            if let Some(name) = item.name_of(entry)
                && names.len() < MAX_NAMES
                && !names.contains(&name)
            {
                names.push(name);
            }
        });
        Some(Registration {
            file: record?,
            names,
            is_complete: true,
        })
    }

    /// The record of this file, if it has a trusted copy.
    pub(crate) fn record(&self, id: &FileId) -> Option<FileRecord> {
        self.record_with(id, |_, _| {})
    }

    /// The record of this file. Calls `visit` with each copy that it reads.
    fn record_with(
        &self,
        id: &FileId,
        mut visit: impl FnMut(&SharedItem, EntryIndex),
    ) -> Option<FileRecord> {
        let copies = self.copies(id).take(MAX_COPIES);
        let copies = copies.inspect(|(item, entry)| visit(item, *entry));
        let mut records = copies.filter_map(|(item, entry)| item.record(entry));
        let mut record = records.next()?;
        for other in records {
            record.sha256 = record.sha256.or(other.sha256);
            if other.kind == FileKind::Collection {
                record.kind = other.kind;
            }
        }
        Some(record)
    }

    /// The copies of a file: the items that have one, and the entry within each.
    pub(crate) fn copies(&self, id: &FileId) -> impl Iterator<Item = (&SharedItem, EntryIndex)> {
        self.located_copies(id).map(|(_, item, entry)| (item, entry))
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
        let copy = |number, entry| FileCopy {
            prefix,
            location: Location { item: number, entry },
        };
        let copies = copies.range(copy(0, 0)..=copy(u64::MAX, EntryIndex::MAX));
        copies.filter_map(move |copy| {
            let Location { item: number, entry } = copy.location;
            let item: &SharedItem = self.items.get(&number)?;
            (item.id(entry) == Some(id)).then_some((number, item, entry))
        })
    }

    /// The locations of a file's copies.
    pub(crate) fn locations(&self, id: &FileId) -> Vec<Location> {
        let copies = self.located_copies(id);
        let locations = copies.map(|(number, _, entry)| Location { item: number, entry });
        locations.collect()
    }

    /// The item with this number.
    pub(crate) fn item(&self, number: u64) -> Option<&SharedItem> {
        self.items.get(&number).map(AsRef::as_ref)
    }

    /// Items after the one numbered `after`, oldest first.
    pub(crate) fn items_after(
        &self,
        after: Option<u64>,
    ) -> impl Iterator<Item = (u64, &SharedItem)> {
        let start = after.map_or(0, |after| after.saturating_add(1));
        self.items.range(start..).map(|(&number, item)| (number, &**item))
    }

    /// The number of the item at a path.
    pub(crate) fn item_at(&self, path: &Path) -> Option<u64> {
        self.by_path.get(path).copied()
    }

    /// Whether the owner asked to share this path: alone, as part of a folder, or, if it is a folder,
    /// something in it.
    pub(crate) fn is_requested_at(&self, path: &Path, is_folder: bool) -> bool {
        let is_requested =
            |number: u64| self.items.get(&number).is_some_and(|it| !it.is_unrequested);
        let mut above = path.ancestors().filter_map(|above| self.item_at(above));
        let below = |(path_below, number): (&Arc<Path>, &u64)| {
            path_below.starts_with(path) && is_requested(*number)
        };
        above.any(is_requested) || (is_folder && self.by_path.iter().any(below))
    }

    /// The path of an item with this file that is directly in `folder`.
    pub(crate) fn item_below(&self, id: &FileId, folder: &Path) -> Option<Arc<Path>> {
        let mut copies = self.copies(id).take(MAX_COPIES);
        copies
            .find(|(item, _)| item.path.parent() == Some(folder))
            .map(|(item, _)| Arc::clone(&item.path))
    }

    /// The collection at a path, if all of it is trusted.
    pub(crate) fn folder_at(&self, path: &Path) -> Option<(FileRecord, &Arc<SharedCollection>)> {
        let is_trusted = |number: &u64| !self.stale.contains(number) && !self.is_damaged(*number);
        let number = self.item_at(path).filter(is_trusted)?;
        let item = self.items.get(&number)?;
        Some((item.record, item.folder()?))
    }

    /// The record of the file at a path, if it was hashed with this stamp and its copy is trusted
    /// or offline.
    pub(crate) fn known_file(&self, path: &Path, stamp: &Stamp) -> Option<FileRecord> {
        path.ancestors().find_map(|ancestor| {
            let number = self.item_at(ancestor)?;
            let item = self.items.get(&number)?;
            let entry = match &item.body {
                ItemBody::File(_) if ancestor == path => WHOLE_ITEM,
                ItemBody::File(_) => return None,
                ItemBody::Collection(folder) => {
                    let below = path.strip_prefix(ancestor).ok().and_then(Path::to_str)?;
                    folder.manifest.find(below)?
                }
            };
            if item.stamp(entry) != Some(*stamp) || self.is_entry_damaged(number, entry) {
                return None;
            }
            let trusted = self.record(&item.id(entry)?);
            trusted.or_else(|| self.offline_record(number, item, entry))
        })
    }

    /// Whether [`Catalog::known_file`] may know any of `files` files in a folder. Also true if
    /// answering exactly would cost more than asking for each file.
    pub(crate) fn may_know(&self, folder: &Path, files: usize) -> bool {
        self.items.len() > files
            || folder.ancestors().any(|above| self.by_path.contains_key(above))
            || self.by_path.keys().any(|path| path.starts_with(folder))
    }

    /// Items that wait to be checked again.
    pub(crate) fn stale_numbers(&self) -> Vec<u64> {
        self.stale.iter().copied().collect()
    }

    /// Whether an item waits to be checked again.
    pub(crate) fn is_stale(&self, number: u64) -> bool {
        self.stale.contains(&number)
    }

    /// At most `max` files after this location whose SHA-256 is not known, roughly in their order
    /// on the disk.
    pub(crate) fn without_sha256(
        &self,
        after: Option<Location>,
        max: usize,
    ) -> Vec<(Location, FileId)> {
        let first = after.map_or(0, |after| after.item);
        let locations = self.items.range(first..).flat_map(|(&number, item)| {
            let entries = item
                .folder()
                .map_or(0, |folder| folder.manifest.len() as EntryIndex);
            let entries = (0..entries).chain([WHOLE_ITEM]);
            entries.map(move |entry| (Location { item: number, entry }, item))
        });
        locations
            .skip_while(|(location, _)| after.is_some_and(|after| *location <= after))
            .filter_map(|(location, item)| {
                let record = item.record(location.entry).filter(lacks_sha256)?;
                let copy = FileCopy {
                    prefix: record.id.prefix(),
                    location,
                };
                self.copies.contains(&copy).then_some((location, record.id))
            })
            .take(max)
            .collect()
    }

    /// Computes the rows to store and the files to announce after a change.
    pub(crate) fn effects_of(&self, delta: Delta) -> DeltaEffects {
        let Delta {
            mut touched,
            lost_copies,
            layered,
            manifests,
            mut changes,
        } = delta;
        // A stable sort, because it is fast on sorted runs: the files of one item are already in
        // order.
        touched.sort();
        touched.dedup();
        let mut removed = Vec::new();
        if lost_copies {
            touched.retain(|id| {
                let is_there = self.copies(id).next().is_some();
                if !is_there {
                    removed.push(*id);
                }
                is_there
            });
        }
        let gone = |id: &FileId| self.copies(id).next().is_none() && !self.has_offline_copy(id);
        changes.extend(layered.into_iter().filter(gone).map(CatalogChange::RemoveLayer));
        DeltaEffects {
            changes,
            present: touched,
            manifests: manifests.into_iter().filter(gone).collect(),
            removed,
        }
    }

    /// Totals over the library. Manifests count only as items.
    pub(crate) fn totals(&self) -> Totals {
        Totals {
            items: self.items.len() as u64,
            files: self.files,
            bytes: self.bytes,
            damaged: self.damaged.len() as u64,
        }
    }
}

/// Whether a file of this size has a piece layer that must be stored.
fn has_layer(size: u64) -> bool {
    FileLayout::new(size).is_some_and(|layout| layout.piece_count() > 1)
}

/// Whether a file's SHA-256 must still be computed.
fn lacks_sha256(record: &FileRecord) -> bool {
    record.sha256.is_none() && record.kind == FileKind::File && record.size > LEAF_SIZE as u64
}

impl Catalog {
    /// Whether the owner unshared this path of the files folder.
    pub(crate) fn is_tombstoned(&self, path: &Path) -> bool {
        self.tombstones.contains(path)
    }

    /// Keeps a path in the files folder from being shared automatically again.
    pub(crate) fn add_tombstone(&mut self, path: PathBuf, delta: Option<&mut Delta>) {
        if self.tombstones.insert(path.clone())
            && let Some(delta) = delta
        {
            delta.changes.push(CatalogChange::AddTombstone(path));
        }
    }

    /// The tombstones whose paths are not in `listing`.
    pub(crate) fn tombstones_not_in(&self, listing: &HashSet<PathBuf>) -> Vec<PathBuf> {
        self.tombstones.difference(listing).cloned().collect()
    }

    /// Removes a tombstone.
    pub(crate) fn remove_tombstone(&mut self, path: PathBuf, delta: &mut Delta) {
        if self.tombstones.remove(&path) {
            delta.changes.push(CatalogChange::RemoveTombstone(path));
        }
    }
}
