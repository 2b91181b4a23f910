//! Items, their files, and the locations of copies.

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

use crate::catalog::{
    record::small_file_sha256,
    row::{EntryIndex, ItemRow, Members, RowBody, WHOLE_ITEM},
    share_options::ShareOptions,
    stamp::Stamp,
};

/// A shared file, or a shared folder as a collection, as shown to its owner. Files inside a
/// collection are not items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The record of the file, or of the collection's manifest.
    pub record: FileRecord,
    /// The label that others see.
    pub name: String,
    /// The path on this peer.
    pub path: PathBuf,
    /// Number of files; 1 for a file.
    pub file_count: u64,
    /// Size of the content in bytes.
    pub content_size: u64,
    /// The first damaged files: their bytes differ from the hashed ones, but their stamps are
    /// unchanged. A damaged item is not offered.
    pub damaged: Vec<PathBuf>,
}

/// The location of a copy: an item, and the index of an entry in its manifest. [`WHOLE_ITEM`]
/// stands for the item's own file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Location {
    pub(crate) item: u64,
    pub(crate) entry: EntryIndex,
}

/// A shared file or folder.
#[derive(Debug)]
pub(crate) struct SharedItem {
    pub(crate) path: Arc<Path>,
    /// Whether it is a download that its owner did not ask to share.
    pub(crate) is_unrequested: bool,
    /// The label that others see, if it is not derived from the path.
    pub(crate) label: Option<Label>,
    /// How it is shared; `None` for the defaults.
    pub(crate) options: Option<Arc<ShareOptions>>,
    /// The record of the file, or of the collection's manifest.
    pub(crate) record: FileRecord,
    pub(crate) body: ItemBody,
    /// SHA-256s of a collection's entries, except those that equal the root.
    pub(crate) sha256s: BTreeMap<EntryIndex, Sha256>,
}

/// The content of an item.
#[derive(Debug, Clone)]
pub(crate) enum ItemBody {
    File(Stamp),
    Collection(Arc<SharedCollection>),
}

impl ItemBody {
    /// Whether this is the same body, and not a later replacement.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(stamp), Self::File(other)) => stamp == other,
            (Self::Collection(folder), Self::Collection(other)) => Arc::ptr_eq(folder, other),
            _ => false,
        }
    }
}

/// The content of a collection.
#[derive(Debug, Default)]
pub(crate) struct SharedCollection {
    pub(crate) manifest: Arc<Manifest>,
    /// One for each entry of the manifest.
    pub(crate) members: Arc<Members>,
    /// Created at the first use.
    plan: OnceLock<Arc<Plan>>,
}

/// An item to put into the catalog, with the piece layers of its new files. The layers of its other
/// files must already be stored.
#[derive(Debug, Clone)]
pub(crate) struct NewItem {
    pub(crate) path: Arc<Path>,
    /// As in [`SharedItem`]. An item stays requested after its owner requested it.
    pub(crate) is_unrequested: bool,
    /// As in [`SharedItem`].
    pub(crate) label: Option<Label>,
    /// As in [`SharedItem`].
    pub(crate) options: Option<Arc<ShareOptions>>,
    pub(crate) record: FileRecord,
    pub(crate) body: ItemBody,
    pub(crate) sha256s: BTreeMap<EntryIndex, Sha256>,
    pub(crate) layers: HashMap<FileId, Arc<[Hash]>>,
}

impl NewItem {
    /// An item that its owner requested, with all files hashed before.
    pub(crate) fn new(path: impl Into<Arc<Path>>, record: FileRecord, body: ItemBody) -> Self {
        Self {
            path: path.into(),
            is_unrequested: false,
            label: None,
            options: None,
            record,
            body,
            sha256s: BTreeMap::new(),
            layers: HashMap::new(),
        }
    }
}

impl SharedItem {
    /// The label of the item.
    pub(crate) fn name(&self) -> String {
        match &self.label {
            Some(label) => label.as_str().to_owned(),
            None => name_of(&self.path),
        }
    }

