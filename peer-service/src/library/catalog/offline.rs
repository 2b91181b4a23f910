//! Items whose paths are away: nothing is there now, as before a disk is mounted. They stay, with all that hashing them gave.
//!
//! Invariants: a copy is trusted or kept, never both; a piece layer or a manifest's blob stays as long as there is either.

use potluck_core::{FileId, model::FileRecord};

use crate::library::catalog::{Catalog, Delta, EntryIndex, FileCopy, Location, SharedItem, has_layer};

impl Catalog {
    /// Withdraws all that an item gives, and keeps what is known of it. It waits to be looked at again. Whether it was there.
    pub(crate) fn set_offline(&mut self, number: u64, delta: &mut Delta) -> bool {
        if self.offline.contains(&number) {
            return false;
        }
        let Some(shared) = self.items.remove(&number) else {
            return false;
        };
        for part in shared.entries() {
            if let Some((copy, _)) = self.take_copy(number, &shared, part, delta) {
                self.offline_copies.insert(copy);
            }
        }
        self.items.insert(number, shared);
        self.stale_items.insert(number);
        self.offline.insert(number)
    }

    /// Something is at the item's path again. It still waits to be looked at. Whether it was away.
    pub(crate) fn set_online(&mut self, number: u64) -> bool {
        self.offline.remove(&number)
    }

    /// Whether nothing is at the item's path.
    pub(crate) fn is_offline(&self, number: u64) -> bool {
        self.offline.contains(&number)
    }

    /// Items whose paths are away.
    pub(crate) fn offline_items(&self) -> impl Iterator<Item = &SharedItem> {
        self.offline.iter().filter_map(|number| self.item(*number))
    }

    /// What is kept of a part of an item.
    pub(crate) fn offline_record(
        &self,
        item: u64,
        shared: &SharedItem,
        part: EntryIndex,
    ) -> Option<FileRecord> {
        let record = shared.record(part)?;
        let location = Location {
            item,
            entry: shared.entry(&record.id)?,
        };
        let prefix = record.id.prefix();
        self.offline_copies
            .contains(&FileCopy { prefix, location })
            .then_some(record)
    }

    /// Whether any copy of a file is kept.
    pub(crate) fn has_offline_copy(&self, id: &FileId) -> bool {
        self.located_copies_in(&self.offline_copies, id).next().is_some()
    }

    /// Forgets what is kept of an item, which is not among the items any more.
    pub(crate) fn drop_offline_copies(&mut self, number: u64, shared: &SharedItem, delta: &mut Delta) {
        self.offline.remove(&number);
        if self.offline_copies.is_empty() {
            return;
        }
        for part in shared.entries() {
            let Some(record) = self.offline_record(number, shared, part) else {
                continue;
            };
            self.offline_copies.remove(&FileCopy {
                prefix: record.id.prefix(),
                location: Location {
                    item: number,
                    entry: part,
                },
            });
            if shared.is_manifest(part) {
                delta.manifests.push(record.id);
            }
            if has_layer(record.size) {
                delta.layered.push(record.id);
            }
        }
    }
}
