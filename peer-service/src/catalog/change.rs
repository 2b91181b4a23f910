//! Changes of the catalog: the rows to store and the files to announce.

use std::{path::PathBuf, sync::Arc};

use potluck_core::{FileId, Sha256, identity::merkle::Hash};

use crate::catalog::row::{EntryIndex, ItemRow};

/// A change to store.
#[derive(Debug, Clone)]
pub(crate) enum CatalogChange {
    PutItem(u64, ItemRow),
    RemoveItem(u64),
    /// SHA-256s of an existing item.
    PutSha256s(u64, EntrySha256s),
    /// A damaged entry of an existing item; removed when the item is put again or removed.
    PutDamaged(u64, EntryIndex),
    /// Removes all damaged entries of an item.
    RemoveDamaged(u64),
    PutLayer(FileId, Arc<[Hash]>),
    RemoveLayer(FileId),
    AddTombstone(PathBuf),
    RemoveTombstone(PathBuf),
}

/// SHA-256s of entries of an item.
pub(crate) type EntrySha256s = Vec<(EntryIndex, Sha256)>;

/// Collects the ids that a change of the catalog affects, until [`Catalog::effects_of`] computes
/// its effects.
///
/// [`Catalog::effects_of`]: crate::catalog::Catalog::effects_of
#[derive(Debug, Default)]
pub(crate) struct Delta {
    /// Ids whose registration may have changed: existence of a copy, name, or SHA-256.
    pub(crate) touched: Vec<FileId>,
    /// Whether any copy was removed. If not, every affected file still has a copy.
    pub(crate) lost_copies: bool,
    /// Ids that had a piece layer (`layered`) or a manifest (`manifests`) when a copy was removed.
    pub(crate) layered: Vec<FileId>,
    pub(crate) manifests: Vec<FileId>,
    pub(crate) changes: Vec<CatalogChange>,
}

/// The rows to store and the files to announce.
#[derive(Debug, Default)]
pub(crate) struct DeltaEffects {
    pub(crate) changes: Vec<CatalogChange>,
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
