//! Computes the item that a file or folder would be shared as, without sharing it: the same walk,
//! hashing and manifest, but nothing is stored.

use std::path::Path;

use potluck_core::{
    collection::manifest::{EntryContent, Manifest, ManifestEntry},
    identity::hash::hash_bytes,
    model::{FileKind, FileRecord},
};

use crate::{
    catalog::{record::record_of, share_options::ShareOptions},
    fs::modes::may_lack_modes,
    library::{
        hash::{folder::hash_snapshot, hasher::hash_one, observer::HashObserver},
        problems::{Refused, not_a_regular_file, single_refusal, unreadable},
        scan::{omissions::Omissions, rules::WalkRules, walk::walk},
    },
};

/// The item that a path would be shared as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identified {
    /// The record of the file, or of the collection's manifest.
    pub record: FileRecord,
    /// Number of files; 1 for a file.
    pub file_count: u64,
    /// Size of the content in bytes. In a collection, a file with several paths counts once for
    /// each.
    pub content_size: u64,
    /// The manifest, for a collection.
    pub manifest: Option<Manifest>,
    /// Whether the file system supports execute bits.
    pub has_modes: bool,
    /// The entries that a share would leave out.
    pub omitted: Omissions,
    /// Whether the file system may lack links.
    may_lack_links: bool,
}

impl Identified {
    /// Whether this folder holds everything in `wanted` that its file system can store. Ignores
    /// execute bits and links if the file system has none.
    pub fn holds_all_of(&self, wanted: &Manifest) -> bool {
        let Some(there) = &self.manifest else {
            return false;
        };
        let is_link =
            |entry: &ManifestEntry<'_>| matches!(entry.content, EntryContent::Link { .. });
        let lacks_links = self.may_lack_links && !there.entries().any(|entry| is_link(&entry));
        let is_expected = |entry: &ManifestEntry<'_>| !(lacks_links && is_link(entry));
        let expected = wanted.entries().filter(is_expected);
        let comparable = |entry| match self.has_modes {
            true => entry,
            false => without_mode(entry),
        };
        there.entries().map(comparable).eq(expected.map(comparable))
    }
}

/// The entry without its execute bit.
fn without_mode(entry: ManifestEntry<'_>) -> ManifestEntry<'_> {
    match entry.content {
        EntryContent::File { id, size, .. } => ManifestEntry {
            content: EntryContent::File {
                id,
                size,
                executable: false,
            },
            ..entry
        },
        _ => entry,
    }
}

/// Hashes the file or folder at `path`, as a share with these options would. Blocks: call it off the async threads.
///
/// `on_size` receives bytes that will be hashed, `on_hashed` bytes that were; both are called from
/// any thread. `is_cancelled` is polled often; true stops the hashing.
///
/// # Errors
/// Every problem that prevents sharing, each with its path. `CANCELLED`: `is_cancelled` returned
/// true.
pub fn identify(
    path: &Path,
    options: &ShareOptions,
    threads: usize,
    on_size: &(dyn Fn(u64) + Sync),
    on_hashed: &(dyn Fn(u64) + Sync),
    is_cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<Identified, Vec<Refused>> {
    let refuse = |problem| single_refusal(path, problem);
    let observer = &HashObserver {
        on_size,
        on_progress: &|_, bytes| on_hashed(bytes),
        is_cancelled,
    };
    let metadata = path.metadata().map_err(|error| refuse(unreadable(&error)))?;
    if metadata.is_dir() {
        let rules = WalkRules::new(options, None).map_err(refuse)?;
        let mut snapshot = walk(path, &rules, threads)?;
        snapshot.stat_if_many(path, threads)?;
        (observer.on_size)(snapshot.size());
        let mut hashed = hash_snapshot(path, &snapshot, None, threads, observer)?;
        hashed.leave_out_lost(path, &mut snapshot);
        let manifest = hashed.manifest(path, &snapshot)?;
        return Ok(Identified {
            record: record_of(&hash_bytes(manifest.bytes()), FileKind::Collection),
            file_count: manifest.file_count(),
            content_size: manifest.content_size(),
            manifest: Some(manifest),
            has_modes: snapshot.has_modes(),
            omitted: snapshot.omitted,
            may_lack_links: may_lack_modes(path),
        });
    }
    if !metadata.is_file() {
        return Err(refuse(not_a_regular_file(metadata.file_type())));
    }
    on_size(metadata.len());
    let done = hash_one(path, threads, observer.on_progress, is_cancelled).map_err(refuse)?;
    Ok(Identified {
        record: record_of(&done.tree, FileKind::File),
        file_count: 1,
        content_size: done.tree.size,
        manifest: None,
        has_modes: true,
        omitted: Omissions::default(),
        may_lack_links: false,
    })
}

#[cfg(test)]
mod tests {
    use potluck_core::Reason;

    use super::*;

    fn of(path: &Path) -> Identified {
        identify(path, &ShareOptions::default(), 2, &|_| {}, &|_| {}, &|| false).unwrap()
    }

    #[test]
    fn the_id_of_a_folder_depends_on_names_and_contents_only() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for folder in [&a, &b] {
            std::fs::create_dir_all(folder.join("sub/empty")).unwrap();
            std::fs::write(folder.join("sub/file"), "1").unwrap();
            std::os::unix::fs::symlink("sub/file", folder.join("link")).unwrap();
        }
        assert_eq!(of(&a), of(&b));
        assert_eq!((of(&a).file_count, of(&a).content_size), (1, 1));
        std::fs::write(b.join("sub/file"), "2").unwrap();
        assert_ne!(of(&a).record.id, of(&b).record.id);
    }

    #[test]
    fn a_refusal_has_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let options = ShareOptions::default();
        let missing = dir.path().join("none");
        let refused = identify(&missing, &options, 1, &|_| {}, &|_| {}, &|| false).unwrap_err();
        assert_eq!(refused[0].1.reason, Reason::NotFound);
        std::fs::write(dir.path().join("x"), "1").unwrap();
        let refused = identify(dir.path(), &options, 1, &|_| {}, &|_| {}, &|| true).unwrap_err();
        assert_eq!(refused[0].1.reason, Reason::Cancelled);
    }
}
