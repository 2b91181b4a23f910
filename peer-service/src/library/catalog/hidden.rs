//! Paths in the files folder that the owner does not want shared.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use super::{Catalog, Delta};
use crate::store::StoreChange;

impl Catalog {
    /// Whether the owner took this path out of the files folder's sharing.
    pub(in super::super) fn is_hidden(&self, path: &Path) -> bool {
        self.hidden.contains(path)
    }

    /// Keeps a path in the files folder from being shared by itself again.
    pub(in super::super) fn hide(&mut self, path: PathBuf, delta: Option<&mut Delta>) {
        if self.hidden.insert(path.clone())
            && let Some(delta) = delta
        {
            delta.changes.push(StoreChange::AddTombstone(path));
        }
    }

    /// The hidden paths that are not among these.
    pub(in super::super) fn hidden_besides(&self, there: &HashSet<PathBuf>) -> Vec<PathBuf> {
        self.hidden.difference(there).cloned().collect()
    }

    /// Forgets that a path is hidden.
    pub(in super::super) fn unhide(&mut self, path: PathBuf, delta: &mut Delta) {
        if self.hidden.remove(&path) {
            delta.changes.push(StoreChange::RemoveTombstone(path));
        }
    }
}
