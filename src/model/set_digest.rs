//! A digest of the registrations that one peer has at the index.
//!
//! The peer and the index compute it independently and compare. A difference means that one of them
//! lost state, for example an index that was restored from a backup. The digest is AdHash: the sum,
//! modulo 2^256, of one SHA-256 per registration (M. Bellare and D. Micciancio, "A New Paradigm for
//! Collision-Free Hashing"). It does not depend on order, and a change costs one hash.
//! docs/protocol.md specifies the encoding.
//!
//! Non-goal: resistance to chosen registrations. Finding two sets with the same digest takes about
//! 2^32 steps (D. Wagner, "A Generalized Birthday Problem"). Such an attacker only falsifies the
//! index's record of its own files.

use sha2::{Digest as _, Sha256 as Hasher};

use crate::{
    identity::id::{FileId, IdError, Sha256},
    model::file::{FileKind, Registration},
};

/// Prefix of every registration's hash input.
const DOMAIN: &[u8; 24] = b"potluck/registration/v1\0";

// Bits of a registration's flags.
const COMPLETE: u8 = 1;
const COLLECTION: u8 = 2;
const CLAIM: u8 = 4;

/// Limbs of a 256-bit number, least significant first.
type Limbs = [u64; 4];

/// The digest of a set of registrations. The default is the digest of the empty set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetDigest(Limbs);

/// The hash of one registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegistrationHash(Limbs);

impl RegistrationHash {
    /// Hashes the parts of a registration. Sorts `names` in place; order and duplicates do not
    /// change the hash.
    pub fn new(
        id: &FileId,
        sha256: Option<&Sha256>,
        kind: FileKind,
        is_complete: bool,
        names: &mut [&str],
    ) -> Self {
        let mut flags = if is_complete { COMPLETE } else { 0 };
        if kind == FileKind::Collection {
            flags |= COLLECTION;
        }
        if sha256.is_some() {
            flags |= CLAIM;
        }
        let mut hasher = Hasher::new();
        hasher.update(DOMAIN);
        hasher.update(id.as_bytes());
        hasher.update([flags]);
        if let Some(sha256) = sha256 {
            hasher.update(sha256.as_bytes());
        }
        names.sort_unstable();
        let mut previous = None;
        for name in names.iter().copied() {
            if previous != Some(name) {
                // Fits: a name has at most 255 bytes.
                hasher.update([name.len() as u8]);
                hasher.update(name);
            }
            previous = Some(name);
        }
        Self(limbs(&hasher.finalize().into()))
    }
}

impl From<&Registration> for RegistrationHash {
    fn from(registration: &Registration) -> Self {
        let Registration {
            file,
            names,
            is_complete,
        } = registration;
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        Self::new(
            &file.id,
            file.sha256.as_ref(),
            file.kind,
            *is_complete,
            &mut names,
        )
    }
}

impl SetDigest {
    /// Adds a registration. It must not be in the set.
    pub fn insert(&mut self, RegistrationHash(hash): &RegistrationHash) {
        let mut carry = false;
        for (sum, limb) in self.0.iter_mut().zip(hash) {
            let (without_carry, overflowed) = sum.overflowing_add(*limb);
            let (with_carry, carried) = without_carry.overflowing_add(carry.into());
            (*sum, carry) = (with_carry, overflowed || carried);
        }
    }

    /// Removes a registration. It must be in the set.
    pub fn remove(&mut self, RegistrationHash(hash): &RegistrationHash) {
        let mut borrow = false;
        for (sum, limb) in self.0.iter_mut().zip(hash) {
            let (without_borrow, underflowed) = sum.overflowing_sub(*limb);
            let (with_borrow, borrowed) = without_borrow.overflowing_sub(borrow.into());
            (*sum, borrow) = (with_borrow, underflowed || borrowed);
        }
    }

