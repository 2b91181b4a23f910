//! What the catalog is about: items, the files in them, and places.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use potluck_core::{
    FileId, Sha256,
    collection::{
        manifest::{EntryContent, Manifest},
        path::Label,
        plan::Plan,
    },
    identity::merkle::Hash,
    model::{FileKind, FileRecord},
};

pub(crate) use crate::store::{EntryIndex, WHOLE_ITEM};
use crate::{
    library::{Item, hash::hasher::small_file_sha256},
    store::{ItemRow, Members, RowBody, Stamp},
};

/// Where a copy of a file is: an item, and the entry of its manifest, or [`WHOLE_ITEM`] for the item's own file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Location {
    pub(crate) item: u64,
    pub(crate) entry: EntryIndex,
}

/// Something that is shared.
#[derive(Debug)]
pub(crate) struct SharedItem {
    pub(crate) path: Arc<Path>,
    /// Whether it came as a download, and nobody asked for it to be shared.
    pub(crate) downloaded: bool,
    /// What others call it, where that is not what its path ends in.
    pub(crate) label: Option<Label>,
    /// Of the file, or of the collection's manifest.
    pub(crate) record: FileRecord,
    pub(crate) body: ItemBody,
    /// SHA-256s of a collection's entries that do not follow from the root.
    pub(crate) sha256s: BTreeMap<EntryIndex, Sha256>,
}

/// What an item is.
#[derive(Debug, Clone)]
pub(crate) enum ItemBody {
    File(Stamp),
    Collection(Arc<SharedCollection>),
}

impl ItemBody {
    /// Whether this is the very one that was looked at before: not one that took its place since.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(stamp), Self::File(other)) => stamp == other,
            (Self::Collection(folder), Self::Collection(other)) => Arc::ptr_eq(folder, other),
            _ => false,
        }
    }
}

/// A collection's content.
#[derive(Debug, Default)]
pub(crate) struct SharedCollection {
    pub(crate) manifest: Arc<Manifest>,
    /// As many as the manifest has entries.
    pub(crate) members: Arc<Members>,
    /// Made when somebody asks.
    plan: OnceLock<Arc<Plan>>,
}

/// An item to put, with the piece layers of what is new in it; of what else it has they must be held already.
#[derive(Debug, Clone)]
pub(crate) struct NewItem {
    pub(crate) path: Arc<Path>,
    /// As in [`SharedItem`]; what was asked for stays so, whoever puts it.
    pub(crate) downloaded: bool,
    /// As in [`SharedItem`].
    pub(crate) label: Option<Label>,
    pub(crate) record: FileRecord,
    pub(crate) body: ItemBody,
    pub(crate) sha256s: BTreeMap<EntryIndex, Sha256>,
    pub(crate) layers: HashMap<FileId, Arc<[Hash]>>,
}

impl SharedItem {
    /// The label it is shared by.
    pub(crate) fn name(&self) -> String {
        match &self.label {
            Some(label) => label.as_str().to_owned(),
            None => name_of(&self.path),
        }
    }

    pub(crate) fn to_item(&self) -> Item {
        let (file_count, content_size) = match &self.body {
            ItemBody::File(_) => (1, self.record.size),
            ItemBody::Collection(folder) => (folder.manifest.file_count(), folder.manifest.content_size()),
        };
        Item {
            record: self.record,
            name: self.name(),
            path: self.path.to_path_buf(),
            file_count,
            content_size,
            damaged: Vec::new(),
        }
    }

    /// The parts that it holds, each distinct content once.
    pub(crate) fn entries(&self) -> impl Iterator<Item = EntryIndex> {
        let entries = self.folder().map(|folder| folder.manifest.contents());
        let entries = entries
            .into_iter()
            .flatten()
            .filter_map(|same| same.first().copied());
        std::iter::once(WHOLE_ITEM).chain(entries)
    }

    pub(crate) const fn folder(&self) -> Option<&Arc<SharedCollection>> {
        match &self.body {
            ItemBody::File(_) => None,
            ItemBody::Collection(folder) => Some(folder),
        }
    }

    /// Whether a part is the manifest of a collection.
    pub(crate) const fn is_manifest(&self, part: EntryIndex) -> bool {
        part == WHOLE_ITEM && self.folder().is_some()
    }

