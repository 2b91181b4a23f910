//! The store on disk, based on sled 0.34. No other module uses sled.
//!
//! All data is in one tree, so that one batch changes it atomically. The keys are
//!
//! - `peer id || 0` for the address and lease of a peer,
//! - `peer id || 1 || number` for the peer's segments, in the order in which they apply,
//! - `summary` for the number of the last change and the digest of all other rows.
//!
//! sled verifies each record of its log, and recovers from a damaged one by leaving it out. Rows
//! then have older values, or are missing, without an error: a registration that was withdrawn is
//! there again. The digest shows that. It does not show that all rows are older together, as after
//! the log lost its end; the number shows that, because a file outside of sled has the last
//! acknowledged one (`potluck_core::generation`). Either difference is damage.
//!
//! New registrations go into new segments at the end. Two rules keep the segments few, and each
//! rewrites an entry a bounded number of times on average:
//!
//! - A new segment is merged with the previous one while that is less than twice its size and both
//!   fit one segment. A peer that registers its files one by one therefore has few segments.
//! - Once a peer's segments contain more than twice the needed entries, all of them are folded into
//!   new ones.

use std::{cell::RefCell, collections::HashMap, io, path::Path, thread, time::Instant};

use potluck_core::{PeerId, generation::GenerationFile, model::ClusterId};
use prost::Message as _;
use sled::{Db, Tree};

use crate::store::{
    Change, FolderError, IndexStore, StoreError, StoredPeer,
    durable::{CLOSE_TIMEOUT, StoreFiles},
    folder::{self, DataFolder},
    packed::{EachPeer, PeerSink, StoredPeers},
    sled::{
        batch::{BatchWriter, RecentSegments},
        read::read_all,
        rows::{PeerSegments, RowHash, SUMMARY_KEY, store_error},
    },
};

mod batch;
mod read;
mod rows;
#[cfg(test)]
mod tests;

/// Name of the tree. An incompatible format needs another name.
const TREE: &str = "registrations.v1";

/// The least cache of sled, in bytes: queries never read the store, so only writes need a cache.
pub(crate) const MIN_CACHE_BYTES: u64 = 8 * 1024 * 1024;

/// Bytes of a registration with a name of a typical length.
const TYPICAL_ENTRY_BYTES: usize = 96;

/// Key of the layout's number.
const LAYOUT_KEY: &str = "potluck.layout";

/// The layout of keys and values. A program refuses a store with a later one.
const LAYOUT: &[u8] = b"1";

/// Key that marks a store as initialised.
const STARTED_KEY: &str = "potluck.begun";

/// Its value in a store with a summary; earlier versions wrote their own number.
const WITH_SUMMARY: &[u8] = b"summary";

/// Key of the number of starts.
const STARTS_KEY: &str = "potluck.starts";

/// Registrations on disk.
#[derive(Debug)]
pub struct SledStore {
    // Declared before the folder, so that sled is closed before the folder is unlocked.
    /// `None` after a failure, until the store is opened again.
    open: Option<Box<OpenStore>>,
    folder: DataFolder,
    cache_bytes: u64,
}

/// An open store.
#[derive(Debug)]
struct OpenStore {
    tree: Tree,
    db: Db,
    files: StoreFiles,
    peers: HashMap<PeerId, PeerSegments>,
    recent: RecentSegments,
    summary: Summary,
    acknowledged: GenerationFile,
}

/// The last change, and a digest of all rows but the summary's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Summary {
    generation: u64,
    rows: RowHash,
}

/// The stored form of a [`Summary`].
#[derive(Clone, PartialEq, prost::Message)]
struct SummaryMessage {
    #[prost(uint64, tag = "1")]
    generation: u64,
    #[prost(bytes = "vec", tag = "2")]
    rows: Vec<u8>,
}

impl SledStore {
    /// Opens the store in a data folder, which is created if missing, and returns every stored peer.
    /// A damaged store is moved aside, and an empty one opened instead; no peer of the damaged one
    /// is returned.
    ///
    /// # Errors
    /// [`FolderError`] if another process uses the folder or the system does not allow its use.
    pub fn open(data_dir: &Path) -> Result<(Self, Vec<StoredPeer>), FolderError> {
        let start = |_| StoredPeers::default();
        let (store, stored) = Self::open_into(data_dir, MIN_CACHE_BYTES, start)?;
        Ok((store, stored.peers))
    }

