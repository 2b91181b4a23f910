//! The rows of the tree: keys, digests, and the segments of each peer.

use potluck_core::PeerId;
use sha2::{Digest as _, Sha256};

use crate::store::{StoreError, folder};

/// Key of the summary; shorter than any other key of the tree.
pub(super) const SUMMARY_KEY: &[u8] = b"summary";

const PEER: u8 = 0;
const SEGMENT: u8 = 1;

/// The hash of a row, or the sum of several modulo 2^128, which does not depend on their order.
/// Against damage, not against an attacker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct RowHash(pub(super) u128);

/// The rows of one peer.
#[derive(Debug, Default)]
pub(super) struct PeerSegments {
    /// The hash of its row with address and lease; zero if it has none yet.
    pub(super) record: RowHash,
    pub(super) list: Vec<SegmentInfo>,
    /// Number of entries in all segments.
    pub(super) entries: usize,
    pub(super) next_number: u64,
    /// Number of entries that are needed, one per file of the peer. An estimate between folds.
    pub(super) needed_entries: usize,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct SegmentInfo {
    pub(super) number: u64,
    /// Zero until the segment is written.
    pub(super) hash: RowHash,
    pub(super) bytes: usize,
    pub(super) entries: usize,
}

impl PeerSegments {
    pub(super) fn push(&mut self, segment: SegmentInfo) {
        self.entries += segment.entries;
        self.list.push(segment);
    }

    pub(super) fn pop(&mut self) -> Option<SegmentInfo> {
        let segment = self.list.pop()?;
        self.entries -= segment.entries;
        Some(segment)
    }

    /// The digest of all rows of the peer.
    pub(super) fn rows(&self) -> RowHash {
        let mut rows = self.record;
        self.list.iter().for_each(|segment| rows.add(segment.hash));
        rows
    }
}

impl RowHash {
    pub(super) fn of(key: &[u8], value: &[u8]) -> Self {
        let mut hash = Sha256::new();
        // A key has a length byte, so that key and value cannot be divided elsewhere.
        hash.update([key.len() as u8]);
        hash.update(key);
        hash.update(value);
        let hash: [u8; 32] = hash.finalize().into();
        let (half, _) = hash.as_chunks::<16>();
        Self(u128::from_le_bytes(half[0]))
    }

    pub(super) const fn add(&mut self, row: Self) {
        self.0 = self.0.wrapping_add(row.0);
    }

    pub(super) const fn remove(&mut self, row: Self) {
        self.0 = self.0.wrapping_sub(row.0);
    }
}

pub(super) fn peer_key(peer: &PeerId) -> Vec<u8> {
    [peer.as_bytes().as_slice(), &[PEER]].concat()
}

pub(super) fn segment_key(peer: &PeerId, number: u64) -> Vec<u8> {
    [peer.as_bytes().as_slice(), &[SEGMENT], &number.to_be_bytes()].concat()
}

/// Parses a key into the peer, and the segment number if it is a segment's key.
pub(super) fn read_key(key: &[u8]) -> Result<(PeerId, Option<u64>), StoreError> {
    let damaged = || StoreError::Damaged("a key of an unknown kind".to_owned());
    let (peer, rest) = key
        .split_at_checked(potluck_core::identity::id::LEN)
        .ok_or_else(damaged)?;
    let peer = PeerId::try_from(peer).map_err(|_| damaged())?;
    match rest {
        [PEER] => Ok((peer, None)),
        [SEGMENT, number @ ..] => {
            let number = number.try_into().map_err(|_| damaged())?;
            Ok((peer, Some(u64::from_be_bytes(number))))
        }
        _ => Err(damaged()),
    }
}

/// Classifies an error: [`StoreError::Io`] if the system is at fault, [`StoreError::Damaged`] if
/// the stored data is.
pub(super) fn store_error(error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(error) if folder::is_system_error(&error) => StoreError::Io(error),
        // sled reports a lock held by another as this text only.
        sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => {
            StoreError::Io(std::io::Error::new(std::io::ErrorKind::ResourceBusy, error))
        }
        error => StoreError::Damaged(error.to_string()),
    }
}
