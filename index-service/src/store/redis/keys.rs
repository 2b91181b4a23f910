//! The keys in Redis. Pure.
//!
//! All keys of a peer contain one of [`TAGS`] hash tags, so that Redis Cluster keeps them in one slot
//! and one script can change all of them.

use potluck_core::PeerId;

/// The layout of keys and values. An incompatible change needs another one.
pub(super) const LAYOUT: &str = "1";

/// Number of hash tags; changing it needs another [`LAYOUT`].
pub(super) const TAGS: u16 = 1024;

/// Number of slots of a Redis Cluster (Redis Cluster specification, "Key distribution model").
const SLOTS: u16 = 16_384;

/// The key of the layout's number and the cluster id.
pub(super) const META: &str = "potluck:{000}:meta";

/// The list with the members of a private network, and the hash tag of its slot.
pub(super) const MEMBERS: &str = "potluck:{network}:members";

/// A hash tag: the first ten bits of a peer's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Tag(u16);

impl Tag {
    /// The tag of a peer's keys.
    pub(super) const fn of(peer: &PeerId) -> Self {
        let [first, second, ..] = peer.0;
        Self(u16::from_be_bytes([first, second]) / (u16::MAX / TAGS + 1))
    }

    /// All tags.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..TAGS).map(Self)
    }

    /// Its place among all tags.
    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }

    /// The slot of its keys.
    pub(super) fn slot(self) -> u16 {
        crc16(self.text().as_bytes()) % SLOTS
    }

    fn text(self) -> String {
        format!("{:03x}", self.0)
    }

    /// The hash with a row for each peer.
    pub(super) fn peers(self) -> String {
        format!("potluck:{{{}}}:peers", self.text())
    }

    /// The stream of the last changes.
    pub(super) fn changes(self) -> String {
        format!("potluck:{{{}}}:changes", self.text())
    }

    /// The number of the last change.
    pub(super) fn version(self) -> String {
        format!("potluck:{{{}}}:version", self.text())
    }

    /// The hash with an entry for each file of a peer.
    pub(super) fn files(self, peer: &PeerId) -> String {
        format!("potluck:{{{}}}:files:{peer}", self.text())
    }

    /// The key that exists while a peer's lease lasts.
    pub(super) fn lease(self, peer: &PeerId) -> String {
        format!("potluck:{{{}}}:lease:{peer}", self.text())
    }
}

/// CRC-16/XMODEM, from which Redis Cluster derives the slot of a key.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| match crc & 0x8000 {
            0 => crc << 1,
            _ => (crc << 1) ^ 0x1021,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // The check value of CRC-16/XMODEM, and a value of `CLUSTER KEYSLOT potluck:{3ff}:peers`.
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(Tag::of(&PeerId([0xff; 32])).peers(), "potluck:{3ff}:peers");
    }

    #[test]
    fn tags_cover_all_ids_evenly() {
        let tags: Vec<Tag> = Tag::all().collect();
        assert_eq!(tags.len(), usize::from(TAGS));
        for (index, tag) in tags.iter().enumerate() {
            let mut id = [7; 32];
            id[..2].copy_from_slice(&(index as u16 * 64 + 63).to_be_bytes());
            assert_eq!(Tag::of(&PeerId(id)), *tag);
            assert_eq!(tag.index(), index);
        }
    }
}
