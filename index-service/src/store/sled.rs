//! The store on disk, based on sled 0.34. No other module uses sled.
//!
//! All data is in one tree, so that one batch changes it atomically. The keys are
//!
//! - `peer id || 0` for the address and lease of a peer,
//! - `peer id || 1 || number` for the peer's segments, in the order in which they apply.
//!
//! New registrations go into new segments at the end. Two rules keep the segments few, and each
//! rewrites an entry a bounded number of times on average:
//!
//! - A new segment is merged with the previous one while that is less than twice its size and both
//!   fit one segment. A peer that registers its files one by one therefore has few segments.
//! - Once a peer's segments contain more than twice the needed entries, all of them are folded into
//!   new ones.

use std::{cell::RefCell, collections::HashMap, io, path::Path, thread, time::Instant};

use hashbrown::HashSet;
use potluck_core::{FileId, PeerId, model::Registration};
use sled::{Batch, Db, IVec, Tree};

use crate::store::{
    Change, FolderError, IndexStore, PeerRecord, StoreError, StoredPeer,
    durable::{CLOSE_TIMEOUT, StoreFiles},
    folder::{self, DataFolder},
    segment::{self, SEGMENT_BYTES, SegmentEntry},
};

/// Name of the tree. An incompatible format needs another name.
const TREE: &str = "registrations.v1";

/// sled's cache, in bytes: queries never read the store, so only writes need a cache.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;

/// Entries beyond twice the needed ones before a peer's segments are folded, so that small peers
/// are not folded on every change.
const SLACK_ENTRIES: usize = 4096;

/// Key that marks a store as initialised.
const STARTED_KEY: &str = "potluck.begun";

const PEER: u8 = 0;
const SEGMENT: u8 = 1;

/// Registrations on disk.
#[derive(Debug)]
pub struct SledStore {
    // Declared before the folder, so that sled is closed before the folder is unlocked.
    /// `None` after a failure, until the store is opened again.
    open: Option<Box<OpenStore>>,
    folder: DataFolder,
}

/// An open store.
#[derive(Debug)]
struct OpenStore {
    tree: Tree,
    db: Db,
    files: StoreFiles,
    peers: HashMap<PeerId, PeerSegments>,
}

/// The segments of one peer.
#[derive(Debug, Clone, Default)]
struct PeerSegments {
    list: Vec<SegmentInfo>,
    next_number: u64,
    /// Number of entries that are needed, one per file of the peer. An estimate between folds.
    needed_entries: usize,
}

#[derive(Debug, Clone, Copy)]
struct SegmentInfo {
    number: u64,
    bytes: usize,
    entries: usize,
}

impl PeerSegments {
    fn entries(&self) -> usize {
        self.list.iter().map(|segment| segment.entries).sum()
    }
}

impl SledStore {
    /// Opens the store in a data folder, which is created if missing, and passes every stored peer
    /// to `each`. A damaged store is moved aside, and an empty one opened instead; no peer of the
    /// damaged one is returned.
    ///
    /// # Errors
    /// [`FolderError`] if another process uses the folder or the system does not allow its use.
    pub fn open<C: Default>(
        data_dir: &Path,
        each: impl Fn(&mut C, StoredPeer),
    ) -> Result<(Self, C), FolderError> {
        let ((open, collected), folder) = folder::open(data_dir, |path| {
            let mut collected = C::default();
            let open = OpenStore::at(path, &mut |peer| each(&mut collected, peer))?;
            Ok((open, collected))
        })?;
        let open = Some(Box::new(open));
        Ok((Self { open, folder }, collected))
    }
}

impl OpenStore {
    /// Opens the store at `path`, makes it private and durable, and passes every peer to `each`.
    fn at(path: &Path, each: &mut dyn FnMut(StoredPeer)) -> Result<Self, StoreError> {
        let had_data = path.join("db").metadata().is_ok_and(|db| db.len() > 0);
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            // `apply` flushes before a change is acknowledged.
            .flush_every_ms(None);
        let db = open_with_retry(&config)?;
        check_not_lost(&db, had_data)?;
        let tree = db.open_tree(TREE).map_err(store_error)?;
        db.flush().map_err(store_error)?;
        let files = StoreFiles::open(path).map_err(StoreError::Io)?;
        let peers = read_all(&tree, each)?;
        Ok(Self {
            tree,
            db,
            files,
            peers,
        })
    }

