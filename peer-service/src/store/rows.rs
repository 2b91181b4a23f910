//! Encodes and decodes database rows. Pure.
//!
//! Invariant: a row decodes to the encoded value, or not at all.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use potluck_core::{FileId, Root, collection::path::Label};

use crate::catalog::{
    row::{ItemRow, Members, RowBody},
    share_options::{LinkPolicy, ShareOptions},
    stamp::Stamp,
};

/// Encoded length of a stamp, in bytes.
const STAMP_LEN: usize = 32;

/// Collection entries per row: with the database's overhead, slightly less than 64 KiB, because its
/// page sizes are powers of two.
pub(crate) const MEMBERS_PER_ROW: usize = 1000;

/// Encoded length of an entry, in bytes.
const MEMBER_LEN: usize = STAMP_LEN + 32;

/// The rows of a collection's members, in order, with the stamp and root of each entry.
pub(crate) fn encode_members(members: &Members) -> impl Iterator<Item = Vec<u8>> {
    let rows = members
        .stamps
        .chunks(MEMBERS_PER_ROW)
        .zip(members.roots.chunks(MEMBERS_PER_ROW));
    rows.map(|(stamps, roots)| {
        let mut out = Vec::with_capacity(stamps.len() * MEMBER_LEN);
        for (stamp, root) in stamps.iter().zip(roots) {
            encode_stamp(stamp, &mut out);
            out.extend_from_slice(root.as_bytes());
        }
        out
    })
}

/// Appends the entries of the next row; false if the row is damaged.
pub(crate) fn add_members(members: &mut Members, row: &[u8]) -> bool {
    let (entries, rest) = row.as_chunks::<MEMBER_LEN>();
    // Exact reservation: growing by doubling could take twice the memory.
    members.stamps.reserve_exact(entries.len());
    members.roots.reserve_exact(entries.len());
    for entry in entries {
        let (stamp, root) = entry.split_at(STAMP_LEN);
        let (Ok(stamp), Ok(root)) = (stamp.try_into(), Root::try_from(root)) else {
            return false;
        };
        members.stamps.push(decode_stamp(stamp));
        members.roots.push(root);
    }
    rest.is_empty()
}

fn encode_stamp(stamp: &Stamp, out: &mut Vec<u8>) {
    out.extend_from_slice(&stamp.size.to_le_bytes());
    out.extend_from_slice(&stamp.mtime.to_le_bytes());
    out.extend_from_slice(&stamp.inode.to_le_bytes());
    out.extend_from_slice(&stamp.ctime.to_le_bytes());
}

fn decode_stamp(bytes: &[u8; STAMP_LEN]) -> Stamp {
    let (words, _) = bytes.as_chunks::<8>();
    Stamp {
        size: u64::from_le_bytes(words[0]),
        mtime: i64::from_le_bytes(words[1]),
        inode: u64::from_le_bytes(words[2]),
        ctime: i64::from_le_bytes(words[3]),
    }
}

pub(crate) fn bytes_of(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

pub(crate) fn path_of(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    std::ffi::OsStr::from_bytes(bytes).into()
}

/// Flag in the first byte of an item's row: the item is a download that its owner did not ask to
/// share.
const UNREQUESTED: u8 = 2;

/// Flag in the first byte of an item's row: a label follows the id, after one byte with its length.
const LABELLED: u8 = 4;

/// Flag in the first byte of an item's row: share options follow the id and the label.
const WITH_OPTIONS: u8 = 8;

/// Bits in the first byte of share options: the link policy, and whether the share is strict.
const FOLLOW_LINKS: u8 = 1;
const SKIP_LINKS: u8 = 2;
const STRICT: u8 = 4;

/// Appends share options: a byte of flags, the number of patterns, and each pattern with its
/// length. Numbers are `u32`, little-endian.
fn encode_options(options: &ShareOptions, out: &mut Vec<u8>) {
    let links = match options.links {
        LinkPolicy::Keep => 0,
        LinkPolicy::Follow => FOLLOW_LINKS,
        LinkPolicy::Skip => SKIP_LINKS,
    };
    out.push(links | if options.is_strict { STRICT } else { 0 });
    // Fits: a message of the control service is smaller.
    out.extend_from_slice(&(options.exclude.len() as u32).to_le_bytes());
    for pattern in &options.exclude {
        out.extend_from_slice(&(pattern.len() as u32).to_le_bytes());
        out.extend_from_slice(pattern.as_bytes());
    }
}

/// Decodes share options; returns the rest of the row.
fn decode_options(bytes: &[u8]) -> Option<(ShareOptions, &[u8])> {
    fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
        let (number, rest) = bytes.split_first_chunk::<4>()?;
        Some((u32::from_le_bytes(*number), rest))
    }
    let (&flags, rest) = bytes.split_first()?;
    let (count, mut rest) = number(rest)?;
    let links = match flags & !STRICT {
        0 => LinkPolicy::Keep,
        FOLLOW_LINKS => LinkPolicy::Follow,
        SKIP_LINKS => LinkPolicy::Skip,
        _ => return None,
    };
    let mut exclude = Vec::new();
    for _ in 0..count {
        let (len, after) = number(rest)?;
        let (pattern, after) = after.split_at_checked(len as usize)?;
        exclude.push(std::str::from_utf8(pattern).ok()?.to_owned());
        rest = after;
    }
    let options = ShareOptions {
        links,
        is_strict: flags & STRICT != 0,
        exclude,
    };
    Some((options, rest))
}

