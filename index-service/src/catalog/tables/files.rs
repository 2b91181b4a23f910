//! Files with their providers and the claims that the providers make.
//!
//! An id is not stored, except for its first four bytes: it follows from size and root, or, while
//! the root is not known, from size and SHA-256. Most files
//! have one provider, which is stored with the file, and the claims of such a file follow from it.

use std::ops::Deref;

use potluck_core::{FileId, IdPrefix, Root, Sha256, model::FileRecord};
use smallvec::SmallVec;

use crate::catalog::{
    storage::paged_slab::{PagedSlab, SlabElement, Slots},
    tables::{
        claims::ClaimRef,
        file_slots::{FileSlots, MAX_SAME_PREFIX},
        peers::{MAX_PEER, PeerSlot},
        popular_files::PopularFiles,
    },
};

/// A provider of one file: the slot of the peer with the flags below, and its claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProviderEntry {
    peer_and_flags: u32,
    claim: ClaimRef,
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
    pub(crate) const fn new(peer: PeerSlot, claim: ClaimRef, is_complete: bool) -> Self {
        Self {
            peer_and_flags: peer.0 | if is_complete { COMPLETE } else { 0 },
            claim,
        }
    }

    /// The slot of the peer.
    pub(crate) const fn peer(self) -> PeerSlot {
        PeerSlot(self.peer_and_flags & !FLAGS)
    }

    /// Its claim.
    pub(crate) const fn claim(self) -> ClaimRef {
        self.claim
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
        self.peer_and_flags |= PAYS_FILE;
    }

    /// Charges its registration for the claim.
    pub(crate) const fn charge_claim(&mut self) {
        self.peer_and_flags |= PAYS_CLAIM;
    }

    const fn has_flag(self, flag: u32) -> bool {
        self.peer_and_flags & flag != 0
    }
}

/// A claim with the number of providers that make it.
pub(crate) type ClaimCount = (ClaimRef, u32);

/// The claims of a file.
#[derive(Debug)]
pub(crate) enum ClaimCounts<'a> {
    One([ClaimCount; 1]),
    Several(&'a [ClaimCount]),
}

impl Deref for ClaimCounts<'_> {
    type Target = [ClaimCount];

    fn deref(&self) -> &[ClaimCount] {
        match self {
            Self::One(one) => one,
            Self::Several(several) => several,
        }
    }
}

/// A file. The bytes of `size` are not a number, so that the entry needs no alignment.
#[derive(Debug)]
struct FileEntry {
    root: Root,
    size: [u8; 8],
    id_prefix: [u8; 4],
    /// The only provider, or one of the values below in place of its peer.
    provider: ProviderEntry,
}

/// In place of a peer: the file has several providers, and the claim is their slot.
const SEVERAL: PeerSlot = PeerSlot(!FLAGS);

/// In place of a peer: the file has no providers yet.
const NO_PROVIDER: PeerSlot = PeerSlot(!FLAGS - 1);

/// In place of a peer: the slot is free, and the claim is the next free one.
const FREE: PeerSlot = PeerSlot(!FLAGS - 2);

// No peer has one of these slots.
const _: () = assert!(MAX_PEER < FREE.0);

impl SlabElement for FileEntry {
    fn free(next: u32) -> Self {
        Self {
            root: Root([0; 32]),
            size: [0; 8],
            id_prefix: [0; 4],
            provider: ProviderEntry::new(FREE, ClaimRef(next), false),
        }
    }

    fn next_free(&self) -> Option<u32> {
        (self.provider.peer() == FREE).then_some(self.provider.claim.0)
    }
}

/// The providers of a file that has several.
#[derive(Debug, Default)]
struct Providers {
    /// Live and hidden providers, sorted by peer.
    providers: Vec<ProviderEntry>,
    /// Sorted by claim.
    claims: Vec<ClaimCount>,
}

impl Providers {
    fn find(&self, peer: PeerSlot) -> Result<usize, usize> {
        self.providers
            .binary_search_by_key(&peer.0, |provider| provider.peer().0)
    }

