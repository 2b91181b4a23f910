//! The identity of a set of registrations that one index, or several together, serve.

use std::fmt;

/// Length of the id, in bytes.
const LEN: usize = 16;

/// Identifies the store of an index: indexes that share a store report the same id, and no others
/// do.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClusterId([u8; LEN]);

impl ClusterId {
    /// Generates an id.
    pub fn generate() -> Self {
        Self(rand::random())
    }

    /// The bytes as the value of a message field.
    pub fn to_bytes(self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(&self.0)
    }

    /// Parses 32 hex digits; `None` for any other text.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; LEN];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// The id in a message; `None` if its length is wrong, as from an index that sends none.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_round_trips_as_text_and_as_bytes() {
        let id = ClusterId::generate();
        assert_eq!(ClusterId::from_hex(&id.to_string()), Some(id));
        assert_eq!(ClusterId::from_bytes(&id.to_bytes()), Some(id));
        assert_eq!(ClusterId::from_hex("ab"), None);
        assert_eq!(ClusterId::from_bytes(&[]), None);
    }
}
