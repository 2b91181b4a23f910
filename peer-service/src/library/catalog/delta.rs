//! The effects of a change in the catalog: what to store and what to announce.

use potluck_core::FileId;

use crate::{library::catalog::Catalog, store::StoreChange};

/// Changes that are not stored and announced yet.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    /// Ids whose registration may have changed: existence of a copy, name, or SHA-256.
    pub(crate) touched: Vec<FileId>,
    /// Whether any copy was removed. If not, every touched file still has one.
    pub(crate) lost_copies: bool,
    /// Ids that had a piece layer (`layered`) or a manifest (`manifests`) when a copy was removed.
    pub(crate) layered: Vec<FileId>,
    pub(crate) manifests: Vec<FileId>,
    pub(crate) changes: Vec<StoreChange>,
}

/// What to store and what to announce.
#[derive(Debug, Default)]
pub(crate) struct DeltaEffects {
    pub(crate) changes: Vec<StoreChange>,
    /// Files with a copy that are new or whose registration changed.
    pub(crate) present: Vec<FileId>,
    pub(crate) removed: Vec<FileId>,
    /// Collections without a copy; their manifests can be deleted from the disk.
    pub(crate) manifests: Vec<FileId>,
}

impl Delta {
    pub(crate) const fn is_empty(&self) -> bool {
        self.touched.is_empty() && self.changes.is_empty()
    }
}

impl Catalog {
    /// Computes what to store and what to announce.
    pub(crate) fn settle(&self, delta: Delta) -> DeltaEffects {
        let Delta {
            mut touched,
            lost_copies: has_lost,
            layered,
            manifests,
            mut changes,
        } = delta;
        // A stable sort, because it is fast on sorted runs: the files of one item are already in
        // order.
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
