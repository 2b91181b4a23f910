//! Checks a batch of changes against the limits and the catalog before they are stored.
//!
//! Invariant: the changes of one peer in a batch do not depend on each other. If there are several,
//! they add different files. The catalog therefore has all data that the check of one change needs,
//! and [`BatchCheck`] sums up what the batch adds, for each peer and for all.

use std::{collections::HashMap, time::Instant};

use potluck_core::{FileId, PeerId, model::Registration};

use crate::{
    address::{host_key, is_shared_host},
    catalog::{Catalog, cost},
    commit::request::{CommitError, CommitRequest},
    leases::LeaseHolder,
    limits::{Limits, MAX_MEMORY_PERCENT},
    registry::Registry,
    store::{Change, PeerRecord},
};

/// A change that passed its check.
#[derive(Debug)]
pub(super) enum CheckedChange {
    /// Store it and apply it.
    Store {
        change: Change,
        /// Identifies the run of the peer; empty if the peer sent none.
        instance: Vec<u8>,
    },
    /// All of these registrations are durable: only restart the lease.
    RestartLease { peer: PeerRecord, instance: Vec<u8> },
    /// None of the registrations to remove exists.
    Nothing,
}

/// Checks the changes of one batch.
pub(super) struct BatchCheck<'a> {
    registry: &'a Registry,
    limits: &'a Limits,
    /// What the batch adds to each peer.
    peers: hashbrown::HashMap<PeerId, Added>,
    /// Peers that the batch adds, by host.
    new_peers: HashMap<String, u64>,
    /// Memory that the batch adds, in bytes.
    bytes: u64,
    /// The same by host.
    bytes_of_host: HashMap<String, u64>,
}

/// What a batch adds to a peer.
#[derive(Debug, Default, Clone, Copy)]
struct Added {
    files: u64,
    /// Memory in bytes.
    bytes: u64,
}

/// The parts of a [`CommitRequest::Register`].
struct Register {
    peer: PeerRecord,
    files: Vec<Registration>,
    replace: bool,
    cost: u64,
    instance: Vec<u8>,
}

impl<'a> BatchCheck<'a> {
    /// Begins a batch.
    pub(super) fn new(registry: &'a Registry, limits: &'a Limits) -> Self {
        Self {
            registry,
            limits,
            peers: hashbrown::HashMap::new(),
            new_peers: HashMap::new(),
            bytes: 0,
            bytes_of_host: HashMap::new(),
        }
    }

    /// Checks one change.
    ///
    /// # Errors
    /// [`CommitError`] if the change exceeds a limit or another process holds the peer's lease.
    pub(super) fn check(&mut self, request: CommitRequest) -> Result<CheckedChange, CommitError> {
        match request {
            CommitRequest::Register {
                peer,
                files,
                replace,
                cost,
                instance,
            } => self.check_register(Register {
                peer,
                files,
                replace,
                cost,
                instance,
            }),
            CommitRequest::Unregister { peer, files } => Ok(self.check_unregister(peer, files)),
            CommitRequest::Forget { peer } => {
                let is_known = self.registry.catalog().address_of(&peer).is_some();
                Ok(CheckedChange::store_if(is_known, Change::Forget { peer }))
            }
        }
    }

    fn check_unregister(&self, peer: PeerId, mut files: Vec<FileId>) -> CheckedChange {
        let catalog = self.registry.catalog();
        files.retain(|file| catalog.has_file(&peer, file));
        CheckedChange::store_if(!files.is_empty(), Change::Unregister { peer, files })
    }

