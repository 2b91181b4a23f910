//! After a failure: opens the store again and makes it hold what the catalog holds.
//!
//! What was acknowledged is in the catalog, as nothing is acknowledged before it is shown there, and nothing is shown that was not
//! durable. What the store holds may differ: changes that failed may be in it or not, and a disk may have lost what it took. So all of
//! it is read and compared, and the difference written, before anything is acknowledged again.

use hashbrown::{HashMap, HashSet};
use potluck_core::{FileId, PeerId, model::Registration};

use crate::{
    commit::BATCH_FILES,
    registry::Registry,
    store::{Change, IndexStore, PeerRecord, StoreError, StoredPeer},
};

/// Peers that are written at once.
const BATCH_PEERS: usize = 512;

/// Opens `store` again and writes the difference. Returns of how many changes it was.
///
/// # Errors
/// [`StoreError`]: try again later.
pub(crate) fn recover(store: &mut dyn IndexStore, registry: &Registry) -> Result<usize, StoreError> {
    let mut difference = reopen(store, registry);
    if let Err(StoreError::Damaged(_)) = difference {
        // It was moved aside.
        difference = reopen(store, registry);
    }
    let Difference { changes, seen, .. } = difference?;
    let mut written = changes.len();
    for changes in changes.chunks(BATCH_PEERS) {
        store.apply(changes)?;
    }
    drop(changes);
    let missing: Vec<PeerId> = registry
        .catalog()
        .peers()
        .filter(|peer| !seen.contains(*peer))
        .copied()
        .collect();
    drop(seen);
    let mut batch = Vec::new();
    let mut files = 0;
    for peer in missing {
        let mut from = Some(0);
        while let Some(at) = from {
            let (some, next) = registry.catalog().registrations_of(&peer, at, BATCH_FILES);
            from = next;
            files += some.len();
            batch.extend(register(registry, &peer, some));
            if files >= BATCH_FILES || batch.len() >= BATCH_PEERS {
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

/// What the store does not hold as the catalog does.
struct Difference<'a> {
    registry: &'a Registry,
    changes: Vec<Change>,
    /// Peers that the store holds.
    seen: HashSet<PeerId>,
}

fn reopen<'a>(store: &mut dyn IndexStore, registry: &'a Registry) -> Result<Difference<'a>, StoreError> {
    let mut difference = Difference {
        registry,
        changes: Vec::new(),
        seen: HashSet::new(),
    };
    store.reopen(&mut |peer| difference.compare(peer))?;
    Ok(difference)
}

impl Difference<'_> {
    fn compare(&mut self, StoredPeer { record, files }: StoredPeer) {
        let peer = record.id;
        let catalog = self.registry.catalog();
        let Some(address) = catalog.address(&peer) else {
            self.changes.push(Change::Forget { peer });
            return;
        };
        self.seen.insert(peer);
        let is_same = *address == record.address && self.registry.ttl(&peer) == Some(record.ttl);
        let stored: HashMap<FileId, &Registration> = files.iter().map(|file| (file.file.id, file)).collect();
        let gone: Vec<FileId> = stored
            .keys()
            .filter(|file| !catalog.holds(&peer, file))
            .copied()
            .collect();
        let differs = |file: &&FileId| {
            stored
                .get(*file)
                .is_none_or(|stored| !catalog.has_registered(&peer, stored))
        };
        let missing = catalog.files(&peer).filter(differs);
        let missing: Vec<Registration> = missing
            .filter_map(|file| catalog.registration(&peer, file))
            .collect();
        drop(catalog);
        if !gone.is_empty() {
            self.changes.push(Change::Unregister { peer, files: gone });
        }
        if !is_same || !missing.is_empty() {
            self.changes.extend(register(self.registry, &peer, missing));
        }
    }
}

/// The change that gives the store a peer and some of its files.
fn register(registry: &Registry, peer: &PeerId, files: Vec<Registration>) -> Option<Change> {
    let catalog = registry.catalog();
    let peer = PeerRecord {
        id: *peer,
        address: catalog.address(peer)?.clone(),
        ttl: registry.ttl(peer)?,
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
