//! Claims: what registrations say about a file besides its identity, stored once for all
//! registrations that agree.
//!
//! Most claims are *plain*: one name, no SHA-256, and not a collection. Such a claim is only the
//! slot of its name. All others are in a table.
//!
//! Invariant: a claim in the table exists exactly as long as a registration refers to it. It counts
//! one reference per registration.

use std::{hash::BuildHasher as _, ops::Deref};

use hashbrown::DefaultHashBuilder;
use potluck_core::{Sha256, model::FileKind};
use smallvec::SmallVec;

use crate::{
    catalog::{
        storage::{
            paged_slab::{PagedSlab, SlabElement, Slots},
            sharded_table::ShardedTable,
        },
        tables::{cost, names::Names, sums::Sums},
    },
    registration::RegistrationRef,
};

/// A claim: the slot of its name if it is plain, otherwise its slot in [`Claims`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClaimRef(pub(crate) u32);

/// Marks a plain claim.
const PLAIN: u32 = 1 << 31;

impl ClaimRef {
    const fn plain_name(self) -> Option<u32> {
        match self.0 & PLAIN {
            0 => None,
            _ => Some(self.0 & !PLAIN),
        }
    }
}

/// In place of a slot of a SHA-256: the claim has none.
const NO_SUM: u32 = u32::MAX;

/// Marks the slot of a list of names, in place of the slot of a name.
const IS_LIST: u32 = 1 << 31;

/// Unit of [`Claim::cost`], in bytes: sixteen names with many words each fit.
const COST_UNIT: u64 = 4;

/// The names, SHA-256 and kind in a registration.
#[derive(Debug)]
struct Claim {
    /// The slot of the only name, or of the list of names.
    names: u32,
    /// The slot of the SHA-256.
    sum: u32,
    references: u32,
    /// Bytes that the claim added, including its new names, in units of [`COST_UNIT`].
    cost: u16,
    /// `None` if the slot is free; `names` is then the next free one.
    kind: Option<FileKind>,
}

impl SlabElement for Claim {
    fn free(next: u32) -> Self {
        Self {
            names: next,
            sum: NO_SUM,
            references: 0,
            cost: 0,
            kind: None,
        }
    }

    fn next_free(&self) -> Option<u32> {
        self.kind.is_none().then_some(self.names)
    }
}

/// The slots of the names in a claim.
#[derive(Debug)]
pub(crate) enum NameSlots<'a> {
    One([u32; 1]),
    List(&'a [u32]),
}

impl Deref for NameSlots<'_> {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        match self {
            Self::One(one) => one,
            Self::List(list) => list,
        }
    }
}

/// The content of a claim.
#[derive(Debug)]
pub(crate) struct ClaimContent<'a> {
    /// Sorted and distinct.
    pub(crate) names: NameSlots<'a>,
    /// The slot of its SHA-256.
    pub(crate) sum: Option<u32>,
    pub(crate) kind: FileKind,
}

impl ClaimContent<'_> {
    fn key(&self) -> (&[u32], Option<u32>, FileKind) {
        (&self.names, self.sum, self.kind)
    }
}

/// The claims and their SHA-256s.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    hasher: DefaultHashBuilder,
    by_content: ShardedTable,
    claims: PagedSlab<Claim>,
    /// The names of claims with several names, or none.
    lists: Slots<Box<[u32]>>,
    pub(crate) sums: Sums,
    /// Estimate of the memory used, in bytes.
    pub(crate) bytes: u64,
}

/// Whether the claim in a registration is plain.
fn is_plain(registration: &RegistrationRef<'_>) -> bool {
    registration.names.len() == 1
        && registration.file.sha256.is_none()
        && registration.file.kind == FileKind::File
}

impl Claims {
    /// Adds a reference to a registration's claim, which is created if new. Returns the claim, and
    /// whether the registration added memory for it.
    pub(crate) fn intern(
        &mut self,
        names: &mut Names,
        registration: &RegistrationRef<'_>,
    ) -> (ClaimRef, bool) {
        if is_plain(registration) {
            let (name, is_new) = names.intern(registration.names[0]);
            debug_assert!(name < PLAIN, "too many names");
            return (ClaimRef(name | PLAIN), is_new);
        }
        let mut cost = cost::CLAIM_COST;
        let slots = registration.names.iter().map(|name| {
            let (slot, is_new) = names.intern(name);
            if is_new {
                cost += cost::name(name);
            }
            slot
        });
        let slots = sorted(slots.collect());
        let content = ClaimContent {
            names: match *slots {
                [one] => NameSlots::One([one]),
                ref list => NameSlots::List(list),
            },
            sum: registration.file.sha256.as_ref().map(|sum| self.sums.intern(sum)),
            kind: registration.file.kind,
        };
        let hash = self.hasher.hash_one(content.key());
        if let Some(slot) = self.find_hashed(hash, &content) {
            self.claims[slot].references += 1;
            return (ClaimRef(slot), false);
        }
        let claim = Claim {
            names: match content.names {
                NameSlots::One([one]) => one,
                NameSlots::List(list) => self.lists.insert(list.into()) | IS_LIST,
            },
            sum: content.sum.unwrap_or(NO_SUM),
            references: 1,
            // Rounded down, so that nobody is charged for more than the catalog uses.
            cost: u16::try_from(cost / COST_UNIT).unwrap_or(u16::MAX),
            kind: Some(content.kind),
        };
        let slot = self.claims.insert(claim);
        let Self {
            hasher,
            by_content,
            claims,
            lists,
            bytes,
            ..
        } = self;
        by_content.insert(hash, slot, |slot| {
            hasher.hash_one(content_of(&claims[slot], lists).key())
        });
        *bytes += cost::CLAIM_COST;
        (ClaimRef(slot), true)
    }

