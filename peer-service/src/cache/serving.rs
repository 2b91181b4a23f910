//! The library as a source of uploads, which marks entries of the cache that uploads read.
//!
//! An upload uses an entry from the first time it opens the file until it ends. Who only asks which
//! pieces there are does not keep an entry from being removed.

use std::{
    fs::File,
    ops::Range,
    path::Path,
    sync::{Arc, OnceLock},
};

use potluck_core::{
    FileId, Problem, availability::Availability, collection::plan::Plan,
    grpc::limiter::ClientAddress, identity::merkle::Hash, model::FileRecord,
};
use tokio::sync::watch;

use super::{Cache, CacheUse};
use crate::{
    content::{BadPieces, Content, ContentSource},
    library::Library,
};

/// The library, with entries of the cache marked while they are read.
#[derive(Debug)]
pub(crate) struct CachedLibrary {
    pub(crate) library: Library,
    pub(crate) cache: Cache,
}

impl CachedLibrary {
    /// The content, marked if it is in the cache, at this path.
    fn marked(&self, content: Arc<dyn Content>, path: Option<Arc<Path>>) -> Arc<dyn Content> {
        let name = path.as_deref().and_then(|path| self.cache.name_at(path));
        match name {
            None => content,
            Some(name) => Arc::new(CachedContent {
                content,
                cache: self.cache.clone(),
                name: name.to_owned(),
                using: OnceLock::new(),
            }),
        }
    }
}

impl ContentSource for CachedLibrary {
    fn find(&self, id: &FileId) -> Option<Arc<dyn Content>> {
        let content = self.library.find(id)?;
        let path = self.library.item_below(id, self.cache.folder());
        Some(self.marked(content, path))
    }

    fn try_find(&self, id: &FileId) -> Option<Arc<dyn Content>> {
        let content = self.library.try_find(id)?;
        let path = self.library.try_item_below(id, self.cache.folder())?;
        Some(self.marked(content, path))
    }

    fn on_bad_pieces(&self, pieces: BadPieces, source: ClientAddress) -> bool {
        self.library.on_bad_pieces(pieces, source)
    }
}

/// A file of the cache.
#[derive(Debug)]
struct CachedContent {
    content: Arc<dyn Content>,
    cache: Cache,
    name: String,
    /// Set once the file was opened.
    using: OnceLock<Option<CacheUse>>,
}

impl CachedContent {
    fn mark(&self) {
        self.using.get_or_init(|| self.cache.use_name(&self.name, true));
    }
}

impl Content for CachedContent {
    fn id(&self) -> FileId {
        self.content.id()
    }

    fn size(&self) -> u64 {
        self.content.size()
    }

    fn record(&self) -> Result<FileRecord, Problem> {
        self.content.record()
    }

    fn name(&self) -> String {
        self.content.name()
    }

    fn piece_hashes(&self) -> Result<Arc<[Hash]>, Problem> {
        self.content.piece_hashes()
    }

    fn plan(&self) -> Option<Arc<Plan>> {
        self.content.plan()
    }

    fn availability(&self) -> Availability {
        self.content.availability()
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        self.content.changes()
    }

    fn open(&self, range: Range<u64>) -> Result<Arc<File>, Problem> {
        self.mark();
        self.content.open(range)
    }

    fn try_open(&self, range: Range<u64>) -> Option<Arc<File>> {
        self.mark();
        self.content.try_open(range)
    }

    fn is_unchanged(&self, file: &File) -> bool {
        self.content.is_unchanged(file)
    }

    fn check_unchanged(&self, file: &File) -> Result<(), Problem> {
        self.content.check_unchanged(file)
    }
}
