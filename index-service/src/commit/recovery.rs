//! Recovery after a store failure: reopens the store and makes it equal to the catalog.
//!
//! The catalog contains every acknowledged change, and only durable changes were applied to it. The
//! store may differ: it may contain some of the changes that failed, and the disk may have lost
//! earlier ones. Recovery therefore reads the whole store, compares it with the catalog and writes
//! the difference before the committer acknowledges anything again.

use hashbrown::{HashMap, HashSet};
use potluck_core::{FileId, PeerId, model::Registration};

use crate::{
    registry::Registry,
    store::{Change, IndexStore, PeerRecord, StoreError, StoredPeer},
};

/// Maximum changes per write.
const MAX_WRITE_CHANGES: usize = 512;

/// Registrations after which the waiting changes are written: a few MiB.
const MAX_WRITE_FILES: usize = 10_000;

/// Reopens `store`, writes the difference and returns the number of changes.
///
/// # Errors
/// [`StoreError`]: try again later.
pub(crate) fn recover(
    store: &mut dyn IndexStore,
    registry: &Registry,
) -> Result<usize, StoreError> {
    let mut difference = reopen(store, registry);
    if let Err(StoreError::Damaged(_)) = difference {
        // The damaged store was moved aside; this opens an empty one.
        difference = reopen(store, registry);
    }
    let Difference {
        changes,
        stored_peers,
        ..
    } = difference?;
    let mut written = changes.len();
    for changes in changes.chunks(MAX_WRITE_CHANGES) {
        store.apply(changes)?;
    }
    drop(changes);
    let missing: Vec<PeerId> = registry
        .catalog()
        .peers()
        .filter(|peer| !stored_peers.contains(*peer))
        .copied()
        .collect();
    drop(stored_peers);
    let mut batch = Vec::new();
    let mut files = 0;
    for peer in missing {
        let mut from = Some(0);
        while let Some(at) = from {
            let (page, next) = registry.catalog().registrations_of(&peer, at, MAX_WRITE_FILES);
            from = next;
            files += page.len();
            batch.extend(register_change(registry, &peer, page));
            if files >= MAX_WRITE_FILES || batch.len() >= MAX_WRITE_CHANGES {
                written += batch.len();
                store.apply(&std::mem::take(&mut batch))?;
                files = 0;
            }
        }
    }
    if !batch.is_empty() {
        written += batch.len();
        store.apply(&batch)?;
    }
    Ok(written)
}

/// The changes that make the store equal to the catalog.
struct Difference<'a> {
    registry: &'a Registry,
    changes: Vec<Change>,
    /// Live peers that the store contains.
    stored_peers: HashSet<PeerId>,
}

fn reopen<'a>(
    store: &mut dyn IndexStore,
    registry: &'a Registry,
) -> Result<Difference<'a>, StoreError> {
    let mut difference = Difference {
        registry,
        changes: Vec::new(),
        stored_peers: HashSet::new(),
    };
    store.reopen(&mut |peer| difference.add_peer(peer))?;
    Ok(difference)
}

impl Difference<'_> {
    /// Compares a stored peer with the catalog.
    fn add_peer(&mut self, StoredPeer { record, files }: StoredPeer) {
        let peer = record.id;
        let catalog = self.registry.catalog();
        let Some(address) = catalog.address_of(&peer) else {
            self.changes.push(Change::Forget { peer });
            return;
        };
        self.stored_peers.insert(peer);
        let is_same_peer =
            *address == record.address && self.registry.ttl(&catalog, &peer) == Some(record.ttl);
        let stored: HashMap<FileId, &Registration> =
            files.iter().map(|file| (file.file.id, file)).collect();
        let removed: Vec<FileId> = stored
            .keys()
            .filter(|file| !catalog.has_file(&peer, file))
            .copied()
            .collect();
        let differs = |file: &FileId| {
            stored
                .get(file)
                .is_none_or(|stored| !catalog.has_registered(&peer, stored))
        };
        let unequal = catalog.files_of(&peer).filter(differs);
        let unequal: Vec<Registration> = unequal
            .filter_map(|file| catalog.registration(&peer, &file))
            .collect();
        drop(catalog);
        if !removed.is_empty() {
            self.changes.push(Change::Unregister { peer, files: removed });
        }
        if !is_same_peer || !unequal.is_empty() {
            self.changes
                .extend(register_change(self.registry, &peer, unequal));
        }
    }
}

/// A change that writes a peer and some of its files to the store.
fn register_change(registry: &Registry, peer: &PeerId, files: Vec<Registration>) -> Option<Change> {
    let catalog = registry.catalog();
    let peer = PeerRecord {
        id: *peer,
        address: catalog.address_of(peer)?.clone(),
        ttl: registry.ttl(&catalog, peer)?,
    };
    drop(catalog);
    let new = files.len();
    Some(Change::Register {
        peer,
        files,
        new,
        replace: false,
    })
}