    /// The wire encoding: 32 bytes, little-endian.
    pub fn to_bytes(&self) -> bytes::Bytes {
        let bytes: Vec<u8> = self.0.iter().flat_map(|limb| limb.to_le_bytes()).collect();
        bytes.into()
    }
}

impl<'a> FromIterator<&'a Registration> for SetDigest {
    fn from_iter<I: IntoIterator<Item = &'a Registration>>(registrations: I) -> Self {
        let mut digest = Self::default();
        for registration in registrations {
            digest.insert(&registration.into());
        }
        digest
    }
}

impl TryFrom<&[u8]> for SetDigest {
    type Error = IdError;

    fn try_from(bytes: &[u8]) -> Result<Self, IdError> {
        let bytes = bytes.try_into().map_err(|_| IdError::Bytes(bytes.len()))?;
        Ok(Self(limbs(bytes)))
    }
}

fn limbs(bytes: &[u8; 32]) -> Limbs {
    let (limbs, _) = bytes.as_chunks::<8>();
    [0, 1, 2, 3].map(|index| u64::from_le_bytes(limbs[index]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{identity::id::Root, model::file::FileRecord};

    fn registration(n: u8, has_sha256: bool, is_complete: bool, names: &[&str]) -> Registration {
        let root = Root([n; 32]);
        Registration {
            file: FileRecord {
                id: FileId([n; 32]),
                size: 1,
                root,
                sha256: has_sha256.then_some(Sha256([n; 32])),
                kind: if n.is_multiple_of(2) {
                    FileKind::Collection
                } else {
                    FileKind::File
                },
            },
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            is_complete,
        }
    }

    #[test]
    fn the_digest_matches_the_documented_encoding() {
        // Computed from docs/protocol.md with Python's hashlib.
        let set = [
            registration(1, false, false, &["b", "a", "b"]),
            registration(2, true, true, &["é"]),
        ];
        let digest = SetDigest::from_iter(&set);
        assert_eq!(
            hex::encode(digest.to_bytes()),
            "37bb15c8447e9f0f70b8541bf2b257c518bceba36bc381923d1d0a4eb82f7aec"
        );
    }

    #[test]
    fn every_part_of_a_registration_changes_its_hash() {
        let all = [
            registration(1, false, true, &["a"]),
            registration(3, false, true, &["a"]),
            registration(1, true, true, &["a"]),
            registration(1, false, false, &["a"]),
            registration(1, false, true, &["b"]),
            registration(1, false, true, &["a", "b"]),
            Registration {
                file: FileRecord {
                    kind: FileKind::Collection,
                    ..registration(1, false, true, &[]).file
                },
                ..registration(1, false, true, &["a"])
            },
        ];
        for (index, one) in all.iter().enumerate() {
            for other in &all[..index] {
                assert_ne!(
                    RegistrationHash::from(one),
                    RegistrationHash::from(other),
                    "{one:?} and {other:?}"
                );
            }
        }
    }

    proptest! {
        /// Any sequence of insertions and removals gives the digest of the remaining set.
        #[test]
        fn the_digest_depends_only_on_the_remaining_set(
            steps in prop::collection::vec((0..20u8, any::<bool>()), 0..200),
        ) {
            let mut digest = SetDigest::default();
            let mut set = std::collections::BTreeMap::new();
            for (n, is_complete) in steps {
                let next = registration(n, true, is_complete, &["a"]);
                if let Some(old) = set.insert(n, next.clone()) {
                    digest.remove(&RegistrationHash::from(&old));
                }
                digest.insert(&RegistrationHash::from(&next));
                if is_complete && n % 3 == 0 {
                    set.remove(&n);
                    digest.remove(&RegistrationHash::from(&next));
                }
            }
            prop_assert_eq!(digest, SetDigest::from_iter(set.values().rev()));
            prop_assert_eq!(SetDigest::try_from(&*digest.to_bytes()), Ok(digest));
        }
    }
}
