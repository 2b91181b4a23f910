//! The stored form of an item. The store encodes these types without knowing their meaning.

use std::{path::Path, sync::Arc};

use potluck_core::{FileId, Root, collection::path::Label};

use crate::catalog::{share_options::ShareOptions, stamp::Stamp};

/// Selects a file of an item: the index of an entry in its manifest, or [`WHOLE_ITEM`].
pub(crate) type EntryIndex = u32;

/// The [`EntryIndex`] of the item's own file: the shared file, or the collection's manifest.
pub(crate) const WHOLE_ITEM: EntryIndex = u32::MAX;

/// The stamps and roots of a collection's entries, in the manifest's order. Entries that are not
/// files have meaningless values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Members {
    pub(crate) stamps: Vec<Stamp>,
    pub(crate) roots: Vec<Root>,
}

/// A shared file or collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ItemRow {
    /// An absolute path.
    pub(crate) path: Arc<Path>,
    /// Whether it is a download that its owner did not ask to share.
    pub(crate) is_unrequested: bool,
    /// The name that it is shared under; `None` for the last component of the path.
    pub(crate) label: Option<Label>,
    /// How it is shared; `None` for the defaults.
    pub(crate) options: Option<Arc<ShareOptions>>,
    /// The id of the file or manifest.
    pub(crate) id: FileId,
    /// The root of the file or manifest.
    pub(crate) root: Root,
    pub(crate) body: RowBody,
}

/// The entry of an [`ItemRow`] that depends on its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RowBody {
    File(Stamp),
    Collection(Arc<Members>),
}
