//! Paths in the files folder that the owner does not want shared.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use super::{Catalog, Delta};
use crate::store::StoreChange;

impl Catalog {
    /// Whether the owner took this path out of the files folder's sharing.
    pub(in super::super) fn is_tombstoned(&self, path: &Path) -> bool {
        self.tombstones.contains(path)
    }

    /// Keeps a path in the files folder from being shared by itself again.
    pub(in super::super) fn add_tombstone(&mut self, path: PathBuf, delta: Option<&mut Delta>) {
        if self.tombstones.insert(path.clone())
            && let Some(delta) = delta
        {
            delta.changes.push(StoreChange::AddTombstone(path));
        }
    }

    /// The hidden paths that are not among these.
    pub(in super::super) fn tombstones_besides(&self, there: &HashSet<PathBuf>) -> Vec<PathBuf> {
        self.tombstones.difference(there).cloned().collect()
    }

    /// Forgets that a path is hidden.
    pub(in super::super) fn remove_tombstone(&mut self, path: PathBuf, delta: &mut Delta) {
        if self.tombstones.remove(&path) {
            delta.changes.push(StoreChange::RemoveTombstone(path));
        }
    }
}
