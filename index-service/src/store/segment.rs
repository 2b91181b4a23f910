//! Segments: encoded groups of a peer's registrations, each stored under one key. Pure.
//!
//! A peer's segments are read in order; the last entry for a file is valid, also within one segment.
//! The encoding is protobuf, so that later versions can add fields, and so that two segments can be
//! joined by appending their bytes. File ids are not stored, because they follow from size and root.
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
use prost::{
    DecodeError, Message as _,
    encoding::{
        DecodeContext, WireType, check_wire_type, decode_key, decode_varint, encode_key,
        encode_varint, encoded_len_varint, key_len, skip_field,
    },
};

use smallvec::SmallVec;

use crate::{
    registration::RegistrationRef,
    store::{StoreError, packed::PackedEntries},
};

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
    /// The root is not known: it is the SHA-256 instead.
    #[prost(bool, tag = "8")]
    provisional: bool,
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
    let mut segment = EncodedSegment::default();
    for (id, registration) in entries {
        let entry = EntryFields::new(&id, registration);
        let len = entry.encoded_len();
        let size = key_len(ENTRIES) + encoded_len_varint(len as u64) + len;
        if segment.entries > 0 && segment.bytes.len() + size > SEGMENT_BYTES {
            segments.push(std::mem::take(&mut segment));
        }
        segment.bytes.reserve_exact(match segment.entries {
            // Most changes add one file.
            0 => size,
            1 => SEGMENT_BYTES - segment.bytes.len(),
            _ => 0,
        });
        encode_key(ENTRIES, WireType::LengthDelimited, &mut segment.bytes);
        encode_varint(len as u64, &mut segment.bytes);
        entry.encode(&mut segment.bytes);
        segment.entries += 1;
    }
    if segment.entries > 0 {
        segment.bytes.shrink_to_fit();
        segments.push(segment);
    }
    segments
}

/// The fields of an [`EntryMessage`], which this encodes as `prost` does, without copies of them.
struct EntryFields<'a> {
    root: &'a [u8],
    size: u64,
    sha256: &'a [u8],
    collection: bool,
    partial: bool,
    names: &'a [String],
    removed: &'a [u8],
    provisional: bool,
}

impl<'a> EntryFields<'a> {
    fn new(id: &'a FileId, registration: Option<&'a Registration>) -> Self {
        match registration {
            None => Self {
                root: &[],
                size: 0,
                sha256: &[],
                collection: false,
                partial: false,
                names: &[],
                removed: id.as_bytes(),
                provisional: false,
            },
            Some(Registration {
                file,
                names,
                is_complete,
            }) => Self {
                root: &file.root.0,
                size: file.size,
                sha256: match &file.sha256 {
                    Some(sum) => &sum.0,
                    None => &[],
                },
                collection: file.kind == FileKind::Collection,
                partial: !is_complete,
                names,
                removed: &[],
                provisional: file.is_provisional(),
            },
        }
    }

    /// Bytes that [`Self::encode`] adds.
    fn encoded_len(&self) -> usize {
        let bytes = |field, bytes: &[u8]| {
            key_len(field) + encoded_len_varint(bytes.len() as u64) + bytes.len()
        };
        let present = |field, value: &[u8]| match value.is_empty() {
            true => 0,
            false => bytes(field, value),
        };
        let flag = |field, is_set: bool| if is_set { key_len(field) + 1 } else { 0 };
        let size = match self.size {
            0 => 0,
            size => key_len(2) + encoded_len_varint(size),
        };
        let names: usize = self.names.iter().map(|name| bytes(6, name.as_bytes())).sum();
        present(1, self.root)
            + size
            + present(3, self.sha256)
            + flag(4, self.collection)
            + flag(5, self.partial)
            + names
            + present(7, self.removed)
            + flag(8, self.provisional)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let bytes = |field, bytes: &[u8], out: &mut Vec<u8>| {
            encode_key(field, WireType::LengthDelimited, out);
            encode_varint(bytes.len() as u64, out);
            out.extend_from_slice(bytes);
        };
        let present = |field, value: &[u8], out: &mut Vec<u8>| {
            if !value.is_empty() {
                bytes(field, value, out);
            }
        };
        let number = |field, value: u64, out: &mut Vec<u8>| {
            if value != 0 {
                encode_key(field, WireType::Varint, out);
                encode_varint(value, out);
            }
        };
        present(1, self.root, out);
        number(2, self.size, out);
        present(3, self.sha256, out);
        number(4, self.collection.into(), out);
        number(5, self.partial.into(), out);
        for name in self.names {
            bytes(6, name.as_bytes(), out);
        }
        present(7, self.removed, out);
        number(8, self.provisional.into(), out);
    }
}

