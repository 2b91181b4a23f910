//! Claims: what registrations say about a file besides its identity, stored once for all
//! registrations that agree.
//!
//! Invariant: a claim exists exactly as long as a registration refers to it. It counts one
//! reference per registration.

use std::{hash::BuildHasher as _, ops::Index};

use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};
use potluck_core::{
    Sha256,
    model::{FileKind, Registration},
};
use slab::Slab;
use smallvec::SmallVec;

use crate::catalog::tables::{cost, names::Names};

/// The names, SHA-256 and kind in a registration.
#[derive(Debug)]
pub(crate) struct Claim {
    /// Slots of the names, sorted and distinct.
    pub(crate) names: SmallVec<[u32; 4]>,
    pub(crate) sha256: Option<Sha256>,
    pub(crate) kind: FileKind,
    /// Bytes that the claim added, including its new names and words.
    pub(crate) cost: u32,
    references: u32,
}

impl Claim {
    fn key(&self) -> (&[u32], Option<Sha256>, FileKind) {
        (&self.names, self.sha256, self.kind)
    }

    /// Whether a registration makes this claim.
    pub(crate) fn matches(&self, names: &Names, registration: &Registration) -> bool {
        let has_name =
            |name: &String| names.find(name).is_some_and(|slot| self.names.contains(&slot));
        self.sha256 == registration.file.sha256
            && self.kind == registration.file.kind
            && self.names.len() == registration.names.len()
            && registration.names.iter().all(has_name)
    }
}

/// The claims, indexed by content.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    hasher: DefaultHashBuilder,
    slots: HashTable<u32>,
    claims: Slab<Claim>,
    /// Estimate of the memory used, in bytes.
    pub(crate) bytes: u64,
}

impl Claims {
    /// Adds a reference to a registration's claim, which is created if new. Returns its slot and
    /// whether it is new.
    pub(crate) fn intern(&mut self, names: &mut Names, registration: &Registration) -> (u32, bool) {
        let bytes_before = names.bytes;
        let mut slots: SmallVec<[u32; 4]> =
            registration.names.iter().map(|name| names.intern(name)).collect();
        slots.sort_unstable();
        slots.dedup();
        let new = Claim {
            names: slots,
            sha256: registration.file.sha256,
            kind: registration.file.kind,
            cost: u32::try_from(names.bytes - bytes_before + cost::CLAIM_COST).unwrap_or(u32::MAX),
            references: 1,
        };
        let Self {
            hasher,
            slots,
            claims,
            bytes,
        } = self;
        let entry = slots.entry(
            hasher.hash_one(new.key()),
            |&slot| claims[slot as usize].key() == new.key(),
            |&slot| hasher.hash_one(claims[slot as usize].key()),
        );
        match entry {
            Entry::Occupied(entry) => {
                claims[*entry.get() as usize].references += 1;
                (*entry.get(), false)
            }
            Entry::Vacant(vacant) => {
                let slot = claims.insert(new) as u32;
                vacant.insert(slot);
                *bytes += cost::CLAIM_COST;
                (slot, true)
            }
        }
    }

    /// The slot of a registration's claim, if the claim exists.
    pub(crate) fn find(&self, names: &Names, registration: &Registration) -> Option<u32> {
        let slots = registration.names.iter().map(|name| names.find(name));
        let mut slots = slots.collect::<Option<SmallVec<[u32; 4]>>>()?;
        slots.sort_unstable();
        slots.dedup();
        let key = (&*slots, registration.file.sha256, registration.file.kind);
        self.slots
            .find(self.hasher.hash_one(key), |&slot| {
                self.claims[slot as usize].key() == key
            })
            .copied()
    }

    /// Releases one reference; removes the claim after the last.
    pub(crate) fn release(&mut self, slot: u32) {
        let claim = &mut self.claims[slot as usize];
        claim.references -= 1;
        if claim.references > 0 {
            return;
        }
        let claim = self.claims.remove(slot as usize);
        let hash = self.hasher.hash_one(claim.key());
        if let Ok(entry) = self.slots.find_entry(hash, |&other| other == slot) {
            entry.remove();
        }
        self.bytes -= cost::CLAIM_COST;
    }

    /// Number of claims.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.claims.len()
    }
}

impl Index<u32> for Claims {
    type Output = Claim;

    fn index(&self, slot: u32) -> &Claim {
        &self.claims[slot as usize]
    }
}
