//! 32-byte identifiers of files and peers, and the secret token from which a peer's id is derived.
//!
//! Invariant: every id has exactly 32 bytes, prints as 64 lower-case hex digits, and parses from
//! hex digits of either case.

use std::{fmt, str::FromStr};

use rand::Rng as _;
use sha2::Digest as _;

/// Length of every id, root and hash, in bytes.
pub const LEN: usize = 32;

/// The reason why text or bytes are not a valid id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is not 64 characters long.
    #[error("an id has 64 hex digits, but this text has {0} characters")]
    Length(usize),
    /// The text has a character that is not a hex digit.
    #[error("an id has 64 hex digits, but this text has other characters")]
    NotHex,
    /// Not exactly 32 bytes.
    #[error("an id has 32 bytes, but this one has {0}")]
    Bytes(usize),
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; LEN]);

        impl $name {
            /// The 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; LEN] {
                &self.0
            }

            /// The bytes as the value of a message field.
            pub fn to_bytes(self) -> bytes::Bytes {
                bytes::Bytes::copy_from_slice(&self.0)
            }

            /// The first eight hex digits, for logs and messages.
            pub fn short(&self) -> String {
                hex::encode(&self.0[..4])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let length = text.chars().count();
                if length != 2 * LEN {
                    return Err(IdError::Length(length));
                }
                let mut bytes = [0; LEN];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| IdError::NotHex)?;
                Ok(Self(bytes))
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = IdError;

            fn try_from(bytes: &[u8]) -> Result<Self, IdError> {
                bytes.try_into().map(Self).map_err(|_| IdError::Bytes(bytes.len()))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

id_type! {
    /// Identifier of a file: a commitment to its size and its [`Root`].
    FileId
}
id_type! {
    /// Public identifier of a peer, derived from its [`Token`].
    PeerId
}
id_type! {
    /// Root of a file's Merkle tree (`pieces root` of BEP 52). Does not commit to the file's size;
    /// [`FileId`] does.
    Root
}
id_type! {
    /// SHA-256 of a whole file.
    Sha256
}

impl FileId {
    /// Derives the id of a file from its size in bytes and its root.
    ///
    /// The id is `SHA-256("potluck/file/v1\0" || size as u64 little-endian || root)`. A root alone
    /// does not commit to the size: an inner node would pass as a file of 64 bytes.
    pub fn derive(size: u64, root: &Root) -> Self {
        Self(sha2::Sha256::digest(Self::preimage(size, root)).into())
    }

    /// The input of the id's SHA-256.
    pub(crate) fn preimage(size: u64, root: &Root) -> [u8; 56] {
        let mut bytes = [0; 56];
        bytes[..16].copy_from_slice(b"potluck/file/v1\0");
        bytes[16..24].copy_from_slice(&size.to_le_bytes());
        bytes[24..].copy_from_slice(&root.0);
        bytes
    }

    /// The provisional id of content whose SHA-256 is known, but not yet its root: peers that fetch it
    /// from an origin meet under this id. `size` is in bytes.
    ///
    /// The id is `SHA-256("potluck/origin/v1\0" || size as u64 little-endian || sha256)`.
    pub fn provisional(size: u64, sha256: &Sha256) -> Self {
        let hash = sha2::Sha256::new_with_prefix(b"potluck/origin/v1\0");
        let hash = hash.chain_update(size.to_le_bytes()).chain_update(sha256.0);
        Self(hash.finalize().into())
    }

    /// The first eight bytes as a big-endian number. Sorts like the id, and distinguishes almost
    /// all ids in a quarter of the space.
    pub fn prefix(&self) -> u64 {
        let (first, _) = self.0.split_at(8);
        u64::from_be_bytes(first.try_into().expect("an id has more than eight bytes"))
    }
}

/// A peer's secret, 32 random bytes. Possession of the token proves the identity. `Debug` prints a
/// placeholder.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; LEN]);

impl Token {
    /// Generates a token with a cryptographic generator that the operating system seeds.
    pub fn generate() -> Self {
        let mut bytes = [0; LEN];
        rand::rng().fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// The secret bytes, only for a request or the peer's own folder.
    pub const fn expose(&self) -> &[u8; LEN] {
        &self.0
    }

    /// The peer's public id: `SHA-256("potluck/peer/v1\0" || token)`.
    pub fn peer_id(&self) -> PeerId {
        let mut hash = sha2::Sha256::new();
        hash.update(b"potluck/peer/v1\0");
        hash.update(self.0);
        PeerId(hash.finalize().into())
    }
}

impl TryFrom<&[u8]> for Token {
    type Error = IdError;

    fn try_from(bytes: &[u8]) -> Result<Self, IdError> {
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| IdError::Bytes(bytes.len()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_in_either_case() {
        let id = FileId([0xab; LEN]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
    }

    #[test]
    fn errors_of_bad_ids_name_the_defect() {
        assert_eq!("ab".parse::<FileId>(), Err(IdError::Length(2)));
        assert_eq!("zz".repeat(32).parse::<FileId>(), Err(IdError::NotHex));
        assert_eq!("é".repeat(64).parse::<FileId>(), Err(IdError::NotHex));
    }

    #[test]
    fn the_id_commits_to_the_size() {
        let root = Root([1; LEN]);
        assert_ne!(FileId::derive(1, &root), FileId::derive(2, &root));
    }

    #[test]
    fn prefixes_sort_as_ids_do() {
        let id = |first: u8, eighth: u8| {
            let mut bytes = [9; LEN];
            (bytes[0], bytes[7]) = (first, eighth);
            FileId(bytes)
        };
        let ids = [id(0, 255), id(1, 0), id(1, 1), id(255, 0)];
        assert!(
            ids.windows(2)
                .all(|pair| pair[0] < pair[1] && pair[0].prefix() < pair[1].prefix())
        );
    }

    #[test]
    fn a_token_is_not_shown() {
        let token = Token::generate();
        assert!(!format!("{token:?}").contains(&hex::encode(token.expose())));
    }
}
