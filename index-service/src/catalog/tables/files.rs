//! Files with their providers and the claims that the providers make.

use std::ops::{Index, IndexMut};

use potluck_core::{FileId, IdPrefix, Root, model::FileRecord};
use slab::Slab;
use smallvec::SmallVec;

use crate::catalog::tables::{
    file_slots::{FileSlots, MAX_SAME_PREFIX},
    peers::PeerSlot,
};

/// A provider of one file: the slots of the peer and of its claim. The top bits of
/// `claim_and_flags` are the flags below.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProviderEntry {
    pub(crate) peer: PeerSlot,
    claim_and_flags: u32,
}

/// The provider has the whole file.
const COMPLETE: u32 = 1 << 31;

/// The registration is charged for the file.
const PAYS_FILE: u32 = 1 << 30;

/// The registration is charged for its claim.
const PAYS_CLAIM: u32 = 1 << 29;

const FLAGS: u32 = COMPLETE | PAYS_FILE | PAYS_CLAIM;

impl ProviderEntry {
    /// A provider that is charged for neither the file nor the claim.
    pub(crate) const fn new(peer: PeerSlot, claim: u32, is_complete: bool) -> Self {
        Self {
            peer,
            claim_and_flags: claim | if is_complete { COMPLETE } else { 0 },
        }
    }

    /// The slot of its claim.
    pub(crate) const fn claim(self) -> u32 {
        self.claim_and_flags & !FLAGS
    }

    /// Whether it has the whole file.
    pub(crate) const fn is_complete(self) -> bool {
        self.has_flag(COMPLETE)
    }

    /// Whether its registration is charged for the file.
    pub(crate) const fn pays_file(self) -> bool {
        self.has_flag(PAYS_FILE)
    }

    /// Whether its registration is charged for the claim.
    pub(crate) const fn pays_claim(self) -> bool {
        self.has_flag(PAYS_CLAIM)
    }

    /// Charges its registration for the file.
    pub(crate) const fn charge_file(&mut self) {
        self.claim_and_flags |= PAYS_FILE;
    }

    /// Charges its registration for the claim.
    pub(crate) const fn charge_claim(&mut self) {
        self.claim_and_flags |= PAYS_CLAIM;
    }

    const fn has_flag(self, flag: u32) -> bool {
        self.claim_and_flags & flag != 0
    }
}

/// A claim with the number of providers that make it.
pub(crate) type ClaimCount = (u32, u32);

/// A file.
#[derive(Debug)]
pub(crate) struct FileEntry {
    pub(crate) id: FileId,
    pub(crate) root: Root,
    pub(crate) size: u64,
    /// Live and hidden providers, sorted by peer.
    pub(crate) providers: SmallVec<[ProviderEntry; 2]>,
    /// Sorted by claim.
    pub(crate) claims: SmallVec<[ClaimCount; 2]>,
}

impl FileEntry {
    /// The position of a peer among the providers, or where to insert it.
    pub(crate) fn find_provider(&self, peer: PeerSlot) -> Result<usize, usize> {
        self.providers
            .binary_search_by_key(&peer.0, |provider| provider.peer.0)
    }

    /// The position of a claim, or where to insert it.
    pub(crate) fn find_claim(&self, claim: u32) -> Result<usize, usize> {
        self.claims.binary_search_by_key(&claim, |&(claim, _)| claim)
    }
}

/// The files, indexed by id.
#[derive(Debug, Default)]
pub(crate) struct Files {
    files: Slab<FileEntry>,
    slots: FileSlots,
}

impl Files {
    /// Number of files.
    pub(crate) fn len(&self) -> usize {
        self.files.len()
    }

    /// The slot of a file.
    pub(crate) fn find(&self, id: &FileId) -> Option<u32> {
        self.slots.find(id, |slot| self.files[slot as usize].id)
    }

    /// The slots of the files whose id begins with these digits, in ascending order.
    pub(crate) fn with_prefix(&self, prefix: &IdPrefix) -> SmallVec<[u32; MAX_SAME_PREFIX]> {
        self.slots
            .with_prefix(prefix, |slot| self.files[slot as usize].id)
    }

    /// The slot of a file, which is created without providers if new; also whether it is new.
    pub(crate) fn intern(&mut self, record: &FileRecord) -> (u32, bool) {
        if let Some(slot) = self.find(&record.id) {
            return (slot, false);
        }
        let Self { files, slots } = self;
        let slot = files.insert(FileEntry {
            id: record.id,
            root: record.root,
            size: record.size,
            providers: SmallVec::new(),
            claims: SmallVec::new(),
        }) as u32;
        slots.insert(slot, |slot| files[slot as usize].id);
        (slot, true)
    }

    /// Removes a file.
    pub(crate) fn remove(&mut self, slot: u32) {
        let file = self.files.remove(slot as usize);
        self.slots.remove(slot, &file.id);
    }

    /// Number of entries in the index by id.
    #[cfg(test)]
    pub(crate) fn slot_count(&self) -> usize {
        self.slots.len()
    }
}

impl Index<u32> for Files {
    type Output = FileEntry;

    fn index(&self, slot: u32) -> &FileEntry {
        &self.files[slot as usize]
    }
}

impl IndexMut<u32> for Files {
    fn index_mut(&mut self, slot: u32) -> &mut FileEntry {
        &mut self.files[slot as usize]
    }
}
