//! The library as a source of content for uploads: one [`Content`] per file.

use std::{fs::File, ops::Range, sync::Arc};

use potluck_core::{
    FileId, FileLayout, Problem, Reason,
    availability::Availability,
    bitfield::Bitfield,
    collection::plan::Plan,
    identity::merkle::Hash,
    model::{FileKind, FileRecord},
};
use tokio::sync::watch;

use crate::{
    catalog::{
        Catalog,
        item::{ItemBody, SharedCollection},
        row::WHOLE_ITEM,
    },
    content::Content,
    library::serve::copies::CopyOpener,
};

/// Largest file that is not kept open, in bytes: it is read in one go, and many such files would
/// only evict others.
const MAX_REOPENED_SIZE: u64 = 256 * 1024;

/// A file in the library.
#[derive(Debug)]
pub(crate) struct LibraryContent {
    copies: Arc<CopyOpener>,
    record: FileRecord,
}

impl LibraryContent {
    pub(crate) fn find(copies: &Arc<CopyOpener>, id: &FileId) -> Option<Self> {
        let record = copies.catalog().read().record(id)?;
        Some(Self {
            copies: copies.clone(),
            record,
        })
    }

    /// Like `find`, but never waits: `None` if the catalog is locked or the collection's plan is
    /// not made yet.
    pub(crate) fn try_find(copies: &Arc<CopyOpener>, id: &FileId) -> Option<Self> {
        let catalog = copies.catalog().try_read()?;
        let record = catalog.record(id)?;
        let content = Self {
            copies: copies.clone(),
            record,
        };
        let folder = content.collection(&catalog);
        folder.is_none_or(|folder| folder.is_planned()).then_some(content)
    }

    /// Whether the file is kept open.
    const fn is_kept_open(&self) -> bool {
        self.record.size > MAX_REOPENED_SIZE
    }

    /// The collection, if this content is a collection's manifest.
    fn collection<'a>(&self, catalog: &'a Catalog) -> Option<&'a Arc<SharedCollection>> {
        if self.record.kind != FileKind::Collection {
            return None;
        }
        let mut copies = catalog.copies(&self.record.id);
        copies.find_map(|(item, entry)| match &item.body {
            ItemBody::Collection(folder) if entry == WHOLE_ITEM => Some(folder),
            _ => None,
        })
    }
}

impl Content for LibraryContent {
    fn id(&self) -> FileId {
        self.record.id
    }

    fn size(&self) -> u64 {
        self.record.size
    }

    fn record(&self) -> Result<FileRecord, Problem> {
        Ok(self.record)
    }

    fn name(&self) -> String {
        let registration = self.copies.catalog().read().registration(&self.record.id);
        let names = registration.map(|registration| registration.names);
        names.unwrap_or_default().into_iter().next().unwrap_or_default()
    }

    fn piece_hashes(&self) -> Result<Arc<[Hash]>, Problem> {
        let pieces = FileLayout::new(self.record.size).map_or(0, |layout| layout.piece_count());
        if pieces < 2 {
            return Ok(Arc::from([]));
        }
        // Peers ban a peer that serves a piece layer which does not fold to the root.
        self.copies.verified_layer(&self.record)?.ok_or_else(|| {
            Problem::new(
                Reason::PieceNotAvailable,
                format!(
                    "this peer has no piece hashes of {} now: the file is being hashed again",
                    self.record.id
                ),
            )
        })
    }

    fn plan(&self) -> Option<Arc<Plan>> {
        // The plan is made without the catalog's lock.
        let folder = self.collection(&self.copies.catalog().read()).cloned();
        match folder {
            Some(folder) => Some(folder.plan()),
            None => Plan::of_file(self.record.id, self.record.size).map(Arc::new),
        }
    }

    fn availability(&self) -> Availability {
        let count = self.plan().map_or(0, |plan| plan.unit_count());
        Availability {
            have: Bitfield::full(count),
            fetching: Bitfield::new(count),
        }
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.copies.catalog().watch(&self.record.id))
    }

    fn open(&self, _range: Range<u64>) -> Result<Arc<File>, Problem> {
        match self.is_kept_open() {
            true => self.copies.open(&self.record.id),
            false => self.copies.open_new(&self.record.id),
        }
    }

    fn try_open(&self, _range: Range<u64>) -> Option<Arc<File>> {
        let is_kept_open = self.is_kept_open();
        is_kept_open.then(|| self.copies.open_cached(&self.record.id))?
    }

    fn is_unchanged(&self, file: &File) -> bool {
        self.copies.is_unchanged(&self.record.id, file)
    }

    fn check_unchanged(&self, file: &File) -> Result<(), Problem> {
        self.copies.check_unchanged(&self.record.id, file)
    }
}
