//! Items whose paths are away: nothing is there now, as before a disk is mounted. They stay, with all that hashing them gave.
//!
//! Invariants: a copy is trusted or kept, never both; a piece layer or a manifest's blob stays as long as there is either.

use potluck_core::{FileId, index_client::FileRecord};

use super::{Catalog, Copy, Delta, EntryIndex, Place, Shared, has_layer};

impl Catalog {
    /// Withdraws all that an item gives, and keeps what is known of it. It waits to be looked at again. Whether it was there.
    pub(in super::super) fn set_away(&mut self, number: u64, delta: &mut Delta) -> bool {
        if self.away.contains(&number) {
            return false;
        }
        let Some(shared) = self.items.remove(&number) else {
            return false;
        };
        for part in shared.parts() {
            if let Some((copy, _)) = self.take_copy(number, &shared, part, delta) {
                self.kept.insert(copy);
            }
        }
        self.items.insert(number, shared);
        self.stale.insert(number);
        self.away.insert(number)
    }

    /// Something is at the item's path again. It still waits to be looked at. Whether it was away.
    pub(in super::super) fn set_back(&mut self, number: u64) -> bool {
        self.away.remove(&number)
    }

    /// Whether nothing is at the item's path.
    pub(in super::super) fn is_away(&self, number: u64) -> bool {
        self.away.contains(&number)
    }

    /// Items whose paths are away.
    pub(in super::super) fn away(&self) -> impl Iterator<Item = &Shared> {
        self.away.iter().filter_map(|number| self.item(*number))
    }

    /// What is kept of a part of an item.
    pub(super) fn kept(&self, item: u64, shared: &Shared, part: EntryIndex) -> Option<FileRecord> {
        let record = shared.record(part)?;
        let place = Place {
            item,
            part: shared.part(&record.id)?,
        };
        let prefix = record.id.prefix();
        self.kept.contains(&Copy { prefix, place }).then_some(record)
    }

    /// Whether any copy of a file is kept.
    pub(super) fn keeps(&self, id: &FileId) -> bool {
        self.placed_in(&self.kept, id).next().is_some()
    }

    /// Forgets what is kept of an item, which is not among the items any more.
    pub(super) fn drop_kept(&mut self, number: u64, shared: &Shared, delta: &mut Delta) {
        self.away.remove(&number);
        if self.kept.is_empty() {
            return;
        }
        for part in shared.parts() {
            let Some(record) = self.kept(number, shared, part) else {
                continue;
            };
            self.kept.remove(&Copy {
                prefix: record.id.prefix(),
                place: Place { item: number, part },
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