    /// How the item is shared.
    pub(crate) fn options(&self) -> ShareOptions {
        self.options.as_deref().cloned().unwrap_or_default()
    }

    pub(crate) fn to_item(&self) -> Item {
        let (file_count, content_size) = match &self.body {
            ItemBody::File(_) => (1, self.record.size),
            ItemBody::Collection(folder) => {
                (folder.manifest.file_count(), folder.manifest.content_size())
            }
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

    /// The entries of the item. Of entries with the same content, only the first is listed.
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

    /// Whether this entry is the manifest of a collection.
    pub(crate) const fn is_manifest(&self, entry: EntryIndex) -> bool {
        entry == WHOLE_ITEM && self.folder().is_some()
    }

    /// The id of an entry.
    pub(crate) fn id(&self, entry: EntryIndex) -> Option<FileId> {
        match entry {
            WHOLE_ITEM => Some(self.record.id),
            entry => self.folder()?.manifest.id(entry),
        }
    }

    /// The entry that represents all entries with this id.
    pub(crate) fn entry(&self, id: &FileId) -> Option<EntryIndex> {
        if self.record.id == *id {
            return Some(WHOLE_ITEM);
        }
        self.folder()?.manifest.with_id(id).first().copied()
    }

    /// The record of an entry.
    pub(crate) fn record(&self, entry: EntryIndex) -> Option<FileRecord> {
        if entry == WHOLE_ITEM {
            return Some(self.record);
        }
        let folder = self.folder()?;
        let EntryContent::File { id, size, .. } = folder.manifest.content(entry)? else {
            return None;
        };
        let root = *folder.members.roots.get(entry as usize)?;
        Some(FileRecord {
            id,
            size,
            root,
            sha256: small_file_sha256(size, &root).or_else(|| self.sha256s.get(&entry).copied()),
            kind: FileKind::File,
        })
    }

    /// Sets the SHA-256 of an entry.
    pub(crate) fn set_sha256(&mut self, entry: EntryIndex, sha256: Sha256) {
        match entry {
            WHOLE_ITEM => self.record.sha256 = Some(sha256),
            entry => drop(self.sha256s.insert(entry, sha256)),
        }
    }

    /// The file name of an entry.
    pub(crate) fn name_of(&self, entry: EntryIndex) -> Option<String> {
        match entry {
            WHOLE_ITEM => Some(self.name()),
            entry => Some(self.folder()?.manifest.get(entry)?.path.file_name().to_owned()),
        }
    }

    /// The stamp of an entry; `None` for the manifest, which is not in the folder.
    pub(crate) fn stamp(&self, entry: EntryIndex) -> Option<Stamp> {
        match &self.body {
            ItemBody::File(stamp) => Some(*stamp),
            ItemBody::Collection(folder) => folder.members.stamps.get(entry as usize).copied(),
        }
    }

    /// The path of an entry; for the manifest, the path of the folder.
    pub(crate) fn locate(&self, entry: EntryIndex) -> Option<PathBuf> {
        match (&self.body, entry) {
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
            is_unrequested: self.is_unrequested,
            label: self.label.clone(),
            options: self.options.clone(),
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
    /// Creates a collection whose files are unchanged since they were hashed.
    pub(crate) fn new(manifest: Arc<Manifest>, members: impl Into<Arc<Members>>) -> Self {
        Self {
            manifest,
            members: members.into(),
            plan: OnceLock::new(),
        }
    }

    /// The plan for downloads of the collection.
    pub(crate) fn plan(&self) -> Arc<Plan> {
        let plan = || Arc::new(Plan::of_collection(&self.manifest));
        Arc::clone(self.plan.get_or_init(plan))
    }

    /// Whether the plan exists. With many files it takes a while to make.
    pub(crate) fn is_planned(&self) -> bool {
        self.plan.get().is_some()
    }

    /// Whether each file's id follows from its size and root.
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

/// The label for the item at a path.
pub(crate) fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Label::sanitize(&name).as_str().to_owned()
}
