//! What the catalog is about: items, the files in them, and places.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use potluck_core::{
    FileId,
    index_client::FileRecord,
    manifest::{Content, Manifest},
    merkle::Hash,
    path::Label,
};

use super::super::Item;
use crate::store::{ItemRow, Stamp, Stamps};

/// Stands for the manifest itself where an entry of it is expected.
pub(in super::super) const MANIFEST: u32 = u32::MAX;

/// Where a copy of a file is: an item, and the entry of its manifest ([`MANIFEST`] for the manifest itself, 0 for a file item).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in super::super) struct Place {
    pub(in super::super) item: u64,
    pub(in super::super) entry: u32,
}

/// A file that is shared, alone or in a collection.
#[derive(Debug)]
pub(in super::super) struct Held {
    pub(in super::super) record: FileRecord,
    pub(super) places: Vec<Place>,
}

/// Something that is shared.
#[derive(Debug)]
pub(in super::super) struct Shared {
    pub(in super::super) path: Arc<Path>,
    pub(in super::super) record: FileRecord,
    pub(in super::super) body: Body,
}

/// What an item is.
#[derive(Debug, Clone)]
pub(in super::super) enum Body {
    File(Stamp),
    Collection(Arc<Folder>),
}

/// A collection's content.
#[derive(Debug)]
pub(in super::super) struct Folder {
    pub(in super::super) manifest: Arc<Manifest>,
    /// Of each entry of the manifest; meaningless for those that are no files.
    pub(in super::super) stamps: Vec<Stamp>,
    /// How many units its content has as a transfer.
    pub(in super::super) units: u32,
}

/// An item to put, with the records of every file that it holds and the piece layers of those that are new.
#[derive(Debug, Clone)]
pub(in super::super) struct NewItem {
    pub(in super::super) path: Arc<Path>,
    pub(in super::super) record: FileRecord,
    pub(in super::super) body: Body,
    /// Files that were hashed for it; others must be held already.
    pub(in super::super) hashed: HashMap<FileId, Hashed>,
}

/// A file that was hashed.
#[derive(Debug, Clone)]
pub(in super::super) struct Hashed {
    pub(in super::super) record: FileRecord,
    pub(in super::super) layer: Arc<[Hash]>,
}

impl Shared {
    /// The label it is shared by.
    pub(in super::super) fn name(&self) -> String {
        name_of(&self.path)
    }

    pub(in super::super) fn item(&self) -> Item {
        let (file_count, content_size) = match &self.body {
            Body::File(_) => (1, self.record.size),
            Body::Collection(folder) => (folder.manifest.file_count(), folder.manifest.content_size()),
        };
        Item {
            record: self.record,
            name: self.name(),
            path: self.path.to_path_buf(),
            file_count,
            content_size,
        }
    }

    /// The files that it holds, each once, and where.
    pub(super) fn files(&self) -> Vec<(FileId, u32)> {
        match &self.body {
            Body::File(_) => vec![(self.record.id, 0)],
            Body::Collection(folder) => {
                let mut seen = HashSet::new();
                let mut files = vec![(self.record.id, MANIFEST)];
                seen.insert(self.record.id);
                for (entry, id) in folder.files() {
                    if seen.insert(id) {
                        files.push((id, entry));
                    }
                }
                files
            }
        }
    }

    /// Where an entry is and what its `stat` said; `None` for the manifest, which is not in the folder.
    pub(in super::super) fn locate(&self, entry: u32) -> Option<(PathBuf, Stamp)> {
        match &self.body {
            Body::File(stamp) => Some((self.path.to_path_buf(), *stamp)),
            Body::Collection(folder) => {
                let index = entry as usize;
                let path = &folder.manifest.entries.get(index)?.path;
                Some((self.path.join(path.as_str()), *folder.stamps.get(index)?))
            }
        }
    }

    pub(super) fn row(&self) -> ItemRow {
        ItemRow {
            path: self.path.to_path_buf(),
            id: self.record.id,
            stamps: match &self.body {
                Body::File(stamp) => Stamps::File(*stamp),
                Body::Collection(folder) => Stamps::Collection(folder.stamps.clone()),
            },
        }
    }
}

impl Folder {
    /// The entries that are files: number and id.
    pub(in super::super) fn files(&self) -> impl Iterator<Item = (u32, FileId)> + '_ {
        let entries = self.manifest.entries.iter().enumerate();
        entries.filter_map(|(index, entry)| match entry.content {
            Content::File { id, .. } => Some((u32::try_from(index).ok()?, id)),
            _ => None,
        })
    }
}

/// The label of what is at a path.
pub(in super::super) fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Label::sanitize(&name).as_str().to_owned()
}
