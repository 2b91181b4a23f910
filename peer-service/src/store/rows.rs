//! Rows of the database as bytes. Pure.
//!
//! Invariant: what is read back is what was written, or nothing.

use std::path::{Path, PathBuf};

use potluck_core::{
    FileId, Root, Sha256,
    index_client::{FileRecord, Kind},
};

/// What a file's `stat` says: any change of its bytes shows in at least one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Stamp {
    /// Size in bytes.
    pub size: u64,
    /// Time of the last change of its bytes, in nanoseconds since 1970; the owner can set it.
    pub mtime: i64,
    /// Its number in the file system.
    pub inode: u64,
    /// Time of the last change of anything, in nanoseconds since 1970; nobody can set it.
    pub ctime: i64,
}

/// Length of a stamp on disk, in bytes.
const STAMP_LEN: usize = 32;

impl Stamp {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.mtime.to_le_bytes());
        out.extend_from_slice(&self.inode.to_le_bytes());
        out.extend_from_slice(&self.ctime.to_le_bytes());
    }

    fn read(bytes: &[u8; STAMP_LEN]) -> Self {
        let (words, _) = bytes.as_chunks::<8>();
        Self {
            size: u64::from_le_bytes(words[0]),
            mtime: i64::from_le_bytes(words[1]),
            inode: u64::from_le_bytes(words[2]),
            ctime: i64::from_le_bytes(words[3]),
        }
    }
}

/// Something that is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ItemRow {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Its id: the file's, or the manifest's.
    pub(crate) id: FileId,
    /// A file's stamp, or those of a collection's entries in the manifest's order.
    pub(crate) stamps: Stamps,
}

/// The stamps of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stamps {
    /// A file's.
    File(Stamp),
    /// A collection's entries', in order.
    Collection(Vec<Stamp>),
}

pub(super) fn bytes_of(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

pub(super) fn path_of(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    std::ffi::OsStr::from_bytes(bytes).into()
}

/// `0`, id, stamp, path for a file; `1`, id, path for a collection.
pub(super) fn encode_item(row: &ItemRow) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + 32 + STAMP_LEN + row.path.as_os_str().len());
    out.push(u8::from(matches!(row.stamps, Stamps::Collection(_))));
    out.extend_from_slice(row.id.as_bytes());
    if let Stamps::File(stamp) = &row.stamps {
        stamp.write(&mut out);
    }
    out.extend_from_slice(bytes_of(&row.path));
    out
}

pub(super) fn decode_item(bytes: &[u8]) -> Option<(PathBuf, FileId, Option<Stamp>)> {
    let (&kind, rest) = bytes.split_first()?;
    let (id, rest) = rest.split_first_chunk::<32>()?;
    let (stamp, rest) = match kind {
        0 => {
            let (stamp, rest) = rest.split_first_chunk::<STAMP_LEN>()?;
            (Some(Stamp::read(stamp)), rest)
        }
        1 => (None, rest),
        _ => return None,
    };
    let path = path_of(rest);
    path.is_absolute().then_some((path, FileId(*id), stamp))
}

pub(super) fn encode_stamps(stamps: &[Stamp]) -> Vec<u8> {
    let mut out = Vec::with_capacity(stamps.len() * STAMP_LEN);
    for stamp in stamps {
        stamp.write(&mut out);
    }
    out
}

pub(super) fn decode_stamps(bytes: &[u8]) -> Vec<Stamp> {
    bytes.as_chunks::<STAMP_LEN>().0.iter().map(Stamp::read).collect()
}

/// Size, root, kind, and the SHA-256 where it is known.
pub(super) fn encode_record(record: &FileRecord) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + 32 + 1 + 32);
    out.extend_from_slice(&record.size.to_le_bytes());
    out.extend_from_slice(record.root.as_bytes());
    out.push(u8::from(record.kind == Kind::Collection));
    if let Some(sha256) = &record.sha256 {
        out.extend_from_slice(sha256.as_bytes());
    }
    out
}

pub(super) fn decode_record(id: FileId, bytes: &[u8]) -> Option<FileRecord> {
    let (size, rest) = bytes.split_first_chunk::<8>()?;
    let (root, rest) = rest.split_first_chunk::<32>()?;
    let (&kind, rest) = rest.split_first()?;
    let (size, root) = (u64::from_le_bytes(*size), Root(*root));
    // What an id commits to is checked wherever it comes from.
    if FileId::derive(size, &root) != id {
        return None;
    }
    Some(FileRecord {
        id,
        size,
        root,
        sha256: Sha256::try_from(rest).ok(),
        kind: if kind == 1 { Kind::Collection } else { Kind::File },
    })
}