/// An encoded segment with its number of entries.
#[derive(Debug, Default)]
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

/// Passes the entries of a segment to `packed`, as [`decode`] and [`fold`] would, without an
/// allocation for each. Returns the number of entries.
pub(crate) fn unpack(bytes: &[u8], packed: &mut PackedEntries) -> Result<usize, StoreError> {
    let damaged = |error: DecodeError| StoreError::Damaged(error.to_string());
    let (mut rest, mut entries) = (bytes, 0);
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest).map_err(damaged)?;
        if tag == ENTRIES {
            check_wire_type(WireType::LengthDelimited, wire_type).map_err(damaged)?;
            let entry = take_bytes(&mut rest).map_err(damaged)?;
            BorrowedEntry::decode(entry).map_err(damaged)?.add_to(packed)?;
            entries += 1;
        } else {
            skip_field(wire_type, tag, &mut rest, DecodeContext::default()).map_err(damaged)?;
        }
    }
    Ok(entries)
}

/// An [`EntryMessage`] that borrows its fields.
#[derive(Default)]
struct BorrowedEntry<'a> {
    root: &'a [u8],
    size: u64,
    sha256: &'a [u8],
    collection: bool,
    partial: bool,
    names: SmallVec<[&'a str; 2]>,
    removed: &'a [u8],
    provisional: bool,
}

impl<'a> BorrowedEntry<'a> {
    fn decode(mut bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut entry = Self::default();
        while !bytes.is_empty() {
            let (tag, wire_type) = decode_key(&mut bytes)?;
            let expected = match tag {
                1 | 3 | 6 | 7 => WireType::LengthDelimited,
                2 | 4 | 5 | 8 => WireType::Varint,
                _ => {
                    skip_field(wire_type, tag, &mut bytes, DecodeContext::default())?;
                    continue;
                }
            };
            check_wire_type(expected, wire_type)?;
            match tag {
                1 => entry.root = take_bytes(&mut bytes)?,
                2 => entry.size = decode_varint(&mut bytes)?,
                3 => entry.sha256 = take_bytes(&mut bytes)?,
                4 => entry.collection = decode_varint(&mut bytes)? != 0,
                5 => entry.partial = decode_varint(&mut bytes)? != 0,
                6 => entry.names.push(take_text(&mut bytes)?),
                8 => entry.provisional = decode_varint(&mut bytes)? != 0,
                _ => entry.removed = take_bytes(&mut bytes)?,
            }
        }
        Ok(entry)
    }

    fn add_to(self, packed: &mut PackedEntries) -> Result<(), StoreError> {
        let damaged =
            |error: potluck_core::identity::id::IdError| StoreError::Damaged(error.to_string());
        if !self.removed.is_empty() {
            packed.remove(FileId::try_from(self.removed).map_err(damaged)?);
            return Ok(());
        }
        let root = Root::try_from(self.root).map_err(damaged)?;
        let sha256 = match self.sha256.is_empty() {
            true => None,
            false => Some(Sha256::try_from(self.sha256).map_err(damaged)?),
        };
        let file = FileRecord {
            id: id_of(self.provisional, self.size, &root),
            size: self.size,
            root,
            sha256,
            kind: kind_of(self.provisional, self.collection),
        };
        packed.push(&RegistrationRef {
            file: &file,
            names: self.names.iter().copied().collect(),
            is_complete: !self.partial,
        });
        Ok(())
    }
}

/// The id of a file; without a root, `root` is the SHA-256.
fn id_of(provisional: bool, size: u64, root: &Root) -> FileId {
    match provisional {
        true => FileId::provisional(size, &Sha256(root.0)),
        false => FileId::derive(size, root),
    }
}

const fn kind_of(provisional: bool, collection: bool) -> FileKind {
    match (provisional, collection) {
        (true, _) => FileKind::Provisional,
        (false, true) => FileKind::Collection,
        (false, false) => FileKind::File,
    }
}

/// The error of a field whose length or text is wrong, as `prost` reports it.
fn malformed() -> DecodeError {
    String::decode(&[0x0a, 0x01][..]).expect_err("a text without its byte")
}

