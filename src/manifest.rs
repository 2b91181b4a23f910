//! The manifest of a collection: a folder as a file with an id of its own.
//!
//! The bytes are [`MAGIC`] and then a `potluck.v1.Manifest` in one canonical encoding (`collection.proto`), so that one folder has
//! one id. Invariants of a [`Manifest`]: entries strictly sorted by path; no entry lies beneath another (so folders listed are
//! empty, and nothing is ever written through a link); links stay inside; sizes, ids and counts fit each other and the limits.
//!
//! Pure. Reading and restoring folders is for the peer.

use prost::Message as _;

use crate::{
    FileId, FileLayout, Problem, Reason,
    merkle::EMPTY_FILE,
    path::{self, MAX_DEPTH, MAX_PATH_LEN, PathError, RelPath},
    plan::{BUNDLE_SIZE, MAX_UNITS},
    proto::v1::{self, manifest_entry::Content as WireContent},
};

/// What a manifest's bytes begin with.
pub const MAGIC: &[u8; 8] = b"PLCOLL1\n";

/// Largest manifest in bytes: what a peer holds in memory to read one. About 700,000 files with paths of usual length.
pub const MAX_MANIFEST_SIZE: u64 = 64 * 1024 * 1024;

/// Most entries, whatever their size in bytes: bounds what reading a manifest costs in memory.
pub const MAX_ENTRIES: usize = 1 << 20;

/// Key of `Manifest.entries` on the wire: field 1, length-delimited.
const ENTRY_KEY: u8 = 1 << 3 | 2;

/// A folder's content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// Everything in the folder at any depth, sorted by path. Made by [`Manifest::new`] or [`Manifest::decode`] only.
    pub entries: Vec<Entry>,
}

/// One file, empty folder or link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path relative to the folder.
    pub path: RelPath,
    /// What stands there.
    pub content: Content,
}

/// What stands at a path of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A regular file.
    File {
        /// Its id.
        id: FileId,
        /// Its size in bytes; the id commits to it.
        size: u64,
        /// Whether its owner may execute it.
        executable: bool,
    },
    /// A folder with nothing in it.
    EmptyDirectory,
    /// A symbolic link.
    Link {
        /// What the link says, kept as it is: relative to the link's own folder.
        target: String,
    },
}

