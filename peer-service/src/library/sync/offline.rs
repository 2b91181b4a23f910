//! Shared paths that are away for a while, as on a disk that is not mounted: what was shared stays shared until its owner unshares it.
//! Not so in the files folder, where taking a file away is how to unshare it.

use std::path::Path;

use crate::library::{
    LibraryShared,
    catalog::{Catalog, Delta},
    scan::walk::is_gone,
};

/// Most paths named at start.
const MAX_NAMED: usize = 5;

impl LibraryShared {
    /// Whether an item at this path stays when nothing is there. Not so a download that its owner only fetched.
    pub(crate) fn survives_offline(&self, path: &Path, downloaded: bool) -> bool {
        !downloaded && !path.starts_with(&self.files_folder)
    }

    /// Whether nothing is at this path now, and an item there stays nevertheless.
    pub(crate) fn is_offline(&self, path: &Path, downloaded: bool) -> bool {
        self.survives_offline(path, downloaded) && path.metadata().is_err_and(|error| is_gone(&error))
    }

    /// Withdraws an item whose path is away and keeps it. Looks itself, as what somebody saw before may have come since. Whether it is
    /// away.
    pub(crate) fn mark_offline(&self, number: u64) -> bool {
        let _writing = self.writing();
        // Apart from the question: the catalog must not stay locked while the disk is asked.
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
            // A failure is logged there; at the next start `stat` tells again.
            let _ = self.publish(delta);
            self.stale.notify_one();
        }
        true
    }
}

/// Says which paths are away: not of each of a hundred thousand on one disk.
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
