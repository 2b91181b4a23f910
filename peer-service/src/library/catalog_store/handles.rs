//! Open handles of recently read files.
//!
//! Invariant: at most [`MAX_OPEN_FILES`] handles, each used within the last [`OPEN_FILE_IDLE`] or
//! closed by the next sweep.
//!
//! Non-goal: whether a file is unchanged. The caller checks each handle that it gets.

use std::{
    fs::File,
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use lru::LruCache;
use parking_lot::Mutex;
use potluck_core::FileId;

use crate::fs::page_cache;

/// Maximum number of open files: one request often covers spans of a few files, and one file often
/// has many readers.
const MAX_OPEN_FILES: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not 0");

/// How long an unused handle is kept: an open handle keeps the disk space of a removed file.
pub(crate) const OPEN_FILE_IDLE: Duration = Duration::from_secs(10);

/// A file that is kept open.
#[derive(Debug)]
struct OpenFile {
    file: Arc<File>,
    /// Whether reads of it can be limited to cached data.
    never_waits: bool,
    last_used: Instant,
}

/// The recently read files, kept open.
#[derive(Debug)]
pub(crate) struct FileHandles {
    files: Mutex<LruCache<FileId, OpenFile>>,
}

impl FileHandles {
    pub(crate) fn new() -> Self {
        Self {
            files: Mutex::new(LruCache::new(MAX_OPEN_FILES)),
        }
    }

    pub(crate) fn get(&self, id: &FileId) -> Option<Arc<File>> {
        self.with_file(id, |open| Some(open.file.clone()))
    }

    /// Like `get`, but only a file whose reads never wait for the disk.
    pub(crate) fn get_cached(&self, id: &FileId) -> Option<Arc<File>> {
        self.with_file(id, |open| open.never_waits.then(|| open.file.clone()))
    }

    fn with_file<T>(&self, id: &FileId, get: impl FnOnce(&OpenFile) -> Option<T>) -> Option<T> {
        let mut files = self.files.lock();
        let open = files.get_mut(id)?;
        open.last_used = Instant::now();
        get(open)
    }

    /// Keeps a file open, and closes the least recently used one if there are too many. May block
    /// on the file's disk.
    pub(crate) fn put(&self, id: FileId, file: Arc<File>) {
        let never_waits = page_cache::never_waits(&file);
        let open = OpenFile {
            file,
            never_waits,
            last_used: Instant::now(),
        };
        self.files.lock().put(id, open);
    }

    pub(crate) fn close(&self, ids: &[FileId]) {
        let mut files = self.files.lock();
        for id in ids {
            files.pop(id);
        }
    }

    /// Closes files that were not used for [`OPEN_FILE_IDLE`].
    pub(crate) fn close_idle(&self, now: Instant) {
        let mut files = self.files.lock();
        let is_idle =
            |open: &OpenFile| now.saturating_duration_since(open.last_used) >= OPEN_FILE_IDLE;
        while files.peek_lru().is_some_and(|(_, open)| is_idle(open)) {
            files.pop_lru();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> FileId {
        FileId([n; 32])
    }

    fn handles(count: u8) -> FileHandles {
        let handles = FileHandles::new();
        for n in 0..count {
            handles.put(id(n), Arc::new(tempfile::tempfile().unwrap()));
        }
        handles
    }

    #[test]
    fn the_least_recently_used_file_is_closed_first() {
        let handles = handles(MAX_OPEN_FILES.get() as u8);
        assert!(handles.get(&id(0)).is_some());
        handles.put(id(200), Arc::new(tempfile::tempfile().unwrap()));
        assert!(handles.get(&id(0)).is_some() && handles.get(&id(200)).is_some());
        assert!(handles.get(&id(1)).is_none());
        handles.close(&[id(0), id(201)]);
        assert!(handles.get(&id(0)).is_none());
    }

    #[test]
    fn only_idle_files_are_closed() {
        let handles = handles(3);
        handles.close_idle(Instant::now());
        assert!((0..3).all(|n| handles.get(&id(n)).is_some()));
        let last_used = handles.files.lock().peek(&id(2)).unwrap().last_used;
        handles.files.lock().peek_mut(&id(2)).unwrap().last_used = last_used + OPEN_FILE_IDLE;
        handles.close_idle(last_used + OPEN_FILE_IDLE);
        let open: Vec<_> = (0..3).filter(|&n| handles.get(&id(n)).is_some()).collect();
        assert_eq!(open, [2]);
    }
}
