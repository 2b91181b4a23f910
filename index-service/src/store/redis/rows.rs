//! The values in Redis: rows of peers, entries of files, and changes. Pure.

use potluck_core::{
    FileId, PeerId, SetDigest,
    model::{Address, Registration},
};
use prost::Message as _;

use crate::store::{Change, PeerRecord, StoreError, segment};

/// Length of the hash before a registration, in bytes.
const HASH: usize = 32;

/// Bytes of entries up to which a change carries them. A larger change has only the ids,
/// and the other index processes read the entries themselves.
const MAX_INLINE: usize = 16 * 1024;

/// A peer's row: `version (8) || digest (32) || count (8) || record`, little-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PeerRow {
    /// The number of the peer's last change, among those of its tag.
    pub(super) version: u64,
    /// The digest of its registrations.
    pub(super) digest: SetDigest,
    /// Number of its files.
    pub(super) count: u64,
    /// Its address and lease.
    pub(super) record: PeerRecord,
}

impl PeerRow {
    /// Parses a row.
    pub(super) fn decode(peer: PeerId, bytes: &[u8]) -> Result<Self, StoreError> {
        let damaged = || StoreError::Damaged(format!("the row of peer {peer} is malformed"));
        let (version, rest) = bytes.split_first_chunk().ok_or_else(damaged)?;
        let (digest, rest) = rest.split_first_chunk::<32>().ok_or_else(damaged)?;
        let (count, record) = rest.split_first_chunk().ok_or_else(damaged)?;
        let (address, ttl) = segment::decode_peer(record)?;
        Ok(Self {
            version: u64::from_le_bytes(*version),
            digest: SetDigest::try_from(&digest[..]).map_err(|_| damaged())?,
            count: u64::from_le_bytes(*count),
            record: PeerRecord {
                id: peer,
                address,
                ttl,
            },
        })
    }
}

/// Encodes the address and the lease of a peer.
pub(super) fn encode_record(address: &Address, ttl: std::time::Duration) -> Vec<u8> {
    segment::encode_peer(address, ttl)
}

/// Encodes the entry of a file: the hash that the peer's digest sums up, and the registration.
pub(super) fn encode_entry(file: &Registration) -> Vec<u8> {
    let hash = SetDigest::from_iter([file]).to_bytes();
    let mut entry = hash.to_vec();
    entry.extend(segment::encode_entry(file));
    entry
}

/// Parses the entry of a file.
pub(super) fn decode_entry(entry: &[u8]) -> Result<Registration, StoreError> {
    let damaged = || StoreError::Damaged("the entry of a file is malformed".to_owned());
    let (_, registration) = entry.split_at_checked(HASH).ok_or_else(damaged)?;
    segment::decode_entry(registration)
}

/// A change, as the stream of a tag carries it.
#[derive(Clone, PartialEq, prost::Message)]
struct ChangeMessage {
    #[prost(bytes = "vec", tag = "1")]
    peer: Vec<u8>,
    /// Address and lease; only of a registration.
    #[prost(bytes = "vec", tag = "2")]
    record: Vec<u8>,
    #[prost(bool, tag = "3")]
    replace: bool,
    #[prost(bytes = "vec", repeated, tag = "4")]
    entries: Vec<Vec<u8>>,
    /// Files whose entries must be read, or which were removed.
    #[prost(bytes = "vec", repeated, tag = "5")]
    files: Vec<Vec<u8>>,
    /// Whether the peer was removed.
    #[prost(bool, tag = "6")]
    forget: bool,
}

/// A change as read from a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StreamedChange {
    /// The whole change.
    Whole(Change),
    /// A registration whose entries must be read first.
    Listed {
        peer: PeerRecord,
        files: Vec<FileId>,
        replace: bool,
    },
}

impl StreamedChange {
    /// The peer that changes.
    pub(super) const fn peer(&self) -> &PeerId {
        match self {
            Self::Whole(change) => change.peer(),
            Self::Listed { peer, .. } => &peer.id,
        }
    }
}

