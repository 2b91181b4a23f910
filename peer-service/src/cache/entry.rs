//! An entry of the cache, as the table and the store have it.
//!
//! The stored form is JSON: small, readable for diagnosis, and open to new fields.

use potluck_core::{FileId, Sha256, model::FileKind};
use serde::{Deserialize, Serialize};

/// Something in the cache, as shown to the peer's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry {
    /// Its file name in the cache folder.
    pub name: String,
    /// For people: where it comes from.
    pub label: String,
    /// The bytes that it takes, or will take once it has arrived.
    pub bytes: u64,
    /// File or collection.
    pub kind: FileKind,
    /// Its id; `None` while its root is not known, and for small files of a hub.
    pub id: Option<FileId>,
    /// Its SHA-256, if that is known.
    pub sha256: Option<Sha256>,
    /// Whether all of it is here.
    pub is_complete: bool,
    /// Whether it is never removed.
    pub is_pinned: bool,
    /// Whether a transfer, an upload or a client uses it now.
    pub is_in_use: bool,
    /// When it was added, in seconds since 1970.
    pub added: u64,
    /// When it was last used, in seconds since 1970. After a crash up to some minutes too early.
    pub last_used: u64,
}

/// An entry, and who uses it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) entry: CacheEntry,
    /// Number of [`CacheUse`](super::CacheUse)s.
    pub(super) uses: usize,
    /// Whether it is being removed. Nobody may begin to use it then.
    pub(super) is_leaving: bool,
    /// Whether the stored time of the last use is out of date.
    pub(super) is_stale: bool,
}

impl Slot {
    pub(super) const fn new(entry: CacheEntry) -> Self {
        Self {
            entry,
            uses: 0,
            is_leaving: false,
            is_stale: false,
        }
    }

    /// Whether it must stay.
    pub(super) const fn is_protected(&self) -> bool {
        self.entry.is_pinned || self.uses > 0 || self.is_leaving
    }
}

#[derive(Serialize, Deserialize)]
struct Row {
    #[serde(default)]
    label: String,
    bytes: u64,
    #[serde(default)]
    is_collection: bool,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    sha256: Option<String>,
    #[serde(default)]
    is_complete: bool,
    #[serde(default)]
    is_pinned: bool,
    #[serde(default)]
    added: u64,
    #[serde(default)]
    last_used: u64,
}

/// Encodes an entry for the store.
pub(super) fn encode(entry: &CacheEntry) -> Vec<u8> {
    let row = Row {
        label: entry.label.clone(),
        bytes: entry.bytes,
        is_collection: entry.kind == FileKind::Collection,
        id: entry.id.map(|id| id.to_string()),
        sha256: entry.sha256.map(|sum| sum.to_string()),
        is_complete: entry.is_complete,
        is_pinned: entry.is_pinned,
        added: entry.added,
        last_used: entry.last_used,
    };
    serde_json::to_vec(&row).expect("strings and numbers always serialise")
}

/// Decodes a stored entry; `None` if the bytes or the name are not of an entry.
pub(super) fn decode(name: &str, bytes: &[u8]) -> Option<CacheEntry> {
    let row: Row = serde_json::from_slice(bytes).ok()?;
    Some(CacheEntry {
        name: checked_name(name)?.to_owned(),
        label: row.label,
        bytes: row.bytes,
        kind: match row.is_collection {
            true => FileKind::Collection,
            false => FileKind::File,
        },
        id: row.id.and_then(|id| id.parse().ok()),
        sha256: row.sha256.and_then(|sum| sum.parse().ok()),
        is_complete: row.is_complete,
        is_pinned: row.is_pinned,
        is_in_use: false,
        added: row.added,
        last_used: row.last_used,
    })
}

/// The name, if it can name an entry: lower-case letters, digits and hyphens. So no entry is outside
/// of the folder, and none looks like an unfinished download or a mark.
pub(super) fn checked_name(name: &str) -> Option<&str> {
    let is_fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (!name.is_empty() && name.len() <= 128 && name.bytes().all(is_fine)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_round_trip() {
        let entry = CacheEntry {
            name: "ab-1".into(),
            label: "org/repo/a b".into(),
            bytes: 7,
            kind: FileKind::Collection,
            id: Some(FileId([1; 32])),
            sha256: Some(Sha256([2; 32])),
            is_complete: true,
            is_pinned: true,
            is_in_use: false,
            added: 5,
            last_used: 6,
        };
        assert_eq!(decode("ab-1", &encode(&entry)), Some(entry));
        assert!(decode("ab-1", b"nonsense").is_none());
    }

    #[test]
    fn names_stay_in_the_folder() {
        for bad in ["", ".", "..", "a/b", "a.part", "A", "a\0"] {
            assert_eq!(checked_name(bad), None, "{bad}");
            assert!(decode(bad, br#"{"bytes":1}"#).is_none(), "{bad}");
        }
        assert_eq!(checked_name("git-0a"), Some("git-0a"));
    }
}