    /// Counts one more provider with a claim; true if it is the first.
    fn add_claim(&mut self, claim: ClaimRef) -> bool {
        match self.claims.binary_search_by_key(&claim, |&(claim, _)| claim) {
            Ok(at) => {
                self.claims[at].1 += 1;
                false
            }
            Err(at) => {
                self.claims.insert(at, (claim, 1));
                true
            }
        }
    }

    /// Counts one provider less with a claim; true if it was the last.
    fn remove_claim(&mut self, claim: ClaimRef) -> bool {
        let Ok(at) = self.claims.binary_search_by_key(&claim, |&(claim, _)| claim) else {
            return false;
        };
        self.claims[at].1 -= 1;
        let is_last = self.claims[at].1 == 0;
        if is_last {
            self.claims.remove(at);
        }
        is_last
    }
}

/// The effect of [`Files::set_provider`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProviderSet {
    /// The earlier entry of the peer.
    pub(crate) old: Option<ProviderEntry>,
    /// Whether no provider of the file made the new claim before.
    pub(crate) is_first_of_claim: bool,
    /// Whether no provider of the file makes the old claim any more.
    pub(crate) was_last_of_claim: bool,
}

/// The effect of [`Files::remove_provider`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProviderRemoved {
    /// The removed entry.
    pub(crate) old: ProviderEntry,
    /// Whether no provider of the file makes its claim any more.
    pub(crate) was_last_of_claim: bool,
    /// Whether the file has no providers left.
    pub(crate) was_last: bool,
}

/// The files, indexed by id.
#[derive(Debug, Default)]
pub(crate) struct Files {
    files: PagedSlab<FileEntry>,
    several: Slots<Providers>,
    slots: FileSlots,
    popular: PopularFiles,
}

/// The bit of a size that says that the root is not known: the SHA-256 is in its place. No file is
/// that large.
const PROVISIONAL: u64 = 1 << 63;

impl FileEntry {
    const fn is_provisional(&self) -> bool {
        u64::from_le_bytes(self.size) & PROVISIONAL != 0
    }

    const fn size(&self) -> u64 {
        u64::from_le_bytes(self.size) & !PROVISIONAL
    }
}

fn derive_id(file: &FileEntry) -> FileId {
    match file.is_provisional() {
        true => FileId::provisional(file.size(), &Sha256(file.root.0)),
        false => FileId::derive(file.size(), &file.root),
    }
}

impl Files {
    /// Makes room for this many files in an empty table.
    pub(crate) fn reserve(&mut self, files: usize) {
        self.slots.reserve(files);
    }

    /// Gives back room that is not used.
    pub(crate) fn shrink(&mut self) {
        let Self { files, slots, .. } = self;
        slots.shrink(|slot| files[slot].id_prefix);
    }

    /// Number of files.
    pub(crate) const fn len(&self) -> usize {
        self.files.len()
    }

    /// The id of a file. It is computed, at the cost of five steps of a search.
    pub(crate) fn id(&self, slot: u32) -> FileId {
        derive_id(&self.files[slot])
    }

    /// The first four bytes of the id of a file.
    pub(crate) fn id_prefix(&self, slot: u32) -> [u8; 4] {
        self.files[slot].id_prefix
    }

    /// The root of a file.
    pub(crate) fn root(&self, slot: u32) -> Root {
        self.files[slot].root
    }

    /// The size of a file, in bytes.
    pub(crate) fn size(&self, slot: u32) -> u64 {
        self.files[slot].size()
    }

    /// Whether the root of a file is not known: it is the SHA-256 instead.
    pub(crate) fn is_provisional(&self, slot: u32) -> bool {
        self.files[slot].is_provisional()
    }

    /// The slot of a file.
    pub(crate) fn find(&self, id: &FileId) -> Option<u32> {
        self.slots
            .find(id, |slot| self.files[slot].id_prefix, |slot| self.id(slot))
    }

    /// Brings what [`Self::intern`] reads of the table into the cache.
    pub(crate) fn touch(&self, id: &FileId) {
        self.slots.touch(id);
    }

