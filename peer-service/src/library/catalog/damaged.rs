//! Items with bytes that are not what was hashed although nothing shows a change: the disk or the
//! memory that they lie in is at fault, or something wrote there and set the times back.
//!
//! Invariants: a damaged part gives no copy and is never taken for known; its item is not hashed
//! again by itself, as that would share the damaged bytes under a new id. The owner shares it
//! again, puts back what was there, or takes it away.

use std::path::PathBuf;

use crate::{
    library::catalog::{Catalog, Delta, EntryIndex, Item, Location, WHOLE_ITEM},
    store::StoreChange,
};

/// Most damaged files that are named of one item.
const MAX_NAMED: usize = 16;

impl Catalog {
    /// Withdraws a part that is damaged, and with it the manifest that lists it. Whether that was
    /// not known.
    pub(crate) fn set_damaged(&mut self, location: Location, delta: &mut Delta) -> bool {
        let Some(shared) = self.items.remove(&location.item) else {
            return false;
        };
        let parts = [
            Some(WHOLE_ITEM),
            Some(location.entry).filter(|&part| part != WHOLE_ITEM),
        ];
        for part in parts.into_iter().flatten() {
            self.drop_copy(location.item, &shared, part, delta);
        }
        self.items.insert(location.item, shared);
        self.stale_items.remove(&location.item);
        let is_new = self
            .damaged
            .entry(location.item)
            .or_default()
            .insert(location.entry);
        if is_new {
            delta
                .changes
                .push(StoreChange::PutDamaged(location.item, location.entry));
        }
        is_new
    }

    /// What was remembered as damaged when the peer stopped is so still, unless it changed since:
    /// then it is looked at again.
    pub(crate) fn restore_damaged(&mut self, location: Location, delta: &mut Delta) {
        let Some(shared) = self.items.get(&location.item) else {
            return;
        };
        let is_unchanged = shared.id(location.entry).is_some_and(|id| {
            // A part that is not the first of its content has no copy of its own.
            let part = shared.entry(&id);
            self.located_copies(&id)
                .any(|(item, _, known)| item == location.item && Some(known) == part)
        });
        match is_unchanged {
            true => drop(self.set_damaged(location, delta)),
            false => delta.changes.push(StoreChange::RemoveDamaged(location.item)),
        }
    }

    /// Lets an item be looked at again, as something of it that was damaged has changed.
    pub(crate) fn forget_damage(&mut self, number: u64, delta: &mut Delta) {
        if self.damaged.remove(&number).is_some() {
            self.stale_items.insert(number);
            delta.changes.push(StoreChange::RemoveDamaged(number));
        }
    }

    /// Whether anything of an item is damaged.
    pub(crate) fn is_damaged(&self, number: u64) -> bool {
        self.damaged.contains_key(&number)
    }

    /// Whether something of an item is damaged, and all of that is among these parts, which were
    /// found to be good.
    pub(crate) fn is_mended(&self, number: u64, good: &[EntryIndex]) -> bool {
        let damaged = self.damaged.get(&number);
        damaged.is_some_and(|parts| parts.iter().all(|part| good.contains(part)))
    }

    /// Whether this part of an item is damaged.
    pub(crate) fn is_part_damaged(&self, number: u64, part: EntryIndex) -> bool {
        let damaged = self.damaged.get(&number);
        damaged.is_some_and(|parts| parts.contains(&part))
    }

    /// An item as its owner is shown it.
    pub(crate) fn shown(&self, number: u64) -> Option<Item> {
        let shared = self.item(number)?;
        let damaged = self.damaged.get(&number).into_iter().flatten();
        let paths = damaged.filter_map(|&part| shared.locate(part));
        Some(Item {
            damaged: paths.take(MAX_NAMED).collect::<Vec<PathBuf>>(),
            ..shared.to_item()
        })
    }
}