    fn check_register(&mut self, request: Register) -> Result<CheckedChange, CommitError> {
        let Register {
            peer,
            mut files,
            mut replace,
            cost,
            instance,
        } = request;
        let catalog = self.registry.catalog();
        let holder = LeaseHolder {
            address: peer.address.clone(),
            instance: instance.clone(),
        };
        if let Some(address) = self.registry.check_conflict(&peer.id, &holder, Instant::now()) {
            return Err(CommitError::IdentityInUse { address });
        }
        let distinct: hashbrown::HashSet<FileId> = files.iter().map(|file| file.file.id).collect();
        let mut new = distinct
            .iter()
            .filter(|file| !catalog.has_file(&peer.id, file))
            .count();
        let mut kept = catalog.file_count_of(&peer.id);
        // If the request repeats all earlier files, nothing needs to be dropped.
        replace &= kept > (distinct.len() - new) as u64;
        if replace {
            (new, kept) = (distinct.len(), 0);
        } else if distinct.len() == files.len() {
            // Registrations in the catalog are durable; do not write them again.
            files.retain(|file| !catalog.has_registered(&peer.id, file));
            let is_same_peer = catalog.address_of(&peer.id) == Some(&peer.address)
                && self.registry.ttl(&catalog, &peer.id) == Some(peer.ttl);
            if files.is_empty() && is_same_peer {
                return Ok(CheckedChange::RestartLease { peer, instance });
            }
        }
        let pending = self.peers.get(&peer.id).copied();
        let requested = kept + pending.unwrap_or_default().files + new as u64;
        let limit = self.limits.max_files_per_peer;
        if requested > limit && new > 0 {
            return Err(CommitError::TooManyFiles { limit, requested });
        }
        let added = self.check_memory(&catalog, &peer, &files, replace, cost)?;
        let host = host_key(&peer.address.host);
        let was_on_host = pending.is_some()
            || catalog
                .address_of(&peer.id)
                .is_some_and(|known| host_key(&known.host) == host);
        if !was_on_host {
            let new_peers = self.new_peers.entry(host.clone()).or_default();
            let limit = self.limits.max_peers_per_address;
            if catalog.peers_on_host(&peer.address.host) + *new_peers >= limit {
                return Err(CommitError::TooManyPeers {
                    host: peer.address.host,
                    limit,
                });
            }
            *new_peers += 1;
        }
        let pending = self.peers.entry(peer.id).or_default();
        pending.files += new as u64;
        pending.bytes += added;
        self.bytes += added;
        *self.bytes_of_host.entry(host).or_default() += added;
        let change = Change::Register {
            peer,
            files,
            new,
            replace,
        };
        Ok(CheckedChange::Store { change, instance })
    }

    /// Checks the memory that a registration adds, and returns it in bytes. `cost` is an upper
    /// bound for the files.
    fn check_memory(
        &self,
        catalog: &Catalog,
        peer: &PeerRecord,
        files: &[Registration],
        replace: bool,
        cost: u64,
    ) -> Result<u64, CommitError> {
        let pending = self.peers.get(&peer.id);
        let is_new = pending.is_none() && catalog.address_of(&peer.id).is_none();
        if !is_new && !files.iter().any(|file| catalog.may_add_memory(&peer.id, file)) {
            return Ok(0);
        }
        let added = cost + if is_new { cost::PEER } else { 0 };
        let capacity = self.limits.max_memory_mib.saturating_mul(1024 * 1024);
        let used = catalog.bytes() + self.bytes;
        if used + added > capacity {
            return Err(CommitError::Full);
        }
        // A peer or host may use at most `MAX_MEMORY_PERCENT` of the memory that others do not use.
        let check = |owner: &dyn Fn() -> String, own: u64| {
            let available = own + (capacity - used);
            match own + added <= available / 100 * MAX_MEMORY_PERCENT {
                true => Ok(()),
                false => Err(CommitError::TooMuchMemory {
                    owner: owner(),
                    used_mib: own / (1024 * 1024),
                }),
            }
        };
        let charge = catalog.charge_of_peer(&peer.id);
        // A replacement gives this back later.
        let freed = if replace { charge } else { 0 };
        let own = charge - freed + pending.map_or(0, |pending| pending.bytes);
        check(&|| "this peer".to_owned(), own)?;
        let host = &peer.address.host;
        if !is_shared_host(host) {
            let pending = self.bytes_of_host.get(&host_key(host)).copied().unwrap_or(0);
            let charge = (catalog.charge_of_host(host) + pending).saturating_sub(freed);
            check(&|| format!("the address {host}"), charge)?;
        }
        Ok(added)
    }
}

impl CheckedChange {
    /// Stores a change without an instance, or does nothing.
    fn store_if(condition: bool, change: Change) -> Self {
        match condition {
            true => Self::Store {
                change,
                instance: Vec::new(),
            },
            false => Self::Nothing,
        }
    }
}