    /// The slots of the files whose id begins with these digits, in ascending order.
    pub(crate) fn with_prefix(&self, prefix: &IdPrefix) -> SmallVec<[u32; MAX_SAME_PREFIX]> {
        self.slots.with_prefix(prefix, |slot| self.id(slot))
    }

    /// The slot of a file, which is created without providers if new; also whether it is new.
    pub(crate) fn intern(&mut self, record: &FileRecord) -> (u32, bool) {
        if let Some(slot) = self.find(&record.id) {
            return (slot, false);
        }
        let Self { files, slots, .. } = self;
        let [a, b, c, d, ..] = *record.id.as_bytes();
        let slot = files.insert(FileEntry {
            root: record.root,
            size: match record.is_provisional() {
                true => (record.size | PROVISIONAL).to_le_bytes(),
                false => record.size.to_le_bytes(),
            },
            id_prefix: [a, b, c, d],
            provider: ProviderEntry::new(NO_PROVIDER, ClaimRef(0), false),
        });
        slots.insert(
            slot,
            &record.id,
            |slot| files[slot].id_prefix,
            |slot| derive_id(&files[slot]),
        );
        (slot, true)
    }

    /// Removes a file without providers.
    pub(crate) fn remove(&mut self, slot: u32) {
        let id = self.id(slot);
        self.files.remove(slot);
        self.slots.remove(slot, &id);
    }

    /// The live and hidden providers of a file, sorted by peer.
    pub(crate) fn providers(&self, slot: u32) -> &[ProviderEntry] {
        let provider = &self.files[slot].provider;
        match provider.peer() {
            SEVERAL => &self.several[provider.claim.0].providers,
            NO_PROVIDER => &[],
            _ => std::slice::from_ref(provider),
        }
    }

