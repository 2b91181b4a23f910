//! Segments: encoded groups of a peer's registrations, each stored under one key. Pure.
//!
//! A peer's segments are read in order; the last entry for a file is valid. Within one segment,
//! each file occurs once. The encoding is protobuf, so that later versions can add fields. File ids
//! are not stored, because they follow from size and root.
#![deny(
    clippy::disallowed_methods,
    reason = "pure: time, randomness and I/O come in from outside"
)]

use std::time::Duration;

use hashbrown::HashMap;
use potluck_core::{
    FileId, Root, Sha256,
    model::{Address, FileKind, FileRecord, Registration},
};
use prost::{Message as _, encoding::message::encoded_len};

use crate::store::StoreError;

/// Maximum size of a segment, in bytes. sled writes up to 16 neighbouring values as one page, and
/// moves pages beyond 128 KiB into separate files; 16 segments stay well below.
pub(crate) const SEGMENT_BYTES: usize = 4096;

/// Field number of `SegmentMessage.entries`.
const ENTRIES: u32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct SegmentMessage {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<EntryMessage>,
}

/// A registration, or, if only `removed` is set, the removal of one.
#[derive(Clone, PartialEq, prost::Message)]
struct EntryMessage {
    #[prost(bytes = "vec", tag = "1")]
    root: Vec<u8>,
    #[prost(uint64, tag = "2")]
    size: u64,
    #[prost(bytes = "vec", tag = "3")]
    sha256: Vec<u8>,
    #[prost(bool, tag = "4")]
    collection: bool,
    #[prost(bool, tag = "5")]
    partial: bool,
    #[prost(string, repeated, tag = "6")]
    names: Vec<String>,
    #[prost(bytes = "vec", tag = "7")]
    removed: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PeerMessage {
    #[prost(string, tag = "1")]
    host: String,
    #[prost(uint32, tag = "2")]
    port: u32,
    #[prost(uint64, tag = "3")]
    ttl_ms: u64,
}

/// A file with its registration, or with `None` if it was removed.
pub(crate) type SegmentEntry = (FileId, Option<Registration>);

/// Encodes entries into segments, in order. A segment exceeds [`SEGMENT_BYTES`] only if its single
/// entry does. A new segment begins only when the next entry does not fit, so entries that fit one
/// segment yield one.
pub(crate) fn encode<'a>(
    entries: impl IntoIterator<Item = (FileId, Option<&'a Registration>)>,
) -> Vec<EncodedSegment> {
    let mut segments = Vec::new();
    let mut message = SegmentMessage::default();
    let mut bytes = 0;
    let mut finish = |message: &mut SegmentMessage, bytes: &mut usize| {
        if !message.entries.is_empty() {
            let entries = message.entries.len();
            segments.push(EncodedSegment {
                bytes: std::mem::take(message).encode_to_vec(),
                entries,
            });
            *bytes = 0;
        }
    };
    for (id, registration) in entries {
        let entry = EntryMessage::new(id, registration);
        let size = encoded_len(ENTRIES, &entry);
        if bytes + size > SEGMENT_BYTES {
            finish(&mut message, &mut bytes);
        }
        bytes += size;
        message.entries.push(entry);
    }
    finish(&mut message, &mut bytes);
    segments
}

/// An encoded segment with its number of entries.
#[derive(Debug)]
pub(crate) struct EncodedSegment {
    pub(crate) bytes: Vec<u8>,
    pub(crate) entries: usize,
}

/// Decodes the entries of a segment.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<SegmentEntry>, StoreError> {
    let message =
        SegmentMessage::decode(bytes).map_err(|error| StoreError::Damaged(error.to_string()))?;
    message
        .entries
        .into_iter()
        .map(EntryMessage::into_entry)
        .collect()
}

