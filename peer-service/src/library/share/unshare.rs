//! Removes items from the library. Deletes no shared file.

use potluck_core::{Problem, Reason};

use crate::{
    library::{
        Item, LibraryShared, UnshareTarget,
        catalog::{Catalog, Delta},
        share::build::resolve,
    },
    store::StoreError,
};

impl UnshareTarget {
    /// The target with its path resolved as the paths of items are.
    fn resolved(&self) -> Self {
        match self {
            Self::Id(id) => Self::Id(*id),
            // If the parent folder is gone, the path can only be compared as given.
            Self::Path(path) => Self::Path(resolve(path).unwrap_or_else(|_| path.clone())),
        }
    }

    fn is(&self, item: &Item) -> bool {
        match self {
            Self::Id(id) => item.record.id == *id,
            Self::Path(path) => item.path == *path,
        }
    }

    /// The numbers of the items that match.
    fn numbers(&self, catalog: &Catalog) -> Vec<u64> {
        match self {
            Self::Id(id) => {
                let items = catalog.items_after(None);
                items
                    .filter(|(_, shared)| shared.record.id == *id)
                    .map(|(number, _)| number)
                    .collect()
            }
            Self::Path(path) => catalog.item_at(path).into_iter().collect(),
        }
    }
}

impl LibraryShared {
    /// Implements [`crate::library::Library::unshare`].
    pub(crate) fn unshare(&self, target: &UnshareTarget) -> Result<Vec<Item>, Problem> {
        let resolved = target.resolved();
        let _writing = self.writing();
        let mut catalog = self.catalog();
        let mut delta = Delta::default();
        let mut removed = Vec::new();
        for number in resolved.numbers(&catalog) {
            let Some(item) = catalog.remove(number, &mut delta) else {
                continue;
            };
            if self.is_in_files_folder(&item.path) {
                catalog.add_tombstone(item.path.clone(), Some(&mut delta));
            }
            removed.push(item);
        }
        if removed.is_empty() {
            // A repeated call, after the first could not be stored.
            let unsaved = self.unsaved_changes.lock();
            let unshared = unsaved.unshared.iter().filter(|item| resolved.is(item));
            removed.extend(unshared.cloned());
        }
        if removed.is_empty() {
            return Err(not_shared(target, &catalog));
        }
        drop(catalog);
        match self.publish(delta) {
            Ok(()) => Ok(removed),
            Err(error) => {
                let unshared = &mut self.unsaved_changes.lock().unshared;
                unshared.retain(|known| removed.iter().all(|item| item.path != known.path));
                unshared.extend(removed);
                Err(not_remembered(&error))
            }
        }
    }
}

fn not_shared(target: &UnshareTarget, catalog: &Catalog) -> Problem {
    let message = match target {
        UnshareTarget::Id(id) if catalog.record(id).is_some() => {
            format!("{id} is shared only as part of a collection: unshare the collection")
        }
        UnshareTarget::Id(id) => format!("{id} is not shared here"),
        UnshareTarget::Path(path) => format!("{} is not shared here as such", path.display()),
    };
    Problem::new(Reason::NotFound, message)
}

fn not_remembered(error: &StoreError) -> Problem {
    match error.is_full() {
        true => Problem::new(
            Reason::DiskFull,
            "it is no longer shared, but there was no room to remember that: it is shared again when the peer starts; make room and unshare it again",
        ),
        false => Problem::new(
            Reason::StoreUnavailable,
            "it is no longer shared, but that could not be remembered: it is shared again when the peer starts; see the peer's log and unshare it again",
        ),
    }
}