/// Why entries or bytes are no manifest. Paths are shown escaped: they may be hostile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The bytes do not begin with [`MAGIC`].
    #[error("this is no collection: it does not begin as a manifest does")]
    NotAManifest,
    /// The bytes are no message, or not in the one encoding that is allowed.
    #[error("the manifest is damaged or not in canonical form, at byte {at}")]
    NotCanonical {
        /// Offset of the entry at fault.
        at: usize,
    },
    /// A path that no collection may have.
    #[error("`{path}` cannot be in a collection: {error}")]
    Path {
        /// The path, escaped.
        path: String,
        /// What is wrong with it.
        error: PathError,
    },
    /// Two entries of one path.
    #[error("`{path}` is there twice")]
    Duplicate {
        /// The path, escaped.
        path: String,
    },
    /// An entry beneath a file, a link, or a folder that is listed as empty.
    #[error("`{path}` cannot be there: `{parent}` is no folder with content")]
    Conflict {
        /// The path beneath, escaped.
        path: String,
        /// The path above, escaped.
        parent: String,
    },
    /// A link that leads out of the collection, or might.
    #[error("the link `{path}` to `{target}` is not taken: {why}")]
    UnsafeLink {
        /// Where the link is, escaped.
        path: String,
        /// What it says, escaped.
        target: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file's id and size do not fit, or the size is over the limit.
    #[error("the size of `{path}` cannot be right")]
    Size {
        /// The path, escaped.
        path: String,
    },
    /// Over [`MAX_MANIFEST_SIZE`] or [`MAX_ENTRIES`], or more content than a transfer can have units.
    #[error("the folder is too large for one collection ({0}): share its parts")]
    TooLarge(&'static str),
}

impl From<ManifestError> for Problem {
    fn from(error: ManifestError) -> Self {
        let reason = match error {
            ManifestError::Path { .. } | ManifestError::UnsafeLink { .. } => Reason::UnsafePath,
            ManifestError::TooLarge(_) => Reason::OutOfRange,
            _ => Reason::InvalidArgument,
        };
        Self::new(reason, error.to_string())
    }
}

impl Entry {
    /// Whether the entry can be in a collection at all, apart from the others: for whoever lists a folder and names what is
    /// left out.
    ///
    /// # Errors
    /// [`ManifestError::UnsafeLink`] and [`ManifestError::Size`].
    pub fn check(&self) -> Result<(), ManifestError> {
        let path = || shown(self.path.as_str());
        match &self.content {
            Content::File { id, size, .. } => {
                match FileLayout::new(*size).is_none() || (*id == EMPTY_FILE) != (*size == 0) {
                    true => Err(ManifestError::Size { path: path() }),
                    false => Ok(()),
                }
            }
            Content::EmptyDirectory => Ok(()),
            Content::Link { target } => {
                check_link(&self.path, target).map_err(|why| ManifestError::UnsafeLink {
                    path: path(),
                    target: shown(target),
                    why,
                })
            }
        }
    }
}

impl Manifest {
    /// The manifest of these entries, in any order.
    ///
    /// # Errors
    /// Duplicates, entries beneath others, links that may lead out, sizes that do not fit, and whatever is over a limit.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, ManifestError> {
        if entries.len() > MAX_ENTRIES {
            return Err(ManifestError::TooLarge("too many entries"));
        }
        entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].path == pair[1].path) {
            return Err(ManifestError::Duplicate {
                path: shown(pair[0].path.as_str()),
            });
        }
        let mut size = MAGIC.len() as u64;
        for entry in &entries {
            entry.check()?;
            size += encoded_len(entry);
        }
        if size > MAX_MANIFEST_SIZE {
            return Err(ManifestError::TooLarge("its manifest is over 64 MiB"));
        }
        check_nesting(&entries)?;
        check_totals(&entries)?;
        Ok(Self { entries })
    }

    /// The manifest's bytes: the content of the file that is the collection.
    pub fn encode(&self) -> Vec<u8> {
        let size: u64 = self.entries.iter().map(encoded_len).sum();
        let mut bytes = Vec::with_capacity(MAGIC.len() + size as usize);
        bytes.extend_from_slice(MAGIC);
        for entry in &self.entries {
            encode_entry(entry, &mut bytes);
        }
        bytes
    }

    /// The manifest that these bytes are. Nothing but the bytes that [`Manifest::encode`] gives is taken.
    ///
    /// # Errors
    /// See [`ManifestError`]. Memory is bounded by the limits whatever the bytes say.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MAX_MANIFEST_SIZE {
            return Err(ManifestError::TooLarge("its manifest is over 64 MiB"));
        }
        let mut rest = bytes.strip_prefix(MAGIC).ok_or(ManifestError::NotAManifest)?;
        let mut entries: Vec<Entry> = Vec::new();
        let mut again = Vec::new();
        while !rest.is_empty() {
            let at = bytes.len() - rest.len();
            if entries.len() == MAX_ENTRIES {
                return Err(ManifestError::TooLarge("too many entries"));
            }
            let (entry, after) = decode_entry(rest, at)?;
            again.clear();
            encode_entry(&entry, &mut again);
            let sorted = entries.last().is_none_or(|last| last.path < entry.path);
            if !sorted || again != rest[..rest.len() - after.len()] {
                return Err(ManifestError::NotCanonical { at });
            }
            entries.push(entry);
            rest = after;
        }
        Self::new(entries)
    }

    /// How many regular files there are, each path counted.
    pub fn file_count(&self) -> u64 {
        self.sizes().count() as u64
    }

    /// Sum of the files' sizes in bytes, each path counted.
    pub fn content_size(&self) -> u64 {
        self.sizes().sum()
    }

    fn sizes(&self) -> impl Iterator<Item = u64> {
        self.entries.iter().filter_map(|entry| match entry.content {
            Content::File { size, .. } => Some(size),
            _ => None,
        })
    }
}

/// The first entry of `bytes`, which starts at offset `at` of the manifest, and the bytes after it.
fn decode_entry(bytes: &[u8], at: usize) -> Result<(Entry, &[u8]), ManifestError> {
    let damaged = || ManifestError::NotCanonical { at };
    let mut rest = bytes.strip_prefix(&[ENTRY_KEY]).ok_or_else(damaged)?;
    let len = prost::decode_length_delimiter(&mut rest).map_err(|_| damaged())?;
    let (body, after) = rest.split_at_checked(len).ok_or_else(damaged)?;
    let entry = v1::ManifestEntry::decode(body).map_err(|_| damaged())?;
    let path = RelPath::parse(&entry.path).map_err(|error| ManifestError::Path {
        path: shown(&entry.path),
        error,
    })?;
    let content = match entry.content.ok_or_else(damaged)? {
        WireContent::File(file) => Content::File {
            id: FileId::try_from(&file.file_id[..]).map_err(|_| damaged())?,
            size: file.size,
            executable: file.executable,
        },
        WireContent::Directory(v1::ManifestDirectory {}) => Content::EmptyDirectory,
        WireContent::Link(v1::ManifestLink { target }) => Content::Link { target },
    };
    Ok((Entry { path, content }, after))
}

