//! The canonical encoding of manifest entries, as `potluck.v1.Manifest`.
//!
//! Protobuf lets a writer reorder, repeat, pad or spell out fields. Here each field has a fixed
//! position and its shortest form, so that equal entries have equal bytes. Invariant:
//! [`decode_entry`] accepts only what [`encode_entry`] writes. The caller checks the path.

use crate::{
    FileId,
    collection::{
        manifest::entry::{EntryContent, ManifestEntry},
        path::RelPath,
    },
    identity::id::LEN,
};

/// First bytes of every manifest.
pub const MAGIC: &[u8; 8] = b"PLCOLL1\n";

// Field keys: number and wire type (2: length-delimited, 0: varint).

/// `Manifest.entries`.
const ENTRY: u8 = 1 << 3 | 2;
/// `ManifestEntry.path`.
const PATH: u8 = 1 << 3 | 2;
/// `ManifestEntry.file`, `.directory` and `.link`.
const FILE: u8 = 2 << 3 | 2;
const DIRECTORY: u8 = 3 << 3 | 2;
const LINK: u8 = 4 << 3 | 2;
/// `ManifestFile.file_id`, `.size` and `.executable`.
const FILE_ID: u8 = 1 << 3 | 2;
const SIZE: u8 = 2 << 3;
const EXECUTABLE: u8 = 3 << 3;
/// `ManifestLink.target`.
const TARGET: u8 = 1 << 3 | 2;

/// Appends the encoding of an entry.
pub(crate) fn encode_entry(entry: &ManifestEntry<'_>, bytes: &mut Vec<u8>) {
    let path = entry.path.as_str();
    let body = match entry.content {
        EntryContent::File { size, executable, .. } => {
            let size = if size == 0 { 0 } else { 1 + varint_len(size) };
            2 + LEN + size + 2 * usize::from(executable)
        }
        EntryContent::EmptyDirectory => 0,
        EntryContent::Link { target: "" } => 0,
        EntryContent::Link { target } => field_len(target.len()),
    };
    bytes.push(ENTRY);
    encode_varint((field_len(path.len()) + field_len(body)) as u64, bytes);
    encode_text(PATH, path, bytes);
    match entry.content {
        EntryContent::File { id, size, executable } => {
            encode_key(FILE, body, bytes);
            encode_key(FILE_ID, LEN, bytes);
            bytes.extend_from_slice(id.as_bytes());
            if size != 0 {
                bytes.push(SIZE);
                encode_varint(size, bytes);
            }
            if executable {
                bytes.extend_from_slice(&[EXECUTABLE, 1]);
            }
        }
        EntryContent::EmptyDirectory => encode_key(DIRECTORY, body, bytes),
        EntryContent::Link { target } => {
            encode_key(LINK, body, bytes);
            if !target.is_empty() {
                encode_text(TARGET, target, bytes);
            }
        }
    }
}

/// Decodes the first entry of `bytes` and returns the rest. `None` if it is not canonical. Does
/// not check the path.
pub(crate) fn decode_entry(bytes: &[u8]) -> Option<(ManifestEntry<'_>, &[u8])> {
    let (entry, after) = decode_field(ENTRY, bytes)?;
    let (path, rest) = decode_text(PATH, entry)?;
    let content = decode_content(rest)?;
    let path = RelPath::unchecked(path);
    Some((ManifestEntry { path, content }, after))
}

/// The path of a valid entry.
pub(crate) fn entry_path(bytes: &[u8]) -> &[u8] {
    let path = decode_field(ENTRY, bytes).and_then(|(entry, _)| decode_field(PATH, entry));
    path.map_or(&[], |(path, _)| path)
}

/// The content of a valid entry.
pub(crate) fn entry_content(bytes: &[u8]) -> Option<EntryContent<'_>> {
    let (entry, _) = decode_field(ENTRY, bytes)?;
    let (_, rest) = decode_field(PATH, entry)?;
    decode_content(rest)
}

fn decode_content(bytes: &[u8]) -> Option<EntryContent<'_>> {
    let (&key, _) = bytes.split_first()?;
    let (body, []) = decode_field(key, bytes)? else {
        return None;
    };
    match key {
        FILE => decode_file(body),
        DIRECTORY if body.is_empty() => Some(EntryContent::EmptyDirectory),
        LINK if body.is_empty() => Some(EntryContent::Link { target: "" }),
        LINK => match decode_text(TARGET, body)? {
            ("", _) => None,
            (target, []) => Some(EntryContent::Link { target }),
            _ => None,
        },
        _ => None,
    }
}

fn decode_file(body: &[u8]) -> Option<EntryContent<'_>> {
    let (id, mut rest) = decode_field(FILE_ID, body)?;
    let id = FileId::try_from(id).ok()?;
    let mut size = 0;
    if let [SIZE, after @ ..] = rest {
        (size, rest) = decode_varint(after)?;
        // Zero must be omitted.
        if size == 0 {
            return None;
        }
    }
    let executable = match rest {
        [] => false,
        [EXECUTABLE, 1] => true,
        _ => return None,
    };
    Some(EntryContent::File { id, size, executable })
}

fn varint_len(number: u64) -> usize {
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

fn field_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

fn encode_varint(mut number: u64, bytes: &mut Vec<u8>) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn encode_key(key: u8, len: usize, bytes: &mut Vec<u8>) {
    bytes.push(key);
    encode_varint(len as u64, bytes);
}

fn encode_text(key: u8, text: &str, bytes: &mut Vec<u8>) {
    encode_key(key, text.len(), bytes);
    bytes.extend_from_slice(text.as_bytes());
}

/// Decodes a varint in its shortest form.
fn decode_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    // Fast path for one byte.
    if let [byte @ ..0x80, rest @ ..] = bytes {
        return Some((u64::from(*byte), rest));
    }
    let mut number = 0_u64;
    for (index, &byte) in bytes.iter().enumerate().take(10) {
        let part = u64::from(byte & 0x7f);
        number |= part.checked_shl(7 * index as u32)?;
        // The tenth byte has one significant bit.
        if index == 9 && byte > 1 {
            return None;
        }
        if byte < 0x80 {
            return (byte != 0 || index == 0).then_some((number, &bytes[index + 1..]));
        }
    }
    None
}

fn decode_field(key: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    if found != key {
        return None;
    }
    let (len, rest) = decode_varint(rest)?;
    rest.split_at_checked(usize::try_from(len).ok()?)
}

fn decode_text(key: u8, bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (text, rest) = decode_field(key, bytes)?;
    Some((std::str::from_utf8(text).ok()?, rest))
}
