//! Paths in the files folder that the owner does not want shared.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use crate::{
    library::catalog::{Catalog, Delta},
    store::StoreChange,
};

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
