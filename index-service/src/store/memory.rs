//! An in-memory store, which is lost when the index stops: for tests, demonstrations, and
//! deployments in which peers can simply register again.

use std::collections::HashMap;

use potluck_core::{
    FileId, PeerId,
    model::{ClusterId, Registration},
};

use crate::store::{Change, IndexStore, PeerRecord, StoreError, StoredPeer};

/// Registrations in memory.
#[derive(Debug)]
pub(crate) struct MemoryStore {
    cluster_id: ClusterId,
    peers: HashMap<PeerId, (PeerRecord, HashMap<FileId, Registration>)>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self {
            cluster_id: ClusterId::generate(),
            peers: HashMap::new(),
        }
    }
}

impl IndexStore for MemoryStore {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn cluster_id(&self) -> ClusterId {
        self.cluster_id
    }

    fn load(&mut self, each: &mut dyn FnMut(StoredPeer)) -> Result<(), StoreError> {
        for (record, files) in self.peers.values() {
            each(StoredPeer {
                record: record.clone(),
                files: files.values().cloned().collect(),
            });
        }
        Ok(())
    }

    fn apply(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        for change in changes {
            match change {
                Change::Register {
                    peer, files, replace, ..
                } => {
                    let entry = self
                        .peers
                        .entry(peer.id)
                        .or_insert_with(|| (peer.clone(), HashMap::new()));
                    entry.0 = peer.clone();
                    if *replace {
                        entry.1.clear();
                    }
                    entry
                        .1
                        .extend(files.iter().map(|file| (file.file.id, file.clone())));
                }
                Change::Unregister { peer, files } => {
                    if let Some((_, registrations)) = self.peers.get_mut(peer) {
                        for file in files {
                            registrations.remove(file);
                        }
                    }
                }
                Change::Forget { peer } | Change::Expire { peer } => {
                    self.peers.remove(peer);
                }
            }
        }
        Ok(())
    }

    fn reopen(&mut self, each: &mut dyn FnMut(StoredPeer)) -> Result<(), StoreError> {
        self.load(each)
    }
}
