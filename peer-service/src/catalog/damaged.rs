//! Damaged items: their bytes differ from the hashed ones although the stamp is unchanged. Either
//! the disk or the memory failed, or a program wrote to the file and reset its times.
//!
//! Invariants: a damaged entry has no copy, and its hash is never reused. A damaged item is not
//! hashed again automatically, because that would share the damaged bytes under a new id. The owner
//! shares it again, restores the file, or unshares the item.

use std::path::PathBuf;

use crate::catalog::{
    Catalog,
    change::{CatalogChange, Delta},
    item::{Item, Location},
    row::{EntryIndex, WHOLE_ITEM},
};

/// Maximum number of damaged files listed for one item.
const MAX_SHOWN: usize = 16;

impl Catalog {
    /// Withdraws a damaged entry and the manifest that lists it. Returns whether the damage is new.
    pub(crate) fn set_damaged(&mut self, location: Location, delta: &mut Delta) -> bool {
        let Some(item) = self.items.remove(&location.item) else {
            return false;
        };
        let entries = [
            Some(WHOLE_ITEM),
            Some(location.entry).filter(|&entry| entry != WHOLE_ITEM),
        ];
        for entry in entries.into_iter().flatten() {
            self.drop_copy(location.item, &item, entry, delta);
        }
        self.items.insert(location.item, item);
        self.stale.remove(&location.item);
        let is_new = self
            .damaged
            .entry(location.item)
            .or_default()
            .insert(location.entry);
        if is_new {
            delta
                .changes
                .push(CatalogChange::PutDamaged(location.item, location.entry));
        }
        is_new
    }

    /// Restores damage that was stored before the last stop. If the file changed since, the damage
    /// is dropped and the item is checked again.
    pub(crate) fn restore_damaged(&mut self, location: Location, delta: &mut Delta) {
        let Some(item) = self.items.get(&location.item) else {
            return;
        };
        let is_unchanged = item.id(location.entry).is_some_and(|id| {
            // Of the entries with the same content, only the first has a copy.
            let entry = item.entry(&id);
            self.located_copies(&id)
                .any(|(number, _, known)| number == location.item && Some(known) == entry)
        });
        match is_unchanged {
            true => drop(self.set_damaged(location, delta)),
            false => delta.changes.push(CatalogChange::RemoveDamaged(location.item)),
        }
    }

    /// Removes the damage of an item, because a damaged file changed. The item waits to be checked
    /// again.
    pub(crate) fn forget_damage(&mut self, number: u64, delta: &mut Delta) {
        if self.damaged.remove(&number).is_some() {
            self.stale.insert(number);
            delta.changes.push(CatalogChange::RemoveDamaged(number));
        }
    }

    /// Whether any entry of an item is damaged.
    pub(crate) fn is_damaged(&self, number: u64) -> bool {
        self.damaged.contains_key(&number)
    }

    /// Whether an item is damaged and all its damaged entries are in `intact`.
    pub(crate) fn is_repaired(&self, number: u64, intact: &[EntryIndex]) -> bool {
        let damaged = self.damaged.get(&number);
        damaged.is_some_and(|entries| entries.iter().all(|entry| intact.contains(entry)))
    }

    /// Whether this entry of an item is damaged.
    pub(crate) fn is_entry_damaged(&self, number: u64, entry: EntryIndex) -> bool {
        let damaged = self.damaged.get(&number);
        damaged.is_some_and(|entries| entries.contains(&entry))
    }

    /// The item as shown to its owner.
    pub(crate) fn item_with_damage(&self, number: u64) -> Option<Item> {
        let item = self.item(number)?;
        let damaged = self.damaged.get(&number).into_iter().flatten();
        let paths = damaged.filter_map(|&entry| item.locate(entry));
        Some(Item {
            damaged: paths.take(MAX_SHOWN).collect::<Vec<PathBuf>>(),
            ..item.to_item()
        })
    }
}