/// Encodes a change for the stream.
pub(super) fn encode_change(change: &Change, entries: &[Vec<u8>]) -> Vec<u8> {
    let message = ChangeMessage {
        peer: change.peer().0.to_vec(),
        ..ChangeMessage::default()
    };
    let ids = |files: &[FileId]| files.iter().map(|file| file.0.to_vec()).collect();
    let message = match change {
        Change::Register {
            peer, files, replace, ..
        } => {
            let is_inline = entries.iter().map(Vec::len).sum::<usize>() <= MAX_INLINE;
            let listed = || files.iter().map(|file| file.file.id.0.to_vec()).collect();
            ChangeMessage {
                record: encode_record(&peer.address, peer.ttl),
                replace: *replace,
                entries: if is_inline { entries.to_vec() } else { Vec::new() },
                files: if is_inline { Vec::new() } else { listed() },
                ..message
            }
        }
        Change::Unregister { files, .. } => ChangeMessage {
            files: ids(files),
            ..message
        },
        Change::Forget { .. } | Change::Expire { .. } => ChangeMessage {
            forget: true,
            ..message
        },
    };
    message.encode_to_vec()
}

/// Parses a change of the stream.
pub(super) fn decode_change(bytes: &[u8]) -> Result<StreamedChange, StoreError> {
    let damaged = || StoreError::Damaged("a change in a stream is malformed".to_owned());
    let message = ChangeMessage::decode(bytes).map_err(|_| damaged())?;
    let peer = PeerId::try_from(&*message.peer).map_err(|_| damaged())?;
    let files = message.files.iter().map(|file| FileId::try_from(&**file));
    let listed = files.collect::<Result<Vec<_>, _>>().map_err(|_| damaged())?;
    if message.forget {
        return Ok(StreamedChange::Whole(Change::Forget { peer }));
    }
    if message.record.is_empty() {
        let files = listed;
        return Ok(StreamedChange::Whole(Change::Unregister { peer, files }));
    }
    let (address, ttl) = segment::decode_peer(&message.record)?;
    let peer = PeerRecord {
        id: peer,
        address,
        ttl,
    };
    let replace = message.replace;
    if !listed.is_empty() {
        return Ok(StreamedChange::Listed {
            peer,
            files: listed,
            replace,
        });
    }
    let entries = message.entries.iter().map(|entry| decode_entry(entry));
    Ok(StreamedChange::Whole(Change::Register {
        peer,
        files: entries.collect::<Result<_, _>>()?,
        new: 0,
        replace,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract::{peer, registration};

    fn encoded(change: &Change) -> Vec<u8> {
        let entries: Vec<Vec<u8>> = match change {
            Change::Register { files, .. } => files.iter().map(encode_entry).collect(),
            _ => Vec::new(),
        };
        encode_change(change, &entries)
    }

    fn register(count: u64) -> Change {
        Change::Register {
            peer: peer(1),
            files: (0..count).map(|n| registration(n, "a.bin")).collect(),
            new: 0,
            replace: true,
        }
    }

    #[test]
    fn changes_round_trip() {
        let files = vec![registration(1, "a").file.id];
        let id = peer(1).id;
        for change in [
            register(0),
            register(3),
            Change::Unregister { peer: id, files },
            Change::Forget { peer: id },
        ] {
            let decoded = decode_change(&encoded(&change)).unwrap();
            assert_eq!(decoded, StreamedChange::Whole(change));
        }
    }

    #[test]
    fn a_large_change_lists_its_files() {
        let bytes = encoded(&register(5000));
        assert!(bytes.len() < 5000 * 40);
        let StreamedChange::Listed { files, replace, .. } = decode_change(&bytes).unwrap() else {
            panic!("it is large");
        };
        assert_eq!((files.len(), replace), (5000, true));
    }

    #[test]
    fn malformed_values_are_damage() {
        assert!(PeerRow::decode(peer(1).id, &[0; 40]).is_err());
        assert!(decode_entry(&[0; 31]).is_err());
        assert!(decode_entry(&[0xff; 60]).is_err());
        assert!(decode_change(&[0xff; 60]).is_err());
        assert!(decode_change(&[]).is_err());
    }
}