/// Merges the entries of a peer's segments; later entries replace earlier ones.
pub(crate) fn fold(
    segments: impl IntoIterator<Item = Result<Vec<SegmentEntry>, StoreError>>,
) -> Result<HashMap<FileId, Option<Registration>>, StoreError> {
    let mut files = HashMap::new();
    for segment in segments {
        files.extend(segment?);
    }
    Ok(files)
}

impl EntryMessage {
    fn new(id: FileId, registration: Option<&Registration>) -> Self {
        let Some(registration) = registration else {
            return Self {
                removed: id.0.to_vec(),
                ..Self::default()
            };
        };
        let Registration {
            file,
            names,
            is_complete,
        } = registration;
        Self {
            root: file.root.0.to_vec(),
            size: file.size,
            sha256: file.sha256.map(|sum| sum.0.to_vec()).unwrap_or_default(),
            collection: file.kind == FileKind::Collection,
            partial: !is_complete,
            names: names.clone(),
            removed: Vec::new(),
        }
    }

    fn into_entry(self) -> Result<SegmentEntry, StoreError> {
        let damaged =
            |error: potluck_core::identity::id::IdError| StoreError::Damaged(error.to_string());
        if !self.removed.is_empty() {
            return Ok((FileId::try_from(&*self.removed).map_err(damaged)?, None));
        }
        let root = Root::try_from(&*self.root).map_err(damaged)?;
        let id = FileId::derive(self.size, &root);
        let sha256 = match self.sha256.is_empty() {
            true => None,
            false => Some(Sha256::try_from(&*self.sha256).map_err(damaged)?),
        };
        let kind = if self.collection {
            FileKind::Collection
        } else {
            FileKind::File
        };
        let file = FileRecord {
            id,
            size: self.size,
            root,
            sha256,
            kind,
        };
        Ok((
            id,
            Some(Registration {
                file,
                names: self.names,
                is_complete: !self.partial,
            }),
        ))
    }
}

/// Encodes a peer's address and lease.
pub(crate) fn encode_peer(address: &Address, ttl: Duration) -> Vec<u8> {
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    PeerMessage {
        host: address.host.clone(),
        port: address.port.into(),
        ttl_ms,
    }
    .encode_to_vec()
}

/// Decodes a peer's address and lease.
pub(crate) fn decode_peer(bytes: &[u8]) -> Result<(Address, Duration), StoreError> {
    let peer =
        PeerMessage::decode(bytes).map_err(|error| StoreError::Damaged(error.to_string()))?;
    let port = u16::try_from(peer.port)
        .map_err(|_| StoreError::Damaged("a port over 65535".to_owned()))?;
    Ok((
        Address {
            host: peer.host,
            port,
        },
        Duration::from_millis(peer.ttl_ms),
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::contract::registration;

    fn encode_files(files: &[Registration]) -> Vec<EncodedSegment> {
        encode(files.iter().map(|file| (file.file.id, Some(file))))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn a_segment_is_full_to_the_byte(
            lengths in prop::collection::vec((1..=16usize, 1..=255usize), 1..40),
        ) {
            let files: Vec<Registration> = (0..)
                .zip(&lengths)
                .map(|(n, &(names, length))| Registration {
                    names: vec!["x".repeat(length); names],
                    ..registration(n, "")
                })
                .collect();
            let segments = encode_files(&files);
            let mut rest = &files[..];
            for (at, segment) in segments.iter().enumerate() {
                let (encoded, after) = rest.split_at(segment.entries);
                let size = |file: &Registration| {
                    encoded_len(ENTRIES, &EntryMessage::new(file.file.id, Some(file)))
                };
                prop_assert_eq!(segment.bytes.len(), encoded.iter().map(size).sum::<usize>());
                prop_assert!(segment.bytes.len() <= SEGMENT_BYTES || segment.entries == 1);
                prop_assert_eq!(at + 1 == segments.len(), after.is_empty());
                if let Some(next) = after.first() {
                    let bytes = segment.bytes.len() + size(next);
                    prop_assert!(bytes > SEGMENT_BYTES, "another entry fits");
                }
                rest = after;
            }
        }
    }
}