    /// Like [`Self::open`], with a cache of this many bytes, and with a sink that takes the peers.
    /// `start` makes the sink; it gets a rough estimate of the number of registrations.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_into<S: PeerSink>(
        data_dir: &Path,
        cache_bytes: u64,
        start: impl Fn(usize) -> S,
    ) -> Result<(Self, S), FolderError> {
        let ((open, sink), folder) = folder::open(data_dir, |path| {
            let mut sink = start(estimate_registrations(path));
            let open = OpenStore::at(path, cache_bytes, &mut sink)?;
            Ok((open, sink))
        })?;
        let store = Self {
            open: Some(Box::new(open)),
            folder,
            cache_bytes,
        };
        Ok((store, sink))
    }

    /// Opens the store of a data folder to look after it, and passes every peer to `each`; `None` if
    /// there is no store. A damaged store stays where it is.
    ///
    /// # Errors
    /// As [`Self::open`], and [`FolderError::Unusable`] for a damaged store.
    pub(crate) fn inspect(
        data_dir: &Path,
        each: impl FnMut(StoredPeer),
    ) -> Result<Option<Self>, FolderError> {
        let each = RefCell::new(each);
        let opened = folder::inspect(data_dir, |path| {
            let each = &mut *each.borrow_mut();
            OpenStore::at(path, MIN_CACHE_BYTES, &mut EachPeer::new(each))
        })?;
        Ok(opened.map(|(open, folder)| Self {
            open: Some(Box::new(open)),
            folder,
            cache_bytes: MIN_CACHE_BYTES,
        }))
    }

    /// Closes the store; its folder stays locked until the result is dropped.
    pub(crate) fn close(self) -> DataFolder {
        drop(self.open);
        self.folder
    }

    /// The number of the last change.
    pub(crate) fn generation(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.summary.generation)
    }

    /// Continues an empty store's numbers after this one.
    pub(crate) fn continue_after(&mut self, generation: u64) {
        if let Some(open) = &mut self.open {
            open.summary.generation = generation;
        }
    }
}

/// The number of registrations in a store, estimated by its size.
fn estimate_registrations(path: &Path) -> usize {
    let bytes = path.join("db").metadata().map_or(0, |db| db.len());
    usize::try_from(bytes).unwrap_or(0) / TYPICAL_ENTRY_BYTES * 3 / 4
}

impl OpenStore {
    /// Opens the store at `path`, makes it private and durable, and passes every peer to `sink`.
    fn at(path: &Path, cache_bytes: u64, sink: &mut dyn PeerSink) -> Result<Self, StoreError> {
        let had_data = path.join("db").metadata().is_ok_and(|db| db.len() > 0);
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(cache_bytes.max(MIN_CACHE_BYTES))
            // `apply` flushes before a change is acknowledged.
            .flush_every_ms(None);
        let mut db = open_with_retry(&config)?;
        check_layout(&db)?;
        check_not_lost(&db, had_data)?;
        if had_data {
            db = check_next_start(db, &config)?;
        }
        let tree = db.open_tree(TREE).map_err(store_error)?;
        db.flush().map_err(store_error)?;
        let files = StoreFiles::open(path).map_err(StoreError::Io)?;
        let acknowledged =
            GenerationFile::open(&folder::generation_path(path)).map_err(StoreError::Io)?;
        let (peers, rows) = read_all(&tree, sink)?;
        let summary = read_summary(&db, &tree, rows, acknowledged.acknowledged())?;
        Ok(Self {
            tree,
            db,
            files,
            peers,
            recent: RecentSegments::default(),
            summary,
            acknowledged,
        })
    }

    /// Makes changes durable. After an error the segment lists may not match the tree: close it.
    fn apply(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let mut writer =
            BatchWriter::new(&self.tree, &mut self.peers, &mut self.recent, self.summary.rows);
        for change in changes {
            writer.add_change(change)?;
        }
        let (mut batch, rows) = writer.finish();
        let summary = Summary {
            generation: self.summary.generation + 1,
            rows,
        };
        batch.insert(SUMMARY_KEY, summary.encode());
        self.tree.apply_batch(batch).map_err(store_error)?;
        self.summary = summary;
        self.db.flush().map_err(store_error)?;
        self.files.sync().map_err(StoreError::Io)?;
        if let Err(error) = self.acknowledged.record(summary.generation) {
            tracing::warn!(
                %error,
                "cannot write down the number of the last change: the next start would not \
                 notice if this change were lost"
            );
        }
        Ok(())
    }
}

impl Summary {
    fn encode(&self) -> Vec<u8> {
        SummaryMessage {
            generation: self.generation,
            rows: self.rows.0.to_le_bytes().to_vec(),
        }
        .encode_to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let damaged = || StoreError::Damaged("the summary is malformed".to_owned());
        let message = SummaryMessage::decode(bytes).map_err(|_| damaged())?;
        let rows = message.rows.try_into().map_err(|_| damaged())?;
        Ok(Self {
            generation: message.generation,
            rows: RowHash(u128::from_le_bytes(rows)),
        })
    }
}

/// Reads the summary and compares it with the rows and with the last acknowledged change.
///
/// Adds a summary to the store of an earlier version.
fn read_summary(
    db: &Db,
    tree: &Tree,
    rows: RowHash,
    acknowledged: Option<u64>,
) -> Result<Summary, StoreError> {
    let damaged = |reason: String| Err(StoreError::Damaged(reason));
    let summary = match tree.get(SUMMARY_KEY).map_err(store_error)? {
        Some(bytes) => Summary::decode(&bytes)?,
        None if db.get(STARTED_KEY).map_err(store_error)?.as_deref() == Some(WITH_SUMMARY) => {
            // The first change adds it.
            Summary::default()
        }
        None => {
            let summary = Summary { generation: 0, rows };
            tree.insert(SUMMARY_KEY, summary.encode()).map_err(store_error)?;
            db.insert(STARTED_KEY, WITH_SUMMARY).map_err(store_error)?;
            db.flush().map_err(store_error)?;
            summary
        }
    };
    if summary.rows != rows {
        return damaged(format!(
            "some of its rows are missing or older than the last change, which has the number {}",
            summary.generation
        ));
    }
    match acknowledged {
        Some(acknowledged) if acknowledged > summary.generation => damaged(format!(
            "its last change has the number {}, but {acknowledged} were acknowledged: it lost some, \
             or is an older copy",
            summary.generation
        )),
        _ => Ok(summary),
    }
}

