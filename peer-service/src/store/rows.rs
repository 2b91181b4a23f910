//! Rows of the database as bytes. Pure.
//!
//! Invariant: what is read back is what was written, or nothing.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use potluck_core::{FileId, Root, collection::path::Label};

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

/// What is known of each entry of a collection's manifest, in order; meaningless for those that are no files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Members {
    /// What `stat` said.
    pub(crate) stamps: Vec<Stamp>,
    /// Roots of the trees.
    pub(crate) roots: Vec<Root>,
}

/// Something that is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ItemRow {
    /// Where it is.
    pub(crate) path: Arc<Path>,
    /// Whether it came as a download, and nobody asked for it to be shared.
    pub(crate) downloaded: bool,
    /// What others call it, where that is not what its path ends in.
    pub(crate) label: Option<Label>,
    /// Its id: the file's, or the manifest's.
    pub(crate) id: FileId,
    /// Root of its tree.
    pub(crate) root: Root,
    /// The rest.
    pub(crate) body: RowBody,
}

/// What an item is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RowBody {
    /// A file, and its stamp.
    File(Stamp),
    /// A collection.
    Collection(Arc<Members>),
}

/// Which SHA-256 of an item: of this entry of its manifest, or [`WHOLE_ITEM`].
pub(crate) type EntryIndex = u32;

/// Stands for the item's own file where an entry is expected.
pub(crate) const WHOLE_ITEM: EntryIndex = u32::MAX;

/// Entries of a collection in one row: with what the database puts around it a little less than 64 KiB, as its pages are powers of two.
pub(crate) const MEMBERS_PER_ROW: usize = 1000;

/// Length of an entry in a row, in bytes.
const MEMBER_LEN: usize = STAMP_LEN + 32;

impl Members {
    /// The rows, in order: stamp and root of each entry.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Vec<u8>> {
        let runs = self
            .stamps
            .chunks(MEMBERS_PER_ROW)
            .zip(self.roots.chunks(MEMBERS_PER_ROW));
        runs.map(|(stamps, roots)| {
            let mut out = Vec::with_capacity(stamps.len() * MEMBER_LEN);
            for (stamp, root) in stamps.iter().zip(roots) {
                stamp.write(&mut out);
                out.extend_from_slice(root.as_bytes());
            }
            out
        })
    }

    /// Adds what the next row holds; false where it is damaged.
    pub(crate) fn add(&mut self, row: &[u8]) -> bool {
        let (members, rest) = row.as_chunks::<MEMBER_LEN>();
        // As much as there is, not up to twice as much.
        self.stamps.reserve_exact(members.len());
        self.roots.reserve_exact(members.len());
        for member in members {
            let (stamp, root) = member.split_at(STAMP_LEN);
            let (Ok(stamp), Ok(root)) = (stamp.try_into(), Root::try_from(root)) else {
                return false;
            };
            self.stamps.push(Stamp::read(stamp));
            self.roots.push(root);
        }
        rest.is_empty()
    }
}

pub(crate) fn bytes_of(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

pub(crate) fn path_of(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    std::ffi::OsStr::from_bytes(bytes).into()
}

/// In the first byte of an item's row: that it came as a download.
const DOWNLOADED: u8 = 2;

/// In the first byte of an item's row: that a label follows the id, behind its length in one byte.
const LABELLED: u8 = 4;

/// `0`, id, root, stamp, path for a file; `1`, id, root, path for a collection; [`DOWNLOADED`] more for what came as a download,
/// [`LABELLED`] more for what has a label.
pub(crate) fn encode_item(row: &ItemRow) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + 2 * 32 + STAMP_LEN + row.path.as_os_str().len());
    let kind = u8::from(matches!(row.body, RowBody::Collection(_)));
    let label = row.label.as_ref().map(|label| label.as_str().as_bytes());
    // A label has at most 255 bytes.
    let label = label.and_then(|label| Some((u8::try_from(label.len()).ok()?, label)));
    let downloaded = if row.downloaded { DOWNLOADED } else { 0 };
    out.push(kind | downloaded | if label.is_some() { LABELLED } else { 0 });
    out.extend_from_slice(row.id.as_bytes());
    if let Some((len, label)) = label {
        out.push(len);
        out.extend_from_slice(label);
    }
    out.extend_from_slice(row.root.as_bytes());
    if let RowBody::File(stamp) = &row.body {
        stamp.write(&mut out);
    }
    out.extend_from_slice(bytes_of(&row.path));
    out
}

/// A collection comes without its members.
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
    let (root, rest) = rest.split_first_chunk::<32>()?;
    let (body, rest) = match kind & !(DOWNLOADED | LABELLED) {
        0 => {
            let (stamp, rest) = rest.split_first_chunk::<STAMP_LEN>()?;
            (RowBody::File(Stamp::read(stamp)), rest)
        }
        1 => (RowBody::Collection(Arc::default()), rest),
        _ => return None,
    };
    let path = path_of(rest);
    path.is_absolute().then(|| ItemRow {
        path: path.into(),
        downloaded: kind & DOWNLOADED != 0,
        label,
        id: FileId(*id),
        root: Root(*root),
        body,
    })
}

/// A row of the first version as one of this: without the root, which was elsewhere, so that it is hashed again.
pub(crate) fn from_first_version(bytes: &[u8]) -> Option<Vec<u8>> {
    let (head, rest) = bytes.split_at_checked(1 + 32)?;
    Some([head, &[0; 32], rest].concat())
}