/// Encodes an item. The first byte is 0 for a file or 1 for a collection, plus [`UNREQUESTED`],
/// [`LABELLED`] and [`WITH_OPTIONS`]. A file has the id, root, stamp and path; a collection has the
/// id, root and path.
pub(crate) fn encode_item(row: &ItemRow) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + 2 * 32 + STAMP_LEN + row.path.as_os_str().len());
    let kind = u8::from(matches!(row.body, RowBody::Collection(_)));
    let label = row.label.as_ref().map(|label| label.as_str().as_bytes());
    // A label has at most 255 bytes.
    let label = label.and_then(|label| Some((u8::try_from(label.len()).ok()?, label)));
    let unrequested = if row.is_unrequested { UNREQUESTED } else { 0 };
    let labelled = if label.is_some() { LABELLED } else { 0 };
    let with_options = if row.options.is_some() { WITH_OPTIONS } else { 0 };
    out.push(kind | unrequested | labelled | with_options);
    out.extend_from_slice(row.id.as_bytes());
    if let Some((len, label)) = label {
        out.push(len);
        out.extend_from_slice(label);
    }
    if let Some(options) = &row.options {
        encode_options(options, &mut out);
    }
    out.extend_from_slice(row.root.as_bytes());
    if let RowBody::File(stamp) = &row.body {
        encode_stamp(stamp, &mut out);
    }
    out.extend_from_slice(bytes_of(&row.path));
    out
}

/// Decodes an item; a collection without its members. `None` if the row is malformed.
pub(crate) fn decode_item(bytes: &[u8]) -> Option<ItemRow> {
    let (&kind, rest) = bytes.split_first()?;
    let (id, rest) = rest.split_first_chunk::<32>()?;
    let (label, rest) = match kind & LABELLED {
        0 => (None, rest),
        _ => {
            let (&len, rest) = rest.split_first()?;
            let (label, rest) = rest.split_at_checked(len.into())?;
            let label = Label::parse(std::str::from_utf8(label).ok()?).ok()?;
            (Some(label), rest)
        }
    };
    let (options, rest) = match kind & WITH_OPTIONS {
        0 => (None, rest),
        _ => {
            let (options, rest) = decode_options(rest)?;
            (Some(Arc::new(options)), rest)
        }
    };
    let (root, rest) = rest.split_first_chunk::<32>()?;
    let (body, rest) = match kind & !(UNREQUESTED | LABELLED | WITH_OPTIONS) {
        0 => {
            let (stamp, rest) = rest.split_first_chunk::<STAMP_LEN>()?;
            (RowBody::File(decode_stamp(stamp)), rest)
        }
        1 => (RowBody::Collection(Arc::default()), rest),
        _ => return None,
    };
    let path = path_of(rest);
    path.is_absolute().then(|| ItemRow {
        path: path.into(),
        is_unrequested: kind & UNREQUESTED != 0,
        label,
        options,
        id: FileId(*id),
        root: Root(*root),
        body,
    })
}

/// Converts a row of the first version. The root is zero, so that the item is hashed again.
pub(crate) fn from_first_version(bytes: &[u8]) -> Option<Vec<u8>> {
    let (head, rest) = bytes.split_at_checked(1 + 32)?;
    Some([head, &[0; 32], rest].concat())
}
