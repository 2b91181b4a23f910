//! Ids of members, roles, and the names that certificates carry.

use std::{fmt, str::FromStr};

use data_encoding::BASE32_NOPAD;
use sha2::Digest as _;

use crate::PeerId;

/// The DNS name in the index's certificate.
pub const INDEX_NAME: &str = "index.potluck.internal";

/// The end of the DNS name in a peer's certificate, after its id in base32.
const PEER_SUFFIX: &str = ".peer.potluck.internal";

/// The start of the URI name in a member's or peer's certificate.
const MEMBER_URI: &str = "potluck:member/";

/// Maximum length of a member's or network's name, in bytes: the limit of a certificate's common
/// name (RFC 5280, appendix A).
pub const MAX_NAME: usize = 64;

/// Whether people may use `name` for a network or a member: not empty, at most [`MAX_NAME`] bytes,
/// and no control characters, so that it is safe to print.
pub fn is_valid_name(name: &str) -> bool {
    !name.trim().is_empty() && name.len() <= MAX_NAME && !name.chars().any(char::is_control)
}

/// Identifier of a member: a machine or user of the network. Shown as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub [u8; Self::LEN]);

/// The text is not the id of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a member id has 32 hex digits")]
pub struct MemberIdError;

impl MemberId {
    /// Length in bytes.
    pub const LEN: usize = 16;

    /// The id of the member that enrolled with this public key, the DER of its
    /// SubjectPublicKeyInfo: the first 16 bytes of `SHA-256("potluck/member/v1\0" || key)`. So
    /// enrolling again with the same key is the same member.
    pub fn of_public_key(spki: &[u8]) -> Self {
        let hash = hash_of_key(b"potluck/member/v1\0", spki);
        let (id, _) = hash.split_at(Self::LEN);
        Self(id.try_into().expect("a hash has more than 16 bytes"))
    }

    /// The id of the member with this subject in a PKI of one's own, where keys may change: the first
    /// 16 bytes of `SHA-256("potluck/subject/v1\0" || subject)`, `subject` in DER.
    pub fn of_subject(subject: &[u8]) -> Self {
        let hash = hash_of_key(b"potluck/subject/v1\0", subject);
        let (id, _) = hash.split_at(Self::LEN);
        Self(id.try_into().expect("a hash has more than 16 bytes"))
    }

    /// The first eight hex digits, for logs and messages.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..4])
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemberId({self})")
    }
}

impl FromStr for MemberId {
    type Err = MemberIdError;

    fn from_str(text: &str) -> Result<Self, MemberIdError> {
        let mut bytes = [0; Self::LEN];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| MemberIdError)?;
        Ok(Self(bytes))
    }
}

impl TryFrom<&[u8]> for MemberId {
    type Error = MemberIdError;

    fn try_from(bytes: &[u8]) -> Result<Self, MemberIdError> {
        bytes.try_into().map(Self).map_err(|_| MemberIdError)
    }
}

/// What a member may do. Each role may do everything that the one before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// May download anything, and register what it has by id, without names.
    Reader,
    /// May bind names to ids.
    Publisher,
    /// May remove others' registrations, invite and revoke.
    Admin,
}

/// The text is not a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a role is `reader`, `publisher` or `admin`")]
pub struct RoleError;

impl Role {
    /// All roles, the least powerful first.
    pub const ALL: [Self; 3] = [Self::Reader, Self::Publisher, Self::Admin];

    /// The word for people, files and certificates.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Publisher => "publisher",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or(RoleError)
    }
}

/// Who is at the other end of a connection, as its certificate says. Call handlers of a server find
/// it among the extensions of the request; it is absent if the connection is plaintext or its client
/// has no certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertifiedIdentity {
    /// The member.
    pub member: MemberId,
    /// The peer; `None` for a member's own certificate, which commands without a peer use.
    pub peer: Option<PeerId>,
    /// The member's role when the certificate was issued.
    pub role: Role,
}

impl PeerId {
    /// The id of a peer in a network, `SHA-256("potluck/peer/v2\0" || spki)`, where `spki` is the DER
    /// of its key's SubjectPublicKeyInfo.
    pub fn of_public_key(spki: &[u8]) -> Self {
        Self(hash_of_key(b"potluck/peer/v2\0", spki))
    }
}

fn hash_of_key(label: &[u8], spki: &[u8]) -> [u8; 32] {
    let mut hash = sha2::Sha256::new();
    hash.update(label);
    hash.update(spki);
    hash.finalize().into()
}

/// The DNS name in the certificate of this peer.
pub fn peer_name(peer: PeerId) -> String {
    let mut name = BASE32_NOPAD.encode(peer.as_bytes());
    name.make_ascii_lowercase();
    name.push_str(PEER_SUFFIX);
    name
}

/// The peer with this DNS name.
pub(crate) fn peer_with_name(name: &str) -> Option<PeerId> {
    let id = name.strip_suffix(PEER_SUFFIX)?.to_ascii_uppercase();
    let bytes = BASE32_NOPAD.decode(id.as_bytes()).ok()?;
    PeerId::try_from(bytes.as_slice()).ok()
}

/// The URI name of a member with this role.
pub(crate) fn member_uri(member: MemberId, role: Role) -> String {
    format!("{MEMBER_URI}{member}/{role}")
}

/// The member and role in a URI name.
pub(crate) fn member_with_uri(uri: &str) -> Option<(MemberId, Role)> {
    let (member, role) = uri.strip_prefix(MEMBER_URI)?.split_once('/')?;
    Some((member.parse().ok()?, role.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_peer_gives_back_its_id() {
        let peer = PeerId::of_public_key(b"a key");
        let name = peer_name(peer);
        let (label, _) = name.split_once('.').unwrap();
        assert!(label.len() <= 63, "a DNS label");
        assert_eq!(name, name.to_lowercase());
        assert_eq!(peer_with_name(&name), Some(peer));
        for bad in [
            "",
            "x.peer.potluck.internal",
            &name[1..],
            "index.potluck.internal",
        ] {
            assert_eq!(peer_with_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_uri_of_a_member_gives_back_its_id_and_role() {
        let member = MemberId::of_public_key(b"a key");
        for role in Role::ALL {
            let uri = member_uri(member, role);
            assert_eq!(member_with_uri(&uri), Some((member, role)));
        }
        for bad in ["", "potluck:member/", "potluck:member/00/admin", "https://a"] {
            assert_eq!(member_with_uri(bad), None, "{bad}");
        }
    }

    #[test]
    fn roles_are_ordered_by_what_they_may_do() {
        assert!(Role::Reader < Role::Publisher && Role::Publisher < Role::Admin);
        assert_eq!("owner".parse::<Role>(), Err(RoleError));
    }
}