    /// A registration's claim, if it exists.
    pub(crate) fn find(
        &self,
        names: &Names,
        registration: &RegistrationRef<'_>,
    ) -> Option<ClaimRef> {
        let slots = registration.names.iter().map(|name| names.find(name));
        let slots = sorted(slots.collect::<Option<_>>()?);
        if is_plain(registration) {
            return slots.first().map(|name| ClaimRef(name | PLAIN));
        }
        let sum = registration.file.sha256.as_ref().map(|sum| self.sums.find(sum));
        if sum == Some(None) {
            return None;
        }
        let content = ClaimContent {
            names: NameSlots::List(&slots),
            sum: sum.flatten(),
            kind: registration.file.kind,
        };
        let slot = self.find_hashed(self.hasher.hash_one(content.key()), &content);
        slot.map(ClaimRef)
    }

    fn find_hashed(&self, hash: u64, content: &ClaimContent<'_>) -> Option<u32> {
        self.by_content.find(hash, |slot| {
            content_of(&self.claims[slot], &self.lists).key() == content.key()
        })
    }

    /// The content of a claim.
    pub(crate) fn get(&self, claim: ClaimRef) -> ClaimContent<'_> {
        match claim.plain_name() {
            Some(name) => ClaimContent {
                names: NameSlots::One([name]),
                sum: None,
                kind: FileKind::File,
            },
            None => content_of(&self.claims[claim.0], &self.lists),
        }
    }

    /// The SHA-256 of a claim.
    pub(crate) fn sha256(&self, content: &ClaimContent<'_>) -> Option<&Sha256> {
        content.sum.map(|sum| self.sums.get(sum))
    }

    /// Bytes that a claim added, including its new names.
    pub(crate) fn cost(&self, claim: ClaimRef, names: &Names) -> u64 {
        match claim.plain_name() {
            Some(name) => cost::name(names.text(name)),
            None => u64::from(self.claims[claim.0].cost) * COST_UNIT,
        }
    }

    /// Whether a registration makes a claim.
    pub(crate) fn matches(
        &self,
        claim: ClaimRef,
        names: &Names,
        registration: &RegistrationRef<'_>,
    ) -> bool {
        if let Some(name) = claim.plain_name() {
            return is_plain(registration) && names.text(name) == registration.names[0];
        }
        let content = self.get(claim);
        let has_name =
            |name: &&str| names.find(name).is_some_and(|slot| content.names.contains(&slot));
        self.sha256(&content) == registration.file.sha256.as_ref()
            && content.kind == registration.file.kind
            && content.names.len() == registration.names.len()
            && registration.names.iter().all(has_name)
    }

    /// Releases one reference; removes the claim after the last.
    pub(crate) fn release(&mut self, claim: ClaimRef) {
        if claim.plain_name().is_some() {
            return;
        }
        let ClaimRef(slot) = claim;
        let claim = &mut self.claims[slot];
        claim.references -= 1;
        if claim.references > 0 {
            return;
        }
        let hash = self
            .hasher
            .hash_one(content_of(&self.claims[slot], &self.lists).key());
        self.by_content.remove(hash, slot);
        let claim = self.claims.remove(slot);
        if claim.names & IS_LIST != 0 {
            self.lists.remove(claim.names & !IS_LIST);
        }
        self.bytes -= cost::CLAIM_COST;
    }

    /// Number of claims in the table, and of their lists.
    #[cfg(test)]
    pub(crate) const fn counts(&self) -> (usize, usize) {
        (self.claims.len(), self.lists.len())
    }
}

fn content_of<'a>(claim: &Claim, lists: &'a Slots<Box<[u32]>>) -> ClaimContent<'a> {
    ClaimContent {
        names: match claim.names & IS_LIST {
            0 => NameSlots::One([claim.names]),
            _ => NameSlots::List(&lists[claim.names & !IS_LIST]),
        },
        sum: Some(claim.sum).filter(|&sum| sum != NO_SUM),
        kind: claim.kind.unwrap_or_default(),
    }
}

fn sorted(mut slots: SmallVec<[u32; 4]>) -> SmallVec<[u32; 4]> {
    slots.sort_unstable();
    slots.dedup();
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_small() {
        assert_eq!(size_of::<Claim>(), 16);
    }
}
