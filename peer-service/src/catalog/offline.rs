//! Offline items: their paths do not exist now, as before a disk is mounted. They stay in the
//! catalog with their hashes.
//!
//! Invariants: a copy is trusted or offline, never both. A piece layer or a manifest stays stored
//! as long as a copy of either kind exists.

use potluck_core::{FileId, model::FileRecord};

use crate::catalog::{
    Catalog, FileCopy,
    change::Delta,
    has_layer,
    item::{Location, SharedItem},
    row::EntryIndex,
};

impl Catalog {
    /// Turns all copies of an item into offline copies. The item waits to be checked again. Returns
    /// whether it was online.
    pub(crate) fn set_offline(&mut self, number: u64, delta: &mut Delta) -> bool {
        if self.offline.contains(&number) {
            return false;
        }
        let Some(item) = self.items.remove(&number) else {
            return false;
        };
        for entry in item.entries() {
            if let Some((copy, _)) = self.take_copy(number, &item, entry, delta) {
                self.offline_copies.insert(copy);
            }
        }
        self.items.insert(number, item);
        self.stale.insert(number);
        self.offline.insert(number)
    }

    /// Marks that the item's path exists again. The item still waits to be checked. Returns whether
    /// it was offline.
    pub(crate) fn set_online(&mut self, number: u64) -> bool {
        self.offline.remove(&number)
    }

    /// Whether the item's path does not exist.
    pub(crate) fn is_offline(&self, number: u64) -> bool {
        self.offline.contains(&number)
    }

    /// The offline items.
    pub(crate) fn offline_items(&self) -> impl Iterator<Item = &SharedItem> {
        self.offline.iter().filter_map(|number| self.item(*number))
    }

    /// The record of an entry, if it has an offline copy.
    pub(crate) fn offline_record(
        &self,
        number: u64,
        item: &SharedItem,
        entry: EntryIndex,
    ) -> Option<FileRecord> {
        let record = item.record(entry)?;
        let location = Location {
            item: number,
            entry: item.entry(&record.id)?,
        };
        let prefix = record.id.prefix();
        self.offline_copies
            .contains(&FileCopy { prefix, location })
            .then_some(record)
    }

    /// Whether a file has an offline copy.
    pub(crate) fn has_offline_copy(&self, id: &FileId) -> bool {
        self.located_copies_in(&self.offline_copies, id).next().is_some()
    }

    /// Removes the offline copies of an item that was already removed from the items.
    pub(crate) fn drop_offline_copies(
        &mut self,
        number: u64,
        item: &SharedItem,
        delta: &mut Delta,
    ) {
        self.offline.remove(&number);
        if self.offline_copies.is_empty() {
            return;
        }
        for entry in item.entries() {
            let Some(record) = self.offline_record(number, item, entry) else {
                continue;
            };
            self.offline_copies.remove(&FileCopy {
                prefix: record.id.prefix(),
                location: Location { item: number, entry },
            });
            if item.is_manifest(entry) {
                delta.manifests.push(record.id);
            }
            if has_layer(record.size) {
                delta.layered.push(record.id);
            }
        }
    }
}