/// Opens sled. Retries while the threads of a dropped database still hold its lock; no other
/// process can, because the data folder is locked.
fn open_with_retry(config: &sled::Config) -> Result<sled::Db, StoreError> {
    let started = Instant::now();
    loop {
        match config.open().map_err(store_error) {
            Err(StoreError::Io(error))
                if error.kind() == io::ErrorKind::ResourceBusy
                    && started.elapsed() < CLOSE_TIMEOUT =>
            {
                thread::sleep(CLOSE_TIMEOUT / 100);
            }
            opened => return opened,
        }
    }
}

impl IndexStore for SledStore {
    fn kind(&self) -> &'static str {
        "sled"
    }

    fn cluster_id(&self) -> ClusterId {
        self.folder.cluster_id()
    }

    fn load(&mut self, each: &mut dyn FnMut(StoredPeer)) -> Result<(), StoreError> {
        let open = self.open.as_mut().ok_or_else(closed)?;
        (open.peers, _) = read_all(&open.tree, &mut EachPeer::new(each))?;
        Ok(())
    }

    fn apply(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let applied = self.open.as_mut().ok_or_else(closed)?.apply(changes);
        if applied.is_err()
            && let Some(open) = self.open.take()
        {
            close(open);
        }
        applied
    }

    fn reopen(&mut self, each: &mut dyn FnMut(StoredPeer)) -> Result<(), StoreError> {
        if let Some(open) = self.open.take() {
            close(open);
        }
        let each = RefCell::new(each);
        let cache_bytes = self.cache_bytes;
        let opened = self.folder.reopen(|path| {
            let each = &mut **each.borrow_mut();
            OpenStore::at(path, cache_bytes, &mut EachPeer::new(each))
        })?;
        self.open = Some(Box::new(opened));
        Ok(())
    }
}

/// The error of a store that was not reopened after a failure.
fn closed() -> StoreError {
    StoreError::Io(io::Error::other("the store is closed after a failure"))
}

/// Closes a failed store on a separate thread, because sled may panic or wait forever for a write.
/// The files cannot be opened again before sled closes them.
fn close(open: Box<OpenStore>) {
    let builder = thread::Builder::new().name("store-closer".to_owned());
    if let Err(error) = builder.spawn(move || drop(open)) {
        tracing::warn!(%error, "cannot start a thread to close the failed store");
    }
}

/// Refuses the layout of a later version, and adds the number to a store of an earlier version, which
/// has the same layout.
fn check_layout(db: &Db) -> Result<(), StoreError> {
    match db.get(LAYOUT_KEY).map_err(store_error)?.as_deref() {
        Some(LAYOUT) => Ok(()),
        None => {
            db.insert(LAYOUT_KEY, LAYOUT).map_err(store_error)?;
            Ok(())
        }
        Some(other) => Err(StoreError::Newer(String::from_utf8_lossy(other).into_owned())),
    }
}

/// Distinguishes a store that lost everything from a new one. sled treats a file without any
/// readable data as empty.
fn check_not_lost(db: &Db, had_data: bool) -> Result<(), StoreError> {
    if db.contains_key(STARTED_KEY).map_err(store_error)? {
        return Ok(());
    }
    if had_data {
        return Err(StoreError::Damaged("no data in the store can be read".to_owned()));
    }
    db.insert(STARTED_KEY, WITH_SUMMARY).map_err(store_error)?;
    db.flush().map_err(store_error)?;
    Ok(())
}

/// Checks that what is written now can be read at the next start: writes a row, closes the store,
/// opens it again and looks for the row.
///
/// sled keeps the positions of all pages in a file that it writes only when it opens. With that file,
/// it reads every page of a log whose current segment has a damaged header, and appends to that
/// segment. The next start needs the header to find what was appended, and would leave it out.
fn check_next_start(db: Db, config: &sled::Config) -> Result<Db, StoreError> {
    let started = db.get(STARTS_KEY).map_err(store_error)?;
    let started = started.and_then(|count| count.as_ref().try_into().ok());
    let written = started
        .map_or(0, u64::from_be_bytes)
        .wrapping_add(1)
        .to_be_bytes();
    db.insert(STARTS_KEY, &written).map_err(store_error)?;
    db.flush().map_err(store_error)?;
    drop(db);
    let db = open_with_retry(config)?;
    match db.get(STARTS_KEY).map_err(store_error)? {
        Some(read) if read == written => Ok(db),
        _ => Err(StoreError::Damaged(
            "what is written to it cannot be read at the next start".to_owned(),
        )),
    }
}
