//! What changes of the catalog come to: what to store, and what to tell.

use potluck_core::FileId;

use crate::{library::catalog::Catalog, store::StoreChange};

/// What changed and has still to be settled, stored and told.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    /// Ids of which something changed that others know: whether there is a copy, its name, its SHA-256.
    pub(crate) touched: Vec<FileId>,
    /// Whether any copy went: else all that was touched is there.
    pub(crate) lost_copies: bool,
    /// Those that had a piece layer or a manifest's blob when a copy went.
    pub(crate) layered: Vec<FileId>,
    pub(crate) manifests: Vec<FileId>,
    pub(crate) changes: Vec<StoreChange>,
}

/// What to store and tell.
#[derive(Debug, Default)]
pub(crate) struct DeltaEffects {
    pub(crate) changes: Vec<StoreChange>,
    /// Files that are there, and new or not registered as they were.
    pub(crate) present: Vec<FileId>,
    pub(crate) removed: Vec<FileId>,
    /// Collections that are gone, whose manifests are kept beside the database.
    pub(crate) manifests: Vec<FileId>,
}

impl Delta {
    pub(crate) const fn is_empty(&self) -> bool {
        self.touched.is_empty() && self.changes.is_empty()
    }
}

impl Catalog {
    /// Says what to store and tell of what changed.
    pub(crate) fn settle(&self, delta: Delta) -> DeltaEffects {
        let Delta {
            mut touched,
            lost_copies: has_lost,
            layered,
            manifests,
            mut changes,
        } = delta;
        // An item's files are in order already, which this sort makes use of.
        touched.sort();
        touched.dedup();
        let mut removed = Vec::new();
        if has_lost {
            touched.retain(|id| {
                let is_there = self.copies(id).next().is_some();
                if !is_there {
                    removed.push(*id);
                }
                is_there
            });
        }
        let gone = |id: &FileId| self.copies(id).next().is_none() && !self.has_offline_copy(id);
        changes.extend(layered.into_iter().filter(gone).map(StoreChange::RemoveLayer));
        DeltaEffects {
            changes,
            present: touched,
            manifests: manifests.into_iter().filter(gone).collect(),
            removed,
        }
    }
}
