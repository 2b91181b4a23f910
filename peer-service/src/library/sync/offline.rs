//! Offline items: paths that do not exist now and may come back, as on a disk that is not mounted.
//! Such an item stays in the library until its owner unshares it.
//!
//! In the files folder there are no offline items: removing a file there unshares it.

use std::path::Path;

use crate::library::{
    LibraryShared,
    catalog::{Catalog, Delta},
    scan::walk::is_gone,
};

/// Maximum number of offline paths named in the log at start.
const MAX_NAMED: usize = 5;

impl LibraryShared {
    /// Whether an item at this path stays if the path does not exist. A download that its owner did
    /// not share does not stay.
    pub(crate) fn survives_offline(&self, path: &Path, downloaded: bool) -> bool {
        !downloaded && !path.starts_with(&self.files_folder)
    }

    /// Whether the path does not exist now and its item stays.
    pub(crate) fn is_offline(&self, path: &Path, downloaded: bool) -> bool {
        self.survives_offline(path, downloaded) && path.metadata().is_err_and(|error| is_gone(&error))
    }

    /// Withdraws the copies of an item whose path does not exist, and keeps the item. Checks the
    /// path itself, because it may have come back since the caller looked. Returns whether the item
    /// is offline.
    pub(crate) fn mark_offline(&self, number: u64) -> bool {
        let _writing = self.writing();
        // A separate statement: the catalog must not stay locked during disk access.
        let item = self
            .catalog()
            .item(number)
            .map(|shared| (shared.path.clone(), shared.downloaded));
        let Some((path, _)) = item.filter(|(path, downloaded)| self.is_offline(path, *downloaded)) else {
            return false;
        };
        let mut delta = Delta::default();
        if self.catalog().set_offline(number, &mut delta) {
            warn_offline_path(&path);
            // `publish` logs a failure. At the next start `stat` shows the same.
            let _ = self.publish(delta);
            self.stale.notify_one();
        }
        true
    }
}

/// Logs the offline paths, up to a limit: a disk may hold a hundred thousand of them.
pub(crate) fn warn_offline(catalog: &Catalog) {
    let mut offline = catalog.offline_items();
    offline
        .by_ref()
        .take(MAX_NAMED)
        .for_each(|shared| warn_offline_path(&shared.path));
    match offline.count() {
        0 => {}
        more => tracing::warn!(more, "more shared paths are away"),
    }
}

fn warn_offline_path(path: &Path) {
    let path = path.display();
    tracing::warn!("{path} is away: it is shared again when it is back; `potluck unshare {path}` forgets it");
}
