//! The list of revoked members and peers, numbered and signed by the CA.
//!
//! Bytes of a signed list, integers big-endian:
//!
//! ```text
//! "potluck/revocations/v1\0"   label
//! u64                          number: grows with each list
//! u64                          when the list was made, in seconds since 1970
//! u32, then 16 bytes each      revoked members, sorted
//! u32, then 32 bytes each      revoked peers, sorted
//! ECDSA signature              P-256 with SHA-256, DER, over all bytes before it
//! ```
//!
//! An entry is needed only until the last certificate that it concerns can no longer be renewed, so
//! lists stay short. [`MAX_REVOKED`] bounds them.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use webpki::ring::ECDSA_P256_SHA256;

use crate::{
    PeerId,
    network::{
        certificate::public_key_of,
        identity::{CertifiedIdentity, MemberId},
    },
};

const LABEL: &[u8] = b"potluck/revocations/v1\0";

/// Maximum number of members, and of peers, on a list. The list then takes 480 KB, which a renewal
/// of a lease carries only when it changes.
pub const MAX_REVOKED: usize = 10_000;

/// Maximum length of a signed list, in bytes.
pub const MAX_SIGNED: usize = 512 * 1024;

/// Maximum length of a signature, in bytes.
const MAX_SIGNATURE: usize = 80;

/// Start of the uncompressed point in the SubjectPublicKeyInfo of a P-256 key, whose DER always has
/// the same length.
const POINT: usize = 26;

/// Revoked members and peers. Revoking a member revokes all its peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationList {
    /// The number of the list. A receiver ignores a list whose number is not higher than that of its
    /// own.
    pub number: u64,
    /// When the list was made.
    pub made_at: SystemTime,
    /// Revoked members.
    pub members: BTreeSet<MemberId>,
    /// Revoked peers.
    pub peers: BTreeSet<PeerId>,
}

impl RevocationList {
    /// The list of a new network, which revokes nobody.
    pub const fn empty() -> Self {
        Self {
            number: 0,
            made_at: SystemTime::UNIX_EPOCH,
            members: BTreeSet::new(),
            peers: BTreeSet::new(),
        }
    }

    /// Whether the list names this member or peer.
    pub fn revokes(&self, identity: &CertifiedIdentity) -> bool {
        self.members.contains(&identity.member)
            || identity.peer.is_some_and(|peer| self.peers.contains(&peer))
    }

    /// The signed bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let made_at = self
            .made_at
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let mut bytes = LABEL.to_vec();
        bytes.extend(self.number.to_be_bytes());
        bytes.extend(made_at.as_secs().to_be_bytes());
        // The numbers fit: `MAX_REVOKED` bounds them.
        bytes.extend((self.members.len() as u32).to_be_bytes());
        self.members.iter().for_each(|member| bytes.extend(member.0));
        bytes.extend((self.peers.len() as u32).to_be_bytes());
        self.peers.iter().for_each(|peer| bytes.extend(peer.0));
        bytes
    }

    /// The list at the start of `bytes`, and what follows it.
    fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let rest = bytes.strip_prefix(LABEL)?;
        let (number, rest) = rest.split_first_chunk()?;
        let (made_at, rest) = rest.split_first_chunk()?;
        let (members, rest) = split_list::<{ MemberId::LEN }>(rest)?;
        let (peers, rest) = split_list::<32>(rest)?;
        let list = Self {
            number: u64::from_be_bytes(*number),
            made_at: SystemTime::UNIX_EPOCH
                .checked_add(Duration::from_secs(u64::from_be_bytes(*made_at)))?,
            members: members.iter().copied().map(MemberId).collect(),
            peers: peers.iter().copied().map(PeerId).collect(),
        };
        Some((list, rest))
    }
}