    /// The claims of the providers of a file, sorted.
    pub(crate) fn claims(&self, slot: u32) -> ClaimCounts<'_> {
        let provider = &self.files[slot].provider;
        match provider.peer() {
            SEVERAL => ClaimCounts::Several(&self.several[provider.claim.0].claims),
            NO_PROVIDER => ClaimCounts::Several(&[]),
            _ => ClaimCounts::One([(provider.claim, 1)]),
        }
    }

    /// A peer as a provider of a file.
    pub(crate) fn provider(&self, slot: u32, peer: PeerSlot) -> Option<ProviderEntry> {
        let providers = self.providers(slot);
        let at = providers.binary_search_by_key(&peer.0, |provider| provider.peer().0);
        at.ok().map(|at| providers[at])
    }

    /// Adds a provider of a file, or replaces the entry of its peer.
    pub(crate) fn set_provider(&mut self, slot: u32, new: ProviderEntry) -> ProviderSet {
        let provider = &mut self.files[slot].provider;
        let claim = new.claim;
        let current = *provider;
        match current.peer() {
            NO_PROVIDER => {
                *provider = new;
                ProviderSet {
                    old: None,
                    is_first_of_claim: true,
                    was_last_of_claim: false,
                }
            }
            SEVERAL => {
                let several = &mut self.several[current.claim.0];
                let old = match several.find(new.peer()) {
                    Ok(at) => Some(std::mem::replace(&mut several.providers[at], new)),
                    Err(at) => {
                        several.providers.insert(at, new);
                        let count = several.providers.len();
                        self.popular.update(slot, count - 1, count);
                        None
                    }
                };
                let is_first_of_claim = several.add_claim(claim);
                ProviderSet {
                    old,
                    is_first_of_claim,
                    was_last_of_claim: old.is_some_and(|old| several.remove_claim(old.claim)),
                }
            }
            peer if peer == new.peer() => {
                *provider = new;
                let is_other_claim = current.claim != claim;
                ProviderSet {
                    old: Some(current),
                    is_first_of_claim: is_other_claim,
                    was_last_of_claim: is_other_claim,
                }
            }
            _ => {
                let mut several = Providers::default();
                several.add_claim(current.claim);
                let is_first_of_claim = several.add_claim(claim);
                several.providers = vec![current, new];
                several
                    .providers
                    .sort_unstable_by_key(|provider| provider.peer().0);
                let several = self.several.insert(several);
                self.popular.update(slot, 1, 2);
                *provider = ProviderEntry::new(SEVERAL, ClaimRef(several), false);
                ProviderSet {
                    old: None,
                    is_first_of_claim,
                    was_last_of_claim: false,
                }
            }
        }
    }

    /// Removes a provider of a file.
    pub(crate) fn remove_provider(&mut self, slot: u32, peer: PeerSlot) -> Option<ProviderRemoved> {
        let provider = &mut self.files[slot].provider;
        let current = *provider;
        if current.peer() == SEVERAL {
            let at = current.claim.0;
            let several = &mut self.several[at];
            let old = several.providers.remove(several.find(peer).ok()?);
            let was_last_of_claim = several.remove_claim(old.claim);
            let count = several.providers.len();
            self.popular.update(slot, count + 1, count);
            if let [only] = *several.providers {
                *provider = only;
                self.several.remove(at);
            }
            return Some(ProviderRemoved {
                old,
                was_last_of_claim,
                was_last: false,
            });
        }
        if current.peer() != peer {
            return None;
        }
        *provider = ProviderEntry::new(NO_PROVIDER, ClaimRef(0), false);
        Some(ProviderRemoved {
            old: current,
            was_last_of_claim: true,
            was_last: true,
        })
    }

    /// The files with several providers.
    pub(crate) const fn popular(&self) -> &PopularFiles {
        &self.popular
    }

    /// Number of entries in the index by id, and of files with several providers.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.slots.len(), self.several.len())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use potluck_core::model::FileKind;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_entry_is_small() {
        assert_eq!(size_of::<FileEntry>(), 52);
    }

    proptest! {
        #[test]
        fn providers_and_claims_equal_plain_maps(
            steps in prop::collection::vec((0..4u32, prop::option::of(0..3u32)), 0..100)
        ) {
            let root = Root([1; 32]);
            let record = FileRecord {
                id: FileId::derive(1, &root),
                size: 1,
                root,
                sha256: None,
                kind: FileKind::File,
            };
            let mut files = Files::default();
            let (slot, _) = files.intern(&record);
            let mut model: BTreeMap<u32, u32> = BTreeMap::new();
            for (peer, claim) in steps {
                let count = |model: &BTreeMap<u32, u32>, claim: u32| {
                    model.values().filter(|&&other| other == claim).count()
                };
                let before = model.clone();
                if let Some(claim) = claim {
                    let new = ProviderEntry::new(PeerSlot(peer), ClaimRef(claim), true);
                    let set = files.set_provider(slot, new);
                    let old = model.insert(peer, claim);
                    prop_assert_eq!(set.old.map(|old| old.claim().0), old);
                    prop_assert_eq!(set.is_first_of_claim, count(&before, claim) == 0);
                    let was_last = old.is_some_and(|old| count(&model, old) == 0);
                    prop_assert_eq!(set.was_last_of_claim, was_last);
                } else {
                    let removed = files.remove_provider(slot, PeerSlot(peer));
                    let old = model.remove(&peer);
                    prop_assert_eq!(removed.as_ref().map(|removed| removed.old.claim().0), old);
                    if let (Some(removed), Some(old)) = (removed, old) {
                        prop_assert_eq!(removed.was_last, model.is_empty());
                        prop_assert_eq!(removed.was_last_of_claim, count(&model, old) == 0);
                    }
                }
                let providers = files.providers(slot).iter();
                let found: Vec<_> = providers.map(|entry| (entry.peer().0, entry.claim().0)).collect();
                let expected: Vec<_> = model.iter().map(|(&peer, &claim)| (peer, claim)).collect();
                prop_assert_eq!(found, expected);
                for &(claim, counted) in &*files.claims(slot) {
                    prop_assert_eq!(counted as usize, count(&model, claim.0));
                }
                prop_assert_eq!(files.counts(), (1, usize::from(model.len() > 1)));
                let popular: Vec<_> = files.popular().from(files.popular().first()).collect();
                prop_assert_eq!(popular.len(), usize::from(model.len() > 1));
            }
        }
    }
}