fn take_bytes<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], DecodeError> {
    let len = usize::try_from(decode_varint(bytes)?).map_err(|_| malformed())?;
    let (taken, rest) = bytes.split_at_checked(len).ok_or_else(malformed)?;
    *bytes = rest;
    Ok(taken)
}

fn take_text<'a>(bytes: &mut &'a [u8]) -> Result<&'a str, DecodeError> {
    std::str::from_utf8(take_bytes(bytes)?).map_err(|_| malformed())
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
            provisional: file.is_provisional(),
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
        let id = id_of(self.provisional, self.size, &root);
        let sha256 = match self.sha256.is_empty() {
            true => None,
            false => Some(Sha256::try_from(&*self.sha256).map_err(damaged)?),
        };
        let kind = kind_of(self.provisional, self.collection);
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

/// Encodes one registration.
pub(crate) fn encode_entry(registration: &Registration) -> Vec<u8> {
    EntryMessage::new(registration.file.id, Some(registration)).encode_to_vec()
}

/// Decodes one registration.
pub(crate) fn decode_entry(bytes: &[u8]) -> Result<Registration, StoreError> {
    let damaged = |reason: String| StoreError::Damaged(reason);
    let entry = EntryMessage::decode(bytes).map_err(|error| damaged(error.to_string()))?;
    let (_, registration) = entry.into_entry()?;
    registration.ok_or_else(|| damaged("an entry that removes itself".to_owned()))
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
    use prost::encoding::message::encoded_len;

    use super::*;
    use crate::store::{
        contract::{peer, registration},
        packed::{PeerPart, PeerSink as _, StoredPeers},
    };

    fn encode_files(files: &[Registration]) -> Vec<EncodedSegment> {
        encode(files.iter().map(|file| (file.file.id, Some(file))))
    }

    /// What `decode` and `fold` make of a segment.
    fn folded(bytes: &[u8]) -> Option<Vec<Registration>> {
        let files = fold([decode(bytes)]).ok()?;
        let mut files: Vec<Registration> = files.into_values().flatten().collect();
        files.sort_by_key(|file| file.file.id);
        Some(files)
    }

    fn unpacked(bytes: &[u8]) -> Option<Vec<Registration>> {
        let mut entries = PackedEntries::default();
        unpack(bytes, &mut entries).ok()?;
        let mut stored = StoredPeers::default();
        stored.add(&PeerPart {
            record: peer(1),
            is_first: true,
            is_last: true,
            entries,
        });
        let mut files = stored.peers.remove(0).files;
        files.sort_by_key(|file| file.file.id);
        Some(files)
    }

    proptest! {
        #[test]
        fn unpacking_agrees_with_decoding(
            entries in prop::collection::vec(
                (any::<bool>(), 0..4u64, "\\PC{0,8}", any::<bool>(), any::<bool>()),
                0..12,
            ),
            changes in prop::collection::vec((any::<usize>(), any::<u8>()), 0..3),
            cut in any::<Option<usize>>(),
        ) {
            let entries: Vec<SegmentEntry> = entries
                .into_iter()
                .map(|(is_removal, n, name, has_sum, is_complete)| {
                    let mut file = registration(n, &name);
                    file.is_complete = is_complete;
                    file.names.push("another".to_owned());
                    file.file.sha256 = has_sum.then_some(Sha256([7; 32]));
                    (file.file.id, (!is_removal).then_some(file))
                })
                .collect();
            let segments = encode(entries.iter().map(|(id, file)| (*id, file.as_ref())));
            for segment in segments {
                let mut bytes = segment.bytes;
                let decoded = SegmentMessage::decode(&*bytes).unwrap();
                prop_assert_eq!(&decoded.encode_to_vec(), &bytes, "as prost encodes");
                prop_assert_eq!(
                    unpack(&bytes, &mut PackedEntries::default()).ok(),
                    Some(segment.entries)
                );
                prop_assert_eq!(unpacked(&bytes), folded(&bytes));
                // Damaged in a few bytes, or cut.
                for &(at, byte) in &changes {
                    let at = at % bytes.len();
                    bytes[at] = byte;
                }
                bytes.truncate(cut.unwrap_or(usize::MAX) % (bytes.len() + 1));
                prop_assert_eq!(unpacked(&bytes), folded(&bytes));
            }
        }
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