fn split_list<const N: usize>(bytes: &[u8]) -> Option<(&[[u8; N]], &[u8])> {
    let (count, rest) = bytes.split_first_chunk()?;
    let count = u32::from_be_bytes(*count) as usize;
    if count > MAX_REVOKED {
        return None;
    }
    let (list, rest) = rest.split_at_checked(count * N)?;
    Some((list.as_chunks().0, rest))
}

/// The reason why a list is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RevocationsError {
    /// The bytes are not a list.
    #[error("the list of revocations is malformed")]
    Malformed,
    /// The network's CA did not sign the list.
    #[error("the list of revocations is not signed by this network's authority")]
    Signature,
}

/// A list of revocations with the signature of the CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedRevocations {
    list: RevocationList,
    bytes: bytes::Bytes,
}

impl SignedRevocations {
    pub(super) fn from_parts(list: RevocationList, message: &[u8], signature: &[u8]) -> Self {
        Self {
            list,
            bytes: [message, signature].concat().into(),
        }
    }

    /// Parses a signed list and verifies that the CA with this certificate signed it.
    ///
    /// # Errors
    /// [`RevocationsError`].
    pub fn verify(bytes: &[u8], ca: &[u8]) -> Result<Self, RevocationsError> {
        if bytes.len() > MAX_SIGNED {
            return Err(RevocationsError::Malformed);
        }
        let (list, signature) = RevocationList::decode(bytes).ok_or(RevocationsError::Malformed)?;
        if signature.len() > MAX_SIGNATURE {
            return Err(RevocationsError::Malformed);
        }
        let (message, _) = bytes.split_at(bytes.len() - signature.len());
        let key = public_key_of(ca).map_err(|_| RevocationsError::Signature)?;
        let point = key.get(POINT..).ok_or(RevocationsError::Signature)?;
        ECDSA_P256_SHA256
            .verify_signature(point, message, signature)
            .map_err(|_| RevocationsError::Signature)?;
        Ok(Self {
            list,
            bytes: bytes::Bytes::copy_from_slice(bytes),
        })
    }

    /// The list.
    pub const fn list(&self) -> &RevocationList {
        &self.list
    }

    /// The signed bytes, as they are stored and sent.
    pub const fn as_bytes(&self) -> &bytes::Bytes {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::authority::Authority;
    use proptest::prelude::*;

    fn list() -> RevocationList {
        RevocationList {
            number: 7,
            made_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            members: [MemberId([1; 16]), MemberId([2; 16])].into(),
            peers: [PeerId([3; 32])].into(),
        }
    }

    #[test]
    fn a_signed_list_comes_back_and_only_its_authority_could_make_it() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            Authority::create(&dir.path().join(name), name, SystemTime::now()).unwrap()
        };
        let (authority, other) = (make("kitchen"), make("garden"));
        let signed = authority.sign_revocations(list()).unwrap();
        let verified = SignedRevocations::verify(signed.as_bytes(), authority.certificate());
        assert_eq!(verified.unwrap(), signed);
        assert_eq!(
            SignedRevocations::verify(signed.as_bytes(), other.certificate()),
            Err(RevocationsError::Signature)
        );
        for changed in 0..signed.as_bytes().len() {
            let mut bytes = signed.as_bytes().to_vec();
            bytes[changed] ^= 1;
            let verified = SignedRevocations::verify(&bytes, authority.certificate());
            assert!(verified.is_err(), "byte {changed}");
        }
    }

    #[test]
    fn a_revoked_member_takes_its_peers_along() {
        let identity = |member, peer| CertifiedIdentity {
            member: MemberId([member; 16]),
            peer: Some(PeerId([peer; 32])),
            role: crate::network::identity::Role::Admin,
        };
        assert!(list().revokes(&identity(1, 9)));
        assert!(list().revokes(&identity(9, 3)));
        assert!(!list().revokes(&identity(9, 9)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let _ = RevocationList::decode(&bytes);
            let _ = RevocationList::decode(&[LABEL, &bytes].concat());
        }
    }
}
