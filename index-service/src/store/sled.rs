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
    durable::{CLOSING, StoreFiles},
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
    open: Option<Box<Open>>,
    folder: DataFolder,
}

/// An open store.
#[derive(Debug)]
struct Open {
    tree: Tree,
    db: Db,
    files: StoreFiles,
    peers: HashMap<PeerId, PeerSegments>,
}

/// The segments of one peer.
#[derive(Debug, Clone, Default)]
struct PeerSegments {
    segments: Vec<SegmentInfo>,
    next: u64,
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
        self.segments.iter().map(|pack| pack.entries).sum()
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
            let open = Open::at(path, &mut |peer| each(&mut collected, peer))?;
            Ok((open, collected))
        })?;
        let open = Some(Box::new(open));
        Ok((Self { open, folder }, collected))
    }
}

impl Open {
    /// Opens the store at `path`, makes it private and durable, and passes every peer to `each`.
    fn at(path: &Path, each: &mut dyn FnMut(StoredPeer)) -> Result<Self, StoreError> {
        let began_before = path.join("db").metadata().is_ok_and(|db| db.len() > 0);
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            // `apply` flushes before a change is acknowledged.
            .flush_every_ms(None);
        let db = open_with_retry(&config)?;
        check_not_lost(&db, began_before)?;
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
        let mut writing = BatchWriter {
            tree: &self.tree,
            peers: &self.peers,
            batch: Batch::default(),
            changed: HashMap::new(),
            unwritten: HashMap::new(),
        };
        for change in changes {
            writing.change(change)?;
        }
        let BatchWriter { batch, changed, .. } = writing;
        self.tree.apply_batch(batch).map_err(store_error)?;
        // sled contains the batch now, durable or not, so the segment lists must match it.
        for (peer, packs) in changed {
            match packs {
                Some(packs) => self.peers.insert(peer, packs),
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
    let begun = Instant::now();
    loop {
        match config.open().map_err(store_error) {
            Err(StoreError::Io(error))
                if error.kind() == io::ErrorKind::ResourceBusy && begun.elapsed() < CLOSING =>
            {
                thread::sleep(CLOSING / 100);
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
            .reopen(|path| Open::at(path, &mut **each.borrow_mut()))?;
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
fn close(open: Box<Open>) {
    let closing = thread::Builder::new().name("closing the store".to_owned());
    if let Err(error) = closing.spawn(move || drop(open)) {
        tracing::warn!(%error, "the failed store is closed without a thread of its own");
    }
}

/// Distinguishes a store that lost everything from a new one. sled treats a file without any
/// readable data as empty.
fn check_not_lost(db: &Db, began_before: bool) -> Result<(), StoreError> {
    if db.contains_key(STARTED_KEY).map_err(store_error)? {
        return Ok(());
    }
    if began_before {
        return Err(StoreError::Damaged("nothing in it can be read".to_owned()));
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
        let Some((record, mut packs, values)) = current else {
            return Ok(());
        };
        let mut segment_entries = Vec::with_capacity(values.len());
        for (value, pack) in values.iter().zip(&mut packs.segments) {
            let entries = segment::decode(value)?;
            pack.entries = entries.len();
            segment_entries.push(Ok(entries));
        }
        let files: Vec<_> = segment::fold(segment_entries)?.into_values().flatten().collect();
        packs.needed_entries = files.len();
        peers.insert(record.id, packs);
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
                let Some((_, packs, values)) = current.as_mut().filter(|(record, ..)| record.id == id) else {
                    return Err(StoreError::Damaged(
                        "registrations of a peer that is not stored".to_owned(),
                    ));
                };
                packs.segments.push(SegmentInfo {
                    number,
                    bytes: value.len(),
                    entries: 0,
                });
                packs.next = number + 1;
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
    fn change(&mut self, change: &Change) -> Result<(), StoreError> {
        match change {
            Change::Register {
                peer,
                files,
                new,
                replace,
            } => {
                let mut packs = self.segments_of(&peer.id).unwrap_or_default();
                if *replace {
                    self.remove_all(&peer.id, &mut packs);
                }
                let record = segment::encode_peer(&peer.address, peer.ttl);
                self.batch.insert(peer_key(&peer.id).as_slice(), record);
                packs.needed_entries += new;
                let entries = files.iter().map(|file| (file.file.id, Some(file)));
                self.append(&peer.id, &mut packs, entries)?;
                self.changed.insert(peer.id, Some(packs));
            }
            Change::Unregister { peer, files } => {
                if let Some(mut packs) = self.segments_of(peer) {
                    packs.needed_entries = packs.needed_entries.saturating_sub(files.len());
                    self.append(peer, &mut packs, files.iter().map(|&file| (file, None)))?;
                    self.changed.insert(*peer, Some(packs));
                }
            }
            Change::Forget { peer } => {
                if let Some(mut packs) = self.segments_of(peer) {
                    self.remove_all(peer, &mut packs);
                    self.batch.remove(peer_key(peer).as_slice());
                    self.changed.insert(*peer, None);
                }
            }
        }
        Ok(())
    }

    fn segments_of(&self, peer: &PeerId) -> Option<PeerSegments> {
        match self.changed.get(peer) {
            Some(packs) => packs.clone(),
            None => self.peers.get(peer).cloned(),
        }
    }

    fn append<'b>(
        &mut self,
        peer: &PeerId,
        packs: &mut PeerSegments,
        entries: impl DoubleEndedIterator<Item = (FileId, Option<&'b Registration>)>,
    ) -> Result<(), StoreError> {
        // Each file occurs once per segment. If a request repeats a file, its last entry counts.
        let mut seen = HashSet::new();
        let mut entries: Vec<_> = entries.rev().filter(|(file, _)| seen.insert(*file)).collect();
        entries.reverse();
        self.push(peer, packs, entries);
        while let [.., before, last] = *packs.segments
            && before.bytes < 2 * last.bytes
            && before.bytes + last.bytes <= SEGMENT_BYTES
        {
            let count = packs.segments.len();
            self.fold(peer, packs, count - 2)?;
            // Stop if the merge did not reduce the number of segments, whatever their sizes
            // suggest.
            if packs.segments.len() >= count {
                break;
            }
        }
        if packs.entries() > 2 * packs.needed_entries + SLACK_ENTRIES {
            self.fold(peer, packs, 0)?;
            packs.needed_entries = packs.entries();
        }
        Ok(())
    }

    /// Folds the segments from index `from` to the end into new ones.
    fn fold(&mut self, peer: &PeerId, packs: &mut PeerSegments, from: usize) -> Result<(), StoreError> {
        let old = packs.segments.split_off(from);
        let mut entries = segment::fold(old.iter().map(|pack| self.read(peer, pack.number)))?;
        if from == 0 {
            // No earlier segment remains to which a removal could apply.
            entries.retain(|_, registration| registration.is_some());
        }
        for pack in old {
            self.remove(peer, pack.number);
        }
        self.push(
            peer,
            packs,
            entries.iter().map(|(&file, entries)| (file, entries.as_ref())),
        );
        Ok(())
    }

    fn push<'b>(
        &mut self,
        peer: &PeerId,
        packs: &mut PeerSegments,
        entries: impl IntoIterator<Item = (FileId, Option<&'b Registration>)>,
    ) {
        for pack in segment::encode(entries) {
            let number = packs.next;
            packs.next += 1;
            packs.segments.push(SegmentInfo {
                number,
                bytes: pack.bytes.len(),
                entries: pack.entries,
            });
            self.batch
                .insert(segment_key(peer, number).as_slice(), pack.bytes.as_slice());
            self.unwritten.insert((*peer, number), pack.bytes);
        }
    }

    fn read(&self, peer: &PeerId, number: u64) -> Result<Vec<SegmentEntry>, StoreError> {
        if let Some(bytes) = self.unwritten.get(&(*peer, number)) {
            return segment::decode(bytes);
        }
        let stored = self.tree.get(segment_key(peer, number)).map_err(store_error)?;
        segment::decode(&stored.ok_or_else(|| StoreError::Damaged("registrations are missing".to_owned()))?)
    }

    fn remove(&mut self, peer: &PeerId, number: u64) {
        self.unwritten.remove(&(*peer, number));
        self.batch.remove(segment_key(peer, number).as_slice());
    }

    fn remove_all(&mut self, peer: &PeerId, packs: &mut PeerSegments) {
        for pack in std::mem::take(&mut packs.segments) {
            self.remove(peer, pack.number);
        }
        packs.needed_entries = 0;
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
    let damaged = || StoreError::Damaged("a key that is none of the index's".to_owned());
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
    fn one_by_one_makes_few_packs() {
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
        let packs = &store.open.as_ref().unwrap().peers[&peer(1).id];
        assert_eq!(packs.entries(), 300);
        assert!(
            packs.segments.len() <= 300 * 100 / SEGMENT_BYTES * 2 + 8,
            "{} packs",
            packs.segments.len()
        );
    }

    #[test]
    fn two_packs_that_just_fit_one_become_one() {
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
        let told = Change::Register {
            peer: peer(1),
            files: files.clone(),
            new: 2,
            replace: false,
        };
        store.apply(&[told]).unwrap();
        let packs: Vec<_> = store.open.as_ref().unwrap().peers[&peer(1).id]
            .segments
            .iter()
            .map(|pack| (pack.bytes, pack.entries))
            .collect();
        assert_eq!(packs, [(SEGMENT_BYTES - 1, 2)]);
        drop(store);
        let mut held = open(dir.path()).1.remove(0).files;
        held.sort_by_key(|file| std::cmp::Reverse(file.names[7].len()));
        assert_eq!(held, files);
    }

    #[test]
    fn what_was_taken_back_does_not_pile_up() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = open(dir.path());
        for round in 0..20 {
            let files: Vec<_> = (0..1000)
                .map(|n| registration(round * 1000 + n, "gone soon.bin"))
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