    /// The id of a part.
    pub(crate) fn id(&self, part: EntryIndex) -> Option<FileId> {
        match part {
            WHOLE_ITEM => Some(self.record.id),
            entry => self.folder()?.manifest.id(entry),
        }
    }

    /// The part that stands for all that have this id.
    pub(crate) fn entry(&self, id: &FileId) -> Option<EntryIndex> {
        if self.record.id == *id {
            return Some(WHOLE_ITEM);
        }
        self.folder()?.manifest.with_id(id).first().copied()
    }

    /// What is known of a part.
    pub(crate) fn record(&self, part: EntryIndex) -> Option<FileRecord> {
        if part == WHOLE_ITEM {
            return Some(self.record);
        }
        let folder = self.folder()?;
        let EntryContent::File { id, size, .. } = folder.manifest.content(part)? else {
            return None;
        };
        let root = *folder.members.roots.get(part as usize)?;
        Some(FileRecord {
            id,
            size,
            root,
            sha256: small_file_sha256(size, &root).or_else(|| self.sha256s.get(&part).copied()),
            kind: FileKind::File,
        })
    }

    /// Remembers the SHA-256 of a part.
    pub(crate) fn set_sha256(&mut self, part: EntryIndex, sum: Sha256) {
        match part {
            WHOLE_ITEM => self.record.sha256 = Some(sum),
            entry => drop(self.sha256s.insert(entry, sum)),
        }
    }

    /// What a part is called.
    pub(crate) fn name_of(&self, part: EntryIndex) -> Option<String> {
        match part {
            WHOLE_ITEM => Some(self.name()),
            entry => Some(self.folder()?.manifest.get(entry)?.path.file_name().to_owned()),
        }
    }

    /// What `stat` said of a part; `None` for the manifest, which is not in the folder.
    pub(crate) fn stamp(&self, part: EntryIndex) -> Option<Stamp> {
        match &self.body {
            ItemBody::File(stamp) => Some(*stamp),
            ItemBody::Collection(folder) => folder.members.stamps.get(part as usize).copied(),
        }
    }

    /// Where a part is; of the manifest, where its folder is.
    pub(crate) fn locate(&self, part: EntryIndex) -> Option<PathBuf> {
        match (&self.body, part) {
            (ItemBody::File(_), _) | (_, WHOLE_ITEM) => Some(self.path.to_path_buf()),
            (ItemBody::Collection(folder), entry) => {
                let path = folder.manifest.get(entry)?.path;
                Some(self.path.join(path.as_str()))
            }
        }
    }

    pub(crate) fn to_row(&self) -> ItemRow {
        ItemRow {
            path: self.path.clone(),
            downloaded: self.downloaded,
            label: self.label.clone(),
            id: self.record.id,
            root: self.record.root,
            body: match &self.body {
                ItemBody::File(stamp) => RowBody::File(*stamp),
                ItemBody::Collection(folder) => RowBody::Collection(folder.members.clone()),
            },
        }
    }
}

impl SharedCollection {
    /// Of a manifest whose files are what was hashed.
    pub(crate) fn new(manifest: Arc<Manifest>, members: impl Into<Arc<Members>>) -> Self {
        Self {
            manifest,
            members: members.into(),
            plan: OnceLock::new(),
        }
    }

    /// What its content is cut into as a transfer.
    pub(crate) fn plan(&self) -> Arc<Plan> {
        let plan = || Arc::new(Plan::of_collection(&self.manifest));
        Arc::clone(self.plan.get_or_init(plan))
    }

    /// Whether that is known already: with many files it takes a while.
    pub(crate) fn is_planned(&self) -> bool {
        self.plan.get().is_some()
    }

    /// Whether each file's root and size make its id.
    pub(crate) fn ids_match_roots(&self) -> bool {
        let Members { stamps, roots } = &*self.members;
        let whole = stamps.len() == self.manifest.len() && roots.len() == self.manifest.len();
        whole
            && self
                .manifest
                .entries()
                .zip(roots)
                .all(|(entry, root)| match entry.content {
                    EntryContent::File { id, size, .. } => FileId::derive(size, root) == id,
                    _ => true,
                })
    }
}

/// The label of what is at a path.
pub(crate) fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Label::sanitize(&name).as_str().to_owned()
}