fn to_wire(entry: &Entry) -> v1::ManifestEntry {
    let content = match &entry.content {
        Content::File { id, size, executable } => WireContent::File(v1::ManifestFile {
            file_id: id.to_bytes(),
            size: *size,
            executable: *executable,
        }),
        Content::EmptyDirectory => WireContent::Directory(v1::ManifestDirectory {}),
        Content::Link { target } => WireContent::Link(v1::ManifestLink {
            target: target.clone(),
        }),
    };
    v1::ManifestEntry {
        path: entry.path.as_str().to_owned(),
        content: Some(content),
    }
}

fn encode_entry(entry: &Entry, bytes: &mut Vec<u8>) {
    bytes.push(ENTRY_KEY);
    to_wire(entry)
        .encode_length_delimited(bytes)
        .expect("a Vec grows as needed");
}

fn encoded_len(entry: &Entry) -> u64 {
    let len = to_wire(entry).encoded_len();
    (1 + prost::length_delimiter_len(len) + len) as u64
}

/// Refuses a link that may lead out of the collection, whatever other links there are.
///
/// Every `..` has to come before any name. The folders above a link are real ones, as nothing lies beneath a link, so that
/// leading `..`s go where the text says; a `..` after a name could start from wherever a link of that name leads.
fn check_link(path: &RelPath, target: &str) -> Result<(), &'static str> {
    if target.is_empty() {
        return Err("it says nothing");
    }
    if target.len() > MAX_PATH_LEN {
        return Err("what it says is too long");
    }
    if target.starts_with('/') {
        return Err("it is absolute");
    }
    path::check_characters(target).map_err(|_| "it has control characters or backslashes")?;
    let mut depth = path.components().count() - 1;
    let mut named = false;
    for part in target.split('/').filter(|part| !matches!(*part, "" | ".")) {
        match part {
            ".." if named => return Err("it has `..` after a name"),
            ".." => depth = depth.checked_sub(1).ok_or("it leads out of the collection")?,
            _ => {
                named = true;
                depth += 1;
            }
        }
        if depth > MAX_DEPTH {
            return Err("it leads too deep");
        }
    }
    Ok(())
}

/// Refuses entries beneath others.
fn check_nesting(entries: &[Entry]) -> Result<(), ManifestError> {
    // With '/' below every other character, whatever lies beneath a path comes right after it.
    let folded = |byte: u8| if byte == b'/' { 0 } else { byte };
    let mut paths: Vec<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
    paths.sort_by(|a, b| a.bytes().map(folded).cmp(b.bytes().map(folded)));
    for pair in paths.windows(2) {
        if pair[1]
            .strip_prefix(pair[0])
            .is_some_and(|rest| rest.starts_with('/'))
        {
            return Err(ManifestError::Conflict {
                path: shown(pair[1]),
                parent: shown(pair[0]),
            });
        }
    }
    Ok(())
}

/// Refuses one id with two sizes, and more content than sums and units can count.
fn check_totals(entries: &[Entry]) -> Result<(), ManifestError> {
    let mut sizes = std::collections::HashMap::new();
    let (mut total, mut units) = (0_u64, 0_u64);
    for entry in entries {
        let Content::File { id, size, .. } = entry.content else {
            continue;
        };
        total = total
            .checked_add(size)
            .ok_or(ManifestError::TooLarge("its sizes overflow"))?;
        match sizes.insert(id, size) {
            Some(other) if other != size => {
                return Err(ManifestError::Size {
                    path: shown(entry.path.as_str()),
                });
            }
            Some(_) => {}
            // Counts a bundle for each small file, more than there can be.
            None if size <= BUNDLE_SIZE => units += 1,
            None => units += FileLayout::new(size).map_or(0, |layout| u64::from(layout.piece_count())),
        }
    }
    if units > u64::from(MAX_UNITS) {
        return Err(ManifestError::TooLarge("it has too many pieces"));
    }
    Ok(())
}

/// Text from outside, fit for a message.
fn shown(text: &str) -> String {
    // Enough to recognise it by.
    const MAX: usize = 200;
    let mut shown: String = text.chars().take(MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests;