    fn apply(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let mut writer = BatchWriter {
            tree: &self.tree,
            peers: &self.peers,
            batch: Batch::default(),
            changed: HashMap::new(),
            unwritten: HashMap::new(),
        };
        for change in changes {
            writer.add_change(change)?;
        }
        let BatchWriter { batch, changed, .. } = writer;
        self.tree.apply_batch(batch).map_err(store_error)?;
        // sled contains the batch now, durable or not, so the segment lists must match it.
        for (peer, segments) in changed {
            match segments {
                Some(segments) => self.peers.insert(peer, segments),
                None => self.peers.remove(&peer),
            };
        }
        self.db.flush().map_err(store_error)?;
        self.files.sync().map_err(StoreError::Io)
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

    fn load(&mut self, each: &mut dyn FnMut(StoredPeer)) -> Result<(), StoreError> {
        let open = self.open.as_mut().ok_or_else(closed)?;
        open.peers = read_all(&open.tree, each)?;
        Ok(())
    }

    fn apply(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        self.open.as_mut().ok_or_else(closed)?.apply(changes)
    }

    fn reopen(&mut self, each: &mut dyn FnMut(StoredPeer)) -> Result<(), StoreError> {
        if let Some(open) = self.open.take() {
            close(open);
        }
        let each = RefCell::new(each);
        let opened = self
            .folder
            .reopen(|path| OpenStore::at(path, &mut **each.borrow_mut()))?;
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

/// Distinguishes a store that lost everything from a new one. sled treats a file without any
/// readable data as empty.
fn check_not_lost(db: &Db, had_data: bool) -> Result<(), StoreError> {
    if db.contains_key(STARTED_KEY).map_err(store_error)? {
        return Ok(());
    }
    if had_data {
        return Err(StoreError::Damaged("no data in the store can be read".to_owned()));
    }
    db.insert(STARTED_KEY, env!("CARGO_PKG_VERSION"))
        .map_err(store_error)?;
    db.flush().map_err(store_error)?;
    Ok(())
}

/// Passes every peer to `each`, and returns the segment lists.
fn read_all(
    tree: &Tree,
    each: &mut dyn FnMut(StoredPeer),
) -> Result<HashMap<PeerId, PeerSegments>, StoreError> {
    let mut peers = HashMap::new();
    let mut current: Option<(PeerRecord, PeerSegments, Vec<IVec>)> = None;
    let mut finish = |current: Option<(PeerRecord, PeerSegments, Vec<IVec>)>| {
        let Some((record, mut segments, values)) = current else {
            return Ok(());
        };
        let mut segment_entries = Vec::with_capacity(values.len());
        for (value, segment) in values.iter().zip(&mut segments.list) {
            let entries = segment::decode(value)?;
            segment.entries = entries.len();
            segment_entries.push(Ok(entries));
        }
        let files: Vec<_> = segment::fold(segment_entries)?.into_values().flatten().collect();
        segments.needed_entries = files.len();
        peers.insert(record.id, segments);
        each(StoredPeer { record, files });
        Ok::<(), StoreError>(())
    };
    for item in tree.iter() {
        let (key, value) = item.map_err(store_error)?;
        match read_key(&key)? {
            (id, None) => {
                finish(current.take())?;
                let (address, ttl) = segment::decode_peer(&value)?;
                current = Some((
                    PeerRecord { id, address, ttl },
                    PeerSegments::default(),
                    Vec::new(),
                ));
            }
            (id, Some(number)) => {
                let Some((_, segments, values)) =
                    current.as_mut().filter(|(record, ..)| record.id == id)
                else {
                    return Err(StoreError::Damaged(
                        "registrations of a peer that is not stored".to_owned(),
                    ));
                };
                segments.list.push(SegmentInfo {
                    number,
                    bytes: value.len(),
                    entries: 0,
                });
                segments.next_number = number + 1;
                values.push(value);
            }
        }
    }
    finish(current)?;
    Ok(peers)
}

/// Collects changes into one batch.
struct BatchWriter<'a> {
    tree: &'a Tree,
    peers: &'a HashMap<PeerId, PeerSegments>,
    batch: Batch,
    /// Segment lists of the changed peers; `None` if the peer was removed.
    changed: HashMap<PeerId, Option<PeerSegments>>,
    /// Segments in the batch that the tree does not contain yet.
    unwritten: HashMap<(PeerId, u64), Vec<u8>>,
}

impl BatchWriter<'_> {
    fn add_change(&mut self, change: &Change) -> Result<(), StoreError> {
        match change {
            Change::Register {
                peer,
                files,
                new,
                replace,
            } => {
                let mut segments = self.segments_of(&peer.id).unwrap_or_default();
                if *replace {
                    self.remove_all_segments(&peer.id, &mut segments);
                }
                let record = segment::encode_peer(&peer.address, peer.ttl);
                self.batch.insert(peer_key(&peer.id).as_slice(), record);
                segments.needed_entries += new;
                let entries = files.iter().map(|file| (file.file.id, Some(file)));
                self.append_entries(&peer.id, &mut segments, entries)?;
                self.changed.insert(peer.id, Some(segments));
            }
            Change::Unregister { peer, files } => {
                if let Some(mut segments) = self.segments_of(peer) {
                    segments.needed_entries = segments.needed_entries.saturating_sub(files.len());
                    self.append_entries(
                        peer,
                        &mut segments,
                        files.iter().map(|&file| (file, None)),
                    )?;
                    self.changed.insert(*peer, Some(segments));
                }
            }
            Change::Forget { peer } => {
                if let Some(mut segments) = self.segments_of(peer) {
                    self.remove_all_segments(peer, &mut segments);
                    self.batch.remove(peer_key(peer).as_slice());
                    self.changed.insert(*peer, None);
                }
            }
        }
        Ok(())
    }

    fn segments_of(&self, peer: &PeerId) -> Option<PeerSegments> {
        match self.changed.get(peer) {
            Some(segments) => segments.clone(),
            None => self.peers.get(peer).cloned(),
        }
    }

    fn append_entries<'b>(
        &mut self,
        peer: &PeerId,
        segments: &mut PeerSegments,
        entries: impl DoubleEndedIterator<Item = (FileId, Option<&'b Registration>)>,
    ) -> Result<(), StoreError> {
        // Each file occurs once per segment. If a request repeats a file, its last entry counts.
        let mut seen = HashSet::new();
        let mut entries: Vec<_> = entries.rev().filter(|(file, _)| seen.insert(*file)).collect();
        entries.reverse();
        self.push_segments(peer, segments, entries);
        while let [.., previous, last] = *segments.list
            && previous.bytes < 2 * last.bytes
            && previous.bytes + last.bytes <= SEGMENT_BYTES
        {
            let count = segments.list.len();
            self.fold_from(peer, segments, count - 2)?;
            // Stop if the merge did not reduce the number of segments, even if their sizes suggest
            // that it should.
            if segments.list.len() >= count {
                break;
            }
        }
        if segments.entries() > 2 * segments.needed_entries + SLACK_ENTRIES {
            self.fold_from(peer, segments, 0)?;
            segments.needed_entries = segments.entries();
        }
        Ok(())
    }

    /// Folds the segments from index `from` to the end into new ones.
    fn fold_from(
        &mut self,
        peer: &PeerId,
        segments: &mut PeerSegments,
        from: usize,
    ) -> Result<(), StoreError> {
        let old = segments.list.split_off(from);
        let mut entries =
            segment::fold(old.iter().map(|segment| self.read_segment(peer, segment.number)))?;
        if from == 0 {
            // No earlier segment remains to which a removal could apply.
            entries.retain(|_, registration| registration.is_some());
        }
        for segment in old {
            self.remove_segment(peer, segment.number);
        }
        self.push_segments(
            peer,
            segments,
            entries.iter().map(|(&file, entries)| (file, entries.as_ref())),
        );
        Ok(())
    }

    fn push_segments<'b>(
        &mut self,
        peer: &PeerId,
        segments: &mut PeerSegments,
        entries: impl IntoIterator<Item = (FileId, Option<&'b Registration>)>,
    ) {
        for segment in segment::encode(entries) {
            let number = segments.next_number;
            segments.next_number += 1;
            segments.list.push(SegmentInfo {
                number,
                bytes: segment.bytes.len(),
                entries: segment.entries,
            });
            self.batch
                .insert(segment_key(peer, number).as_slice(), segment.bytes.as_slice());
            self.unwritten.insert((*peer, number), segment.bytes);
        }
    }

    fn read_segment(&self, peer: &PeerId, number: u64) -> Result<Vec<SegmentEntry>, StoreError> {
        if let Some(bytes) = self.unwritten.get(&(*peer, number)) {
            return segment::decode(bytes);
        }
        let stored = self.tree.get(segment_key(peer, number)).map_err(store_error)?;
        segment::decode(
            &stored.ok_or_else(|| StoreError::Damaged("a segment is missing".to_owned()))?,
        )
    }

    fn remove_segment(&mut self, peer: &PeerId, number: u64) {
        self.unwritten.remove(&(*peer, number));
        self.batch.remove(segment_key(peer, number).as_slice());
    }

    fn remove_all_segments(&mut self, peer: &PeerId, segments: &mut PeerSegments) {
        for segment in std::mem::take(&mut segments.list) {
            self.remove_segment(peer, segment.number);
        }
        segments.needed_entries = 0;
    }
}

fn peer_key(peer: &PeerId) -> Vec<u8> {
    [peer.as_bytes().as_slice(), &[PEER]].concat()
}

fn segment_key(peer: &PeerId, number: u64) -> Vec<u8> {
    [peer.as_bytes().as_slice(), &[SEGMENT], &number.to_be_bytes()].concat()
}

/// Parses a key into the peer, and the segment number if it is a segment's key.
fn read_key(key: &[u8]) -> Result<(PeerId, Option<u64>), StoreError> {
    let damaged = || StoreError::Damaged("a key of an unknown kind".to_owned());
    let (peer, rest) = key
        .split_at_checked(potluck_core::identity::id::LEN)
        .ok_or_else(damaged)?;
    let peer = PeerId::try_from(peer).map_err(|_| damaged())?;
    match rest {
        [PEER] => Ok((peer, None)),
        [SEGMENT, number @ ..] => {
            let number = number.try_into().map_err(|_| damaged())?;
            Ok((peer, Some(u64::from_be_bytes(number))))
        }
        _ => Err(damaged()),
    }
}

/// Classifies an error: [`StoreError::Io`] if the system is at fault, [`StoreError::Damaged`] if
/// the stored data is.
fn store_error(error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(error) if folder::is_system_error(&error) => StoreError::Io(error),
        // sled reports a lock held by another as this text only.
        sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => {
            StoreError::Io(std::io::Error::new(std::io::ErrorKind::ResourceBusy, error))
        }
        error => StoreError::Damaged(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract::{peer, registration};

    fn open(dir: &Path) -> (SledStore, Vec<StoredPeer>) {
        SledStore::open(dir, |all: &mut Vec<StoredPeer>, peer| all.push(peer)).unwrap()
    }

    #[test]
    fn files_registered_one_by_one_share_few_segments() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = open(dir.path());
        for n in 0..300 {
            let files = vec![registration(n, "one of many.bin")];
            store
                .apply(&[Change::Register {
                    peer: peer(1),
                    files,
                    new: 0,
                    replace: false,
                }])
                .unwrap();
        }
        let segments = &store.open.as_ref().unwrap().peers[&peer(1).id];
        assert_eq!(segments.entries(), 300);
        assert!(
            segments.list.len() <= 300 * 100 / SEGMENT_BYTES * 2 + 8,
            "{} segments",
            segments.list.len()
        );
    }

    #[test]
    fn two_segments_that_just_fit_one_are_merged() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = open(dir.path());
        // These files take 2048 and 2047 bytes in a segment.
        let files: Vec<_> = [242, 241]
            .map(|last| {
                let mut file = registration(1, "");
                file.file.root.0[8] = last;
                file.file.id = FileId::derive(file.file.size, &file.file.root);
                file.names = vec!["x".repeat(249); 7];
                file.names.push("x".repeat(last.into()));
                file.is_complete = true;
                file
            })
            .to_vec();
        let change = Change::Register {
            peer: peer(1),
            files: files.clone(),
            new: 2,
            replace: false,
        };
        store.apply(&[change]).unwrap();
        let sizes: Vec<_> = store.open.as_ref().unwrap().peers[&peer(1).id]
            .list
            .iter()
            .map(|segment| (segment.bytes, segment.entries))
            .collect();
        assert_eq!(sizes, [(SEGMENT_BYTES - 1, 2)]);
        drop(store);
        let mut stored = open(dir.path()).1.remove(0).files;
        stored.sort_by_key(|file| std::cmp::Reverse(file.names[7].len()));
        assert_eq!(stored, files);
    }

    #[test]
    fn removed_entries_do_not_accumulate() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = open(dir.path());
        for round in 0..20 {
            let files: Vec<_> = (0..1000)
                .map(|n| registration(round * 1000 + n, "removed soon.bin"))
                .collect();
            let ids = files.iter().map(|file| file.file.id).collect();
            let id = peer(1).id;
            store
                .apply(&[
                    Change::Register {
                        peer: peer(1),
                        files,
                        new: 0,
                        replace: false,
                    },
                    Change::Unregister { peer: id, files: ids },
                ])
                .unwrap();
        }
        assert!(store.open.as_ref().unwrap().peers[&peer(1).id].entries() <= 2 * SLACK_ENTRIES);
        drop(store);
        assert!(open(dir.path()).1[0].files.is_empty());
    }
}
